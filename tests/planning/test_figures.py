"""Conclusions from measurements: lines, counts of different things, choices, sums."""

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import GB, all_found, filling, stage_found

from geobind.errors import RecipeError
from geobind.planning.models import LoadingMemory, StepCost, estimate_distinct, fit_linear_cost
from geobind.planning.predict import (
    choose_batch,
    find_shortages,
    predict_memory,
    predict_run,
    predict_stage,
    predict_step_seconds,
)
from geobind.recipe import build_recipe

values = st.floats(0, 1e12, allow_nan=False)
points = st.dictionaries(st.integers(1, 10_000), values, min_size=1, max_size=5)


@settings(deadline=None, max_examples=200)
@given(points, st.integers(0, 20_000), st.integers(0, 20_000))
def test_more_rows_never_take_less_and_the_last_measurement_is_met(found, one, two):
    line = fit_linear_cost(found.items())
    low, high = sorted((one, two))
    assert 0 <= line(low) <= line(high) * (1 + 1e-12)
    last = max(found)
    assert line(last) == pytest.approx(found[last], rel=1e-6, abs=1e-3)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10**6))
def test_an_estimate_lies_between_what_was_found_and_what_there_is(found, more, rest):
    looked, total = found + more, found + more + rest
    assert found <= estimate_distinct(found, looked, total) <= total
    assert estimate_distinct(found, looked, total) <= estimate_distinct(found, looked, total + 1000) + 1e-6
    assert estimate_distinct(looked, looked, total) == total


def test_things_that_repeat_are_counted_to_a_few_percent_from_a_sample():
    rng = np.random.default_rng(0)
    everything = rng.integers(0, 3000, 20_000)
    sample = rng.permutation(everything)[:1500]
    guess = estimate_distinct(len(set(sample.tolist())), 1500, 20_000)
    assert guess == pytest.approx(len(set(everything.tolist())), rel=0.1)


def chosen(found, usable=16 * GB, batch_size=None, chunk=None, ranks=1):
    return choose_batch(found, batch_size=batch_size, chunk=chunk, ranks=ranks, usable=usable)


@settings(deadline=None, max_examples=200)
@given(st.integers(4, 200_000_000), st.integers(1, 40), st.sampled_from([1, 2, 3, 4]))
def test_an_open_batch_is_the_largest_power_of_two_that_fits(row, gigabytes, ranks):
    found = stage_found(row=row, most=ranks * 256)
    try:
        batch = chosen(found, gigabytes * GB, ranks=ranks).batch_size
    except RecipeError as error:
        assert "even" in str(error)
        assert predict_memory(found, 2, None) > gigabytes * GB
        return
    local = batch // ranks
    assert batch % ranks == 0 and local & (local - 1) == 0
    assert predict_memory(found, local, None) <= gigabytes * GB
    assert local == 256 or predict_memory(found, 2 * local, None) > gigabytes * GB


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(1, 60))
def test_more_memory_never_means_a_smaller_batch_or_chunk(one, two):
    found = stage_found(row=10**8)
    low, high = sorted((one + 2, two + 2))
    assert chosen(found, low * GB).batch_size <= chosen(found, high * GB).batch_size
    chunks = [chosen(found, size * GB, batch_size=512, chunk="auto").chunk or 512 for size in (low, high)]
    assert chunks[0] <= chunks[1]


def test_an_open_chunk_stays_away_where_all_fit_and_is_a_power_of_two_where_not():
    assert chosen(stage_found(), batch_size=512, chunk="auto").chunk is None
    tight = chosen(stage_found(row=10**8), batch_size=512, chunk="auto")
    assert (tight.chunk, tight.fits) == (128, True)
    assert "512 pairs at once would take 52.2" in tight.why.replace("\N{NO-BREAK SPACE}", " ")
    assert not chosen(stage_found(fixed=20 * GB), batch_size=512, chunk="auto").fits


def test_two_passes_take_what_was_measured_of_them_and_memory_for_each_row():
    two = StepCost(rows=64, seconds=2 * 1.64, bytes=1 * GB + 32 * 10**7 + 64 * 1000, chunk=32)
    found = stage_found(two_pass=two)
    assert predict_step_seconds(found, 512, 128) == pytest.approx(2 * (1.0 + 0.01 * 512))
    assert predict_memory(found, 512, 128) == 1 * GB + 128 * 10**7 + 512 * 1000
    assert predict_memory(found, 128, 32) == two.bytes + 64 * 1000  # as measured, and more rows
    assert predict_step_seconds(found, 512, None) == pytest.approx(6.12)


def test_what_loading_takes_longer_than_computing_is_what_a_step_takes():
    assert predict_step_seconds(stage_found(loading_a_row=1.0), 64, None) == 64.0


def test_a_batch_is_not_guessed_where_nothing_tells_of_memory():
    untold = stage_found(steps=(StepCost(rows=8, seconds=1.0, bytes=None),))
    with pytest.raises(RecipeError, match="this system does not report; write a number"):
        chosen(untold)
    assert chosen(untold, batch_size=64, chunk="auto").chunk is None


@pytest.fixture
def recipe(toys, tmp_path):
    return toy.recipe(tmp_path)


def test_a_stage_takes_its_steps_its_rows_for_the_cache_and_its_checkpoints(recipe):
    stage = recipe.stages[0].model_copy(update={"checkpoint_seconds": 60.0, "epochs": 10})
    found = stage_found(filling=filling(), other_seconds=5.0, checkpoint_seconds=2.0)
    plan = predict_stage(stage, found)
    assert (plan.steps, plan.epoch_steps) == (620, 62)
    step = 1 + 0.01 * 16
    assert plan.seconds.step == pytest.approx(step)
    assert plan.seconds.epoch == pytest.approx(62 * step)
    assert plan.seconds.other == pytest.approx(5 + 2 * int(620 * step / 60))
    assert plan.seconds.stage == pytest.approx(620 * step + 30 + plan.seconds.other)
    assert plan.disk.cache == 500 * 100
    assert plan.memory_bytes == 2 * GB  # making the rows takes more than a step
    assert plan.way == "cached" and plan.settled == {}
    assert "its 500 rows are made once" in plan.why


def test_rows_that_are_there_are_not_planned_to_be_made(recipe):
    plan = predict_stage(recipe.stages[0], stage_found(filling=filling(missing=0, seconds=0.1)))
    assert plan.disk.cache == 0
    assert "are in the cache already" in plan.why


def test_a_batch_that_does_not_fit_is_warned_of_and_not_changed(recipe):
    plan = predict_stage(recipe.stages[0], stage_found(fixed=20 * GB), usable=16 * GB)
    assert (plan.way, plan.batch_size) == ("direct", 16)
    assert "write `chunk: auto`" in plan.warnings[0]


def test_each_way_says_why(recipe):
    stage = recipe.stages[0]
    assert predict_stage(stage, stage_found()).why.startswith("direct: 16 pairs at once take")
    uncached = stage_found(uncached={"cold": "preparing it draws random numbers"}, frozen=("cold",))
    assert (
        "cold is frozen but computed in every step (preparing it draws" in predict_stage(stage, uncached).why
    )
    wide = stage.model_copy(update={"batch_size": 512, "chunk": "auto"})
    plan = predict_stage(wide, stage_found(row=10**8), usable=16 * GB)
    assert (plan.way, plan.chunk, plan.settled) == ("two-pass", 128, {"chunk": 128})
    assert plan.why.startswith("two-pass with chunk 128: 512 pairs at once would take")


def test_a_run_takes_what_its_stages_take_and_what_comes_before_and_after(recipe):
    plan = predict_run(recipe, all_found(stage_found("one"), stage_found("two", filling=filling())))
    assert plan.seconds == pytest.approx(2 + 4 + 3 + sum(stage.seconds.stage for stage in plan.stages))
    assert plan.memory_bytes == max(stage.memory_bytes for stage in plan.stages)
    assert plan.disk_bytes == 50_000 + 5000
    assert plan.memory.usable_bytes == int(0.9 * 16 * GB)
    assert find_shortages(plan, 10**9, 10**9) == []
    assert len(find_shortages(plan, 100, 100)) == 2


def test_an_open_option_is_accepted_and_a_wrong_word_is_not(recipe):
    def with_first(**changes):
        values = {**recipe.written, "stages": [{**recipe.written["stages"][0], **changes}]}
        return build_recipe(values, recipe.base, source="toy").stages[0]

    assert with_first(batch_size="auto", chunk="auto").auto_options == ("batch_size", "chunk")
    with pytest.raises(
        RecipeError, match=r"stages\.0\.batch_size: Input should be a valid integer or 'auto'"
    ):
        with_first(batch_size="many")
    with pytest.raises(RecipeError, match="greater than or equal to 2"):
        with_first(batch_size=1)


def test_rows_that_wait_take_memory_that_an_open_batch_of_a_cpu_leaves_free(recipe):
    loading = LoadingMemory(workers=2, row_bytes=10**6, allowed_bytes=2 * GB)
    assert loading.bytes(64) == (2 * 2 + 1) * 64 * 10**6  # whole batches
    assert loading.bytes(1024) == (2 * 3 + 1) * 256 * 10**6 + 1024 * 10**6  # shares, and what they become
    assert LoadingMemory(workers=0, row_bytes=10**6, allowed_bytes=GB).bytes(64) == 0
    found = stage_found(loading=loading, most=1024)
    stage = recipe.stages[0].model_copy(update={"batch_size": "auto"})
    recipe = recipe.model_copy(update={"stages": (stage,)})
    for kind, left in (("process", loading.bytes(1024)), ("accelerator", 0)):
        (stage,) = predict_run(recipe, all_found(found, memory=kind, available=10 * GB)).stages
        assert stage.memory_bytes <= 9 * GB - left < 2 * stage.memory_bytes
        assert stage.loading_bytes == loading.bytes(stage.batch_size)
