"""Seeds derived from their purpose, and fingerprints of plain values and of sources."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
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


def hash_sources(file: str | Path) -> str:
    """Return the SHA-256 of all modules in a folder, so that what an older version made is never used.

    Args:
        file: `__file__` of a module in that folder.
    """
    modules = sorted(Path(file).parent.glob("*.py"))
    return hashlib.sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()
