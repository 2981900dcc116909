"""Seeds derived from their purpose, and fingerprints of plain values."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_SHORT = 20  # hexadecimal digits


def derive_seed(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed for one purpose, such as a stage's name and a step."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def fingerprint(*values: Any) -> str:
    """Return the SHA-256, in hexadecimal, of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def short_fingerprint(*values: Any) -> str:
    """Return the first 20 digits of `fingerprint`, as folders of the cache are named."""
    return fingerprint(*values)[:_SHORT]
