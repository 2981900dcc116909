"""Samples of datasets in TorchGeo's form: dicts of tensors and what is known of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from geobind.errors import DataError
from geobind.importers.contract import LeftOut
from geobind_datasets.places import Box, Place, degrees_of, middle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PLACES = (("lat", "lon"), ("latitude", "longitude"), ("centroid_lat", "centroid_lon"))
_DEGREES = ("EPSG:4326", "OGC:CRS84")


class Encoder:
    """Makes the images of a column bytes, all in the same way: as PNG, or as arrays."""

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
    """A number, or a tensor of one."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def place_of(sample: Mapping[str, Any]) -> Place | None:
    """Where a sample lies: by its latitude and longitude, or the middle of its box."""
    for names in _PLACES:
        lat, lon = (_number(sample.get(name)) for name in names)
        if lat is not None and lon is not None and abs(lat) <= 90 and abs(lon) <= 180:
            return lat, lon
    box, crs = _box(sample.get("bounds")), sample.get("crs")
    if box is None or crs is None:
        return None
    if str(crs).upper() in _DEGREES:
        return middle(box)
    return degrees_of(crs, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def _box(bounds: Any) -> Box | None:
    """A box as TorchGeo tells it: slices of x, y and time, or an object with minx, maxx and so on."""
    if isinstance(bounds, tuple) and len(cast("tuple[Any, ...]", bounds)) >= 2:
        x, y = cast("tuple[Any, ...]", bounds)[:2]
        if isinstance(x, slice) and isinstance(y, slice):
            edges = x.start, y.start, x.stop, y.stop
            return cast("Box", tuple(float(edge) for edge in edges)) if None not in edges else None
    edges = [_number(getattr(bounds, name, None)) for name in ("minx", "miny", "maxx", "maxy")]
    return None if None in edges else cast("Box", tuple(edges))


def time_of(sample: Mapping[str, Any]) -> datetime | None:
    """When a sample's time begins; the first and last times that can be told stand for unknown ones."""
    bounds: Any = sample.get("bounds")
    timed = isinstance(bounds, tuple) and len(cast("tuple[Any, ...]", bounds)) > 2
    start: Any = bounds[2].start if timed else None
    if hasattr(start, "to_pydatetime"):
        start = start.to_pydatetime(warn=False)
    return start if isinstance(start, datetime) and 1700 < start.year < 2200 else None


def label_of(sample: Mapping[str, Any], dataset: Any) -> str | None:
    """The class of a sample by its name, where the dataset tells names, or by its number."""
    label: Any = sample.get("label")
    if label is None or isinstance(label, str):
        return label
    number = _number(label)  # none of several classes at once
    if number is None or number != int(number):
        return None
    classes: Any = getattr(dataset, "classes", None)
    named = isinstance(classes, list | tuple) and 0 <= number < len(cast("list[Any]", classes))
    return str(classes[int(number)]) if named else str(int(number))
