"""The contract of modalities, and pairs of observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor, nn

    Prepared = Tensor | Mapping[str, Tensor]

Role = Literal["frozen", "trainable"]


class Place(NamedTuple):
    """The place and time of an observation: degrees north, degrees east (WGS 84), and time if known."""

    lat: float
    lon: float
    time: datetime | None = None


class Pair(NamedTuple):
    """Two raw inputs of one place, as a modality's `prepare` accepts them.

    `anchor` and `other` may each be a list of equally good observations (several captions of a photo):
    training draws one at random, evaluation takes the first.
    """

    anchor: Any
    other: Any
    key: str = ""  # names the row in messages
    place: Place | None = None
    label: str | None = None  # the row's class, when the data has one


class Modality(BaseModel, ABC):
    """One kind of observation: its encoder, how a raw input is prepared, and (optionally) its own pairs.

    The fields of a subclass are its options, read from the recipe; they are checked there with file and
    line, and saved with every bundle. A subclass must import without side effects and without heavy
    libraries: import torch and friends inside the methods.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: ClassVar[str]  # the word recipes and `Binder.embed` use
    role: ClassVar[
        Role
    ]  # "frozen": no stage may train it unless the recipe says so; "trainable": a stage may
    accepts: ClassVar[str] = ""  # the raw inputs `prepare` takes, in one line for people

    @abstractmethod
    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        """Build the network that maps a prepared batch to embeddings.

        Args:
            width: Length of the shared space.
            pretrained: False builds the same architecture without reading or downloading any weights;
                they are loaded afterwards from a bundle.

        Returns:
            A module that maps prepared (B, ...) to float (B, width), at any scale: the binder normalises
            and the loss owns the temperature. A module with an attribute `head` (an `nn.Module`) can
            also be trained by its head alone.
        """

    @abstractmethod
    def prepare(self, raw: Any, *, training: bool = False) -> Prepared:
        """Turn one raw input into a tensor, or a dict of tensors, without a batch axis.

        Every result has the same shape, so that a batch is a plain stack. Augmentation happens only with
        `training=True`; without it the result is a pure function of the input.

        Raises:
            DataError: The input is not of an accepted kind, or cannot be decoded.
        """

    def requires(self) -> Mapping[str, str]:
        """Return the optional packages that these options need: module to the command that installs it.

        `geobind check` and `geobind run` look for each, without importing it, before anything is rendered
        or read. A package that the plugin's distribution depends on need not be named.
        """
        return {}

    def pairs(self, split: str, anchor: str) -> Sequence[Pair] | None:
        """List this modality's pairs with the modality named `anchor`, if it brings its own.

        The default, None, means that they are rows of the recipe's `data`.
        """
        return None
