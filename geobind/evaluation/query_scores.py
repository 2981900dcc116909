"""Scores of each query in a file of the run, and two runs compared on the queries they share."""

# Q queries, M measures

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from geobind.errors import CheckpointError
from geobind.evaluation.intervals import Paired, compare_means, compare_medians
from geobind.evaluation.retrieval_metrics import QueryScores
from geobind.utils import files

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE = "queries.safetensors"
_MAX_BYTES = 2**31


class KeyedScores(NamedTuple):
    """Scores of the queries of one ordered pair, by the hash of each row's key."""

    measures: tuple[str, ...]
    key_Q: NDArray[np.int64]
    value_QM: NDArray[np.float32]
    cluster_Q: NDArray[np.int64] | None


def write_query_scores(
    path: Path, scores: Mapping[tuple[str, str], QueryScores], keys: Sequence[Any]
) -> None:
    """Write what each query scores; rows are named by a hash of their key.

    Raises:
        StorageError: The file cannot be written.
    """
    key_N = np.array([_hash(key) for key in keys], dtype=np.int64)
    tensors: dict[str, NDArray[Any]] = {}
    for number, one in enumerate(scores.values()):
        tensors[f"{number}.keys"] = key_N[one.row_Q]
        tensors[f"{number}.values"] = np.ascontiguousarray(one.value_QM, dtype=np.float32)
        if one.cluster_Q is not None:
            tensors[f"{number}.clusters"] = np.ascontiguousarray(one.cluster_Q, dtype=np.int64)
    pairs = [{"pair": list(pair), "measures": list(one.measures)} for pair, one in scores.items()]
    files.write_atomic(path, save(tensors, {"pairs": json.dumps(pairs)}))


def read_query_scores(path: Path) -> dict[tuple[str, str], KeyedScores]:
    """Read what each query scores, by (query, gallery); a run without the file has none.

    Raises:
        CheckpointError: The file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES:,} bytes")
        with safe_open(path, "np") as file:
            pairs = json.loads((file.metadata() or {})["pairs"])
            there = set(file.keys())
            return {
                (str(one["pair"][0]), str(one["pair"][1])): _read_pair(file, there, number, one["measures"])
                for number, one in enumerate(pairs)
            }
    except (OSError, SafetensorError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(
            f"{path}: not readable as scores of queries ({error}); remove it to compare intervals instead"
        ) from None


def _read_pair(file: Any, there: set[str], number: int, names: Sequence[Any]) -> KeyedScores:
    clusters = f"{number}.clusters"
    one = KeyedScores(
        tuple(map(str, names)),
        file.get_tensor(f"{number}.keys"),
        file.get_tensor(f"{number}.values"),
        file.get_tensor(clusters) if clusters in there else None,
    )
    count = len(one.key_Q)
    shapes = one.key_Q.shape, one.value_QM.shape, (count,) if one.cluster_Q is None else one.cluster_Q.shape
    if shapes != ((count,), (count, len(one.measures)), (count,)) or not count:
        raise ValueError(f"pair {number} has shapes {shapes}")
    return one


def _hash(key: Any) -> int:
    return int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "big", signed=True)


def compare_queries(one: KeyedScores | None, two: KeyedScores | None, measure: str) -> Paired | None:
    """Compare a measure of two runs on the same queries: the second less the first.

    Returns:
        The difference; None if the runs did not measure the same rows, or not with this measure.
    """
    column = "mean_rank" if measure == "median_rank" else measure  # each query's value is its rank
    if one is None or two is None or column not in one.measures or column not in two.measures:
        return None
    order, other = np.argsort(one.key_Q, kind="stable"), np.argsort(two.key_Q, kind="stable")
    if not np.array_equal(one.key_Q[order], two.key_Q[other]):
        return None
    a_Q = one.value_QM[order, one.measures.index(column)].astype(np.float64)
    b_Q = two.value_QM[other, two.measures.index(column)].astype(np.float64)
    known_Q = np.isfinite(a_Q) & np.isfinite(b_Q)
    if known_Q.sum() < 2:
        return None
    unit_Q = None if one.cluster_Q is None else one.cluster_Q[order][known_Q]
    if measure == "median_rank":
        return compare_medians(b_Q[known_Q], a_Q[known_Q], unit_Q)
    return compare_means(b_Q[known_Q] - a_Q[known_Q], unit_Q)
