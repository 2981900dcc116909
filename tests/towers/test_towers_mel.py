"""Mel spectrograms by torchaudio and by torch alone, and geobind beside a torchaudio that does not load."""

import json
import logging
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_towers import htsat_config

from geobind import Binder
from geobind.errors import CheckpointError
from geobind.towers.audio import SoundSpec, prepare_sound, sound_spec
from geobind.towers.clip import clip_tower
from geobind.towers.mel import (
    check_torchaudio,
    hide_broken_torchaudio,
    install_command,
    torch_mel,
    torchaudio_mel,
)
from geobind.towers.options import AudioOptions, ClipOptions
from geobind_audio import Audio

TIMM = {"model": "test_resnet", "pretrained": False}
SPEC = SoundSpec(16_000, 16_000, 64, 512, 400, 160, 20.0, 8000.0, "htk", 100)
FAILURES = {
    "a library": 'raise OSError("Could not load this library: libtorchaudio.so\\nundefined symbol")',
    "another CUDA": 'raise RuntimeError("compiled with different CUDA major versions")',
    "another torch": "import torch; torch.no_such_function",
    "nothing": 'raise ModuleNotFoundError("No module named torchaudio")',
}


def noise(seconds, rate=16_000, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def chirp():
    """A second that sweeps through all frequencies."""
    seconds = torch.arange(16_000, dtype=torch.float64) / 16_000
    return (torch.sin(2 * torch.pi * 4000 * seconds**2) / 2).float()


def assert_equal_to_torchaudio(spec, samples_T):
    theirs, ours = torchaudio_mel(spec)(samples_T), torch_mel(spec)(samples_T)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-10)  # -100 dB, which is taken for silence


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000])
def test_torch_alone_equals_torchaudio_at_every_rate(rate, scale):
    spec = SPEC._replace(rate=rate, n_fft=1024, fmax=rate / 2, scale=scale)
    assert_equal_to_torchaudio(spec, torch.from_numpy(noise(0.5, rate)))


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.filterwarnings("ignore:At least one mel filterbank")  # torchaudio's, of narrow bands
@settings(deadline=None, max_examples=60)
@given(data=st.data(), scale=st.sampled_from(["htk", "slaney"]))
def test_torch_alone_equals_torchaudio_whatever_the_options(data, scale):
    rate = data.draw(st.integers(2000, 96_000))
    n_fft = 1 << data.draw(st.integers(6, 11))
    low = data.draw(st.floats(0, rate / 4))
    spec = SoundSpec(
        rate,
        samples=rate,
        mels=data.draw(st.integers(1, 128)),
        n_fft=n_fft,
        window=data.draw(st.integers(2, n_fft)),
        hop=data.draw(st.integers(1, n_fft)),
        fmin=low,
        fmax=data.draw(st.floats(low + 10, rate / 2 + 10)),
        scale=scale,
        frames=1,
    )
    assert_equal_to_torchaudio(spec, torch.from_numpy(noise(4096, 1)))


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.parametrize(
    "options",
    [
        AudioOptions(timm=TIMM),
        AudioOptions(timm=TIMM, mels=128, window_ms=32, hop_ms=8, fmin=50, fmax=7000),
        AudioOptions(htsat={"pretrained": False}),
        AudioOptions(htsat={"pretrained": False, "fused": True}),
    ],
)
def test_torch_alone_equals_torchaudio_for_every_kind_of_tower(options):
    spec = sound_spec(options)
    assert_equal_to_torchaudio(spec, torch.from_numpy(noise(2, spec.rate)))


@pytest.mark.parametrize(
    ("scale", "figures"),
    [("htk", [2490.82, 3576.11, 4121.87, 3675.26]), ("slaney", [2.75595, 0.183616, 0.102521, 11.8653])],
)
def test_the_figures_are_what_torchaudio_2_11_gave(scale, figures):
    mel_MN = torch_mel(SPEC._replace(scale=scale))(chirp())
    got = [float(mel_MN[band, frame]) for band, frame in ((18, 10), (37, 30), (52, 60), (63, 95))]
    assert got == pytest.approx(figures, rel=1e-4)


@pytest.mark.parametrize("line", FAILURES.values(), ids=FAILURES)
def test_a_sound_is_prepared_the_same_whatever_ails_torchaudio(line, break_torchaudio):
    spec = sound_spec(AudioOptions(timm=TIMM, seconds=1))
    before = prepare_sound(noise(1), spec)
    break_torchaudio(line)
    assert not check_torchaudio()
    assert torch.allclose(prepare_sound(noise(1), spec), before, rtol=0, atol=5e-5)  # dB: 1e-5 of the power


def test_one_warning_names_the_reason_and_the_command_that_mends_it(break_torchaudio, caplog):
    break_torchaudio(FAILURES["a library"])
    with caplog.at_level(logging.WARNING):
        for rate in (8000, 16_000):
            prepare_sound(noise(1), sound_spec(AudioOptions(timm=TIMM, rate=rate)))
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith(
        "torchaudio does not load (OSError: Could not load this library: libtorchaudio.so);"
    )
    assert warning.endswith(f": {install_command(torch.__version__)}")
    assert "\n" not in warning


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("2.8.0+cu128", "torchaudio==2.8.0 torch==2.8.0"),
        ("2.10.0", "torchaudio==2.10.0 torch==2.10.0"),
        ("2.11.0", "torchaudio torch==2.11.0"),
        ("2.13.0+cpu", "torchaudio torch==2.13.0"),
    ],
)
def test_the_command_installs_the_newest_torchaudio_for_the_torch_there_is(version, wanted):
    assert install_command(version) == f"pip uninstall -y torchaudio && pip install {wanted}"


def test_a_broken_torchaudio_counts_as_not_installed(break_torchaudio):
    break_torchaudio(FAILURES["a library"])
    assert isinstance(hide_broken_torchaudio(), OSError)
    with pytest.raises(ImportError):
        import torchaudio  # noqa: F401


@pytest.mark.usefixtures("needs_torchaudio")
def test_the_embeddings_of_a_bundle_stay_what_they_were(tmp_path, break_torchaudio):
    audio = Audio(timm=TIMM, seconds=1, mels=32)
    bundle = Binder({"audio": audio}, 8, seed=0).save(tmp_path / "bundle")
    sounds = [noise(1, seed=seed) for seed in range(3)]
    before = Binder.load(bundle).embed("audio", sounds)
    break_torchaudio(FAILURES["a library"])
    assert torch.allclose(Binder.load(bundle).embed("audio", sounds), before, rtol=0, atol=1e-5)
    assert not check_torchaudio()


def test_a_tag_of_open_clip_is_built_with_a_broken_torchaudio_out_of_sight(monkeypatch, break_torchaudio):
    """Text towers of a hub come from transformers, which imports a torchaudio that it finds."""
    break_torchaudio(FAILURES["a library"])
    found = []

    def create_model(*_, **__):
        found.append(find_spec("torchaudio"))
        raise OSError("no network")

    monkeypatch.setattr("open_clip.download_pretrained", lambda *_, **__: "cached")
    monkeypatch.setattr("open_clip.create_model", create_model)
    with pytest.raises(CheckpointError, match="no network"):
        clip_tower(ClipOptions(model="ViT-B-32", pretrained="laion2b_e16"), "visual", pretrained=True)
    assert found == [None]


HTSAT = {"pretrained": False, "config": htsat_config(16)}


@pytest.mark.slow
def test_a_recipe_trains_beside_a_torchaudio_that_does_not_load(tmp_path, break_torchaudio):
    """With open_clip, timm, torchmetrics, transformers and peft; the last two look for torchaudio."""
    for needed in ("transformers", "peft"):
        if find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
    recipe = {
        "name": "small",
        "width": 8,
        "workers": 1,
        "fabric": {"accelerator": "cpu"},
        "modalities": {"satellite": {"timm": TIMM, "size": 32}, "audio": {"htsat": HTSAT}},
        "data": {
            "toyearth": {"places": 16, "held_out": 8},
            "columns": {"satellite": "tile", "audio": "sound"},
        },
        "stages": [
            {"name": "one", "align": "audio", "train": {"audio": "lora"}, "batch_size": 8, "steps": 1}
        ],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    break_torchaudio(FAILURES["a library"])
    command = [sys.executable, "-m", "geobind", "run", "recipe.yaml", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("torchaudio does not load") == 1, done.stderr  # not once more by the worker
    assert (tmp_path / "out" / "bundle").is_dir()
