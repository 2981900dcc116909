"""TorchGeo: any of its datasets, whose samples are written into the manifest."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, field_serializer, field_validator

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind_datasets.samples import Encoder, label_of, place_of, time_of


class TorchGeo(Importer):
    """A dataset class of TorchGeo, or of anybody whose samples are dicts like its samples."""

    name: ClassVar[str] = "torchgeo"
    title: ClassVar[str] = "TorchGeo, any of its datasets"
    home: ClassVar[str] = "https://torchgeo.readthedocs.io"
    licence: ClassVar[str] = "that of the dataset"
    citation: ClassVar[str] = (
        "Stewart et al., TorchGeo: Deep Learning With Geospatial Data, ACM SIGSPATIAL 2022"
    )
    layout: ClassVar[str] = """
        whatever the class given by option dataset expects as its root or paths
    """
    columns: ClassVar[Mapping[str, Column]] = {
        "satellite": Column(
            "bytes", "`image` of the samples, as PNG or array; and what `images` and `texts` say"
        )
    }

    dataset: Any = Field(
        description="The class, such as torchgeo.datasets.EuroSAT; in Python also an object of it."
    )
    arguments: dict[str, Any] = Field(
        default={}, description="What the class is called with, beside its root."
    )
    splits: tuple[str, ...] = Field(
        default=(), description="What to give as `split`; by default all that the class names."
    )
    images: dict[str, str] = Field(
        default={"satellite": "image"}, description="The part of a sample that each column of images holds."
    )
    texts: dict[str, str] = Field(
        default={}, description='The part of a sample that each column of text holds: {"text": "caption"}.'
    )
    size: int = Field(default=256, ge=1, description="Pixels a side that a GeoDataset is cut into.")
    stride: int | None = Field(
        default=None, ge=1, description="Pixels from one to the next; by default `size`."
    )
    encoding: Literal["auto", "png", "array"] = Field(
        default="auto",
        description="png: 8-bit images of one or three channels; array: values as they are, in float32; "
        "auto: PNG if the first image can be one.",
    )

    @field_validator("splits", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",")] if isinstance(value, str) else value

    @field_serializer("dataset")
    def _dataset_name(self, dataset: Any) -> str:
        return (
            dataset
            if isinstance(dataset, str)
            else f"{type(dataset).__module__}.{type(dataset).__qualname__}"
        )

    def contents(self) -> Mapping[str, Column]:
        """A column of bytes for each of `images`, and one of text for each of `texts`."""
        images = {name: Column("bytes", f"`{part}` of the samples") for name, part in self.images.items()}
        return images | {
            name: Column("string", f"`{part}` of the samples") for name, part in self.texts.items()
        }

    def rows(self) -> Iterator[Row | LeftOut]:
        """Go through the samples of each split."""
        encoders = {name: Encoder(name, self.encoding) for name in self.images}
        for split, dataset in self._datasets():
            geo = any(cls.__name__ == "GeoDataset" for cls in type(dataset).__mro__)
            for number, sample in enumerate(self._cut(dataset) if geo else _whole(dataset)):
                if isinstance(sample, LeftOut):
                    yield sample
                    continue
                prefix = f"{split}/" if split else ""
                yield self._row(sample, f"{prefix}{number}", dataset, split, encoders)

    def notes(self) -> list[str]:
        """Say what was decoded."""
        return [
            "samples are copied as TorchGeo decodes them; labels of several classes at once, boxes and "
            "series of images are not taken over"
        ]

    def _datasets(self) -> Iterator[tuple[str, Any]]:
        """The dataset of each split, or the one dataset there is, under no split."""
        thing = _imported(self.dataset) if isinstance(self.dataset, str) else self.dataset
        if not callable(thing):
            yield "", thing
            return
        parameters = _parameters(thing)
        known = dict(self.arguments)
        for word in ("root", "paths"):
            if word in parameters:
                known.setdefault(word, str(self.sources[0]))
        if "split" not in parameters or "split" in known:
            yield str(known.get("split", "")), self._made(thing, known)
            return
        for split in self.splits or _splits_of(thing, parameters["split"]):
            yield split, self._made(thing, known | {"split": split})

    def _made(self, thing: Any, arguments: Mapping[str, Any]) -> Any:
        try:
            return thing(**arguments)
        except Exception as error:  # classes raise whatever they like
            said = " ".join(str(error).split())[:300] or type(error).__name__
            told = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise DataError(f"{_name(thing)}({told}): cannot be made: {said}") from error

    def _cut(self, dataset: Any) -> Iterator[Mapping[str, Any] | LeftOut]:
        """The samples of a GeoDataset on a grid, each with its box and CRS."""
        try:
            samplers = importlib.import_module("torchgeo.samplers")
        except ImportError as error:
            raise DataError(f"a GeoDataset is cut by TorchGeo ({error}): pip install torchgeo") from error
        for query in samplers.GridGeoSampler(dataset, size=self.size, stride=self.stride or self.size):
            sample = _sample(dataset, query)
            # Newer versions leave the CRS out of samples, and tell bounds as tensors.
            yield sample if isinstance(sample, LeftOut) else {**sample, "bounds": query, "crs": dataset.crs}

    def _row(
        self, sample: Mapping[str, Any], key: str, dataset: Any, split: str, encoders: Mapping[str, Encoder]
    ) -> Row | LeftOut:
        cells: Row = {}
        for name, part in self.images.items():
            if part not in sample:
                raise DataError(f"{_name(dataset)}: samples have no '{part}'; they have {', '.join(sample)}")
            content = encoders[name](sample[part], key)
            if isinstance(content, LeftOut):
                return content
            cells[name] = content
        for name, part in self.texts.items():
            text: Any = sample.get(part)
            cells[name] = (
                [str(item) for item in text] if isinstance(text, list | tuple) else text and str(text)
            )
        lat, lon = place_of(sample) or (None, None)
        row: Row = {
            "key": key,
            "lat": lat,
            "lon": lon,
            "time": time_of(sample),
            "label": label_of(sample, dataset),
        }
        return {**row, **cells} | ({"split": split} if split else {})


def _imported(path: str) -> Any:
    """What a dotted path names."""
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(
            f"option dataset={path}: cannot be imported ({error}); name a class such as torchgeo.datasets."
            "EuroSAT, and install what it lies in: pip install torchgeo"
        ) from error


def _parameters(thing: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(thing).parameters
    except (TypeError, ValueError):
        return {}


def _splits_of(thing: Any, parameter: inspect.Parameter) -> tuple[str, ...]:
    """What a class says can be given as `split`, else what it takes by default."""
    for name in ("splits", "valid_splits"):
        named: Any = getattr(thing, name, None)
        if isinstance(named, tuple | list) and named:
            return tuple(str(split) for split in cast("list[Any]", named))
    if isinstance(parameter.default, str):
        return (parameter.default,)
    raise DataError(f"{_name(thing)}: does not say what its splits are; name them: splits=train,test")


def _name(thing: Any) -> str:
    return getattr(thing, "__name__", type(thing).__name__)


def _whole(dataset: Any) -> Iterator[Mapping[str, Any] | LeftOut]:
    for index in range(len(dataset)):
        yield _sample(dataset, index)


def _sample(dataset: Any, query: Any) -> Mapping[str, Any] | LeftOut:
    try:
        sample = dataset[query]
    except Exception as error:  # damaged files make readers raise nearly anything
        return LeftOut(f"cannot be read ({type(error).__name__})")
    if not isinstance(sample, dict):
        raise DataError(
            f"{_name(dataset)}: samples must be dicts such as {{'image': ...}}, not {type(sample)}"
        )
    return cast("dict[str, Any]", sample)
