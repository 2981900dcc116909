"""A queue of frozen embeddings in whole runs: what a recipe may ask for, resuming, two processes."""

from pathlib import Path

import pytest
import torch
import toy
from safetensors.torch import load_file
from torch.nn import functional as F
from toy_runs import losses, same, toy_run, weights

from geobind import plugins
from geobind.errors import DataError
from geobind.recipe import RecipeProblems
from geobind.training import metrics
from geobind.training import stage as stages
from geobind.training.losses import EmbeddingQueue, InfoNCE, LossContext

pytestmark = pytest.mark.usefixtures("toy_registry")
PROGRAM = Path(toy.__file__)
QUEUED = ["stages.0.train=[left]", "stages.0.loss={name: infonce, direction: anchor_to_other, queue: 40}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "registry", toy.registry)
        torch.set_num_threads(1)
        yield toy_run(tmp_path_factory.mktemp("whole"), *QUEUED)


def dying(step):
    add, taken = metrics.Recorder.add, iter(range(10_000))

    def add_then_die(self, *arguments):
        add(self, *arguments)
        if next(taken) == step:
            raise KeyboardInterrupt

    return add_then_die


@pytest.mark.slow
def test_a_queue_adds_negatives_from_the_second_step_on(whole, tmp_path):
    plain = losses(toy_run(tmp_path, QUEUED[0], QUEUED[1].replace(", queue: 40", "")))
    queued = losses(whole)
    assert queued[0] == plain[0]  # nothing is queued yet
    assert all(q[2] > p[2] for q, p in zip(queued[1:6], plain[1:6], strict=True))
    one = [loss for stage, _, loss in queued if stage == "one"]
    assert sum(one[-3:]) < sum(one[2:5])


@pytest.mark.slow
@pytest.mark.parametrize("dies_after", [1, 7, 13])
def test_a_killed_run_resumes_with_its_queue_bit_for_bit(whole, tmp_path, dies_after):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.Recorder, "add", dying(dies_after))
        with pytest.raises(KeyboardInterrupt):
            toy_run(tmp_path, *QUEUED)
    state = torch.load(tmp_path / "run" / "stages" / "01_one" / "state.ckpt", weights_only=True)
    assert int(state["modules"]["loss.left-right"]["queue.seen"]) == 16 * state["step"] == 16 * dies_after
    toy_run(tmp_path, *QUEUED, resume=True)
    assert same(weights(whole), weights(tmp_path / "run"))
    assert losses(whole) == losses(tmp_path / "run")


@pytest.mark.slow
def test_a_queue_works_in_half_precision(whole, tmp_path):
    half = losses(toy_run(tmp_path, *QUEUED, "stages.0.precision=bf16-mixed"))
    assert [loss for *_, loss in half[:6]] == pytest.approx(
        [loss for *_, loss in losses(whole)[:6]], rel=0.05
    )


def test_the_queue_is_no_part_of_what_a_stage_leaves(whole):
    assert not any("queue" in key for key in weights(whole))
    assert not any("queue" in key for key in load_file(whole / "stages" / "01_one" / "trained.safetensors"))


@pytest.mark.slow
def test_a_full_queue_is_known_to_be_full_until_another_state_is_loaded():
    queue, empty = EmbeddingQueue(4, 2), EmbeddingQueue(4, 2).state_dict()
    for count in (2, 4, 4):
        queue.push(torch.ones(2, 2))
        assert len(queue) == count
    queue.load_state_dict(empty)
    assert len(queue) == 0


def test_each_row_knows_its_own_key(tmp_path, monkeypatch):
    """Keys of the rows reach the queue, so that at an epoch's turn no pair opposes itself."""
    seen, make = [], stages.build_loss

    def watched(*arguments):
        loss = make(*arguments)
        loss.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[2]))
        return loss

    monkeypatch.setattr(stages, "build_loss", watched)
    toy_run(tmp_path, *QUEUED, "stages.0.epochs=2")
    first, second = (torch.cat([context.rows_N for context in seen[i : i + 6]]) for i in (0, 6))
    assert len(first.unique()) == len(first) == 96
    assert set(first.tolist()) == set(second.tolist())
    assert (first >= 0).all()


@pytest.mark.parametrize("direction", ["anchor_to_other", "both"])
def test_a_pairs_own_queued_key_does_not_oppose_it(direction):
    anchor, other = (F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1) for _ in range(2))
    rows = LossContext(rows_N=torch.tensor([5, 6, 7]))
    loss = InfoNCE(direction, queue=EmbeddingQueue(8, width=4)).double()
    first = loss(anchor, other, rows)
    assert len(loss.queue) == 3
    # Another batch's keys oppose; of its own three, each anchor is opposed by the other two alone.
    keys = torch.cat([other, other])
    logits = anchor @ keys.T * loss.temperature.scale.detach()
    logits[torch.arange(3), torch.arange(3, 6)] = -torch.inf
    there = F.cross_entropy(logits, torch.arange(3))
    back = F.cross_entropy(other @ anchor.T * loss.temperature.scale.detach(), torch.arange(3))
    wanted = there if direction == "anchor_to_other" else (there + back) / 2
    assert loss(anchor, other, rows).item() == pytest.approx(wanted.item())
    assert wanted > first
    unknown = InfoNCE(direction, queue=EmbeddingQueue(8, width=4)).double()
    unknown(anchor, other, LossContext(rows_N=torch.full((3,), -1)))
    assert unknown(anchor, other, LossContext(rows_N=torch.full((3,), -1))) > wanted


def problems(tmp_path, *overrides):
    with pytest.raises(RecipeProblems) as caught:
        toy.recipe(tmp_path, *overrides)
    return str(caught.value)


def test_a_queue_that_cannot_serve_is_found_before_anything_runs(tmp_path):
    queue = "stages.0.loss={name: infonce, queue: 40, direction: %s}"
    assert (
        "stages.0.loss.queue: 'right' is in training, so its queued embeddings would be stale; "
        "do not train it here, or drop the queue" in problems(tmp_path, queue % "both")
    )
    assert (
        "queue: holds the aligned modality, but other_to_anchor looks among anchors; drop the queue or "
        "choose another direction" in problems(tmp_path, "stages.0.train=[left]", queue % "other_to_anchor")
    )
    assert "greater than or equal to 1" in problems(tmp_path, "stages.0.loss={name: infonce, queue: 0}")
    assert "unknown key" in problems(tmp_path, "stages.0.loss={name: siglip, queue: 40}")


@pytest.mark.slow
def test_a_queue_as_long_as_the_data_is_refused_before_training(tmp_path):
    message = (
        "a queue of 81 embeddings and a batch of 16 are more than the 96 rows of the data, .* to 80 or less"
    )
    with pytest.raises(DataError, match=f"stage 'one': {message}"):
        toy_run(tmp_path, QUEUED[0], QUEUED[1].replace("40", "81"))
    assert not (tmp_path / "run" / "stages").exists()
    toy_run(tmp_path / "fits", QUEUED[0], QUEUED[1].replace("40", "80"), "stages.0.epochs=1")
    with pytest.raises(DataError, match=r"than the 16 rows of the data, .*; drop loss\.queue"):
        toy_run(tmp_path / "none", *QUEUED, "modalities.right.count=16")
