"""Hashes of weights and embeddings, and the comparison of two bundles: which indexes stay valid."""

# N rows, D width

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from geobind.utils.system import hash_module

if TYPE_CHECKING:
    from torch import Tensor

    from geobind.binder import Binder


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModalityState(_FrozenModel):
    """What a modality was at a moment."""

    weights: str  # SHA-256 of its encoder
    rows: str = ""  # of the keys of the rows that were embedded, and of where they are from
    count: int = 0
    embeddings: str = ""  # SHA-256 of every bit of their embeddings; empty where there are no rows


class StageProof(_FrozenModel):
    """The modalities before and after a stage, all of them embedded in the same way."""

    stage: str
    trained: tuple[str, ...]
    before: dict[str, ModalityState]
    after: dict[str, ModalityState]
    keys: dict[str, tuple[str, ...]] = {}  # of the rows, by modality
    made_by: dict[str, str] = {}  # versions, device, rows of a forward pass

    @property
    def identical(self) -> list[str]:
        """The modalities whose weights and embeddings the stage left as they were, to the bit."""
        return [name for name, state in self.after.items() if state == self.before.get(name)]

    @property
    def changed(self) -> list[str]:
        """The others."""
        return [name for name in self.after if name not in self.identical]


class Proof(_FrozenModel):
    """The proof of every stage, in their order."""

    stages: tuple[StageProof, ...] = ()

    def breaks(self) -> list[str]:
        """Say what changed between two stages, where nothing may."""
        found: list[str] = []
        for one, two in zip(self.stages, self.stages[1:], strict=False):
            for name, was in one.after.items():
                now = two.before.get(name)
                said = now and describe_difference(was, now)
                if said:
                    found.append(f"'{name}' between '{one.stage}' and '{two.stage}': {said}")
        return found


def hash_embeddings(embedding_ND: Tensor) -> str:
    """Return the SHA-256 of embeddings: their shape, type and every bit."""
    array = embedding_ND.detach().cpu().contiguous().numpy()
    head = f"{array.dtype} {array.shape}\n".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def describe_difference(was: ModalityState, now: ModalityState) -> str:
    """Say in what two moments of a modality differ; nothing if in nothing that both tell."""
    if was.weights != now.weights:
        return "its weights are others"
    if was.rows == now.rows and was.embeddings != now.embeddings:
        return "its weights are the same, but it embeds the same rows to other bits"
    return ""


Verdict = Literal["same", "unsure", "changed", "new", "gone"]


class IndexFinding(BaseModel):
    """What became of a modality's embeddings between two bundles."""

    model_config = ConfigDict(frozen=True)

    modality: str
    verdict: Verdict
    reason: str

    @property
    def index_is_valid(self) -> bool:
        """Whether an index of the old embeddings can be used on."""
        return self.verdict == "same"


def compare_bundles(new: Binder, old: Binder) -> list[IndexFinding]:
    """Tell which modalities of an old bundle embed as they did, so that indexes of them stay valid.

    Weights are hashed here and now. Where both bundles' proofs tell of embeddings of the same rows, these
    decide; else a plugin of another version, or other options, leave it open.

    Args:
        new: A binder, as loaded from its bundle.
        old: Another, of earlier.
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
    if hash_module(new.encoders[name]) != hash_module(old.encoders[name]):
        return found("changed", "the weights of its encoder are others")
    shown = _last_state(new, name), _last_state(old, name)
    if shown[0] and shown[1] and shown[0].rows == shown[1].rows and shown[0].rows:
        if shown[0].embeddings != shown[1].embeddings:
            made = " and ".join(dict.fromkeys(_describe_origin(binder) for binder in (new, old)))
            return found("unsure", f"the same weights embed the same rows to other bits ({made})")
        same = f"the same weights, and the same bits for {shown[0].count} rows"
        return found("same", same)
    said, was = (b.modalities[name].model_dump(mode="json") for b in (new, old))
    if said != was:
        keys = ", ".join(key for key in said if said[key] != was.get(key))
        told = f"its options are others ({keys}), and no rows were embedded with both"
        return found("unsure", f"the same weights, but {told}")
    versions = [_describe_plugin(binder, name) for binder in (new, old)]
    if versions[0] != versions[1]:
        told = f"made with {versions[0]}, and with {versions[1]} before; no rows were embedded with both"
        return found("unsure", f"the same weights, but {told}")
    return found("same", "the same weights, options and plugin")


def find_faults(binder: Binder) -> list[str]:
    """Say what of a bundle is not what its card says: weights that were changed after it was written."""
    if binder.card is None:
        return []
    found = [
        f"'{name}': its weights are not those that the card names; the file was changed"
        for name, known in binder.card.digests.items()
        if name in binder.modalities and hash_module(binder.encoders[name]) != known
    ]
    return found + (binder.card.proof.breaks() if binder.card.proof else [])


def _last_state(binder: Binder, name: str) -> ModalityState | None:
    """What the last stage left of a modality, if these are still its weights."""
    proof = binder.card.proof if binder.card else None
    state = proof.stages[-1].after.get(name) if proof and proof.stages else None
    return state if state and state.weights == hash_module(binder.encoders[name]) else None


def _describe_origin(binder: Binder) -> str:
    """What computed the last stage's embeddings."""
    made = binder.card.proof.stages[-1].made_by if binder.card and binder.card.proof else {}
    return ", ".join(made.get(part, "?") for part in ("torch", "machine", "device"))


def _describe_plugin(binder: Binder, name: str) -> str:
    origin = binder.card.plugins.get(name) if binder.card else None
    return f"{origin.distribution} {origin.version}" if origin else "an unknown plugin"
