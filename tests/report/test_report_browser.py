"""The page in a browser, if there is one: no console errors, visible content at every width."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

BROWSER = next(
    (name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
).split()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium here")]


def seen(page, folder, width, *flags):
    """A picture of a page at some width, and what its console said."""
    picture = folder / "page.png"
    done = subprocess.run(
        [
            BROWSER,
            *FLAGS,
            *flags,
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},844",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return np.asarray(Image.open(picture).convert("L"), dtype=float), console


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_a_browser_shows_the_page_without_complaint(path, tmp_path, width, dark):
    pixels, console = seen(path, tmp_path, width, f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    assert console == []
    assert pixels.shape == (844, width)
    assert pixels.std() > 10
    assert (np.median(pixels) < 60) == dark


def test_the_browser_would_have_complained(tmp_path, path):
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(path.read_text().replace("</body>", "<script>seen()</script></body>"))
    _, console = seen(spoilt, tmp_path, 390)
    assert any("Content Security Policy" in line for line in console)
