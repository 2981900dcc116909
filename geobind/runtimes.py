"""Encoders run by onnxruntime or OpenVINO on the CPU: compiled for the first batch, compared with torch."""

# B inputs in a batch, D width

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from geobind.errors import DataError, ExportError
from geobind.precision import Precision, PrecisionChoice, check_precision, measure_cosine, read_state
from geobind.utils.formatting import shorten

Runtime = Literal["torch", "onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
_PRECISIONS: dict[Runtime, tuple[Precision, ...]] = {
    "torch": ("float32", "bfloat16", "auto"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16"),
}
_MOST_FORMS = 8  # shapes and types of batches that an encoder is compiled for; each takes seconds and memory
_SAME = 0.9999  # the least cosine to torch that a runtime in float32 may have


def check_runtime(runtime: Any, precision: Any) -> tuple[Runtime, Precision]:
    """Return a runtime and a precision that it computes in.

    Raises:
        DataError: There is no such runtime or precision, or the one does not compute in the other.
    """
    asked = check_precision(precision)
    if runtime not in RUNTIMES:
        raise DataError(f"runtime must be {', '.join(RUNTIMES)}, not {shorten(repr(runtime), 60)}")
    known = _PRECISIONS[runtime]
    if asked not in known:
        others = [name for name in RUNTIMES if asked in _PRECISIONS[name]]
        raise DataError(
            f"precision {asked} is of the runtime {' or '.join(others)}; {runtime} computes in "
            f"{', '.join(known)}"
        )
    return runtime, asked


class _Compiled(NamedTuple):
    run: Callable[[Any], Tensor]
    choice: PrecisionChoice


@dataclass
class CompiledEncoders:
    """Encoders as graphs of a runtime, each compiled once, until its weights change."""

    choices: dict[str, PrecisionChoice] = field(default_factory=dict)  # by name
    _graphs: dict[tuple[str, Runtime, Precision], tuple[Any, dict[Any, _Compiled]]] = field(
        default_factory=dict
    )

    def take(
        self, name: str, encoder: nn.Module, batch: Any, runtime: Runtime, precision: Precision
    ) -> Callable[[Any], Tensor]:
        """Return a function from a batch like this one, on the CPU, to unit-length embeddings (B, D).

        One that is compiled is run on the first rows of the batch, and its least cosine to torch kept.

        Raises:
            PluginError: A package is not installed.
            ExportError: The encoder cannot be traced, or run so; or it embeds otherwise in float32.
            DataError: The batch is not on the CPU.
        """
        from geobind.export.graphs import name_inputs

        tensors = name_inputs(batch)
        device = next(iter(tensors.values())).device
        if device.type != "cpu":
            raise DataError(f"{runtime} computes on the CPU, not on {device}: give the device cpu")
        state = read_state(encoder)
        known = self._graphs.get((name, runtime, precision))
        if known is None or known[0] != state:
            known = self._graphs[name, runtime, precision] = state, {}
        graphs = known[1]
        # Axes but the first are fixed in a graph, and so are types: images are of 8 bits or of float32.
        form = tuple((key, value.shape[1:], value.dtype) for key, value in tensors.items())
        if form not in graphs:
            if len(graphs) == _MOST_FORMS:
                raise ExportError(
                    f"'{name}': its inputs have more than {_MOST_FORMS} shapes, and {runtime} compiles the "
                    "encoder for each; use torch"
                )
            try:
                run = _compile(encoder, tensors, runtime, precision)
            except ExportError as error:
                raise ExportError(f"'{name}' does not run in {runtime}: {error}") from error
            graphs[form] = _Compiled(run, _compare(name, encoder, run, batch, runtime, precision))
        choices = [compiled.choice for compiled in graphs.values()]
        self.choices[name] = min(choices, key=lambda choice: cast("float", choice.cosine))
        return graphs[form].run


def _compile(
    encoder: nn.Module, tensors: dict[str, Tensor], runtime: Runtime, precision: Precision
) -> Callable[[Any], Tensor]:
    from geobind.export.graphs import (
        EmbeddingGraph,
        encode_graph,
        name_inputs,
        open_graph,
        open_in_openvino,
        quantize_graph,
        require,
        trace,
    )

    require("onnx", "onnxscript", runtime)
    names = tuple(tensors)
    # Twice over: torch takes a batch of one for a constant.
    example = {name: torch.cat([value[:2], value[:2]]) for name, value in tensors.items()}
    program = trace(EmbeddingGraph(copy.deepcopy(encoder), names, None), example, ("batch",))
    content = encode_graph(program, "onnx", names, ("batch",), {})
    if runtime == "openvino":
        graph = open_in_openvino(content, "bfloat16" if precision == "bfloat16" else "float32")
    else:
        graph = open_graph(quantize_graph(content) if precision == "int8" else content, "onnx")

    def run(batch: Any) -> Tensor:
        try:
            return graph(name_inputs(batch))
        except Exception as error:  # runtimes raise classes of their own
            raise ExportError(f"{runtime} fails on a batch: {shorten(str(error), 300)}") from error

    return run


def _compare(
    name: str,
    encoder: nn.Module,
    run: Callable[[Any], Tensor],
    batch: Any,
    runtime: Runtime,
    precision: Precision,
) -> PrecisionChoice:
    """Return the precision of a compiled encoder with its least cosine to torch.

    Raises:
        ExportError: It is of float32 and embeds otherwise than torch.
    """
    measured = measure_cosine(encoder, run, batch)
    if precision == "float32" and not cast("float", measured.cosine) >= _SAME:
        raise ExportError(
            f"'{name}' embeds otherwise in {runtime}: its least cosine to torch is {measured.cosine:.4f} in "
            "float32; use torch"
        )
    return replace(measured, dtype=cast("Any", precision), reason=f"by {runtime}")
