from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from geobind.errors import DataError
from geobind_toyearth import (
    FACTS,
    Planet,
    render_photos,
    render_sounds,
    render_tiles,
    write_captions,
)

RENDERERS = {"tile": render_tiles, "photo": render_photos, "sound": render_sounds, "caption": write_captions}
MODALITIES = pytest.mark.parametrize("modality", RENDERERS)


def same(a, b) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def rendered(places):
    return {name: render(places, 0) for name, render in RENDERERS.items()}


def test_shapes_types_and_ranges_are_as_promised(rendered):
    assert rendered["tile"].shape == rendered["photo"].shape == (48, 64, 64, 3)
    assert rendered["tile"].dtype == rendered["photo"].dtype == np.uint8
    assert rendered["sound"].shape == (48, 32000) and rendered["sound"].dtype == np.float32
    assert np.abs(rendered["sound"]).max() <= 1 and np.isfinite(rendered["sound"]).all()
    assert len(rendered["caption"]) == 48 and {len(lines) for lines in rendered["caption"]} == {5}


def test_sizes_rates_and_counts_are_obeyed(places):
    few = places.take(slice(0, 2))
    assert render_tiles(few, 0, size=9, gsd=3.0).shape == (2, 9, 9, 3)
    assert render_photos(few, 0, size=100).shape == (2, 100, 100, 3)
    assert render_sounds(few, 0, seconds=0.5, rate=8000).shape == (2, 4000)
    assert render_sounds(few, 0, seconds=0.3, rate=22050).shape == (2, 6615)
    assert [len(lines) for lines in write_captions(few, 0, count=2)] == [2, 2]


@MODALITIES
def test_no_places_give_nothing(modality):
    assert len(RENDERERS[modality](Planet(0).places(0), 0)) == 0


@MODALITIES
def test_a_place_is_rendered_alike_in_any_company(modality, places, rendered):
    rows = [40, 3, 17]
    assert same(RENDERERS[modality](places.take(rows), 0), [rendered[modality][row] for row in rows])
    assert same(RENDERERS[modality](places.take([5]), 0)[0], rendered[modality][5])


@MODALITIES
def test_the_seed_changes_the_rendering(modality, places, rendered):
    again, other = RENDERERS[modality](places, 0), RENDERERS[modality](places, 1)
    assert same(again, rendered[modality])
    assert sum(same(a, b) for a, b in zip(again, other, strict=True)) == 0


def test_captions_and_sounds_are_the_same_in_another_process(rendered):
    code = (
        "import hashlib; from geobind_toyearth import *; p = Planet(0).places(48, seed=4);"
        "h = hashlib.sha256(repr(write_captions(p, 0)).encode());"
        "[h.update(render(p, 0).tobytes()) for render in (render_tiles, render_photos, render_sounds)];"
        "print(h.hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    digest = hashlib.sha256(repr(rendered["caption"]).encode())
    for name in ("tile", "photo", "sound"):
        digest.update(rendered[name].tobytes())
    assert done.stdout.strip() == digest.hexdigest()


def test_no_two_modalities_share_random_numbers():
    from geobind_toyearth.canvas import banks
    from geobind_toyearth.planet import draw, place_keys

    places = Planet(0).places(2000)
    drawn = {
        name: draw(place_keys(places[:4], 0, name), "same name", 1)[:, 0]
        for name in ("tile", "photo", "sound", "caption")
    }
    correlation = np.corrcoef(np.stack(list(drawn.values())))
    assert np.abs(correlation - np.eye(4)).max() < 0.08
    assert abs(np.corrcoef(banks(11).smooth, banks(23).smooth)[0, 1]) < 0.05


def test_nuisance_varies_where_facts_do_not(with_facts):
    twins = with_facts(forest=0.4, roads=0.5, buildings=0.4, wind=0.5)
    for name in ("tile", "photo"):
        pictures = RENDERERS[name](twins, 0).astype(float)
        assert pictures.std(axis=0).mean() > 12
    assert len({lines[0] for lines in write_captions(twins, 0)}) > 40


def test_a_finer_gsd_enlarges_what_is_on_the_ground(places):
    coarse = render_tiles(places, 0, size=32, gsd=20.0).astype(float)
    fine = render_tiles(places, 0, size=128, gsd=5.0).astype(float)
    pooled = fine.reshape(48, 32, 4, 32, 4, 3).mean(axis=(2, 4))
    agreement = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(coarse, pooled, strict=True)]
    assert np.median(agreement) > 0.8
    detail = render_tiles(places, 0, size=32, gsd=5.0).astype(float)
    middle = fine[:, 48:80, 48:80]
    assert (
        np.median([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(detail, middle, strict=True)])
        > 0.9
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: render_tiles(p, 0, size=7), "size is 7: give a whole number from 8 to 1024"),
        (lambda p: render_photos(p, 0, size=64.0), "size is 64.0: give a whole number"),
        (lambda p: render_tiles(p, 0, gsd=0.0), "gsd is 0.0: give a number from 0.1 to 100"),
        (lambda p: render_tiles(p, 0, gsd=float("nan")), "gsd is nan"),
        (lambda p: render_sounds(p, 0, seconds=0.0), "seconds is 0.0"),
        (lambda p: render_sounds(p, 0, rate=100), "rate is 100"),
        (lambda p: write_captions(p, 0, count=0), "count is 0"),
        (lambda p: write_captions(p, -1), "seed is -1: give a whole number"),
        (lambda p: render_photos(p._replace(lat=p.lat * 0 + 95), 0), r"lat\[0\] = 95.0 is not usable"),
        (lambda p: render_photos(p._replace(lat=p.lat[:2]), 0), "differ in length"),
        (lambda p: render_sounds(p._replace(facts=p.facts[:, :3]), 0), r"facts have shape \(48, 3\)"),
        (
            lambda p: render_tiles(p._replace(facts=p.facts + np.nan), 0),
            "place 0: water is nan: give a fact between 0 and 1",
        ),
    ],
)
def test_unusable_arguments_are_named(call, message, places):
    with pytest.raises(DataError, match=message):
        call(places)


def test_the_contact_sheet_is_a_small_png():
    from geobind_toyearth.contact_sheet import contact_sheet, typical_places

    png = contact_sheet(typical_places().take(slice(0, 3)))
    assert png.startswith(b"\x89PNG") and len(png) < 400_000
    with pytest.raises(DataError, match="shows 1 to 12 places, not 0"):
        contact_sheet(Planet(0).places(0))


def test_the_wishes_for_typical_places_name_facts():
    from geobind_toyearth.contact_sheet import typical_places

    assert typical_places().facts.shape == (8, len(FACTS))
