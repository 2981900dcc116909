"""The page in a browser, if there is one: whole at every width, in the dark, on paper, and for everybody."""

import base64
import re

import chromium
import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.BROWSER is None, reason="no chromium here")]
WIDTHS = (390, 768, 1280, 1920)
BOX = "(({left, right, top, bottom}) => [left, right, top, bottom])(%s.getBoundingClientRect())"


@pytest.fixture
def shown(browser, path):
    browser.requests.clear(), browser.console.clear()
    browser.size(1280, 720)
    browser.open(path.as_uri())
    browser.wait("document.querySelector('main') && document.readyState === 'complete'")
    yield browser
    assert browser.console == []
    assert [one for one in browser.requests if not one.startswith(("file:", "data:", "about:"))] == []


def box(page, selector):
    return page.run(BOX % f"document.querySelector({selector!r})")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_and_the_matrix_is_whole(shown, tmp_path, width, dark):
    shown.size(width, 844, dark=dark)
    assert shown.run("document.documentElement.scrollWidth") == width
    for cell in range(shown.run("document.querySelectorAll('.matrix th, .matrix td').length")):
        left, right, _, _ = shown.run(BOX % f"document.querySelectorAll('.matrix th, .matrix td')[{cell}]")
        assert 0 <= left < right <= width
    fits = "(b) => b.offsetWidth <= b.parentNode.clientWidth"
    assert shown.run(f"[...document.querySelectorAll('.matrix td b')].every({fits})")
    shown.picture(tmp_path / "page.png")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"), dtype=float)
    assert pixels.std() > 10
    assert (np.median(pixels) < 60) == dark


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080)])
def test_one_screen_shows_what_was_bound_how_well_and_a_picture(shown, size):
    shown.size(*size)
    for selector in ("h1", ".matrix", ".strip", ".strip + p + .strip", ".steps"):
        _, _, top, bottom = box(shown, selector)
        assert 0 <= top < bottom <= size[1], selector
    assert box(shown, ".matrix")[1] > size[0] * 0.7  # the right half is used
    pictures = "[...document.querySelectorAll('.strip img')].every((one) => one.naturalWidth > 0)"
    assert shown.run(pictures)


def test_a_phone_shows_the_figures_of_each_pair_beside_its_name(shown):
    shown.size(390, 844)
    row = "document.querySelector('#retrieval .scroll tbody tr')"
    shown.run(f"{row}.scrollIntoView()")
    name = shown.run(BOX % f"{row}.querySelector('th')")
    figures = [shown.run(BOX % f"{row}.querySelectorAll('td')[{n}]") for n in range(2)]
    assert all(left >= name[1] - 1 and right <= 390 for left, right, _, _ in figures)


def test_heads_and_names_stay_when_a_table_scrolls(shown):
    shown.size(390, 500)
    scroll = "document.querySelector('#retrieval .scroll')"
    shown.run(f"{scroll}.scrollIntoView()")
    before = box(shown, "#retrieval .scroll thead th"), box(shown, "#retrieval .scroll tbody th")
    shown.run(f"{scroll}.scrollTo(60, 120)")
    assert shown.run(f"[{scroll}.scrollLeft, {scroll}.scrollTop]") == [60, 120]
    after = box(shown, "#retrieval .scroll thead th"), box(shown, "#retrieval .scroll tbody th")
    assert after[0] == before[0]  # neither down nor across
    assert after[1][0] == before[1][0]  # its column stays, its row goes up
    assert after[1][2] == before[1][2] - 120


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, False), (1280, True)])
def test_axe_finds_nothing(browser, path, width, dark):
    browser.size(width, 844, dark=dark)
    assert chromium.find_barriers(browser, path.as_uri()) == []


def test_axe_would_have_found_something(browser, path, tmp_path):
    browser.size(1280, 844)
    text = re.sub(r'(<img [^>]*)alt="[^"]*"', r"\1", path.read_text(), count=1)
    text = text.replace("--muted: #5b636b", "--muted: #b9bec4")
    (tmp_path / "spoilt.html").write_text(text)
    found = {one[0] for one in chromium.find_barriers(browser, (tmp_path / "spoilt.html").as_uri())}
    assert {"image-alt", "color-contrast"} <= found


def test_paper_has_every_example_and_whole_tables(shown):
    closed = "document.querySelectorAll('details.gallery')[1].querySelector('.example')"
    shown.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert shown.run(f"{closed}.offsetHeight") > 50
        whole = "(one) => one.scrollHeight <= one.clientHeight + 2"
        assert shown.run(f"[...document.querySelectorAll('.scroll')].every({whole})")
        assert shown.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert base64.b64decode(shown.call("Page.printToPDF")["data"])[:5] == b"%PDF-"
    finally:
        shown.call("Emulation.setEmulatedMedia", media="")


def test_the_browser_would_have_complained(browser, tmp_path, path):
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(path.read_text().replace("</body>", "<script>seen()</script></body>"))
    browser.console.clear()
    browser.open(spoilt.as_uri())
    browser.wait("document.readyState === 'complete' && document.querySelector('main')")
    assert any("Content Security Policy" in line for line in browser.console)
    browser.console.clear()
