"""The contract of modalities as tests of inputs, encoders and batches."""

# B inputs of a batch, D width

from __future__ import annotations

import copy
import reprlib
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import SkipTest

import numpy as np
import torch
from torch import Tensor, nn

from geobind import plugins
from geobind.errors import GeobindError, PluginError
from geobind.modality import Content, Modality
from geobind.testing import instruments
from geobind.testing.instruments import (
    build,
    collate,
    contents,
    difference,
    distance,
    embed,
    encode,
    imports_torch,
    layout,
    prepare_in_a_worker,
    reaches_outside,
)

if TYPE_CHECKING:
    from geobind.modality import Prepared


class Subject:
    """The modality under test and inputs to test it with."""

    modality: Modality
    """The modality, with the options to test."""

    raws: Sequence[Any] = ()
    """At least two valid raw inputs that differ as observations do."""

    bad_raws: Sequence[Any] = ()
    """Inputs that `prepare` must refuse; `object()` is always tried."""

    long_raws: Sequence[Any] = ()
    """Two or more inputs longer than the encoder takes, which differ only in the last thing it keeps."""

    width: int = 32
    """Length of the shared space to test with."""

    unused: Sequence[str] = ()
    """Patterns (of fnmatch) for the names of parameters that no gradient is meant to reach."""

    one_layout: bool = True
    """Whether inputs have one shape with and without training; False where evaluation sees several crops."""

    entry_point: bool = True
    """Whether the plugin is installed; False tests a class before it is packaged."""

    files: Sequence[Path | str | bytes] = ()
    """Files of valid observations, or the bytes of such files, where `prepare` takes files."""

    def prepared(self) -> list[Prepared]:
        """Prepare every valid input, as for evaluation."""
        return [self.modality.prepare(raw) for raw in self.valid()]

    def valid(self) -> Sequence[Any]:
        """Return the valid inputs.

        Raises:
            PluginError: There are fewer than two, which tell nothing apart.
        """
        if len(self.raws) < 2:
            raise PluginError(f"{type(self).__name__}.raws needs two valid inputs or more, that differ")
        return self.raws

    def build(self, *, seed: int = 0) -> nn.Module:
        """Build the encoder without weights, in evaluation mode."""
        return instruments.build(self.modality, self.width, seed=seed)


def fail(fault: str, fix: str) -> NoReturn:
    """Fail a test of the contract with what is wrong and how to mend it."""
    raise AssertionError(f"{fault}\n  fix: {fix}")


class InputContract(Subject):
    """Promises about the class, its options and `prepare`."""

    def test_is_found_by_its_entry_point(self) -> None:
        """The installed plugin provides this very class under its name."""
        cls = type(self.modality)
        if fault := plugins.MODALITY.find_fault(cls):
            fail(fault, "mend the class; geobind.Modality says what it needs")
        if not self.entry_point:
            raise SkipTest("entry_point = False")
        registry = plugins.MODALITY.collect(plugins.list_entry_points())
        line = f'[project.entry-points.{plugins.GROUP}] {cls.name} = "{cls.__module__}"'
        if cls.name not in registry.plugins:
            fail(registry.explain(cls.name), f"add {line} to pyproject.toml, and install it again")
        found, source = registry.plugins[cls.name]
        if found is not cls:
            fault = f"'{cls.name}' of {source} is another class, {found.__module__}.{found.__qualname__}"
            fail(fault, f"{line} must lead to {cls.__module__}.{cls.__qualname__}; uninstall old copies")

    def test_imports_without_torch(self) -> None:
        """Importing the plugin is cheap: every command imports every plugin, and torch takes seconds."""
        module = type(self.modality).__module__
        if imports_torch(module, tuple(sys.path)):
            fail(f"importing {module} imports torch", "import it, and what needs it, inside the methods")

    def test_options_survive_json(self) -> None:
        """Options come back from a bundle as they went in: through JSON."""
        again = type(self.modality).model_validate_json(self.modality.model_dump_json())
        for option in type(again).model_fields:
            before, after = getattr(self.modality, option), getattr(again, option)
            if before != after:
                fault = f"option '{option}' goes into JSON as {before!r} and comes back as {after!r}"
                fail(fault, "give it a type that JSON can hold, and do not exclude it")

    def test_prepare_is_repeatable(self) -> None:
        """Without `training=True` an input is always prepared alike, so that it can be cached."""
        for index, raw in enumerate(self.valid()):
            first = copy.deepcopy(self.modality.prepare(raw))
            self.modality.prepare(raw, training=True)
            if change := difference(self.modality.prepare(raw), first):
                fault = f"prepare(raws[{index}]) gives another result the second time ({change})"
                fail(fault, "augment only in training; change neither the input nor globals")

    def test_prepares_alike_in_a_worker(self) -> None:
        """Data loaders pickle the modality into worker processes, which prepare what this process would."""
        in_this_process = self.prepared()
        if difference(self.prepared(), in_this_process):
            raise SkipTest("nothing to compare with: see test_prepare_is_repeatable")
        if type(self.modality).__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
            raise SkipTest("a class of a notebook cell reaches forked workers alone, not a fresh process")
        try:
            in_worker = prepare_in_a_worker(self.modality, self.valid())
        except Exception as error:
            fault = f"the modality does not work in a worker process ({type(error).__name__}: {error})"
            fail(fault, "define its class at the top of a module; keep no function, lock or open file in it")
        if change := difference(in_worker, in_this_process):
            fault = f"a worker process prepares another result ({change})"
            fail(fault, "use the input and the options alone: no globals, no hash() of a str, no random seed")

    def test_prepares_a_file_alike_however_it_is_given(self) -> None:
        """A file is prepared alike as a path and as its bytes; as a string too, where words are not meant."""
        if not self.files:
            raise SkipTest("set files if prepare takes files")
        with TemporaryDirectory() as folder:
            for number, file in enumerate(self.files):
                if isinstance(file, bytes):
                    path = Path(folder) / f"files[{number}]"
                    path.write_bytes(file)
                    file = path
                self._compare_kinds(Path(file))

    def _compare_kinds(self, file: Path) -> None:
        content = file.read_bytes()
        given: dict[str, Any] = {"Path": file, "bytes": content, "Content": Content(content, file.name)}
        if self.modality.widget != "text":
            given["str"] = str(file)
        expected: Prepared | None = None
        for kind, raw in given.items():
            try:
                result = self.modality.prepare(raw)
            except Exception as error:
                fault = f"prepare refuses {file.name} as {kind} ({type(error).__name__}: {error})"
                fail(fault, "open what is given with geobind.data.open_binary, which takes all of them")
            expected = result if expected is None else expected
            if change := difference(result, expected):
                fault = f"prepare makes something else of {file.name} as {kind} than as Path ({change})"
                fail(fault, "read the content, whatever holds it; bytes may have no name")

    def test_a_picture_is_one_that_can_be_shown(self) -> None:
        """`picture` returns an image, an array of one, a sound with its rate, words, or None."""
        from PIL.Image import Image

        for index, raw in enumerate(self.valid()):
            shown: Any = self.modality.picture(raw)
            sound = isinstance(shown, tuple) and len(shown) == 2 and isinstance(shown[0], np.ndarray)
            array = isinstance(shown, np.ndarray) and shown.ndim in (2, 3)
            if not (sound or array or isinstance(shown, Image | str | None)):
                fault = f"picture(raws[{index}]) returns {reprlib.repr(shown)}"
                fail(fault, "return a PIL image, an array (H, W) or (H, W, C), (array, rate), a str, or None")

    def test_prepared_inputs_share_one_layout(self) -> None:
        """Prepared inputs are tensors, or dicts of them, of one shape and dtype: a batch is a plain stack."""
        raws = {f"raws[{index}]": raw for index, raw in enumerate(self.valid())}
        raws |= {f"long_raws[{index}]": raw for index, raw in enumerate(self.long_raws)}
        calls_by_layout: dict[bool, dict[str, str]] = {False: {}, True: {}}
        for name, raw in raws.items():
            for call, training in ((f"prepare({name})", False), (f"prepare({name}, training=True)", True)):
                layouts = calls_by_layout[training and not self.one_layout]
                try:
                    layouts.setdefault(layout(self.modality.prepare(raw, training=training)), call)
                except TypeError as error:
                    fail(f"{call} returns {error}", "return a tensor, or a dict of tensors")
        for layouts in calls_by_layout.values():
            if len(layouts) > 1:
                fault = ", ".join(f"{call} returns {shape}" for shape, call in layouts.items())
                fail(fault, "resize, crop or pad every input to one shape, with and without training")

    def test_refuses_bad_input_with_a_geobind_error(self) -> None:
        """Refuse unreadable input with a message for people, not a traceback."""
        raws = {f"bad_raws[{index}]": raw for index, raw in enumerate(self.bad_raws)} | {"object()": object()}
        for name, raw in raws.items():
            try:
                self.modality.prepare(raw)
            except GeobindError as error:
                if not str(error):
                    fail(
                        f"prepare({name}) refuses without a word",
                        "name the input, what is wrong, and the fix",
                    )
            except Exception as error:
                fault = f"prepare({name}) raises {type(error).__name__}, which is no GeobindError"
                fail(fault, "raise geobind.errors.DataError, naming the input, what is wrong, and the fix")
            else:
                fail(f"prepare({name}) accepts {reprlib.repr(raw)}", "raise geobind.errors.DataError")


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
            if self.modality.role == "trainable" and any(True for _ in encoder.parameters()):
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


class ModalityContract(InputContract, EncoderContract):
    """Every promise a modality keeps, one test each: inherit it as `class TestX(ModalityContract)`.

    Fill in `modality` and `raws`, and what else applies (see `Subject`). Encoders are built with
    `pretrained=False`, so nothing is downloaded; give `modality` small options to keep the tests fast.
    A promise that cannot be judged, since another is broken or a field is empty, is skipped with the reason.
    """


TESTS = tuple(
    name for half in (InputContract, EncoderContract) for name in vars(half) if name.startswith("test_")
)


def check_modality(
    modality: Modality,
    raws: Sequence[Any],
    *,
    bad_raws: Sequence[Any] = (),
    long_raws: Sequence[Any] = (),
    files: Sequence[Path | str | bytes] = (),
    width: int = 32,
    unused: Sequence[str] = (),
    one_layout: bool = True,
    entry_point: bool = True,
) -> list[str]:
    """Run the contract without pytest; return its faults: for each the test, what is wrong and the fix.

    It starts a process: in a script, call it under `if __name__ == "__main__":`.

    Args:
        modality: The modality, with the options to test.
        raws: At least two valid raw inputs that differ as observations do.
        bad_raws: Inputs that `prepare` must refuse.
        long_raws: Inputs longer than the encoder takes, which differ only in the last thing it keeps.
        files: Files of valid observations, or the bytes of such files, where `prepare` takes files.
        width: Length of the shared space to test with.
        unused: Patterns for the names of parameters that no gradient is meant to reach.
        one_layout: Whether inputs have one shape with and without training.
        entry_point: Whether the plugin is installed.
    """
    contract = ModalityContract()
    contract.modality, contract.raws = modality, raws
    contract.bad_raws, contract.long_raws = bad_raws, long_raws
    contract.one_layout, contract.files = one_layout, files
    contract.width, contract.unused, contract.entry_point = width, unused, entry_point
    faults: list[str] = []
    for test in TESTS:
        try:
            getattr(contract, test)()
        except SkipTest:
            continue
        except AssertionError as fault:
            faults.append(f"{test}: {fault}")
        except Exception as error:
            faults.append(f"{test}: {type(error).__name__}: {error}")
    return faults
