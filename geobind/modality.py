"""The contract of modalities, and pairs of observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor, nn

    Prepared = Tensor | Mapping[str, Tensor]
    # An image, an array of one ((H, W) or (H, W, C)), a sound with its rate, or words.
    Picture = Image | NDArray[Any] | tuple[NDArray[Any], int] | str

Role = Literal["frozen", "trainable"]
BUNDLED = "geobind.bundled"  # in the context of validation: the options are those of a bundle's card
Widget = Literal["text", "image", "sound", "place", "numbers", "file"]


class Place(NamedTuple):
    """The place and time of an observation: degrees north, degrees east (WGS 84), and time if known."""

    lat: float
    lon: float
    time: datetime | None = None

    def __str__(self) -> str:
        north, east = f"{abs(self.lat):.4f}°{'NS'[self.lat < 0]}", f"{abs(self.lon):.4f}°{'EW'[self.lon < 0]}"
        return f"{north} {east}" + (f" {self.time:%Y-%m-%d %H:%M}" if self.time else "")


class Content(bytes):
    """The encoded bytes of an observation: what a server is sent, or a member of a tar file.

    Bytes are never taken for the path of a file. `name` is what messages call them.
    """

    name: str

    def __new__(cls, content: bytes, name: str = "") -> Content:
        """Hold these bytes under this name."""
        made = super().__new__(cls, content)
        made.name = name
        return made


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

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    name: ClassVar[str]  # the word recipes and `Binder.embed` use
    role: ClassVar[
        Role
    ]  # "frozen": no stage may train it unless the recipe says so; "trainable": a stage may
    accepts: ClassVar[str] = ""  # the raw inputs `prepare` takes, in one line for people
    widget: ClassVar[Widget] = "file"  # what a page offers to give an observation with

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

    def picture(self, raw: Any) -> Picture | None:
        """Draw a raw input for people: reports, contact sheets and pages show it in place of the input.

        The default, None, means that they show the input itself: images, sounds, texts, numbers and places.

        Returns:
            An image, an array of one ((H, W) or (H, W, C)), a sound as `(array, rate)`, or words.

        Raises:
            DataError: As `prepare`.
        """
        return None

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


def choose_picture(modality: Modality, raw: Any) -> Any:
    """Return what people are shown of a raw input: its picture, the input itself, or why there is none.

    A picture is for looking at, so a fault in the code that draws one becomes such an error too.
    """
    if raw is None or isinstance(raw, DataError):
        return raw
    try:
        picture = modality.picture(raw)
    except DataError as error:
        return error
    except Exception as error:
        return DataError(f"{type(modality).__name__}.picture raises {type(error).__name__}: {error}")
    return raw if picture is None else picture
