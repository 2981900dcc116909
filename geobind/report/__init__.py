"""What people read of a run: a page that holds everything, and one that sets runs side by side."""

from __future__ import annotations

from geobind.report.comparison import build_comparison_tables, compare, write_comparison
from geobind.report.examples import open_held_out, open_held_out_rows
from geobind.report.page import write_report

__all__ = [
    "build_comparison_tables",
    "compare",
    "open_held_out",
    "open_held_out_rows",
    "write_comparison",
    "write_report",
]
