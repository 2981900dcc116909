"""Marks of pairs: what a chain of stages makes of two modalities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geobind.recipe import load_recipe
from geobind.recipe.describe import recipe_warnings
from geobind.recipe.marks import (
    MARKS,
    MEANINGS,
    StageStep,
    find_shared_towers,
    find_stale_pairs,
    mark_pairs,
    read_steps,
)

CLIP = [frozenset(("ground", "text"))]


def step(pairs, trained):
    return StageStep(tuple(tuple(pair.split("-")) for pair in pairs.split()), frozenset(trained.split()))


def marks(names, *steps, shared=()):
    marked = mark_pairs(names.split(), steps, shared)
    return {"-".join(sorted(pair)): mark for pair, mark in marked.items()}


CHAINS = {
    "one stage": ([step("tile-sound", "sound")], (), {"sound-tile": "trained"}),
    "a chain joins": (
        [step("ground-tile", "tile"), step("tile-sound", "sound")],
        (),
        {"ground-tile": "trained", "sound-tile": "trained", "ground-sound": "emergent"},
    ),
    "a frozen CLIP": (
        [step("ground-tile", "tile"), step("tile-sound", "sound")],
        CLIP,
        {
            "ground-tile": "trained",
            "ground-text": "shared tower",
            "text-tile": "emergent",
            "sound-text": "emergent",
            "sound-tile": "trained",
            "ground-sound": "emergent",
        },
    ),
    "untouched": (
        [step("tile-sound", "sound")],
        (),
        {"sound-tile": "trained", "text-tile": "unconnected", "sound-text": "unconnected"},
    ),
    "nothing trained": ([], (), {"sound-tile": "unconnected"}),
    "an anchor retrained after others were aligned to it": (
        [step("tile-sound", "sound"), step("ground-tile", "tile")],
        (),
        {"sound-tile": "stale", "ground-tile": "trained", "ground-sound": "stale"},
    ),
    "... and the others aligned again": (
        [step("tile-sound", "sound"), step("ground-tile", "tile"), step("tile-sound", "sound")],
        (),
        {"sound-tile": "trained", "ground-tile": "trained", "ground-sound": "emergent"},
    ),
    "retrained beside them": (
        [step("tile-sound", "sound"), step("ground-tile tile-sound", "tile")],
        (),
        {"sound-tile": "trained", "ground-tile": "trained", "ground-sound": "emergent"},
    ),
    "the aligned one moves on to another anchor": (
        [step("tile-sound", "sound"), step("ground-sound", "sound")],
        (),
        {"sound-tile": "stale", "ground-sound": "trained", "ground-tile": "stale"},
    ),
    "one side of a CLIP is trained": (
        [step("ground-tile", "ground")],
        CLIP,
        {"ground-tile": "trained", "ground-text": "stale", "text-tile": "stale"},
    ),
    "both sides of a CLIP are trained together": (
        [step("ground-text", "ground text")],
        CLIP,
        {"ground-text": "trained"},
    ),
    "two islands": (
        [step("tile-sound", "sound"), step("ground-text", "text")],
        (),
        {"sound-tile": "trained", "ground-text": "trained", "ground-tile": "unconnected"},
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_of_stages_gives_each_pair_its_mark(chain):
    steps, shared, expected = CHAINS[chain]
    names = " ".join(dict.fromkeys(name for pair in expected for name in pair.split("-")))
    found = marks(names, *steps, shared=shared)
    assert {pair: found[pair] for pair in expected} == expected


def test_the_stage_that_leaves_a_pair_stale_is_named():
    steps = [step("tile-sound", "sound"), step("ground-tile", "tile")]
    assert find_stale_pairs(steps) == {frozenset(("tile", "sound")): 1}
    assert not find_stale_pairs([*steps, step("tile-sound", "sound")])


NAMES = ("a", "b", "c", "d")
PAIRS = [(one, two) for one in NAMES for two in NAMES if one < two]
STEPS = st.lists(
    st.builds(
        StageStep,
        st.lists(st.sampled_from(PAIRS), min_size=1, max_size=3, unique=True).map(tuple),
        st.frozensets(st.sampled_from(NAMES), min_size=1, max_size=3),
    ),
    max_size=5,
)


@given(STEPS)
def test_every_pair_has_one_mark_and_the_last_stage_trains_its_own(steps):
    found = mark_pairs(NAMES, steps)
    assert len(found) == len(PAIRS) and set(found.values()) <= set(MARKS) == set(MEANINGS)
    if steps:
        assert {found[frozenset(pair)] for pair in steps[-1].compared} == {"trained"}
    touched = {name for one in steps for pair in one.compared for name in pair}
    for pair, mark in found.items():
        assert pair <= touched or mark == "unconnected"


@given(STEPS)
def test_an_emergent_pair_has_a_chain_of_pairs_that_are_not_stale(steps):
    found = mark_pairs(NAMES, steps)
    reach = {name: {name} for name in NAMES}
    for _ in NAMES:
        for pair in (pair for pair, mark in found.items() if mark == "trained"):
            one, two = pair
            reach[one] |= reach[two]
            reach[two] |= reach[one]
    for pair, mark in found.items():
        one, two = pair
        assert (mark in ("trained", "emergent")) == (two in reach[one])


VIT = {"model": "ViT-B-32", "pretrained": "laion"}


@pytest.mark.parametrize(
    ("one", "two", "shared"),
    [
        ({"clip": VIT}, {"clip": VIT}, True),
        ({"clip": VIT, "head": "identity"}, {"clip": {**VIT, "prefix": "text."}}, True),
        ({"clip": VIT, "head": "mlp"}, {"clip": VIT}, False),
        ({"clip": {**VIT, "projection": False}}, {"clip": VIT}, False),
        ({"clip": {**VIT, "pretrained": False}}, {"clip": {**VIT, "pretrained": False}}, False),
        ({"clip": VIT}, {"clip": {**VIT, "pretrained": "openai"}}, False),
        ({"clip": {**VIT, "model": {"embed_dim": 32}}}, {"clip": {**VIT, "model": {"embed_dim": 32}}}, False),
        ({"timm": {"model": "resnet18", "pretrained": "a.pth"}}, {"clip": VIT}, False),
        ({"clip": None}, {"clip": VIT}, False),
        ("not a mapping", {"clip": VIT}, False),
    ],
)
def test_two_sides_of_one_pretrained_clip_share_a_tower(one, two, shared):
    assert find_shared_towers({"ground": one, "text": two}, 512) == ({*CLIP} if shared else set())


def test_steps_are_read_from_the_facts_of_finished_stages():
    facts = [
        {"anchor": "tile", "align": "sound", "train": ["sound"]},
        {"losses": [{"anchor": "tile", "other": "ground"}], "train": {"tile": "head"}},
    ]
    assert read_steps(facts) == (step("tile-sound", "sound"), step("tile-ground", "tile"))
    with pytest.raises(KeyError):
        read_steps([{"losses": [{"anchor": "tile"}], "train": []}])


RECIPE = """\
name: chain
width: 16
modalities:
  satellite: {timm: {model: test_vit, pretrained: false}}
  ground_image: {timm: {model: test_vit, pretrained: false}}
  audio: {timm: {model: test_vit, pretrained: false}}
data: {toyearth: {places: 40, held_out: 10}, columns: {satellite: tile, ground_image: photo, audio: sound}}
stages:
  - {name: sounds, align: audio, train: [audio], batch_size: 8, epochs: 1}
  - {name: tiles, align: ground_image, train: [satellite], batch_size: 8, epochs: 1}
"""
AGAIN = "  - {name: sounds_again, align: audio, train: [audio], batch_size: 8, epochs: 1}\n"


def test_a_stage_that_leaves_pairs_stale_is_warned_of_and_one_that_mends_them_is_not(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path)
    warnings = {stage.name: [*recipe_warnings(recipe, stage)] for stage in recipe.stages}
    (line,) = warnings["tiles"]
    assert "satellite moves away from audio" in line and not warnings["sounds"]
    assert recipe.marks[frozenset(("satellite", "audio"))] == "stale"
    path.write_text(RECIPE + AGAIN)
    mended = load_recipe(path)
    assert not [line for stage in mended.stages for line in recipe_warnings(mended, stage)]
    assert set(mended.marks.values()) == {"trained", "emergent"}
