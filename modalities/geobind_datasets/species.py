"""iSatNat, iSoundNat and TaxaBench: lists of iNaturalist observations, and the files that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import (
    find_first,
    list_by_stem,
    parse_time,
    read_csv,
    resolve_inside,
    stream_json,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CITATION = (
    "Sastry et al., TaxaBind: A Unified Embedding Space for Ecological Applications, WACV 2025, "
    "arXiv:2411.00683"
)
_EOX = "satellite images: Sentinel-2 cloudless by EOX, CC BY-NC-SA 4.0"
_TILES = ("sentinel", "images/sentinel", "sat_images/sentinel", "taxabind_sentinel/images/sentinel")
_RANKS = 7  # kingdom, phylum, class, order, family, genus, species
_LISTS = ("id", "latitude", "longitude", "scientific_name")


class ISatNat(Importer):
    """Photographs of species with the satellite image of their place."""

    name: ClassVar[str] = "isatnat"
    title: ClassVar[str] = "iSatNat, 2.8 M photographs of species (iNaturalist 2021) with Sentinel-2 images"
    home: ClassVar[str] = "https://huggingface.co/datasets/MVRL/iSatNat"
    licence: ClassVar[str] = (
        f"{_EOX}; photographs: Creative Commons, each its own, many non-commercial (iNaturalist 2021: for "
        "research and education)"
    )
    citation: ClassVar[str] = f"{_CITATION}; Van Horn et al., iNaturalist 2021, CVPR 2021"
    layout: ClassVar[str] = """
        train.json, val.json              iNaturalist 2021's annotations
        train/SPECIES/*.jpg               and its photographs
        val/SPECIES/*.jpg
        sentinel/ID_LAT_LON.jpeg          satellite images; any folder by option `tiles`
        train_df.csv, test_df.csv         (optional) iSatNat's lists: only their ids are taken
    """
    columns: ClassVar[Mapping[str, Column]] = {
        "ground_image": Column("file", "photograph"),
        "satellite": Column("file", "Sentinel-2 around it"),
        "text": Column("string", "its taxonomy, from kingdom to species"),
    }

    tiles: Path | None = Field(default=None, description="folder of the satellite images of training")
    test_tiles: Path | None = Field(default=None, description="of testing, if it is another")

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read iNaturalist's annotations, and of iSatNat's lists which of them count."""
        folder = self.folder()
        found = False
        for split, name, listed in (
            ("train", "train.json", "train_df.csv"),
            ("test", "val.json", "test_df.csv"),
        ):
            path = folder / name
            if not path.is_file():
                continue
            found = True
            tiles = self._tiles(folder, split)
            wanted = _ids(folder / listed)
            for image in stream_json(path, "images"):
                yield self._row(image, split, tiles, wanted, path)
        if not found:
            raise self.misplaced("there is neither train.json nor val.json of iNaturalist 2021")

    def folders(self) -> list[Path]:
        """Return the dataset, and the satellite images where they lie elsewhere."""
        return [*super().folders(), *(tiles for tiles in (self.tiles, self.test_tiles) if tiles)]

    def notes(self) -> list[str]:
        """Return notes on the splits."""
        return [
            "split test is iNaturalist's val.json, as in TaxaBind's code; the splits are not by place",
            "a satellite image may serve several photographs: pairs of one place are no negatives",
        ]

    def _tiles(self, folder: Path, split: str) -> Path:
        said = (self.test_tiles if split == "test" else None) or self.tiles
        return said or find_first(folder, _TILES) or folder / _TILES[0]

    def _row(
        self, image: dict[str, Any], split: str, tiles: Path, wanted: NDArray[np.int64] | None, path: Path
    ) -> Row | LeftOut:
        try:
            number, file = int(image["id"]), str(image["file_name"])
            lat, lon, date = image["latitude"], image["longitude"], str(image.get("date", ""))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: an image is not described as iNaturalist 2021 does: {error!r}"
            ) from error
        if lat is None or lon is None:
            return LeftOut("has no place, and so no satellite image")
        if wanted is not None and not _among(number, wanted):
            return LeftOut("is not in iSatNat's list")
        words = Path(file).parent.name.split("_")[1:]
        return {
            "key": str(number),
            "split": split,
            "lat": lat,
            "lon": lon,
            "time": parse_time(date),
            "label": " ".join(words[_RANKS - 2 :]) or None,
            "ground_image": resolve_inside(path.parent, file, f"{path}: image {number}"),
            "satellite": tiles / f"{number}_{lat}_{lon}.jpeg",
            "text": " ".join(words),
        }


class ISoundNat(Importer):
    """Photographs of species with a recording of the same observation."""

    name: ClassVar[str] = "isoundnat"
    title: ClassVar[str] = "iSoundNat, 88 k photographs of species with their recordings (iNaturalist)"
    home: ClassVar[str] = "https://huggingface.co/datasets/MVRL/iSoundNat"
    licence: ClassVar[str] = (
        "the lists are stated to be MIT; photographs and recordings have the licences of their observers "
        "(column licence), mostly CC BY-NC"
    )
    citation: ClassVar[str] = _CITATION
    layout: ClassVar[str] = """
        train_df.csv, val_df.csv, test_df.csv     id, latitude, longitude, scientific_name, ...
        images/ID.jpg                             fetched from iNaturalist
        sounds_mp3/ID.mp3                         or sounds/ID.*
    """
    columns: ClassVar[Mapping[str, Column]] = {
        "ground_image": Column("file", "photograph"),
        "audio": Column("file", "recording"),
        "text": Column("string", "its scientific and common names"),
    }

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the three lists."""
        folder = self.folder()
        lists = {split: folder / f"{split}_df.csv" for split in ("train", "val", "test")}
        if not any(path.is_file() for path in lists.values()):
            raise self.misplaced("there is none of train_df.csv, val_df.csv, test_df.csv")
        sounds = find_first(folder, ("sounds_mp3", "sounds")) or folder / "sounds_mp3"
        for split, path in lists.items():
            if path.is_file():
                for row in read_csv(path, _LISTS):
                    yield _observed(row, split, path) | {
                        "ground_image": _file(folder / "images", row["id"], ".jpg", path),
                        "audio": _file(sounds, row["id"], ".mp3", path),
                    }

    def notes(self) -> list[str]:
        """Return notes on the splits."""
        return ["the splits are not by place, and species are in all of them"]


class TaxaBench(Importer):
    """Six kinds of observation of one animal, to test with."""

    name: ClassVar[str] = "taxabench"
    title: ClassVar[str] = "TaxaBench-8k, 8,813 observations: photograph, satellite image, recording, text"
    home: ClassVar[str] = "https://huggingface.co/datasets/MVRL/TaxaBench-8k"
    licence: ClassVar[str] = (
        f"stated to be MIT; {_EOX}; photographs and recordings have the licences of their observers "
        "(column licence)"
    )
    citation: ClassVar[str] = _CITATION
    layout: ClassVar[str] = """
        test_df.csv                       id, latitude, longitude, scientific_name, ...
        taxabench_images/ID.jpg
        taxabench_sound/ID.mp3
        sat_images/sentinel/ID*.jpeg
    """
    columns: ClassVar[Mapping[str, Column]] = {
        "ground_image": Column("file", "photograph"),
        "satellite": Column("file", "Sentinel-2 around it"),
        "audio": Column("file", "recording"),
        "text": Column("string", "its scientific and common names"),
    }

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the list."""
        folder = self.folder()
        path = folder / "test_df.csv"
        if not path.is_file():
            raise self.misplaced("there is no test_df.csv")
        places = {
            "ground_image": ("taxabench_images", ".jpg"),
            "audio": ("taxabench_sound", ".mp3"),
            "satellite": ("sat_images/sentinel", ".jpeg"),
        }
        for row in read_csv(path, _LISTS):
            files = {column: _file(folder / at, row["id"], end, path) for column, (at, end) in places.items()}
            yield _observed(row, "test", path) | files

    def notes(self) -> list[str]:
        """Return a note on what is left out."""
        return [
            "all rows are of split test: this is a benchmark",
            "environmental features (bioclim_elevation_scaled.npy, a map) are not in the manifest",
        ]


def _observed(row: Mapping[str, str], split: str, path: Path) -> Row:
    """Parse a row of iNaturalist's export, whatever files belong to it."""
    names = dict.fromkeys(
        name for name in (row["scientific_name"], row.get("common_name", "")) if name.strip()
    )
    return {
        "key": row["id"],
        "split": split,
        "lat": row["latitude"],
        "lon": row["longitude"],
        "time": parse_time(row.get("time_observed_at", "").removesuffix(" UTC"))
        or parse_time(row.get("observed_on", "")),
        "label": row["scientific_name"],
        "licence": row.get("license"),
        "text": list(names),
    }


def _file(folder: Path, number: str, suffix: str, path: Path) -> Path:
    """Return the file of an observation: named by its id alone, or by its id, an underscore and more."""
    name = list_by_stem(folder).get(number.strip()) or f"{number.strip()}{suffix}"
    return resolve_inside(folder, name, f"{path}: {number}")


def _ids(path: Path) -> NDArray[np.int64] | None:
    """Return the ids of a list, sorted: millions fit into memory as numbers."""
    import numpy as np

    if not path.is_file():
        return None
    try:
        return np.unique(np.fromiter((int(float(row["id"])) for row in read_csv(path, ("id",))), np.int64))
    except ValueError as error:
        raise DataError(f"{path}: column 'id': {error}") from error


def _among(number: int, sorted_N: NDArray[np.int64]) -> bool:
    import numpy as np

    at = int(np.searchsorted(sorted_N, number))
    return at < len(sorted_N) and int(sorted_N[at]) == number
