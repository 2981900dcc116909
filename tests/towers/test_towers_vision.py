import io

import numpy as np
import open_clip
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from geobind.errors import CheckpointError, DataError, RecipeError
from geobind.towers.images import augment_image, prepare_image
from geobind.towers.options import ImageOptions, PhotoAugment, TileAugment, TimmOptions
from geobind.towers.timm import backbone, count_features
from geobind.towers.tower import channels_last, make_head
from geobind.towers.vision import image_encoder, image_spec


def timm_options(model="test_resnet", pretrained=False, **options):
    return TimmOptions(model=model, pretrained=pretrained, options=options)


def photo(height, width, seed=0):
    """A smooth picture with some grain, as JPEG bytes."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    pixels = np.clip(pixels + random.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


@pytest.mark.parametrize(("height", "width"), [(256, 256), (300, 500), (768, 1024), (120, 90)])
def test_preparation_is_open_clips_but_for_rounding(height, width):
    """Mean and largest difference in normalised units, where one step of 8 bits is 0.014 to 0.015."""
    raw = photo(height, width)
    spec = image_spec(ImageOptions())
    theirs = open_clip.image_transform(224, is_train=False)(Image.open(io.BytesIO(raw)))
    ours = prepare_image(raw, spec)
    assert ours.dtype == torch.uint8
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    difference = ((ours / 255 - mean) / std - theirs).abs()
    assert difference.mean() < 1e-3
    assert difference.max() < 0.031


def test_eight_bits_and_floats_embed_alike():
    options = ImageOptions(timm=timm_options(), size=64)
    encoder = image_encoder(options, 32, pretrained=False).eval()
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.allclose(encoder(image), encoder(image / 255), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_see_channels_last_and_weights_stay_saveable(channels):
    options = ImageOptions(timm=timm_options(), size=32, channels=channels)
    encoder, seen = image_encoder(options, 16, pretrained=False), []
    for module in encoder.trunk.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.stride()[1]))
    image = torch.rand(2, channels, 32, 32)
    encoder(image).sum().backward()
    assert set(seen) == {1}
    assert all(weight.is_contiguous() for weight in encoder.parameters())
    assert torch.equal(channels_last(image), image)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_a_backbone_is_timms_own(model, tmp_path):
    theirs = timm.create_model(model, num_classes=0).eval()
    path = tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), path)
    options = ImageOptions(timm=timm_options(model, str(path)))
    spec = image_spec(options)
    encoder = image_encoder(options, count_features(theirs), pretrained=True).eval()
    image = torch.rand(2, 3, spec.size, spec.size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        assert torch.allclose(encoder(image), theirs((image - mean) / std), atol=1e-5)


@pytest.mark.parametrize(
    "model", ["test_efficientnet", "test_convnext2", "test_mambaout", "mobilenetv4_conv_small_035"]
)
def test_the_features_of_any_backbone_are_counted_right(model):
    trunk = backbone(timm_options(model), channels=2, size=None, pretrained=False).eval()
    assert trunk(torch.zeros(1, 2, 64, 64)).shape == (1, count_features(trunk))


def test_weights_for_three_bands_fit_thirteen(tmp_path):
    path = tmp_path / "model.safetensors"
    theirs = timm.create_model("test_resnet").eval()  # with its classifier, which is left behind
    save_file(theirs.state_dict(), path)
    trunk = backbone(timm_options(pretrained=str(path)), channels=13, size=None, pretrained=True).eval()
    assert trunk(torch.rand(1, 13, 64, 64)).shape == (1, count_features(trunk))
    assert trunk.conv1[0].weight.shape[1] == 13
    assert torch.allclose(trunk.conv1[0].weight[:, 12], theirs.conv1[0].weight[:, 0] * 3 / 13)


def test_another_backbones_weights_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: the weights are not this model's: missing conv1"
    ):
        backbone(timm_options(pretrained=str(path)), channels=3, size=None, pretrained=True)


def test_without_a_network_timms_weights_say_what_to_do(no_hub):
    message = rf"timm's weights of test_resnet cannot be had: {no_hub} cannot be reached .*\.safetensors"
    with pytest.raises(CheckpointError, match=message):
        backbone(timm_options(pretrained=True), channels=3, size=None, pretrained=True)


def test_wrong_backbones_are_refused_with_the_fix():
    def build(options, size=None):
        return backbone(options, channels=3, size=size, pretrained=False)

    with pytest.raises(RecipeError, match="timm has no model 'resnet81'; did you mean 'resnet"):
        build(timm_options("resnet81"))
    with pytest.raises(RecipeError, match=r"timm cannot build test_resnet with .*no_such_option"):
        build(timm_options(no_such_option=1))
    with pytest.raises(RecipeError, match=r"patches of .16, 16., which do not divide its input of .60, 60."):
        build(timm_options("test_vit"), size=60)
    with pytest.raises(ValidationError, match="options cannot hold num_classes: the tower sets it"):
        timm_options(num_classes=3)
    with pytest.raises(ValidationError, match="fetched from a hub even to be built"):
        timm_options("hf-hub:timm/resnet18")


def test_a_vit_is_built_for_the_size_asked():
    encoder = image_encoder(ImageOptions(timm=timm_options("test_vit"), size=64), 16, pretrained=False)
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 16)
    assert image_spec(ImageOptions(timm=timm_options("test_vit", img_size=32))).size == 32


@pytest.mark.parametrize(
    ("kind", "width", "parts"),
    [("auto", 8, 0), ("auto", 6, 2), ("identity", 8, 0), ("linear", 8, 2), ("mlp", 6, 4)],
)
def test_heads_have_the_parts_their_kind_says(kind, width, parts):
    head = make_head(kind, 8, width, what="it")
    assert head(torch.zeros(3, 8)).shape == (3, width)
    assert len(list(head.parameters())) == parts


def test_an_identity_of_another_width_is_refused():
    with pytest.raises(RecipeError) as caught:
        make_head("identity", 512, 128, what="ViT-B-32")
    assert str(caught.value) == (
        "ViT-B-32 gives 512 numbers, the recipe's width is 128: set width: 512 or head: linear"
    )


def test_bands_without_statistics_get_the_mean_of_the_models():
    spec = image_spec(ImageOptions(timm=timm_options("resnet18"), channels=4))
    assert spec.mean == pytest.approx([sum((0.485, 0.456, 0.406)) / 3])
    own = image_spec(ImageOptions(timm=timm_options(), channels=4, mean=(1000,), std=(500, 500, 500, 600)))
    assert (own.mean, own.std, own.unit) == ((1000,), (500, 500, 500, 600), False)


def test_values_beyond_the_models_statistics_are_refused():
    reflectance = np.full((4, 70, 70), 3000, dtype=np.uint16)
    options = {"timm": timm_options(), "channels": 4, "size": 32}
    with pytest.raises(
        DataError, match=r"values from 3000 to 3000, .* set mean and std in the image's own units"
    ):
        prepare_image(reflectance, image_spec(ImageOptions(**options)))
    image = prepare_image(reflectance, image_spec(ImageOptions(**options, mean=(2000,), std=(1000,))))
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (4, 32, 32))
    assert torch.allclose(image, torch.tensor(3000.0))


def test_four_bands_do_not_fit_three():
    spec = image_spec(ImageOptions(timm=timm_options(), size=32))
    with pytest.raises(DataError, match="has 4 channels where 3 are wanted"):
        prepare_image(np.zeros((64, 60, 4), dtype=np.uint8), spec)
    transparent = Image.new("RGBA", (40, 40), (1, 2, 3, 128))
    assert prepare_image(transparent, spec)[:, 0, 0].tolist() == pytest.approx([1, 2, 3], abs=1)


def test_a_squashed_image_keeps_its_edges():
    spec = image_spec(ImageOptions(timm=timm_options(), size=32))
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, :32] = 255
    assert prepare_image(wide, spec).max() == 0
    assert prepare_image(wide, spec._replace(squash=True))[:, :, :9].min() == 255


@settings(deadline=None, max_examples=25)
@given(
    channels=st.sampled_from([1, 3, 5]),
    deep=st.booleans(),
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    seed=st.integers(0, 99),
)
def test_augmentation_keeps_shape_and_dtype_and_follows_the_seed(channels, deep, height, width, seed):
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (channels, height, width), dtype=np.uint8)
    raw = raw / np.float32(255) if deep else raw
    spec = image_spec(ImageOptions(timm=timm_options(), channels=channels, size=24))
    everything = TileAugment(
        random_resized_crop=(0.3, 1), hflip=True, vflip=True, rotations=True, jitter=0.4, band_jitter=0.2
    )
    runs = []
    for _ in range(2):
        torch.manual_seed(seed)
        runs.append(prepare_image(raw, spec, everything))
    plain = prepare_image(raw, spec)
    assert torch.equal(*runs)
    assert (runs[0].shape, runs[0].dtype) == (plain.shape, plain.dtype)
    assert runs[0].is_contiguous()


@pytest.mark.parametrize("option", ["hflip", "vflip", "rotations"])
def test_mirrors_and_turns_only_move_pixels(option):
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    seen = {augment_image(image, TileAugment(**{option: True})).numpy().tobytes() for _ in range(40)}
    assert len(seen) == (4 if option == "rotations" else 2)
    for pixels in seen:
        assert sorted(pixels) == sorted(image.numpy().tobytes())


@pytest.mark.parametrize("option", [{"jitter": 0.5}, {"band_jitter": 0.5}, {"randaugment": 3}])
def test_recolouring_changes_an_image(option):
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    assert any(not torch.equal(augment_image(image, TileAugment(**option)), image) for _ in range(5))
    assert torch.equal(augment_image(image, TileAugment()), image)


def test_randaugment_is_for_photos_of_eight_bits():
    with pytest.raises(
        DataError, match=r"8-bit RGB, not on 5 bands of torch\.uint8: use jitter and band_jitter"
    ):
        augment_image(torch.zeros(5, 8, 8, dtype=torch.uint8), TileAugment(randaugment=1))


@pytest.mark.parametrize("crop", [(0.0, 1.0), (0.9, 0.5)])
def test_a_crop_range_must_be_a_range(crop):
    with pytest.raises(ValidationError, match="0 < smallest <= largest"):
        PhotoAugment(random_resized_crop=crop)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": None}, "give either clip or timm"),
        (
            {"clip": {"model": "ViT-B-32", "pretrained": False}, "timm": {"model": "x", "pretrained": False}},
            "either",
        ),
        ({"channels": 4}, "a CLIP takes 3 channels, not 4: use timm"),
        ({"mean": (0.5, 0.5), "std": (1,)}, "mean must have 1 or 3 values, not 2"),
        ({"mean": (0.5,)}, "both mean and std, or neither"),
        ({"mean": (0.5,), "std": (0,)}, "std must be above 0"),
        ({"timm": {"model": "resnet18"}}, "Field required"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ImageOptions(**options)


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_spectral_jitter_scales_each_band_of_any_number_on_its_own(bands):
    image = torch.rand(bands, 16, 16) * 3000 + 100
    gains = []
    for _ in range(30):
        share = augment_image(image, TileAugment(band_jitter=0.2)) / image
        assert torch.allclose(share, share[:, :1, :1].expand_as(share), rtol=1e-4)  # one factor a band
        gains.append(share[:, 0, 0])
    gain_SC = torch.stack(gains)
    assert 0.8 <= gain_SC.min() < 0.87
    assert 1.13 < gain_SC.max() <= 1.2
    assert bands == 1 or (gain_SC.std(1) > 0.01).float().mean() > 0.8  # not the same for all


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_colour_jitter_works_on_any_number_of_float_bands(bands):
    image = torch.rand(bands, 16, 16) * 3000
    jittered = augment_image(image, TileAugment(jitter=0.3))
    assert (jittered.shape, jittered.dtype) == (image.shape, image.dtype)
    assert not torch.allclose(jittered, image)
    if bands == 1:  # one band has no saturation: brightness and contrast alone
        assert np.corrcoef(jittered.flatten(), image.flatten())[0, 1] > 0.999


def test_turns_and_mirrors_of_a_tile_reach_all_eight_ways_it_can_lie():
    image = torch.arange(9, dtype=torch.uint8).view(1, 3, 3)
    every = TileAugment(hflip=True, vflip=True, rotations=True)
    assert len({augment_image(image, every).numpy().tobytes() for _ in range(200)}) == 8


def test_randaugment_applies_as_many_operations_as_asked(monkeypatch):
    from torchvision.transforms import v2

    asked = []
    own = v2.RandAugment.__init__

    def watched(self, num_ops, **options):
        asked.append(num_ops)
        own(self, num_ops, **options)

    monkeypatch.setattr(v2.RandAugment, "__init__", watched)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    made = [augment_image(image, TileAugment(randaugment=3)) for _ in range(8)]
    assert asked == [3] * 8
    assert {(item.dtype, tuple(item.shape)) for item in made} == {(torch.uint8, (3, 32, 32))}
