"""WebDataset: samples in tar files; members that share a name up to its first dot belong together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from pydantic import Field

from geobind.data.readers.files import join_names
from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import SUFFIXES, ShardSample, find_shards, read_shard

_TEXTS = frozenset({"txt", "text", "caption", "captions", "transcript"})
_CLASS = "cls"
_PLACE = ("key", "split", "lat", "lon", "time", "label", "licence")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|val|valid|validation|dev|test)(?![a-z])")
_SAME = {"training": "train", "valid": "val", "validation": "val", "dev": "val"}


class WebDataset(Importer):
    """Shards of any dataset, made into a manifest that names their members."""

    name: ClassVar[str] = "webdataset"
    title: ClassVar[str] = "WebDataset shards, tar files of samples"
    home: ClassVar[str] = "https://github.com/webdataset/webdataset"
    licence: ClassVar[str] = "that of the samples"
    citation: ClassVar[str] = "that of the samples"
    layout: ClassVar[str] = """
        train-0000.tar                         at any depth; the split is taken from names
            000001.overhead.jpg, 000001.flac, 000001.txt, 000001.json, 000002.overhead.jpg, ...
    """
    columns: ClassVar[Mapping[str, Column]] = {
        "satellite": Column("file", "and whatever else `members` says: members of the tar files")
    }

    members: dict[str, str] = Field(
        default={},
        description="What each column holds, by the end of the members' names after the first dot; the first "
        'of several that is there: {"satellite": "overhead.jpg|overhead.png", "text": "txt"}.',
    )
    fields: dict[str, str] = Field(
        default={},
        description="What is read from a sample's JSON: columns of text, and lat, lon, time, label, split, "
        'key and licence where they are called something else: {"text": "caption", "lat": "place.latitude"}.',
    )
    metadata: str = Field(default="json", description="The end of the names of the JSON members.")
    split: str = Field(default="", description="The split of all rows, instead of what shards are called.")
    cells: Literal["names", "bytes"] = Field(
        default="names",
        description="names: the manifest names members, which stay in the shards; bytes: it holds a copy, "
        "which  is the only way with compressed shards.",
    )

    def contents(self) -> Mapping[str, Column]:
        """Return a column for each of `members`, and for each of `fields` that is no place."""
        if not self.members:
            raise DataError(f"webdataset: say what columns hold, with option members; {self._suggestion()}")
        both = sorted(set(self.members) & set(self.fields))
        if both:
            raise DataError(f"webdataset: '{both[0]}' is both in members and in fields")
        kind: Literal["file", "bytes"] = "file" if self.cells == "names" else "bytes"
        columns = {
            name: Column("string" if self._is_text(name) else kind, f"members .{ends.lower()}")
            for name, ends in self.members.items()
        }
        told = {name: path for name, path in self.fields.items() if name not in _PLACE}
        return columns | {
            name: Column("string", f"'{path}' of .{self.metadata}") for name, path in told.items()
        }

    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the shards one after the other."""
        shards = self._shards()
        texts = {end for name in self.members for end in self._ends(name) if self._is_text(name)}
        wanted = {self.metadata.lower(), _CLASS} | texts
        if self.cells == "bytes":
            wanted |= {end for name in self.members for end in self._ends(name)}
        for shard in shards:
            split = self.split or _find_split(shard)
            checked = self.cells == "bytes"
            for sample in read_shard(shard, frozenset(wanted)):
                row = self._row(sample, shard, split)
                if not checked and isinstance(row, dict):
                    checked = self._check_name(row)
                yield row

    def notes(self) -> list[str]:
        """Return notes on the manifest's content."""
        if self.cells == "names":
            return ["the manifest names members of the shards: keep both together"]
        return ["the manifest holds copies of the members: the shards are not needed any more"]

    def _shards(self) -> list[Path]:
        shards = find_shards(self.sources)
        strange = next((shard for shard in shards if not shard.name.endswith(SUFFIXES)), None)
        if not shards or strange:
            raise self.misplaced(f"{strange} is no tar file" if strange else "there are no tar files")
        if self.cells == "names":
            packed = next((shard for shard in shards if not shard.name.endswith(".tar")), None)
            if packed:
                raise DataError(
                    f"{packed}: members of a compressed tar file cannot be read one by one: uncompress it "
                    f"(gunzip), or copy them into the manifest with option cells=bytes"
                )
        return shards

    def _ends(self, name: str) -> list[str]:
        return [end.strip().lstrip(".").lower() for end in self.members[name].split("|")]

    def _is_text(self, name: str) -> bool:
        return all(end.rpartition(".")[2] in _TEXTS for end in self._ends(name))

    def _row(self, sample: ShardSample, shard: Path, split: str) -> Row | LeftOut:
        told = _parse_json_member(sample.members.get(self.metadata.lower(), b""))
        if told is None:
            return LeftOut(f"its .{self.metadata} is no JSON object")
        cells = {name: self._cell(name, sample, shard) for name in self.members}
        if all(cell is None for cell in cells.values()):
            wanted = ", ".join("." + ends for ends in self.members.values())
            return LeftOut(f"has no member {wanted}{_explain_dots(sample)}")
        said = {name: _field(told, path) for name, path in self.fields.items()}
        said |= {name: _field(told, name) for name in _PLACE if name not in self.fields}
        place = {name: said[name] for name in _PLACE}
        label = _text(sample.members.get(_CLASS, b""))
        place["key"] = place["key"] if place["key"] is not None else f"{_stem(shard)}/{sample.key}"
        place["split"] = split if self.split or place["split"] is None else place["split"]
        place["label"] = place["label"] if place["label"] is not None else label or None
        words = {name: _words(said[name]) for name in self.fields if name not in _PLACE}
        return {**place, **words, **cells}

    def _cell(self, name: str, sample: ShardSample, shard: Path) -> Path | str | bytes | None:
        end = next((end for end in self._ends(name) if end in sample.members), None)
        if end is None:
            return None
        if self._is_text(name):
            return _text(sample.members[end])
        return Path(f"{shard}::{sample.key}.{end}") if self.cells == "names" else sample.members[end]

    def _check_name(self, row: Row) -> bool:
        """Check that the first member named in a shard is found as when the manifest is read."""
        from geobind.data.readers.tar import read_member_size

        named = next((str(cell) for cell in row.values() if isinstance(cell, Path)), None)
        if named is None:
            return False
        shard, _, member = named.partition("::")
        try:
            read_member_size(Path(shard), member, named)
        except DataError as error:
            raise DataError(
                f"{error} (members whose names end in upper case cannot be named; use option cells=bytes)"
            ) from error
        return True

    def _suggestion(self) -> str:
        """Describe the first sample's content."""
        first = next(read_shard(self._shards()[0], frozenset()), None)
        ends = sorted(first.members) if first else []
        return f"the first sample has members {', '.join('.' + end for end in ends) or 'none'}"


def _explain_dots(sample: ShardSample) -> str:
    """Return what there is in place of the members wanted, where dots in names may be the reason."""
    if not any("." in end for end in sample.members):
        return ""
    kinds = sorted({f".{end.rpartition('.')[2]}" for end in sample.members})
    return (
        f" (its members end in {join_names(kinds)}, but a name is parted at its first dot: one such as "
        "45.1_3.2.png has the key 45; write it without other dots)"
    )


def _find_split(shard: Path) -> str:
    """Return the split that a shard's name or its folder's names tell, else train."""
    for name in (shard.name, shard.parent.name):
        found = _SPLIT.search(name.lower())
        if found:
            return _SAME.get(found[1], found[1])
    return "train"


def _stem(shard: Path) -> str:
    return next(shard.name.removesuffix(suffix) for suffix in SUFFIXES if shard.name.endswith(suffix))


def _parse_json_member(content: bytes) -> dict[str, Any] | None:
    """Parse a JSON member; empty if there is none, None if it is not an object."""
    if not content:
        return {}
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", told) if isinstance(told, dict) else None


def _field(told: Mapping[str, Any], path: str) -> Any:
    """Return a field of an object, or of one in it: `place.latitude`."""
    value: Any = told
    for name in path.split("."):
        value = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
    return value


def _words(value: Any) -> list[str] | None:
    values: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    return [str(item) for item in values if isinstance(item, str | int | float)] or None


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig", errors="replace").strip()
