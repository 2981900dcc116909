"""The towers of the paper's recipe, from input to embedding, against the libraries they are of, to 1e-5."""

import copy
import io

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from geobind_audio import Audio
from geobind_ground_image import GroundImage
from geobind_satellite import Satellite
from geobind_text import Text

TEXTS = ["a quiet river", "a harbour with many small boats, seen from the pier in the morning", "x"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """CLIP ViT-B/32 as OpenAI's, but for its depth (two layers of twelve) and its weights (random)."""
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 2
    model = open_clip.CLIP(**copy.deepcopy(config)).eval()
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return model, {"model": config, "pretrained": str(path)}


def photo(seed, size):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def embedded(modality, raws):
    with torch.no_grad():
        return modality.encoder(512).eval()(torch.stack([modality.prepare(raw) for raw in raws]))


def test_the_clip_is_the_one_of_the_recipe(clip):
    config = clip[1]["model"]
    assert config["quick_gelu"]
    assert (config["embed_dim"], config["vision_cfg"]["patch_size"]) == (512, 32)


SIZES = [
    (224, 224),
    (225, 224),
    (800, 800),
    (301, 457),
    (223, 97),
    (31, 33),
    (1, 1),
    (640, 9),
    (2, 500),
    (1801, 1805),
]
MODES = ["RGB", "L", "RGBA", "LA", "CMYK"]


def noise(size, mode):
    """An image of noise, whose every pixel matters when it is scaled."""
    rng = np.random.default_rng(len(mode))
    bands = [
        Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8))
        for _ in Image.new(mode, (1, 1)).getbands()
    ]
    return Image.merge(mode, bands)


def encoded(image, kind, **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Satellite, GroundImage])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_and_photos_of_any_size_and_mode_embed_as_in_open_clip(clip, cls, size):
    theirs, options = clip
    images = [noise(size, mode) for mode in MODES]
    transform = open_clip.image_transform(224, is_train=False)
    with torch.no_grad():
        wanted = theirs.encode_image(torch.stack([transform(image) for image in images]))
    assert torch.allclose(embedded(cls(clip=options), images), wanted, atol=1e-5)


@pytest.mark.parametrize("squash", [False, True])
@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    mode=st.sampled_from(MODES),
    kind=st.sampled_from("atpb"),
)
def test_an_image_in_any_form_is_prepared_to_the_bit_as_in_open_clip(clip, squash, width, height, mode, kind):
    if max(width, height) > 300 * min(width, height):
        return  # refused, or large: a thin image is scaled by its shorter side
    image = noise((width, height), mode)
    transform = open_clip.image_transform(224, is_train=False, resize_mode="squash" if squash else "shortest")
    raw = image
    if kind in "at" and mode in ("RGB", "L"):
        raw = np.asarray(image)
        raw = raw if kind == "a" else torch.from_numpy(raw.copy()).reshape(height, width, -1).permute(2, 0, 1)
    elif kind in "pb" and mode != "CMYK":
        raw = encoded(image, "PNG")
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    wanted = ((transform(image) * std + mean) * 255).round().byte()
    ours = Satellite(clip=clip[1], squash=squash).prepare(raw)
    assert torch.equal(ours, wanted)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("side", [300, 1900])
def test_a_large_jpeg_is_decoded_whole_to_be_embedded(clip, mode, side):
    content = encoded(noise((side, side + 7), mode), "JPEG", quality=90)
    transform = open_clip.image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    wanted = (transform(Image.open(io.BytesIO(content))) * 255).round().byte()
    assert torch.equal(Satellite(clip=clip[1]).prepare(content), wanted)


def test_scaling_does_not_write_into_the_image_given(clip):
    pixels = np.asarray(noise((224, 224), "RGB")).copy()
    kept = pixels.copy()
    Satellite(clip=clip[1], augment={"jitter": 0.5}).prepare(pixels, training=True).zero_()
    Satellite(clip=clip[1]).prepare(pixels).zero_()
    assert (pixels == kept).all()


def test_tiles_with_statistics_of_their_own_are_normalised_by_them(clip):
    theirs, options = clip
    mean, std = (0.3670, 0.3827, 0.3338), (0.2209, 0.1975, 0.1988)
    tiles = [photo(seed, 224) for seed in range(2)]
    transform = open_clip.image_transform(224, is_train=False, mean=mean, std=std)
    with torch.no_grad():
        wanted = theirs.encode_image(torch.stack([transform(image) for image in tiles]))
    assert torch.allclose(embedded(Satellite(clip=options, mean=mean, std=std), tiles), wanted, atol=1e-5)


def test_texts_embed_as_in_open_clip(clip):
    theirs, options = clip
    with torch.no_grad():
        wanted = theirs.encode_text(open_clip.tokenize(TEXTS))
    assert torch.allclose(embedded(Text(clip=options), TEXTS), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_sounds_embed_as_in_transformers(tmp_path, fused, monkeypatch):
    """HTSAT at its full size, from the samples on: both spectrograms go through both networks."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ClapAudioConfig(enable_fusion=fused)
    theirs = transformers.ClapAudioModelWithProjection(config).eval()
    theirs.save_pretrained(tmp_path)
    modality = Audio(htsat={"pretrained": str(tmp_path), "fused": fused})
    encoder = modality.encoder(512).eval()
    samples = np.random.default_rng(0).normal(0, 0.1, 48_000 * 13).astype(np.float32)
    samples = samples if fused else samples[: 48_000 * 10]
    monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])  # CLAP draws its parts
    extract = transformers.ClapFeatureExtractor(frequency_min=50, frequency_max=14_000)
    told = extract(
        samples,
        sampling_rate=48_000,
        truncation="fusion" if fused else "rand_trunc",
        return_tensors="pt",
    )
    prepared = modality.prepare((samples, 48_000))
    ours = {key: value[None] for key, value in prepared.items()} if fused else prepared[None]
    mel = ours["mel"] if fused else ours
    with torch.no_grad():
        longer = torch.tensor([[True]]) if fused else None
        wanted = theirs(input_features=mel.transpose(2, 3), is_longer=longer).audio_embeds
        heard = theirs(input_features=told["input_features"].float(), is_longer=longer).audio_embeds
        got = encoder(ours)
    assert torch.allclose(got, wanted, atol=1e-5)  # the same spectrogram
    assert torch.nn.functional.cosine_similarity(got, heard).item() > 1 - 1e-5  # CLAP's own spectrogram


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, 10, 13])
def test_recordings_one_at_a_time_embed_as_in_geoclap(tmp_path, monkeypatch, seconds):
    """The extractor marks the only recording of a call as long, whatever its length."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.ClapAudioModelWithProjection(
        transformers.ClapAudioConfig(enable_fusion=True)
    ).eval()
    theirs.save_pretrained(tmp_path)
    encoders = {}
    for fuse in ("all", "longer"):
        modality = Audio(htsat={"pretrained": str(tmp_path), "fused": True, "fuse": fuse})
        encoders[fuse] = modality, modality.encoder(512).eval()
    samples = np.random.default_rng(0).normal(0, 0.1, 48_000 * seconds).astype(np.float32)
    monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
    extract = transformers.ClapFeatureExtractor(frequency_min=50, frequency_max=14_000)
    features = extract(
        samples, sampling_rate=48_000, truncation="fusion", padding="repeatpad", return_tensors="pt"
    )
    with torch.no_grad():
        heard = theirs(
            input_features=features["input_features"].float(), is_longer=features["is_longer"]
        ).audio_embeds
        cosines = {}
        for fuse, (modality, encoder) in encoders.items():
            prepared = {key: value[None] for key, value in modality.prepare((samples, 48_000)).items()}
            cosines[fuse] = torch.nn.functional.cosine_similarity(encoder(prepared), heard).item()
    assert cosines["all"] > 1 - 1e-5
    assert (cosines["longer"] > 1 - 1e-5) == (seconds > 10)
