"""The whole contract: inherited by a test class, or run without pytest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import SkipTest

from geobind.modality import Modality
from geobind.testing.encoders import EncoderContract
from geobind.testing.inputs import InputContract


class ModalityContract(InputContract, EncoderContract):
    """Every promise a modality keeps, one test each: inherit it as `class TestX(ModalityContract)`.

    Fill in `modality` and `raws`, and what else applies (see `Subject`). Encoders are built with
    `pretrained=False`, so nothing is downloaded; give `modality` small options to keep the tests fast.
    A promise that cannot be judged, since another is broken or a field is empty, is skipped with the reason.
    """


TESTS = tuple(
    name for half in (InputContract, EncoderContract) for name in vars(half) if name.startswith("test_")
)


def check_modality(modality: Modality, raws: Sequence[Any], **fields: Any) -> list[str]:
    """Run the contract without pytest; return its faults: for each the test, what is wrong and the fix.

    It starts a process: in a script, call it under `if __name__ == "__main__":`.

    Args:
        modality: The modality, with the options to test.
        raws: At least two valid raw inputs that differ as observations do.
        fields: The other fields of `ModalityContract`, such as `bad_raws` or `width`.
    """
    contract = type("Contract", (ModalityContract,), {"modality": modality, "raws": raws, **fields})()
    faults: list[str] = []
    for test in TESTS:
        try:
            getattr(contract, test)()
        except SkipTest:
            continue
        except AssertionError as fault:
            faults.append(f"{test}: {fault}")
        except Exception as error:
            faults.append(f"{test}: {type(error).__name__}: {error}")
    return faults
