"""Two passes: the gradient of the whole batch, dropout drawn again, statistics taken once."""

import csv
from pathlib import Path

import pytest
import torch
import toy
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from torch import nn

from geobind.errors import RecipeError
from geobind.recipe.schema import build_pairs
from geobind.training import gradients as two_pass
from geobind.training.distributed import Ranks
from geobind.training.gradients import GradientAccumulator, chunk_rows, chunk_slices, count_rows, select_rows
from geobind.training.losses import EmbeddingQueue, InfoNCE, LossContext, SigLIP, hash_labels
from geobind.training.module import ContrastiveModule
from geobind.training.run import run

pytestmark = pytest.mark.usefixtures("toy_registry")
WIDTH = 8


class Parts(nn.Module):
    """Takes a dict of tensors, one of them nested."""

    def __init__(self):
        super().__init__()
        self.net = toy.Net(WIDTH, 0.0, False)

    def forward(self, batch):
        return self.net(batch["x"] + batch["more"]["y"])


def encoders(dropout=0.0, norm=False, deterministic=0):
    torch.manual_seed(deterministic)
    return {name: toy.Net(WIDTH, dropout, norm) for name in ("hub", "spoke", "rim")}


def made(
    encoders, make=InfoNCE, pairs="all", partial=False, trained=("hub", "spoke", "rim"), precision="32-true"
):
    """A bind, and what Fabric makes of it, at a precision."""
    bound = build_pairs("hub", [name for name in encoders if name != "hub"], pairs, trained, {"rim": 0.5})
    bind = ContrastiveModule(
        encoders,
        {pair.name: make() for pair in bound},
        bound,
        Ranks(lambda part, **_: part, 1),
        WIDTH,
        partial=partial,
    )
    how = {"precision": precision} if isinstance(precision, str) else {"plugins": [precision]}
    fabric = Fabric(accelerator="cpu", devices=1, **how)
    return bind, fabric, fabric.setup(bind)


def gradients(setup, batches, chunk=None, present=None, context=None, turn=None):
    """The losses of a step, and the gradient that it leaves in each parameter."""
    bind, fabric, module = setup
    bind.zero_grad()
    torch.manual_seed(7)
    found = GradientAccumulator(fabric, bind, module, chunk)(batches, present, context, turn)
    return found, {name: p.grad if p.grad is None else p.grad.clone() for name, p in bind.named_parameters()}


def alike(one, other, rel=1e-5):
    """Whether two sets of gradients agree, relative to the largest number of each tensor."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value is None) == (other[name] is None), name
        if value is not None:
            assert (value - other[name]).abs().max() <= rel * max(value.abs().max(), 1e-6), name
    return True


def rows(count=12, seed=3):
    torch.manual_seed(seed)
    return {name: torch.randn(count, 10) for name in ("hub", "spoke", "rim")}


# Cutting


def test_chunks_cover_the_rows_and_are_of_nearly_one_length():
    assert chunk_slices(9, 4) == [slice(0, 3), slice(3, 6), slice(6, 9)]
    assert chunk_slices(3, 4) == [slice(0, 3)]
    assert chunk_slices(0, 4) == []


def test_rows_are_taken_of_every_tensor_of_a_structure():
    batch = {"x": torch.arange(6), "more": [torch.arange(12).view(6, 2), torch.tensor(3.0)], "kept": "word"}
    part = select_rows(batch, slice(2, 4))
    assert part["x"].tolist() == [2, 3]
    assert part["more"][0].tolist() == [[4, 5], [6, 7]]
    assert (part["more"][1].item(), part["kept"]) == (3.0, "word")
    assert (count_rows(batch), count_rows(None), count_rows({})) == (6, 0, 0)


# The gradient


@pytest.mark.parametrize("make", [InfoNCE, SigLIP, lambda: InfoNCE(hardness=0.5)])
@pytest.mark.parametrize("chunk", [2, 5, 11])
def test_the_gradient_is_that_of_the_whole_batch_for_every_loss(make, chunk):
    torch.manual_seed(0)
    setup = made(encoders(), make)
    batches = rows()
    direct, expected = gradients(setup, batches)
    found, ours = gradients(setup, batches, chunk)
    assert alike(expected, ours)
    assert float(found.total) == pytest.approx(direct.total.item(), rel=1e-6)
    assert {name: float(v) for name, v in found.pairs.items()} == pytest.approx(
        {name: float(v) for name, v in direct.pairs.items()}, rel=1e-6
    )
    assert not found.total.requires_grad


def test_labels_and_places_are_those_of_the_whole_batch():
    setup, batches = made(encoders()), rows()
    context = LossContext(labels_N=hash_labels(["a", "b", "a", None] * 3))
    _, expected = gradients(setup, batches, context=context)
    _, ours = gradients(setup, batches, 4, context=context)
    _, plain = gradients(setup, batches, 4)
    assert alike(expected, ours)
    assert not torch.allclose(plain["encoders.hub.head.weight"], ours["encoders.hub.head.weight"])


@pytest.mark.parametrize("chunk", [2, 3])
def test_rows_that_lack_modalities_are_left_out_alike(chunk):
    present = torch.tensor(
        [[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]]
    ).bool()
    batches = {name: value[:7][present[:, n]] for n, (name, value) in enumerate(rows().items())}
    setup = made(encoders(), partial=True)
    _, expected = gradients(setup, batches, present=present)
    _, ours = gradients(setup, batches, chunk, present=present)
    assert alike(expected, ours)


def test_an_encoder_without_rows_gets_no_gradient_and_a_step_without_pairs_zeros():
    setup, batches = made(encoders(), partial=True), rows(4)
    present = torch.tensor([[1, 1, 0]] * 4).bool()
    del batches["rim"]
    found, ours = gradients(setup, batches, 2, present=present)
    _, expected = gradients(setup, batches, present=present)
    assert alike(expected, ours)
    assert all(value is None for name, value in ours.items() if "rim" in name)
    present = torch.tensor([[1, 0, 0]] * 4).bool()
    found, ours = gradients(setup, {"hub": batches["hub"]}, 2, present=present)
    assert (found.total.item(), found.pairs) == (0.0, {})
    assert all(not value.any() for value in ours.values())


def test_dicts_of_tensors_are_cut_by_their_rows():
    torch.manual_seed(0)
    setup = made({"hub": Parts(), "rim": toy.Net(WIDTH, 0.0, False)}, pairs="anchor", trained=("hub", "rim"))
    batches = {"hub": {"x": rows()["hub"], "more": {"y": rows()["spoke"]}}, "rim": rows()["rim"]}
    assert alike(gradients(setup, batches)[1], gradients(setup, batches, 5)[1])


def forwards(monkeypatch):
    """How many rows went through each encoder, and how many of them to go back."""
    seen = {}
    forward = toy.Net.forward

    def counting(self, x_BF):
        once, back = seen.get(id(self), (0, 0))
        seen[id(self)] = (once + len(x_BF), back + len(x_BF) * torch.is_grad_enabled())
        return forward(self, x_BF)

    monkeypatch.setattr(toy.Net, "forward", counting)
    return seen


def test_frozen_sides_take_one_pass_heads_one_and_the_last_rows_of_the_others_one(monkeypatch):
    parts = encoders()
    parts["spoke"].requires_grad_(False)
    parts["rim"].trunk.requires_grad_(False)
    setup, batches = made(parts, pairs="anchor"), rows()
    _, expected = gradients(setup, batches)
    seen = forwards(monkeypatch)
    _, ours = gradients(setup, batches, 4)
    assert alike(expected, ours)
    assert {name: seen[id(encoder)] for name, encoder in parts.items()} == {
        "hub": (12 + 8, 12),
        "spoke": (12, 0),
        "rim": (12, 12),
    }


def test_a_queue_is_filled_once_a_step_and_counts_alike():
    parts = encoders()
    del parts["rim"]
    parts["spoke"].requires_grad_(False)

    def make():
        return InfoNCE("anchor_to_other", queue=EmbeddingQueue(24, WIDTH))

    one, two = (made(parts, make, pairs="anchor", trained=("hub",)) for _ in range(2))
    for seed in (1, 2):
        batches = {name: value for name, value in rows(seed=seed).items() if name != "rim"}
        expected, ours = gradients(one, batches)[1], gradients(two, batches, 5)[1]
        assert alike(expected, ours)
    assert int(two[0].losses["hub-spoke"].queue.seen) == 24


def test_half_precision_scales_and_casts_as_a_step_in_one_pass_does():
    for precision, rel in (("bf16-mixed", 0.03), ("64-true", 1e-5), ("bf16-true", 0.2)):
        setup, batches = made(encoders(), precision=precision), rows()
        if precision == "64-true":
            batches = {name: value.double() for name, value in batches.items()}
        _, expected = gradients(setup, batches)
        assert alike(expected, gradients(setup, batches, 5)[1], rel)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_second_step_of_one_module_is_as_the_first(precision):
    # Fabric hooks what a module returns: a parameter of a loss would keep the hook, and refuse the next step.
    setup, batches = made(encoders(), precision=precision), rows()
    _, expected = gradients(setup, batches, 5)
    _, again = gradients(setup, batches, 5)
    assert alike(expected, again, 0.0)
    assert not any(parameter._backward_hooks for parameter in setup[0].parameters())


def test_a_gradient_scaler_scales_once():
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    setup = made(encoders(), precision=MixedPrecision("16-mixed", "cpu", scaler))
    _, plain = gradients(made(encoders()), rows())
    _, expected = gradients(setup, rows())
    _, ours = gradients(setup, rows(), 5)
    assert alike(expected, ours, 0.02)
    assert alike(plain, {name: value / 1024 for name, value in ours.items()}, 0.05)


# Dropout, statistics


def in_chunks(setup, batches, chunk):
    """The gradient of a graph over all chunks, embedded in the order of a first pass."""
    bind, _, _ = setup
    bind.zero_grad()
    torch.manual_seed(7)
    whole = {
        name: torch.cat(
            [bind.embed(name, batches[name][part]) for part in chunk_slices(len(batches[name]), chunk)]
        )
        for name in bind.encoders
    }
    bind.contrast(whole, bind.active_pairs()).total.backward()
    return {name: parameter.grad.clone() for name, parameter in bind.named_parameters()}


def test_dropout_draws_in_the_second_pass_what_it_drew_in_the_first():
    setup, batches = made(encoders(dropout=0.5)), rows()
    expected = in_chunks(setup, batches, 5)
    _, ours = gradients(setup, batches, 5)
    assert alike(expected, ours)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(two_pass.RngState, "restore", lambda self, device: None)
    _, otherwise = gradients(setup, batches, 5)
    monkey.undo()
    with pytest.raises(AssertionError):
        alike(expected, otherwise)


def test_batch_statistics_are_taken_once_and_are_those_of_chunks():
    one, two = made(encoders(norm=True)), made(encoders(norm=True))
    batches = rows()
    expected = in_chunks(one, batches, 4)
    _, ours = gradients(two, batches, 4)
    assert alike(expected, ours)
    for name, encoder in two[0].encoders.items():
        norm = encoder.trunk[1]
        assert int(norm.num_batches_tracked) == 3
        other = one[0].encoders[name].trunk[1]
        assert torch.allclose(norm.running_mean, other.running_mean, atol=0.05)
        assert norm.running_var.ne(1).all()


# Whole runs


def toy_run(folder: Path, *overrides: str) -> Path:
    folder.mkdir(exist_ok=True)
    return run(toy.recipe(folder, *overrides), folder / "run").folder


def rows_of_csv(folder: Path):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(folder: Path):
    return load_file(folder / "bundle" / "model.safetensors")


PLAIN = ("modalities.left.norm=false", "modalities.right.norm=false", "modalities.right.noise=0.1")


@pytest.mark.slow
def test_a_run_in_chunks_gives_the_losses_and_weights_of_one_without(tmp_path):
    plain = toy_run(tmp_path / "plain", *PLAIN)
    cut = toy_run(tmp_path / "cut", *PLAIN, "stages.0.chunk=3", "stages.1.chunk=3")
    for one, two in zip(rows_of_csv(plain), rows_of_csv(cut), strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-4)
        assert float(one["grad_norm"]) == pytest.approx(float(two["grad_norm"]), rel=1e-3)
    one, two = weights(plain), weights(cut)
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


def test_batch_norm_in_training_is_warned_of_once_and_by_name(tmp_path, logged):
    toy_run(
        tmp_path, "modalities.right.norm=false", "stages.0.chunk=4", "stages.1.chunk=4", "stages.1.steps=1"
    )
    said = logged()
    assert said.count("BatchNorm") == 2  # in the one line
    assert (
        "warning: stage 'one': left trains BatchNorm, whose statistics with `chunk` are those of 4 rows"
        in said
    )


@pytest.mark.parametrize("word", ["1", "0", "some", "2.5", "no"])
def test_a_chunk_that_is_none_is_refused(tmp_path, word):
    with pytest.raises(RecipeError, match=r"stages\.0\.chunk"):
        toy.recipe(tmp_path, f"stages.0.chunk={word}")


def test_a_chunk_as_large_as_the_batch_of_a_process_is_no_chunk(tmp_path):
    def asked(chunk, world):
        return chunk_rows(toy.recipe(tmp_path, f"stages.0.chunk={chunk}").stages[0], world)

    assert (asked(8, 1), asked(8, 2), asked(16, 1), asked(400, 1), asked("null", 1)) == (
        8,
        None,
        None,
        None,
        None,
    )
