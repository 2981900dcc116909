"""That the length of a sound is that of its samples, in every format, and what reading one costs at most."""

import builtins
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data.readers import audio, sound_headers
from geobind.data.readers.audio import audio_seconds, open_recording, read_audio
from geobind.errors import DataError
from geobind.towers.audio import prepare_sound, sound_spec
from geobind.towers.options import AudioOptions

RATE = 16_000
SMALL = {"model": "mobilenetv3_small_050", "pretrained": False}
PADDED = ("GSM610", "ADPCM")  # their containers hold whole blocks
UNSEEKABLE = ("GSM610", "NMS_ADPCM", "G721", "G723", "DWVW")  # refused: their length is not known
FORMATS = [
    (kind, subtype)
    for kind in (
        "WAV",
        "WAVEX",
        "RF64",
        "W64",
        "AIFF",
        "AU",
        "CAF",
        "FLAC",
        "OGG",
        "MP3",
        "VOC",
        "NIST",
        "SVX",
    )
    for subtype in soundfile.available_subtypes(kind)
    if soundfile.check_format(kind, subtype) and "DWVW" not in subtype and subtype != "OPUS"
    if not subtype.startswith("G72")  # which cannot be read from the middle
]


def noise(samples, channels=1):
    value = np.random.default_rng(samples).uniform(-0.5, 0.5, (samples, channels)).astype(np.float32)
    return value[:, 0] if channels == 1 else value


def encoded(samples_T, kind="FLAC", subtype=None, rate=RATE, **options):
    target = io.BytesIO()
    soundfile.write(target, samples_T, rate, format=kind, subtype=subtype, **options)
    return target.getvalue()


def lengths(content):
    """The length that is told, and the number of samples there are."""
    with open_recording(content, RATE) as recording:
        return recording.frames, len(recording.read(recording.rate))


def flac_of_total(content, total):
    changed = bytearray(content)
    changed[21:26] = ((changed[21] & 0xF0) << 32 | total).to_bytes(5, "big")
    return bytes(changed)


def without_info(content):
    """An MP3 without its first frame, which says how many follow."""
    begin, mpeg = sound_headers._find_first_frame(io.BytesIO(content), 0)
    return content[begin + mpeg.size(content[begin : begin + 4]) :]


@settings(deadline=None, max_examples=120)
@given(
    form=st.sampled_from(FORMATS),
    samples=st.integers(1, 30_000),
    channels=st.sampled_from([1, 1, 2]),
    cut=st.sampled_from([0.0, 0.0, 0.2, 0.7]),
)
def test_the_length_told_is_that_of_the_samples(form, samples, channels, cut):
    kind, subtype = form
    try:
        content = encoded(noise(samples, channels), kind, subtype)
    except (soundfile.SoundFileError, ValueError):
        return  # one channel alone, or two many for its container
    content = content[: len(content) - int(cut * len(content))]
    try:
        told, there = lengths(content)
    except DataError:
        assert cut or samples < 2000 or kind == "VOC" or any(word in subtype for word in UNSEEKABLE)
        return
    assert told == there
    if kind == "VOC":  # its header holds a rate only roughly: 16,129 Hz for 16,000
        assert audio_seconds(content, RATE) == pytest.approx(told / RATE, rel=0.02)
        return
    if not cut:
        # One byte more where a container wants an even number.
        assert samples <= told <= samples + (1100 if any(word in subtype for word in PADDED) else 1)
    assert audio_seconds(content, RATE) == told / RATE
    middle = read_audio(content, RATE, start=told / RATE / 2, seconds=0.1)
    assert len(middle) == min(round(0.1 * RATE), told - round(told / 2))


@settings(deadline=None, max_examples=60)
@given(samples=st.integers(1, 40_000), lie=st.integers(-9000, 9000), after=st.sampled_from([0, 0, 128, 5000]))
def test_a_flac_is_as_long_as_its_frames(samples, lie, after):
    content = encoded(noise(samples)) + (b"TAG" + bytes(after - 3) if after else b"")
    assert lengths(flac_of_total(content, 0)) == (samples, samples)
    stated = max(1, samples + lie)
    if stated > samples:
        with pytest.raises(DataError, match=f"promises {stated} samples but there are {samples}"):
            lengths(flac_of_total(content, stated))
    else:
        assert lengths(flac_of_total(content, stated)) == (samples, samples)


@settings(deadline=None, max_examples=40)
@given(samples=st.integers(5000, 40_000), kept=st.floats(0.2, 0.999))
def test_a_flac_of_unknown_length_that_is_cut_ends_with_its_last_whole_frame(samples, kept):
    whole = noise(samples)
    content = flac_of_total(encoded(whole, subtype="PCM_16"), 0)
    content = content[: int(len(content) * kept)]
    try:
        told, there = lengths(content)
    except DataError as error:
        assert "no samples" in str(error)  # not one frame is left
        return
    assert told == there <= samples
    assert np.abs(read_audio(content, RATE).numpy() - whole[:told]).max() < 1e-4


def test_a_flac_that_lacks_frames_in_its_middle_is_refused(refused):
    content = encoded(noise(100_000))
    for changed in (content, flac_of_total(content, 0)):
        refused(lambda changed=changed: lengths(changed[:60_000] + changed[120_000:]), "damaged")


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_is_as_long_as_its_frames(rate, mode):
    quiet_then_loud = np.concatenate([1e-4 * noise(3 * rate), noise(3 * rate)])
    content = encoded(quiet_then_loud, "MP3", rate=rate, bitrate_mode=mode, compression_level=0.5)
    bare = without_info(content)
    frame = 1152 if rate >= 32_000 else 576
    for changed, samples in (
        (content, 6 * rate),
        (bare, 6 * rate),
        (bytes(3000) + bare, 6 * rate),  # what was cut through, or padded
        (bare[50:], 6 * rate),
        (b"ID3\4\0\0\0\0\1\0" + bytes(128) + bare, 6 * rate),
        (bare + b"TAG" + bytes(125), 6 * rate),
        (content + content, 12 * rate),  # joined, as `cat` does
        (content + b"ID3\4\0\0\0\0\1\0" + bytes(128) + content, 12 * rate),
    ):
        told, there = lengths(changed)
        assert told == there
        assert abs(told - samples) < 6 * frame
    assert np.std(read_audio(bare, rate, start=4.0, seconds=1.0).numpy()) > 0.1
    told, there = lengths(content[: len(content) // 2])
    assert told == there < 6 * rate


def test_mpeg_audio_is_known_whatever_lies_in_the_working_folder(tmp_path, monkeypatch):
    content = encoded(noise(RATE), "MP3")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "._").write_bytes(bytes(300))  # libsndfile takes it for half of another format
    assert len(read_audio(content, RATE)) == RATE


def test_recordings_joined_into_one_ogg_file_are_refused(refused):
    content = encoded(noise(RATE), "OGG")
    refused(lambda: lengths(content + content), "several recordings, one after the other")
    assert lengths(content) == (RATE, RATE)


def test_an_ogg_file_that_lacks_pages_is_refused(refused):
    content = encoded(noise(5 * RATE), "OGG")
    pages = [at for at in range(len(content)) if content[at : at + 4] == b"OggS"]
    refused(
        lambda: lengths(content[: pages[3]] + content[pages[4] :]),
        "samples can be decoded; the file is damaged or cut",
    )


def test_a_recording_longer_than_the_window_is_opened_once(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    path.write_bytes(encoded(noise(4 * RATE)))
    opened, decoders, described = [], [], []
    real_open, real_init, real_describe = builtins.open, soundfile.SoundFile.__init__, audio.describe
    monkeypatch.setattr(
        builtins, "open", lambda file, *a, **k: opened.append(str(file)) or real_open(file, *a, **k)
    )
    monkeypatch.setattr(
        soundfile.SoundFile, "__init__", lambda self, *a, **k: decoders.append(1) or real_init(self, *a, **k)
    )
    monkeypatch.setattr(audio, "describe", lambda raw: described.append(raw) or real_describe(raw))
    for crops in (1, 3):
        opened.clear()
        decoders.clear()
        spec = sound_spec(AudioOptions(timm=SMALL, seconds=1, crops=crops))
        prepare_sound(path, spec)
        assert opened.count(str(path)) == len(decoders) == 1
    assert not described  # names are for messages


def test_a_sound_that_cannot_be_read_from_its_middle_is_refused(refused):
    refused(
        lambda: lengths(encoded(noise(RATE), "AU", "G721_32")), "not a sound that can be decoded", "ffmpeg"
    )


@pytest.mark.parametrize(("source", "rate"), [(44_100, 16_000), (8000, 48_000), (16_000, 16_001)])
def test_resampling_block_by_block_is_resampling_the_whole(monkeypatch, source, rate):
    samples_T = noise(50_000)
    whole_T = soxr.resample(samples_T, source, rate, quality="HQ")
    for size in (999, 10**6):
        monkeypatch.setattr(audio, "_BLOCK", size)
        assert np.array_equal(read_audio((samples_T, source), rate).numpy(), whole_T)


def test_an_array_is_not_changed_by_reading_it():
    samples_T = noise(RATE)
    before = samples_T.copy()
    read_audio((samples_T, RATE), RATE, loudness=-40.0).mul_(0)
    assert np.array_equal(samples_T, before)
    assert read_audio(torch.from_numpy(samples_T), RATE)[5] == samples_T[5]


def test_a_sound_whose_result_would_be_too_long_is_refused_before_it_is_decoded(refused, monkeypatch):
    content = encoded(np.zeros(100 * 8000, np.int16), rate=8000)
    monkeypatch.setattr(audio, "_MAX_SAMPLES", 1_000_000)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("it was decoded"))
    refused(lambda: read_audio(content, 48_000), "at most 3600 s and 1 million samples")


_MEASURE = """
import resource, sys
import numpy, soundfile, soxr, torch
from geobind.data.readers.audio import read_audio
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = len(read_audio(sys.argv[1], int(sys.argv[2]), loudness=-30.0))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "rate"), [(1, 16_000), (1, 48_000), (8, 48_000)])
def test_memory_is_that_of_the_result(tmp_path, channels, rate):
    """60 million samples of one channel are 240 MB at their own rate, and 80 MB at a third of it."""
    path, frames = tmp_path / "a.flac", 60_000_000 // channels
    with soundfile.SoundFile(path, "w", 48_000, channels, "PCM_16", format="FLAC") as file:
        for _ in range(10):
            file.write(np.zeros((frames // 10, channels), np.int16))
    assert path.stat().st_size < 2_000_000
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, path, str(rate)], env=env, capture_output=True, text=True, check=True
    )
    count, peak = map(int, done.stdout.split())
    result = 4 * count / 2**20
    assert peak < result + 200  # loudness is measured piece by piece
