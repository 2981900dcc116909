"""TorchGeo: any of its datasets, whose samples are written into the manifest."""

from __future__ import annotations

import importlib
import inspect
import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field, field_serializer, field_validator

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind_datasets.common import Box, Place, compute_middle, to_degrees

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_PLACES = (("lat", "lon"), ("latitude", "longitude"), ("centroid_lat", "centroid_lon"))
_DEGREES = ("EPSG:4326", "OGC:CRS84")


class ImageEncoder:
    """Encoder of a column's images, all as PNG or all as arrays."""

    def __init__(self, column: str, encoding: str) -> None:
        self.column, self.encoding = column, encoding

    def __call__(self, image: Any, key: str) -> bytes | LeftOut:
        """Encode an image (C, H, W) or (H, W), or say why it is none; `key` names it in messages.

        Raises:
            DataError: It cannot be PNG, but others of its column are.
        """
        import numpy as np

        values = image.detach().cpu().numpy() if hasattr(image, "detach") else np.asarray(image)
        if values.ndim not in (2, 3) or values.dtype.kind not in "buif" or not values.size:
            return LeftOut(f"what '{self.column}' shows is no image (of channels, height and width)")
        if not np.isfinite(values).all():
            return LeftOut(f"'{self.column}' holds values that are NaN or infinite")
        values_HWC = np.moveaxis(values, 0, -1) if values.ndim == 3 else values[..., None]
        fits = _is_photo(values_HWC)
        if self.encoding == "auto":
            self.encoding = "png" if fits else "array"
        if self.encoding == "array":
            return _array(values_HWC)
        if not fits:
            raise DataError(
                f"sample {key}: '{self.column}' has {values_HWC.shape[-1]} channels of {values.dtype} from "
                f"{values.min():g} to {values.max():g}, which is no 8-bit image; use option encoding=array"
            )
        return _png(values_HWC.astype(np.uint8))


def _is_photo(values_HWC: NDArray[Any]) -> bool:
    import numpy as np

    whole = values_HWC.dtype.kind in "bui" or bool((values_HWC == np.rint(values_HWC)).all())
    return values_HWC.shape[-1] in (1, 3) and whole and values_HWC.min() >= 0 and values_HWC.max() <= 255


def _array(values_HWC: NDArray[Any]) -> bytes:
    import numpy as np

    target = io.BytesIO()
    np.save(target, np.ascontiguousarray(values_HWC, dtype=np.float32), allow_pickle=False)
    return target.getvalue()


def _png(values_HWC: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(values_HWC.squeeze(-1) if values_HWC.shape[-1] == 1 else values_HWC).save(target, "PNG")
    return target.getvalue()


def _number(value: Any) -> float | None:
    """Convert a number, or a tensor of one."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def find_place(sample: Mapping[str, Any]) -> Place | None:
    """Find a sample's place: its latitude and longitude, or the middle of its box."""
    for names in _PLACES:
        lat, lon = (_number(sample.get(name)) for name in names)
        if lat is not None and lon is not None and abs(lat) <= 90 and abs(lon) <= 180:
            return lat, lon
    box, crs = _box(sample.get("bounds")), sample.get("crs")
    if box is None or crs is None:
        return None
    if str(crs).upper() in _DEGREES:
        return compute_middle(box)
    return to_degrees(crs, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def _box(bounds: Any) -> Box | None:
    """Return a box as TorchGeo tells it: slices of x, y and time, or an object with minx, maxx and so on."""
    if isinstance(bounds, tuple) and len(cast("tuple[Any, ...]", bounds)) >= 2:
        x, y = cast("tuple[Any, ...]", bounds)[:2]
        if isinstance(x, slice) and isinstance(y, slice):
            edges = x.start, y.start, x.stop, y.stop
            return cast("Box", tuple(float(edge) for edge in edges)) if None not in edges else None
    edges = [_number(getattr(bounds, name, None)) for name in ("minx", "miny", "maxx", "maxy")]
    return None if None in edges else cast("Box", tuple(edges))


def find_time(sample: Mapping[str, Any]) -> datetime | None:
    """Find the start of a sample's time; the extreme representable times stand for unknown ones."""
    bounds: Any = sample.get("bounds")
    timed = isinstance(bounds, tuple) and len(cast("tuple[Any, ...]", bounds)) > 2
    start: Any = bounds[2].start if timed else None
    if hasattr(start, "to_pydatetime"):
        start = start.to_pydatetime(warn=False)
    return start if isinstance(start, datetime) and 1700 < start.year < 2200 else None


def find_label(sample: Mapping[str, Any], dataset: Any) -> str | None:
    """Return the class of a sample by its name, where the dataset tells names, or by its number."""
    label: Any = sample.get("label")
    if label is None or isinstance(label, str):
        return label
    number = _number(label)  # none of several classes at once
    if number is None or number != int(number):
        return None
    classes: Any = getattr(dataset, "classes", None)
    named = isinstance(classes, list | tuple) and 0 <= number < len(cast("list[Any]", classes))
    return str(classes[int(number)]) if named else str(int(number))


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
        """Return a column of bytes for each of `images`, and one of text for each of `texts`."""
        images = {name: Column("bytes", f"`{part}` of the samples") for name, part in self.images.items()}
        return images | {
            name: Column("string", f"`{part}` of the samples") for name, part in self.texts.items()
        }

    def rows(self) -> Iterator[Row | LeftOut]:
        """Yield the samples of each split."""
        encoders = {name: ImageEncoder(name, self.encoding) for name in self.images}
        for split, dataset in self._datasets():
            geo = any(cls.__name__ == "GeoDataset" for cls in type(dataset).__mro__)
            for number, sample in enumerate(self._cut(dataset) if geo else _whole(dataset)):
                if isinstance(sample, LeftOut):
                    yield sample
                    continue
                prefix = f"{split}/" if split else ""
                yield self._row(sample, f"{prefix}{number}", dataset, split, encoders)

    def notes(self) -> list[str]:
        """Return a note on what was decoded."""
        return [
            "samples are copied as TorchGeo decodes them; labels of several classes at once, boxes and "
            "series of images are not taken over"
        ]

    def _datasets(self) -> Iterator[tuple[str, Any]]:
        """Return the dataset of each split, or the one dataset there is, under no split."""
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
        """Return the samples of a GeoDataset on a grid, each with its box and CRS."""
        try:
            samplers = importlib.import_module("torchgeo.samplers")
        except ImportError as error:
            raise DataError(f"a GeoDataset is cut by TorchGeo ({error}): pip install torchgeo") from error
        for query in samplers.GridGeoSampler(dataset, size=self.size, stride=self.stride or self.size):
            sample = _sample(dataset, query)
            # Newer versions leave the CRS out of samples, and tell bounds as tensors.
            yield sample if isinstance(sample, LeftOut) else {**sample, "bounds": query, "crs": dataset.crs}

    def _row(
        self,
        sample: Mapping[str, Any],
        key: str,
        dataset: Any,
        split: str,
        encoders: Mapping[str, ImageEncoder],
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
        lat, lon = find_place(sample) or (None, None)
        row: Row = {
            "key": key,
            "lat": lat,
            "lon": lon,
            "time": find_time(sample),
            "label": find_label(sample, dataset),
        }
        return {**row, **cells} | ({"split": split} if split else {})


def _imported(path: str) -> Any:
    """Import the object that a dotted path names."""
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
    """List the values that a class allows for `split`, else its default."""
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
