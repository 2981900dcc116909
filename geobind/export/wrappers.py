"""Binders as models of other libraries: open_clip, sentence-transformers, MTEB."""

# B inputs of a batch, N inputs, D width

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import geobind
from geobind.errors import DataError, PluginError
from geobind.inference import collate, prepare_input, to_device
from geobind.scoring import add_embeddings
from geobind.utils.hashing import short_fingerprint

if TYPE_CHECKING:
    from geobind.binder import Binder

# The kinds of input that other libraries tell apart, by the widget of a modality.
_KINDS = {"text": "text", "image": "image", "sound": "audio"}


class OpenClipModel(nn.Module):
    """Two modalities of a binder with the methods of an open_clip CLIP.

    Args:
        binder: The encoders.
        image: The modality of `encode_image`.
        text: The modality of `encode_text`.
    """

    def __init__(self, binder: Binder, image: str, text: str) -> None:
        super().__init__()
        self.binder, self.image, self.text = binder, image, text
        scale = torch.tensor(1 / binder.temperature(image, text).value)
        self.logit_scale = nn.Parameter(scale.log(), requires_grad=False)

    def encode_image(self, image: Any, normalize: bool = False) -> Tensor:
        """Embed prepared images as (B, D), which is of unit length with and without `normalize`."""
        return self.binder(self.image, to_device(image, self.binder.device))

    def encode_text(self, text: Any, normalize: bool = False) -> Tensor:
        """Embed tokens as (B, D), which is of unit length with and without `normalize`."""
        return self.binder(self.text, to_device(text, self.binder.device))

    def forward(self, image: Any, text: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Embed images and tokens; the third value is the scale of their similarities."""
        return self.encode_image(image), self.encode_text(text), self.logit_scale.exp()


def as_open_clip(
    binder: Binder, image: str, text: str
) -> tuple[OpenClipModel, Callable[[Any], Tensor], Callable[..., Tensor]]:
    """Return a binder as open_clip's model, image preprocessing and tokenizer.

    Args:
        binder: The encoders.
        image: The modality of images.
        text: The modality of texts.

    Raises:
        PluginError: The binder has no such modality.
    """
    images, texts = binder.modality(image), binder.modality(text)

    def preprocess(raw: Any) -> Tensor:
        prepared = _require_tensor(images.prepare(raw), image)
        # As open_clip's: users cast images to float, and floats are taken for values from 0 to 1.
        return prepared.float() / 255 if prepared.dtype == torch.uint8 else prepared

    def tokenize(words: str | Sequence[str], context_length: int | None = None) -> Tensor:
        listed = [words] if isinstance(words, str) else list(words)
        return torch.stack([_require_tensor(texts.prepare(line), text) for line in listed])

    return OpenClipModel(binder, image, text).eval(), preprocess, tokenize


class _EncoderModule(nn.Module):
    """The first and only module of a sentence-transformers model."""

    def __init__(self, binder: Binder, name: str) -> None:
        super().__init__()
        self.name, self.width, self.kind = name, binder.width, binder.modality(name)
        self.encoder = binder.encoders[name]
        self._embed = [binder.forward]  # in a list: the binder's other encoders are no part of this module

    @property
    def modalities(self) -> list[str]:
        return [_KINDS.get(self.kind.widget, self.kind.widget)]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        raws = [f"{prompt or ''}{raw}" if isinstance(raw, str) else _unpack(raw) for raw in inputs]
        batch: Any = collate([prepare_input(self.kind, number, raw) for number, raw in enumerate(raws)])
        return {"inputs": batch} if isinstance(batch, Tensor) else batch

    def tokenize(self, texts: Sequence[Any], **_: Any) -> dict[str, Tensor]:
        return self.preprocess(texts)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        batch = {key: value for key, value in features.items() if isinstance(value, Tensor)}
        embedding_BD = self._embed[0](self.name, batch["inputs"] if "inputs" in batch else batch)
        return {**features, "sentence_embedding": embedding_BD}

    def get_embedding_dimension(self) -> int:
        return self.width

    get_sentence_embedding_dimension = get_embedding_dimension


def as_sentence_transformer(binder: Binder, modality: str) -> Any:
    """Return an encoder as a `SentenceTransformer`, whose `encode` equals `Binder.embed`.

    Args:
        binder: The encoders.
        modality: The modality that it embeds: sentences, or images or sounds.

    Raises:
        PluginError: The binder has no such modality, or sentence-transformers is not installed.
    """
    module = _EncoderModule(binder, modality)
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PluginError(
            f"this needs sentence-transformers ({error}): pip install sentence-transformers"
        ) from error
    return SentenceTransformer(modules=[module], device=str(binder.device), similarity_fn_name="cosine")


class MtebEncoder:
    """A binder with the methods that MTEB asks of an encoder.

    Args:
        binder: The encoders.
        modalities: Which of its modalities embeds MTEB's `text`, `image` and `audio`.

    Raises:
        PluginError: The binder has no such modality.
    """

    def __init__(self, binder: Binder, **modalities: str) -> None:
        self.binder, self.by_kind = binder, modalities
        for kind, name in modalities.items():
            if kind not in _KINDS.values():
                raise PluginError(f"MTEB has no inputs called '{kind}'; it has {', '.join(_KINDS.values())}")
            binder.modality(name)

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> Any:
        """Embed batches, each a mapping of lists, as a numpy array (N, D).

        Of inputs with several parts, such as an image and a text, the embeddings are added.

        Raises:
            DataError: A batch has no part that a modality was given for.
        """
        parts: list[Tensor] = []
        for batch in inputs:
            embedded = {
                name: self.binder.embed(name, [_unpack(raw) for raw in batch[kind]], progress=False)
                for kind, name in self.by_kind.items()
                if kind in batch
            }
            if not embedded:
                raise DataError(f"inputs of {', '.join(batch)}; this encoder takes {', '.join(self.by_kind)}")
            parts.append(
                add_embeddings(embedded, None) if len(embedded) > 1 else next(iter(embedded.values()))
            )
        return torch.cat(parts).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of every row of one with every row of the other."""
        return self.binder.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of each row of one with the same row of the other."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)

    @property
    def mteb_model_meta(self) -> Any:
        """Return what MTEB records of a model.

        Raises:
            PluginError: MTEB is not installed.
        """
        try:
            from mteb.models.model_meta import ModelMeta  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise PluginError(f"this needs MTEB ({error}): pip install mteb") from error
        card = self.binder.card
        unknown = (
            "loader release_date languages memory_usage_mb max_tokens license open_weights "
            "public_training_code public_training_data training_datasets"
        )
        return ModelMeta(
            **dict.fromkeys(unknown.split()),
            name=f"geobind/{card.name if card else 'binder'}",
            revision=short_fingerprint(card.digests) if card else geobind.__version__,
            n_parameters=sum(parameter.numel() for parameter in self.binder.parameters()),
            embed_dim=self.binder.width,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            modalities=sorted(self.by_kind),
        )


def _unpack(raw: Any) -> Any:
    """Return a decoded sound of the `datasets` library, a mapping, as geobind takes it."""
    if isinstance(raw, Mapping) and "array" in raw and "sampling_rate" in raw:
        return raw["array"], raw["sampling_rate"]
    return raw


def _require_tensor(prepared: Any, name: str) -> Tensor:
    if not isinstance(prepared, Tensor):
        raise DataError(f"'{name}' is prepared as several tensors, which open_clip has no place for")
    return prepared
