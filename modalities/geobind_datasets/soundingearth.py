"""SoundingEarth: recordings of Radio Aporee with the aerial image of their place, and its three splits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import first_there, inner, moment, read_csv
from geobind_datasets.packed import Shard, packed_columns, rows_of, shards_of
from geobind_datasets.soundingearth_splits import Split, Splits

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
        """Files, or the bytes that the Parquet edition holds."""
        return packed_columns(self.columns) if self._shards() else self.columns

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the table of recordings, or the Parquet edition."""
        shards = self._shards()
        if shards:
            yield from self._packed(shards)
            return
        folder = self.folder()
        table = first_there(folder, _TABLES if self.text == "description" else _TABLES[::-1])
        if table is None:
            raise self.misplaced(f"there is no {_TABLES[0]}")
        if self.text != "description" and table.name == _TABLES[0]:
            raise DataError(f"{folder}: option text={self.text} needs {_TABLES[1]}, as GeoCLAP provides it")
        images = self._images(folder)
        splits = Splits(folder, self.split)
        words = (self.text,) if self.text != "description" else ("description", "title")
        for row in read_csv(table, (*_NEEDED, *words)):
            split = splits.of(row)
            yield split if isinstance(split, LeftOut) else self._row(row, split, images, folder, table)

    def notes(self) -> list[str]:
        """Say which split this is, and what it is worth."""
        if self._shards() and self.split != "published":
            return ["the split is that of the Parquet edition, PSM's by cells of 10 km"]
        return Splits(self.folder(), self.split).notes() if self.split != "none" else []

    def _shards(self) -> list[Shard]:
        folder = self.sources[0]
        return shards_of(folder) if len(self.sources) == 1 and folder.is_dir() else []

    def _images(self, folder: Path) -> tuple[Path, str]:
        """The folder of images and how they are named, the first that has any."""
        places = [(folder / where, form) for where, form in _IMAGES[self.overhead]]
        there = [place for place in places if place[0].is_dir() and any(place[0].glob("*.jp*g"))]
        return (there or places)[0]

    def _row(
        self, row: dict[str, str], split: str, images: tuple[Path, str], folder: Path, table: Path
    ) -> Row:
        where = f"{table}: {row['long_key']}"
        image = inner(images[0], images[1].format(key=row["key"], long_key=row["long_key"]), where)
        sound = inner(folder / "raw_audio", f"{row['long_key']}/{row['mp3name']}", where)
        said = row[self.text] if self.text != "description" else row["description"] or row["title"]
        return {
            "key": row["long_key"],
            "split": split,
            "lat": row["latitude"],
            "lon": row["longitude"],
            "time": moment(row.get("date_recorded", ""), *_DATES),
            "licence": row.get("licenseurl"),
            "satellite": image,
            "audio": sound,
            "text": " ".join(_TAG.sub(" ", said).split()),
        }

    def _packed(self, shards: list[Shard]) -> Iterator[Row]:
        if self.overhead != "googleearth" or self.text == "address":
            raise DataError("the Parquet edition has images of googleearth alone, and no addresses")
        if self.split in ("geoclap", "psm_degree"):
            raise DataError(
                f"split={self.split} cannot be told from the Parquet edition, which lacks 1,500 of the "
                "recordings; import the Zenodo edition, or take split=psm"
            )
        needed = ("sample_id", "short_id", "audio", "googleearth_image", "latitude", "longitude")
        for shard in shards:
            for row in rows_of(shard, needed, ("audio_caption", "date_recorded")):
                yield {
                    "key": str(row["sample_id"]).removeprefix("aporee-"),
                    "split": self._packed_split(shard, row),
                    "lat": row["latitude"],
                    "lon": row["longitude"],
                    "time": moment(row.get("date_recorded") or "", *_DATES),
                    "satellite": row["googleearth_image"],
                    "audio": row["audio"],
                    "text": row.get("audio_caption"),
                }

    def _packed_split(self, shard: Shard, row: dict[str, Any]) -> str:
        from geobind.evaluation.protocols import soundingearth_split

        if self.split == "none":
            return "train"
        return shard.split if self.split == "psm" else str(soundingearth_split(int(row["short_id"])))
