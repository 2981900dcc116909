"""Validated embedding matrices and the ground truth of retrieval."""

# N rows of one modality, D width

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from geobind.errors import DataError

Embeddings: TypeAlias = Tensor | np.ndarray
UNIT_LENGTH_TOLERANCE = 0.01  # generous: embeddings stored as float16 or bfloat16 are off by up to 0.004
CHECKED_ROWS = 4096


def iterate_slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Yield slices that cut `start` to `stop` into blocks of at most `step` rows."""
    for at in range(start, stop, step):
        yield slice(at, min(at + step, stop))


@contextmanager
def full_precision(device: torch.device) -> Generator[None]:
    """Compute products in plain float32 inside: no autocast, no TF32, no bfloat16.

    Those err by 1e-3, a thousand times what separates a tie from a rival.
    """
    with torch.autocast(device.type, enabled=False):
        try:
            restore = partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        except RuntimeError:  # torch >= 2.9 refuses the old setting once the new one, per backend, is in use
            restore = partial(_set_cuda_precision, torch.backends.cuda.matmul.fp32_precision)
            _set_cuda_precision("ieee")
        try:
            yield
        finally:
            restore()


def _set_cuda_precision(precision: Any) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision


class EmbeddingMatrix:
    """Checked unit-length embeddings, served as float32 blocks in the order the caller chooses.

    A row of zeros is let through: an encoder that says nothing ties with everything and so scores chance.
    """

    def __init__(self, embeddings: Embeddings, name: str) -> None:
        """Take a (N, D) floating tensor or numpy array (a memory map stays on disk); `name` is for errors.

        Raises:
            DataError: not two axes, no rows, not floating, not finite, or not of unit length.
        """
        self.name = name
        self.size, self.width = _check_shape(embeddings, name)
        self._source = embeddings.detach() if isinstance(embeddings, Tensor) else embeddings
        self._order: np.ndarray | None = None
        self.device = self._source.device if isinstance(self._source, Tensor) else torch.device("cpu")

    def ordered(self, order: np.ndarray | None) -> EmbeddingMatrix:
        """Return the rows that `order` names, in that order; None keeps all."""
        if order is None:
            return self
        view = object.__new__(EmbeddingMatrix)
        view.__dict__.update(self.__dict__)
        view._order = order if self._order is None else self._order[order]
        view.size = len(order)
        return view

    def block(self, at: slice, device: torch.device | None = None) -> Tensor:
        """Return the rows `at` as a float32 tensor (B, D)."""
        if self._order is None:
            part = self._source[at]
        elif isinstance(self._source, Tensor):
            part = self._source[torch.from_numpy(self._order[at]).to(self.device)]
        else:
            part = self._source[self._order[at]]
        if not isinstance(part, Tensor):
            # A copy: torch warns about memory maps opened read-only, and a float32 block is small.
            part = torch.from_numpy(np.array(part, dtype=np.float32))
        return part.to(device or self.device, torch.float32)

    def check(self) -> EmbeddingMatrix:
        """Check every row; raise DataError at the first that is not finite or not of unit length."""
        for rows in iterate_slices(0, self.size, CHECKED_ROWS):
            length_B = self.block(rows).norm(dim=1)
            wrong_B = ~(((length_B - 1).abs() <= UNIT_LENGTH_TOLERANCE) | (length_B == 0))
            if bool(wrong_B.any()):
                at = int(wrong_B.nonzero()[0, 0])
                row = rows.start + at if self._order is None else int(self._order[rows.start + at])
                raise DataError(_explain_bad_row(self.name, row, float(length_B[at])))
        return self


def _check_shape(embeddings: Embeddings, name: str) -> tuple[int, int]:
    shape = tuple(embeddings.shape)
    if len(shape) != 2:
        raise DataError(f"{name}: embeddings have shape {shape}; give two axes, (rows, width)")
    if shape[0] == 0 or shape[1] == 0:
        raise DataError(f"{name}: embeddings are empty, shape {shape}; give at least one row and one column")
    floating = (
        embeddings.is_floating_point()
        if isinstance(embeddings, Tensor)
        else np.issubdtype(embeddings.dtype, np.floating)
    )
    if not floating:
        raise DataError(f"{name}: embeddings are {embeddings.dtype}; give floating-point unit vectors")
    return shape[0], shape[1]


def _explain_bad_row(name: str, row: int, length: float) -> str:
    if not np.isfinite(length):
        return (
            f"{name}: row {row} is not finite (NaN or infinity); find what its encoder was given, "
            "or leave the row out with `presence`"
        )
    return (
        f"{name}: row {row} has length {length:.4g}, not 1; "
        "divide each row by its length (torch.nn.functional.normalize) before measuring"
    )


def check_same_width(query: EmbeddingMatrix, gallery: EmbeddingMatrix) -> None:
    """Raise DataError unless both sides have the same width."""
    if query.width != gallery.width:
        raise DataError(
            f"{query.name} is {query.width} wide but {gallery.name} is {gallery.width} wide; "
            "both must come from one embedding space"
        )


def to_plain_list(values: Any) -> list[Any]:
    """Convert ids or labels (sequence, array or tensor) to plain Python values, NaN to None."""
    plain: Sequence[Any] = values.tolist() if isinstance(values, (Tensor, np.ndarray)) else list(values)
    return [None if isinstance(value, float) and value != value else value for value in plain]


def encode_values(values: Any, size: int, name: str, known: dict[Any, int] | None = None) -> np.ndarray:
    """Encode ids or labels as integers, one per row; None becomes -1.

    Args:
        values: One id or label per row.
        size: How many rows there are.
        name: What the values are, for errors.
        known: Numbers given out so far; pass one dict for both sides so that their numbers agree.

    Raises:
        DataError: As many values as rows were not given.
    """
    known = {} if known is None else known
    plain = to_plain_list(values)
    if len(plain) != size:
        raise DataError(f"{name}: {len(plain)} values for {size} rows; give one per row (None where unknown)")
    return np.array([-1 if v is None else known.setdefault(v, len(known)) for v in plain], dtype=np.int64)


def number_clusters(values: Any, size: int, name: str) -> np.ndarray:
    """Number the clusters of rows without gaps; a row without one is a cluster of its own.

    Raises:
        DataError: As many values as rows were not given.
    """
    return encode_values([object() if of is None else of for of in to_plain_list(values)], size, name)


class RetrievalSides(NamedTuple):
    """Queries and gallery with ids; rows of equal id are positives of each other."""

    query: EmbeddingMatrix
    gallery: EmbeddingMatrix
    query_id_Q: np.ndarray
    gallery_id_G: np.ndarray


def build_retrieval_sides(
    query_QD: Embeddings, gallery_GD: Embeddings, query_ids: Any, gallery_ids: Any
) -> RetrievalSides:
    """Check embeddings and their ids, which become numbers.

    Args:
        query_QD: Unit-length embeddings (Q, D).
        gallery_GD: Unit-length embeddings (G, D).
        query_ids: One id per query; without ids row i is the positive of row i.
        gallery_ids: One id per gallery item.

    Raises:
        DataError: Embeddings or ids that cannot be used.
    """
    query, gallery = (
        EmbeddingMatrix(query_QD, "query").check(),
        EmbeddingMatrix(gallery_GD, "gallery").check(),
    )
    return RetrievalSides(query, gallery, *_encode_ids(query, gallery, query_ids, gallery_ids))


def _encode_ids(
    query: EmbeddingMatrix, gallery: EmbeddingMatrix, query_ids: Any, gallery_ids: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Encode the ids of both sides; rows of equal number are positives of each other."""
    if (query_ids is None) != (gallery_ids is None):
        raise DataError("ids were given for one side only; give query_ids and gallery_ids, or neither")
    if query_ids is None:
        if query.size != gallery.size:
            raise DataError(
                f"{query.size} query rows against {gallery.size} gallery rows: without ids row i is the "
                "positive of row i; give query_ids and gallery_ids"
            )
        return np.arange(query.size), np.arange(gallery.size)
    known: dict[Any, int] = {}
    query_id_Q = encode_values(query_ids, query.size, "query_ids", known)
    gallery_id_G = encode_values(gallery_ids, gallery.size, "gallery_ids", known)
    for name, id_N in (("query_ids", query_id_Q), ("gallery_ids", gallery_id_G)):
        if (id_N < 0).any():
            raise DataError(f"{name}: row {int(np.argmax(id_N < 0))} has no id; every row needs one")
    return query_id_Q, gallery_id_G


# N rows


@dataclass(frozen=True)
class GroundTruth:
    """Id of each row, and where known its label, place and cluster, as numbers."""

    id_N: np.ndarray
    label_N: np.ndarray | None = None
    place_N2: np.ndarray | None = None
    cluster_N: np.ndarray | None = None  # rows of one number are no independent queries

    def take(self, rows: np.ndarray | None) -> GroundTruth:
        """Return the ground truth of some rows; None for all."""
        if rows is None:
            return self
        others = (self.label_N, self.place_N2, self.cluster_N)
        return GroundTruth(self.id_N[rows], *(None if known is None else known[rows] for known in others))

    @property
    def drawn_N(self) -> np.ndarray | None:
        """Cluster numbers without gaps, rows without a cluster each in their own; None without clusters."""
        if self.cluster_N is None:
            return None
        own_N = self.cluster_N.max() + 1 + np.arange(len(self.cluster_N))
        return np.unique(np.where(self.cluster_N < 0, own_N, self.cluster_N), return_inverse=True)[1]


def build_ground_truth(
    size: int,
    id_N: np.ndarray,
    labels: Any,
    places: Any,
    known: dict[Any, int] | None = None,
    clusters: Any = None,
    *,
    prefix: str = "",
) -> GroundTruth:
    """Build the ground truth of the rows; labels, places and clusters are checked and encoded."""
    label_N = None if labels is None else encode_values(labels, size, f"{prefix}labels", known)
    place_N2 = None if places is None else _check_places(places, size, f"{prefix}places")
    cluster_N = None if clusters is None else encode_values(clusters, size, f"{prefix}clusters")
    return GroundTruth(id_N, label_N, place_N2, cluster_N)


def _check_places(places: Any, size: int, name: str) -> np.ndarray:
    unknown = (np.nan, np.nan)
    rows = (
        places if isinstance(places, np.ndarray) else [unknown if at is None else tuple(at) for at in places]
    )
    place_N2 = np.asarray(rows, dtype=np.float64)
    if place_N2.shape != (size, 2):
        raise DataError(
            f"{name}: shape {place_N2.shape} for {size} rows; give latitude and longitude of each row"
        )
    outside_N = (np.abs(place_N2[:, 0]) > 90) | (np.abs(place_N2[:, 1]) > 360)
    if outside_N.any():
        row = int(np.argmax(outside_N))
        raise DataError(f"{name}: row {row} is {tuple(place_N2[row].tolist())}; give degrees, latitude first")
    return place_N2
