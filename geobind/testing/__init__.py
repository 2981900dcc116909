"""The conformance kit: inherit `ModalityContract` in a plugin's tests, or call `check_modality`."""

from __future__ import annotations

from geobind.testing.contract import ModalityContract, check_modality

__all__ = ["ModalityContract", "check_modality"]
