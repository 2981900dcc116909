"""Stages that read frozen sides from the cache: the same losses, and nothing computed twice."""

import json
import multiprocessing
import os
import socket
import time

import cached_world as notes
import numpy as np
import pytest
import torch

from geobind import plugins, report
from geobind.embedding_cache import loader as loading
from geobind.embedding_cache import store
from geobind.embedding_cache.store import count_rows, find_entries
from geobind.errors import DataError

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("fork")
HEADS = "stages.0.train={left: head}"  # all that is computed is a head
OFF = "stages.0.cache=off"
# A row is off by at most 2^-11 of its length, a cosine of two by twice that, a loss by twice a logit.
ROUNDING = 2 * 2 * 2**-11 / 0.07


@pytest.fixture(autouse=True)
def note_registry(monkeypatch):
    monkeypatch.setattr(plugins, "registry", notes.registry)
    monkeypatch.setattr(report, "write_report", lambda *_, **__: None)  # seconds of drawing


def pair(folder, *overrides):
    """The losses with the cache, and without it."""
    return [
        notes.losses(notes.run_notes(folder, name, *overrides, *more))
        for name, more in (("with", ()), ("off", (OFF,)))
    ]


def told(folder, name="with"):
    return json.loads((folder / name / "stages" / "01_one" / "stage.json").read_text())


CASES = {
    "one side frozen": ({}, ()),
    "one side frozen, several observations": ({"several": True}, ("modalities.left.noise=0.1",)),
    "head only": ({}, (HEADS,)),
    "head only, several observations": ({"several": True}, (HEADS,)),
    "head only, with broken rows": ({"broken": (3, 11)}, (HEADS, "max_broken=0.1")),
    "one side frozen, with broken rows": ({"broken": (3, 11)}, ("max_broken=0.1",)),
    "rows that lack a modality": ({"lacking": True}, ("stages.0.align=[right, third]",)),
    "rows that lack a modality, head only": ({"lacking": True}, ("stages.0.align=[right, third]", HEADS)),
    "bfloat16": ({}, ("fabric.precision=bf16-mixed",)),
    "positives by label": (
        {},
        (HEADS, "stages.0.loss={name: infonce, positives: label, ignore_within_m: 500}"),
    ),
    "a loading process": ({"several": True}, ("workers=1",)),
}


@pytest.mark.parametrize(("table", "overrides"), CASES.values(), ids=CASES)
def test_losses_with_the_cache_are_those_without_it_to_float16_rounding(tmp_path, table, overrides):
    notes.write_table(tmp_path, **table)
    cached, computed = pair(tmp_path, *overrides)
    assert cached == pytest.approx(computed, abs=ROUNDING)
    assert cached[0] == pytest.approx(computed[0], abs=ROUNDING / 4)
    assert len(cached) == 18
    assert told(tmp_path)["broken"] == told(tmp_path, "off")["broken"] == len(table.get("broken", ()))


def test_a_second_run_makes_nothing_and_gets_the_very_same_losses(tmp_path, logged):
    notes.write_table(tmp_path)
    first = notes.losses(notes.run_notes(tmp_path, "first"))
    assert "one: right: 48 inputs, read from the cache, 48 rows made just now" in logged()
    assert notes.losses(notes.run_notes(tmp_path, "second")) == first
    assert "one: right: 48 inputs, read from the cache\n" in logged()


def test_stages_share_rows(tmp_path, logged):
    notes.write_table(tmp_path)
    stage = "{name: two, align: third, anchor: right, train: [third], batch_size: 8, epochs: 1}"
    first = "{name: one, align: right, train: [left], batch_size: 8, epochs: 1}"
    notes.run_notes(tmp_path, "run", f"stages=[{first}, {stage}]")
    assert "two: right: 48 inputs, read from the cache\n" in logged()


def test_what_is_cached_is_not_computed_nor_prepared_again(tmp_path, monkeypatch):
    notes.write_table(tmp_path)
    first = notes.losses(notes.run_notes(tmp_path, "first", HEADS))
    from geobind.training import run, stability

    monkeypatch.setattr(run, "rehearse", lambda *_: [])
    monkeypatch.setattr(
        stability, "_prepare_rows", lambda *_: None
    )  # the proof embeds the same rows each time
    for kind in (notes.Left, notes.Right):
        monkeypatch.setattr(kind, "prepare", lambda *_, **__: pytest.fail("it was prepared"))
    assert notes.losses(notes.run_notes(tmp_path, "second", HEADS)) == first


@pytest.mark.parametrize("table", [{"several": True}, {"broken": (3, 11)}])
def test_lookups_give_what_the_loader_gives(tmp_path, monkeypatch, table):
    given, loaders = [], []
    init = loading.CachedLoader.__init__

    def watched(self, loader, rows, stored):
        init(self, loader, rows, stored)
        loaders.append(self.loader)

    lookups = loading.CachedLoader._iter_cached_batches

    def kept(self, known):
        for batch in lookups(self, known):
            given.append(batch)
            yield batch

    monkeypatch.setattr(loading.CachedLoader, "__init__", watched)
    monkeypatch.setattr(loading.CachedLoader, "_iter_cached_batches", kept)
    notes.write_table(tmp_path, **table)
    notes.run_notes(tmp_path, "run", HEADS, "max_broken=0.1")
    assert len(given) == 18
    for (step, batches, meta), (other_step, other_batches, other_meta) in zip(given, loaders[0], strict=True):
        assert step == other_step
        assert all(torch.equal(batches[name], other_batches[name]) for name in ("left", "right"))
        for known, other in zip(meta, other_meta, strict=True):
            assert np.array_equal(known, other, equal_nan=known is not None and not isinstance(known[0], str))


def test_a_changed_cell_is_embedded_again_and_no_other(tmp_path, logged):
    notes.write_table(tmp_path)
    notes.run_notes(tmp_path, "first")
    table = tmp_path / "notes.csv"
    table.write_text(table.read_text().replace(notes.note(7, 2), "9 9 9 9"))
    notes.run_notes(tmp_path, "second")
    assert "read from the cache, 1 rows made just now" in logged()


def test_auto_leaves_a_stage_alone_that_does_not_see_its_rows_once(tmp_path, logged):
    notes.write_table(tmp_path)
    notes.run_notes(tmp_path, "run", "stages.0.epochs=null", "stages.0.steps=5")
    assert find_entries() == [] and "cache" not in logged()


def test_off_and_whole_precisions_cache_nothing(tmp_path):
    notes.write_table(tmp_path)
    notes.run_notes(tmp_path, "off", OFF)
    assert find_entries() == []


def test_augmentation_of_a_trunk_is_not_lost_silently(tmp_path, logged):
    notes.write_table(tmp_path)
    noisy = ("modalities.left.noise=0.1", HEADS)
    cached, computed = pair(tmp_path, *noisy)
    assert cached == pytest.approx(computed, abs=ROUNDING)
    assert "one: left is not cached: preparing it draws random numbers; `cache: {views: K}`" in logged()


def test_views_augment_what_is_frozen(tmp_path):
    notes.write_table(tmp_path)
    noisy = ("modalities.right.noise=0.5", "modalities.left.noise=0.5")
    plain = notes.losses(notes.run_notes(tmp_path, "plain", *noisy))
    views = notes.losses(notes.run_notes(tmp_path, "views", *noisy, "stages.0.cache={views: 3}"))
    assert views != plain
    assert [count_rows(held) for held in find_entries() if held.facts["augmented"]] == [3 * notes.ROWS]
    assert notes.losses(notes.run_notes(tmp_path, "again", *noisy, "stages.0.cache={views: 3}")) == views
    heads = notes.losses(notes.run_notes(tmp_path, "heads", *noisy, HEADS, "stages.0.cache={views: 3}"))
    assert len(heads) == 18


def test_too_many_broken_inputs_stop_the_stage(tmp_path):
    notes.write_table(tmp_path, broken=(1, 2, 3))
    with pytest.raises(DataError, match=r"right: 3 of 48 inputs cannot be used[^$]*no numbers: no numbers"):
        notes.run_notes(tmp_path, "run")


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path, monkeypatch, logged):
    notes.write_table(tmp_path)
    (tmp_path / "file").write_text("no folder")
    computed = notes.losses(notes.run_notes(tmp_path, "off", OFF))
    monkeypatch.setattr(store, "embeddings_folder", lambda: tmp_path / "file" / "cache")
    assert notes.losses(notes.run_notes(tmp_path, "run")) == computed
    assert "one: right is not cached: cannot write" in logged()


def test_a_run_keeps_the_cache_within_its_limit(tmp_path, monkeypatch):
    notes.write_table(tmp_path)
    notes.run_notes(tmp_path, "first")
    (old,) = find_entries()
    os.utime(old.folder / store.FACTS_FILE, (time.time() - 60,) * 2)
    monkeypatch.setenv("GEOBIND_CACHE_GB", str(1.5 * old.bytes / 1e9))
    notes.run_notes(tmp_path, "second", "seed=1")
    (left,) = find_entries()
    assert left.key != old.key


def rank(number, port, folder):
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="notes", GROUP_RANK="0"
    )
    notes.run_notes(folder, "two", "fabric={accelerator: cpu, devices: 2}", "stages.0.epochs=2")


def test_two_ranks_share_the_work_and_give_the_losses_of_one(tmp_path):
    notes.write_table(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [FORK.Process(target=rank, args=(number, port, tmp_path)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    (held,) = find_entries()
    shards = list(held.folder.glob("*.safetensors"))
    assert count_rows(held) == notes.ROWS and len(shards) == 2  # each made its share
    alone = notes.losses(notes.run_notes(tmp_path, "alone", "fabric.accelerator=cpu", "stages.0.epochs=2"))
    assert notes.losses(tmp_path / "two") == pytest.approx(alone, rel=1e-4)
