"""The bridge between emergent pairs: its formula, its bank in a bundle, and where it is used."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from geobind import bridge as module
from geobind import plugins
from geobind.binder import Binder
from geobind.bridge import BANK, AnchorBank, Bridge, BridgeOptions, choose_bridge, fit_options
from geobind.bundles.bundle import build_card
from geobind.errors import CheckpointError, DataError
from geobind.evaluation.embedded import EmbeddedRows
from geobind.evaluation.pairs import evaluate_pairs
from geobind.modality import Modality
from geobind.scoring import Calibration, PairScales, cosine
from geobind.utils.system import hash_tensors
from geobind.utils.vectors import unit

WIDTH = 6
RAN = {"pairs": 1, "steps": 1, "loss": 0.0, "temperature": 0.1}
CHAIN = [
    {"name": name, "anchor": "tile", "align": name, "train": [name], **RAN} for name in ("sound", "words")
]


def rows(count, seed, width=WIDTH):
    return unit(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def plain(x_ND, anchor_RD, weight, temperature):
    """The formula, written once more."""
    share_NR = torch.softmax(x_ND.double() @ anchor_RD.double().T / temperature, dim=1)
    return unit(x_ND.double() + weight * unit(share_NR @ anchor_RD.double()))


WEIGHT = st.floats(0, 5)
TEMPERATURE = st.floats(0.005, 2)
SEED = st.integers(0, 10_000)


@settings(deadline=None, max_examples=40)
@given(WEIGHT, TEMPERATURE, SEED)
def test_bridged_rows_are_the_formula_and_of_unit_length(weight, temperature, seed):
    x_ND, anchor_RD = rows(7, seed), rows(9, seed + 1)
    made = Bridge(AnchorBank(anchor_RD), BridgeOptions(weight=weight, temperature=temperature)).apply(x_ND)
    assert torch.allclose(made, plain(x_ND, anchor_RD, weight, temperature), atol=2e-5)
    assert torch.allclose(made.norm(dim=1), torch.ones(7), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(TEMPERATURE, SEED)
def test_the_order_of_the_bank_does_not_matter(temperature, seed):
    x_ND, anchor_RD = rows(5, seed), rows(12, seed + 1)
    turned = anchor_RD[torch.randperm(12, generator=torch.Generator().manual_seed(seed))]
    options = BridgeOptions(temperature=temperature)
    one, two = (Bridge(AnchorBank(bank), options).apply(x_ND) for bank in (anchor_RD, turned))
    assert torch.allclose(one, two, atol=1e-5)


@given(SEED)
def test_a_weight_of_zero_changes_nothing(seed):
    x_ND = rows(5, seed)
    bridge = Bridge(AnchorBank(rows(4, seed + 1)), BridgeOptions(weight=0))
    assert torch.equal(bridge.apply(x_ND), unit(x_ND))
    assert torch.allclose(bridge.score(x_ND, x_ND), cosine(x_ND, x_ND), atol=1e-6)


@pytest.mark.parametrize("block", [1, 40, 77])
def test_blocks_give_what_the_whole_gives(monkeypatch, block):
    references = {"sound": rows(20, 3), "words": rows(30, 4)}
    bridge = Bridge(AnchorBank(rows(11, 0), references=references)).between("sound", "words")
    a_ND, b_MD = rows(13, 1), rows(17, 2)
    whole = bridge.apply(a_ND), bridge.score(a_ND, b_MD)
    monkeypatch.setattr(module, "_BLOCK", block)
    for one, two in zip(whole, (bridge.apply(a_ND), bridge.score(a_ND, b_MD)), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def test_the_score_is_half_of_csls_over_the_references():
    references = {"sound": rows(20, 3), "words": rows(30, 4)}
    bridge = Bridge(AnchorBank(rows(11, 0), references=references), BridgeOptions(neighbours=5))
    a_ND, b_MD = rows(13, 1), rows(17, 2)
    a, b, of_a, of_b = (bridge.apply(x) for x in (a_ND, b_MD, references["sound"], references["words"]))
    near_N = (a @ of_b.T).topk(5).values.mean(1)
    near_M = (b @ of_a.T).topk(5).values.mean(1)
    expected = (2 * a @ b.T - near_N[:, None] - near_M[None]) / 2
    assert torch.allclose(bridge.between("sound", "words").score(a_ND, b_MD), expected, atol=1e-6)
    assert torch.allclose(bridge.score(a_ND, b_MD), a @ b.T, atol=1e-6)  # it knows no references of these


def test_references_are_drawn_once_for_all_scores_of_a_bank(monkeypatch):
    bank = AnchorBank(rows(11, 0), references={"sound": rows(20, 3), "words": rows(30, 4)})
    sharp = BridgeOptions(temperature=0.01)
    drawn, project = [], Bridge.project
    monkeypatch.setattr(Bridge, "project", lambda self, x: drawn.append(len(x)) or project(self, x))
    with torch.inference_mode():
        first = Bridge(bank).between("sound", "words").score(rows(13, 1), rows(17, 2))
    assert sorted(drawn) == [13, 17, 20, 30]
    drawn.clear()
    again = Bridge(bank).between("sound", "words").score(rows(13, 1).requires_grad_(), rows(17, 2))
    assert sorted(drawn) == [13, 17] and torch.equal(again, first)
    again.sum().backward()
    fresh = Bridge(AnchorBank(bank.vectors, references=bank.references), sharp, ("sound", "words"))
    other = Bridge(bank, sharp, ("sound", "words")).score(rows(13, 1), rows(17, 2))
    assert torch.equal(other, fresh.score(rows(13, 1), rows(17, 2))) and not torch.equal(other, first)


@pytest.mark.parametrize("names", [None, ("sound", "words"), ("sound", "unknown")])
def test_extended_rows_rank_by_cosine_as_the_score_ranks(names):
    references = {"sound": rows(20, 3), "words": rows(30, 4)}
    bridge = Bridge(AnchorBank(rows(11, 0), references=references), names=names)
    a_ND, b_MD = rows(13, 1), rows(17, 2)
    one, two = bridge.embed_pair(a_ND, b_MD)
    assert torch.allclose(one.norm(dim=1), torch.ones(13), atol=1e-6)
    assert torch.allclose(two.norm(dim=1), torch.ones(17), atol=1e-6)
    assert torch.allclose(one @ two.T, bridge.score(a_ND, b_MD) * 4 / 9, atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((0, 6)), "empty"),
        (np.ones((1, 6)), "one row"),
        (np.ones(6), "one row"),
        (np.array([[1.0, 2], [np.nan, 1]]), "row 1 is not finite"),
        (np.array([[1.0, 2], [np.inf, 1]]), "row 1 is not finite"),
        (np.array([[1.0, 2], [0, 0]]), "row 1 is all zeros"),
        (np.ones((2, 2, 2)), "must be"),
        ([["a"]], "type"),
    ],
)
def test_a_bank_that_cannot_be_one_is_refused_with_its_reason(vectors, message):
    with pytest.raises(DataError, match=message):
        AnchorBank(vectors)


def test_references_and_inputs_of_another_width_are_refused():
    with pytest.raises(DataError, match="references of 'sound' are 5 wide, its anchors 6"):
        AnchorBank(rows(4, 0), references={"sound": rows(4, 0, 5)})
    with pytest.raises(DataError, match="5 wide, the bank 6"):
        Bridge(AnchorBank(rows(4, 0))).apply(rows(2, 0, 5))
    with pytest.raises(DataError, match="row 0 is not finite"):
        Bridge(AnchorBank(rows(4, 0))).apply(torch.full((2, 6), torch.nan))


def test_a_bridge_is_chosen_for_emergent_pairs_without_its_anchor_alone():
    pairs = {"emergent": ("sound", "words"), "stale": ("sound", "map"), "trained": ("words", "map")}
    marks = {frozenset(pair): mark for mark, pair in pairs.items()} | {frozenset(("tile", "map")): "emergent"}
    bridge = Bridge(AnchorBank(rows(4, 0), "tile"))
    assert choose_bridge(bridge, marks, "words", "sound").names == ("words", "sound")
    for pair in (pairs["stale"], pairs["trained"], ("tile", "map"), ("tile", "unknown")):
        assert choose_bridge(bridge, marks, *pair) is None
    assert choose_bridge(None, marks, "words", "sound") is None


def places(count, seed, spread):
    """Two modalities that show a few kinds of place, each with its own noise."""
    kinds = rows(8, 99)[torch.arange(count) % 8]
    noise = rows(count, seed, WIDTH), rows(count, seed + 1, WIDTH)
    return [unit(kinds + spread * one) for one in noise]


def test_fitting_chooses_what_ranks_trained_pairs_best():
    one, two = places(64, 5, 0.9)
    fitted = fit_options(AnchorBank(rows(8, 99)), [(one, two)])
    assert fitted.weight > 0
    random = rows(64, 50), rows(64, 51)
    exact = fit_options(AnchorBank(rows(8, 99)), [(random[0], random[0])])
    assert exact.weight == 0  # nothing is better than equal
    with pytest.raises(DataError, match="at least one pair"):
        fit_options(AnchorBank(rows(8, 99)), [])
    with pytest.raises(DataError, match="equally many"):
        fit_options(AnchorBank(rows(8, 99)), [(rows(2, 0), rows(3, 0))])


class Tile(Modality):
    """Six numbers."""

    name = "tile"
    role = "trainable"

    def encoder(self, width, *, pretrained=True):
        return nn.Linear(WIDTH, width)

    def prepare(self, raw, *, training=False):
        return torch.tensor(raw, dtype=torch.float32)


class Sound(Tile):
    """Six more."""

    name = "sound"


class Words(Tile):
    """And six."""

    name = "words"

    def prepare(self, raw, *, training=False):
        return rows(1, sum(map(ord, raw)))[0] if isinstance(raw, str) else super().prepare(raw)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    known = {c.name: plugins.Plugin(c, plugins.Source(c.name, "tiny", "1.0")) for c in (Tile, Sound, Words)}
    monkeypatch.setattr(plugins, "registry", lambda: plugins.Registry("modality", known, ()))


def make_binder(bank=True, calibration=None):
    binder = Binder({"tile": Tile(), "sound": Sound(), "words": Words()}, WIDTH, seed=0)
    recipe = {"anchor": "tile"}
    binder.card = build_card(binder, stages=CHAIN, recipe=recipe, calibration=calibration)
    if bank:
        references = {"sound": rows(20, 3), "words": rows(30, 4)}
        binder.bank = AnchorBank(rows(11, 0), "tile", references, binder.card.digests, "eleven tiles")
    return binder


def test_similarity_by_names_is_bridged_for_emergent_pairs_and_a_cosine_for_others():
    binder = make_binder()
    a_ND, b_MD = rows(5, 1), rows(7, 2)
    bridge = binder.bridge("sound", "words")
    assert torch.equal(binder.similarity(a_ND, b_MD, bridge=("sound", "words")), bridge.score(a_ND, b_MD))
    assert torch.equal(binder.similarity(a_ND, b_MD, bridge=bridge), bridge.score(a_ND, b_MD))
    for names in (None, ("tile", "sound"), ("words", "tile")):
        assert torch.equal(binder.similarity(a_ND, b_MD, bridge=names), cosine(a_ND, b_MD))
    assert torch.equal(
        make_binder(bank=False).similarity(a_ND, b_MD, bridge=("sound", "words")), cosine(a_ND, b_MD)
    )
    with pytest.raises(DataError, match="fitted to cosines"):
        binder.similarity(a_ND, b_MD, bridge=bridge, probability=("sound", "words"))


def test_classes_are_bridged_unless_a_temperature_was_fitted_or_it_is_declined():
    sounds, labels = [[1.0, 2, 3, 4, 5, 6], [6.0, 1, 5, 2, 4, 3]], ["sea", "town", "wood"]
    binder, without = make_binder(), make_binder(bank=False)
    plain = without.classify("sound", sounds, labels, through="words")
    assert torch.equal(binder.classify("sound", sounds, labels, through="words", bridge=False), plain)
    bridged = binder.classify("sound", sounds, labels, through="words")
    assert not torch.allclose(bridged, plain, atol=1e-3)
    assert torch.equal(
        binder.classify("tile", sounds, labels, through="words"),
        without.classify("tile", sounds, labels, through="words"),
    )
    scales = PairScales(modalities=("sound", "words"), temperature=(0.01, 0.01), scale=1, bias=0, rows=20)
    fitted = make_binder(calibration=Calibration(fitted_on="val", pairs=(scales,)))
    assert torch.equal(fitted.classify("sound", sounds, labels, through="words"), plain)
    assert torch.equal(fitted.classify("sound", sounds, labels, through="words", bridge=True), bridged)


def test_a_bank_of_other_weights_or_another_width_is_refused():
    binder, a_ND = make_binder(), rows(5, 1)
    other = AnchorBank(rows(4, 0), "tile", digests={"tile": "0" * 64})
    with pytest.raises(DataError, match="other weights of 'tile'"):
        binder.similarity(a_ND, a_ND, bridge=Bridge(other))
    with pytest.raises(DataError, match="5 wide, this model's embeddings 6"):
        binder.similarity(a_ND, a_ND, bridge=Bridge(AnchorBank(rows(4, 0, 5))))


def test_a_bundle_keeps_its_bank_and_loads_without_it(tmp_path):
    binder = make_binder()
    binder.save(tmp_path / "bundle")
    loaded = Binder.load(tmp_path / "bundle")
    assert torch.allclose(loaded.bank.vectors, binder.bank.vectors, atol=1e-3)
    assert set(loaded.bank.references) == {"sound", "words"} and loaded.bank.anchor == "tile"
    a_ND = rows(9, 1)
    scores = [one.similarity(a_ND, a_ND, bridge=("sound", "words")) for one in (binder, loaded)]
    assert torch.allclose(*scores, atol=2e-3)
    (tmp_path / "bundle" / BANK).unlink()
    without = Binder.load(tmp_path / "bundle")
    assert without.bank is None and without.bridge("sound", "words") is None
    without.save(tmp_path / "again")
    assert not (tmp_path / "again" / BANK).exists() and Binder.load(tmp_path / "again").bank is None


def test_training_on_leaves_the_bank_behind(tmp_path):
    binder = make_binder()
    with torch.no_grad():
        binder.encoders["tile"].weight += 1
    binder.save(tmp_path / "bundle")
    assert not (tmp_path / "bundle" / BANK).exists()
    assert Binder.load(tmp_path / "bundle").bank is None


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.write_bytes(b"no tensors"), "cannot be read as a bank"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\7"), "SHA-256 differs"),
        (lambda path: path.write_bytes(b"\xff" * 64), "cannot be read as a bank"),
    ],
)
def test_a_damaged_bank_is_named_with_the_way_out(tmp_path, harm, message):
    make_binder().save(tmp_path / "bundle")
    harm(tmp_path / "bundle" / BANK)
    with pytest.raises(CheckpointError, match=message) as caught:
        Binder.load(tmp_path / "bundle")
    assert "remove it" in str(caught.value)


def test_a_bank_beyond_its_limit_is_not_read(tmp_path, monkeypatch):
    make_binder().save(tmp_path / "bundle")
    monkeypatch.setattr(module, "MAX_BANK", 100)
    with pytest.raises(CheckpointError, match="larger than 100 bytes"):
        Binder.load(tmp_path / "bundle")


def test_a_stored_bank_of_another_model_is_refused(tmp_path):
    make_binder().save(tmp_path / "bundle")
    card = tmp_path / "bundle" / "binder.json"
    facts = json.loads(card.read_text())
    facts["bank"]["digests"]["tile"] = "1" * 64
    card.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="other weights of 'tile'"):
        Binder.load(tmp_path / "bundle")


def test_a_bank_without_rows_of_an_anchor_is_told_as_that(tmp_path):
    binder = make_binder()
    facts = module.describe_bank(binder.bank)
    others = {name: rows for name, rows in binder.bank.tensors().items() if name != "anchor"}
    save_file(others, tmp_path / BANK)
    with pytest.raises(CheckpointError, match="no rows of its anchor 'tile'"):
        module.read_bank(tmp_path / BANK, facts.model_copy(update={"sha256": hash_tensors(others)}))


def test_tables_hold_plain_and_bridged_figures_with_the_gain(monkeypatch):
    from geobind.evaluation import held_out

    class Rows:
        name, view, labels, places_LL = "made up", "test", None, None

        def __len__(self):
            return 64

    tile = rows(8, 99)[torch.arange(64) % 8] + 0.3 * rows(64, 1)
    embedded = {
        name: EmbeddedRows(np.arange(64), unit(tile + spread * rows(64, seed)))
        for name, spread, seed in (("tile", 0, 2), ("sound", 1, 3), ("words", 1, 4))
    }
    monkeypatch.setattr(
        held_out, "choose_clusters", lambda table, by: held_out_clusters(None, None, "each row alone")
    )
    trained = {frozenset(("tile", "sound")), frozenset(("tile", "words"))}
    bridge = Bridge(AnchorBank(unit(tile), "tile", source="tiles"))
    table = held_out.build_retrieval_table(Rows(), embedded, trained, "row", bridge=bridge)
    assert [(one.row.query, one.row.gallery) for one in table.bridged] == [
        ("sound", "words"),
        ("words", "sound"),
    ]
    sides = bridge.between("sound", "words").embed_pair(
        *(embedded[n].embedding_QD for n in ("sound", "words"))
    )
    alone = evaluate_pairs(dict(zip(("sound", "words"), sides, strict=True)), [])
    for one in table.bridged:
        plain = next(
            row for row in table.rows if (row.query, row.gallery) == (one.row.query, one.row.gallery)
        )
        same = next(row for row in alone.rows if row.query == one.row.query)
        assert one.row.metrics["R@10"].value == pytest.approx(same.metrics["R@10"].value)
        gain = one.row.metrics["R@10"].value - plain.metrics["R@10"].value
        assert one.gain["R@10"].value == pytest.approx(gain)
        assert one.gain["R@10"].low <= gain <= one.gain["R@10"].high
    told = json.loads(json.dumps(table.to_dict()))
    assert len(told["bridged"]) == 2 and told["bridge_note"].startswith("bridged by tiles")
    assert told["bridged"][0]["gain"]["R@10"].keys() == {"value", "low", "high", "p"}


def held_out_clusters(of_rows, by, note):
    from geobind.evaluation.split_leakage import Clusters

    return Clusters(of_rows=of_rows, by=by, note=note)
