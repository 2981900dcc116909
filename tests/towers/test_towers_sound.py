import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file
from tiny_towers import htsat_config

from geobind.errors import CheckpointError, DataError, PluginError, RecipeError
from geobind.towers.audio import fit_length, log_mel, mask_spectrogram, prepare_sound, sound_spec
from geobind.towers.htsat import htsat_encoder, prepare_fused
from geobind.towers.mel import hide_broken_torchaudio
from geobind.towers.options import AudioAugment, AudioOptions, HtsatOptions
from geobind.towers.tower import mel_encoder

hide_broken_torchaudio()  # transformers would die of it
transformers = pytest.importorskip("transformers")
TINY = htsat_config(16)


def htsat(fused=False, pretrained=False):
    return HtsatOptions(pretrained=pretrained, fused=fused, config=TINY)


def resnet(**options):
    return AudioOptions(timm={"model": "test_resnet", "pretrained": False}, **options)


def noise(seconds, rate=48_000, seed=0):
    return (np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate))).astype(np.float32)


def extractor():
    return transformers.ClapFeatureExtractor(frequency_min=50, frequency_max=14_000)


def features_of_clap(samples, truncation):
    told = extractor()(samples, sampling_rate=48_000, truncation=truncation, return_tensors="pt")
    return told["input_features"][0].transpose(1, 2).float()


@pytest.mark.parametrize("seconds", [10, 4, 0.3])
def test_the_spectrogram_is_claps(seconds):
    samples = noise(seconds)
    ours = prepare_sound(samples, sound_spec(AudioOptions(htsat=htsat())))
    assert ours.shape == (1, 64, 1001)
    assert torch.allclose(ours, features_of_clap(samples, "rand_trunc"), atol=2e-3)  # of some 100 dB


@pytest.mark.parametrize("seconds", [3, 10, 10.004, 10.03, 17])
def test_the_fused_spectrograms_are_claps(seconds, monkeypatch):
    samples = noise(seconds)
    monkeypatch.setattr(np.random, "choice", lambda starts: starts[len(starts) // 2])
    ours = prepare_fused(samples, sound_spec(AudioOptions(htsat=htsat(fused=True))))
    theirs = features_of_clap(samples, "fusion")
    assert ours["mel"].shape == (4, 64, 1001)
    assert torch.allclose(ours["mel"], theirs, atol=2e-3)
    assert ours["longer"].tolist() == [seconds > 10.01]


@pytest.mark.parametrize("fused", [False, True])
def test_htsat_is_that_of_transformers(fused, tmp_path):
    config = transformers.ClapAudioConfig(**TINY, enable_fusion=fused)
    theirs = transformers.ClapAudioModelWithProjection(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = htsat_encoder(htsat(fused, str(tmp_path)), 16, head="identity", pretrained=True).eval()
    mel = torch.randn(2, 4 if fused else 1, 64, 1001) * 20 - 30
    longer = torch.tensor([[True], [False]])
    with torch.no_grad():
        wanted = theirs(input_features=mel.transpose(2, 3), is_longer=longer).audio_embeds
        got = ours({"mel": mel, "longer": longer} if fused else mel)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_the_audio_half_of_a_whole_clap_is_enough(tmp_path):
    config = transformers.ClapAudioConfig(**TINY)
    state = transformers.ClapAudioModelWithProjection(config).state_dict()
    path = tmp_path / "model.safetensors"
    save_file({**state, "text_model.weight": torch.zeros(1), "logit_scale_a": torch.zeros(1)}, path)
    htsat_encoder(htsat(pretrained=str(path)), 16, head="auto", pretrained=True)
    with pytest.raises(CheckpointError, match=r"missing .*fusion_model"):
        htsat_encoder(htsat(True, str(path)), 16, head="auto", pretrained=True)


def test_one_long_recording_in_a_batch_can_be_trained_on():
    encoder = htsat_encoder(htsat(fused=True), 8, head="auto", pretrained=False).train()
    batch = {"mel": torch.randn(3, 4, 64, 1001), "longer": torch.tensor([[False], [True], [False]])}
    encoder(batch).sum().backward()
    fusion = encoder.trunk.model.audio_model.audio_encoder.patch_embed.fusion_model
    assert all(weight.grad is not None for weight in fusion.parameters())
    assert encoder.training
    assert not fusion.training


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError, match=r"pip install 'geobind\[audio\]'"):
        htsat_encoder(htsat(), 16, head="auto", pretrained=False)


@pytest.mark.usefixtures("needs_torchaudio")
def test_without_torchaudio_a_sound_embeds_the_same_and_one_warning_is_given(break_torchaudio, caplog):
    encoder, spec = mel_encoder(resnet(seconds=1), 8, pretrained=False).eval(), sound_spec(resnet(seconds=1))
    with torch.no_grad():
        before = encoder(prepare_sound(noise(1, 16_000), spec)[None])
        break_torchaudio('raise ImportError("No module named torchaudio")')
        after = encoder(prepare_sound(noise(1, 16_000), spec)[None])
    assert torch.allclose(after, before, rtol=1e-5, atol=1e-6)
    prepare_sound(noise(1, 16_000), spec._replace(hop=100))
    assert [record.getMessage()[:27] for record in caplog.records] == ["torchaudio does not load (I"]


def test_without_a_network_a_hub_id_says_what_to_do(no_hub):
    message = rf"weights of someone/clap cannot be had: {no_hub} cannot be reached .*under pretrained"
    with pytest.raises(CheckpointError, match=message):
        htsat_encoder(htsat(pretrained="someone/clap"), 16, head="auto", pretrained=True)
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: no such file"):
        htsat_encoder(htsat(pretrained="runs/nowhere.safetensors"), 16, head="auto", pretrained=True)


def test_a_wrong_htsat_config_is_refused():
    options = HtsatOptions(pretrained=False, config={"depths": "many"})
    with pytest.raises(RecipeError, match="transformers cannot build HTSAT with"):
        htsat_encoder(options, 16, head="auto", pretrained=False)


@settings(deadline=None, max_examples=30)
@given(seconds=st.floats(0.001, 6), rate=st.sampled_from([8000, 16_000, 44_100]))
def test_every_recording_makes_the_same_shape(seconds, rate):
    spec = sound_spec(resnet(seconds=2, hop_ms=20))
    augment = AudioAugment(shift=True, gain_db=6, noise_snr_db=(0, 30), mask_time=0.3, mask_mels=0.3)
    raw = (noise(seconds, rate), rate)
    for prepared in (prepare_sound(raw, spec), prepare_sound(raw, spec, augment)):
        assert prepared.shape == (1, 64, 100)
        assert prepared.dtype == torch.float32
        assert prepared.isfinite().all()
        assert prepared.is_contiguous()


def test_silence_is_finite():
    spec = sound_spec(resnet(seconds=1))
    everything = AudioAugment(shift=True, gain_db=6, noise_snr_db=(10, 20), mask_time=0.5, mask_mels=0.5)
    for prepared in (prepare_sound(np.zeros(8000), spec), prepare_sound(np.zeros(8000), spec, everything)):
        assert torch.allclose(prepared, torch.tensor(-100.0))


def test_a_short_recording_is_repeated_whole_then_silent():
    assert fit_length(torch.tensor([1.0, 2.0, 3.0]), 8).tolist() == [1, 2, 3, 1, 2, 3, 0, 0]
    assert fit_length(torch.arange(9.0), 4).tolist() == [0, 1, 2, 3]


def test_of_a_long_recording_the_middle_is_heard_and_in_training_any_part():
    spec = sound_spec(resnet(seconds=1, rate=16_000))
    quiet, loud = np.zeros(64_000, dtype=np.float32), noise(1, 16_000)
    quiet[24_000:40_000] = loud
    assert torch.equal(prepare_sound(quiet, spec), prepare_sound(loud, spec))
    heard = {float(prepare_sound(quiet, spec, AudioAugment()).mean()) for _ in range(8)}
    assert len(heard) > 4


def test_gain_and_noise_have_the_level_asked():
    spec = sound_spec(resnet(seconds=1))
    plain, samples = prepare_sound(noise(1, 16_000), spec), noise(1, 16_000)
    change = [
        float((prepare_sound(samples, spec, AudioAugment(gain_db=6)) - plain).mean()) for _ in range(20)
    ]
    assert -6 <= min(change) < -3
    assert 3 < max(change) <= 6.001
    tone = np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000).astype(np.float32)
    rest = prepare_sound(tone, spec, AudioAugment(noise_snr_db=(20, 20)))[0, 40:]
    wanted = log_mel(torch.randn(16_000) * (0.5**0.5) / 10, spec)[40:, : spec.frames]
    assert float((rest - wanted).mean()) == pytest.approx(0, abs=0.5)


def test_specaugment_hides_no_more_than_asked_behind_the_mean():
    torch.manual_seed(1)
    mel = torch.randn(1, 40, 100)
    for _ in range(20):
        changed = mask_spectrogram(mel, AudioAugment(mask_time=0.2, mask_mels=0.25)) != mel
        assert int(changed[0].all(0).sum()) <= 20
        assert int(changed[0].all(1).sum()) <= 10
    assert torch.equal(mask_spectrogram(mel, AudioAugment()), mel)


@pytest.mark.parametrize("mels", [16, 40, 64, 80, 128, 256])
def test_no_mel_filter_is_empty(mels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = sound_spec(resnet(mels=mels, seconds=0.5))
        prepared = prepare_sound(noise(0.5, 16_000), spec)
    assert prepared.amax(dim=(0, 2)).min() > -99


def test_a_backbone_sees_the_spectrogram_normalised():
    options = resnet(seconds=2, hop_ms=20)
    encoder = mel_encoder(options, 24, pretrained=False).eval()
    prepared = prepare_sound(noise(2, 16_000), sound_spec(options))[None]
    wanted = encoder.head(encoder.trunk((prepared + 18.5) / 19.8))
    assert torch.allclose(encoder(prepared), wanted, atol=1e-5)


def test_a_vit_needs_a_window_its_patches_divide():
    timm = {"model": "test_vit", "pretrained": False}
    assert mel_encoder(AudioOptions(timm=timm, seconds=2.56), 8, pretrained=False)
    with pytest.raises(RecipeError, match=r"patches of .16, 16., which do not divide its input of .64, 250."):
        mel_encoder(AudioOptions(timm=timm, seconds=2.5), 8, pretrained=False)


@pytest.mark.parametrize("raw", [np.array([]), np.array([np.nan, 0.0]), "nowhere.wav", None])
def test_what_is_no_sound_is_refused(raw):
    with pytest.raises(DataError):
        prepare_sound(raw, sound_spec(resnet()))
    with pytest.raises(DataError):
        prepare_fused(raw, sound_spec(AudioOptions(htsat=htsat(fused=True))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"htsat": None}, "give either htsat or timm"),
        ({"rate": 16_000}, "rate: HTSAT hears 10 s at 48 kHz in 64 mel bands; use timm to choose"),
        (
            {"timm": {"model": "resnet18", "pretrained": False}, "fmax": 9000},
            "fmin < fmax <= rate / 2 must hold",
        ),
        ({"htsat": {"pretrained": True}}, "name a hub id"),
        ({"htsat": {"pretrained": "clap.pkl"}}, "is a pickle"),
        ({"htsat": {"pretrained": False, "config": {"enable_fusion": True}}}, "write fused: true"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        AudioOptions(**options)


def test_crops_are_windows_from_the_beginning_to_the_end():
    options = {"seconds": 1, "rate": 16_000}
    spec = sound_spec(resnet(crops=3, **options))
    samples = noise(3, 16_000)
    prepared = prepare_sound(samples, spec)
    assert prepared.shape == (3, 1, 64, 100)
    for number, crop in enumerate(prepared):
        part = samples[number * 16_000 : (number + 1) * 16_000]
        assert torch.equal(crop, prepare_sound(part, sound_spec(resnet(**options))))
    assert prepare_sound(samples, spec, AudioAugment()).shape == (1, 64, 100)  # training hears one
    short = prepare_sound(samples[:9000], spec)
    assert torch.equal(short, short[:1].expand(3, -1, -1, -1))
    assert short.is_contiguous()


@pytest.mark.parametrize("kind", ["htsat", "timm"])
def test_several_crops_are_embedded_as_the_mean_of_their_unit_embeddings(kind):
    options = AudioOptions(htsat=htsat(), crops=3) if kind == "htsat" else resnet(crops=3, seconds=1)
    if kind == "htsat":
        encoder = htsat_encoder(options.htsat, 24, head="linear", pretrained=False).eval()
    else:
        encoder = mel_encoder(options, 24, pretrained=False).eval()
    rate = sound_spec(options).rate
    seconds = 2.5 * sound_spec(options).samples / rate
    batch = torch.stack([prepare_sound(noise(seconds, rate, seed), sound_spec(options)) for seed in (0, 1)])
    with torch.no_grad():
        together = encoder(batch)
        one_by_one = [torch.nn.functional.normalize(encoder(batch[:, crop]), dim=-1) for crop in range(3)]
    assert together.shape == (2, 24)
    assert torch.allclose(together, torch.stack(one_by_one).mean(0), atol=1e-5)


def test_loudness_makes_a_faint_recording_as_loud_as_another():
    spec = sound_spec(resnet(seconds=1, rate=16_000, loudness=-30))
    plain = sound_spec(resnet(seconds=1, rate=16_000))
    samples = noise(1, 16_000) / 10
    near, far = prepare_sound(samples, spec), prepare_sound(samples / 5, spec)
    assert torch.allclose(near, far, atol=0.01)
    assert float((prepare_sound(samples, plain) - prepare_sound(samples / 5, plain)).mean()) > 13
    fused = sound_spec(AudioOptions(htsat=htsat(fused=True), loudness=-30))
    near, far = prepare_fused(samples, fused)["mel"], prepare_fused(samples / 5, fused)["mel"]
    assert torch.allclose(near, far, atol=0.05)


def test_a_fused_htsat_has_no_use_for_crops():
    with pytest.raises(ValidationError, match="crops: a fused HTSAT hears a longer recording as a whole"):
        AudioOptions(htsat=htsat(fused=True), crops=2)


@pytest.mark.parametrize("seconds", [4, 13])
@pytest.mark.parametrize(
    "option",
    [{"gain_db": 12}, {"noise_snr_db": (0, 0)}, {"shift": True}, {"mask_time": 0.5}, {"mask_mels": 0.5}],
)
def test_every_change_reaches_the_fused_spectrograms_too(seconds, option):
    spec, raw = sound_spec(AudioOptions(htsat=htsat(fused=True))), noise(seconds)
    raw[: len(raw) // 2] *= 0.1  # so that a shift shows

    def prepared(augment):
        torch.manual_seed(3)
        return prepare_fused(raw, spec, augment)["mel"]

    plain, changed = prepared(AudioAugment()), prepared(AudioAugment(**option))
    assert changed.shape == plain.shape
    assert changed.isfinite().all()
    assert float((changed - plain).abs().mean()) > 0.5  # decibels
    assert torch.equal(changed, prepared(AudioAugment(**option)))
