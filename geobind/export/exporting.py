"""An encoder of a bundle as one file that runs without geobind, checked against the binder."""

# B inputs of a batch, N inputs, D width

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import geobind
from geobind.errors import DataError, ExportError
from geobind.export.front_ends import FrontEnd, build_front_end
from geobind.export.graphs import (
    OUTPUT,
    EmbeddingGraph,
    Format,
    RunGraph,
    encode_graph,
    name_inputs,
    open_graph,
    quantize_graph,
    trace,
)
from geobind.export.inputs import describe_preparation, make_samples
from geobind.inference import collate, prepare_input
from geobind.modality import Modality
from geobind.utils.files import replace_together
from geobind.utils.formatting import shorten
from geobind.utils.system import collect_versions

if TYPE_CHECKING:
    from geobind.binder import Binder

TOLERANCE = 1e-5


class ExportResult(NamedTuple):
    """The files of an export, and how far its embeddings are from the binder's."""

    file: Path
    input_file: Path
    largest_difference: float
    batch_sizes: tuple[int, ...]
    least_cosine: float


def export_encoder(
    binder: Binder,
    modality: str,
    out: str | Path,
    *,
    to: str | None = None,
    tolerance: float = TOLERANCE,
    samples: Iterable[Any] | None = None,
    front_end: bool = False,
    int8: bool = False,
) -> ExportResult:
    """Write the encoder of a modality as ONNX or a torch program; it takes batches of any size.

    The graph holds all that `Binder.embed` does after `Modality.prepare`: the normalisation of images, the
    encoder, and the scaling to unit length. What it gives for samples is compared with `Binder.embed` before
    anything is written. Beside the file goes one of the same name that ends in .json: its inputs, how to
    prepare them, and what was compared.

    Args:
        binder: The encoders.
        modality: Name of the modality.
        out: The file to write; its folder is made.
        to: onnx or pt2 (`torch.export`); default: what `out` ends in.
        tolerance: Largest difference of a number of an embedding that is allowed.
        samples: Raw inputs to trace and compare with; default: made up, where the modality's kind allows it.
        front_end: Take decoded images of 8 bits or waveforms of any length, and prepare them in the graph.
        int8: Compute matrix products in int8, of ONNX alone. The embeddings are others, so `tolerance` does
            not count: look at the least cosine to the binder's, which is measured on `samples`; some must be
            given, as those that are made up say nothing of it.

    Raises:
        ExportError: The encoder cannot be traced or written so, or its embeddings differ by more than
            `tolerance`. Nothing is written.
        PluginError: The binder has no such modality, or a package that ONNX needs is not installed.
        DataError: A sample cannot be read.
        StorageError: The disk is full or the folder cannot be written.
    """
    kind = binder.modality(modality)
    spec: Any = getattr(kind, "spec", None)
    file, form = Path(out), _choose_format(Path(out), to)
    if not 0 < tolerance <= 2:
        raise DataError(f"tolerance must be above 0 and at most 2, not {tolerance!r}")
    if int8 and form != "onnx":
        raise DataError(f"{file}: int8 is for onnxruntime; end the file's name in .onnx")
    if int8 and samples is None:
        raise DataError("int8 changes embeddings: give samples to measure that on, such as --sample tile.png")
    layers = build_front_end(kind) if front_end else None
    raws = make_samples(kind) if samples is None else list(samples)
    if not raws:
        raise DataError("no samples to check the export with; give one or more")
    if layers is not None:
        raws = [layers.as_raw(layers.read(raw)) for raw in raws]
    batches = _prepare_batches(kind, raws, layers)
    example = {layers.name: layers.make_example()} if layers else _double(batches[-1].inputs)
    free = layers.free_axes if layers else ("batch",)
    encoder = copy.deepcopy(binder.encoders[modality]).cpu()
    program = trace(EmbeddingGraph(encoder, tuple(example), layers), example, free)
    facts = {"geobind": geobind.__version__, "modality": modality, "width": str(binder.width)}
    if binder.card is not None:
        facts |= {"bundle": binder.card.name, "weights": binder.card.digests.get(modality, "")}
    try:
        content = encode_graph(program, form, tuple(example), free, facts)
    except ExportError as error:  # of ONNX alone
        raise ExportError(f"{error}; use pt2") from error
    if int8:
        content = quantize_graph(content)
    expected_ND = binder.embed(modality, raws, progress=False, precision="float32", runtime="torch")
    largest, cosine = _compare(expected_ND, batches, open_graph(content, form))
    if not largest <= (2 if int8 else tolerance):  # NaN too
        hint = "" if layers is None else "; leave the front end out, or give samples that it is exact for"
        raise ExportError(
            f"{file}: not written: embeddings of the exported '{modality}' differ from the binder's by "
            f"{largest:.3g}, more than the tolerance of {tolerance:g}{hint}"
        )
    sizes = sorted({len(batch.rows) for batch in batches})
    description = {
        **facts,
        "format": form,
        "precision": "int8 in matrix products" if int8 else "float32",
        "inputs": [_describe_input(name, value, free) for name, value in example.items()],
        "output": {"name": OUTPUT, "shape": ["batch", binder.width], "dtype": "float32", "unit_length": True},
        "prepare": layers.describe() if layers else describe_preparation(kind),
        "spec": spec._asdict() if hasattr(spec, "_asdict") else None,
        "options": _shorten_options(kind.model_dump(mode="json")),
        "parity": {
            "largest_difference": largest,
            "tolerance": None if int8 else tolerance,
            "least_cosine": cosine,
            "samples": len(raws),
            "made_up": samples is None,
            "batch_sizes": sizes,
        },
        "versions": collect_versions(),
    }
    beside = file.with_name(f"{file.name}.json")
    described = json.dumps(description, indent=1, default=str).encode()
    replace_together(file.parent, {file.name: content, beside.name: described}, beside.name)
    return ExportResult(file, beside, largest, tuple(sizes), cosine)


def _choose_format(file: Path, to: str | None) -> Format:
    """Return the format of a file.

    Raises:
        DataError: There is no such format, or the name ends in another one.
    """
    endings: dict[str, Format] = {"onnx": "onnx", "pt2": "pt2"}
    ending = file.suffix.lower().removeprefix(".")
    chosen = endings.get(ending if to is None else to)
    if chosen is None:
        wrong = f"{file}: end its name in" if to is None else f"no format '{to}'; there are"
        raise DataError(f"{wrong} .onnx and .pt2")
    if ending in endings and ending != chosen:
        raise DataError(f"{file}: ends in .{ending}, and {chosen} is asked for; name it {file.stem}.{chosen}")
    return chosen


class _Batch(NamedTuple):
    rows: list[int]  # which samples it holds
    inputs: dict[str, Tensor]


def _prepare_batches(kind: Modality, raws: Sequence[Any], layers: FrontEnd | None) -> list[_Batch]:
    """Return every sample alone and in larger batches, as the graph takes them."""
    if layers is not None:  # they differ in size
        decoded = [layers.read(raw)[None] for raw in raws]
        return [
            _Batch([row] * count, {layers.name: value.repeat(count, *[1] * (value.ndim - 1))})
            for row, value in enumerate(decoded)
            for count in (1, 3)
        ]
    everything: Any = collate([prepare_input(kind, number, raw) for number, raw in enumerate(raws)])
    named = name_inputs(everything)
    rows = list(range(len(raws)))
    return [
        _Batch(chosen, {name: value[chosen] for name, value in named.items()})
        for chosen in ([[row] for row in rows] + [rows * 3, rows])
    ]


def _double(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch twice over: torch takes a batch of one for a constant."""
    return {name: torch.cat([value, value]) for name, value in inputs.items()}


def _compare(expected_ND: Tensor, batches: Sequence[_Batch], run: RunGraph) -> tuple[float, float]:
    """Return the largest difference of a graph's embeddings from the binder's, and the least cosine to them.

    Either is NaN if an embedding is.
    """
    differences: list[Tensor] = []
    cosines: list[Tensor] = []
    for batch in batches:
        wanted_BD, embedding_BD = expected_ND[batch.rows], run(batch.inputs)
        if embedding_BD.shape != wanted_BD.shape:
            raise ExportError(
                f"the exported encoder gives {tuple(embedding_BD.shape)}, not {tuple(wanted_BD.shape)}"
            )
        differences.append((embedding_BD - wanted_BD).abs().max())
        cosines.append((embedding_BD * wanted_BD).sum(-1).min())
    return float(torch.stack(differences).max()), float(torch.stack(cosines).min())


def _describe_input(name: str, value: Tensor, free: Sequence[str]) -> dict[str, Any]:
    shape = [*free, *value.shape[len(free) :]]
    return {"name": name, "shape": shape, "dtype": str(value.dtype).removeprefix("torch.")}


def _shorten_options(options: Any) -> Any:
    """Return options without long texts, such as the tokenizer that a bundle carries."""
    if isinstance(options, dict):
        return {key: _shorten_options(value) for key, value in options.items()}
    return shorten(options, 200) if isinstance(options, str) else options
