"""Plans of runs: time, memory and disk, predicted from a short measurement."""

from __future__ import annotations
