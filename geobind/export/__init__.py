"""Encoders as files that run without geobind (ONNX, torch programs), and as models of other libraries."""

from __future__ import annotations

from geobind.export.exporting import ExportResult, export_encoder

__all__ = ["ExportResult", "export_encoder"]
