"""Image towers of CLIP and timm, each library imported where a tower needs it."""

from __future__ import annotations

from geobind.towers.images import ImageSpec
from geobind.towers.options import ClipOptions, ImageOptions
from geobind.towers.tower import NormalisingTower, make_head


def image_spec(options: ImageOptions) -> ImageSpec:
    """Return the image that the tower of these options expects; imports open_clip or timm, builds nothing."""
    chosen = options.chosen
    if isinstance(chosen, ClipOptions):
        from geobind.towers.clip import build_preparation

        size, mean, std, how, squash = build_preparation(chosen)
    else:
        from geobind.towers.timm import backbone_config

        config = backbone_config(chosen)
        size = int(chosen.options.get("img_size", config.input_size[-1]))
        mean, std, how, squash = config.mean, config.std, config.interpolation, False
    squash = squash if options.squash is None else options.squash
    if options.mean is not None and options.std is not None:
        mean, std = options.mean, options.std
    elif len(mean) != options.channels:
        # A backbone made for three bands says nothing of the fourth: all get the mean of its three.
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return ImageSpec(options.channels, options.size or size, mean, std, how, squash, options.mean is None)


def image_encoder(
    options: ImageOptions, width: int, *, pretrained: bool, new_head: bool = True
) -> NormalisingTower:
    """Build the tower of these options.

    Args:
        options: Which tower.
        width: Length of the shared space.
        pretrained: False builds it with random weights, without the network.
        new_head: Whether something will train a head that is made up because the widths differ.

    Raises:
        RecipeError: The options do not fit each other, the model or the width.
        CheckpointError: The weights cannot be had, or are another model's.
    """
    chosen, spec = options.chosen, image_spec(options)
    if isinstance(chosen, ClipOptions):
        from geobind.towers.clip import clip_features, clip_tower, describe_clip

        trunk = clip_tower(chosen, "visual", pretrained=pretrained, size=options.size)
        features, what = clip_features(chosen), describe_clip(chosen)
    else:
        from geobind.towers.timm import backbone, count_features

        trunk = backbone(chosen, channels=spec.channels, size=options.size, pretrained=pretrained)
        features, what = count_features(trunk), chosen.model
    new = new_head or chosen.pretrained is False or not pretrained
    head = make_head(options.head, features, width, what=what, new_allowed=new)
    return NormalisingTower(trunk, head, spec.mean, spec.std)
