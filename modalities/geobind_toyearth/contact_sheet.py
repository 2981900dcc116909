"""A contact sheet of the toy planet: a few places, each as tile, photo, spectrogram and caption."""
# N places

from __future__ import annotations

import io
import textwrap

from geobind.data.contact_sheet import spectrogram
from geobind.errors import DataError
from geobind_toyearth.captions import write_captions
from geobind_toyearth.photos import render_photos
from geobind_toyearth.planet import FACTS, Places, Planet
from geobind_toyearth.sounds import render_sounds
from geobind_toyearth.tiles import render_tiles

_RATE = 16000
_DAY = {"daylight": 0.6, "rain": 0.0, "wind": 0.2}
_DRY = {"water": 0.0, "sea": 0.0}
_WISHES: tuple[dict[str, float], ...] = (
    {
        **_DAY,
        "sea": 0.5,
        "water": 0.5,
        "forest": 0.2,
        "buildings": 0.45,
        "snow": 0,
        "summer": 0.9,
        "relief": 0.2,
    },
    {
        **_DAY,
        "snow": 1,
        "relief": 0.9,
        "buildings": 0.35,
        "forest": 0.4,
        "conifer": 0.4,
        "bare": 0.1,
        "sea": 0,
    },
    {**_DAY, **_DRY, "crops": 0.9, "buildings": 0.2, "roads": 0.3, "relief": 0.1, "summer": 0.95, "snow": 0},
    {**_DAY, **_DRY, "bare": 0.9, "buildings": 0.05, "roads": 0.15, "relief": 0.2, "snow": 0, "crops": 0},
    {**_DAY, "forest": 0.6, "conifer": 0.1, "water": 0.15, "sea": 0, "spring": 0, "snow": 0, "relief": 0.5},
    {
        **_DRY,
        "buildings": 0.75,
        "roads": 0.9,
        "daylight": 0,
        "rain": 0,
        "snow": 0,
        "relief": 0.2,
        "summer": 0.9,
    },
    {
        "spring": 0.9,
        "rain": 0.7,
        "wind": 0.9,
        "daylight": 0.5,
        "snow": 0,
        "relief": 0.5,
        "water": 0.3,
        "sea": 0.2,
    },
    {
        **_DAY,
        "morning": 0.95,
        "daylight": 0.2,
        "water": 0.25,
        "sea": 0,
        "spring": 0.95,
        "snow": 0,
        "crops": 0.3,
    },
)


def contact_sheet(places: Places, seed: int = 0) -> bytes:
    """Draw places side by side, one column each: tile, photo, spectrogram, caption; PNG bytes.

    Raises:
        DataError: There are no places, or more than 12.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    count = len(places.lat)
    if not 1 <= count <= 12:
        raise DataError(
            f"a contact sheet shows 1 to 12 places, not {count}: take fewer with places.take(...)"
        )
    tiles, photos = render_tiles(places, seed, size=128, gsd=5.0), render_photos(places, seed, size=128)
    sounds, captions = render_sounds(places, seed, rate=_RATE), write_captions(places, seed, count=1)
    columns = min(count, 4)
    bands = -(-count // columns)
    figure = Figure(figsize=(2.15 * columns, 5.4 * bands), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(bands * 4, columns, squeeze=False, height_ratios=[1, 1, 0.5, 0.42] * bands)
    for axis in axes.flat:
        axis.set_axis_off()
    for i in range(count):
        tile, photo, sound, words = axes[4 * (i // columns) : 4 * (i // columns) + 4, i % columns]
        tile.imshow(tiles[i])
        tile.set_title(f"{places.lat[i]:.1f}, {places.lon[i]:.1f}", fontsize=7)
        photo.imshow(photos[i])
        sound.imshow(spectrogram(sounds[i]), origin="lower", aspect="auto", cmap="magma", vmin=-75, vmax=-5)
        words.text(0, 1, textwrap.fill(captions[i][0], 36), fontsize=6.5, va="top", transform=words.transAxes)
    shot, out = io.BytesIO(), io.BytesIO()
    figure.savefig(shot, format="png")
    # A palette quarters the file: the camera's grain does not compress.
    Image.open(shot).convert("RGB").quantize(256).save(out, format="PNG", optimize=True)
    return out.getvalue()


def typical_places(seed: int = 0) -> Places:
    """Find eight places a stranger would recognise: the nearest of 6,000 to each of a few wishes."""
    drawn = Planet(seed).places(6000, seed)
    chosen = []
    for wish in _WISHES:
        columns = [FACTS.index(name) for name in wish]
        chosen.append(int(((drawn.facts[:, columns] - list(wish.values())) ** 2).sum(axis=1).argmin()))
    return drawn.take(chosen)
