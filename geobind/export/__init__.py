"""Encoders as files that run without geobind (ONNX, torch programs), and as models of other libraries."""

from __future__ import annotations

from geobind.export.exporting import ExportResult, export_encoder
from geobind.export.wrappers import MtebEncoder, OpenClipModel, as_open_clip, as_sentence_transformer

__all__ = [
    "ExportResult",
    "MtebEncoder",
    "OpenClipModel",
    "as_open_clip",
    "as_sentence_transformer",
    "export_encoder",
]
