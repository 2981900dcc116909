"""Plan a run before it begins: what it will take of time, memory and disk, from a short measurement."""

from __future__ import annotations
