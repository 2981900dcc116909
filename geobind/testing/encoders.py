"""The half of the contract about the encoder: what embeddings are, what they depend on, and its weights."""

# B inputs of a batch, D width

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from itertools import combinations
from typing import TYPE_CHECKING
from unittest import SkipTest

import torch
from torch import Tensor, nn

from geobind.errors import GeobindError
from geobind.testing.instruments import (
    build,
    collate,
    contents,
    difference,
    distance,
    embed,
    encode,
    layout,
    reaches_outside,
)
from geobind.testing.subject import Subject, fail

if TYPE_CHECKING:
    from geobind.modality import Prepared

# Distances between embeddings of unit length. In a batch of another size floats add up in another order,
# which moves an embedding a little.
_ALIKE = 1e-5
_MOVED = 1e-4


class EncoderContract(Subject):
    """Promises about `encoder` and the embeddings it makes."""

    def test_embeds_to_any_width(self) -> None:
        """The encoder returns float (B, width), also for one input; a width it cannot make, it refuses."""
        prepared = self.prepared()
        batches = {1: collate(prepared[:1]), len(prepared): collate(prepared)}
        for width in (self.width, self.width + 8):
            try:
                encoder = build(self.modality, width)
            except GeobindError:
                if width == self.width:
                    raise
                continue
            for count, batch in batches.items():
                with torch.no_grad():
                    output = encoder(batch)
                if not isinstance(output, Tensor):
                    fail(f"the encoder returns {type(output).__name__}", "return one tensor")
                if output.shape != (count, width) or not output.is_floating_point():
                    fault = f"encoder(width={width}) maps {count} inputs to {layout(output)}"
                    fail(fault, f"return float ({count}, {width}), whatever the batch size")

    def test_embeddings_are_finite(self) -> None:
        """No embedding holds NaN or infinity: one would spoil its whole batch."""
        with torch.no_grad():
            output = encode(self.build(), self.prepared())
        if not output.isfinite().all():
            fail("embeddings hold NaN or infinity", "look for a division by zero or the logarithm of zero")

    def test_different_inputs_embed_differently(self) -> None:
        """Inputs that differ embed apart, once the binder has brought them to unit length."""
        if pair := _alike(embed(self.build(), self.prepared())):
            fault = f"raws[{pair[0]}] and raws[{pair[1]}] embed alike"
            fail(fault, "let prepare keep what differs, and the encoder read it")

    def test_long_inputs_keep_their_end(self) -> None:
        """The last thing that `prepare` promises to keep of a long input reaches the embedding."""
        if len(self.long_raws) < 2:
            raise SkipTest("set long_raws if inputs can be longer than the encoder takes")
        short, long = self.prepared(), [self.modality.prepare(raw) for raw in self.long_raws]
        embedding_BD = embed(self.build(), [*short, *long])
        if _alike(embedding_BD[: len(short)]):
            raise SkipTest("nothing to judge by: see test_different_inputs_embed_differently")
        if pair := _alike(embedding_BD[len(short) :]):
            fault = f"long_raws[{pair[0]}] and long_raws[{pair[1]}] embed alike"
            fail(fault, "pool, or truncate and keep the end-of-text token, if the encoder reads there")

    def test_batch_mates_do_not_matter(self) -> None:
        """An input embeds alone as it does in a batch: no result depends on the batch size."""
        encoder, prepared = self.build(), self.prepared()
        together_BD = self._embed_steadily(encoder, prepared)
        for index, one in enumerate(prepared):
            if distance(embed(encoder, [one]), together_BD[index : index + 1]) > _MOVED:
                fault = f"raws[{index}] embeds differently alone than in a batch"
                fail(fault, "reduce over no batch axis; in eval mode, normalise by running statistics")

    def test_evaluation_is_repeatable(self) -> None:
        """In eval mode the same batch always embeds alike."""
        encoder, prepared = self.build(), self.prepared()
        if distance(embed(encoder, prepared), embed(encoder, prepared)) > _ALIKE:
            fail("a batch embeds differently each time", "F.dropout needs training=self.training")

    def test_evaluation_changes_nothing(self) -> None:
        """Embedding in eval mode leaves every weight and buffer as it was: a frozen encoder stays frozen."""
        encoder = self.build()
        before = contents(encoder)
        embed(encoder, self.prepared())
        after = contents(encoder)
        changed = [name for name in after if name not in before or difference(after[name], before[name])]
        if changed:
            fail(f"forward in eval mode changes {_some(changed)}", "update state only in training")

    def test_a_gradient_reaches_every_weight(self) -> None:
        """Every parameter that asks for a gradient gets one: others never learn, and stop DDP training."""
        encoder = self.build()
        weights = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
        if not weights:
            if self.modality.role == "trainable":
                fail("role is 'trainable' but no parameter asks for a gradient", "declare role = 'frozen'")
            raise SkipTest("there is nothing to train")
        _shake(weights.values())
        output = encode(encoder, self.prepared())
        if not output.requires_grad:
            fail("embeddings are cut off from every weight", "use no no_grad(), detach() or .data in forward")
        (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
        missed = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()]
        missed = [name for name in missed if not any(fnmatch(name, pattern) for pattern in self.unused)]
        if missed:
            fail(f"no gradient reaches {_some(missed)}", "use it, remove it, or name it in `unused`")

    def test_builds_without_weights_or_network(self) -> None:
        """`pretrained=False` reads no weights and asks no host: bundles load where there are neither."""
        if attempt := reaches_outside(self.build):
            fail(f"encoder(pretrained=False) {attempt}", "build the architecture alone")

    def test_weights_reload(self) -> None:
        """The state dict is all there is: a second encoder that loads it embeds exactly alike."""
        first, second = self.build(), self.build(seed=1)
        second.load_state_dict(first.state_dict())
        prepared = self.prepared()
        if distance(self._embed_steadily(first, prepared), embed(second, prepared)) > _ALIKE:
            fault = "an encoder that loads another's state_dict embeds differently"
            fail(fault, "register what embeddings depend on as parameters or persistent buffers")

    def _embed_steadily(self, encoder: nn.Module, prepared: Sequence[Prepared]) -> Tensor:
        embedding_BD = embed(encoder, prepared)
        if distance(embedding_BD, embed(encoder, prepared)) > _ALIKE:
            raise SkipTest("nothing to compare with: see test_evaluation_is_repeatable")
        return embedding_BD


def _alike(embedding_BD: Tensor) -> tuple[int, int] | None:
    pairs = combinations(range(len(embedding_BD)), 2)
    return next((pair for pair in pairs if distance(*embedding_BD[list(pair)]) < _ALIKE), None)


def _shake(weights: Iterable[nn.Parameter]) -> None:
    """Move every weight a little: one that starts at zero hides the gradient of all that comes before it."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for weight in weights:
            weight.add_(torch.randn_like(weight), alpha=0.02)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
