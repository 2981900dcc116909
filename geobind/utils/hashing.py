"""Seeds that depend on what they are for, so that any part of a run can be made again alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def derive_seed(seed: int, *purpose: object) -> int:
    """Return a 63-bit seed for one purpose, such as a stage's name and a step."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def fingerprint(*facts: Any) -> str:
    """Return the SHA-256 of plain values, as hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
