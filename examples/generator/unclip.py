"""Hand a binder's embeddings to an unCLIP pipeline of diffusers in place of those of CLIP's image encoder.

    pipe = StableUnCLIPImg2ImgPipeline.from_pretrained(...)       # or UnCLIPImageVariationPipeline
    adapter = UnclipAdapter.fit(binder.embed("satellite", tiles), clip_embeds_of_the_same_tiles)
    images = adapter.generate(pipe, binder.embed("audio", "rain.wav"), num_inference_steps=20).images

An unCLIP decoder draws from the image embedding of one CLIP, as its `CLIPVisionModelWithProjection` gives it:
of that CLIP's width, and not of unit length. A binder whose images are embedded by this very CLIP, frozen,
needs no more than the length (`UnclipAdapter.same_clip`). Any other is mapped linearly; the map is fitted on
images that both have embedded.
"""

# N embeddings, D width of the binder's space, C width of CLIP's image embeddings

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from geobind.errors import DataError
from geobind.evaluation import ridge

# What a pipeline's `__call__` calls the embeddings: Stable unCLIP, and Karlo's unCLIP.
ARGUMENTS = ("image_embeds", "image_embeddings")


@dataclass(frozen=True, eq=False)
class UnclipAdapter:
    """A linear map from a binder's space to the image embeddings of a CLIP.

    Args:
        weight_DC: The map; None where both are one space.
        bias_C: Added to what is mapped.
        width: Width C of CLIP's image embeddings.
        length: Their mean length, which every result is given.
    """

    weight_DC: NDArray[np.float64] | None
    bias_C: NDArray[np.float64] | None
    width: int
    length: float

    @classmethod
    def same_clip(cls, width: int, length: float) -> UnclipAdapter:
        """Return the adapter of a binder that embeds images by the pipeline's own CLIP, frozen.

        Args:
            width: Of both spaces.
            length: Mean length of CLIP's image embeddings before they are scaled to 1.
        """
        return cls(None, None, width, length)

    @classmethod
    def fit(cls, binder_ND: Any, clip_NC: Any) -> UnclipAdapter:
        """Fit the map on images that both have embedded, by ridge regression.

        Args:
            binder_ND: Embeddings of the binder.
            clip_NC: `image_embeds` of CLIP's `CLIPVisionModelWithProjection`, of the same images.

        Raises:
            DataError: Different numbers of rows, fewer than three, or one that is not finite.
        """
        x_ND, y_NC = (np.asarray(rows, dtype=np.float64) for rows in (binder_ND, clip_NC))
        if x_ND.ndim != 2 or y_NC.ndim != 2 or len(x_ND) != len(y_NC):
            raise DataError(f"embeddings of shapes {x_ND.shape} and {y_NC.shape} are not of the same images")
        fitted = ridge(x_ND, y_NC)
        length = float(np.linalg.norm(y_NC, axis=1).mean())
        return cls(fitted.weight_DT, fitted.bias_T, y_NC.shape[1], length)

    def image_embeds(self, x_ND: Any, *, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
        """Return embeddings as a pipeline takes them: (N, C), of the mean length of CLIP's.

        Args:
            x_ND: Embeddings of the binder, of any modality, or composed.
            dtype: Of the result: that of the pipeline's weights.
            device: Of the result.

        Raises:
            DataError: Another width than the adapter was made for.
        """
        x_ND = torch.as_tensor(x_ND).detach().to("cpu", torch.float64)
        taken = self.width if self.weight_DC is None else len(self.weight_DC)
        if x_ND.ndim != 2 or x_ND.shape[1] != taken:
            raise DataError(
                f"embeddings of shape {tuple(x_ND.shape)}, and the adapter takes a width of {taken}: fit it "
                "on embeddings of this binder"
            )
        if self.weight_DC is not None:
            x_ND = x_ND @ torch.from_numpy(self.weight_DC) + torch.from_numpy(self.bias_C)
        return (F.normalize(x_ND, dim=1) * self.length).to(device, dtype)

    def generate(self, pipe: Any, x_ND: Any, **options: Any) -> Any:
        """Run a pipeline on embeddings, and return what it returns.

        Args:
            pipe: A `StableUnCLIPImg2ImgPipeline`, an `UnCLIPImageVariationPipeline`, or what is called alike.
            x_ND: As `image_embeds` takes them.
            options: Of the pipeline's call; a prompt is empty by default.

        Raises:
            DataError: The pipeline takes no image embeddings, or those of another width.
        """
        taken = inspect.signature(type(pipe).__call__).parameters
        name = next((name for name in ARGUMENTS if name in taken), None)
        if name is None:
            raise DataError(f"{type(pipe).__name__} takes neither {' nor '.join(ARGUMENTS)}: it is no unCLIP")
        width = find_width(pipe)
        if width is not None and width != self.width:
            raise DataError(
                f"{type(pipe).__name__} draws from image embeddings {width} wide, the adapter makes "
                f"{self.width}: fit it on those of the pipeline's own image encoder"
            )
        weights = getattr(pipe, "unet", None) or getattr(pipe, "decoder", None)
        dtype, device = getattr(weights, "dtype", torch.float32), getattr(pipe, "device", "cpu")
        embeds_NC = self.image_embeds(x_ND, dtype=dtype, device=device)
        if "prompt" in taken and "prompt_embeds" not in options:
            options.setdefault("prompt", [""] * len(embeds_NC))
        return pipe(**{name: embeds_NC}, **options)


def find_width(pipe: Any) -> int | None:
    """Return the width of the image embeddings that a pipeline takes; None where it does not state it."""
    config = getattr(getattr(pipe, "image_encoder", None), "config", None)
    return getattr(config, "projection_dim", None)
