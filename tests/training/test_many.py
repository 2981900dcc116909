"""Stages that compare several modalities, of rows that lack some, drawn from several tables."""

import csv
import json
from pathlib import Path

import pytest
import torch
import toy
from safetensors.torch import load_file

from geobind import plugins
from geobind.binder import Binder
from geobind.errors import DataError, TrainingError
from geobind.recipe.schema import build_pairs
from geobind.report.run_files import read_run
from geobind.training import metrics, stability
from geobind.training.distributed import Ranks
from geobind.training.losses import InfoNCE, Temperature
from geobind.training.module import ContrastiveModule
from geobind.training.run import run

pytestmark = pytest.mark.usefixtures("toy_registry")
PROGRAM = Path(toy.__file__)
HUB_SPOKE, HUB_RIM, SPOKE_RIM = "hub-spoke", "hub-rim", "spoke-rim"
TABLES = "stages.0.data=[{manifest: wheel.jsonl, weight: 3}, {manifest: other.jsonl, weight: 1}]"


def wheel_run(folder: Path, *overrides: str, resume: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    return run(toy.wheel(folder, *overrides), folder / "run", resume=resume).folder


def tables(folder: Path) -> Path:
    """A table of which a third lacks the spoke and a third the rim, and one that never has a rim."""
    folder.mkdir(exist_ok=True)
    toy.write_wheel(folder / "wheel.jsonl")
    toy.write_wheel(folder / "other.jsonl", lacks=lambda i: "rim", rows=40)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "bundle" / "model.safetensors")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def done(folder: Path) -> dict:
    return json.loads((folder / "stages" / "01_one" / "stage.json").read_text())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def marks(folder: Path) -> dict[frozenset[str], str]:
    rows = json.loads((folder / "retrieval.json").read_text())["rows"]
    return {frozenset((row["query"], row["gallery"])): row["mark"] for row in rows}


# What follows from a recipe


def test_pairs_are_those_with_the_anchor_or_all_that_something_is_trained_of():
    def names(*words):
        return [pair.name for pair in build_pairs(*words)]

    assert names("h", ["s", "r"]) == ["h-s", "h-r"]
    assert names("h", ["s", "r"], "all", ["h", "s", "r"]) == ["h-s", "h-r", "s-r"]
    assert names("h", ["s", "r"], "all", ["h"]) == ["h-s", "h-r"]
    assert names("h", ["s", "r"], "all", ["r"]) == ["h-r", "s-r"]
    said = {"r": 2.0, "r-s": 3.0}
    assert [pair.weight for pair in build_pairs("h", ["s", "r"], "all", ["h", "s", "r"], said)] == [1, 2, 3]


# What a stage comes to


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A wheel run of every pair, measured."""
    patch = pytest.MonkeyPatch()
    patch.setattr(plugins, "registry", toy.registry)
    torch.set_num_threads(1)
    options = ("stages.0.pairs=all", "stages.0.weights={rim: 0.5}", "stages.0.steps=24", "evaluate={}")
    yield wheel_run(tmp_path_factory.mktemp("whole"), *options)
    patch.undo()


@pytest.mark.slow
def test_one_modality_in_a_list_is_trained_as_it_is_alone(tmp_path):
    alone, listed = (
        wheel_run(
            tmp_path / name, f"stages.0.align={align}", "stages.0.train=[hub, spoke]", "stages.0.steps=4"
        )
        for name, align in (("alone", "spoke"), ("listed", "[spoke]"))
    )
    assert same(weights(alone), weights(listed))
    assert [row["loss"] for row in rows_of(alone)] == [row["loss"] for row in rows_of(listed)]
    assert "loss:hub-spoke" not in rows_of(alone)[0]


def test_every_pair_is_trained_with_a_temperature_of_its_own(whole):
    rows = rows_of(whole)
    for name in (HUB_SPOKE, HUB_RIM, SPOKE_RIM):
        first, last = (sum(float(row[f"loss:{name}"]) for row in part) for part in (rows[:4], rows[-4:]))
        assert last < 0.7 * first
    assert len({rows[-1][f"temperature:{name}"] for name in (HUB_SPOKE, HUB_RIM, SPOKE_RIM)}) == 3


def test_the_loss_of_a_step_is_the_sum_of_its_pairs_by_weight(whole):
    assert {pair["other"]: pair["weight"] for pair in done(whole)["losses"][:2]} == {"spoke": 1, "rim": 0.5}
    for row in rows_of(whole):
        spoke, rim, both = (float(row[f"loss:{name}"]) for name in (HUB_SPOKE, HUB_RIM, SPOKE_RIM))
        assert float(row["loss"]) == pytest.approx(spoke + 0.5 * rim + both, rel=1e-4)


def test_what_each_pair_came_to_is_written_down(whole):
    told = done(whole)
    assert (told["align"], told["temperature"], told["pairs"]) == (["spoke", "rim"], None, 72)
    assert told["loss"] == pytest.approx(sum(pair["weight"] * pair["loss"] for pair in told["losses"]))
    assert told["sources"] == [{"name": "wheel.jsonl", "rows": 72, "share": 1.0}]
    page = (whole / "report.html").read_text()
    assert "Align <b>hub</b>, <b>spoke</b> and <b>rim</b> with each other" in page
    assert "loss, spoke-rim" in page
    assert "spoke-rim" in (whole / "bundle" / "README.md").read_text()
    assert set(read_run(whole).curves["one"]) >= {"loss", "loss:spoke-rim", "temperature:hub-rim"}


@pytest.mark.slow
def test_all_pairs_are_marked_trained_and_without_them_the_third_is_emergent(whole, tmp_path):
    spokes = frozenset(("spoke", "rim"))
    assert set(marks(whole).values()) == {"trained"}
    assert set(read_run(whole).marks) == {frozenset(pair) for pair in marks(whole)}
    anchored = wheel_run(tmp_path, "stages.0.steps=2", "evaluate={}")
    assert [pair for pair, mark in marks(anchored).items() if mark == "emergent"] == [spokes]
    assert read_run(anchored).marks[spokes] == "emergent"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("stages.0.precision=bf16-mixed",)])
def test_labels_and_places_belong_to_the_rows_that_have_both(tmp_path, options):
    plain = wheel_run(tmp_path / "plain", "stages.0.steps=1", *options)
    loss = "stages.0.loss={name: infonce, ignore_within_m: 300000, positives: label}"
    knowing = wheel_run(tmp_path / "knowing", "stages.0.steps=1", loss, *options)
    for name in (HUB_SPOKE, HUB_RIM):
        assert rows_of(plain)[0][f"loss:{name}"] != rows_of(knowing)[0][f"loss:{name}"]


def test_a_loss_that_is_not_finite_names_its_pair(tmp_path, monkeypatch):
    prepare, poison = toy.Rim.prepare, toy.view(4, "rim")[0]

    def poisoned(self, raw, *, training=False):
        return prepare(self, raw, training=training) / (0 if raw[0] == torch.tensor(poison) else 1)

    monkeypatch.setattr(toy.Rim, "prepare", poisoned)
    with pytest.raises(TrainingError, match="the loss of hub-rim is nan at step 0"):
        wheel_run(tmp_path, "stages.0.batch_size=72", "stages.0.steps=1")


# Rows that lack something


def counted(monkeypatch) -> dict[int, int]:
    """How many rows go through each encoder, by the number of its first batch."""
    seen: dict[int, int] = {}
    forward = toy.Net.forward

    def counting(self, x_BF):
        seen[id(self)] = seen.get(id(self), 0) + len(x_BF)
        return forward(self, x_BF)

    monkeypatch.setattr(toy.Net, "forward", counting)
    return seen


@pytest.mark.slow
def test_what_a_row_lacks_costs_no_forward_and_the_anchor_is_embedded_once(tmp_path, monkeypatch):
    rows = [json.loads(line) for line in toy.write_wheel(tmp_path / "wheel.jsonl").open()]
    seen = counted(monkeypatch)
    wheel_run(tmp_path, "stages.0.batch_size=72", "stages.0.steps=3", "stages.0.pairs=all")
    train = [row for row in rows if row["split"] == "train"]
    there = {name: sum(name in row for row in train) for name in ("hub", "spoke", "rim")}
    assert there["spoke"] < there["hub"] == 72
    more = 1 + 2 * stability.ROWS  # the rehearsal, and the proof before and after the stage
    assert sorted(seen.values()) == sorted(3 * count + more for count in there.values())


def test_an_encoder_without_rows_and_a_pair_with_one_row_stay_as_they_are(tmp_path):
    tables(tmp_path)
    folder = wheel_run(tmp_path, "stages.0.data={manifest: other.jsonl}", "stages.0.align=[spoke]",
                       "stages.0.train=[hub, spoke]", "stages.0.steps=2")  # fmt: skip
    fresh = Binder({"rim": toy.Rim()}, 8, seed=0).encoders.state_dict()
    assert same({key: value for key, value in weights(folder).items() if key.startswith("rim.")}, fresh)

    bind = toy_bind().train()  # batch statistics of one row are refused: the rim is not even embedded
    rows = torch.randn(5, 10)
    present = torch.tensor([[1, 1, 0]] * 4 + [[1, 0, 1]], dtype=torch.bool)
    found = bind.compute_losses({"hub": rows, "spoke": rows[:4], "rim": rows[4:]}, present)
    found.total.backward()
    assert set(found.pairs) == {HUB_SPOKE}
    assert set(found.idle) == {"rim", HUB_RIM, SPOKE_RIM}
    idle = [*bind.encoders["rim"].parameters(), *bind.losses[HUB_RIM].parameters()]
    assert all(parameter.grad is None for parameter in idle)
    assert all(parameter.grad is not None for parameter in bind.encoders["hub"].parameters())


def toy_bind(ranks=Ranks(lambda part, **_: part, 1), partial=True) -> ContrastiveModule:  # noqa: B008
    encoders = Binder(
        {"hub": toy.Hub(norm=False), "spoke": toy.Spoke(), "rim": toy.Rim()}, 8, seed=0
    ).encoders
    pairs = build_pairs("hub", ["spoke", "rim"], "all", ["hub", "spoke", "rim"])
    losses = {pair.name: InfoNCE("both", Temperature(0.07)) for pair in pairs}
    return ContrastiveModule(dict(encoders.items()), losses, pairs, ranks, 8, partial=partial)


def test_a_step_that_compares_nothing_moves_nothing_and_does_not_fail():
    bind = toy_bind()
    rows = torch.randn(2, 10)
    found = bind.compute_losses(
        {"hub": rows, "spoke": rows[:1], "rim": rows[1:]}, torch.tensor([[1, 1, 0], [1, 0, 1]]).bool()
    )
    found.total.backward()
    assert (found.total.item(), found.pairs, found.idle) == (0.0, {}, ())
    assert all(not parameter.grad.any() for parameter in bind.parameters())


def test_pairs_are_taken_over_the_rows_that_have_both():
    bind = toy_bind()
    rows = torch.randn(6, 10)
    present = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 0, 1], [0, 1, 1]]).bool()
    batches = {name: rows[present[:, column]] for name, column in bind.column.items()}
    found = bind.compute_losses(batches, present)
    whole = {name: bind.embed(name, rows) for name in bind.column}
    for pair in bind.pairs:
        both = present[:, bind.column[pair.anchor]] & present[:, bind.column[pair.other]]
        expected = bind.losses[pair.name](whole[pair.anchor][both], whole[pair.other][both])
        assert float(found.pairs[pair.name]) == pytest.approx(expected.item(), rel=1e-5)
    assert found.total.item() == pytest.approx(float(sum(found.pairs.values())), rel=1e-6)


def test_embeddings_can_be_contrasted_apart_from_their_encoders_chunk_by_chunk():
    bind = toy_bind(partial=False)
    rows = torch.randn(8, 10)
    once = bind.compute_losses(dict.fromkeys(bind.column, rows))
    once.total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in bind.named_parameters()}
    bind.zero_grad()
    with torch.no_grad():
        leaves = {n: torch.cat([bind.embed(n, part) for part in rows.split(3)]) for n in bind.column}
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    bind.contrast(leaves, bind.active_pairs()).total.backward()
    for name, leaf in leaves.items():
        for part, gradient in zip(rows.split(3), leaf.grad.split(3), strict=True):
            bind.embed(name, part).backward(gradient)
    for name, parameter in bind.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


# Several tables


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(plugins, "registry", toy.registry)
    torch.set_num_threads(1)
    yield wheel_run(tables(tmp_path_factory.mktemp("mixed")), TABLES, "evaluate={}")
    patch.undo()


def test_steps_take_turns_between_tables_by_their_weight(mixed):
    rows = rows_of(mixed)
    taken = [row["source"] for row in rows]
    assert taken.count("wheel.jsonl") in (8, 9, 10)
    assert set(taken) == {"wheel.jsonl", "other.jsonl"}
    for row in rows:
        assert bool(row["loss:hub-rim"]) == (row["source"] == "wheel.jsonl")
    assert [(part["rows"], part["share"]) for part in done(mixed)["sources"]] == [(72, 0.75), (30, 0.25)]


def test_each_table_is_looked_at_for_leakage(mixed):
    leaks = json.loads((mixed / "leakage.json").read_text())
    assert {name: leak["train_rows"] for name, leak in leaks.items()} == {
        "one: wheel.jsonl": 72,
        "one: other.jsonl": 30,
    }
    assert "one: other.jsonl" in (mixed / "report.html").read_text()


@pytest.mark.slow
def test_without_weights_an_epoch_goes_through_every_table_in_batches_of_one_or_of_all(tmp_path):
    tables(tmp_path)
    data = "stages.0.data=[{manifest: wheel.jsonl}, {manifest: other.jsonl}]"
    size = "stages.0={name: one, align: [spoke, rim], train: [hub], batch_size: 10, epochs: 2}"
    batches = wheel_run(tmp_path, size, data)
    assert len(rows_of(batches)) == done(batches)["steps"] == 2 * (7 + 3)
    mixed = wheel_run(tmp_path, size, data, "stages.0.mix=rows", resume=True)
    assert len(rows_of(mixed)) == 2 * 10
    assert all(row["loss:hub-rim"] and not row["source"] for row in rows_of(mixed))


@pytest.mark.slow
def test_each_aligned_modality_has_its_own_data_by_default(tmp_path):
    tables(tmp_path)
    folder = wheel_run(
        tmp_path,
        "modalities.spoke={data: {manifest: other.jsonl}}",
        "stages.0.steps=4",
        "stages.0.mix=rows",
    )
    assert [part["name"] for part in done(folder)["sources"]] == ["other.jsonl", "wheel.jsonl"]


@pytest.mark.slow
def test_an_interrupted_mixture_resumes_to_the_same_weights_bit_for_bit(mixed, tmp_path, monkeypatch):
    add = metrics.Recorder.add

    def add_then_stop(self, step, broken):
        add(self, step, broken)
        if step.number == 6:
            raise KeyboardInterrupt

    tables(tmp_path)
    monkeypatch.setattr(metrics.Recorder, "add", add_then_stop)
    with pytest.raises(KeyboardInterrupt):
        wheel_run(tmp_path, TABLES)
    monkeypatch.undo()
    monkeypatch.setattr(plugins, "registry", toy.registry)
    assert same(weights(mixed), weights(wheel_run(tmp_path, TABLES, resume=True)))
    assert [int(row["step"]) for row in rows_of(tmp_path / "run")] == list(range(12))
    assert [row["loss"] for row in rows_of(mixed)] == [row["loss"] for row in rows_of(tmp_path / "run")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("data={manifest: other.jsonl}",), "only 0 rows have both 'hub' and 'rim', and comparing needs 2"),
        (("stages.0.batch_size=80",), "72 rows cannot fill a batch of 80"),
        ((TABLES, "stages.0.batch_size=40"), "other.jsonl: 30 rows cannot fill a batch of 40"),
        (
            (TABLES.replace("other", "third"),),
            "third.jsonl: no row of split 'train' has both of a pair .*hub-spoke, hub-rim",
        ),
    ],
)
def test_data_without_the_rows_that_a_stage_needs_are_told(tmp_path, options, message):
    toy.write_wheel(tables(tmp_path) / "third.jsonl", lacks=lambda i: "hub")
    with pytest.raises(DataError, match=message):
        wheel_run(tmp_path, *options)
