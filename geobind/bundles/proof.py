"""Proof that embeddings stayed what they were: hashes of fixed rows' embeddings around each stage."""

# N rows, D width

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class State(_Value):
    """What a modality was at a moment."""

    weights: str  # SHA-256 of its encoder
    rows: str = ""  # of the keys of the rows that were embedded, and of where they are from
    count: int = 0
    embeddings: str = ""  # SHA-256 of every bit of their embeddings; empty where there are no rows


class StageProof(_Value):
    """The modalities before and after a stage, all of them embedded in the same way."""

    stage: str
    trained: tuple[str, ...]
    before: dict[str, State]
    after: dict[str, State]
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


class Proof(_Value):
    """The proof of every stage, in their order."""

    stages: tuple[StageProof, ...] = ()

    def breaks(self) -> list[str]:
        """Say what changed between two stages, where nothing may."""
        found: list[str] = []
        for one, two in zip(self.stages, self.stages[1:], strict=False):
            for name, was in one.after.items():
                now = two.before.get(name)
                said = now and difference(was, now)
                if said:
                    found.append(f"'{name}' between '{one.stage}' and '{two.stage}': {said}")
        return found


def digest_of_embeddings(embedding_ND: Tensor) -> str:
    """Return the SHA-256 of embeddings: their shape, type and every bit."""
    array = embedding_ND.detach().cpu().contiguous().numpy()
    head = f"{array.dtype} {array.shape}\n".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def difference(was: State, now: State) -> str:
    """Say in what two moments of a modality differ; nothing if in nothing that both tell."""
    if was.weights != now.weights:
        return "its weights are others"
    if was.rows == now.rows and was.embeddings != now.embeddings:
        return "its weights are the same, but it embeds the same rows to other bits"
    return ""
