import io

import numpy as np
import pytest
import soundfile
import torch

from geobind.data.readers import audio
from geobind.data.readers.audio import audio_seconds, read_audio
from geobind.data.readers.text import read_text

RATE = 16_000


def tone(rate=RATE, seconds=1.0, hertz=440.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def encoded(samples, rate=RATE, kind="WAV", **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "error"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.1), ("MP3", 0.1)])
def test_files_bytes_and_arrays_give_the_same_sound(tmp_path, kind, error):
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(tone(), kind=kind))
    for raw in (path, str(path), path.read_bytes(), (tone(), RATE), tone(), torch.tensor(tone())):
        sound = read_audio(raw, RATE)
        assert sound.dtype == torch.float32
        assert abs(len(sound) - RATE) < 2500  # MP3 pads
        assert (sound[2000:14000].numpy().std() - tone().std()) < error


def test_resampling_keeps_the_tone_and_removes_what_does_not_fit():
    low = read_audio((tone(44_100), 44_100), RATE)
    assert len(low) == RATE
    assert np.abs(low[2000:-2000].numpy() - tone()[2000:-2000]).max() < 1e-3
    high = read_audio((tone(44_100, hertz=10_000), 44_100), RATE)
    assert high[2000:-2000].abs().max() < 1e-4


def test_channels_are_averaged_whichever_axis_they_are_on():
    stereo = np.stack([tone(), np.zeros_like(tone())])
    for raw in (stereo, stereo.T, encoded(stereo.T, subtype="FLOAT")):
        assert np.allclose(read_audio(raw, RATE), tone() / 2, atol=1e-6)


@pytest.mark.parametrize(("kind", "full"), [(np.int16, 32767), (np.int32, 2**31 - 1), (np.uint8, 255)])
def test_integers_become_fractions_of_full_scale(kind, full):
    assert read_audio(np.full(10, full, kind), RATE)[0] == pytest.approx(1.0, abs=0.01)


def test_a_window_is_that_part_of_the_whole(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(encoded(tone(8000, 3), 8000, "FLAC"))
    whole = read_audio(path, 8000)
    for raw in (path, (whole, 8000)):
        assert torch.equal(read_audio(raw, 8000, start=1.5, seconds=0.5), whole[12_000:16_000])
        assert torch.equal(read_audio(raw, 8000, start=2.75, seconds=0.5), whole[22_000:])
    assert audio_seconds(path, RATE) == audio_seconds((whole, 8000), RATE) == 3.0


def test_a_long_file_is_decoded_in_blocks(monkeypatch):
    file = encoded(tone())
    whole = read_audio(file, RATE)
    monkeypatch.setattr(audio, "_BLOCK", 999)
    assert torch.equal(read_audio(file, RATE), whole)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", ("0 bytes",)),
        (b"\0\0\0 ftypM4A " + bytes(100), ("not a sound", "ffmpeg")),
        ("no/such.wav", ("no/such.wav: no such file",)),
        (np.zeros(0, np.float32), ("no samples",)),
        (encoded(np.zeros(0, np.float32)), ("no samples",)),
        (np.array([0.0, np.nan], np.float32), ("NaN",)),
        (np.zeros(3, np.int64), ("int64 have no full scale",)),
        (np.zeros((2, 2, 2), np.float32), ("(2, 2, 2)",)),
        ((tone(), 0), ("not 0",)),
        ((tone(), 44_100.5), ("44100.5",)),
        ([0.0, 1.0], ("not a list",)),
    ],
)
def test_what_is_no_sound_is_refused_with_a_reason(refused, raw, words):
    refused(lambda: read_audio(raw, RATE), *words)


def test_lengths_are_checked_before_decoding(refused, monkeypatch):
    file = encoded(np.zeros(100 * 8000, np.int16), 8000, "FLAC")
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *a, **k: pytest.fail("it was decoded"))
    refused(lambda: read_audio(file, RATE, max_seconds=99), "100 s of 1 channels", "cut it into clips")


def test_a_window_past_the_end_and_a_senseless_one_are_refused(refused):
    refused(lambda: read_audio(tone(), RATE, start=2.0), "past its end")
    refused(lambda: read_audio(tone(), RATE, seconds=0.0), "no such window")
    refused(lambda: read_audio(tone(), 0), "no such window or rate")


def test_a_cut_file_is_read_as_far_as_it_goes_or_refused(refused):
    file = encoded(tone(seconds=2), kind="FLAC")
    refused(lambda: read_audio(file[: len(file) // 2], RATE), "bytes given")
    wav = encoded(tone(seconds=2))
    assert 0 < len(read_audio(wav[: len(wav) // 2], RATE)) <= RATE


def test_real_clips_are_read(real_data):
    clips = sorted((real_data / "audio").rglob("*.ogg"))[:3]
    assert clips
    for clip in clips:
        sound = read_audio(clip, RATE)
        assert abs(len(sound) / RATE - audio_seconds(clip, RATE)) < 0.01


def test_text_comes_from_strings_files_and_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffein Fluß \n".encode())
    assert read_text(tmp_path / "a.txt") == "ein Fluß"
    assert read_text(b" a river ") == "a river"
    assert read_text("a.txt") == "a.txt"  # a string is the text itself


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("  ", ("is empty",)),
        (b"\xff\xfe", ("not UTF-8",)),
        (b"x" * 1_000_001, ("over 1000000 bytes",)),
        ("half \ud800", ("surrogate",)),
        (None, ("not a NoneType",)),
    ],
)
def test_what_is_no_text_is_refused(refused, raw, words):
    refused(lambda: read_text(raw), *words)
