"""Binder: encoders of any number of modalities in one space, and what one can do with their embeddings."""

# B inputs in a batch, N inputs, M references, C classes, D width of the space

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from geobind.data.loading import collate
from geobind.errors import DataError, PluginError
from geobind.inputs import class_examples, grouped, is_many, moved, prepared, rows_of, still
from geobind.modality import Modality
from geobind.progress import track
from geobind.seeds import seed_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geobind.bundle import Card


def unit(raw_BD: Tensor) -> Tensor:
    """Scale embeddings to unit length, in float32: the one place where geobind normalises."""
    return functional.normalize(raw_BD.float(), dim=-1)


class Binder(nn.Module):
    """Encoders that share one embedding space.

    Args:
        modalities: The modalities, by name.
        width: Length D of an embedding.
        pretrained: False builds the encoders without reading any weights.
        seed: Makes random weights the same every time.
        card: What is known of how the weights came about; saved with them.

    Raises:
        GeobindError: An encoder cannot be built: weights are missing, or it cannot have this width.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        width: int,
        *,
        pretrained: bool = True,
        seed: int | None = None,
        card: Card | None = None,
    ) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.width = width
        self.card = card
        self.encoders = nn.ModuleDict()
        for name, modality in modalities.items():
            if seed is not None:
                # Seeded one by one: a further modality leaves the others' random weights as they were.
                torch.manual_seed(seed_of(seed, "encoder", name))
            self.encoders[name] = modality.encoder(width, pretrained=pretrained)
        self.eval()

    def forward(self, name: str, batch: Any) -> Tensor:
        """Embed a prepared batch, (B, ...), as unit-length float32 (B, D)."""
        embedding_BD = unit(self.encoders[name](batch))
        if embedding_BD.ndim != 2 or embedding_BD.shape[1] != self.width:
            raise PluginError(
                f"the encoder of '{name}' gives {tuple(embedding_BD.shape)}, not (batch, {self.width}): "
                f"its `encoder(width)` must end in that width"
            )
        return embedding_BD

    @property
    def device(self) -> torch.device:
        """Where the encoders are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def modality(self, name: str) -> Modality:
        """Return the modality called `name`.

        Raises:
            PluginError: The binder has none of that name.
        """
        if name not in self.modalities:
            known = ", ".join(sorted(self.modalities))
            raise PluginError(f"this binder has no modality '{name}'; it has {known}")
        return self.modalities[name]

    @overload
    def embed(
        self,
        modality: str,
        x: Any,
        *,
        batch_size: int = ...,
        progress: bool | None = ...,
        numpy: Literal[False] = ...,
    ) -> Tensor: ...
    @overload
    def embed(
        self,
        modality: str,
        x: Any,
        *,
        batch_size: int = ...,
        progress: bool | None = ...,
        numpy: Literal[True],
    ) -> NDArray[np.float32]: ...
    def embed(
        self,
        modality: str,
        x: Any,
        *,
        batch_size: int = 64,
        progress: bool | None = None,
        numpy: bool = False,
    ) -> Tensor | NDArray[np.float32]:
        """Embed one raw input, or a list (or any other iterator) of them.

        Args:
            modality: Name of the modality.
            x: One input of a kind the modality accepts (a path, bytes, an image, an array, a string, ...),
                or a list or generator of such inputs. A tuple is one input.
            batch_size: Inputs per forward pass; it changes speed and memory, not the result.
            progress: Show a progress bar; default: when it takes long and a person is watching.
            numpy: Return a numpy array instead of a tensor.

        Returns:
            Unit-length float32 embeddings (N, D) on the CPU, in input order; N is 1 for one input.

        Raises:
            DataError: An input cannot be read; the message names it by its number.
            PluginError: The binder has no such modality.
        """
        kind = self.modality(modality)
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, not {batch_size}")
        inputs = x if is_many(x) else [x]
        total = len(inputs) if isinstance(inputs, Sequence) else None
        parts: list[Tensor] = []
        with still(self.encoders[modality]):
            for group in grouped(track(inputs, f"embedding {modality}", total, progress), batch_size):
                batch = collate([prepared(kind, number, raw) for number, raw in group])
                parts.append(self(modality, moved(batch, self.device)).cpu())
        if not parts:
            raise DataError("nothing to embed: the input is an empty list")
        embedding_ND = torch.cat(parts)
        return embedding_ND.numpy() if numpy else embedding_ND

    @staticmethod
    def similarity(a_ND: Tensor | NDArray[Any], b_MD: Tensor | NDArray[Any]) -> Tensor:
        """Cosine similarity of every row of `a_ND` with every row of `b_MD`: (N, M) in [-1, 1]."""
        a_ND, b_MD = rows_of(a_ND), rows_of(b_MD)
        if a_ND.shape[1] != b_MD.shape[1]:
            raise DataError(f"embeddings of different widths: {a_ND.shape[1]} and {b_MD.shape[1]}")
        return unit(a_ND) @ unit(b_MD).T

    def classify(
        self,
        modality: str,
        x: Any,
        labels: Sequence[str] | Mapping[str, Any],
        *,
        through: str = "text",
        templates: Sequence[str] = ("{}",),
        temperature: float = 0.01,
        batch_size: int = 64,
    ) -> Tensor:
        """Zero-shot classification of inputs by the embeddings of their possible labels.

        Args:
            modality: What `x` is.
            x: One input or a list of them.
            labels: Class names, or a mapping from each class to examples of it in `through`.
            through: The modality that describes the classes.
            templates: Sentences with `{}` for the name; a class is the mean of its embedded sentences
                (CLIP's prompt ensembling, arXiv:2103.00020 section 3.1.4).
            temperature: Similarities are divided by it before the softmax; 0.01 is CLIP's.
            batch_size: Inputs per forward pass.

        Returns:
            Probabilities (N, C), in the order of `labels`.

        Raises:
            DataError: No labels, a template without `{}`, or a temperature that is not positive.
        """
        if not (temperature > 0 and math.isfinite(temperature)):
            raise DataError(f"temperature must be positive, not {temperature}")
        examples = class_examples(labels, templates)
        class_CD = torch.stack([self.embed(through, e, batch_size=batch_size).mean(0) for e in examples])
        similarity_NC = self.similarity(self.embed(modality, x, batch_size=batch_size), class_CD)
        return (similarity_NC / temperature).softmax(dim=-1)

    def compose(self, parts: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> Tensor:
        """Add embeddings of several modalities (ImageBind's arithmetic, arXiv:2305.05665 section 4.3).

        Args:
            parts: One input, or equally many inputs, for each modality.
            weights: How much each counts (default 1 each); negative weights subtract.

        Returns:
            Unit-length embeddings (N, D) of the weighted sums.

        Raises:
            DataError: Nothing to add, a weight without a part, or different numbers of inputs.
        """
        if not parts:
            raise DataError("nothing to compose: name at least one modality and its input")
        if strangers := set(weights or ()) - set(parts):
            raise DataError(f"a weight for {', '.join(sorted(strangers))}, but no input of it")
        embedded = {name: self.embed(name, raw) for name, raw in parts.items()}
        counts = {name: len(rows) for name, rows in embedded.items()}
        if len(set(counts.values())) != 1:
            raise DataError(f"the parts must have equally many inputs, not {counts}")
        return unit(
            torch.stack([(weights or {}).get(name, 1.0) * rows for name, rows in embedded.items()]).sum(0)
        )

    def save(self, folder: str | Path) -> Path:
        """Write a bundle: safetensors, the recipe, provenance and a model card. See `geobind.bundle.save`."""
        from geobind import bundle

        return bundle.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Binder:
        """Read a bundle from a folder, without the network and without pickle. See `geobind.bundle.load`."""
        from geobind import bundle

        return bundle.load(Path(folder))

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> Binder:
        """Read a bundle from a folder, or from the Hugging Face hub by its id (`owner/name`)."""
        from geobind import bundle

        return bundle.from_pretrained(str(name), revision=revision)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Publish the bundle on the Hugging Face hub as `owner/name`; returns its address."""
        from geobind import bundle

        return bundle.push_to_hub(self, name, private=private)
