"""The type that encoders compute in: chosen by time and likeness, kept apart from the weights."""

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from toy import Left, Right, view

from geobind import precision
from geobind.binder import Binder
from geobind.errors import DataError
from geobind.precision import Lowering, choose_precision, float32_attention
from geobind.utils.system import hash_module

LEFTS = [view(i, "left") for i in range(20)]


class Tolerant(Left):
    """Its encoder takes its input in whatever type its weights have."""

    def encoder(self, width, *, pretrained=True):
        net = super().encoder(width)
        net.register_forward_pre_hook(lambda module, args: (args[0].to(module.head.weight.dtype),))
        return net


@pytest.fixture
def binder():
    return Binder({"left": Tolerant(), "right": Right()}, 8, seed=0)


def clock(monkeypatch, low):
    """Make bfloat16 take `low` of the time of float32."""
    took = {torch.float32: 1.0, torch.bfloat16: low}
    monkeypatch.setattr(precision, "_time", lambda call, device: took[call.__defaults__[0].head.weight.dtype])


def test_float32_is_the_default_and_leaves_no_choice(binder):
    binder.embed("left", LEFTS)
    assert binder.precision == "float32" and binder.precisions == {}


def test_auto_takes_bfloat16_where_it_is_faster(binder, monkeypatch):
    clock(monkeypatch, 0.5)
    exact = binder.embed("left", LEFTS)
    embedding_ND = binder.embed("left", LEFTS, precision="auto")
    choice = binder.precisions["left"]
    assert choice.dtype == "bfloat16" and choice.rows == 12
    assert choice.reason == "0.50 of float32's time on this cpu"
    assert choice.cosine == pytest.approx(float((exact * embedding_ND).sum(1)[:12].min()), abs=1e-6)
    assert embedding_ND.dtype == torch.float32 and not torch.equal(exact, embedding_ND)


def test_auto_stays_in_float32_to_the_bit_where_bfloat16_is_no_faster(binder, monkeypatch):
    clock(monkeypatch, 0.95)
    assert torch.equal(binder.embed("left", LEFTS, precision="auto"), binder.embed("left", LEFTS))
    assert binder.precisions["left"].reason == "bfloat16 takes 0.95 of its time on this cpu"


def test_auto_stays_in_float32_where_embeddings_would_differ(binder, monkeypatch):
    clock(monkeypatch, 0.1)
    monkeypatch.setattr(precision, "_ALIKE", 2)
    assert torch.equal(binder.embed("left", LEFTS, precision="auto"), binder.embed("left", LEFTS))
    assert "below 2" in binder.precisions["left"].reason


def test_auto_stays_in_float32_for_an_encoder_that_cannot_compute_in_bfloat16(binder, monkeypatch):
    clock(monkeypatch, 0.1)
    rights = [view(i, "right") for i in range(20)]
    assert torch.equal(binder.embed("right", rights, precision="auto"), binder.embed("right", rights))
    assert "does not compute in bfloat16" in binder.precisions["right"].reason
    with pytest.raises(DataError, match="precision bfloat16 of 'right': its encoder does not compute in"):
        binder.embed("right", rights, precision="bfloat16")


def test_fewer_than_twelve_inputs_are_float32_and_decide_nothing(binder, monkeypatch):
    clock(monkeypatch, 0.5)
    assert torch.equal(binder.embed("left", LEFTS[:11], precision="auto"), binder.embed("left", LEFTS[:11]))
    binder.embed("left", LEFTS, precision="auto")
    assert binder.precisions["left"].dtype == "bfloat16"


def test_every_batch_of_a_call_has_the_type_of_the_first(binder, monkeypatch):
    clock(monkeypatch, 0.5)
    parts = binder.embed("left", LEFTS, batch_size=16, precision="auto")
    assert torch.allclose(parts, binder.embed("left", LEFTS, precision="bfloat16"), atol=1e-3)
    assert not torch.allclose(parts[16:], binder.embed("left", LEFTS)[16:], atol=1e-6)


def test_what_auto_chose_is_chosen_once_and_again_when_weights_change(binder, monkeypatch):
    asked = []

    def count(encoder, lowered, batch):
        asked.append(hash_module(encoder))
        return choose_precision(encoder, lowered, batch)

    clock(monkeypatch, 0.5)
    monkeypatch.setattr(precision, "choose_precision", count)
    for _ in range(2):
        binder.embed("left", LEFTS, precision="auto")
    assert len(asked) == 1
    with torch.no_grad():
        binder.encoders["left"].head.weight.mul_(-1)
    turned = binder.embed("left", LEFTS, precision="auto")
    assert len(set(asked)) == len(asked) == 2
    assert torch.cosine_similarity(turned, binder.embed("left", LEFTS)).min() > 0.999


def test_weights_digests_and_saved_bundles_stay_float32(binder, tmp_path):
    before = hash_module(binder.encoders["left"])
    binder.precision = "bfloat16"
    binder.embed("left", LEFTS)
    assert hash_module(binder.encoders["left"]) == before
    assert {tensor.dtype for tensor in binder.state_dict().values()} == {torch.float32, torch.int64}
    assert "bfloat16" in repr(binder)


def test_a_precision_that_there_is_not_is_refused(binder, tmp_path):
    with pytest.raises(DataError, match="precision must be float32, bfloat16, int8, auto, not 'half'"):
        binder.embed("left", LEFTS, precision="half")
    with pytest.raises(DataError, match="precision must be"):
        Binder.load(tmp_path, precision="half")


def test_not_a_number_in_bfloat16_is_no_likeness(binder, monkeypatch):
    clock(monkeypatch, 0.1)
    monkeypatch.setattr(precision, "unit", lambda raw_BD: raw_BD.float() * float("nan"))
    lowering = Lowering()
    batch = torch.randn(12, 10)
    with torch.no_grad():
        assert lowering.take("left", binder.encoders["left"], batch, "auto") is binder.encoders["left"]
    assert lowering.choices["left"].dtype == "float32"


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (None, {}),
        (torch.full((5, 5), float("-inf")).triu(1), {"scale": 0.5}),
        (torch.ones(5, 5, dtype=torch.bool).tril(), {}),
        (None, {"is_causal": True}),
    ],
)
def test_attention_under_a_cpus_autocast_is_computed_in_float32_and_goes_on_in_bfloat16(mask, options):
    drawn = torch.Generator().manual_seed(0)
    low = [torch.randn(2, 4, 5, 8, generator=drawn).bfloat16().requires_grad_() for _ in range(3)]
    exact = [tensor.detach().float().requires_grad_() for tensor in low]
    attend = functional.scaled_dot_product_attention
    expected = attend(*exact, mask, **options)
    with float32_attention(), torch.autocast("cpu", torch.bfloat16):
        found = attend(*low, mask, **options)
    for value in (expected, found):
        value.float().sum().backward()
    assert torch.equal(found, expected.bfloat16())
    assert all(torch.equal(one.grad, two.grad.bfloat16()) for one, two in zip(low, exact, strict=True))


def test_the_rule_for_attention_reaches_into_modules_and_ends_with_its_block(monkeypatch):
    seen = []

    def spy(query, *_, **__):
        seen.append(query.dtype)
        return query

    monkeypatch.setattr(precision, "_attend_in_float32", spy)
    layer, x = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        with float32_attention():
            layer(x, x, x, need_weights=False)
        layer(x, x, x, need_weights=False)
    assert seen == [torch.bfloat16]


def test_attention_in_float32_trains_through_checkpointed_blocks():
    block = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, 8)
    grads = []
    for again in (False, True):
        block.zero_grad()
        with float32_attention():
            with torch.autocast("cpu", torch.bfloat16):
                out = checkpoint(block, x, use_reentrant=False) if again else block(x)
            out.float().square().mean().backward()
        grads.append([one.grad.clone() for one in block.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))
