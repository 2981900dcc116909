"""EuroSAT: 27,000 Sentinel-2 patches of ten classes, in colour or with all thirteen bands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from pydantic import Field

from geobind.errors import DataError
from geobind.importers.contract import Column, Importer, LeftOut, Row
from geobind.importers.reading import find_first, list_names, read_json

CLASSES = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
)
_OLD = "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"  # how EuroSATallBands.zip unpacks
_COLOUR = ("EuroSAT_RGB", "2750", "EuroSAT/2750", "EuroSAT", "")
_BANDS = ("EuroSAT_MS", _OLD, "EuroSATallBands", "allBands", "")
_FILES: Mapping[str, tuple[str, ...]] = {
    "standard": ("eurosat-train.txt", "eurosat-val.txt", "eurosat-test.txt"),
    "spatial": ("eurosat-spatial-train.txt", "eurosat-spatial-val.txt", "eurosat-spatial-test.txt"),
    "small": ("eurosat-100-train.txt", "eurosat-100-val.txt", "eurosat-100-test.txt"),
}
_COOP = "split_zhou_EuroSAT.json"
_NAMES = ("train", "val", "test")
_PATCH = re.compile(r"(?P<label>[A-Za-z]+)_\d+")
Splits = Literal["auto", "none", "standard", "spatial", "small", "coop"]


class EuroSAT(Importer):
    """EuroSAT, the RGB JPEGs or the GeoTIFFs with all bands."""

    name: ClassVar[str] = "eurosat"
    title: ClassVar[str] = "EuroSAT, 27,000 Sentinel-2 patches of ten classes"
    home: ClassVar[str] = "https://zenodo.org/records/7711810"
    licence: ClassVar[str] = "MIT; Sentinel data are free and open"
    citation: ClassVar[str] = (
        "Helber et al., EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover "
        "Classification, IEEE JSTARS 2019"
    )
    layout: ClassVar[str] = """
        EuroSAT_RGB/Forest/Forest_1.jpg        or 2750/..., or Forest/... itself
        EuroSAT_MS/Forest/Forest_1.tif         or ds/images/remote_sensing/otherDatasets/sentinel_2/tif/...
        eurosat-train.txt, -val.txt, -test.txt optional, of TorchGeo: names of files; likewise
        eurosat-spatial-train.txt, ...         and eurosat-100-train.txt, ...
        split_zhou_EuroSAT.json                optional, of CoOp
    """
    columns: ClassVar[Mapping[str, Column]] = {"satellite": Column("file", "RGB patch, 64 x 64 pixels")}

    bands: Literal["auto", "rgb", "all"] = Field(
        default="auto", description="rgb: the JPEGs; all: the GeoTIFFs; auto: the JPEGs, if they are there."
    )
    splits: Splits = Field(
        default="auto",
        description="Whose: TorchGeo's standard, spatial (by longitude) or small (100 patches), CoOp's, or "
        "none; auto: the first of standard, spatial, coop and small that is there, else none.",
    )

    def contents(self) -> Mapping[str, Column]:
        """Return file columns for the JPEGs, or windows for the GeoTIFFs."""
        if self._patches()[1] == ".jpg":
            return type(self).columns
        return {"satellite": Column("window", "13 bands of reflectance x 10,000, 64 x 64 pixels")}

    def rows(self) -> Iterator[Row | LeftOut]:
        """List the patches, with the splits and, of GeoTIFFs, the places."""
        folder, ending = self._patches()
        kind = self._kind()
        assigned = self._assigned(kind)
        for label in sorted(set(list_names(folder)) & set(CLASSES)):
            files = sorted(name for name in list_names(folder / label) if name.lower().endswith(ending))
            for name in files:
                stem = Path(name).stem
                if kind != "none" and stem not in assigned:
                    yield LeftOut(f"is in none of the splits '{kind}'")
                    continue
                patch = folder / label / name
                cells = {"satellite": patch} if ending == ".jpg" else _window(patch)
                row: Row = {"key": stem, "split": assigned.get(stem, "train"), "label": label}
                yield cells if isinstance(cells, LeftOut) else row | cells

    def notes(self) -> list[str]:
        """Return notes on the splits used, and on leaks between them."""
        kind = self._kind()
        if kind == "none":
            return ["no list of splits was there: all rows are of split train; see `geobind data split`"]
        notes = [f"splits: {kind}"]
        if kind != "spatial":
            notes.append(
                "patches of different splits are neighbours, cut from the same scenes; splits=spatial parts "
                "them by longitude"
            )
        return notes

    def _patches(self) -> tuple[Path, str]:
        """Return the folder of classes, and how its files end."""
        kinds = {"rgb": [(_COLOUR, ".jpg")], "all": [(_BANDS, ".tif")]}
        for names, ending in kinds["rgb"] + kinds["all"] if self.bands == "auto" else kinds[self.bands]:
            for name in names:
                folder = self.folder() / name
                classes = set(list_names(folder)) & set(CLASSES)
                if any(
                    file.lower().endswith(ending) for label in classes for file in list_names(folder / label)
                ):
                    return folder, ending
        wanted = {"auto": "patches", "rgb": ".jpg patches", "all": ".tif patches"}[self.bands]
        raise self.misplaced(f"no folder of classes ({', '.join(CLASSES[:2])}, ...) with {wanted}")

    def _kind(self) -> str:
        """Return whose splits are used.

        Raises:
            DataError: The option names splits that are not there.
        """
        there = [kind for kind, names in _FILES.items() if self._near(names[0]) is not None]
        if self._near(_COOP) is not None:
            there.insert(there.index("small") if "small" in there else len(there), "coop")
        if self.splits == "auto":
            return there[0] if there else "none"
        if self.splits != "none" and self.splits not in there:
            raise self.misplaced(
                f"splits={self.splits}, but {_FILES.get(self.splits, (_COOP,))[0]} is missing"
            )
        return self.splits

    def _near(self, name: str) -> Path | None:
        """Return a list of splits, in the dataset's folder or beside its classes."""
        return find_first(self.folder(), (name,)) or find_first(self._patches()[0], (name,))

    def _assigned(self, kind: str) -> dict[str, str]:
        """Return the split of each patch by the stem of its file."""
        if kind == "none":
            return {}
        if kind == "coop":
            path = cast("Path", self._near(_COOP))
            listed = read_json(path)
            files = {split: [_first(item, path) for item in listed.get(split, ())] for split in _NAMES}
        else:
            files = {split: self._listed(name) for split, name in zip(_NAMES, _FILES[kind], strict=True)}
        assigned: dict[str, str] = {}
        for split, names in files.items():
            for name in names:
                stem = Path(name).stem
                if not _PATCH.fullmatch(stem):
                    raise DataError(
                        f"splits '{kind}': {name!r} is not the name of a patch, such as Forest_1.jpg"
                    )
                if assigned.setdefault(stem, split) != split:
                    raise DataError(f"splits '{kind}': {stem} is both in {assigned[stem]} and in {split}")
        return assigned

    def _listed(self, name: str) -> list[str]:
        path = self._near(name)
        if path is None:
            raise self.misplaced(f"{name} is missing, but other lists of its kind are there")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a list of names: {error}") from error
        return [line.strip() for line in lines if line.strip()]


def _first(item: Any, path: Path) -> str:
    """Return the file of an entry of CoOp's list: [file, number of the class, name of the class]."""
    if not isinstance(item, list) or not item or not isinstance(item[0], str):
        raise DataError(f"{path}: {item!r} is not [file, class, name]")
    return item[0]


def _window(patch: Path) -> Row | LeftOut:
    """Return a whole GeoTIFF as a window, and the place of its middle."""
    from geobind_datasets.common import read_raster_extent

    try:
        width, height, place = read_raster_extent(patch)
    except DataError:
        return LeftOut("its GeoTIFF cannot be opened")
    lat, lon = place or (None, None)
    window = {"raster": patch, "x": 0, "y": 0, "width": width, "height": height}
    return {"satellite": window, "lat": lat, "lon": lon}
