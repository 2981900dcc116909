"""HTML reports: of one run, and of several runs compared."""

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
