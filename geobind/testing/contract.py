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


def check_modality(
    modality: Modality,
    raws: Sequence[Any],
    *,
    bad_raws: Sequence[Any] = (),
    long_raws: Sequence[Any] = (),
    width: int = 32,
    unused: Sequence[str] = (),
    one_layout: bool = True,
    entry_point: bool = True,
) -> list[str]:
    """Run the contract without pytest; return its faults: for each the test, what is wrong and the fix.

    It starts a process: in a script, call it under `if __name__ == "__main__":`.

    Args:
        modality: The modality, with the options to test.
        raws: At least two valid raw inputs that differ as observations do.
        bad_raws: Inputs that `prepare` must refuse.
        long_raws: Inputs longer than the encoder takes, which differ only in the last thing it keeps.
        width: Length of the shared space to test with.
        unused: Patterns for the names of parameters that no gradient is meant to reach.
        one_layout: Whether inputs have one shape with and without training.
        entry_point: Whether the plugin is installed.
    """
    contract = ModalityContract()
    contract.modality, contract.raws = modality, raws
    contract.bad_raws, contract.long_raws = bad_raws, long_raws
    contract.one_layout = one_layout
    contract.width, contract.unused, contract.entry_point = width, unused, entry_point
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
