"""Hashes of weights and embeddings, and the comparison of two bundles: which indexes stay valid."""

# N rows, D width

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from geobind.bundles.delta import group_by_encoder
from geobind.errors import CheckpointError
from geobind.utils.system import hash_module, hash_tensors

if TYPE_CHECKING:
    from geobind.binder import Binder


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModalityState(_FrozenModel):
    """Hashes of a modality's weights and embeddings at one moment."""

    weights: str  # SHA-256 of its encoder
    rows: str = ""  # SHA-256 of the keys of the embedded rows, and of the table they come from
    count: int = 0
    embeddings: str = ""  # SHA-256 of every bit of their embeddings; empty without rows


class StageProof(_FrozenModel):
    """States of all modalities before and after a stage, embedded in the same way."""

    stage: str
    trained: tuple[str, ...]
    before: dict[str, ModalityState]
    after: dict[str, ModalityState]
    keys: dict[str, tuple[str, ...]] = {}  # of the rows, by modality
    made_by: dict[str, str] = {}  # versions, device, rows of a forward pass

    @property
    def identical(self) -> list[str]:
        """The modalities whose weights and embeddings are bit-identical before and after the stage."""
        return [name for name, state in self.after.items() if state == self.before.get(name)]

    @property
    def changed(self) -> list[str]:
        """The modalities that are not identical."""
        return [name for name in self.after if name not in self.identical]


class Proof(_FrozenModel):
    """Proofs of all stages, in order."""

    stages: tuple[StageProof, ...] = ()

    def find_breaks(self) -> list[str]:
        """Return a line for each modality that changed between two stages, where nothing may change."""
        lines: list[str] = []
        for one, two in zip(self.stages, self.stages[1:], strict=False):
            for name, was in one.after.items():
                now = two.before.get(name)
                change = now and describe_difference(was, now)
                if change:
                    lines.append(f"'{name}' between '{one.stage}' and '{two.stage}': {change}")
        return lines


def hash_embeddings(embedding_ND: Tensor) -> str:
    """Return the SHA-256 of embeddings: their shape, type and every bit."""
    array = embedding_ND.detach().cpu().contiguous().numpy()
    head = f"{array.dtype} {array.shape}\n".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def describe_difference(was: ModalityState, now: ModalityState) -> str:
    """Return how two states of a modality differ, empty if they agree in all that both record."""
    if was.weights != now.weights:
        return "its weights changed"
    if was.rows == now.rows and was.embeddings != now.embeddings:
        return "its weights are the same, but its embeddings of the same rows changed"
    return ""


Verdict = Literal["same", "unsure", "changed", "new", "gone"]


class IndexFinding(BaseModel):
    """Verdict on whether a modality's old embeddings are still valid."""

    model_config = ConfigDict(frozen=True)

    modality: str
    verdict: Verdict
    reason: str

    @property
    def index_is_valid(self) -> bool:
        """Whether an index of the old embeddings stays usable."""
        return self.verdict == "same"


def compare_bundles(new: Binder, old: Binder) -> list[IndexFinding]:
    """Return for each modality whether it embeds as in an old bundle, so that indexes of it stay valid.

    Weights are hashed anew. Where both bundles' proofs hold embeddings of the same rows, these decide; else
    a plugin of another version, or other options, leave it open.

    Args:
        new: A binder, as loaded from its bundle.
        old: An earlier one.
    """
    names = dict.fromkeys((*old.modalities, *new.modalities))
    return [_compare_modality(name, new, old) for name in names]


def _compare_modality(name: str, new: Binder, old: Binder) -> IndexFinding:
    def found(verdict: Verdict, reason: str) -> IndexFinding:
        return IndexFinding(modality=name, verdict=verdict, reason=reason)

    if name not in new.modalities:
        return found("gone", "the new bundle has no such modality")
    if name not in old.modalities:
        return found("new", "the old bundle has no such modality")
    if new.width != old.width:
        return found("changed", f"embeddings are {new.width} wide and were {old.width}")
    weights = hash_module(new.encoders[name])
    if weights != hash_module(old.encoders[name]):
        return found("changed", "the weights of its encoder changed")
    shown = _last_state(new, name, weights), _last_state(old, name, weights)
    if shown[0] and shown[1] and shown[0].rows == shown[1].rows and shown[0].rows:
        if shown[0].embeddings != shown[1].embeddings:
            made = " and ".join(dict.fromkeys(_describe_origin(binder) for binder in (new, old)))
            return found("unsure", f"the same weights give other embeddings of the same rows ({made})")
        same = f"the same weights, and the same bits for {shown[0].count} rows"
        return found("same", same)
    options, old_options = (b.modalities[name].model_dump(mode="json") for b in (new, old))
    if options != old_options:
        keys = ", ".join(key for key in options if options[key] != old_options.get(key))
        reason = f"its options changed ({keys}), and no rows were embedded with both"
        return found("unsure", f"the same weights, but {reason}")
    versions = [_describe_plugin(binder, name) for binder in (new, old)]
    if versions[0] != versions[1]:
        reason = f"made with {versions[0]}, and with {versions[1]} before; no rows were embedded with both"
        return found("unsure", f"the same weights, but {reason}")
    return found("same", "the same weights, options and plugin")


def find_faults(binder: Binder) -> list[str]:
    """Return a line for each modality whose weights are not those that the bundle's card names."""
    if binder.card is None:
        return []
    digests = {name: hash_module(encoder) for name, encoder in binder.encoders.items()}
    lines = _compare_digests(digests, binder.card.digests)
    return lines + (binder.card.proof.find_breaks() if binder.card.proof else [])


class ChangedWeights(CheckpointError):
    """The weights of a bundle are not those that its card names, or not finite.

    Args:
        file: Of the weights.
        faults: A line for each encoder, and one for weights that are not finite.
        binder: The binder with these weights, for whoever looks into what changed.
    """

    def __init__(self, file: Path, faults: Sequence[str], binder: object) -> None:
        super().__init__(f"{file}: {'; '.join(faults)}; fetch or save the bundle again")
        self.faults, self.binder = faults, binder


def check_weights(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    modalities: Iterable[str],
    digests: Mapping[str, str],
) -> list[str]:
    """Return what is wrong with the weights of a bundle, empty if they are those that its card names.

    Args:
        tensors: The weights; each name begins with the modality's.
        own: Those of the encoders as they are built: a buffer may hold the infinities that it was built with.
        modalities: The modalities of the card.
        digests: The SHA-256 of each encoder's weights, by the card.
    """
    encoders = group_by_encoder(tensors)
    lines = _compare_digests({name: hash_tensors(encoders.get(name, {})) for name in modalities}, digests)
    broken = find_not_finite(tensors, own)
    return [*lines, broken] if broken else lines


def find_not_finite(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None) -> str:
    """Return which weights hold numbers that are not finite, empty for none.

    Args:
        tensors: The weights.
        own: Others of the same names; what is equal there is right.
    """
    broken = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point()
        and tensor.numel()
        and not all(bound.isfinite() for bound in _widest(tensor).aminmax())
        and not (own is not None and key in own and torch.equal(own[key].to(tensor.dtype), tensor))
    ]
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    return f"the weights {broken[0]}{more} are not finite" if broken else ""


def _widest(tensor: Tensor) -> Tensor:
    """Return a tensor in a type that torch can compare on a CPU."""
    return tensor.detach() if tensor.element_size() > 2 else tensor.detach().float()


def _compare_digests(digests: Mapping[str, str], known: Mapping[str, str]) -> list[str]:
    """Return a line for each encoder whose digest is another than the card's, or is not in the card."""
    return [
        f"'{name}': its weights are not those that the card names; the file was changed after it was written"
        if name in known
        else f"'{name}': the card names no digest of its weights; it was changed after it was written"
        for name, digest in digests.items()
        if known.get(name) != digest
    ]


def _last_state(binder: Binder, name: str, weights: str) -> ModalityState | None:
    """Return a modality's state after the last stage, None if its weights have changed since."""
    proof = binder.card.proof if binder.card else None
    state = proof.stages[-1].after.get(name) if proof and proof.stages else None
    return state if state and state.weights == weights else None


def _describe_origin(binder: Binder) -> str:
    """Return the versions and device that computed the last stage's embeddings."""
    made = binder.card.proof.stages[-1].made_by if binder.card and binder.card.proof else {}
    return ", ".join(made.get(part, "?") for part in ("torch", "machine", "device"))


def _describe_plugin(binder: Binder, name: str) -> str:
    origin = binder.card.plugins.get(name) if binder.card else None
    return f"{origin.distribution} {origin.version}" if origin else "an unknown plugin"
