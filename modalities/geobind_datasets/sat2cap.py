"""Sat2Cap: photographs from the ground with the aerial image of their place, as WebDataset shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import ShardSample, find_shards, parse_time, read_shard

_TOLD = "metadata.json"
_FILES = {"satellite": "overhead.jpg", "ground_image": "groundlevel.jpg"}


class Sat2Cap(Importer):
    """Cross-view pairs: an aerial image and a photograph, with place and time."""

    name: ClassVar[str] = "sat2cap"
    title: ClassVar[str] = "Sat2Cap, 6.1 M pairs of aerial image and geotagged photograph"
    home: ClassVar[str] = "https://github.com/mvrl/Sat2Cap"
    licence: ClassVar[str] = (
        "none stated; the photographs are of YFCC100M (Creative Commons, each its own), the aerial images of "
        "Bing Maps, under its terms"
    )
    citation: ClassVar[str] = (
        "Dhakal et al., Sat2Cap: Mapping Fine-Grained Textual Descriptions from Satellite Images, "
        "CVPR Workshops 2024, arXiv:2307.15904"
    )
    layout: ClassVar[str] = """
        *.tar                          (uncompressed shards)
            KEY.groundlevel.jpg
            KEY.overhead.jpg
            KEY.metadata.json          latitude, longitude, date_taken
    """
    columns: ClassVar[Mapping[str, Column]] = {
        "satellite": Column("file", "800 x 800 px at 0.6 m, named inside its shard"),
        "ground_image": Column("file", "photograph, named inside its shard"),
    }

    test_shards: tuple[str, ...] = Field(
        default=("9f248448-1d13-43cb-a336-a7d92bc5359e.tar",),
        description="names of the shards of split test; the default is the authors'",
    )
    val_shards: tuple[str, ...] = Field(
        default=("206faf6d-e5f4-428e-b27c-4a55746d5629.tar",),
        description="names of the shards of split val; the default is the authors'",
    )

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the metadata of each pair; the images stay in the shards."""
        shards = find_shards(self.sources)
        if not shards:
            raise self.misplaced("there is no .tar file")
        packed = next((shard for shard in shards if shard.suffix != ".tar"), None)
        if packed is not None:
            raise DataError(
                f"{packed}: is compressed; uncompress it, so that its images can be read in place"
            )
        for shard in shards:
            for sample in read_shard(shard, frozenset({_TOLD})):
                yield self._row(shard, sample)

    def notes(self) -> list[str]:
        """Return a note on the split."""
        there = {shard.name for shard in find_shards(self.sources)}
        named = {"test": self.test_shards, "val": self.val_shards}
        return [
            f"none of the shards of split {split} is there ({', '.join(names)})"
            for split, names in named.items()
            if names and not there.intersection(names)
        ] + ["the splits are by shard, not by place: neighbours lie on both sides (`geobind data split`)"]

    def _row(self, shard: Path, sample: ShardSample) -> Row | LeftOut:
        lacking = [name for name in (*_FILES.values(), _TOLD) if name not in sample.members]
        if len(lacking) == len(_FILES) + 1:
            raise self.misplaced(f"{shard.name}: '{sample.key}' has {', '.join(sample.members)}")
        if lacking:
            return LeftOut(f"lacks its {lacking[0]}")
        told = self._told(shard, sample)
        files = {column: Path(f"{shard}::{sample.key}.{member}") for column, member in _FILES.items()}
        date = told.get("date_taken")
        return {
            "key": sample.key,
            "split": self._split(shard),
            "lat": told.get("latitude"),
            "lon": told.get("longitude"),
            "time": parse_time(date) if isinstance(date, str) else None,
            **files,
        }

    def _split(self, shard: Path) -> str:
        return (
            "test" if shard.name in self.test_shards else "val" if shard.name in self.val_shards else "train"
        )

    def _told(self, shard: Path, sample: ShardSample) -> dict[str, Any]:
        try:
            told = json.loads(sample.members[_TOLD])
        except (ValueError, RecursionError) as error:
            raise DataError(f"{shard}: {sample.key}.{_TOLD}: not JSON: {error}") from error
        if not isinstance(told, dict):
            raise DataError(f"{shard}: {sample.key}.{_TOLD}: not a JSON object")
        return told
