import csv
import math

import geobind_yamnet_network as network
import numpy as np
import pytest
import torch
from geobind_yamnet import AudioYamnet
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from geobind.errors import CheckpointError, DataError, RecipeError
from geobind.towers.tower import Tower


def tone(hertz, seconds=1.0, amplitude=0.1):
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * 16_000)) / 16_000)


# The network


def test_a_window_has_96_frames_of_64_bands():
    assert network.LogMel()(torch.zeros(1, 15_600)).shape == (1, 96, 64)


def test_a_tone_is_loudest_in_the_band_that_holds_it():
    mel = network.LogMel()(tone(1000)[None, :15_600])[0].mean(0)
    edges = np.linspace(1127 * math.log1p(125 / 700), 1127 * math.log1p(7500 / 700), 66)
    assert int(mel.argmax()) == int(np.abs(edges[1:-1] - 1127 * math.log1p(1000 / 700)).argmin())


def test_silence_is_the_logarithm_of_the_offset():
    assert torch.allclose(network.LogMel()(torch.zeros(1, 15_600)), torch.tensor(math.log(1e-3)))


def test_the_front_end_keeps_float32_under_mixed_precision():
    window = tone(440)[None, :15_600] * 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network.LogMel()(window)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, network.LogMel()(window))


def same_padded(image, kernel, stride):
    """TensorFlow's SAME, by its definition: out = ceil(size / stride), the odd pixel at the end."""
    height, width = image.shape
    rows, columns = -(-height // stride), -(-width // stride)
    down = max((rows - 1) * stride + len(kernel) - height, 0)
    across = max((columns - 1) * stride + len(kernel) - width, 0)
    padded = np.pad(image, ((down // 2, down - down // 2), (across // 2, across - across // 2)))
    out = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            part = padded[i * stride : i * stride + len(kernel), j * stride : j * stride + len(kernel)]
            out[i, j] = (part * kernel).sum()
    return out


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2]), st.sampled_from([1, 3]), st.integers(0, 99)
)
def test_convolutions_pad_as_tensorflow_does(height, width, stride, size, seed):
    rng = np.random.default_rng(seed)
    image, kernel = rng.standard_normal((height, width)), rng.standard_normal((size, size))
    conv = network.SameConv2d(1, 1, kernel=size, stride=stride).double()
    conv.weight.data[0, 0] = torch.from_numpy(kernel)
    ours = conv(torch.from_numpy(image)[None, None])[0, 0].detach().numpy()
    np.testing.assert_allclose(ours, same_padded(image, kernel, stride), atol=1e-12)


def test_there_are_27_convolutions_and_3_2_million_weights():
    yamnet = network.Yamnet()
    assert len(yamnet.convs) == 27
    assert [conv.groups > 1 for conv in yamnet.convs] == [i % 2 == 1 for i in range(27)]
    assert sum(p.numel() for p in yamnet.parameters()) == 3_195_456


def test_a_random_network_neither_fades_nor_explodes():
    torch.manual_seed(0)
    features = network.Yamnet()(torch.randn(2, 15_600) * 0.1).detach()
    assert features.shape == (2, 1024) and 1e-2 < features.mean().item() < 1e2


@settings(deadline=None, max_examples=30)
@given(st.integers(15_600, 100_000))
def test_windows_cover_every_sample(samples):
    windows_BWL = network.windows(torch.arange(samples, dtype=torch.float64)[None])
    assert windows_BWL.shape[1] == math.ceil(samples / 15_600)
    assert len(windows_BWL.unique()) == samples


def test_a_clip_is_the_mean_of_its_windows():
    torch.manual_seed(0)
    trunk, clip = network.ClipTrunk().eval(), torch.randn(1, 31_200) * 0.1
    with torch.no_grad():
        halves = trunk.yamnet(clip.view(2, 15_600)).mean(0)
        assert torch.allclose(trunk(clip)[0], halves, atol=1e-5)


# Preparing


def test_short_sounds_are_repeated_and_long_ones_lose_both_ends():
    wave = torch.arange(10.0)
    assert network.cut(wave, 25, training=False).tolist() == [i % 10 for i in range(25)]
    assert network.cut(wave, 4, training=False).tolist() == [3, 4, 5, 6]


def test_training_starts_anywhere_and_evaluation_always_in_the_middle():
    modality, wave = AudioYamnet(seconds=1.0), torch.randn(40_000) * 0.1
    starts = [modality.prepare(wave, training=True) for _ in range(4)]
    assert not torch.equal(starts[0], starts[1]) or not torch.equal(starts[0], starts[2])
    assert torch.equal(modality.prepare(wave), modality.prepare(wave))


@pytest.mark.parametrize("amplitude", [0.001, 0.05, 0.9])
def test_loudness_is_evened_out(amplitude):
    wave = AudioYamnet(seconds=1.0).prepare(tone(440, amplitude=amplitude))
    assert 20 * math.log10(wave.square().mean().sqrt()) == pytest.approx(-26, abs=0.1)


def test_a_click_is_not_amplified_beyond_full_scale():
    wave = torch.zeros(16_000)
    wave[8000] = 0.5
    assert float(network.level(wave, -6.0).abs().max()) == 1.0


def test_silence_stays_silent():
    assert not AudioYamnet(seconds=1.0).prepare(torch.zeros(16_000)).any()


def test_the_low_pass_keeps_what_is_below_and_removes_what_is_above():
    mixed = network.lowpass(tone(1000) + tone(6000), 4000)
    assert torch.allclose(mixed, tone(1000), atol=5e-4)


# Weights


def test_missing_weights_are_asked_for():
    with pytest.raises(RecipeError, match="give `weights`"):
        AudioYamnet().encoder(8)


def test_weights_of_another_network_are_refused(tmp_path):
    save_file({"conv0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        AudioYamnet(weights=tmp_path / "other.safetensors").encoder(8)


def test_the_head_can_be_trained_alone():
    encoder = AudioYamnet(head="linear").encoder(8, pretrained=False)
    assert isinstance(encoder, Tower)
    assert sum(p.numel() for p in encoder.head.parameters()) == 2 * 1024 + 1024 * 8 + 8


def test_a_sound_that_cannot_be_read_is_refused():
    with pytest.raises(DataError):
        AudioYamnet().prepare("no such file.wav")


# On real sounds and weights


@pytest.fixture(scope="module")
def weights(data):
    return data / "weights" / "yamnet_fp16.safetensors"


@pytest.fixture(scope="module")
def esc10(data):
    """Class and group of the clips of five classes, and the features of each of their windows."""
    with open(data / "audio" / "manifest.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == "esc10"]
    modality = AudioYamnet(weights=data / "weights" / "yamnet_fp16.safetensors", loudness_db=None)
    yamnet = modality.encoder(8).eval().trunk.yamnet
    with torch.no_grad():
        clips = [yamnet(network.windows(modality.prepare(data / row["file"])[None])[0]) for row in rows]
    return [row["cls"] for row in rows], [row["group"] for row in rows], torch.stack(clips)


def test_the_computed_front_end_is_the_one_the_weights_were_trained_with(weights):
    stored, front = load_file(weights), network.LogMel()
    assert torch.allclose(front.hann_L, stored["window"].float(), atol=3e-4)
    assert torch.allclose(front.mel_MF, stored["mel.weight"].float(), atol=3e-4)
    assert torch.allclose(stored["mel.bias"].float(), torch.tensor(network.LOG_OFFSET), atol=1e-6)


def test_weights_stored_in_float16_are_computed_in_float32(weights):
    encoder = AudioYamnet(weights=weights).encoder(8)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


@pytest.mark.slow
def test_audioset_classes_are_heard_in_real_clips(data, weights, esc10):
    """Of the five AudioSet classes named below, nearly every clip scores highest in its own."""
    heard = {"rain": "Rain", "sea_waves": "Ocean", "dog_bark": "Dog", "helicopter": "Helicopter"}
    heard["rooster"] = "Chicken, rooster"
    stored = load_file(weights)
    with open(data / "weights" / "yamnet_class_map.csv", newline="") as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    columns = [names.index(name) for name in heard.values()]
    classes, _, features = esc10
    scores = features @ stored["head.weight"].float().T + stored["head.bias"].float()
    best = scores[..., columns].amax(1).argmax(1)  # over windows, because many clips end in silence
    own = torch.tensor([list(heard).index(c) for c in classes])
    for position, name in enumerate(heard):
        assert (best[own == position] == position).float().mean() >= 0.9, name


def test_a_linear_probe_separates_real_clips(esc10):
    """Ridge regression, five folds that keep the clips of one recording together."""
    classes, groups, features = esc10
    order = sorted(set(classes))
    target = torch.eye(len(order))[[order.index(c) for c in classes]]
    fold = torch.tensor([sorted(set(groups)).index(group) % 5 for group in groups])
    inputs = torch.nn.functional.layer_norm(features.mean(1), (1024,))
    right = 0
    for held_out in (fold == k for k in range(5)):
        x, y = inputs[~held_out], target[~held_out]
        weight = torch.linalg.solve(x.T @ x + 10 * torch.eye(1024), x.T @ y)
        right += int(((inputs[held_out] @ weight).argmax(1) == target[held_out].argmax(1)).sum())
    assert right / len(classes) >= 0.9
