"""Co-registered rasters: those of `augment.together` are mirrored, turned and cropped alike in each row."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geobind import plugins
from geobind.data.augmentation import WHOLE, draw_geometry, share_geometry
from geobind.data.contact_sheet import SheetModality, draw_stage_sheet
from geobind.data.loader import BatchLoader, ModalityInput
from geobind.data.sampler import BatchSampler
from geobind.data.sources import PluginPairs
from geobind.errors import RecipeError
from geobind.modality import Modality, Pair
from geobind.recipe import RecipeProblems, load_recipe
from geobind.recipe.describe import describe_details, recipe_warnings
from geobind.towers.images import ImageSpec, augment_image, prepare_image
from geobind.towers.options import TileAugment
from geobind.training.run import run
from geobind.training.stage_data import StageData

ALL = {"hflip": True, "vflip": True, "rotations": True}
FINE, COARSE = 32, 8  # pixels of a tile, and of a height map of the same ground


class Raster(Modality):
    """A grid of the ground, each cell as high as its number."""

    role: ClassVar = "trainable"
    size: int = COARSE
    augment: TileAugment = TileAugment()

    def encoder(self, width, *, pretrained=True):
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, width))

    def prepare(self, raw, *, training=False):
        spec = ImageSpec(1, self.size, (0.0,), (1.0,), "bilinear", squash=False, unit=False)
        return prepare_image(raw, spec, self.augment if training else None)


class Tile(Raster):
    """A tile of the ground."""

    name: ClassVar = "tile"


class Heights(Raster):
    """A coarser raster of the same ground."""

    name: ClassVar = "heights"

    def pairs(self, split, anchor):
        return PAIRS


class Stubborn(Raster):
    """A raster whose plugin turns it by itself."""

    name: ClassVar = "stubborn"

    def prepare(self, raw, *, training=False):
        return augment_image(raw, TileAugment()) if not training else raw.flip(-1)

    def pairs(self, split, anchor):
        return PAIRS


class Plain(Stubborn):
    """A raster that knows no augmentation."""

    name: ClassVar = "plain"
    augment: int = 0  # pyright: ignore[reportIncompatibleVariableOverride, reportAssignmentType]


def ground(number):
    return torch.rand(1, COARSE, COARSE, generator=torch.Generator().manual_seed(number))


def fine(ground_1HW):
    return ground_1HW.repeat_interleave(FINE // COARSE, -1).repeat_interleave(FINE // COARSE, -2)


def coarse(tile_1HW):
    return nn.functional.avg_pool2d(tile_1HW, FINE // COARSE)


PAIRS = [Pair(fine(ground(n)), ground(n), f"row{n}") for n in range(24)]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 2**60), st.fixed_dictionaries({name: st.booleans() for name in ALL}))
def test_a_tile_and_its_heights_stay_registered_over_all_draws(seed, options):
    augment = TileAugment(**options)
    tile, heights = Tile(size=FINE, augment=augment), Heights(augment=augment)
    geometry = draw_geometry(seed)
    with share_geometry("shared", geometry):
        torch.manual_seed(1)
        seen = tile.prepare(fine(ground(seed % 1000)), training=True)
        torch.manual_seed(2)
        map_1HW = heights.prepare(ground(seed % 1000), training=True)
    assert torch.allclose(coarse(seen), map_1HW, atol=1e-5)


def gradients(size):
    """Two bands: the place of each pixel on the ground, southwards and eastwards, in shares of the image."""
    place = (torch.arange(size) + 0.5) / size
    return torch.stack([place[:, None].expand(size, size), place[None].expand(size, size)])


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.integers(0, 2**60), st.floats(0.1, 1), st.floats(0.1, 1))
def test_crops_of_rasters_of_different_resolutions_show_the_same_ground(seed, one, two):
    scale = min(one, two), max(one, two)
    augment = TileAugment(**ALL, random_resized_crop=scale)
    places = {}
    for size in (256, 64):
        spec = ImageSpec(2, 16, (0.0,) * 2, (1.0,) * 2, "bilinear", squash=False, unit=False)
        with share_geometry("shared", draw_geometry(seed)):
            places[size] = prepare_image(gradients(size), spec, augment)
    assert (places[256] - places[64]).abs().max() < 1.5 / 64  # a box ends on whole pixels
    box = draw_geometry(seed).crop(scale)
    assert 0 <= box.top <= box.top + box.height <= 1 + 1e-9
    assert 0 <= box.left <= box.left + box.width <= 1 + 1e-9
    assert scale[0] * 0.999 <= box.height * box.width <= scale[1] * 1.001
    assert 3 / 4 - 1e-9 <= box.width / box.height <= 4 / 3 + 1e-9


def test_draws_take_every_flip_turn_and_place():
    drawn = [draw_geometry(0, step, 3) for step in range(400)]
    for name, values in (("hflip", {True, False}), ("vflip", {True, False}), ("quarter_turns", {0, 1, 2, 3})):
        counts = [sum(getattr(one, name) == value for one in drawn) / 400 for value in values]
        assert all(abs(count - 1 / len(values)) < 0.1 for count in counts)
    boxes = np.array([one.crop((0.25, 0.5)) for one in drawn])
    assert (boxes.std(axis=0) > 0.05).all()


def test_beside_an_input_that_is_not_augmented_only_colours_change():
    augment = TileAugment(**ALL, random_resized_crop=(0.2, 0.3), band_jitter=0.5)
    spec = ImageSpec(2, 32, (0.0,) * 2, (1.0,) * 2, "bilinear", squash=False, unit=False)
    torch.manual_seed(0)
    with share_geometry("none", draw_geometry(5)):
        made = prepare_image(gradients(32), spec, augment)
    ratio_CHW = made / gradients(32)
    assert torch.allclose(ratio_CHW, ratio_CHW[:, :1, :1].expand_as(ratio_CHW), atol=1e-5)
    assert not torch.allclose(made, gradients(32), atol=0.01)
    assert draw_geometry(5)._replace(area=None).crop((0.2, 0.3)) == WHOLE


def test_without_sharing_inputs_draw_from_torchs_generator_as_ever():
    image = gradients(16)
    for seed in range(20):
        torch.manual_seed(seed)
        made = augment_image(image, TileAugment(**ALL))
        after = torch.rand(())
        torch.manual_seed(seed)
        expected = image.flip(-1) if torch.rand(()) < 0.5 else image
        expected = expected.flip(-2) if torch.rand(()) < 0.5 else expected
        expected = expected.rot90(int(torch.randint(4, ())), (-2, -1))
        assert torch.equal(made, expected)
        assert torch.equal(after, torch.rand(()))


def loaded(first_step=0, workers=0, geometry="shared", jitter=0.0):
    augment = TileAugment(**ALL)
    tile = Tile(size=FINE, augment=augment.model_copy(update={"band_jitter": jitter}))
    sides = {"tile": (tile, geometry), "heights": (Heights(augment=augment), geometry)}
    return [
        (batch["tile"], batch["heights"])
        for _, batch, _ in BatchLoader(
            PluginPairs(PAIRS, "tile", "heights"),
            {name: ModalityInput(each, augment=True, geometry=kind) for name, (each, kind) in sides.items()},
            BatchSampler((len(PAIRS),), 8, 3),
            first_step,
            6,
            workers=workers,
        )
    ]


def same(a, b):
    return all(
        torch.equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)
    )


def test_a_loader_turns_the_rasters_of_a_row_alike_and_each_row_anew():
    batches = loaded()
    for tile_BCHW, heights_BCHW in batches:
        assert torch.allclose(coarse(tile_BCHW), heights_BCHW, atol=1e-5)
    assert not same(batches[:3], batches[3:])  # another epoch
    assert any(not torch.allclose(coarse(tiles), heights) for tiles, heights in loaded(geometry="own"))
    assert all(torch.equal(tiles, fine(heights)) for tiles, heights in loaded(geometry="none"))


def test_shared_draws_do_not_depend_on_workers_nor_on_where_a_run_resumed():
    batches = loaded()
    assert same(batches[4:], loaded(first_step=4))
    assert same(batches, loaded(workers=2))


def test_colours_change_independently():
    for tiles, heights in loaded(jitter=0.3):
        ratio = coarse(tiles) / heights
        assert torch.allclose(ratio, ratio[..., :1, :1].expand_as(ratio), atol=1e-4)
        assert not torch.allclose(ratio, torch.ones(()), atol=0.01)


RECIPE = """\
name: registered
width: 8
anchor: tile
workers: 0
fabric: {accelerator: cpu}
augment: {together: [tile, heights]}
modalities:
  tile: {size: 32, augment: {hflip: true, rotations: true, band_jitter: 0.1}}
  heights: {augment: {hflip: true, rotations: true}}
  stubborn: {augment: {hflip: true, rotations: true}}
  plain: {}
stages:
  - {name: one, align: heights, train: [tile, heights], batch_size: 8, steps: 2}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    found = {
        cls.name: plugins.Plugin(cls, plugins.Source(cls.name, "rasters", "1"))
        for cls in (Tile, Heights, Stubborn, Plain)
    }
    monkeypatch.setattr(plugins, "registry", lambda: plugins.Registry("modality", found, ()))

    def load(*overrides):
        (tmp_path / "registered.yaml").write_text(RECIPE)
        return load_recipe(tmp_path / "registered.yaml", overrides)

    return load


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augment.together=[tile]", "names one modality, which has nothing to be turned alike with"),
        (
            "augment.together=[tile, height]",
            "no modality 'height' under `modalities`; did you mean 'heights'",
        ),
        ("augment.together=[tile, heights, tile]", "'tile' is there already; keep one"),
        ("augment.together=[tile, plain]", "'plain' cannot be turned alike with others: its plugin has no"),
        (
            "modalities.heights.augment={hflip: true, vflip: true}",
            r"'heights' and 'tile' are to be turned alike, but their `augment` differs \(vflip True and "
            r"False, rotations False and True\); give both the same",
        ),
        ("stages.0.cache={views: 4}", "views are drawn one by one, so that tile and heights would not be"),
    ],
)
def test_what_cannot_be_turned_alike_is_refused_where_it_stands(recipe, override, message):
    with pytest.raises(RecipeProblems, match=message) as caught:
        recipe(override)
    assert len(caught.value.problems) == 1
    assert "registered.yaml:" in str(caught.value) or "--set" in str(caught.value)


def test_stages_say_what_is_turned_alike(recipe):
    both = recipe()
    assert "augment: tile and heights are mirrored, turned and cropped alike" in [
        *describe_details(both, both.stages[0])
    ]
    frozen = recipe("stages.0.train=[heights]")
    assert [*recipe_warnings(frozen, frozen.stages[0])] == [
        "augment.together: mirrors, turns and crops no heights, because this stage does not train tile, "
        "whose embeddings are cached; `cache: off` turns all alike"
    ]
    assert frozen.geometry_of(frozen.stages[0]) == {"tile": "none", "heights": "none"}
    assert frozen.augmented_in(frozen.stages[0]) == {"heights"}
    live = recipe("stages.0.train=[heights]", "stages.0.cache=off")
    assert not [*recipe_warnings(live, live.stages[0])]
    assert live.geometry_of(live.stages[0]) == {"tile": "shared", "heights": "shared"}
    assert live.augmented_in(live.stages[0]) == {"tile", "heights"}
    alone = recipe("stages.0.align=stubborn", "stages.0.train=[tile, stubborn]")
    assert alone.geometry_of(alone.stages[0]) == {"tile": "own", "stubborn": "own"}


def test_a_plugin_that_turns_its_inputs_by_itself_is_refused_before_training(recipe, tmp_path):
    deaf = recipe(
        "augment.together=[tile, stubborn]", "stages.0.align=stubborn", "stages.0.train=[tile, stubborn]"
    )
    with pytest.raises(
        RecipeError, match="'stubborn' cannot be turned alike with others: its plugin does not"
    ):
        run(deaf, tmp_path / "run")
    assert not (tmp_path / "run/stages").exists()


@pytest.mark.slow
def test_a_run_trains_on_rasters_turned_alike_and_its_stage_depends_on_it(recipe, tmp_path, caplog):
    caplog.set_level("INFO")
    run(recipe(), tmp_path / "run")
    caplog.clear()
    run(recipe(), tmp_path / "run", resume=True)
    assert "finished before, unchanged" in caplog.text
    caplog.clear()
    run(recipe("augment.together=[]"), tmp_path / "run", resume=True)
    assert "run again: augment.together: it was ['heights', 'tile'] and is not set" in caplog.text


@pytest.mark.slow
def test_a_contact_sheet_turns_rasters_alike(recipe, monkeypatch):
    made = {}
    prepare = Raster.prepare

    def note(self, raw, *, training=False):
        result = prepare(self, raw, training=training)
        made.setdefault(self.name, []).extend([result] * training)
        return result

    monkeypatch.setattr(Raster, "prepare", note)
    both = recipe("modalities.tile.augment.band_jitter=0")
    stage = both.stages[0]
    sides = {
        name: SheetModality(both.built[name], True, kind) for name, kind in both.geometry_of(stage).items()
    }
    draw_stage_sheet(StageData(both).rows(stage), sides, rows=3)
    assert len(made["tile"]) == 9
    assert all(torch.allclose(coarse(t), h) for t, h in zip(made["tile"], made["heights"], strict=True))
