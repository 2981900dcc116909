import os
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy_number import Number

from geobind.data import loader as loading
from geobind.data.loader import BatchLoader, ModalityInput, choose_workers, prepare_batches
from geobind.data.options import DataOptions
from geobind.data.sampler import BatchSampler, batch_indices, draw_replacement
from geobind.data.seeds import derive_row_seeds, preserve_rng, seeded_rng
from geobind.data.sources import PluginPairs
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.inference import collate
from geobind.modality import Pair, Place
from geobind.utils.system import AvailableMemory


class Bug(Number):
    def prepare(self, raw, *, training=False):
        raise RuntimeError("a bug of the plugin")


class Dies(Number):
    def prepare(self, raw, *, training=False):
        os._exit(3)


PAIRS = [
    Pair(i, [i, 1000 + i], f"k{i}", Place(i / 10, -i / 10) if i % 2 else None, "even" if i % 2 == 0 else None)
    for i in range(23)
]


def loader(pairs=PAIRS, batch_size=4, seed=7, first_step=0, last_step=8, **options):
    options = {"workers": 0} | options
    anchor = ModalityInput(options.pop("anchor", Number()), augment=options.pop("augment_anchor", True))
    sides = {"anchor": anchor, "other": ModalityInput(Number())}
    sampler = BatchSampler((len(pairs),), batch_size, seed)
    return BatchLoader(
        PluginPairs(pairs, "anchor", "other"), sides, sampler, first_step, last_step, **options
    )


def content(batches):
    return [
        (
            step,
            batch["anchor"]["value"].tolist(),
            batch["anchor"]["noise"].tolist(),
            batch["other"]["value"].tolist(),
            meta.keys,
        )
        for step, batch, meta in batches
    ]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**63), st.integers(0, 5))
def test_an_epoch_is_a_permutation_without_its_incomplete_batch(n, batch_size, seed, epoch):
    if n < batch_size:
        with pytest.raises(DataError, match=f"{n} rows? cannot fill a batch of {batch_size}"):
            batch_indices(n, batch_size, 0, seed)
        return
    steps = n // batch_size
    rows = np.concatenate([batch_indices(n, batch_size, epoch * steps + step, seed) for step in range(steps)])
    assert len(rows) == len(set(rows.tolist())) == steps * batch_size
    assert set(rows.tolist()) <= set(range(n))


@pytest.mark.parametrize(("rows", "words"), [(0, "0 rows"), (1, "1 row")])
def test_too_few_rows_for_any_batch_are_not_answered_with_a_batch_size(rows, words):
    with pytest.raises(DataError) as caught:
        batch_indices(rows, 64, 0, 0)
    assert str(caught.value) == f"{words} cannot fill a batch of 64; it takes 2 at least"


def test_epochs_and_seeds_differ():
    orders = {tuple(batch_indices(50, 50, step, seed)) for step in range(3) for seed in range(3)}
    assert len(orders) == 9


def test_a_replacement_is_not_in_the_batch_unless_all_rows_are():
    for attempt in range(20):
        assert draw_replacement(10, 8, 0, 1, 3, attempt) not in batch_indices(10, 8, 0, 1)
        assert draw_replacement(8, 8, 0, 1, 3, attempt) != 3


def test_a_resumed_loader_goes_on_exactly():
    whole = content(loader())
    assert content(loader(first_step=5)) == whole[5:]
    assert [row[0] for row in whole] == list(range(8))
    assert len(loader(first_step=5)) == 3
    assert content(loader(first_step=8)) == []


def test_what_a_worker_is_given_pickles():
    samples = pickle.loads(pickle.dumps(loading._Samples(loader())))
    assert samples[loading.SeededRow(0, 3, (1, 2, 3))].known.key == "k3"


def test_workers_change_nothing():
    assert content(loader(workers=2)) == content(loader())


def test_ranks_put_together_are_the_batch_of_one_process():
    one = content(loader())
    ranks = [content(loader(rank=rank, world=2)) for rank in range(2)]
    for step, (whole, *parts) in enumerate(zip(one, *ranks, strict=True)):
        joined = [[*parts[0][column], *parts[1][column]] for column in range(1, 5)]
        assert joined == list(whole[1:]), step
    with pytest.raises(DataError, match="a batch of 4 cannot be shared by 3"):
        loader(world=3)


def test_one_of_several_observations_is_drawn_and_noise_differs_between_samples_and_epochs():
    rows = content(loader(last_step=40))
    noise = [value for row in rows for value in row[2]]
    assert len(set(noise)) == len(noise)
    others = [value for row in rows for value in row[3]]
    assert 50 < sum(value >= 1000 for value in others) < 110
    assert all(anchor == other % 1000 for row in rows for anchor, other in zip(row[1], row[3], strict=True))


def test_without_augmentation_nothing_is_random():
    assert {noise for row in content(loader(augment_anchor=False)) for noise in row[2]} == {0.0}


def test_the_main_process_keeps_its_own_random_numbers():
    def after(run):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        run()
        return torch.rand(1).item(), np.random.rand(), random.random()

    assert after(lambda: list(loader())) == after(lambda: None)
    assert after(lambda: list(loader(workers=1, last_step=1))) == after(lambda: None)


def test_random_states_are_kept_one_inside_the_other():
    np.random.seed(1)
    expected = np.random.rand(2).tolist()
    np.random.seed(1)
    found = [np.random.rand()]
    with preserve_rng():
        np.random.seed(2)
        with preserve_rng(), preserve_rng():
            np.random.seed(3)
        inside = np.random.rand()
    assert [*found, np.random.rand()] == expected
    np.random.seed(2)
    assert np.random.rand() == inside


def test_seeding_is_a_function_of_the_numbers():
    def draw(*numbers):
        with seeded_rng(*numbers):
            return torch.rand(1).item(), np.random.rand(), random.random()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({*draw(1, 2, 3), *draw(1, 3, 2), *draw(2**70, 0, 0)}) == 9


def test_what_is_known_of_a_pair_comes_with_it():
    _, batch, meta = next(iter(loader(batch_size=23)))
    for row, number in enumerate(batch["anchor"]["value"].tolist()):
        assert meta.keys[row] == f"k{number}"
        assert meta.labels[row] == ("even" if number % 2 == 0 else None)
        assert meta.lat[row] == number / 10 or (number % 2 == 0 and np.isnan(meta.lat[row]))
        assert np.isnan(meta.lon[row]) == (number % 2 == 0)
    bare = next(iter(loader([Pair(1, 2)], batch_size=1)))[2]
    assert bare.keys == ["row 0"]
    assert all(part is None for part in bare[1:])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_row_is_replaced_and_recorded(workers):
    pairs = [pair._replace(anchor="oops") if i == 5 else pair for i, pair in enumerate(PAIRS)]
    runs = [loader(pairs, max_broken=0.1, workers=workers, last_step=10) for _ in range(2)]
    first, again = (content(run) for run in runs)
    assert first == again
    assert runs[0].quarantined == [("k5", "'oops' is not a number")]
    good = content(loader(last_step=10))
    differing = [(a, b) for a, b in zip(first, good, strict=True) if a != b]
    assert differing
    for a, b in differing:
        assert 5 in b[1] and 5 not in a[1]
        assert len(set(a[1])) == 4
        assert sum(x != y for x, y in zip(a[1], b[1], strict=True)) == 1


@pytest.mark.parametrize("raw", [None, [], "oops"])
def test_with_no_tolerance_the_first_broken_row_is_an_error(refused, raw):
    pairs = [pair._replace(other=raw) if i == 5 else pair for i, pair in enumerate(PAIRS)]
    refused(lambda: list(loader(pairs, max_broken=0.0)), "max_broken is 0", "k5: ")


def test_too_many_broken_rows_are_an_error_that_lists_some(refused):
    pairs = [pair._replace(anchor="oops") if i < 4 else pair for i, pair in enumerate(PAIRS)]
    run = loader(pairs, max_broken=0.1, last_step=20)
    refused(lambda: list(run), "of 23 rows seen cannot be used", "k3: 'oops' is not a number")
    assert len(run.quarantined) in (3, 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_when_everything_is_broken_the_message_is_clean(refused, workers):
    pairs = [pair._replace(anchor="oops") for pair in PAIRS]
    message = refused(lambda: list(loader(pairs, workers=workers)), "drawn instead", "'oops' is not a number")
    assert "Traceback" not in message


def test_a_cell_that_cannot_be_resolved_is_a_broken_row(tmp_path, refused):
    (tmp_path / "m.csv").write_text("number\n../x.png\n")
    table = open_table(DataOptions(manifest="m.csv"), tmp_path, ["number"])
    run = loader(table.pairs("number", "number"), batch_size=1, max_broken=0.0)
    refused(lambda: list(run), "m.csv:2", "leads out of")


def test_other_exceptions_are_not_hidden():
    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="a bug of the plugin") as caught:
            list(loader(anchor=Bug(), workers=workers))
        assert "while preparing k" in str(caught.value) + str(getattr(caught.value, "__notes__", ""))


def test_a_worker_that_dies_is_explained(refused):
    refused(lambda: list(loader(anchor=Dies(), workers=1)), "a process that loads data died", "workers: 0")


def test_a_worker_that_dies_before_torch_listens_for_it_is_explained_too(refused, monkeypatch):
    listening = torch.utils.data._utils.signal_handling
    monkeypatch.setattr(listening, "_set_worker_pids", lambda *_: None)
    monkeypatch.setattr(listening, "_remove_worker_pids", lambda *_: None)
    monkeypatch.setattr(loading, "_LOOK", 0.5)
    refused(lambda: list(loader(anchor=Dies(), workers=1)), "a process that loads data died", "workers: 0")


def test_collate_stacks_tensors_and_dicts():
    assert collate([torch.zeros(2), torch.ones(2)]).tolist() == [[0, 0], [1, 1]]
    assert collate([{"a": torch.zeros(2), "b": torch.tensor(1)}] * 3)["b"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [torch.zeros(2), torch.zeros(3)],
        [torch.zeros(2), torch.zeros(2, dtype=torch.uint8)],
        [{"a": torch.zeros(2)}, {"b": torch.zeros(2)}],
        [{"a": torch.zeros(2)}, torch.zeros(2)],
    ],
)
def test_collate_refuses_what_does_not_stack(samples):
    with pytest.raises(DataError, match="a batch"):
        collate(samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_inputs_are_prepared_in_order(workers):
    batches = list(prepare_batches(Number(), [4, [5, 9], 6], 2, workers))
    assert [rows.tolist() for rows, _ in batches] == [[0, 1], [2]]
    assert torch.cat([batch["value"] for _, batch in batches]).tolist() == [4, 5, 6]
    assert list(prepare_batches(Number(), [], 2, workers)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_input_that_cannot_be_prepared_is_numbered(refused, workers):
    message = refused(
        lambda: list(prepare_batches(Number(), [1, 2, "x"], 2, workers)), "input 2: 'x' is not a number"
    )
    assert "Traceback" not in message


def test_workers_go_by_rows_cpus_memory_and_ranks(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    monkeypatch.setattr(loading, "available_memory", lambda: AvailableMemory(100 * 2**30, "much"))
    assert choose_workers(999) == 0
    assert choose_workers(1000) == 8
    assert choose_workers(10**6) == 96
    monkeypatch.setattr(loading, "available_memory", lambda: AvailableMemory(2**33, "little"))
    assert choose_workers(10**6) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_workers(10**6) == 4
    monkeypatch.setattr(loading, "available_memory", lambda: None)
    assert choose_workers(10**6) == 24


@given(
    st.integers(0, 2**70),
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 2**33)), max_size=9),
)
def test_seeds_of_many_rows_are_those_that_numpy_derives_for_each(seed, indices):
    expected = [np.random.SeedSequence((seed, *index)).generate_state(3).tolist() for index in indices]
    assert [list(seeds) for seeds in derive_row_seeds(seed, indices)] == expected
