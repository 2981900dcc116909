"""The engines of the approximate indexes that come with geobind: faiss and LanceDB."""

# N rows, Q queries, K matches, D width

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from geobind.errors import CheckpointError
from geobind.extras import INSTALL
from geobind.search import ApproximateIndex
from geobind.utils.files import replace_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

_FEWEST = 39  # rows for each list that faiss trains with, below which it warns
_MOST = 64  # rows for each list that are enough
_ADDED = 65_536  # rows at a time, which become float32
_TABLE = "rows"


def _count_lists(rows: int) -> int:
    """Return how many inverted lists so many rows are cut into."""
    return max(1, min(round(4 * rows**0.5), rows // _FEWEST))


def _list_efforts(lists: int) -> list[int]:
    """Return the numbers of lists that a query may look into, fewer than all of them."""
    return [4**n for n in range(16) if 4**n < lists] or [1]


class Faiss(ApproximateIndex):
    """Inverted lists of float16 vectors (faiss's IVF with SQfp16): a query looks into the nearest lists."""

    name: ClassVar[str] = "faiss"
    needs: ClassVar[str] = "faiss"
    install: ClassVar[str] = INSTALL["faiss"]

    def build(self, vectors_ND: NDArray[Any]) -> None:
        """Train the lists on a sample and fill them."""
        import faiss

        total, width = vectors_ND.shape
        lists = _count_lists(total)
        self.engine: Any = faiss.index_factory(width, f"IVF{lists},SQfp16", faiss.METRIC_INNER_PRODUCT)
        random = np.random.default_rng(0)
        sample = np.sort(random.choice(total, min(total, _MOST * lists), replace=False))
        self.engine.train(vectors_ND[sample].astype(np.float32))
        for start in range(0, total, _ADDED):
            self.engine.add(vectors_ND[start : start + _ADDED].astype(np.float32))
        self.efforts = _list_efforts(lists)

    def find(self, query_QD: NDArray[np.float32], k: int, rows: Rows | None, effort: int) -> Rows:
        """Return the best rows of the nearest `effort` lists; a few more than asked, since float16 rounds."""
        import faiss

        options: dict[str, Any] = {"nprobe": effort}
        if rows is not None:
            mask = np.zeros(len(self), bool)
            mask[rows] = True
            bits = np.packbits(mask, bitorder="little")
            options["sel"] = faiss.IDSelectorBitmap(len(self), faiss.swig_ptr(bits))
        return self.engine.search(query_QD, k + 10, params=faiss.SearchParametersIVF(**options))[1]

    def write(self, folder: Path) -> None:
        """Write the lists."""
        import faiss

        with replace_atomic(folder / "lists.faiss") as temporary:
            faiss.write_index(self.engine, str(temporary))

    def read(self, folder: Path) -> None:
        """Read the lists."""
        import faiss

        path = folder / "lists.faiss"
        try:
            self.engine = faiss.read_index(str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{path}: cannot be read; build the index again") from error
        if self.engine.ntotal != len(self) or self.engine.d != self.exact.width:
            raise CheckpointError(f"{path}: holds other rows than {folder}; build the index again")
        self.efforts = _list_efforts(self.engine.nlist)


class Lance(ApproximateIndex):
    """A LanceDB table of float16 vectors in inverted lists on the disk; filtered searches are exact."""

    name: ClassVar[str] = "lance"
    needs: ClassVar[str] = "lancedb"
    install: ClassVar[str] = INSTALL["lancedb"]
    filters: ClassVar[bool] = False  # rows go into SQL, which takes longer than searching them exactly

    def build(self, vectors_ND: NDArray[Any]) -> None:
        """Write the table into a folder for the time being, and its lists."""
        import lancedb  # pyright: ignore[reportMissingImports]
        import pyarrow as pa
        from lancedb.index import IvfFlat  # pyright: ignore[reportMissingImports]

        total, width = vectors_ND.shape
        self._home = tempfile.TemporaryDirectory(prefix="geobind-lance-")
        table: Any = lancedb.connect(self._home.name).create_table(
            _TABLE,
            schema=pa.schema(
                [("row", pa.int64()), ("vector", pa.list_(pa.from_numpy_dtype(vectors_ND.dtype), width))]
            ),
        )
        for start in range(0, total, _ADDED):
            block_BD = np.ascontiguousarray(vectors_ND[start : start + _ADDED])
            rows = pa.array(np.arange(start, start + len(block_BD)))
            lists = pa.FixedSizeListArray.from_arrays(pa.array(block_BD.reshape(-1)), width)
            table.add(pa.table({"row": rows, "vector": lists}))
        config = IvfFlat(distance_type="dot", num_partitions=_count_lists(total))
        table.create_index("vector", config=config)
        self._open(Path(self._home.name), total)

    def _open(self, folder: Path, total: int) -> None:
        import lancedb  # pyright: ignore[reportMissingImports]

        self.table: Any = lancedb.connect(str(folder)).open_table(_TABLE)
        self.efforts = _list_efforts(_count_lists(total))

    def find(self, query_QD: NDArray[np.float32], k: int, rows: Rows | None, effort: int) -> Rows:
        """Return the best rows of the nearest `effort` lists."""
        search = self.table.search(list(query_QD), vector_column_name="vector").nprobes(effort).limit(k + 10)
        found = search.select(["row", "_distance"]).to_arrow()
        numbers = found["query_index"].to_numpy() if len(query_QD) > 1 else np.zeros(len(found), np.int64)
        candidates = np.full((len(query_QD), k + 10), -1, np.int64)
        for query in range(len(query_QD)):
            own = found["row"].to_numpy()[numbers == query]
            candidates[query, : len(own)] = own
        return candidates

    def write(self, folder: Path) -> None:
        """Copy the table."""
        shutil.rmtree(folder / f"{_TABLE}.lance", ignore_errors=True)
        shutil.copytree(Path(self.table.uri), folder / f"{_TABLE}.lance")

    def read(self, folder: Path) -> None:
        """Open the table where it lies."""
        try:
            self._open(folder, len(self))
            rows = self.table.count_rows()
        except Exception as error:  # it has no class of errors of its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{folder}: its table cannot be read ({reason}); build the index again"
            ) from error
        if rows != len(self):
            raise CheckpointError(f"{folder}: its table holds other rows; build the index again")
