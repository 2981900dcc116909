"""Batch norm over all processes is batch norm of the whole batch. Threads stand for processes here."""

import threading
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from torch import nn

from geobind.errors import TrainingError
from geobind.training import sync_batchnorm
from geobind.training.encoder_transforms import disable_checkpointing, enable_checkpointing
from geobind.training.sync_batchnorm import sync_batch_norms, unsync_batch_norms


class Group:
    """`torch.distributed` among threads."""

    def __init__(self, count):
        self.count, self.told, self.barrier = count, {}, threading.Barrier(count, timeout=20)
        self.here = threading.local()

    def gathered(self, own_S):
        self.told[self.here.rank] = own_S.clone()
        self.barrier.wait()
        told_PS = torch.stack([self.told[rank] for rank in range(self.count)])
        self.barrier.wait()
        return told_PS

    def add_up(self, tensor):
        tensor.copy_(self.gathered(tensor).sum(0))

    def run(self, do):
        """Return what `do(rank)` gives on each."""
        found, faults = {}, []

        def one(rank):
            self.here.rank = rank
            try:
                found[rank] = do(rank)
            except BaseException as error:
                faults.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.count)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        if faults:
            raise next((f for f in faults if not isinstance(f, threading.BrokenBarrierError)), faults[0])
        return [found[rank] for rank in range(self.count)]


@contextmanager
def processes(count):
    group = Group(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync_batchnorm, "_all_gather", group.gathered)
        patch.setattr(sync_batchnorm, "_all_reduce", group.add_up)
        yield group


def close(one, other, digits):
    assert torch.allclose(one, other, atol=digits * max(1.0, float(other.abs().max())), rtol=0)


KINDS = {
    "1d": (lambda **o: nn.BatchNorm1d(3, **o), ()),
    "1d of sequences": (lambda **o: nn.BatchNorm1d(3, **o), (5,)),
    "2d": (lambda **o: nn.BatchNorm2d(3, **o), (4, 2)),
    "3d": (lambda **o: nn.BatchNorm3d(3, **o), (2, 3, 2)),
    "timm": (lambda **o: BatchNormAct2d(3, **o), (4, 2)),
}


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(lambda counts: sum(counts) > 1),
    affine=st.booleans(),
    momentum=st.sampled_from([None, 0.1, 0.7]),
    tracked=st.booleans(),
    shift=st.floats(-20, 20),
    seed=st.integers(0, 1000),
)
def test_processes_with_any_share_of_the_rows_give_what_one_gives(
    kind, counts, affine, momentum, tracked, shift, seed
):
    make, more = KINDS[kind]
    torch.manual_seed(seed)
    options = {"affine": affine, "momentum": momentum, "track_running_stats": tracked}
    alone = make(**options).double()
    if affine:
        nn.init.normal_(alone.weight)
        nn.init.normal_(alone.bias)
    x, grad = (torch.randn(2, sum(counts), 3, *more, dtype=torch.float64) for _ in range(2))
    x = x * torch.rand(3).view(3, *[1] * len(more)) + shift

    def two_steps(module, rows):
        outs, grads = [], []
        for step in range(2):
            own = x[step][rows].clone().requires_grad_()
            out = module(own)
            out.backward(grad[step][rows])
            outs.append(out.detach())
            grads.append(own.grad)
        return outs, grads, [p.grad for p in module.parameters()], dict(module.named_buffers())

    whole = two_steps(alone, slice(None))
    starts = [sum(counts[:rank]) for rank in range(len(counts))]
    modules = [make(**options).double() for _ in counts]
    for module in modules:
        module.load_state_dict(
            {k: v for k, v in alone.state_dict().items() if k in ("weight", "bias")}, False
        )
        sync_batch_norms(module)
    with processes(len(counts)) as group:
        parts = group.run(
            lambda rank: two_steps(modules[rank], slice(starts[rank], starts[rank] + counts[rank]))
        )
    for step in range(2):
        close(torch.cat([part[0][step] for part in parts]), whole[0][step], 1e-9)
        close(torch.cat([part[1][step] for part in parts]), whole[1][step], 1e-9)
    for number, of_parameter in enumerate(whole[2]):
        close(sum(part[2][number] for part in parts), of_parameter, 1e-9)
    for _, _, _, buffers in parts:
        assert buffers.keys() == whole[3].keys()
        for name, buffer in buffers.items():
            close(buffer.double(), whole[3][name].double(), 1e-9)
    assert all(module.state_dict().keys() == alone.state_dict().keys() for module in modules)


@settings(deadline=None, max_examples=10)
@given(shift=st.floats(-50, 50), seed=st.integers(0, 1000))
def test_rounding_is_that_of_one_process(shift, seed):
    torch.manual_seed(seed)
    x, grad = shift + torch.randn(32, 3, 4, 4), torch.randn(32, 3, 4, 4)

    def found(norm, rows=slice(None), kind=torch.float32):
        own = x[rows].to(kind).requires_grad_()
        out = norm(own)
        out.backward(grad[rows].to(kind))
        return [out.detach(), own.grad, norm.weight.grad.clone(), norm.running_var.clone()]

    exact = found(nn.BatchNorm2d(3).double(), kind=torch.float64)
    alone, norms = found(nn.BatchNorm2d(3)), [nn.BatchNorm2d(3), nn.BatchNorm2d(3)]
    [sync_batch_norms(norm) for norm in norms]
    with processes(2) as group:
        one, two = group.run(lambda rank: found(norms[rank], slice(16 * rank, 16 * rank + 16)))
    together = [torch.cat([one[0], two[0]]), torch.cat([one[1], two[1]]), one[2] + two[2], one[3]]
    terms = float(grad.square().sum((0, 2, 3)).sqrt().max())  # the gradient of the weight is a sum of many
    sizes = [float(true.abs().max()) for true in exact[:2]] + [terms, float(exact[3].abs().max())]
    for here, there, true, size in zip(together, alone, exact, sizes, strict=True):
        rounding = 6e-7 * (1 + abs(shift)) * size  # a mean far from zero costs digits
        assert max(float((one - true).abs().max()) for one in (here, there)) < rounding


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("whole", [False, True])
def test_other_types_give_what_one_process_gives_in_them(kind, whole):
    torch.manual_seed(0)
    x, grad = torch.randn(8, 3, 4, 4).to(kind), torch.randn(8, 3, 4, 4).to(kind)
    norms = [
        nn.BatchNorm2d(3).to(kind if whole or kind == torch.float64 else torch.float32) for _ in range(3)
    ]
    one = x.clone().requires_grad_()
    norms[2](one).backward(grad)
    [sync_batch_norms(norm) for norm in norms[:2]]

    def half(rank):
        own = x[4 * rank : 4 * rank + 4].clone().requires_grad_()
        out = norms[rank](own)
        assert out.dtype == kind
        out.backward(grad[4 * rank : 4 * rank + 4])
        return own.grad

    with processes(2) as group:
        found = torch.cat(group.run(half))
    digits = 1e-10 if kind == torch.float64 else 0.02
    close(found, one.grad, digits)
    for name, buffer in norms[0].named_buffers():
        assert buffer.dtype == norms[2].get_buffer(name).dtype
        close(buffer.double(), norms[2].get_buffer(name).double(), digits)


def test_what_is_frozen_is_let_alone_and_all_is_as_it_was_afterwards():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval(), nn.GroupNorm(1, 3), BatchNormAct2d(3))
    kinds = [type(module) for module in net]
    sync_batch_norms(net)
    assert [sync_batchnorm.is_synced(module) for module in net] == [True, False, False, True]
    net.eval()
    net(torch.randn(2, 3, 4, 4))  # no group: nobody is asked
    unsync_batch_norms(net)
    assert [type(module) for module in net] == kinds


def test_a_norm_with_statistics_of_its_own_is_told():
    class Odd(nn.BatchNorm1d):
        def forward(self, x):
            return (x - x.mean(0)) / x.std(0)

    odd = Odd(3)
    sync_batch_norms(odd)
    with pytest.raises(TrainingError, match=r"Odd takes statistics .*sync_batchnorm: false"):
        odd(torch.randn(4, 3))


def test_blocks_that_are_computed_again_ask_the_others_again_and_count_a_batch_once():
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    nets = [nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh())) for _ in range(3)]
    [net.load_state_dict(nets[0].state_dict()) for net in nets]
    nets[2](x).square().cumsum(0).sum().backward()
    for net in nets[:2]:
        sync_batch_norms(net)
        assert enable_checkpointing(net) == 1
    weight = torch.arange(8, 0, -1)[:, None]  # of the sum of sums

    def half(rank):
        rows = slice(4 * rank, 4 * rank + 4)
        (nets[rank](x[rows]).square() * weight[rows]).sum().backward()

    with processes(2) as group:
        group.run(half)
    [(disable_checkpointing(net), unsync_batch_norms(net)) for net in nets[:2]]
    for one, two, whole in zip(*(net.parameters() for net in nets), strict=True):
        close(one.grad + two.grad, whole.grad, 1e-4)
    assert type(nets[0][0][1]) is nn.BatchNorm1d
    assert int(nets[0][0][1].num_batches_tracked) == 1
    close(nets[0][0][1].running_var, nets[2][0][1].running_var, 1e-5)


def test_compiled_code_asks_the_others():
    nets = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)) for _ in range(3)]
    [net.load_state_dict(nets[0].state_dict()) for net in nets]
    x = torch.randn(8, 6)
    sync_batch_norms(nets[0])
    nets[0].compile(backend="eager")
    with processes(1) as group:
        (found,) = group.run(lambda _: nets[0](x))
    close(found.detach(), nets[2](x).detach(), 1e-5)


def test_a_process_without_rows_takes_part_and_leaves_no_trace():
    from geobind.training.sync_batchnorm import dummy_pass

    torch.manual_seed(0)
    layers = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6).eval()
    )
    nets, x = [layers() for _ in range(3)], torch.randn(4, 6)
    [net.load_state_dict(nets[0].state_dict()) for net in nets]
    [sync_batch_norms(net) for net in nets[:2]]
    for net in nets:
        net[2].p = 0.0 if net is not nets[1] else 0.5
    nets[2](x).square().cumsum(0).sum().backward()

    def one(rank):
        if rank == 0:
            nets[0](x).square().cumsum(0).sum().backward()
            return
        before = torch.get_rng_state()
        with dummy_pass(nets[1]):
            found = nets[1](1e30 * torch.ones(1, 6))[:0].sum()
        assert torch.equal(before, torch.get_rng_state())
        assert [module.training for module in nets[1]] == [True, True, True, False]
        found.backward()

    with processes(2) as group:
        group.run(one)
    for there, none, whole in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(none.grad, torch.zeros_like(none)) if none.grad is not None else whole.grad is None
        close(there.grad, whole.grad, 1e-5)
    for net in nets[:2]:
        for name, buffer in net.named_buffers():
            close(buffer.double(), nets[2].get_buffer(name).double(), 1e-5)
