"""The contract of datasets: named sources of a table, with options, which plugins provide."""

# Q queries

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

from geobind.errors import DataError
from geobind.plugins import PluginKind, Registry, list_entry_points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geobind.data.columns import TableColumn

    # column, rows of land, rows of moment -> one raw input for each
    Composer = Callable[[str, NDArray[np.integer], NDArray[np.integer]], Iterator[Any]]

# The other keys of a `data` block.
RESERVED = frozenset("manifest dataset columns files inline root links rasters first limit weight".split())


class DatasetRows(NamedTuple):
    """The rows of a dataset: what is known of each, and its observations."""

    path: Path  # an Arrow file: line, key, split and, as far as known, lat, lon, time, label, group, licence
    columns: Mapping[str, TableColumn]  # by name, each with a cell for every row; may be made when looked up


class Dataset(BaseModel, ABC):
    """A named source of a table, which recipes use in place of a manifest: `data: {NAME: {OPTION: VALUE}}`.

    The fields of a subclass are its options. A subclass must import quickly: heavy libraries belong inside
    methods.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: ClassVar[str]  # the key of `data`
    title: ClassVar[str]  # what messages and reports call it
    about: ClassVar[str] = ""  # one line for editors
    licence: ClassVar[str] = ""  # of rows that state none themselves, for model cards
    caution: ClassVar[str] = ""  # a use that model cards warn of
    on_earth: ClassVar[bool] = True  # its coordinates are places on Earth, so that maps may show coastlines
    held_out_hint: ClassVar[str] = ""  # how its options make rows to validate on
    credits: ClassVar[Mapping[str, str]] = {}  # sources to name and their terms, for model cards

    @abstractmethod
    def rows(self) -> DatasetRows:
        """Return the rows, made or downloaded into the cache folder if they are not there yet.

        Raises:
            DataError: They cannot be had; the message says what to do.
        """

    def requires(self) -> Mapping[str, str]:
        """Return the optional packages that `rows` needs: module to the command that installs it.

        `geobind check` and `geobind run` look for each, without importing it, before anything is made.
        """
        return {}

    def vector_names(self) -> Mapping[str, Sequence[str]]:
        """Return the names of the numbers in a cell, for each column whose cells are vectors of facts."""
        return {}

    def composer(self) -> Composer | None:
        """Return the function that renders the land of some rows at the moments of others, if any."""
        return None

    def write_files(self, folder: Path) -> Path:
        """Write the rows as files with a manifest, for people to look at, and return the manifest.

        Raises:
            DataError: This dataset cannot be written, or not into this folder.
        """
        raise DataError(f"{self.name}: cannot be written to {folder}: it has no files of its own")


def _fault_of_dataset(cls: type[Dataset]) -> str | None:
    if cls.name in RESERVED:
        return f"{cls.__name__}.name cannot be {cls.name!r}: `data` has a key of that name"
    if not str(getattr(cls, "title", "")).strip():
        return f"{cls.__name__} does not state its title"
    return None


DATASET = PluginKind("dataset", Dataset, "geobind.data.Dataset", "geobind_datasets", _fault_of_dataset)


@lru_cache(maxsize=1)
def registry() -> Registry[Dataset]:
    """Return every dataset on this machine; plugins are looked up once per process."""
    return DATASET.collect(list_entry_points())
