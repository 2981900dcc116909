"""Heights, lights, temperatures, depths, clips, walks and vectors show the facts, each with its own noise."""

from __future__ import annotations

import numpy as np
import pytest

from geobind.errors import DataError
from geobind_toyearth import Planet, render_tiles
from geobind_toyearth.cameras import render_clips, render_depths
from geobind_toyearth.motion import render_motions
from geobind_toyearth.planet import estimate_celsius
from geobind_toyearth.rasters import render_heights, render_lights, render_temperatures
from geobind_toyearth.vectors import COVARIATES, embed_places, measure_covariates

RENDERERS = {
    "heights": (lambda places, seed: render_heights(places, seed, 16, 40.0), (16, 16), np.float32),
    "lights": (lambda places, seed: render_lights(places, seed, 16, 40.0), (16, 16), np.float32),
    "temperatures": (lambda places, seed: render_temperatures(places, seed, 16, 40.0), (16, 16), np.float32),
    "depths": (lambda places, seed: render_depths(places, seed, 16), (16, 16), np.float32),
    "clips": (lambda places, seed: render_clips(places, seed, 16, frames=2), (2, 16, 16, 3), np.uint8),
    "motions": (lambda places, seed: render_motions(places, seed, 2.0), (6, 100), np.float32),
    "covariates": (measure_covariates, (len(COVARIATES),), np.float32),
    "embeddings": (embed_places, (64,), np.float32),
}
ALL = pytest.mark.parametrize("name", RENDERERS)


def same(a, b) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype != np.uint8)


@ALL
def test_a_place_is_measured_alike_in_any_company(name, places):
    render, shape, kind = RENDERERS[name]
    whole = render(places, 0)
    assert whole.shape == (48, *shape) and whole.dtype == kind
    assert same(render(places.take([40, 3]), 0), whole[[40, 3]])
    assert len(render(Planet(0).places(0), 0)) == 0


@ALL
def test_noise_differs_from_place_to_place_and_with_the_seed(name, with_facts):
    render, _, _ = RENDERERS[name]
    twins = with_facts(forest=0.4, roads=0.5, buildings=0.4, relief=0.4)
    first, other = render(twins, 0), render(twins, 1)
    assert not same(first, other)
    assert len({row.tobytes() for row in first}) == 48


@ALL
def test_unusable_places_and_seeds_are_refused(name, places):
    render, _, _ = RENDERERS[name]
    with pytest.raises(DataError, match=r"lat\[0\] = 95.0 is not usable"):
        render(places._replace(lat=places.lat * 0 + 95), 0)
    with pytest.raises(DataError, match="seed is -1: give a whole number"):
        render(places, -1)


def median(values) -> float:
    return float(np.nanmedian(values))


def test_mountains_are_high_and_rough_and_the_sea_has_no_height(with_facts):
    plain, peaks = (render_heights(with_facts(relief=relief), 0) for relief in (0.1, 0.9))
    assert median(peaks) > median(plain) + 1000
    assert median(peaks.std(axis=(1, 2))) > 10 * median(plain.std(axis=(1, 2)))
    sea = render_heights(with_facts(water=0.5, sea=0.5), 0)
    assert abs(np.isnan(sea).mean() - 0.5) < 0.1
    assert not np.isnan(render_heights(with_facts(water=0.5), 0)).any()  # a lake has a height


def test_the_sea_of_heights_lies_where_the_tile_shows_it(with_facts):
    coast = with_facts(water=0.5, sea=0.5)
    tiles = render_tiles(coast, 0).astype(float)
    blue = tiles[..., 2] > tiles[..., 0] + 15
    assert (blue == np.isnan(render_heights(coast, 0))).mean() > 0.9


def test_towns_shine_whatever_the_hour_and_wilderness_is_dark(with_facts):
    wild, town, noon = (
        render_lights(with_facts(**facts), 0)
        for facts in ({}, {"buildings": 0.8, "roads": 0.8, "daylight": 0.0}, {"buildings": 0.8, "roads": 0.8})
    )
    assert town.mean() > 50 * wild.mean() and wild.min() >= 0
    assert np.array_equal(town, noon)


def test_the_ground_is_warm_by_day_cold_at_night_and_water_hardly_changes(with_facts):
    def warming(**facts) -> float:
        night, day = (render_temperatures(with_facts(**facts, daylight=light), 0) for light in (0.0, 0.9))
        return median(day - night)

    assert warming(bare=0.95) > warming(forest=0.95) > warming(water=0.95, sea=0.95)
    snowy = render_temperatures(with_facts(snow=1.0), 0)
    assert np.nanpercentile(snowy, 95) < 276
    assert not np.isnan(snowy).any()


def test_clouds_hide_part_of_a_temperature_never_all(with_facts):
    rainy = render_temperatures(with_facts(rain=1.0), 0, 8, 0.5)  # 4 m of ground: under one cloud or none
    assert 0 < np.isnan(render_temperatures(with_facts(rain=1.0), 0)).mean() < 0.8
    assert not np.isnan(rainy).all(axis=(1, 2)).any()


def test_temperatures_agree_with_the_snow(places):
    snow, celsius = places.facts[:, 9], estimate_celsius(places)
    some = (snow > 0) & (snow < 1)
    assert some.any() and np.allclose(celsius[some], 5 - 10 * snow[some], atol=1e-4)
    assert (celsius[snow == 0] >= 5).all() and (celsius[snow == 1] <= -5).all()


def test_depths_grow_upwards_and_mountains_stand_before_the_sky(with_facts):
    flat, steep = (render_depths(with_facts(relief=relief), 0) for relief in (0.0, 1.0))
    assert 1.5 < median(flat[:, -1]) < 2.5 < median(flat[:, 40]) < median(flat[:, 32])
    assert np.isnan(flat[:, :18]).all()
    assert np.isnan(steep[:, 14:24]).mean() < np.isnan(flat[:, 14:24]).mean() - 0.3
    houses = render_depths(with_facts(buildings=0.9), 0)
    assert median(houses[:, 24:32]) < 0.7 * median(flat[:, 24:32])


def test_a_clip_moves_with_the_sun_and_the_wind(with_facts, places):
    still = with_facts(wind=0.0, rain=0.4)
    same_hour = render_clips(still, 0, 32, frames=2, hours=0.0)
    assert np.array_equal(same_hour[:, 0], same_hour[:, 1])
    windy = render_clips(with_facts(wind=0.9, rain=0.4, forest=0.5), 0, 32, frames=2, hours=0.0)
    assert np.abs(windy[:, 0].astype(int) - windy[:, 1]).mean() > 3  # gusts alone
    dawn = places._replace(hour=np.full(48, 5.0), lat=np.zeros(48))
    facts = Planet(0).facts(dawn.lat, dawn.lon, dawn.month, dawn.hour)
    sunrise = render_clips(dawn._replace(facts=facts), 0, 32, frames=2, hours=4.0)
    assert sunrise[:, 1].mean() > 1.3 * sunrise[:, 0].mean()


def power(motions, low: float, high: float) -> float:
    """Return the power of the vertical axis between two frequencies (Hz)."""
    spectrum = np.abs(np.fft.rfft(motions[:, 2] - motions[:, 2].mean(axis=1, keepdims=True), axis=1)) ** 2
    hertz = np.fft.rfftfreq(motions.shape[2], 1 / 50)
    return float(spectrum[:, (hertz >= low) & (hertz < high)].mean())


def peakedness(motions) -> float:
    """Return the median share that the strongest frequency has of the steps' power."""
    spectrum = np.abs(np.fft.rfft(motions[:, 2], axis=1)[:, 6:18]) ** 2
    return float(np.median(spectrum.max(axis=1) / spectrum.sum(axis=1)))


def test_relief_makes_steps_strong_and_roads_make_them_regular(with_facts):
    flat, steep = (render_motions(with_facts(relief=relief, roads=0.5), 0) for relief in (0.0, 1.0))
    assert power(steep, 1, 3) > 4 * power(flat, 1, 3)
    rough, paved = (render_motions(with_facts(relief=0.5, roads=roads), 0) for roads in (0.0, 1.0))
    assert peakedness(paved) > 1.3 * peakedness(rough)
    hard, soft = (render_motions(with_facts(roads=1.0, snow=snow), 0) for snow in (0.0, 1.0))
    assert power(hard, 3, 6) > 3 * power(soft, 3, 6)


def test_a_sensor_at_rest_feels_gravity_and_a_boat_rolls_slowly(with_facts):
    motions = render_motions(with_facts(), 0)
    assert 9 < np.median(np.linalg.norm(motions[:, :3], axis=1)) < 11
    boat = render_motions(with_facts(water=0.95, sea=0.95, wind=0.8), 0)
    assert power(boat, 1, 3) < 0.2 * power(motions, 1, 3)


def test_covariates_measure_the_facts_with_errors_and_gaps(places):
    many = Planet(0).places(2000)
    measured = measure_covariates(many, 0)
    assert 0.08 < np.isnan(measured).mean() < 0.12
    for name, fact in (("trees", 2), ("slope", 8), ("people", 6)):
        values = measured[:, [*COVARIATES].index(name)]
        there = ~np.isnan(values)
        assert 0.85 < np.corrcoef(values[there], many.facts[there, fact])[0, 1] < 0.999


def test_embeddings_are_near_where_the_ground_is_alike(with_facts):
    woods, twins, town = (
        embed_places(with_facts(**facts), 0)
        for facts in ({"forest": 0.9}, {"forest": 0.9, "rain": 0.9}, {"buildings": 0.9, "roads": 0.9})
    )
    assert np.allclose(np.linalg.norm(woods, axis=1), 1, atol=1e-5)
    assert (woods @ np.roll(twins, 1, axis=0).T).mean() > (woods @ town.T).mean() + 0.3
