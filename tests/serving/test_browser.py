"""The page in a browser: asked by words, sound, picture and place; looked at, compared, shared by a link."""

import base64
import json
import re
import time

import chromium
import pytest
import served

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.BROWSER is None, reason="no chromium here")]
TILES = "document.querySelectorAll('#gallery .tile').length"
STATUS = "document.getElementById('status').textContent"
DRAWN = "[...document.querySelectorAll('.maplibregl-canvas')].length"


@pytest.fixture
def page(browser, server):
    """The page of the server, fresh, on a wide screen."""
    browser.requests.clear(), browser.console.clear(), browser.failed.clear()
    browser.size(1280, 800)
    browser.open(server.address)
    browser.wait("document.querySelector('#parts input')")
    yield browser
    own = (server.address, "data:", "blob:", "about:")
    assert [one for one in browser.requests if not one.startswith(own)] == []
    assert browser.console == []
    assert browser.failed == []


def ask_words(page, words, which="text"):
    field = f'[data-modality="{which}"] input[type=text]'
    page.run(f"document.querySelector({json.dumps(field)}).focus()")
    page.run("document.activeElement.select()")
    before = page.run(STATUS)
    page.write(words)
    page.press("Enter")
    page.wait(f"{STATUS} !== {json.dumps(before)} && /nearest/.test({STATUS})")


def give_file(page, name, path):
    page.choose(f'[data-modality="{name}"] input[type=file]', path)
    page.wait(f"document.querySelector('[data-modality={name}] .given')")
    page.wait(f"/nearest/.test({STATUS})")


def slide(page, name, value):
    script = "s.value = {}; s.dispatchEvent(new Event('input'))"
    field = f"document.querySelector('[data-modality={name}] input[type=range]')"
    page.run(f"((s) => {{ {script.format(value)} }})({field})")


def names(page, role):
    return [name for kind, name in page.names() if kind == role]


def test_words_are_asked_by_the_keyboard_alone(page):
    page.press("Tab")  # the link to the query
    page.press("Enter")
    page.press("Tab")
    assert page.run("document.activeElement.type") == "text"
    page.write("deep snow")
    page.press("Enter")
    page.wait(f"{TILES} === 24")
    page.press("Tab")
    assert page.run("document.activeElement.type") == "range"
    first = page.run("document.querySelector('#gallery .tile').dataset.row")
    page.press("Home")  # weight -1: what is least like it
    page.wait(f"document.querySelector('#gallery .tile').dataset.row !== '{first}'")
    assert page.run("document.activeElement.type") == "range"


def test_a_sound_a_picture_and_a_place_are_added_and_taken_away(page, tmp_path):
    (tmp_path / "rain.wav").write_bytes(served.make_sound(5))
    (tmp_path / "photo.png").write_bytes(served.make_photo(5))
    give_file(page, "audio", tmp_path / "rain.wav")
    assert (
        page.run("document.querySelector('[data-modality=audio] audio').getAttribute('aria-label')")
        == "rain.wav"
    )
    give_file(page, "ground_image", tmp_path / "photo.png")
    ask_words(page, "40.5, 3.1", "spot")
    caption = page.run("document.querySelector('.pane .caption').textContent")
    assert "rain.wav" in caption and "photo.png" in caption and "40.500°\u00a0N" in caption
    page.click("[data-modality=audio] .given button")
    page.wait("!document.querySelector('.pane .caption').textContent.includes('rain.wav')")
    page.click("#clear")
    page.wait("document.getElementById('results').hidden")


def test_a_file_is_dropped(page):
    page.run(
        "(() => { const held = new DataTransfer();"
        "const box = document.querySelector('[data-modality=audio]');"
        f"const bytes = Uint8Array.from(atob('{base64.b64encode(served.make_sound(6, 4000)).decode()}'), "
        "(letter) => letter.charCodeAt(0)); held.items.add(new File([bytes], 'dropped.wav'));"
        "for (const type of ['dragover', 'drop']) box.dispatchEvent(new DragEvent(type, "
        "{dataTransfer: held, bubbles: true, cancelable: true})); })()"
    )
    page.wait("document.querySelector('.pane .caption').textContent.includes('dropped.wav')")


def test_the_microphone_is_heard(page):
    page.click("[data-modality=audio] button")
    page.wait("document.querySelector('[data-modality=audio] button[aria-pressed=true]')")
    page.run("new Promise((done) => setTimeout(done, 1500))")
    page.click("[data-modality=audio] button[aria-pressed=true]")
    page.wait("document.querySelector('[data-modality=audio] .given')")
    page.wait(f"{TILES} === 24")


def test_the_map_is_drawn_and_a_click_shows_what_is_there(page, server):
    ask_words(page, "deep snow")
    page.wait(f"{DRAWN} === 1")
    page.wait("performance.getEntriesByType('resource').some((one) => one.name.includes('/api/map/'))")
    corner = "document.getElementById('map-a').getBoundingClientRect()"
    left, top, width, height = page.run(f"(({{x, y, width, height}}) => [x, y, width, height])({corner})")
    page.wait("performance.getEntriesByType('resource').some((one) => one.name.includes('/api/scene/'))")
    page.click(at=[left + 0.45 * width, top + height / 2])
    page.wait("!document.getElementById('here').hidden")
    assert page.run("document.querySelectorAll('#here-body audio').length") == 3
    words = page.run("document.getElementById('here-body').innerText")
    assert "a wood" in words and "Places like this" in words
    page.wait("[...document.querySelectorAll('#here-body audio')].every((one) => one.readyState >= 1)")
    page.wait("document.querySelector('.here-picture').naturalWidth === 320")
    page.click("#here-close")
    page.wait("document.getElementById('here').hidden")


def test_enter_on_the_map_looks_at_its_middle(page):
    page.wait(f"{DRAWN} === 1")
    page.run("document.querySelector('.maplibregl-canvas').focus()")
    page.press("Enter")
    page.wait("!document.getElementById('here').hidden")


def test_two_queries_stand_side_by_side(page):
    ask_words(page, "deep snow")
    page.click("#compare")
    page.wait(f"{DRAWN} === 2")
    page.click("#which input[value=b]")
    ask_words(page, "a wood")
    captions = page.run("[...document.querySelectorAll('.caption')].map((one) => one.textContent)")
    assert captions == ["A: “deep snow”", "B: “a wood”"]
    page.wait("document.getElementById('map-b').clientWidth > 300")
    link = page.run("location.href")
    assert "compare=1" in link
    page.click("#compare")
    page.wait("document.querySelector('[data-query=b]').hidden")


def test_a_link_holds_the_query_with_its_sound_and_weights(page, server, tmp_path):
    (tmp_path / "rain.wav").write_bytes(served.make_sound(5))
    ask_words(page, "deep snow & <b>ice</b>")
    give_file(page, "audio", tmp_path / "rain.wav")
    slide(page, "audio", -0.5)
    page.wait("location.hash.includes('a.audio.w=-0.5')")
    page.wait("document.querySelector('.caption').textContent.includes('−0.50')")
    rows = "[...document.querySelectorAll('#gallery .tile')].map((one) => one.dataset.row).join()"
    page.run("new Promise((done) => setTimeout(done, 600))")
    caption = "document.querySelector('.caption').textContent"
    wanted, link, words = page.run(rows), page.run("location.href"), page.run(caption)
    page.open(link)
    page.wait(f"{TILES} === 24")
    assert page.run(caption) == words
    assert page.run(rows) == wanted
    assert page.run("document.querySelectorAll('b').length") == 0


def test_the_map_and_the_nearest_are_downloaded_by_links(page, tmp_path):
    import rasterio

    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    ask_words(page, "deep snow")
    page.wait(f"{TILES} === 24")
    for link, name in (("#geojson", "nearest.geojson"), ("#cog", "map.tif")):
        page.click(link)
        for _ in range(200):
            if (tmp_path / name).is_file() and not list(tmp_path.glob("*.crdownload")):
                break
            time.sleep(0.05)
        assert (tmp_path / name).stat().st_size > 500
    found = json.loads((tmp_path / "nearest.geojson").read_text())["features"]
    rows = page.run("[...document.querySelectorAll('#gallery .tile')].map((one) => one.dataset.row)")
    assert len(found) == len(rows) == 24
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs and file.read(1, masked=True).count() > 0
    assert page.run("location.pathname") == "/"


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, False), (1280, True)])
def test_axe_finds_nothing(browser, server, width, dark):
    browser.size(width, 844, dark=dark)
    browser.call("Page.setBypassCSP", enabled=True)
    try:
        browser.open(server.address)
        browser.wait("document.querySelector('#parts input')")
        ask_words(browser, "deep snow")
        browser.wait(f"{TILES} === 24 && {DRAWN} === 1")
        assert chromium.list_barriers(browser) == []
    finally:
        browser.call("Page.setBypassCSP", enabled=False)


def test_what_cannot_be_read_is_said_in_words(page, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    page.choose("[data-modality=audio] input[type=file]", tmp_path / "bad.wav")
    page.wait("document.getElementById('status').classList.contains('wrong')")
    assert "the file for audio" in page.run(STATUS)
    page.failed.clear(), page.console.clear()  # the browser logs the refused upload itself


def test_a_screen_reader_finds_a_name_for_everything(page):
    ask_words(page, "deep snow")
    page.wait(f"{TILES} === 24")
    for role in ("button", "textbox", "slider", "link", "image", "radio"):
        assert all(names(page, role)), (role, names(page, role))
    buttons = names(page, "button")
    assert {"Show", "Clear", "Compare", "Copy link", "Record"} <= set(buttons)
    assert sum(bool(re.match(r"Tile \d+ of 24, similarity", one)) for one in buttons) == 24
    assert any(one.startswith("Weight of Text") for one in names(page, "slider"))
    assert "Nearest" in names(page, "heading")
    assert page.run("document.getElementById('status').getAttribute('aria-live')") == "polite"
    assert page.run("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_sticks_out_at_any_width(page, width, dark, tmp_path):
    import numpy as np
    from PIL import Image

    page.size(width, 844, dark=dark)
    ask_words(page, "deep snow")
    page.wait(f"{TILES} === 24 && {DRAWN} === 1")
    assert page.run("document.documentElement.scrollWidth") <= width
    heights = "[...document.querySelectorAll('button, a[download]')].map((one) => one.offsetHeight)"
    assert all(height == 0 or height >= (44 if width < 820 else 29) for height in page.run(heights))
    page.picture(tmp_path / "page.png")
    header = np.asarray(Image.open(tmp_path / "page.png").convert("L"), float)[:30]
    assert (np.median(header) < 60) == dark


def test_without_webgl_everything_but_the_map_works(browser, server):
    browser.size(1280, 800)
    script = "HTMLCanvasElement.prototype.getContext = () => null"
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    browser.open(server.address)
    browser.wait("document.getElementById('nomap')?.hidden === false")
    ask_words(browser, "deep snow")
    browser.wait(f"{TILES} === 24")
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)
    browser.console.clear()
