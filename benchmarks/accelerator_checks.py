"""Checks of a device: frozen weights, exact losses, precisions, batch norm, loading, embedding, compiling."""

# N pairs, B rows of a batch, C channels, D width

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data_speed import CLIP, ours, write_tiles
from losses import embeddings
from parts import Case, Deadline, Found, Setup, check
from stages import SMALL, TINY, Shape, Stage, run, states_of
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from geobind.training.losses import InfoNCE, SigLIP
from geobind.training.sync_batchnorm import sync_batch_norms
from geobind_satellite import Satellite

# Bounds on relative errors. float32 has 24 bits, TF32 multiplies with 11, bfloat16 has 8.
LOSS_BOUNDS = {"float32": 1e-5, "TF32": 2e-2, "bfloat16": 1e-2}
EMBED_BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}  # of the distance of unit vectors
NORM_BOUND = 1e-4
COMPILE_BOUND = 1e-3


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Multiply float32 matrices as float32 ("highest") or as TF32 ("high"), where a device has it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision == "high"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def checks(setup: Setup) -> Iterator[Case]:
    """Return the checks of a device but for compiling."""
    for precision in ("32-true", "bf16-mixed", "bf16-true", "16-mixed"):
        cuda = precision == "16-mixed"  # on a CPU Fabric takes bf16-mixed instead
        yield Case(f"frozen weights, {precision}", partial(frozen, setup, precision), needs_cuda=cuda)
    for name in ("InfoNCE", "SigLIP"):
        for kind in LOSS_BOUNDS:
            exact = partial(loss_is_exact, setup, name, kind)
            yield Case(f"{name} against float64, {kind}", exact, needs_cuda=kind == "TF32")
    for precision in ("bf16-mixed", "16-mixed"):
        cuda = precision == "16-mixed"
        yield Case(f"training in {precision}", partial(trains, setup, precision), needs_cuda=cuda)
    yield Case("shared batch norm", partial(batch_norm, setup), 3)
    for workers in (0, 2):
        yield Case(f"pinned loading, {workers} workers", partial(pinned, setup, workers), 3, needs_cuda=True)
    for kind in EMBED_BOUNDS:
        yield Case(f"Binder.embed, {kind}", partial(embeds, setup, kind), 5)


def frozen(setup: Setup, precision: str, _: Deadline) -> Found:
    """Check that a stage leaves its frozen tower as it was to the bit, and changes the trained one."""
    counts: dict[str, Any] = {}
    for cache in ("off", "auto"):
        stage = Stage(setup.device, 8, 8, rows=16, train=("one",), precision=precision, cache=cache)
        binder = stage.binder()
        before = states_of(binder.encoders)
        counts["cached"] = run(stage, binder).outcome.cached
        after = states_of(binder.encoders)
        # As bytes: NaN would not be equal to itself.
        changed = {key for key in before if not torch.equal(_bytes(before[key]), _bytes(after[key]))}
        still = {key for key in before if key.startswith("two.")}
        check(after.keys() == before.keys(), "the stage changed the names of weights")
        check(not changed & still, f"cache {cache}: frozen tensors changed: {', '.join(changed & still)}")
        check(bool(changed), f"cache {cache}: nothing was trained")
        counts[cache] = {"frozen": len(still), "trained": len(before) - len(still), "changed": len(changed)}
    plain = counts["off"]
    text = f"{plain['frozen']} frozen tensors bit-equal, "
    text += f"{plain['changed']} of {plain['trained']} others changed"
    # In bf16-true nothing is cached.
    return Found(text + ("; so too with the cache" if counts["cached"] else ""), counts)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def loss_is_exact(setup: Setup, name: str, kind: str, _: Deadline) -> Found:
    """Check a tiled loss and its gradients against the whole matrix in float64, from the same embeddings."""
    n, d = (1_100, 32) if setup.small else (5_000, 512)  # several tiles, and the last ones not full
    loss: Any = {"InfoNCE": InfoNCE, "SigLIP": SigLIP}[name]().to(setup.device)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    sides = [side.to(setup.device, dtype).requires_grad_() for side in embeddings(n, d)]
    with float32_products("high" if kind == "TF32" else "highest"):
        value = loss(*sides)
        value.backward()
    given = [*sides, *loss.parameters()]
    exact = [one.detach().double().requires_grad_() for one in given]
    whole = (dense_infonce if name == "InfoNCE" else dense_siglip)(*exact)
    whole.backward()
    names = ("anchor", "other", *(key.rpartition(".")[2] for key, _ in loss.named_parameters()))
    value, whole = float(value.detach()), float(whole.detach())
    errors = {"value": abs(value - whole) / abs(whole)}
    for key, one, other in zip(names, given, exact, strict=True):
        errors[key] = float((one.grad.double() - other.grad).norm() / other.grad.norm())
    worst, bound = max(errors.values()), LOSS_BOUNDS[kind]
    listed = ", ".join(f"{key} {error:.0e}" for key, error in errors.items())
    text = f"N {n:,}, D {d}: relative errors {listed} (bound {bound:.0e})"
    check(worst <= bound, text)
    return Found(text, {**errors, "bound": bound})


def dense_infonce(anchor_ND: Tensor, other_ND: Tensor, log_scale: Tensor) -> Tensor:
    """Return the symmetric InfoNCE of all similarities at once."""
    logits_NN, own_N = log_scale.exp() * anchor_ND @ other_ND.T, torch.arange(len(anchor_ND))
    own_N = own_N.to(logits_NN.device)
    return (F.cross_entropy(logits_NN, own_N) + F.cross_entropy(logits_NN.T, own_N)) / 2


def dense_siglip(anchor_ND: Tensor, other_ND: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """Return the SigLIP loss of all similarities at once."""
    logits_NN = log_scale.exp() * anchor_ND @ other_ND.T + bias
    sign_NN = 2 * torch.eye(len(anchor_ND), dtype=logits_NN.dtype, device=logits_NN.device) - 1
    return -F.logsigmoid(sign_NN * logits_NN).sum() / len(anchor_ND)


def trains(setup: Setup, precision: str, _: Deadline) -> Found:
    """Check that a stage learns in a precision, and that the state of its gradient scaler is finite."""
    stage = Stage(setup.device, 32, 40, rows=64, width=32, precision=precision, host=True, rate=1e-3)
    ran = run(stage, stage.binder(), every=10)
    first, last = (statistics.fmean(part) for part in (ran.losses[:5], ran.losses[-5:]))
    figures: dict[str, Any] = {"first": first, "last": last}
    check(all(map(math.isfinite, ran.losses)), "a loss is not finite")
    text = f"loss {first:.3f} to {last:.3f} in {len(ran.losses)} steps"
    check(last < 0.8 * first, f"the loss does not fall: {text}")
    scaler = getattr(ran.fabric.strategy.precision, "scaler", None)
    if precision == "16-mixed":
        check(scaler is not None, "Fabric has no gradient scaler")
        state = scaler.state_dict()
        sound = all(math.isfinite(value) for value in state.values()) and state["scale"] > 0
        check(sound, f"the scaler's state is {state}")
        figures["scaler"] = state
        text += f"; gradient scale {state['scale']:g}"
    return Found(text, figures)


def batch_norm(setup: Setup, _: Deadline) -> Found:
    """Check the batch norm of several processes against the plain one, in a group of one process."""
    cuda = setup.device == "cuda"
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).to(setup.device).train()
    shared = copy.deepcopy(plain)
    x = torch.randn(16, 3, 12, 12, device=setup.device)
    up = torch.randn(16, 8, 10, 10, device=setup.device)
    dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sync_batch_norms(shared, fused=cuda)
        results = []
        with float32_products("highest"):
            for network in (plain, shared):
                x.grad = None
                out = network(x.requires_grad_())
                out.backward(up)
                weights = {f"gradient of {key}": p.grad for key, p in network.named_parameters()}
                buffers = {key: b for key, b in network.named_buffers() if b.is_floating_point()}
                found = {"output": out, "gradient of input": x.grad, **weights, **buffers}
                results.append({key: value.detach().clone() for key, value in found.items()})
    finally:
        dist.destroy_process_group()
    # The convolution's bias is taken off again by the mean: its gradient is zero but for rounding.
    errors = {
        key: float((results[1][key] - value).abs().max() / value.abs().max())
        for key, value in results[0].items()
        if key != "gradient of 0.bias"
    }
    worst = max(errors, key=lambda key: errors[key])
    kernel = "torch's kernel, NCCL" if cuda else "geobind's, gloo"
    text = f"{kernel}: largest relative difference from plain batch norm {errors[worst]:.0e}, of {worst}"
    text += f" (bound {NORM_BOUND:.0e})"
    check(errors[worst] <= NORM_BOUND, text)
    return Found(text, {"errors": errors, "bound": NORM_BOUND})


def tiles(setup: Setup, count: int, side: int) -> Path:
    """Return the manifest of JPEG tiles, which the first call writes."""
    folder = setup.folder / f"tiles{count}"
    if not folder.exists():
        folder.mkdir()
        write_tiles(folder, count, side)
    return folder / "manifest.csv"


def satellite(size: int | None = None) -> dict[str, Any]:
    """Return a modality that decodes tiles and takes random crops."""
    clip = CLIP if size is None else {**CLIP, "model": {**CLIP["model"], "vision_cfg": _vision(size)}}
    return {"satellite": Satellite(clip=clip, augment={"random_resized_crop": [0.5, 1], "hflip": True})}


def _vision(size: int) -> dict[str, Any]:
    return {**CLIP["model"]["vision_cfg"], "image_size": size, "patch_size": size // 2}


def pinned(setup: Setup, workers: int, _: Deadline) -> Found:
    """Check that batches come in pinned memory, and reach the device as they were while it works."""
    batches = ours(tiles(setup, 24, 64), satellite(32), batch=8, workers=workers)
    plain = ours(tiles(setup, 24, 64), satellite(32), batch=8)
    count = 0
    for (_, one, _), (_, other, _) in zip(batches(0), plain(0), strict=True):
        image, same = one["satellite"], other["satellite"]
        check(image.is_pinned(), "a batch is not in pinned memory")
        there = image.to(setup.device, non_blocking=True)
        check(torch.equal(there.cpu(), same), "a batch is not the same on the device")
        count += 1
    return Found(f"{count} batches pinned, and the same on the device", {"batches": count})


def embeds(setup: Setup, kind: str, _: Deadline) -> Found:
    """Check that embeddings on the device are those of the CPU in float32."""
    shape = TINY if setup.small else Shape()
    count = 16 if setup.small else 64
    binder = Stage("cpu", 2, 1, shape=shape).binder()
    cast = torch.autocast(setup.device, torch.bfloat16) if kind == "bfloat16" else nullcontext()
    with float32_products("highest"):
        exact_BD = binder.embed("one", list(range(count)))
        binder.to(setup.device)
        with cast:
            there_BD = binder.embed("one", list(range(count)))
    distance, bound = float((there_BD - exact_BD).norm(dim=1).max()), EMBED_BOUNDS[kind]
    text = f"largest distance of {count} unit embeddings from the CPU's float32 {distance:.0e}"
    text += f" (bound {bound:.0e})"
    check(distance <= bound, text)
    return Found(text, {"distance": distance, "bound": bound})


def compiled(setup: Setup) -> Iterator[Case]:
    """Return the checks of compiled encoders."""
    plain: list[float] = []

    def losses(mode: str | bool) -> list[float]:
        small = setup.small
        shape = Shape(size=16, patch=8, width=16, layers=1, heads=2) if small else SMALL
        rows = 8 if small else 32
        stage = Stage(setup.device, rows, 6, shape=shape, width=32, compile=mode, host=True)
        with float32_products("highest"):
            return run(stage, stage.binder()).losses

    def compare(mode: str, _: Deadline) -> Found:
        if not plain:
            plain.extend(losses(False))
        # Inductor's C++ compiler takes a minute or more on a CPU: there the small mode stops before it.
        backend = "aot_eager" if setup.small else None
        with torch.compiler.set_stance("default", force_backend=backend):
            found = losses(mode)
        apart = max(abs(one - other) / abs(other) for one, other in zip(found, plain, strict=True))
        text = f"{backend or 'inductor'}: losses of {len(plain)} steps differ by {apart:.0e}"
        text += f" (bound {COMPILE_BOUND:.0e})"
        check(apart <= COMPILE_BOUND, text)
        return Found(text, {"difference": apart, "bound": COMPILE_BOUND})

    for mode in ("default", "reduce-overhead"):
        cuda = mode == "reduce-overhead"  # CUDA graphs
        yield Case(mode, partial(compare, mode), 1 if setup.small else 15, needs_cuda=cuda)
