"""Media of raw inputs, chosen by type."""

import base64
import io
import wave

import numpy as np
import pytest
import torch
from PIL import Image
from small_world import EVIL

from geobind.report.media import CLIP_RATE, SIDE, Media, MediaBudget, build_media

pytestmark = pytest.mark.slow

PIXELS = np.arange(300 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 200, 3)
WAVE = (0.5 * np.sin(np.arange(16_000 * 5) / 20)).astype(np.float32)


def content(uri: str) -> bytes:
    return base64.b64decode(uri.split("base64,")[1])


def image(shown: Media) -> Image.Image:
    return Image.open(io.BytesIO(content(shown.picture)))


def sound_file(folder, rate=16_000):
    import soundfile

    path = folder / "noise.bin"  # the name says nothing
    soundfile.write(path, WAVE, rate, format="FLAC")
    return path


def test_an_array_of_pixels_is_a_picture_that_fits_the_page():
    shown = build_media(PIXELS)
    assert shown.alt == "picture of 200 by 300 pixels"
    assert max(image(shown).size) == SIDE
    assert (shown.sound, shown.words) == ("", "")


@pytest.mark.parametrize("shape", [(64, 64), (12, 64, 64), (64, 64, 12), (64, 64, 1), (2, 64, 64)])
@pytest.mark.parametrize("kind", [np.float32, np.uint16, np.uint8])
def test_an_array_of_bands_is_a_picture_too(shape, kind):
    values = np.random.default_rng(0).uniform(0, 200, shape).astype(kind)
    assert image(build_media(values)).size == (64, 64)


def test_bands_that_are_not_shown_are_told_and_holes_do_no_harm():
    values = np.full((12, 32, 32), np.nan, dtype=np.float32)
    assert build_media(values).note == "bands 1 to 3 of 12, stretched"


@pytest.mark.parametrize("number", [torch.zeros(3, 32, 32), torch.zeros(32, 32)])
def test_a_tensor_is_shown_like_an_array(number):
    assert image(build_media(number)).size == (32, 32)


def test_a_short_array_is_its_first_numbers():
    assert build_media(np.array([0.25, 1000.0], dtype=np.float32)).words == "float32 (2,): 0.250, 1,000.0"
    assert build_media(np.arange(40)).words.endswith(", …")
    assert build_media(np.array(["a", "b"])).words.startswith("<U1 (2,)")


def test_a_sound_is_a_spectrogram_and_a_player_of_its_beginning():
    shown = build_media((WAVE, 16_000))
    assert shown.note == "the first 3 s of 5.0 s"
    assert image(shown).size == (SIDE, SIDE // 2)
    with wave.open(io.BytesIO(content(shown.sound))) as file:
        assert file.getframerate() == CLIP_RATE
        assert file.getnframes() == pytest.approx(3 * CLIP_RATE, abs=2)
        played_T = np.frombuffer(file.readframes(-1), dtype="<i2")
    assert 0.45 < np.abs(played_T).max() / 32768 < 0.55


def test_a_spectrogram_has_its_tone_at_its_height():
    tone_T = np.sin(2 * np.pi * 2000 * np.arange(16_000) / 16_000).astype(np.float32)
    rows = np.asarray(image(build_media((tone_T, 16_000))).convert("L"), dtype=float).mean(axis=1)
    assert abs(rows.argmax() / len(rows) - 0.75) < 0.03  # 2 kHz of 8, counted from below


def test_a_sound_shorter_than_a_window_is_shown():
    assert build_media((np.zeros(10, dtype=np.int16), 8000)).sound


def test_files_are_known_by_their_content(tmp_path):
    picture = tmp_path / "a.wav"
    Image.fromarray(PIXELS).save(picture, "PNG")
    assert build_media(picture).alt == "picture of 200 by 300 pixels"
    assert build_media(picture.read_bytes()).picture
    assert build_media(sound_file(tmp_path)).sound
    text = tmp_path / "a.png"
    text.write_text("a river")
    assert build_media(text).words == "a river"


def test_a_file_that_is_nothing_known_is_its_name_and_the_reason(tmp_path):
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"\x00\x01\x80" * 40)
    shown = build_media(broken)
    assert shown.words == "broken.tif"
    assert "cannot be shown: broken.tif: not a readable" in shown.note
    assert str(tmp_path) not in shown.note + shown.words
    assert "no such file" in build_media(tmp_path / "missing.png").note


def test_a_string_is_text_even_if_it_looks_like_a_file_or_a_script():
    assert build_media("sea.png").words == "sea.png"
    assert build_media(EVIL).words == EVIL  # escaping is the page's work
    long = build_media("word " * 200).words
    assert len(long) <= 300
    assert long.endswith("word…")


def test_anything_else_is_its_short_name():
    assert build_media({"a": 1}).words == "{'a': 1}"
    assert build_media((1, 2)).words == "(1, 2)"
    assert build_media(Image.fromarray(PIXELS)).picture


def test_sounds_and_pictures_stay_within_the_budget_and_what_is_left_out_is_counted():
    sound = build_media((WAVE, 16_000))
    budget = MediaBudget(pictures=10**7, sounds=3 * len(sound.sound), parts=2)
    budget.next_part()  # half of the room: one sound
    assert [bool(budget.admit(sound).sound) for _ in range(3)] == [True, False, False]
    budget.next_part()  # what is left: two
    assert [bool(budget.admit(sound).sound) for _ in range(3)] == [True, True, False]
    assert budget.left_out == 3
    tight = MediaBudget(pictures=0, sounds=0, parts=1)
    tight.next_part()
    assert tight.admit(build_media(PIXELS)).words == "picture of 200 by 300 pixels"
