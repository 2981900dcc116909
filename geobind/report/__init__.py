"""What people read of a run: a page that holds everything, and one that sets runs side by side."""

from __future__ import annotations

from geobind.report.comparison import compare, render_comparison, write_comparison
from geobind.report.examples import held_out_rows, open_held_out
from geobind.report.page import write_report

__all__ = [
    "compare",
    "held_out_rows",
    "open_held_out",
    "render_comparison",
    "write_comparison",
    "write_report",
]
