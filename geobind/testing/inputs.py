"""The half of the contract that needs no encoder: the plugin is found, is cheap, and prepares faithfully."""

from __future__ import annotations

import copy
import reprlib
import sys
from unittest import SkipTest

from geobind import plugins
from geobind.errors import GeobindError
from geobind.testing.instruments import difference, imports_torch, layout, prepare_in_a_worker
from geobind.testing.subject import Subject, fail


class InputContract(Subject):
    """Promises about the class, its options and `prepare`."""

    def test_is_found_by_its_entry_point(self) -> None:
        """The installed plugin provides this very class under its name."""
        cls = type(self.modality)
        if fault := plugins.check(cls):
            fail(fault, "mend the class; geobind.Modality says what it needs")
        if not self.entry_point:
            raise SkipTest("entry_point = False")
        registry = plugins.collect(plugins.find())
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
        here = self.prepared()
        if difference(self.prepared(), here):
            raise SkipTest("nothing to compare with: see test_prepare_is_repeatable")
        try:
            there = prepare_in_a_worker(self.modality, self.valid())
        except Exception as error:
            fault = f"the modality does not work in a worker process ({type(error).__name__}: {error})"
            fail(fault, "define its class at the top of a module; keep no function, lock or open file in it")
        if change := difference(there, here):
            fault = f"a worker process prepares another result ({change})"
            fail(fault, "use the input and the options alone: no globals, no hash() of a str, no random seed")

    def test_prepared_inputs_share_one_layout(self) -> None:
        """Prepared inputs are tensors, or dicts of them, of one shape and dtype: a batch is a plain stack."""
        raws = {f"raws[{index}]": raw for index, raw in enumerate(self.valid())}
        raws |= {f"long_raws[{index}]": raw for index, raw in enumerate(self.long_raws)}
        found: dict[bool, dict[str, str]] = {False: {}, True: {}}
        for name, raw in raws.items():
            for call, training in ((f"prepare({name})", False), (f"prepare({name}, training=True)", True)):
                layouts = found[training and not self.one_layout]
                try:
                    layouts.setdefault(layout(self.modality.prepare(raw, training=training)), call)
                except TypeError as error:
                    fail(f"{call} returns {error}", "return a tensor, or a dict of tensors")
        for layouts in found.values():
            if len(layouts) > 1:
                fault = ", ".join(f"{call} returns {shape}" for shape, call in layouts.items())
                fail(fault, "resize, crop or pad every input to one shape, with and without training")

    def test_refuses_bad_input_with_a_geobind_error(self) -> None:
        """What cannot be read is refused with a message for people, not with a traceback."""
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
