"""CVUSA, VIGOR and CVACT: street-level panoramas and the aerial images of the same places."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from geobind.errors import DataError
from geobind.extras import INSTALL
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import find_first, list_names, resolve_inside

if TYPE_CHECKING:
    from numpy.typing import NDArray


PAIR: Mapping[str, Column] = {
    "satellite": Column("file", "aerial image around the panorama"),
    "ground_image": Column("file", "street-level panorama"),
}
_NUMBER = re.compile(r"\d+")
_PANORAMA = re.compile(r"(?P<id>.+),(?P<lat>-?\d+\.?\d*),(?P<lon>-?\d+\.?\d*),\.\w+")
_CITIES = {"train": ("NewYork", "Seattle"), "test": ("SanFrancisco", "Chicago")}
_TILES = 4  # of each panorama: the one whose middle it is nearest to, and three more that show its place


class CVUSA(Importer):
    """The CVPR subset of CVUSA: 44,416 pairs from all over the USA."""

    name: ClassVar[str] = "cvusa"
    title: ClassVar[str] = "CVUSA (CVPR subset), panoramas and aerial images of the USA"
    home: ClassVar[str] = "https://mvrl.cse.wustl.edu/datasets/cvusa"
    licence: ClassVar[str] = "research only, on request; imagery of Google and Bing"
    citation: ClassVar[str] = (
        "Workman et al., Wide-Area Image Geolocalization, ICCV 2015; Zhai et al., CVPR 2017"
    )
    layout: ClassVar[str] = """
        splits/train-19zl.csv, val-19zl.csv    no header: aerial image, panorama, annotation
        split_locations/all.csv                optional, no header: line n has the places of pair n
        bingmap/19/0000001.jpg
        streetview/panos/0000001.jpg
    """
    columns: ClassVar[Mapping[str, Column]] = PAIR

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the two lists of pairs."""
        folder, found = self.folder(), 0
        places = _places(folder / "split_locations" / "all.csv")
        for split in ("train", "val"):
            path = folder / "splits" / f"{split}-19zl.csv"
            if not path.is_file():
                continue
            found += 1
            for line, cells in _cells(path):
                if len(cells) < 2:
                    raise DataError(f"{path}:{line}: has not the two files of a pair")
                where = f"{path}:{line}"
                number = _NUMBER.fullmatch(Path(cells[0]).stem)
                lat, lon = places.get(int(number[0]) if number else 0, (None, None))
                yield {
                    "key": Path(cells[0]).stem,
                    "split": split,
                    "lat": lat,
                    "lon": lon,
                    "satellite": resolve_inside(folder, cells[0], where),
                    "ground_image": resolve_inside(folder, cells[1], where),
                }
        if not found:
            raise self.misplaced("neither splits/train-19zl.csv nor splits/val-19zl.csv is there")

    def notes(self) -> list[str]:
        """Return notes on the splits and the places."""
        notes = [
            "papers call split val the test set; train and val were drawn at random, so their places mingle: "
            "`geobind data split --by place` makes a split that does not leak"
        ]
        if not (self.folder() / "split_locations" / "all.csv").is_file():
            notes.append("split_locations/all.csv is not there, so rows have no place")
        return notes


class VIGOR(Importer):
    """VIGOR: panoramas and seamless aerial tiles of four cities."""

    name: ClassVar[str] = "vigor"
    title: ClassVar[str] = "VIGOR, panoramas and aerial tiles of four cities of the USA"
    home: ClassVar[str] = "https://github.com/Jeff-Zilence/VIGOR"
    licence: ClassVar[str] = "academic research only, on request; not to be passed on"
    citation: ClassVar[str] = (
        "Zhu et al., VIGOR: Cross-View Image Geo-localization beyond One-to-one Retrieval, CVPR 2021"
    )
    layout: ClassVar[str] = """
        splits/ or splits__corrected/
            Chicago/same_area_balanced_train.txt, same_area_balanced_test.txt, pano_label_balanced.txt
            (likewise NewYork, SanFrancisco, Seattle; with __corrected before .txt in the second folder)
        Chicago/panorama/PREFIX,LAT,LON,.jpg
        Chicago/satellite/satellite_LAT_LON.png
    """
    columns: ClassVar[Mapping[str, Column]] = PAIR

    area: Literal["same", "cross"] = Field(
        default="same",
        description="same: panoramas of every city in both splits; cross: train on New York and Seattle, "
        "test on San Francisco and Chicago.",
    )
    labels: Literal["auto", "original", "corrected"] = Field(
        default="auto", description="Whose lists: splits__corrected (SliceMatch's) where it is, else splits."
    )
    label: Literal["none", "tile", "city"] = Field(
        default="none",
        description="Fill `label` with the tile, so that losses with several positives know panoramas that "
        "share one, or with the city.",
    )

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the lists of panoramas, each with its positive tile."""
        lists, ending = self._lists()
        for split in ("train", "test"):
            cities = _CITIES[split] if self.area == "cross" else sorted(sum(_CITIES.values(), ()))
            stem = "pano_label_balanced" if self.area == "cross" else f"same_area_balanced_{split}"
            for city in cities:
                path = lists / city / f"{stem}{ending}.txt"
                if not path.is_file():
                    raise self.misplaced(f"{path.relative_to(self.folder())} is missing")
                for line, cells in _cells(path, " "):
                    yield self._row(city, split, cells, f"{path}:{line}")

    def notes(self) -> list[str]:
        """Return notes on the pairs, and on leaks between splits."""
        notes = [
            "two panoramas share most tiles, and the three semi-positive tiles of a panorama are left out: "
            "as negatives both are false ones (label=tile tells a loss of the former)"
        ]
        if self.area == "same":
            notes.append(
                "in area=same, most tiles of split test are positive tiles of split train too; area=cross "
                "tests on cities never seen"
            )
        if self._lists()[0].name == "splits":
            notes.append(
                "the original lists took a wrong resolution for tiles; SliceMatch publishes corrected ones"
            )
        return notes

    def _lists(self) -> tuple[Path, str]:
        """Return the folder of lists, and what the names of its files end with."""
        names = {
            "auto": ("splits__corrected", "splits"),
            "original": ("splits",),
            "corrected": ("splits__corrected",),
        }
        lists = find_first(self.folder(), names[self.labels])
        if lists is None:
            raise self.misplaced(f"no folder {' or '.join(names[self.labels])}")
        return lists, "__corrected" if lists.name == "splits__corrected" else ""

    def _row(self, city: str, split: str, cells: list[str], where: str) -> Row:
        # A line: the panorama, then each tile with the offset in pixels between the two, down and right.
        if len(cells) != 1 + 3 * _TILES:
            raise DataError(
                f"{where}: has {len(cells)} words, not a panorama and {_TILES} tiles with offsets"
            )
        panorama, tile = cells[0], cells[1]
        parts = _PANORAMA.fullmatch(panorama)
        if parts is None:
            raise DataError(f"{where}: {panorama!r} is not named PREFIX,LAT,LON,.jpg")
        labels = {"none": None, "tile": tile, "city": city}
        return {
            "key": f"{city}/{parts['id']}",
            "split": split,
            "lat": parts["lat"],
            "lon": parts["lon"],
            "label": labels[self.label],
            "satellite": resolve_inside(self.folder() / city / "satellite", tile, where),
            "ground_image": resolve_inside(self.folder() / city / "panorama", panorama, where),
        }


def _cells(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Return the lines of a list without a header that are not blank, each with its number.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            for line, cells in enumerate(
                csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE), start=1
            ):
                stripped = [cell.strip() for cell in cells]
                while stripped and not stripped[-1]:
                    stripped.pop()
                if stripped:
                    yield line, stripped
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start + 1})") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from error


def _places(path: Path) -> dict[int, tuple[str, str]]:
    """Return CVUSA's places by number, from lines of: aerial lat, lon, panorama lat, lon, more."""
    if not path.is_file():
        return {}
    places: dict[int, tuple[str, str]] = {}
    for line, cells in _cells(path):
        if len(cells) < 4:
            raise DataError(f"{path}:{line}: has {len(cells)} numbers, not the two places of a pair")
        places[line] = cells[2], cells[3]
    return places


# Split, its field in ACT_data.mat with the field in it, and the folder of its images.
_SETS = (
    ("train", "trainSet", "trainInd", "ANU_data_small"),
    ("val", "valSet", "valInd", "ANU_data_small"),
    ("test", "valSetAll", "valInd", "ANU_data_test"),
)
_ACT = (-36.0, -35.0, 148.7, 149.5)  # south, north, west, east
_MAX_MAT = 500_000_000  # bytes


class CVACT(Importer):
    """CVACT: pairs of the Australian Capital Territory, with a large test set."""

    name: ClassVar[str] = "cvact"
    title: ClassVar[str] = "CVACT, panoramas and aerial images of Canberra"
    home: ClassVar[str] = "https://github.com/Liumouliu/OriCNN"
    licence: ClassVar[str] = "research only, on request; not to be passed on"
    citation: ClassVar[str] = (
        "Liu and Li, Lending Orientation to Neural Networks for Cross-view Geo-localization, CVPR 2019"
    )
    layout: ClassVar[str] = """
        ACT_data.mat                           panoIds, utm, trainSet, valSet, valSetAll
        ANU_data_small/streetview/ID_grdView.jpg
        ANU_data_small/satview_polish/ID_satView_polish.jpg
        ANU_data_test/                         optional, likewise: the test set
    """
    columns: ClassVar[Mapping[str, Column]] = PAIR

    def requires(self) -> Mapping[str, str]:
        """Name SciPy, which reads MATLAB files."""
        return {"scipy": INSTALL["scipy"]}

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the ids, places and sets of ACT_data.mat."""
        folder = self.folder()
        path = folder / "ACT_data.mat"
        if not path.is_file():
            raise self.misplaced("ACT_data.mat is missing (it lies in the repository of OriCNN)")
        data = _read_mat(path)
        ids = [str(name).strip() for name in data["panoIds"]]
        for split, field, inside, images in _SETS:
            there = (folder / images).is_dir()
            tiles, panoramas = folder / images / "satview_polish", folder / images / "streetview"
            for number in _numbers(data, field, inside, path):
                if not 0 < number <= len(ids):
                    raise DataError(f"{path}: {field} names panorama {number} of {len(ids)}")
                if not there:
                    yield LeftOut(f"{images} is not there, which has split {split}")
                    continue
                key = ids[number - 1]
                if not key or any(mark in key for mark in "/\\\0"):
                    raise DataError(f"{path}: panoIds has {key!r}, which is no part of a file name")
                lat, lon = _place(*data["utm"][number - 1][:2])
                yield {
                    "key": f"{split}/{key}",
                    "split": split,
                    "lat": lat,
                    "lon": lon,
                    "satellite": _image(tiles, f"{key}_satView_polish"),
                    "ground_image": _image(panoramas, f"{key}_grdView"),
                }

    def notes(self) -> list[str]:
        """Return notes on the splits."""
        return [
            "papers call split val CVACT_val and split test CVACT_test; there, a panorama's hits are all "
            "tiles within 25 m, here it is its own tile alone",
            "the splits lie in the same city, and neighbours in different ones: `geobind data split "
            "--by place` makes a split that does not leak",
        ]


def _read_mat(path: Path) -> dict[str, Any]:
    """Read what is needed of a MATLAB file.

    Raises:
        DataError: SciPy is not installed, or it is no such file.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{path}: reading MATLAB files needs SciPy ({error}): {INSTALL['scipy']}") from error
    if path.stat().st_size > _MAX_MAT:
        raise DataError(f"{path}: over {_MAX_MAT // 1_000_000} MB; is this CVACT's own file?")
    names = ["panoIds", "utm", *(field for _, field, _, _ in _SETS)]
    try:
        data: dict[str, Any] = loadmat(path, variable_names=names)
    except Exception as error:  # SciPy raises whatever its parser meets
        raise DataError(f"{path}: not a MATLAB file that can be read: {error}") from error
    lacking = [name for name in names if name not in data]
    if lacking:
        raise DataError(f"{path}: has no {lacking[0]}")
    if data["utm"].ndim != 2 or data["utm"].shape[1] < 2 or len(data["utm"]) != len(data["panoIds"]):
        raise DataError(
            f"{path}: utm has shape {data['utm'].shape}, but there are {len(data['panoIds'])} panoIds"
        )
    return data


def _numbers(data: dict[str, Any], field: str, inside: str, path: Path) -> list[int]:
    """Return the numbers of a set's panoramas, from 1."""
    names = data[field].dtype.names or ()
    if inside not in names:
        raise DataError(f"{path}: {field} has no field {inside}; it has {', '.join(names) or 'none'}")
    values: NDArray[Any] = data[field][inside][0][0]
    return [int(value) for value in values.ravel()]


def _image(folder: Path, stem: str) -> Path:
    """Return an image, JPEG as distributed, or PNG as some copies have it."""
    png = f"{stem}.png"
    return folder / (png if png in list_names(folder) else f"{stem}.jpg")


def _place(one: float, other: float) -> tuple[float | None, float | None]:
    """Convert a place in UTM zone 55 south to degrees, or None outside of the territory.

    In the south a northing is always greater than an easting, whichever is told first.
    """
    lat, lon = utm_to_degrees(min(one, other), max(one, other) - 10_000_000.0, 147.0)
    south, north, west, east = _ACT
    return (lat, lon) if south < lat < north and west < lon < east else (None, None)


def utm_to_degrees(easting: float, northing: float, meridian: float) -> tuple[float, float]:
    """Convert a place on the UTM grid of WGS 84 to degrees north and east.

    Krüger's series to the third order of the third flattening, exact to below a millimetre inside of a zone
    (Karney, Transverse Mercator with an accuracy of a few nanometers, J. Geodesy 2011, eq. 36).

    Args:
        easting: Metres, 500,000 on the central meridian.
        northing: Metres from the equator, negative in the south.
        meridian: The zone's central meridian in degrees east.
    """
    flattening = 1 / 298.257223563
    n = flattening / (2 - flattening)
    radius = 6378137.0 / (1 + n) * (1 + n**2 / 4 + n**4 / 64)  # of the rectifying sphere
    beta = (
        n / 2 - 2 * n**2 / 3 + 37 * n**3 / 96,
        n**2 / 48 + n**3 / 15,
        17 * n**3 / 480,
    )
    xi, eta = northing / (0.9996 * radius), (easting - 500_000.0) / (0.9996 * radius)
    xi_sphere = xi - sum(
        b * math.sin(2 * j * xi) * math.cosh(2 * j * eta) for j, b in enumerate(beta, start=1)
    )
    eta_sphere = eta - sum(
        b * math.cos(2 * j * xi) * math.sinh(2 * j * eta) for j, b in enumerate(beta, start=1)
    )
    conformal = math.asin(math.sin(xi_sphere) / math.cosh(eta_sphere))
    # From the conformal to the geographic latitude, by fixed point: each step gains a factor of 150.
    eccentricity = math.sqrt(flattening * (2 - flattening))
    isometric, lat = math.atanh(math.sin(conformal)), conformal
    for _ in range(6):
        lat = math.asin(math.tanh(isometric + eccentricity * math.atanh(eccentricity * math.sin(lat))))
    return math.degrees(lat), meridian + math.degrees(math.atan2(math.sinh(eta_sphere), math.cos(xi_sphere)))
