"""CVUSA and VIGOR: street-level panoramas and the aerial images of the places where they were taken."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import first_there, inner

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
                    "satellite": inner(folder, cells[0], where),
                    "ground_image": inner(folder, cells[1], where),
                }
        if not found:
            raise self.misplaced("neither splits/train-19zl.csv nor splits/val-19zl.csv is there")

    def notes(self) -> list[str]:
        """Say how the splits are used, and whether there are places."""
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
        """Say what the pairs are and whether the splits leak."""
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
        """The folder of lists, and what the names of its files end with."""
        names = {
            "auto": ("splits__corrected", "splits"),
            "original": ("splits",),
            "corrected": ("splits__corrected",),
        }
        lists = first_there(self.folder(), names[self.labels])
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
            "satellite": inner(self.folder() / city / "satellite", tile, where),
            "ground_image": inner(self.folder() / city / "panorama", panorama, where),
        }


def _cells(path: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The lines of a list without a header that are not blank, each with its number.

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
    """The places of CVUSA's panoramas by number, from lines of: aerial lat, lon, panorama lat, lon, more."""
    if not path.is_file():
        return {}
    places: dict[int, tuple[str, str]] = {}
    for line, cells in _cells(path):
        if len(cells) < 4:
            raise DataError(f"{path}:{line}: has {len(cells)} numbers, not the two places of a pair")
        places[line] = cells[2], cells[3]
    return places
