"""The trained fuser: any subset in, any modality out; its file in a bundle, its recipe block."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import small_world
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toy import Left, Right, registry, view

from geobind import plugins
from geobind.binder import Binder
from geobind.bundles.bundle import build_card
from geobind.embedding_cache.store import embeddings_folder
from geobind.errors import CheckpointError, DataError, RecipeError
from geobind.evaluation import EmbeddedRows, calibrate_fuser, evaluate_subsets
from geobind.fuser import FUSER, Fuser, FuserNetwork, train_fuser
from geobind.recipe import load_recipe
from geobind.recipe.schema import FuserOptions
from geobind.scoring import add_embeddings
from geobind.training.run import run
from geobind.utils.system import hash_tensors
from geobind.utils.vectors import unit

QUICK = FuserOptions(epochs=12, width=32, layers=1, batch_size=64)
NAMES = ("tile", "sound", "words")


def rows(count, seed, width=8):
    return unit(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def world(count, seed):
    """Rows of three modalities, each of which holds half of what a row is, turned its own way."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 6, generator=random)
    parts = {"tile": hidden[:, :4], "sound": hidden[:, 2:], "words": hidden[:, [0, 1, 4, 5]]}
    turns = {name: torch.randn(4, 16, generator=torch.Generator().manual_seed(len(name))) for name in parts}
    return {name: unit(part @ turns[name]) for name, part in parts.items()}


def random_fuser(seed=0):
    """A fuser that says something, without training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FuserNetwork(3, 8, 8, 2).eval()
        for last in (network.outward, network.concentration):
            torch.nn.init.normal_(last.weight)
    return Fuser(network, NAMES, 100, "made up")


@pytest.fixture(scope="module")
def trained():
    torch.set_num_threads(1)
    return train_fuser(world(600, 0), QUICK)


def test_it_begins_at_the_plain_sum():
    network = FuserNetwork(3, 8, 8, 1).eval()
    given = {"tile": rows(5, 0), "sound": rows(5, 1)}
    found = Fuser(network, NAMES).infer(given, ["words"])["words"]
    assert torch.allclose(found.mean_ND, add_embeddings(given), atol=1e-6)


def test_trained_on_rows_of_three_it_finds_the_third_better_than_the_sum(trained):
    held_out = {name: EmbeddedRows(torch.arange(200).numpy(), x) for name, x in world(200, 1).items()}
    for row in evaluate_subsets(held_out, fuser=trained):
        assert row.fuser.over_sum.low > 0 and row.fuser.over_product.low > 0
        assert row.fuser.metrics["R@10"].value > row.metrics["R@10"].value


def as_rows(parts):
    return {name: EmbeddedRows(np.arange(len(x)), x) for name, x in parts.items()}


def shout(fuser, times):
    """The fuser with concentrations that many times as high."""
    network = copy.deepcopy(fuser.network)
    with torch.no_grad():
        network.concentration.bias += math.log(times)
    return replace(fuser, network=network)


def test_calibrated_concentrations_are_the_same_however_high_the_trained_ones_were(trained):
    loud, other = shout(trained, 3.0), world(150, 2)
    one, two = (calibrate_fuser(fuser, as_rows(other)) for fuser in (trained, loud))
    for name in NAMES:
        assert two.scales[name] == pytest.approx(one.scales[name] / 3, rel=0.01)
    given = {name: world(9, 3)[name] for name in ("tile", "sound")}
    means = [fuser.infer(given, ["words"])["words"] for fuser in (loud, two)]
    assert torch.equal(means[0].mean_ND, means[1].mean_ND)
    assert torch.allclose(means[1].concentration_N, means[0].concentration_N * two.scales["words"])


def test_calibration_takes_rows_that_lack_modalities_and_leaves_alone_what_few_rows_have(trained):
    parts = {name: x[:60] for name, x in world(60, 2).items()}
    embedded = as_rows(parts)
    embedded["words"] = EmbeddedRows(np.arange(45, 60), parts["words"][45:])
    found = calibrate_fuser(trained, embedded)
    assert set(found.scales) == {"tile", "sound"}  # 15 rows of words are too few
    assert calibrate_fuser(replace(trained, scales={"words": 2.0}), embedded).scales["words"] == 2
    assert not calibrate_fuser(trained, {"tile": embedded["tile"]}).scales  # nothing to infer it from


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=6, max_size=6))
def test_what_is_missing_changes_nothing_and_never_the_own_embedding(seed, there):
    fuser, x, y = random_fuser(), rows(3, seed), rows(3, seed + 1)
    present = {"tile": torch.tensor(there[:3]), "sound": torch.tensor(there[3:])}
    found = fuser.infer({"tile": x, "sound": y}, present=present)
    hidden = fuser.infer(
        {name: torch.where(present[name][:, None], z, rows(3, 7)) for name, z in (("tile", x), ("sound", y))},
        present=present,
    )
    for name in NAMES:
        one, two = found[name], hidden[name]
        assert torch.equal(one.mean_ND, two.mean_ND)
        assert torch.equal(one.concentration_N, two.concentration_N)
        some_N = present["tile"] | present["sound"]
        assert torch.equal(one.mean_ND.norm(dim=1) > 0.5, some_N)
        assert torch.equal(one.concentration_N > 0, some_N)
    assert torch.equal(found["tile"].mean_ND[present["tile"]], x[present["tile"]])
    assert bool(found["tile"].concentration_N[present["tile"]].isinf().all())


def test_rows_in_blocks_and_alone_are_inferred_alike(monkeypatch):
    fuser, given = random_fuser(), {"tile": rows(9, 0), "sound": rows(9, 1)}
    whole = fuser.infer(given, ["words"])["words"]
    monkeypatch.setattr("geobind.fuser._BLOCK", 2)
    blocks = fuser.infer(given, ["words"])["words"]
    alone = fuser.infer({name: x[4:5] for name, x in given.items()}, ["words"])["words"]
    assert torch.allclose(blocks.mean_ND, whole.mean_ND, atol=1e-5)
    assert torch.allclose(alone.mean_ND[0], whole.mean_ND[4], atol=1e-5)


def test_the_same_seed_trains_the_same_fuser_and_leaves_random_state_alone():
    quick, x = FuserOptions(epochs=2, width=8, layers=1), world(40, 0)
    before = torch.get_rng_state()
    one, two, other = (train_fuser(x, quick, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    digests = [hash_tensors(fuser.network.state_dict()) for fuser in (one, two, other)]
    assert digests[0] == digests[1] != digests[2]


def test_rows_that_lack_modalities_train_too_and_lone_ones_are_left_out():
    x = world(90, 0)
    present = {"words": torch.arange(90) < 60, "sound": torch.arange(90) < 80}
    holed = {name: part * present.get(name, torch.ones(90))[:, None] for name, part in x.items()}
    fuser = train_fuser(holed, FuserOptions(epochs=1, width=8, layers=1, batch_size=16), present=present)
    assert fuser.rows == 80
    assert all(bool(value.isfinite().all()) for value in fuser.network.state_dict().values())


@pytest.mark.parametrize(
    ("given", "present", "message"),
    [
        ({"tile": rows(50, 0)}, {}, "two modalities or more, not tile"),
        ({"tile": rows(50, 0), "sound": rows(40, 0)}, {}, "equally many"),
        ({"tile": rows(20, 0), "sound": rows(20, 1)}, {}, "of 20 rows 20 have two of tile, sound"),
        (
            {"tile": rows(50, 0), "sound": rows(50, 1)},
            {"sound": torch.zeros(50, dtype=torch.bool)},
            "of 50 rows 0",
        ),
    ],
)
def test_rows_that_teach_nothing_are_refused(given, present, message):
    with pytest.raises(DataError, match=message):
        train_fuser(given, QUICK, present=present)


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        ({}, ["tile"], "nothing to infer"),
        ({"tile": rows(2, 0), "sound": rows(3, 0)}, None, "equally many"),
        (
            {"tile": rows(2, 0), "smell": rows(2, 1)},
            None,
            "trained on smell; it knows tile, sound, words",
        ),
        ({"tile": rows(2, 0)}, ["smell"], "not trained on smell"),
        ({"tile": rows(2, 0, width=5)}, None, "5 wide, the fuser's 8"),
    ],
)
def test_what_it_cannot_fuse_is_refused(given, wanted, message):
    with pytest.raises(DataError, match=message):
        random_fuser().infer(given, wanted)


@pytest.fixture
def binder(monkeypatch):
    monkeypatch.setattr(plugins, "registry", registry)
    made = Binder({"left": Left(), "right": Right()}, 8, seed=0)
    made.card = build_card(made)
    made.fuser = train_fuser(
        {"left": rows(40, 0), "right": rows(40, 1)},
        FuserOptions(epochs=1, width=8, layers=1),
        digests=made.card.digests,
        source="40 made-up rows",
    )
    return made


def test_a_binder_infers_by_its_fuser_only_when_asked(binder):
    parts = {"left": [view(0, "left"), None, None], "right": [view(0, "right"), view(1, "right"), None]}
    plain, by_fuser = binder.infer(parts), binder.infer(parts, fuser=True)
    assert plain["left"].note.startswith("equal weights")
    assert by_fuser["left"].note == "by a fuser trained on 40 made-up rows"
    for found in (plain, by_fuser):
        assert torch.equal(found["left"].mean_ND[0], binder.embed("left", view(0, "left"))[0])
        assert found["left"].concentration_N[2] == 0
    assert not torch.equal(plain["left"].mean_ND[1], by_fuser["left"].mean_ND[1])
    other = binder.infer(parts, ["left"], fuser=binder.fuser)
    assert torch.equal(other["left"].mean_ND, by_fuser["left"].mean_ND)


def test_a_binder_without_a_fuser_or_with_a_strange_one_says_what_to_do(binder):
    known, binder.fuser = binder.fuser, None
    with pytest.raises(DataError, match="has no fuser: train one by `fuse"):
        binder.infer({"left": view(0, "left")}, fuser=True)
    strange = Fuser(known.network, ("left", "smell"), digests={})
    with pytest.raises(DataError, match="not trained on right; it knows left, smell"):
        binder.infer({"right": view(0, "right")}, fuser=strange)
    assert set(binder.infer({"left": view(0, "left")}, fuser=strange)) == {"left"}
    with pytest.raises(DataError, match="other weights of 'left'"):
        binder.infer({"left": view(0, "left")}, fuser=Fuser(known.network, ("left",), digests={"left": "0"}))


def test_a_bundle_keeps_its_fuser_and_loads_without_it(binder, tmp_path):
    binder.save(tmp_path / "bundle")
    loaded = Binder.load(tmp_path / "bundle")
    parts = {"left": view(0, "left")}
    one, two = (each.infer(parts, fuser=True)["right"] for each in (binder, loaded))
    assert torch.equal(one.mean_ND, two.mean_ND) and torch.equal(one.concentration_N, two.concentration_N)
    assert loaded.fuser.source == "40 made-up rows" and loaded.fuser.rows == 40
    (tmp_path / "bundle" / FUSER).unlink()
    without = Binder.load(tmp_path / "bundle")
    assert without.fuser is None
    without.save(tmp_path / "again")
    assert Binder.load(tmp_path / "again").fuser is None


def test_a_bundle_keeps_the_scales_of_concentrations(binder, tmp_path):
    binder.fuser = replace(binder.fuser, scales={"right": 0.5})
    loaded = Binder.load(binder.save(tmp_path / "bundle"))
    parts = {"left": view(0, "left")}
    one, two = (each.infer(parts, fuser=True)["right"] for each in (binder, loaded))
    assert torch.equal(one.concentration_N, two.concentration_N) and loaded.fuser.scales == {"right": 0.5}
    card = tmp_path / "bundle" / "binder.json"
    card.write_text(card.read_text().replace('"right": 0.5', '"right": -0.5'))
    with pytest.raises(CheckpointError, match=r"binder\.json: damaged: fuser\.scales\.right"):
        Binder.load(tmp_path / "bundle")


def test_training_on_leaves_the_fuser_behind(binder, tmp_path):
    with torch.no_grad():
        binder.encoders["left"].head.bias += 1
    binder.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle" / FUSER).exists()
    assert Binder.load(tmp_path / "bundle").fuser is None


def change(tensors, card):
    tensors["outward.bias"] += 1


def reshape(tensors, card):
    tensors["outward.bias"] = torch.zeros(9)
    card["fuser"]["sha256"] = hash_tensors(tensors)


def break_number(tensors, card):
    tensors["outward.bias"][0] = torch.nan
    card["fuser"]["sha256"] = hash_tensors(tensors)


def widen(tensors, card):
    card["fuser"]["hidden"] = 4096


def deepen(tensors, card):
    card["fuser"]["layers"] = 10**6


def use_other_weights(tensors, card):
    card["fuser"]["digests"]["left"] = "0" * 64


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (change, "SHA-256 differs"),
        (reshape, "weights are not those that the card describes: shape outward.bias"),
        (break_number, "not finite"),
        (widen, "weights are not those that the card describes: shape"),
        (deepen, "fuser.layers"),
        (use_other_weights, "other weights of 'left'"),
    ],
)
def test_a_strange_fuser_is_refused_by_name(binder, tmp_path, harm, message):
    folder = binder.save(tmp_path / "bundle")
    tensors, card = load_file(folder / FUSER), json.loads((folder / "binder.json").read_text())
    harm(tensors, card)
    save_file(tensors, folder / FUSER)
    (folder / "binder.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=message) as caught:
        Binder.load(folder)
    assert str(folder) in str(caught.value)


def test_a_file_that_is_no_fuser_or_too_large_is_refused(binder, tmp_path, monkeypatch):
    folder = binder.save(tmp_path / "bundle")
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="cannot be read as a fuser"):
        patch.setattr("geobind.fuser.MAX_FUSER", 100)
        Binder.load(folder)
    (folder / FUSER).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"cannot be read as a fuser.*or remove it"):
        Binder.load(folder)


def test_a_recipe_that_fuses_what_it_measures_is_refused(tmp_path):
    with small_world.patched(tmp_path / "cache"):
        recipe = small_world.write_recipe(tmp_path / "small.yaml", "manifest: world/manifest.csv")
        with pytest.raises(RecipeError, match="`evaluate` measures on split 'test'"):
            load_recipe(recipe, ("fuse.split=test",), files=False)
        with pytest.raises(RecipeError, match="multiple of 4"):
            load_recipe(recipe, ("fuse.width=30",), files=False)


@pytest.mark.slow
def test_a_run_trains_a_fuser_from_the_cache_and_again_for_another_recipe(tmp_path):
    with small_world.patched(tmp_path / "cache"):
        small_world.write_world(tmp_path / "world")
        folder = small_world.run(tmp_path, "run", "fuse.epochs=2", "fuse.width=16")
        fuser = Binder.load(folder / "bundle").fuser
        assert set(fuser.modalities) == {"tile", "photo", "words", "sound"}
        assert fuser.source.startswith("40 rows of split 'train' of ")
        assert fuser.rows == 40  # the broken sound's row has three others
        cached = sorted(path for path in embeddings_folder().rglob("*") if path.suffix == ".safetensors")
        again = load_recipe(tmp_path / "small.yaml", ("max_broken=0.2", "fuse.epochs=3", "fuse.width=16"))
        run(again, folder, resume=True)
        assert sorted(p for p in embeddings_folder().rglob("*") if p.suffix == ".safetensors") == cached
        assert Binder.load(folder / "bundle").fuser.rows == 40
