"""Bundles on disk and on the Hugging Face Hub: save, load, download, push."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import ValidationError

from geobind import plugins
from geobind.bundles.card import CARD, FORMAT, Card, Origin, read_card
from geobind.bundles.delta import DELTA_FILE, find_base, read_with_base, split_delta
from geobind.bundles.model_card import render_model_card
from geobind.errors import CheckpointError, GeobindError, PluginError
from geobind.hub import check_reachability, explain_failure, hub_or_cache
from geobind.modality import Modality
from geobind.recipe.parsing import dump_yaml
from geobind.towers.weights import load_strictly, read_weights
from geobind.utils import files as storage
from geobind.utils.system import collect_versions, hash_module

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import nn


def fetch_folder(name: str, files: Iterable[str], revision: str | None = None) -> Path:
    """Return the folder of this name, or download it from the hub.

    Args:
        name: A folder, or `owner/name` of the hub.
        files: The files to download.
        revision: A branch, tag or commit.

    Raises:
        CheckpointError: There is neither.
    """
    if os.path.isdir(name):
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with hub_or_cache():
            return Path(snapshot_download(name, revision=revision, allow_patterns=[*files]))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"no folder '{name}', and the hub gives no such bundle: {explain_failure(error)}"
        ) from error


def publish(folder: Path, name: str, *, private: bool = False) -> str:
    """Publish a folder as `owner/name` and return its address.

    Raises:
        GeobindError: The hub refuses it or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with hub_or_cache():
            hub = HfApi()
            hub.create_repo(name, private=private, exist_ok=True)
            return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message="geobind bundle"))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = check_reachability() or str(error).splitlines()[0]
        raise GeobindError(f"cannot publish '{name}': {reason}") from error


WEIGHTS, RECIPE, README = "model.safetensors", "recipe.yaml", "README.md"
_FILES = (CARD, WEIGHTS, DELTA_FILE, RECIPE, README)


class SupportsBundle(Protocol):
    """The parts of a binder that a bundle holds."""

    modalities: dict[str, Modality]
    width: int
    encoders: nn.ModuleDict
    card: Card | None


B = TypeVar("B", bound=SupportsBundle)


def build_card(binder: SupportsBundle, **facts: Any) -> Card:
    """Build the card of a binder as it is now; `facts` are further fields."""
    known = binder.card.model_dump() if binder.card else {}
    options = {n: _without_folders(m.model_dump(mode="json")) for n, m in binder.modalities.items()}
    fresh = {
        "format": FORMAT,
        "width": binder.width,
        "modalities": options,
        "plugins": {name: _origin(name) for name in binder.modalities},
        "digests": {name: hash_module(encoder) for name, encoder in binder.encoders.items()},
        "versions": collect_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if known.get("digests") != fresh["digests"]:
        known.pop("calibration", None)  # it was fitted to other weights
    return Card.model_validate({**known, **fresh, **facts})


def save(binder: SupportsBundle, folder: Path, *, over: str | Path | None = None) -> Path:
    """Write a bundle.

    The weights come last but one and `binder.json` last, so that a folder with a card is a whole bundle.

    Args:
        binder: What to save.
        folder: Where.
        over: A bundle, or its id on a hub: only what the binder changes of its weights is written.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
        CheckpointError: There is no such base, or it is in this very folder.
    """
    card, tensors, kept = build_card(binder, over=None), binder.encoders.state_dict(), (WEIGHTS, DELTA_FILE)
    if over is not None:
        base = _base_weights(folder, str(over))
        tensors, reference = split_delta(tensors, read_weights(base), _base_name(over))
        card = card.model_copy(update={"over": reference})
        kept = (DELTA_FILE, WEIGHTS)
    if card.recipe:
        storage.write_atomic(folder / RECIPE, dump_yaml(card.recipe).encode())
    storage.write_atomic(folder / README, render_model_card(card.model_dump()).encode())
    (folder / kept[1]).unlink(missing_ok=True)
    storage.write_tensors(folder / kept[0], tensors)
    storage.write_atomic(folder / CARD, card.model_dump_json(indent=1).encode())
    return folder


def save_card(binder: SupportsBundle, folder: Path, **facts: Any) -> None:
    """Write a bundle's card and model card again with further facts; nothing else of it changes.

    Raises:
        CheckpointError: The folder holds no bundle.
        StorageError: It cannot be written.
    """
    card = Card.model_validate({**read_card(folder).model_dump(), **facts})
    storage.write_atomic(folder / README, render_model_card(card.model_dump()).encode())
    storage.write_atomic(folder / CARD, card.model_dump_json(indent=1).encode())
    binder.card = card


def load(make: Callable[..., B], folder: Path, *, base: str | Path | None = None) -> B:
    """Read a bundle, without pickle, and without the network unless its base is on a hub.

    Args:
        make: Makes a binder without weights of its modalities, width and card.
        folder: The bundle.
        base: The bundle that a small one changes; default: where it was when it was saved, beside it or on
            a hub.

    Raises:
        CheckpointError: It is no bundle, damaged, or of another format; or its weights or base do not fit.
        PluginError: A modality it needs is not installed.
    """
    card = read_card(folder)
    modalities = {name: _modality(card, name, options, folder) for name, options in card.modalities.items()}
    binder = make(modalities, card.width, pretrained=False, card=card)
    if card.over is None:
        tensors, file = read_weights(folder / WEIGHTS), folder / WEIGHTS
    else:
        weights = _base_weights(folder, str(find_base(folder, card.over, base)))
        tensors = read_with_base(folder, card.over, weights, binder.encoders.state_dict())
        file = folder / DELTA_FILE
    load_strictly(binder.encoders, tensors, str(file))
    return binder


def from_pretrained(make: Callable[..., B], name: str, *, revision: str | None = None) -> B:
    """Read a bundle from a folder, or from the Hugging Face hub. See `load`.

    Raises:
        CheckpointError: There is neither, or it is no bundle.
    """
    return load(make, fetch_folder(name, _FILES, revision))


def push_to_hub(binder: SupportsBundle, name: str, *, private: bool = False) -> str:
    """Publish a bundle on the Hugging Face hub and return its address.

    Raises:
        GeobindError: The hub refuses it or cannot be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        return publish(save(binder, Path(folder)), name, private=private)


def _base_weights(folder: Path, base: str) -> Path:
    """Return the weights file of the whole bundle that a small one in `folder` changes."""
    base_folder = fetch_folder(base, _FILES)
    if base_folder.resolve() == folder.resolve():
        raise CheckpointError(f"{folder}: a bundle cannot be its own base; save it in another folder")
    if read_card(base_folder).over is not None:
        raise CheckpointError(f"{base}: holds only changes of another bundle's weights; name that one")
    return base_folder / WEIGHTS


def _base_name(base: str | Path) -> str:
    """Return the name of a base in a card: its hub id, or the name of its folder."""
    return Path(base).resolve().name if os.path.isdir(base) else str(base)


def _modality(card: Card, name: str, options: Mapping[str, Any], folder: Path) -> Modality:
    registry = plugins.registry()
    origin = card.plugins.get(name)
    made_with = f"{origin.distribution} {origin.version}" if origin else "an unknown plugin"
    if name not in registry.plugins:
        needs = f"{folder}: the bundle needs the modality '{name}' of {made_with}\n{registry.explain(name)}"
        wanted = f"{origin.distribution}=={origin.version}" if origin else name
        raise PluginError(needs if registry.clashes(name) else f"{needs}\n  install it: pip install {wanted}")
    plugin = registry.plugins[name]
    if origin and (plugin.source.distribution, plugin.source.version) != (
        origin.distribution,
        origin.version,
    ):
        _log.warning("%s: '%s' was made with %s; installed is %s", folder, name, made_with, plugin.source)
    try:
        return plugin.cls.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{folder}: {plugin.source} does not take the bundle's options of '{name}' "
            f"(made with {made_with}): {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None


def _origin(name: str) -> Origin:
    plugin = plugins.registry().plugins.get(name)
    if plugin is None:  # a modality made in a notebook, never installed
        return Origin(distribution="none", version="0")
    return Origin(distribution=plugin.source.distribution, version=plugin.source.version)


def _without_folders(value: Any) -> Any:
    """Replace absolute paths by their names: they would disclose where the author's files lie."""
    if isinstance(value, dict):
        return {key: _without_folders(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_without_folders(child) for child in value]
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value
