"""GeoSound: recordings of four sources with satellite and aerial images of their places."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import find_first, parse_time, read_csv, resolve_inside
from geobind_datasets.common import PackedShard, find_bytes_columns, list_shards, read_rows

_SPLITS = ("train", "val", "test")
_NEEDED = ("sample_id", "latitude", "longitude", "date", "text")
_APOREE = (
    "aporee/final_metadata_with_captions.csv",
    "metafiles/SoundingEarth/final_metadata_with_captions.csv",
)
_DATES = (
    "%m/%d/%y %H:%M",  # Radio Aporee
    "%Y-%m-%d %H:%M:%S.%f",  # YFCC100M
    "%B %d, %Y",  # Freesound
    "%Y/%m/%d %I:%M %p",  # iNaturalist, as is the next
    "%Y-%m-%d %I:%M:%S %p",
)
_ORDINAL = re.compile(r"(?<=\d)(st|nd|rd|th)\b")
_AFTER_NOON = re.compile(r"(?<=[AaPp][Mm])\b.*")  # a zone by its name, which is no offset
_FEATURES = """these are the shards whose sounds are pickled features of CLAP; the sounds themselves are in
the Parquet edition, or fetched from their sources"""


class GeoSound(Importer):
    """Recordings with the images of their place."""

    name: ClassVar[str] = "geosound"
    title: ClassVar[str] = "GeoSound, 309 k recordings with Sentinel-2 and Bing images of their places"
    home: ClassVar[str] = "https://huggingface.co/datasets/MVRL/GeoSound"
    licence: ClassVar[str] = (
        "research only; recordings of Freesound, Radio Aporee, iNaturalist and YFCC100M, each under its own "
        "terms; Sentinel-2 cloudless by EOX (CC BY-NC-SA 4.0), Bing Maps"
    )
    citation: ClassVar[str] = (
        "Khanal et al., PSM: Learning Probabilistic Embeddings for Multi-scale Zero-Shot Soundscape Mapping, "
        "ACM Multimedia 2024, arXiv:2408.07050"
    )
    layout: ClassVar[str] = """
        data/{train,validation,test}-*-of-*.parquet             the Parquet edition (MVRL/GeoSound)
    or, recordings fetched one by one:
        metafiles/GeoSound/{train,val,test}_metadata.csv
        {freesound,iNat,yfcc}/raw_audio/KEY.mp3
        aporee/raw_audio/LONG_KEY/MP3NAME
        aporee/final_metadata_with_captions.csv                 says what MP3NAME is
        {aporee,freesound,iNat,yfcc}/images/{sentinel,bingmap}/KEY.jpeg
    """
    columns: ClassVar[Mapping[str, Column]] = {
        "satellite": Column("file", "1280 px of Sentinel-2 at 10 m, or 1500 px of Bing at 0.6 m"),
        "audio": Column("file", "recording of any length"),
        "text": Column("string", "what its author, or a caption, says of it"),
    }

    overhead: Literal["sentinel", "bingmap"] = Field(default="sentinel", description="which image")
    text: Literal["metadata", "caption"] = Field(
        default="metadata",
        description="metadata: title, description and tags, cleaned; caption: the best of metadata, "
        "Pengi and Qwen by their CLAP scores",
    )

    def contents(self) -> Mapping[str, Column]:
        """Return file columns, or columns of the bytes in the Parquet edition."""
        return find_bytes_columns(self.columns) if list_shards(self.folder()) else self.columns

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the Parquet edition, or the tables of recordings."""
        folder = self.folder()
        shards = list_shards(folder)
        if shards:
            for shard in shards:
                yield from self._packed(shard)
            return
        tables = {
            split: path
            for split in _SPLITS
            if (path := folder / "metafiles" / "GeoSound" / f"{split}_metadata.csv").is_file()
        }
        if not tables:
            features = next(folder.rglob("*.tar"), None)
            raise self.misplaced(
                " ".join(_FEATURES.split()) if features else "neither Parquet files nor metafiles/GeoSound"
            )
        yield from self._fetched(folder, tables)

    def notes(self) -> list[str]:
        """Return notes on the split and the times."""
        return [
            "the splits are by cells of 1 degree, which touch each other: see `geobind data check`",
            "times are those of the places, without a zone: geobind takes them for UTC",
        ]

    def _packed(self, shard: PackedShard) -> Iterator[Row]:
        image = f"{self.overhead}_image"
        text = "audio_caption" if self.text == "caption" else "text"
        needed = ("sample_id", "latitude", "longitude", "audio", image)
        for row in read_rows(shard, needed, (text, "date")):
            yield {
                "key": row["sample_id"],
                "split": shard.split,
                "lat": row["latitude"],
                "lon": row["longitude"],
                "time": _time(row.get("date")),
                "satellite": row[image],
                "audio": row["audio"],
                "text": row.get(text),
            }

    def _fetched(self, folder: Path, tables: Mapping[str, Path]) -> Iterator[Row | LeftOut]:
        lists = folder / "metafiles" / "GeoSound"
        gallery = _keys(lists / "test_ids_geosound.csv")
        ignored = _keys(lists / "ignore_ids_geosound.csv") or frozenset[str]()
        sounds = _aporee_sounds(folder)
        captions = _captions(lists) if self.text == "caption" else {}
        for split, table in tables.items():
            for row in read_csv(table, _NEEDED):
                key = row["sample_id"]
                source, dash, number = key.partition("-")
                if not dash:
                    raise DataError(f"{table}: {key!r} is no SOURCE-KEY")
                if key in ignored or (split == "test" and gallery is not None and key not in gallery):
                    yield LeftOut("its publishers leave it out, by test_ids and ignore_ids")
                    continue
                sound = f"{number}.mp3"
                if source == "aporee":
                    sound = f"{number}/{sounds.get(number, sound)}"
                image = f"{source}/images/{self.overhead}/{number}.jpeg"
                yield {
                    "key": key,
                    "split": split,
                    "lat": row["latitude"],
                    "lon": row["longitude"],
                    "time": _time(row["date"]),
                    "satellite": resolve_inside(folder, image, f"{table}: {key}"),
                    "audio": resolve_inside(folder, f"{source}/raw_audio/{sound}", f"{table}: {key}"),
                    "text": captions.get(key) or row["text"],
                }


def _time(date: str | None) -> datetime | None:
    return parse_time(_AFTER_NOON.sub("", _ORDINAL.sub("", date)), *_DATES) if date else None


def _keys(path: Path) -> frozenset[str] | None:
    return frozenset(row["sample_id"] for row in read_csv(path, ("sample_id",))) if path.exists() else None


def _aporee_sounds(folder: Path) -> dict[str, str]:
    """Return the files of Radio Aporee's recordings, whose names do not follow from their keys."""
    path = find_first(folder, _APOREE)
    if path is None:
        return {}
    return {row["long_key"]: row["mp3name"] for row in read_csv(path, ("long_key", "mp3name"))}


def _captions(lists: Path) -> dict[str, str]:
    """Return the best caption of each recording, where it is one that a model wrote.

    The published loader means to take it, but overwrites Pengi's by the metadata again (mvrl/PSM,
    geoclap/dataloader.py); here it is Pengi's.
    """
    scores = lists / "clap_score_geosound.csv"
    if not scores.exists():
        raise DataError(f"{scores}: no such file; option text=caption needs it to choose captions")
    best = {row["sample_id"]: row["best_caption"] for row in read_csv(scores, ("sample_id", "best_caption"))}
    chosen: dict[str, str] = {}
    for model in ("pengi", "qwen"):
        path = lists / f"geosound_audio_caption_{model}.json"
        if path.exists():
            chosen |= {key: text for key, text in _said(path, model) if best.get(key) == model}
    return chosen


def _said(path: Path, model: str) -> Iterator[tuple[str, str]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                told = json.loads(line)
                yield str(told["sample_id"]), str(told[f"{model}_caption"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(f"{path}:{number}: is no caption: {error!r}") from error
