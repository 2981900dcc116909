"""CVACT: street-level panoramas and the aerial images of the places where they were taken, in Canberra."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from geobind.errors import DataError
from geobind.extras import INSTALL
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import names_in
from geobind_datasets.cross_view import PAIR

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        """Say what the splits are."""
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
    """The numbers of a set's panoramas, from 1."""
    names = data[field].dtype.names or ()
    if inside not in names:
        raise DataError(f"{path}: {field} has no field {inside}; it has {', '.join(names) or 'none'}")
    values: NDArray[Any] = data[field][inside][0][0]
    return [int(value) for value in values.ravel()]


def _image(folder: Path, stem: str) -> Path:
    """An image, JPEG as distributed, or PNG as some copies have it."""
    png = f"{stem}.png"
    return folder / (png if png in names_in(folder) else f"{stem}.jpg")


def _place(one: float, other: float) -> tuple[float | None, float | None]:
    """Degrees of a place in UTM zone 55 south, or None where it does not lie in the territory.

    In the south a northing is always greater than an easting, whichever is told first.
    """
    lat, lon = degrees_of_utm(min(one, other), max(one, other) - 10_000_000.0, 147.0)
    south, north, west, east = _ACT
    return (lat, lon) if south < lat < north and west < lon < east else (None, None)


def degrees_of_utm(easting: float, northing: float, meridian: float) -> tuple[float, float]:
    """Turn a place on the UTM grid of WGS 84 into degrees north and east.

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
