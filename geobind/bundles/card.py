"""The card of a bundle, `binder.json`: everything but its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geobind.bridge import BankFacts
from geobind.bundles.delta import BaseReference
from geobind.bundles.stability import Proof
from geobind.errors import CheckpointError, DataError
from geobind.fuser import FuserFacts
from geobind.recipe.base_bundle import CARD, FORMAT, MAX_CARD
from geobind.scoring import Calibration
from geobind.utils.files import read_limited
from geobind.utils.formatting import format_first_fault


class Origin(BaseModel):
    """The plugin that provides a modality."""

    model_config = ConfigDict(frozen=True)

    distribution: str
    version: str


class Card(BaseModel):
    """Everything known of a binder besides its weights: `binder.json`."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    name: str = "binder"
    width: int = Field(ge=1, le=65_536, description="length of an embedding")
    modalities: dict[str, dict[str, Any]] = Field(description="options of each modality")
    plugins: dict[str, Origin] = {}
    digests: dict[str, str] = Field({}, description="SHA-256 of each encoder's weights")
    versions: dict[str, str] = {}
    created: str = ""
    recipe: dict[str, Any] = Field({}, description="the recipe that trained it, empty for none")
    stages: list[dict[str, Any]] = Field([], description="what each stage did")
    metrics: dict[str, Any] = Field({}, description="what was measured after the last stage")
    data: list[dict[str, Any]] = Field([], description="rows used: for what, how many, under which licences")
    author: dict[str, Any] = Field({}, description="what the recipe's `card` says")
    calibration: Calibration | None = Field(None, description="what makes similarities probabilities")
    bank: BankFacts | None = Field(None, description="the bank of anchor embeddings in the bundle")
    fuser: FuserFacts | None = Field(None, description="the fuser of several inputs in the bundle")
    proof: Proof | None = Field(None, description="that stages left embeddings as they were, to the bit")
    over: BaseReference | None = Field(
        None, description="the bundle that a small one changes; a whole one has none"
    )


def read_card(folder: Path) -> Card:
    """Read a bundle's card.

    Raises:
        CheckpointError: There is none, it is damaged, or of another format.
    """
    path = folder / CARD
    try:
        card = Card.model_validate_json(read_limited(path, MAX_CARD, "a bundle's card"))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    except OSError as error:
        raise CheckpointError(
            f"{folder}: not a bundle, {CARD} cannot be read ({error.strerror}); it is written last: where "
            "other files of a bundle are there, it was not saved to its end, so save it again"
        ) from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: damaged: {format_first_fault(error)}") from None
    if card.format != FORMAT:
        raise CheckpointError(
            f"{path}: bundle format {card.format}, made with geobind {card.versions.get('geobind', '?')}; "
            f"this geobind reads format {FORMAT}: install the version it was made with"
        )
    return card
