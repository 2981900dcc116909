"""Random numbers that belong to a place: hashes of a seed, the place and a name, never of its batch."""
# N places, K numbers

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 0xFFFFFFFFFFFFFFFF


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words so that neighbouring inputs share nothing.

    Source: the SplitMix64 finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014).
    """
    mixed = words + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def place_keys(columns: Sequence[NDArray[np.float64]], seed: int, purpose: str) -> NDArray[np.uint64]:
    """Give each place its own 64-bit key (N,) from its numbers, the seed and what the key is for."""
    start = np.array([(seed * _GOLDEN + crc32(purpose.encode())) & _WORD], dtype=np.uint64)
    key_N = np.broadcast_to(mix(start), columns[0].shape)
    for column_N in columns:
        # Adding 0.0 turns -0.0 into 0.0: equal places must get equal keys.
        key_N = mix(key_N ^ np.ascontiguousarray(column_N + 0.0, dtype=np.float64).view(np.uint64))
    return key_N


def draw(key_N: NDArray[np.uint64], name: str, count: int) -> NDArray[np.float32]:
    """Draw the numbers called `name` for each key: (N, count), uniform in [0, 1)."""
    offset_K = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    word_NK = mix(key_N[:, None] ^ np.uint64(crc32(name.encode()) << 20)) + offset_K
    return (mix(word_NK) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
