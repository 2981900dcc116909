"""Traced encoders as files: torch's programs (.pt2) and ONNX, and functions that run them."""

# B inputs of a batch, D width

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from geobind.errors import ExportError, PluginError
from geobind.extras import INSTALL, is_installed
from geobind.utils.formatting import format_size, shorten
from geobind.utils.vectors import unit

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Format = Literal["onnx", "pt2"]
RunGraph = Callable[[Mapping[str, Tensor]], Tensor]  # a batch by the names of its inputs -> (B, D)

BARE = "inputs"  # the name of a batch that is no dict of tensors
OUTPUT = "embeddings"  # `embedding` is what ONNX graphs call a look-up of tokens
_ONNX_BYTES = 2**31 - 2**24  # a protocol buffer holds 2 GiB


def name_inputs(batch: Any) -> dict[str, Tensor]:
    """Return a prepared batch by the names that a graph has for its inputs."""
    return {BARE: batch} if isinstance(batch, Tensor) else dict(batch)


class EmbeddingGraph(nn.Module):
    """An encoder with what comes before and after it, as one function of named tensors.

    Args:
        encoder: Maps a prepared batch to embeddings of any length.
        names: Its inputs; `inputs` alone is handed to the encoder as a tensor, others as a dict.
        front_end: Prepares decoded inputs; None takes prepared ones.
    """

    def __init__(self, encoder: nn.Module, names: tuple[str, ...], front_end: nn.Module | None) -> None:
        super().__init__()
        self.encoder, self.names, self.front_end = encoder, names, front_end

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embed a batch as unit-length float32 (B, D)."""
        if self.front_end is not None:
            return unit(self.encoder(self.front_end(*inputs)))
        batch: Any = dict(zip(self.names, inputs, strict=True))
        return unit(self.encoder(batch if self.names != (BARE,) else batch[BARE]))


def trace(graph: EmbeddingGraph, inputs: Mapping[str, Tensor], free: tuple[str, ...]) -> ExportedProgram:
    """Trace a graph for any batch size.

    Args:
        graph: What to trace.
        inputs: A batch of two or more, by name.
        free: Names of the axes from the first on whose lengths may vary; the first is the batch.

    Raises:
        ExportError: A step of the encoder depends on the values of its input, or cannot be traced.
    """
    from torch.export import Dim, export

    # An axis that the inputs share is one dimension; its least length is that of a single input.
    lengths = {name: Dim(name, min=1, max=2**24) for name in free}
    axes = {place: lengths[name] for place, name in enumerate(free)}
    try:
        with _quiet(), torch.no_grad(), _ExportableCalls():
            return export(
                graph.eval(),
                tuple(inputs.values()),
                dynamic_shapes=(tuple(axes for _ in inputs),),
                strict=False,
            )
    except ExportError:
        raise
    except Exception as error:  # torch raises classes of its own, which have no common base
        where = _find_line(error)
        raise ExportError(
            f"the encoder cannot be traced: {shorten(str(error).strip().partition(chr(10))[0], 200)}{where}. "
            "The steps of a graph cannot depend on the values of an input: choose options of the modality "
            "that need no such step, or, in a plugin, leave it out where torch.compiler.is_exporting()"
        ) from error


def encode_graph(
    program: ExportedProgram,
    kind: Format,
    names: Sequence[str],
    free: Sequence[str],
    facts: Mapping[str, str],
) -> bytes:
    """Return a traced encoder as the bytes of a file.

    Args:
        program: As `trace` returns it.
        kind: The format.
        names: Of its inputs.
        free: Of the axes whose lengths may vary.
        facts: What the file says of its origin.

    Raises:
        PluginError: ONNX is asked for and its packages are not installed.
        ExportError: ONNX has no such operation, or the weights are too large for it.
    """
    if kind == "pt2":
        buffer = io.BytesIO()
        with _quiet():
            torch.export.save(program, buffer, extra_files=dict(facts))
        return buffer.getvalue()
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > _ONNX_BYTES:
        raise ExportError(f"weights of {format_size(size)} do not fit an ONNX file, which holds 2 GiB")
    require("onnx", "onnxscript")
    try:
        with _quiet():
            made: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[*names], output_names=[OUTPUT]
            )
            first: Any = made.model.graph.inputs[0]
            made.rename_axes({str(first.shape[place]): name for place, name in enumerate(free)})
    except Exception as error:  # as above
        raise ExportError(
            f"ONNX cannot express the encoder: {shorten(str(error.__cause__ or error).strip(), 300)}"
        ) from error
    proto = made.model_proto
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def quantize_graph(content: bytes) -> bytes:
    """Return an ONNX graph whose matrix products are of int8: onnxruntime's dynamic quantisation.

    Convolutions stay in float32: onnxruntime is slower with those of int8, or has none.

    Raises:
        PluginError: onnxruntime is not installed.
        ExportError: The graph has no products with weights, or cannot be quantised.
    """
    require("onnx", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder:
        exact, small = Path(folder, "exact.onnx"), Path(folder, "int8.onnx")
        exact.write_bytes(content)
        try:
            with _quiet():
                quantize_dynamic(
                    exact, small, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8
                )
        except Exception as error:  # onnxruntime raises what it likes of graphs that it does not expect
            raise ExportError(f"cannot be quantised to int8: {shorten(str(error), 300)}") from error
        quantized = small.read_bytes()
    if b"MatMulInteger" not in quantized:
        raise ExportError("int8: the encoder has no matrix products with weights; keep it in float32")
    return quantized


def open_graph(content: bytes, kind: Format) -> RunGraph:
    """Return the function that an exported file is, run by onnxruntime or by torch on the CPU.

    Raises:
        PluginError: onnxruntime is needed and not installed.
    """
    if kind == "pt2":
        program: Any = torch.export.load(io.BytesIO(content)).module()

        def run_program(batch: Mapping[str, Tensor]) -> Tensor:
            with torch.no_grad():
                return program(*batch.values())

        return run_program
    require("onnxruntime")
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()  # pyright: ignore[reportAttributeAccessIssue]
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # inputs are prepared meanwhile
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run_session(batch: Mapping[str, Tensor]) -> Tensor:
        (embedding_BD,) = session.run([OUTPUT], {name: value.numpy() for name, value in batch.items()})
        return torch.from_numpy(embedding_BD)

    return run_session


def open_in_openvino(content: bytes, dtype: Literal["float32", "bfloat16"]) -> RunGraph:
    """Return the function that an ONNX graph is, run by OpenVINO on the CPU.

    Raises:
        PluginError: OpenVINO is not installed.
        ExportError: It cannot run the graph, or not in bfloat16 on this processor.
    """
    require("openvino")
    from openvino import Core

    core = Core()
    options = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],  # it lowers by itself
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # processes beside each other would share the first cores
    }
    try:
        with _quiet():
            compiled = core.compile_model(core.read_model(content), "CPU", options)
    except Exception as error:  # it raises what it likes of graphs that it does not know
        raise ExportError(f"OpenVINO cannot compile the encoder: {shorten(str(error), 300)}") from error
    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if used != {"float32": "f32", "bfloat16": "bf16"}[dtype]:
        raise ExportError(f"OpenVINO computes in {used} on this processor, not in {dtype}")

    def run_compiled(batch: Mapping[str, Tensor]) -> Tensor:
        outputs = compiled({name: value.numpy() for name, value in batch.items()}, share_inputs=True)
        return torch.from_numpy(outputs[0])

    return run_compiled


class _ExportableCalls(TorchFunctionMode):
    """Spells pooling to one pixel by maxima, as timm's catavgmax does, in operations that ONNX has."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.adaptive_max_pool2d and not kwargs and args[1:] in ((1,), ((1, 1),)):
            return args[0].amax(dim=(-2, -1), keepdim=True)
        return func(*args, **kwargs)


def require(*modules: str) -> None:
    """Check that optional packages are installed.

    Raises:
        PluginError: One is not.
    """
    for module in modules:
        if not is_installed(module):
            raise PluginError(f"this needs {module}, which is not installed: {INSTALL[module]}")


@contextmanager
def _quiet() -> Generator[None]:
    """Keep back what torch and onnxruntime log and warn of while they trace; their errors are raised."""
    # None: the root, which onnxruntime writes its advice to.
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir", None)]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _find_line(error: Exception) -> str:
    """Return the line of code that torch names in an error, as words to append."""
    at = re.search(r'raised this error:\s+File "([^"]+)", line (\d+)', str(error))
    return f" ({Path(at[1]).name}:{at[2]})" if at else ""
