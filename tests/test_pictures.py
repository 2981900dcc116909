"""Pictures of raw inputs: a modality's own, else the input itself."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from geobind import Content, Modality, Place
from geobind.data.contact_sheet import draw_raw
from geobind.errors import DataError
from geobind.modality import choose_picture
from geobind.plugins import MODALITY
from geobind.report.media import build_media

matplotlib.use("agg")
RAMP = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)


class Weather(Modality):
    """Words that are shown as whatever `shown` holds."""

    name = "weather"
    role = "trainable"

    def encoder(self, width, *, pretrained=True):
        raise NotImplementedError

    def prepare(self, raw, *, training=False):
        raise NotImplementedError

    def picture(self, raw):
        if raw == "broken":
            raise DataError("no weather in 'broken'")
        return {"ramp": RAMP, "words": "33 degrees", "tone": (np.zeros(4000, np.float32), 8000)}[raw]


class Plain(Weather):
    def picture(self, raw):
        return None


class Clock(Weather):
    name = "clock"
    widget = "clock"


def texts(axis):
    return [text.get_text() for text in axis.texts]


@pytest.fixture
def axis():
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_a_page_shows_the_picture_in_place_of_the_input():
    assert build_media(choose_picture(Weather(), "ramp")).picture.startswith("data:image/jpeg")
    assert build_media(choose_picture(Weather(), "words")).words == "33 degrees"
    assert build_media(choose_picture(Weather(), "tone")).sound.startswith("data:audio/wav")
    assert build_media(choose_picture(Plain(), "ramp")).words == "ramp"


def test_a_sheet_draws_the_picture_in_place_of_the_input(axis):
    draw_raw(axis, choose_picture(Weather(), "ramp"))
    assert axis.images[0].get_array().shape == (48, 64)
    draw_raw(axis, choose_picture(Weather(), "words"))
    assert texts(axis) == ["33 degrees"]


def test_a_sheet_draws_an_image_of_pillow_by_its_rows(axis):
    draw_raw(axis, Image.fromarray(np.zeros((48, 64, 3), np.uint8)))
    assert axis.images[0].get_array().shape == (48, 64, 3)


def test_a_picture_that_fails_is_a_note_and_no_end(axis):
    assert build_media(choose_picture(Weather(), "broken")).note == "cannot be shown: no weather in 'broken'"
    draw_raw(axis, choose_picture(Weather(), "unknown"))
    assert "Weather.picture raises KeyError" in texts(axis)[0].replace("\n", " ")


def test_what_is_missing_has_no_picture(axis):
    assert choose_picture(Weather(), None) is None


def test_a_place_is_shown_in_degrees(axis):
    place = Place(-33.8568, 151.2153)
    assert build_media(place).words == str(place) == "33.8568°S 151.2153°E"
    draw_raw(axis, place)
    assert "33.8568°S" in texts(axis)[0]


def test_a_widget_that_pages_do_not_have_is_a_fault_of_the_plugin():
    assert MODALITY.find_fault(Clock) == (
        "Clock.widget must be one of text, image, sound, place, numbers, file, not 'clock'"
    )


def test_content_is_bytes_with_a_name_for_messages():
    content = Content(b"GIF89a\xff", "upload.gif")
    assert content == b"GIF89a\xff"
    assert build_media(content).words == "upload.gif"
    assert build_media(content).note.startswith("cannot be shown: upload.gif: ")
    assert Content(b"GIF").name == ""
