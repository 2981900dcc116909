"""What the author of a modality fills in, and the few things every test of the contract begins with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from geobind.errors import PluginError
from geobind.modality import Modality
from geobind.testing import instruments

if TYPE_CHECKING:
    from torch import nn

    from geobind.modality import Prepared


class Subject:
    """The modality under test and inputs to test it with."""

    modality: Modality
    """The modality, with the options to test."""

    raws: Sequence[Any] = ()
    """At least two valid raw inputs that differ as observations do."""

    bad_raws: Sequence[Any] = ()
    """Inputs that `prepare` must refuse; `object()` is always tried."""

    long_raws: Sequence[Any] = ()
    """Two or more inputs longer than the encoder takes, which differ only in the last thing it keeps."""

    width: int = 32
    """Length of the shared space to test with."""

    unused: Sequence[str] = ()
    """Patterns (of fnmatch) for the names of parameters that no gradient is meant to reach."""

    one_layout: bool = True
    """Whether inputs have one shape with and without training; False where evaluation sees several crops."""

    entry_point: bool = True
    """Whether the plugin is installed; False tests a class before it is packaged."""

    def prepared(self) -> list[Prepared]:
        """Prepare every valid input, as for evaluation."""
        return [self.modality.prepare(raw) for raw in self.valid()]

    def valid(self) -> Sequence[Any]:
        """Return the valid inputs.

        Raises:
            PluginError: There are fewer than two, which tell nothing apart.
        """
        if len(self.raws) < 2:
            raise PluginError(f"{type(self).__name__}.raws needs two valid inputs or more, that differ")
        return self.raws

    def build(self, *, seed: int = 0) -> nn.Module:
        """Build the encoder without weights, in evaluation mode."""
        return instruments.build(self.modality, self.width, seed=seed)


def fail(fault: str, fix: str) -> NoReturn:
    """Fail a test of the contract with what is wrong and how to mend it."""
    raise AssertionError(f"{fault}\n  fix: {fix}")
