"""Building blocks for modalities: encoders from open_clip, timm and transformers, heads, options, weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.towers.audio import SoundSpec as SoundSpec
    from geobind.towers.audio import prepare_sound as prepare_sound
    from geobind.towers.audio import sound_spec as sound_spec
    from geobind.towers.bands import BandOptions as BandOptions
    from geobind.towers.clip import prepare_text as prepare_text
    from geobind.towers.clip import text_encoder as text_encoder
    from geobind.towers.htsat import htsat_encoder as htsat_encoder
    from geobind.towers.htsat import prepare_fused as prepare_fused
    from geobind.towers.images import ImageSpec as ImageSpec
    from geobind.towers.images import prepare_image as prepare_image
    from geobind.towers.options import AudioAugment as AudioAugment
    from geobind.towers.options import AudioOptions as AudioOptions
    from geobind.towers.options import ClipOptions as ClipOptions
    from geobind.towers.options import HeadKind as HeadKind
    from geobind.towers.options import HtsatOptions as HtsatOptions
    from geobind.towers.options import ImageOptions as ImageOptions
    from geobind.towers.options import PhotoAugment as PhotoAugment
    from geobind.towers.options import TileAugment as TileAugment
    from geobind.towers.options import TimmOptions as TimmOptions
    from geobind.towers.tower import Tower as Tower
    from geobind.towers.tower import make_head as make_head
    from geobind.towers.tower import mel_encoder as mel_encoder
    from geobind.towers.vision import image_encoder as image_encoder
    from geobind.towers.vision import image_spec as image_spec
    from geobind.towers.weights import load_strictly as load_strictly
    from geobind.towers.weights import read_weights as read_weights

_HOMES = {
    "AudioAugment": "geobind.towers.options",
    "AudioOptions": "geobind.towers.options",
    "BandOptions": "geobind.towers.bands",
    "ClipOptions": "geobind.towers.options",
    "HeadKind": "geobind.towers.options",
    "HtsatOptions": "geobind.towers.options",
    "ImageOptions": "geobind.towers.options",
    "ImageSpec": "geobind.towers.images",
    "PhotoAugment": "geobind.towers.options",
    "SoundSpec": "geobind.towers.audio",
    "TileAugment": "geobind.towers.options",
    "TimmOptions": "geobind.towers.options",
    "Tower": "geobind.towers.tower",
    "htsat_encoder": "geobind.towers.htsat",
    "image_encoder": "geobind.towers.vision",
    "image_spec": "geobind.towers.vision",
    "load_strictly": "geobind.towers.weights",
    "make_head": "geobind.towers.tower",
    "mel_encoder": "geobind.towers.tower",
    "prepare_fused": "geobind.towers.htsat",
    "prepare_image": "geobind.towers.images",
    "prepare_sound": "geobind.towers.audio",
    "prepare_text": "geobind.towers.clip",
    "read_weights": "geobind.towers.weights",
    "sound_spec": "geobind.towers.audio",
    "text_encoder": "geobind.towers.clip",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
