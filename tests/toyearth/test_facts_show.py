"""Each fact moves each modality that is meant to express it, all else equal."""

from __future__ import annotations

import numpy as np
import pytest

from geobind_toyearth import FACTS, render_photos, render_sounds, render_tiles, write_captions
from geobind_toyearth.captions import name_cover

RATE = 16000


def join_all(captions) -> str:
    return " ".join(line for lines in captions for line in lines)


def band_power(sounds, low: float, high: float) -> float:
    power = np.abs(np.fft.rfft(sounds, axis=1)) ** 2
    hertz = np.fft.rfftfreq(sounds.shape[1], 1 / RATE)
    return float(power[:, (hertz >= low) & (hertz < high)].mean())


def blueness(pictures) -> float:
    red, _, blue = pictures.reshape(-1, 3).mean(axis=0)
    return float(blue - red)


def greenness(pictures) -> float:
    red, green, blue = pictures.reshape(-1, 3).mean(axis=0)
    return float(green - (red + blue) / 2)


def ground(photos):
    return photos[:, 34:]


BESIDE = {
    "conifer": {"forest": 0.95},
    "sea": {"water": 0.95},
}  # a fact that is part of another needs the other


def low_and_high(fact: str, with_facts):
    others = BESIDE.get(
        fact, {} if fact in ("water", "forest", "crops", "bare") else {"forest": 0.4, "water": 0.2}
    )
    return (with_facts(**{**others, fact: value}) for value in (0.1, 0.9))


@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize("render", [render_tiles, render_photos])
def test_every_fact_repaints_pictures_beyond_their_grain(render, fact, with_facts):
    low, high = low_and_high(fact, with_facts)
    change = np.abs(render(low, 0).astype(float) - render(high, 0)).mean(axis=(1, 2, 3))
    assert np.median(change) > 2


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_changes_the_sound(fact, with_facts):
    low, high = (render_sounds(places, 0) for places in low_and_high(fact, with_facts))
    change = np.sqrt(((low - high) ** 2).mean(axis=1) / (low**2 + high**2).mean(axis=1))
    assert np.median(change) > 0.1


def test_water_makes_pictures_bluer(with_facts):
    dry, wet = with_facts(), with_facts(water=0.6, sea=0.6)
    assert blueness(render_tiles(wet, 0)) > blueness(render_tiles(dry, 0)) + 20
    assert blueness(ground(render_photos(wet, 0))) > blueness(ground(render_photos(dry, 0))) + 20


def test_tiles_show_the_share_of_sea_they_are_told(with_facts):
    for share in (0.2, 0.5, 0.8):
        tiles = render_tiles(with_facts(water=share, sea=share), 0).astype(float)
        seen = (tiles[..., 2] > tiles[..., 0] + 15).mean()
        assert abs(seen - share) < 0.1


def test_snow_whitens_and_night_darkens(with_facts):
    for render in (render_tiles, render_photos):
        plain, snowy, night = (render(with_facts(**f), 0) for f in ({}, {"snow": 1.0}, {"daylight": 0.0}))
        assert snowy[:, 34:].mean() > plain[:, 34:].mean() + 30
        assert night.mean() < 0.55 * plain.mean()


def test_leaves_turn_in_autumn_and_needles_do_not(with_facts):
    season = {"spring": 0.0, "summer": 0.5}
    for render in (render_tiles, render_photos):
        leafy = greenness(render(with_facts(forest=0.9, **season), 0))
        pines = greenness(render(with_facts(forest=0.9, conifer=0.9, **season), 0))
        assert pines > leafy + 3


def test_mountains_rise_above_the_horizon(with_facts):
    flat, steep = (render_photos(with_facts(relief=relief), 0).astype(float) for relief in (0.0, 1.0))
    assert np.abs(flat - steep)[:, 18:28].mean() > 3 * np.abs(flat - steep)[:, 40:].mean()


def test_roads_and_houses_cover_more_of_the_tile_as_they_grow(with_facts):
    wild = render_tiles(with_facts(), 0).astype(float)
    for fact in ("roads", "buildings"):
        some, many = (render_tiles(with_facts(**{fact: value}), 0).astype(float) for value in (0.4, 0.9))
        covered = [(np.abs(tiles - wild).max(axis=-1) > 30).mean() for tiles in (some, many)]
        assert 0.01 < covered[0] < 0.7 * covered[1]


def test_surf_is_low_and_swells_while_a_stream_is_steady(with_facts):
    quiet, surf, stream = (
        render_sounds(with_facts(**f), 0) for f in ({}, {"water": 0.6, "sea": 0.6}, {"water": 0.6})
    )
    assert band_power(surf, 100, 900) > 10 * band_power(quiet, 100, 900)
    assert band_power(stream, 900, 2600) > 10 * band_power(quiet, 900, 2600)

    def unsteadiness(sounds) -> float:
        loudness = (sounds.reshape(48, 20, -1) ** 2).mean(axis=2)
        return float(np.median(loudness.std(axis=1) / loudness.mean(axis=1)))

    assert unsteadiness(surf) > 2 * unsteadiness(stream)


def test_rain_is_broadband_traffic_is_low_leaves_are_high(with_facts):
    quiet = render_sounds(with_facts(summer=0.0, spring=0.5), 0)
    rain = render_sounds(with_facts(summer=0.0, rain=1.0), 0)
    traffic = render_sounds(with_facts(summer=0.0, roads=1.0), 0)
    leaves = render_sounds(with_facts(summer=0.6, forest=0.9, wind=0.9), 0)
    for band in ((300, 900), (1600, 2600), (5600, 7800)):
        assert band_power(rain, *band) > 5 * band_power(quiet, *band)
    assert band_power(traffic, 60, 480) > 50 * band_power(traffic, 4000, 7800)
    assert band_power(leaves, 4000, 7800) > band_power(leaves, 480, 1600)


def test_crickets_sing_on_summer_nights_only(with_facts):
    night, day, winter = (
        render_sounds(with_facts(summer=summer, daylight=light), 0)
        for summer, light in ((1, 0.0), (1, 0.8), (0, 0.0))
    )
    assert band_power(night, 4200, 4800) > 5 * band_power(day, 4200, 4800)
    assert band_power(night, 4200, 4800) > 20 * band_power(winter, 4200, 4800)


def test_birds_sing_in_spring(with_facts):
    spring, autumn = (render_sounds(with_facts(spring=value, summer=0.5), 0) for value in (1.0, 0.0))
    assert band_power(spring, 3000, 5200) > 3 * band_power(autumn, 3000, 5200)


def test_steep_places_echo(with_facts):
    town = {"buildings": 0.9, "wind": 0.0}
    flat, steep = (render_sounds(with_facts(relief=relief, **town), 0) for relief in (0.0, 1.0))
    assert (steep**2).mean() > 1.2 * (flat**2).mean()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"water": 0.9, "sea": 0.9}, ("sea",)),
        ({"water": 0.9}, ("lake",)),
        ({"forest": 0.9, "conifer": 0.9}, ("forest",)),
        ({"crops": 0.9}, ("field", "farmland")),
        ({"bare": 0.9}, ("sand",)),
        ({"bare": 0.9, "relief": 0.9}, ("rock",)),
        ({}, ("meadow", "grass", "pasture")),
    ],
)
def test_every_caption_names_what_covers_most(facts, words, with_facts):
    for lines in write_captions(with_facts(**facts), 0):
        assert all(any(word in line.lower() for word in words) for line in lines)


def test_captions_of_real_places_name_their_dominant_cover(places):
    stems = {
        "sea": ("sea", "beach", "bay", "coast"),
        "river": ("brook", "stream", "creek", "river", "lake"),
        "forest": ("tree", "grove", "copse", "wood", "forest"),
        "crops": ("field", "cropland", "farmland"),
        "bare": ("sand", "rock"),
        "grass": ("grass", "meadow", "pasture"),
    }
    for row, lines in zip(places.facts.tolist(), write_captions(places, 0), strict=True):
        cover = name_cover(dict(zip(FACTS, row, strict=True)))
        assert all(any(stem in line.lower() for stem in stems[cover]) for line in lines)


def test_captions_name_season_and_time(with_facts):
    text = join_all(write_captions(with_facts(summer=0.0, daylight=0.0, morning=0.5), 0)).lower()
    assert "winter" in text and "night" in text and "summer" not in text
    text = join_all(write_captions(with_facts(spring=1.0, summer=0.5, morning=1.0, daylight=0.2), 0)).lower()
    assert "spring" in text and ("dawn" in text or "sunrise" in text) and "autumn" not in text


def test_captions_grow_with_the_graded_facts(with_facts):
    hamlet, city = (join_all(write_captions(with_facts(buildings=b), 0)) for b in (0.25, 0.9))
    assert "hamlet" in hamlet and "hamlet" not in city and "city" in city
    still, storm = (join_all(write_captions(with_facts(wind=w), 0)).lower() for w in (0.05, 0.95))
    assert "gale" in storm and "gale" not in still and "calm" in still


def test_captions_vary_and_read_like_sentences(places):
    captions = write_captions(places, 0)
    for lines in captions:
        assert len(set(lines)) >= 4
        for line in lines:
            assert line[0].isupper() and line.endswith(".") and "  " not in line and "{" not in line
            assert 20 < len(line) < 300
    assert len({line for lines in captions for line in lines}) > 0.95 * 5 * len(captions)
