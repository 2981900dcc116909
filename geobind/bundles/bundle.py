"""Bundles on disk and on the Hugging Face Hub: save, load, download, push."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pydantic import ValidationError

from geobind import plugins
from geobind.bridge import BANK, AnchorBank, BridgeOptions, describe_bank, read_bank
from geobind.bundles.building import bounded_building, check_encoders, explain_building, read_shapes
from geobind.bundles.card import CARD, FORMAT, Card, Origin, read_card
from geobind.bundles.delta import (
    DELTA_FILE,
    combine_shapes,
    find_base,
    find_factored,
    read_with_base,
    split_delta,
)
from geobind.bundles.model_card import render_model_card
from geobind.bundles.stability import ChangedWeights, check_weights, find_not_finite
from geobind.errors import CheckpointError, DataError, GeobindError, PluginError, did_you_mean
from geobind.fuser import FUSER, Fuser, describe_fuser, read_fuser
from geobind.hub import check_reachability, explain_failure, hub_or_cache, without_hub
from geobind.modality import BUNDLED, Modality
from geobind.recipe.base_bundle import find_bundle
from geobind.recipe.parsing import dump_yaml
from geobind.towers.weights import load_strictly, read_tensors, read_weights
from geobind.utils import files as storage
from geobind.utils.formatting import format_first_fault, shorten
from geobind.utils.system import collect_versions, hash_module

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torch import nn


def fetch_folder(
    name: str, files: Iterable[str], revision: str | None = None, *, download: bool = True
) -> Path:
    """Return the folder of this name, or download it from the hub.

    Args:
        name: A folder, or `owner/name` of the hub.
        files: The files to download.
        revision: A branch, tag or commit.
        download: False takes it from the hub's cache alone.

    Raises:
        CheckpointError: There is neither.
    """
    if os.path.isdir(name):
        return find_bundle(Path(name))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with hub_or_cache() if download else without_hub():
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
_FILES = (CARD, WEIGHTS, DELTA_FILE, BANK, FUSER, RECIPE, README)


class SupportsBundle(Protocol):
    """The parts of a binder that a bundle holds."""

    modalities: dict[str, Modality]
    width: int
    encoders: nn.ModuleDict
    card: Card | None
    bank: AnchorBank | None
    fuser: Fuser | None

    @property
    def bridge_options(self) -> BridgeOptions:
        """How the bank is used."""
        ...


B = TypeVar("B", bound=SupportsBundle)


def build_card(binder: SupportsBundle, **facts: Any) -> Card:
    """Build the card of a binder as it is now; `facts` are further fields."""
    known = binder.card.model_dump() if binder.card else {}
    options = {name: portable_options(modality) for name, modality in binder.modalities.items()}
    fresh = {
        "format": FORMAT,
        "width": binder.width,
        "modalities": options,
        "plugins": {name: _origin(name, type(m)) for name, m in binder.modalities.items()},
        "digests": {name: hash_module(encoder) for name, encoder in binder.encoders.items()},
        "versions": collect_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if known.get("digests") != fresh["digests"]:
        known.pop("calibration", None)  # it was fitted to other weights
    return Card.model_validate({**known, **fresh, **facts})


def save(binder: SupportsBundle, folder: Path, *, over: str | Path | None = None) -> Path:
    """Write a bundle: all of its files or none.

    All are written under temporary names before the old `binder.json` goes; the new one comes last. A folder
    with a card is thus a whole bundle, the old one or the new.

    Args:
        binder: What to save.
        folder: Where.
        over: A bundle, or its id on a hub: only what the binder changes of its weights is written.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
        CheckpointError: Weights are not finite; or there is no such base, or it is in this very folder.
    """
    card, tensors, weights = build_card(binder, over=None), binder.encoders.state_dict(), WEIGHTS
    bank = _keep(binder.bank, binder, card, "bank")
    fuser = _keep(binder.fuser, binder, card, "fuser")
    facts = {
        "bank": bank and describe_bank(bank, binder.bridge_options),
        "fuser": fuser and describe_fuser(fuser),
    }
    card = card.model_copy(update=facts)
    if broken := find_not_finite(tensors):
        raise CheckpointError(f"{folder}: not saved: {broken}; load the last bundle or checkpoint before it")
    if over is not None:
        base = _base_weights(folder, str(over))
        tensors, reference = split_delta(tensors, read_weights(base), _base_name(over))
        card = card.model_copy(update={"over": reference})
        weights = DELTA_FILE
    contents = {weights: storage.encode_tensors(tensors), **_encode_card(card, folder)}
    if bank is not None:
        contents[BANK] = storage.encode_tensors(bank.tensors())
    if fuser is not None:
        contents[FUSER] = storage.encode_tensors(fuser.network.state_dict())
    if card.recipe:
        contents[RECIPE] = dump_yaml(card.recipe).encode()
    storage.replace_together(folder, contents, CARD, absent=[name for name in _FILES if name not in contents])
    return folder


P = TypeVar("P", AnchorBank, Fuser)


def _keep(part: P | None, binder: SupportsBundle, card: Card, name: str) -> P | None:
    """Return a part that is saved with a binder; None where training has moved away from it."""
    if part is None:
        return None
    try:
        return part.check_model(binder.width, card.digests)
    except DataError as error:
        _log.warning("saved without its %s: %s", name, error)
        return None


def save_card(binder: SupportsBundle, folder: Path, **facts: Any) -> None:
    """Write a bundle's card and model card again with further facts; nothing else of it changes.

    Raises:
        CheckpointError: The folder holds no bundle.
        StorageError: It cannot be written.
    """
    card = Card.model_validate({**read_card(folder).model_dump(), **facts})
    for name, content in _encode_card(card, folder).items():
        storage.write_atomic(folder / name, content)
    binder.card = card


def save_fuser(binder: SupportsBundle, folder: Path) -> None:
    """Write the fuser of a binder into its bundle; nothing else of it changes.

    Raises:
        CheckpointError: The folder holds no bundle.
        DataError: The fuser was trained on embeddings of other weights.
        StorageError: It cannot be written.
    """
    if binder.fuser is None:
        return
    facts, card = describe_fuser(binder.fuser), read_card(folder)
    binder.fuser.check_model(card.width, card.digests)
    storage.write_atomic(folder / FUSER, storage.encode_tensors(binder.fuser.network.state_dict()))
    save_card(binder, folder, fuser=facts)


def _encode_card(card: Card, folder: Path) -> dict[str, bytes]:
    """Return the model card and the card as files.

    Raises:
        CheckpointError: The card's facts, which may be a stranger's, are not what geobind writes.
    """
    try:
        readme = render_model_card(card.model_dump())
    except CheckpointError as error:
        raise CheckpointError(f"{folder / CARD}: {error}") from error
    return {README: readme.encode(), CARD: card.model_dump_json(indent=1).encode()}


def load(
    make: Callable[..., B],
    folder: Path,
    *,
    base: str | Path | None = None,
    download: bool = False,
    only: Collection[str] | None = None,
) -> B:
    """Read a bundle, without pickle, and without the network unless `base` names a bundle on a hub.

    The card is a stranger's: encoders are built only after their shapes agree with the weights file, and the
    weights must be finite and those whose SHA-256 the card names.

    Args:
        make: Makes a binder without weights of its modalities, width and card.
        folder: The bundle, or the folder of a run that holds it.
        base: The bundle that a small one changes; default: where it was when it was saved, beside it or in
            the hub's cache.
        download: Fetch a base that the card names from a hub.
        only: Load these modalities alone; default: all.

    Raises:
        CheckpointError: It is no bundle, damaged, or of another format; or its weights or base do not fit.
        ChangedWeights: Its weights are not those that its card names, or not finite.
        PluginError: A modality it needs is not installed, or it has not one that is asked for.
    """
    folder = find_bundle(folder)
    card = read_card(folder)
    left_out = set(card.modalities) - set(only or card.modalities)
    for name in only or ():
        if name not in card.modalities:
            raise make_unknown_modality_error(name, card.modalities)
    if card.over is not None:  # its weights are changes of those of all encoders
        left_out = set[str]()
    modalities = {
        name: _modality(card, name, options, folder)
        for name, options in card.modalities.items()
        if name not in left_out
    }
    beginnings = tuple(f"{name}." for name in left_out)
    file = folder / (WEIGHTS if card.over is None else DELTA_FILE)
    shapes, weights, factored = read_shapes(file), file, set[str]()
    shapes = {key: shape for key, shape in shapes.items() if not key.startswith(beginnings)}
    if card.over is not None:
        found = str(find_base(folder, card.over, base))
        weights = _base_weights(folder, found, download=download or base is not None)
        factored = find_factored(shapes)
        shapes = combine_shapes(folder, card.over, weights, read_shapes(weights), shapes, modalities)
    check_encoders(modalities, card.width, shapes, folder / CARD, file)
    with explain_building(f"{folder / CARD}: modalities"), bounded_building(shapes.values()):
        binder = make(modalities, card.width, pretrained=False, card=card)
    own = binder.encoders.state_dict()
    if card.over is None:
        tensors = read_tensors(file, shapes)
    else:
        tensors = read_with_base(folder, card.over, weights, own)
    if factored:
        _log.warning(
            "%s: an earlier version wrote the changes of %s as factors; their product is not to the bit what "
            "was saved, so it is not compared with the card: save the bundle again",
            file,
            ", ".join(sorted(factored)),
        )
    compared = [name for name in modalities if name not in factored]
    faults = check_weights(tensors, own, compared, card.digests)
    load_strictly(binder.encoders, tensors, str(file))
    if faults:
        raise ChangedWeights(file, faults, binder)
    if card.bank is not None:
        binder.bank = _read_part(folder / BANK, card, read_bank(folder / BANK, card.bank))
    if card.fuser is not None:
        fuser = read_fuser(folder / FUSER, card.fuser, card.width)
        binder.fuser = _read_part(folder / FUSER, card, fuser)
    return binder


def make_unknown_modality_error(name: object, known: Iterable[str]) -> PluginError:
    """Make the error of a modality that a bundle does not have, with the one that may be meant."""
    names = sorted(known)
    hint = did_you_mean(str(name), names)
    listed = f"it has {', '.join(names)}"
    return PluginError(f"this binder has no modality '{name}'; {f'{hint} ' if hint else ''}{listed}")


def _read_part(file: Path, card: Card, part: P | None) -> P | None:
    """Return a part of a bundle that its card names; None where its file is not there.

    Raises:
        CheckpointError: It is of another model.
    """
    if part is None:
        _log.info("%s: loaded without its %s: there is no %s", file.parent, file.stem, file.name)
        return None
    try:
        return part.check_model(card.width, card.digests)
    except DataError as error:
        raise CheckpointError(f"{file}: {error}; or remove it") from None


def from_pretrained(
    make: Callable[..., B], name: str, *, revision: str | None = None, only: Collection[str] | None = None
) -> B:
    """Read a bundle from a folder, or from the Hugging Face hub with its base. See `load`.

    Raises:
        CheckpointError: There is neither, or it is no bundle.
    """
    folder = fetch_folder(name, _FILES, revision)
    return load(make, folder, download=not os.path.isdir(name), only=only)


def push_to_hub(binder: SupportsBundle, name: str, *, private: bool = False) -> str:
    """Publish a bundle on the Hugging Face hub and return its address.

    Raises:
        GeobindError: The hub refuses it or cannot be reached.
    """
    for modality in binder.modalities:
        plugin = plugins.registry().plugins.get(modality)
        if plugin is not None and not plugin.source.published:
            raise PluginError(
                f"cannot publish '{name}': '{modality}' is of {plugin.source}, which others cannot install; "
                f"make a package: geobind new modality {modality}"
            )
    with tempfile.TemporaryDirectory() as folder:
        return publish(save(binder, Path(folder)), name, private=private)


def _base_weights(folder: Path, base: str, *, download: bool = True) -> Path:
    """Return the weights file of the whole bundle that a small one in `folder` changes."""
    try:
        base_folder = fetch_folder(base, _FILES, download=download)
    except CheckpointError as error:
        if download:
            raise
        raise CheckpointError(
            f"{folder}: holds only what it changes of the bundle '{base}' of a hub, which a card cannot make "
            f"geobind fetch; name it yourself: Binder.load({folder.name!r}, base={base!r}), or put it beside"
        ) from error
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
        raise PluginError(needs if registry.clashes(name) else f"{needs}\n  {_explain_missing(name, origin)}")
    plugin = registry.plugins[name]
    if origin and (plugin.source.distribution, plugin.source.version) != (
        origin.distribution,
        origin.version,
    ):
        _log.warning("%s: '%s' was made with %s; installed is %s", folder, name, made_with, plugin.source)
    try:
        return plugin.cls.model_validate(options, context={BUNDLED: True})
    except ValidationError as error:
        raise CheckpointError(
            f"{folder / CARD}: {plugin.source} does not take the bundle's options of '{name}' "
            f"(made with {made_with}): {format_first_fault(error, 'modalities', name)}"
        ) from None


def _explain_missing(name: str, origin: Origin | None) -> str:
    """Return how to get the plugin that a bundle needs."""
    if origin is None:
        return f"install a plugin that provides it, such as geobind-modality-{name}"
    if requirement := plugins.name_requirement(origin.distribution, origin.version):
        return f"install it: pip install {requirement}"
    if plugins.is_distribution(origin.distribution):
        return f"install {shorten(origin.distribution, 100)}, in the version that its publisher names"
    return (
        "it was never installed there: name its file, `geobind --plugin FILE.py COMMAND ...` or "
        "geobind.register('FILE.py'), or in a notebook run the cell of its class, under @geobind.register"
    )


def _origin(name: str, cls: type[Modality]) -> Origin:
    """Return the plugin of a modality.

    Raises:
        PluginError: No plugin provides its class, so that nobody could load the bundle.
    """
    plugin = plugins.registry().plugins.get(name)
    if plugin is None:
        raise PluginError(
            f"'{name}' is not saved: no plugin provides {cls.__module__}.{cls.__qualname__}, so the bundle "
            "could not be loaded; write @geobind.register above the class to load it where the class is "
            f"registered, or make a package of it to load it anywhere: geobind new modality {name}"
        )
    return Origin(distribution=plugin.source.distribution, version=plugin.source.version)


def portable_options(modality: Modality) -> dict[str, Any]:
    """Return a modality's options as a bundle states them, the same on every machine."""
    return _without_folders(modality.model_dump(mode="json"))


def _without_folders(value: Any) -> Any:
    """Replace absolute paths by their names: they would disclose where the author's files lie."""
    if isinstance(value, dict):
        return {key: _without_folders(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_without_folders(child) for child in value]
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value
