"""examples/generator: a decoder of a space, what drives it, and the adapter for unCLIP pipelines."""

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from geobind import Binder
from geobind.errors import CheckpointError, DataError, PluginError
from geobind.modality import Modality
from geobind.towers import ImageOptions

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "generator"))

import decoder
import generate
import measure_generator as measure
import unclip

WIDTH = 8


class Colour(ImageOptions, Modality):
    """Sees the mean colour of an image, and what is left of it below."""

    name: ClassVar[str] = "colour"
    role: ClassVar[str] = "frozen"
    spec: ClassVar[SimpleNamespace] = SimpleNamespace(size=32)

    def encoder(self, width, *, pretrained=True):
        return torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, width)
        )

    def prepare(self, raw, *, training=False):
        return torch.from_numpy(np.ascontiguousarray(raw)).permute(2, 0, 1).float() / 255


def build_binder(seed=0, width=WIDTH):
    return Binder({"colour": Colour()}, width, seed=seed)


def paint(count):
    """Paint one picture red, the next one green, the next one blue, with noise."""
    rng = np.random.default_rng(0)
    colour_N113 = 30 + 180 * np.eye(3)[np.arange(count) % 3].reshape(count, 1, 1, 3)
    noise = rng.integers(-15, 15, (count, 32, 32, 3))
    return list((colour_N113 + noise).astype(np.uint8))


@pytest.fixture(scope="module")
def binder():
    return build_binder()


@pytest.fixture(scope="module")
def generator(binder):
    return decoder.train_generator(binder, paint(24), size=32, epochs=2, batch_size=12)


@pytest.mark.slow
def test_a_decoder_gives_back_the_colour_that_an_embedding_names(binder):
    pictures = paint(24)
    trained = decoder.train_generator(binder, pictures, size=32, epochs=120, batch_size=12)
    drawn = trained.draw(binder.embed("colour", pictures), "nothing")
    assert drawn.shape == (24, 32, 32, 3) and drawn.dtype == np.uint8
    assert (drawn.mean((1, 2)).argmax(axis=1) == np.arange(24) % 3).all()


def test_the_same_seed_draws_the_same_picture_and_another_one_another(binder, generator):
    one_1D = binder.embed("colour", paint(1))
    assert (generator.draw(one_1D, seed=1) == generator.draw(one_1D, seed=1)).all()
    assert (generator.draw(one_1D, seed=1) != generator.draw(one_1D, seed=2)).any()


def test_training_is_deterministic_and_leaves_the_binder_as_it_was(binder):
    before = {name: value.clone() for name, value in binder.state_dict().items()}
    one, again = (
        decoder.train_generator(binder, paint(32), size=32, epochs=2, batch_size=16, seed=3) for _ in range(2)
    )
    assert all(
        torch.equal(value, again.decoder.state_dict()[name])
        for name, value in one.decoder.state_dict().items()
    )
    assert all(torch.equal(value, before[name]) for name, value in binder.state_dict().items())
    assert all(value.requires_grad for value in binder.parameters())


def test_a_decoder_is_saved_and_read_for_the_same_space_alone(binder, generator, tmp_path):
    path = generator.save(tmp_path / "decoder.safetensors")
    read = decoder.Generator.load(path, binder)
    one_1D = binder.embed("colour", paint(1))
    assert (read.draw(one_1D, "nothing") == generator.draw(one_1D, "nothing")).all()
    with pytest.raises(CheckpointError, match=r"decodes a space 8 wide, the bundle's is 16; use the bundle"):
        decoder.Generator.load(path, build_binder(width=16))
    with pytest.raises(
        CheckpointError, match=r"decodes embeddings of another model \(\w{12}; the bundle's is"
    ):
        decoder.Generator.load(path, build_binder(seed=1))
    with pytest.raises(CheckpointError, match=r"decodes 'colour', which the bundle has not \(it has tint\)"):
        decoder.Generator.load(path, Binder({"tint": Colour()}, WIDTH, seed=0))


def test_what_is_no_decoder_is_refused(binder, tmp_path):
    for name, content in (("text.safetensors", b"no tensors"), ("none.safetensors", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}: cannot be read as a decoder"):
            decoder.Generator.load(tmp_path / name, binder)


def test_embeddings_of_another_width_and_unknown_modalities_are_named(binder, generator):
    with pytest.raises(
        DataError, match=r"shape \(1, 5\) for a decoder of width 8: both must be of one space"
    ):
        generator.draw(torch.ones(1, 5))
    with pytest.raises(DataError, match="a shift needs the mean"):
        generator.draw(torch.ones(1, WIDTH), "shift")
    with pytest.raises(PluginError, match="no modality 'color'"):
        decoder.train_generator(binder, paint(24), "color")
    with pytest.raises(DataError, match="3 pictures are too few; a batch has 32"):
        decoder.train_generator(binder, paint(3))
    with pytest.raises(DataError, match="multiple of 16"):
        decoder.Decoder(WIDTH, 40)


def test_moving_by_the_bank_ends_among_the_embeddings_of_pictures(generator):
    far_ND = -generator.bank_RD[:4] + 0.2 * torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    moved_ND = generator.move(far_ND)
    nearest = (moved_ND @ generator.bank_RD.T).max(dim=1).values
    assert (
        nearest > (torch.nn.functional.normalize(far_ND, dim=1) @ generator.bank_RD.T).max(dim=1).values
    ).all()
    assert torch.allclose(moved_ND.norm(dim=1), torch.ones(4), atol=1e-5)


def test_a_shift_moves_one_mean_onto_the_other(generator):
    bank_RD = generator.bank_RD
    other_RD = bank_RD + 0.1
    moved_RD = generator.move(other_RD, "shift", other_RD.mean(0))
    assert torch.allclose(moved_RD, torch.nn.functional.normalize(bank_RD, dim=1), atol=1e-5)


# What is measured -------------------------------------------------------------------------------------


def test_pictures_that_are_all_alike_are_found_at_chance(binder):
    pictures = paint(40)
    real_ND = binder.embed("colour", pictures)
    test = measure.Places({"colour": real_ND}, pictures, None)
    shown = measure.compare(binder, "colour", pictures, real_ND, test, {}, None)
    assert shown["driving R@10"].mean() == shown["real R@10"].mean() == 1
    alike = measure.compare(binder, "colour", pictures[:1] * 40, real_ND, test, {}, None)
    assert alike["driving R@10"] == pytest.approx(np.full(40, 10 / 40))
    assert alike["real R@10"].mean() == 10 / 40
    assert "driving cosine" not in measure.compare(binder, "colour", pictures, None, test, {}, None)


def test_figures_are_means_over_seeds_with_intervals_over_places():
    seeds = [{"the mean tile": {"real cosine": np.array(values)}} for values in ([0.0, 1.0], [1.0, 1.0])]
    (record,) = measure.summarize(seeds)
    assert record["real cosine"]["value"] == 0.75
    assert record["real cosine"]["seeds"] == [0.5, 1.0]
    assert record["real cosine"]["interval"] == [0.5, 1.0]


def test_a_bundle_without_data_asks_for_a_table(binder):
    with pytest.raises(DataError, match=r"recipe has no `data`: name a table with --data manifest\.csv"):
        generate.open_data(binder)


@pytest.mark.slow
def test_the_commands_of_the_readme_train_draw_and_measure(runs, tmp_path, capsys):
    bundle, file = str(runs / "runs" / "three_modal"), str(tmp_path / "decoder.safetensors")
    generate.main(["train", bundle, "--epochs", "1", "--out", file])
    out = tmp_path / "bay.png"
    generate.main(["draw", bundle, file, "--query", "text=a wide bay", "--count", "2", "--out", str(out)])
    from PIL import Image

    assert Image.open(out).size == (128, 64)
    folder = ["--decoders", str(tmp_path), "--out", str(tmp_path / "figures.json")]
    options = ["--seeds", "1", "--epochs", "1", "--picture", str(tmp_path / "tiles.png")]
    measure.main([bundle, *options, *folder])
    assert "16 held-out places; chance of R@10 0.625" in capsys.readouterr().out
    records = {one["driven by"]: one for one in json.loads((tmp_path / "figures.json").read_text())}
    assert records["satellite, real tile"]["driving cosine"]["value"] == pytest.approx(1)
    assert records["the mean tile"]["real R@10"]["value"] == pytest.approx(10 / 16)
    assert 0 <= records["text, moved by the bank"]["independent probe"]["value"] <= 1


# The adapter for unCLIP ----------------------------------------------------------------------------------


class Stable:
    """A stand-in for `StableUnCLIPImg2ImgPipeline` that records its call."""

    argument = "image_embeds"

    def __init__(self, width=24, dtype=torch.float16):
        self.image_encoder = SimpleNamespace(config=SimpleNamespace(projection_dim=width))
        self.unet, self.device = SimpleNamespace(dtype=dtype), torch.device("cpu")

    def __call__(
        self, image=None, prompt=None, height=None, width=None, num_inference_steps=20, guidance_scale=10,
        negative_prompt=None, num_images_per_prompt=1, eta=0.0, generator=None, latents=None,
        prompt_embeds=None, negative_prompt_embeds=None, output_type="pil", return_dict=True, callback=None,
        callback_steps=1, cross_attention_kwargs=None, noise_level=0, image_embeds=None, clip_skip=None,
    ):  # fmt: skip
        assert image is None
        return {"embeds": image_embeds, "prompt": prompt, "steps": num_inference_steps}


class Karlo(Stable):
    """A stand-in for `UnCLIPImageVariationPipeline` that records its call."""

    argument = "image_embeddings"

    def __init__(self, width=24):
        super().__init__(width)
        self.unet, self.decoder = None, SimpleNamespace(dtype=torch.float32)

    def __call__(
        self, image=None, num_images_per_prompt=1, decoder_num_inference_steps=25,
        super_res_num_inference_steps=7, generator=None, decoder_latents=None, super_res_latents=None,
        image_embeddings=None, decoder_guidance_scale=8.0, output_type="pil", return_dict=True,
    ):  # fmt: skip
        assert image is None
        return {"embeds": image_embeddings, "steps": decoder_num_inference_steps}


def embed_both(count=60, width=24):
    rng = np.random.default_rng(1)
    x_ND = rng.standard_normal((count, WIDTH))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND.astype(np.float32), 15 * x_ND @ rng.standard_normal((WIDTH, width)) + 0.5


def test_embeddings_are_mapped_to_those_of_the_clip_and_have_their_length():
    x_ND, clip_NC = embed_both()
    adapter = unclip.UnclipAdapter.fit(x_ND[:40], clip_NC[:40])
    made_NC = adapter.image_embeds(x_ND[40:])
    assert made_NC.shape == (20, 24)
    assert torch.nn.functional.cosine_similarity(made_NC, torch.from_numpy(clip_NC[40:])).min() > 0.999
    assert torch.allclose(
        made_NC.norm(dim=1), torch.tensor(np.linalg.norm(clip_NC[:40], axis=1).mean()).float()
    )


def test_a_binder_of_the_same_clip_needs_the_length_alone():
    x_ND = torch.eye(3, 24)
    made_NC = unclip.UnclipAdapter.same_clip(24, 10.5).image_embeds(x_ND)
    assert torch.allclose(made_NC, 10.5 * x_ND)


@pytest.mark.parametrize("kind", [Stable, Karlo])
def test_pipelines_are_called_by_the_name_and_type_of_their_embeddings(kind):
    x_ND, clip_NC = embed_both()
    adapter, pipe = unclip.UnclipAdapter.fit(x_ND, clip_NC), kind()
    steps = "num_inference_steps" if kind is Stable else "decoder_num_inference_steps"
    result = adapter.generate(pipe, x_ND[:2], **{steps: 3})
    dtype = torch.float16 if kind is Stable else torch.float32
    assert torch.equal(result["embeds"], adapter.image_embeds(x_ND[:2], dtype=dtype))
    assert result["steps"] == 3
    assert result.get("prompt", ["", ""]) == ["", ""]


def test_another_width_and_what_is_no_unclip_are_refused():
    x_ND, clip_NC = embed_both()
    adapter = unclip.UnclipAdapter.fit(x_ND, clip_NC)
    with pytest.raises(DataError, match="Stable draws from image embeddings 32 wide, the adapter makes 24"):
        adapter.generate(Stable(32), x_ND)
    with pytest.raises(DataError, match=r"shape \(2, 24\), and the adapter takes a width of 8"):
        adapter.image_embeds(torch.ones(2, 24))
    with pytest.raises(DataError, match="SimpleNamespace takes neither image_embeds nor image_embeddings"):
        adapter.generate(SimpleNamespace(), x_ND)
    with pytest.raises(DataError, match="not of the same images"):
        unclip.UnclipAdapter.fit(x_ND, clip_NC[:5])


@pytest.mark.parametrize(
    ("name", "stub"), [("StableUnCLIPImg2ImgPipeline", Stable), ("UnCLIPImageVariationPipeline", Karlo)]
)
def test_the_stubs_are_called_as_diffusers_pipelines_are(name, stub):
    diffusers = pytest.importorskip("diffusers")
    real = inspect.signature(getattr(diffusers, name).__call__).parameters
    assert stub.argument in real and set(inspect.signature(stub.__call__).parameters) <= set(real)


def test_a_real_pipeline_with_random_weights_draws_from_an_adapted_embedding():
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    pipe = build_stable_unclip(diffusers, transformers, width=24)
    x_ND, clip_NC = embed_both()
    adapter = unclip.UnclipAdapter.fit(x_ND, clip_NC)
    noise = torch.Generator().manual_seed(0)
    text_ND = {"prompt_embeds": torch.zeros(2, 4, 32), "negative_prompt_embeds": torch.zeros(2, 4, 32)}
    drawn = adapter.generate(
        pipe, x_ND[:2], num_inference_steps=2, generator=noise, output_type="np", **text_ND
    )
    assert drawn.images.shape == (2, 32, 32, 3) and np.isfinite(drawn.images).all()


def build_stable_unclip(diffusers, transformers, width):
    """Build the pipeline of Stable unCLIP, tiny and with random weights; no text model is needed."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, projection_dim=width, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        intermediate_size=16, patch_size=8,
    )  # fmt: skip
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4), cross_attention_dim=32, class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * width, norm_num_groups=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=32,
    )  # fmt: skip
    pipe = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=transformers.CLIPVisionModelWithProjection(vision),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=width),
        image_noising_scheduler=diffusers.DDPMScheduler(),
        tokenizer=None,
        text_encoder=None,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        vae=vae,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
