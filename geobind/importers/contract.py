"""The contract of importers: a dataset's name, licence, columns and rows."""

from __future__ import annotations

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from geobind.errors import DataError

# file: a path; string: a text or a list of them; bytes: an encoded file; window: a cell that names a raster
Kind = Literal["file", "string", "bytes", "window"]
Row = dict[str, Any]
_SHOWN = 12  # entries of a folder listed in a message


class Column(NamedTuple):
    """A column that an importer fills, ideally named like the modality that reads it."""

    kind: Kind
    note: str = ""  # what it holds, in a few words for people
    several: bool = False  # of kind file: a cell may be a list of files


class LeftOut(NamedTuple):
    """An item that the manifest leaves out; items are counted by reason, never dropped silently."""

    reason: str


class Importer(BaseModel, ABC):
    """One public dataset, as it lies on disk after its download.

    The fields of a subclass, but for `sources`, are its options. A subclass must import quickly: pandas,
    rasterio and friends belong inside methods.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: ClassVar[str]  # the word of `geobind import`
    title: ClassVar[str]  # the dataset in one line
    home: ClassVar[str]  # where it is had
    licence: ClassVar[str]  # what it may be used for, as far as its distributors say
    citation: ClassVar[str]
    layout: ClassVar[str]  # the tree of files it expects, for messages
    columns: ClassVar[Mapping[str, Column]]  # beside key, split, lat, lon, time, label and licence

    sources: tuple[Path, ...] = Field(min_length=1, description="the dataset's folder, or its files")

    @abstractmethod
    def rows(self) -> Iterator[Row | LeftOut]:
        """Read the dataset: for each observation a dict by column, or the reason why it is left out.

        A cell of kind file is an absolute or relative `Path` (relative to the working folder), or that of a
        tar file with the name of a member, `Path("0001.tar::00012.jpg")`; whether it exists is not the
        importer's care. A cell of kind window is a dict whose `raster` is such a `Path`. A
        cell that is None, or not in the dict, is missing; but a row without `split` is of split train, and
        one whose `split` is None of none. `lat` and `lon` are degrees, numbers or their text; `time` is a
        datetime or ISO 8601. One row at a time: a dataset may have millions.

        Raises:
            DataError: The sources are not laid out as this dataset is; `misplaced` makes the message.
        """

    def requires(self) -> Mapping[str, str]:
        """Return the optional packages that this import needs: module to the command that installs it."""
        return {}

    def contents(self) -> Mapping[str, Column]:
        """Return the columns of this import: those of the class, unless options decide."""
        return type(self).columns

    def folders(self) -> list[Path]:
        """Return the folders that hold the files, at any depth: the sources, unless options name others."""
        return [source if source.is_dir() else source.parent for source in self.sources]

    def notes(self) -> list[str]:
        """Return notes for the user, a line each, such as that a split leaks."""
        return []

    def folder(self) -> Path:
        """Return the one folder given as source.

        Raises:
            DataError: It is not one folder.
        """
        if len(self.sources) != 1 or not self.sources[0].is_dir():
            raise self.misplaced("expected one folder")
        return self.sources[0]

    def misplaced(self, reason: str) -> DataError:
        """Return the error that the sources are not this dataset, with the expected and the actual layout."""
        given = ", ".join(map(str, self.sources))
        expected = textwrap.indent(textwrap.dedent(self.layout).strip("\n").rstrip(), "    ")
        found = "\n".join(f"    {line}" for source in self.sources[:3] for line in _listed(source))
        return DataError(
            f"{given}: not {self.name} as distributed: {reason}\n  expected:\n{expected}\n  found:\n{found}"
        )


def _listed(source: Path) -> list[str]:
    """Return the first entries of a folder, folders first."""
    if not source.exists():
        return [f"{source}: no such file or folder"]
    if not source.is_dir():
        return [f"{source}: a file of {source.stat().st_size} bytes"]
    entries = sorted(
        (f"{entry.name}/" if entry.is_dir() else entry.name for entry in source.iterdir()),
        key=lambda name: (not name.endswith("/"), name),
    )
    more = [f"... and {len(entries) - _SHOWN} more"] if len(entries) > _SHOWN else []
    return [*entries[:_SHOWN], *more] or ["(an empty folder)"]
