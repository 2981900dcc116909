"""Print tables of figures in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def print_table(table: Table) -> None:
    """Print a table with every figure whole: lines too long for the terminal go on in its next line."""
    from rich.console import Console

    console = Console()
    wanted = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    Console(width=max(console.width, wanted)).print(table)
