"""SoundingEarth: field recordings, aerial images of their places, and the published splits."""

# N recordings in the order of GeoCLAP's table

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import find_first, parse_time, read_csv, resolve_inside
from geobind_datasets.common import PackedShard, find_bytes_columns, list_shards, read_rows

Split = Literal["published", "geoclap", "psm", "psm_degree", "none"]
_GEOCLAP = {"train": "train_df.csv", "val": "validate_df.csv", "test": "test_df.csv"}
_PSM = {split: f"aporee_{split}_fairsplit_10km.csv" for split in ("train", "val", "test")}
_LISTED = {"geoclap": _GEOCLAP, "psm": _PSM}
_COUNT = 50_792  # recordings of GeoCLAP's table
_LOWEST_RATE = 16_000  # Hz; GeoCLAP leaves out what is below


class SoundingEarthSplits:
    """The split of each recording.

    Args:
        folder: The dataset.
        split: Which of the published splits.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self.folder, self.split = folder, split

    def of(self, row: Mapping[str, str]) -> str | LeftOut:
        """Return the split of a recording, or why it is in none.

        Raises:
            DataError: Its number is none.
        """
        if self.split == "none":
            return "train"
        if self.split == "published":
            return self._by_number(row)
        return self._by_key.get(row["long_key"]) or LeftOut(f"is not in the split {self.split}")

    def notes(self) -> list[str]:
        """Return notes on the split."""
        leaks = {
            "published": "goes by the recordings' numbers: recordings of one street are on both sides",
            "geoclap": "is random: recordings of one street are on both sides",
        }
        notes = [f"the split {leaks[self.split]}"] if self.split in leaks else []
        if self.split == "published" or self._lists:
            return notes
        count = len(self._by_key)
        same = (
            "as published, if the table is the same"
            if count == _COUNT
            else "like the published, not the same"
        )
        return [
            *notes,
            f"the split was made here, out of {count:,} recordings (published: {_COUNT:,}): {same}",
        ]

    def _by_number(self, row: Mapping[str, str]) -> str:
        from geobind.evaluation.protocols import soundingearth_split

        try:
            return str(soundingearth_split(int(row["key"])))
        except ValueError as error:
            raise DataError(
                f"{self.folder}: '{row['key']}' of {row['long_key']} is no number to split by"
            ) from error

    @cached_property
    def _lists(self) -> dict[str, Path]:
        """The published lists, all three or none."""
        names = _LISTED.get(self.split, {})
        found = {
            split: path
            for split, name in names.items()
            if (path := find_first(self.folder, (name, f"metafiles/SoundingEarth/{name}")))
        }
        if found and len(found) < len(names):
            lacking = next(name for split, name in names.items() if split not in found)
            raise DataError(
                f"{self.folder}: has only some of the lists of split {self.split}: {lacking} is missing"
            )
        return found

    @cached_property
    def _by_key(self) -> dict[str, str]:
        if self._lists:
            return {
                row["long_key"]: split
                for split, path in self._lists.items()
                for row in read_csv(path, ("long_key",))
            }
        return self._made()

    def _made(self) -> dict[str, str]:
        """Compute the split with the steps of the published code on the given table."""
        import numpy as np

        from geobind.evaluation.protocols import SEED, geoclap_split, psm_split

        keys, places_NLL = self._table()
        if self.split == "geoclap":
            return dict(zip(keys, map(str, geoclap_split(len(keys))), strict=True))
        # PSM shuffles GeoCLAP's three lists, one after the other: its rows come in their order.
        order_N = np.random.RandomState(SEED).permutation(len(keys))
        cells = "degree" if self.split == "psm_degree" else "10km"
        lat_N, lon_N = np.array(places_NLL, dtype=np.float64).reshape(-1, 2)[order_N].T
        words = psm_split(lat_N, lon_N, cells=cells)
        return {keys[at]: str(word) for at, word in zip(order_N, words, strict=True)}

    def _table(self) -> tuple[list[str], list[tuple[float, float]]]:
        """Read GeoCLAP's table: the published one, or SoundingEarth's without the rows GeoCLAP leaves out."""
        cleaned = self.folder / "final_metadata_with_captions.csv"
        path = cleaned if cleaned.exists() else self.folder / "metadata.csv"
        corrupt = self.folder / "corrupt_ids_final.csv"
        refused = (
            {row["long_key"] for row in read_csv(corrupt, ("long_key",))} if corrupt.exists() else set[str]()
        )
        keys: list[str] = []
        places: list[tuple[float, float]] = []
        for row in read_csv(path, ("long_key", "latitude", "longitude", "mp3samplerate")):
            if row["long_key"] in refused:
                continue
            try:
                if float(row["mp3samplerate"] or 0) < _LOWEST_RATE:
                    continue
                place = float(row["latitude"]), float(row["longitude"])
            except ValueError as error:
                raise DataError(f"{path}: {row['long_key']}: {error}") from error
            keys.append(row["long_key"])
            places.append(place)
        return keys, places


_TABLES = ("metadata.csv", "final_metadata_with_captions.csv")
_NEEDED = ("long_key", "key", "longitude", "latitude", "mp3name")
_DATES = ("%m/%d/%y %H:%M", "%Y/%m/%d %H:%M:%S", "%Y-%m-%d %H:%M:%S UTC")
_TAG = re.compile(r"<[^<>]{0,200}>")
_IMAGES = {  # folders and names by kind of image; {key} and {long_key} are the recording's
    "googleearth": (("images", "{key}.jpg"), ("images/googleEarth", "{key}.jpg")),
    "sentinel": (("images/sentinel_geoclap", "{key}.jpeg"), ("images/sentinel", "{long_key}.jpeg")),
    "bingmap": (("images/bingmap_geoclap", "{long_key}.jpg"), ("images/bingmap", "{long_key}.jpeg")),
}


class SoundingEarth(Importer):
    """Recordings with the aerial image of their place."""

    name: ClassVar[str] = "soundingearth"
    title: ClassVar[str] = "SoundingEarth, 50 k field recordings and the aerial image of their place"
    home: ClassVar[str] = "https://zenodo.org/record/5600379"
    licence: ClassVar[str] = (
        "the recordings of Radio Aporee each have a Creative Commons licence of their own (column licence), "
        "many for non-commercial use only; the images are Google Earth's; the later Parquet edition states "
        "CC BY 4.0 for the whole"
    )
    citation: ClassVar[str] = (
        "Heidler et al., Self-supervised Audiovisual Representation Learning for Remote Sensing Data, "
        "Int. J. Applied Earth Observation and Geoinformation 116, 2023, arXiv:2108.00688"
    )
    layout: ClassVar[str] = """
        metadata.csv                       as on Zenodo: long_key, key, longitude, latitude, mp3name, ...
        images/KEY.jpg                     or images/googleEarth/KEY.jpg
        raw_audio/LONG_KEY/MP3NAME         fetched from the Internet Archive
        train_df.csv, validate_df.csv, test_df.csv              (optional, GeoCLAP's)
        aporee_{train,val,test}_fairsplit_10km.csv              (optional, PSM's)
    or, the Parquet edition (MVRL/SoundingEarth):
        data/{train,validation,test}-*-of-*.parquet
    """
    columns: ClassVar[Mapping[str, Column]] = {
        "satellite": Column("file", "aerial image, 1024 x 1024 px at about 0.2 m"),
        "audio": Column("file", "recording, MP3 of any length"),
        "text": Column("string", "what its recordist, or a caption, says of it"),
    }

    split: Split = Field(
        default="published",
        description="published: by the recording's number modulo 10; geoclap: random 70/10/20; psm: by cells "
        "of 10 km; psm_degree: by cells of 1 degree, as PSM splits GeoSound; none: all is train",
    )
    overhead: Literal["googleearth", "sentinel", "bingmap"] = Field(
        default="googleearth", description="which image; only the first is distributed"
    )
    text: Literal["description", "caption", "address"] = Field(
        default="description",
        description="description: the recordist's, or the title; caption and address: of GeoCLAP's "
        "final_metadata_with_captions.csv (its captions name the address, and so the place)",
    )

    def contents(self) -> Mapping[str, Column]:
        """Return file columns, or columns of the bytes in the Parquet edition."""
        return find_bytes_columns(self.columns) if self._shards() else self.columns

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the table of recordings, or the Parquet edition."""
        shards = self._shards()
        if shards:
            yield from self._packed(shards)
            return
        folder = self.folder()
        table = find_first(folder, _TABLES if self.text == "description" else _TABLES[::-1])
        if table is None:
            raise self.misplaced(f"there is no {_TABLES[0]}")
        if self.text != "description" and table.name == _TABLES[0]:
            raise DataError(f"{folder}: option text={self.text} needs {_TABLES[1]}, as GeoCLAP provides it")
        images = self._images(folder)
        splits = SoundingEarthSplits(folder, self.split)
        words = (self.text,) if self.text != "description" else ("description", "title")
        for row in read_csv(table, (*_NEEDED, *words)):
            split = splits.of(row)
            yield split if isinstance(split, LeftOut) else self._row(row, split, images, folder, table)

    def notes(self) -> list[str]:
        """Return notes on the split and its limits."""
        if self._shards() and self.split != "published":
            return ["the split is that of the Parquet edition, PSM's by cells of 10 km"]
        return SoundingEarthSplits(self.folder(), self.split).notes() if self.split != "none" else []

    def _shards(self) -> list[PackedShard]:
        folder = self.sources[0]
        return list_shards(folder) if len(self.sources) == 1 and folder.is_dir() else []

    def _images(self, folder: Path) -> tuple[Path, str]:
        """Return the folder of images and how they are named, the first that has any."""
        places = [(folder / where, form) for where, form in _IMAGES[self.overhead]]
        there = [place for place in places if place[0].is_dir() and any(place[0].glob("*.jp*g"))]
        return (there or places)[0]

    def _row(
        self, row: dict[str, str], split: str, images: tuple[Path, str], folder: Path, table: Path
    ) -> Row:
        where = f"{table}: {row['long_key']}"
        image = resolve_inside(images[0], images[1].format(key=row["key"], long_key=row["long_key"]), where)
        sound = resolve_inside(folder / "raw_audio", f"{row['long_key']}/{row['mp3name']}", where)
        said = row[self.text] if self.text != "description" else row["description"] or row["title"]
        return {
            "key": row["long_key"],
            "split": split,
            "lat": row["latitude"],
            "lon": row["longitude"],
            "time": parse_time(row.get("date_recorded", ""), *_DATES),
            "licence": row.get("licenseurl"),
            "satellite": image,
            "audio": sound,
            "text": " ".join(_TAG.sub(" ", said).split()),
        }

    def _packed(self, shards: list[PackedShard]) -> Iterator[Row]:
        if self.overhead != "googleearth" or self.text == "address":
            raise DataError("the Parquet edition has images of googleearth alone, and no addresses")
        if self.split in ("geoclap", "psm_degree"):
            raise DataError(
                f"split={self.split} cannot be told from the Parquet edition, which lacks 1,500 of the "
                "recordings; import the Zenodo edition, or take split=psm"
            )
        needed = ("sample_id", "short_id", "audio", "googleearth_image", "latitude", "longitude")
        for shard in shards:
            for row in read_rows(shard, needed, ("audio_caption", "date_recorded")):
                yield {
                    "key": str(row["sample_id"]).removeprefix("aporee-"),
                    "split": self._packed_split(shard, row),
                    "lat": row["latitude"],
                    "lon": row["longitude"],
                    "time": parse_time(row.get("date_recorded") or "", *_DATES),
                    "satellite": row["googleearth_image"],
                    "audio": row["audio"],
                    "text": row.get("audio_caption"),
                }

    def _packed_split(self, shard: PackedShard, row: dict[str, Any]) -> str:
        from geobind.evaluation.protocols import soundingearth_split

        if self.split == "none":
            return "train"
        return shard.split if self.split == "psm" else str(soundingearth_split(int(row["short_id"])))
