"""`python -m geobind` is the command `geobind`; torchrun needs it."""

from __future__ import annotations

from geobind.cli import main

main(prog_name="geobind")
