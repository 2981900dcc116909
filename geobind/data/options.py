"""Options of the `data` blocks of recipes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, NamedTuple, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from geobind.data.dataset import Dataset, registry
from geobind.errors import did_you_mean
from geobind.plugins import RESERVED

# A name, or several columns of numbers that make one vector.
ColumnChoice = str | Annotated[tuple[str, ...], Field(min_length=1)]


class RasterOptions(BaseModel):
    """Windows cut out of rasters: around every row's place, or as the cells of a column say."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    path: str | tuple[str, ...] | None = Field(
        default=None,
        description="GeoTIFF to cut a window from around each row's lat and lon, found as file names of "
        "cells are; of several that cover the place, the one that has most of the window, then the one whose "
        "pixels are nearest to gsd, then the first",
    )
    size_m: float | None = Field(default=None, ge=1e-3, le=1e6, description="side of a window, in metres")
    gsd: float | None = Field(
        default=None, ge=1e-3, le=1e5, description="metres per pixel of a window; default: the raster's own"
    )
    bands: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="bands to read, the first being 1; default: all but alpha"
    )
    stretch: tuple[float, float] | None = Field(
        default=None, description="values that become 0 and 255 of an 8-bit image; default: left as they are"
    )
    fill: float = Field(default=0.0, allow_inf_nan=False, description="value of pixels that are missing")
    min_valid: float = Field(
        default=0.5, ge=0, le=1, description="share of a window's pixels that must be there"
    )
    nearest: bool = Field(
        default=False, description="take the nearest pixel instead of averaging, as class maps need it"
    )
    scaled: bool | None = Field(
        default=None,
        description="whether values are multiplied by the scale that the raster states, and its offset "
        "added; by default they are, with a message; false: as stored",
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The rasters that windows are cut from where no cell names one."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.paths and self.size_m is None:
            raise ValueError("`path` needs `size_m`, the side of a window in metres")
        if self.bands is not None and min(self.bands) < 1:
            raise ValueError("bands are counted from 1")
        if self.stretch is not None and not self.stretch[0] < self.stretch[1]:
            raise ValueError("`stretch` must be two numbers, the lower one first")
        return self


_DATASET = "(dataset)"  # the key under which a dataset's block is handed to its field: nobody writes it
# A dump of a manifest's options names this dataset too: fingerprints of stages are hashes of dumps, and this
# key was there before other datasets were.
_DUMPED_UNUSED = "toyearth"


def _build_dataset(value: Any) -> Any:
    """Build a dataset from its name and its options, with the name in the location of every mistake."""
    if not isinstance(value, tuple):
        return value
    name, options = cast("tuple[str, Any]", value)
    datasets = registry()
    if name not in datasets.plugins:
        first, *others = datasets.explain(name).splitlines()
        if not datasets.clashes(name) and (
            near := did_you_mean(name, {*DataOptions.model_fields, *datasets.plugins})
        ):
            first = f"unknown key; {near}"
        reason = PydanticCustomError("dataset", "{reason}", {"reason": "\n".join([first, *others])})
        raise ValidationError.from_exception_data(
            name, [InitErrorDetails(type=reason, loc=(name,), input=options)]
        )
    kind: Any = GenericAlias(dict, (str, datasets.plugins[name].cls))
    block: TypeAdapter[dict[str, Dataset]] = TypeAdapter(kind)
    return block.validate_python({name: options})[name]


class DataOptions(BaseModel):
    """One table of places: a manifest of files, or a dataset of a plugin, such as toy Earth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Path | None = Field(
        default=None,
        description="a CSV, JSONL, JSON or Parquet file with a row per place, or a folder of Parquet files, "
        "relative to the recipe",
    )
    # In a recipe its key is the name of the dataset.
    dataset: Annotated[Dataset | None, BeforeValidator(_build_dataset)] = Field(
        default=None, validation_alias=_DATASET, exclude=True
    )
    columns: dict[str, ColumnChoice] = Field(
        default_factory=dict,
        description="column of each modality, and of key, split, lat, lon, time, label; else its own name. "
        "Several columns of numbers, [lat, lon], are one vector; `place` is the row's place and time",
    )
    files: tuple[str, ...] = Field(
        default=(), description="columns whose strings name files, where that is in doubt"
    )
    inline: tuple[str, ...] = Field(
        default=(), description="columns whose strings are the text itself, where in doubt"
    )
    root: Path | None = Field(
        default=None,
        description="folder that file names are relative to and cannot leave, relative to the recipe; "
        "by default the manifest's own",
    )
    links: tuple[Path, ...] = Field(
        default=(),
        description="other folders that symbolic links under `root` may lead to, relative to the recipe",
    )
    rasters: dict[str, RasterOptions] = Field(
        default_factory=dict,
        description="how windows are cut out of GeoTIFFs, by modality; with a `path` no column is needed",
    )
    first: tuple[str, ...] = Field(
        default=(),
        description="modalities of which only the first of several observations in a cell is used, such as "
        "the first caption of a photo; by default training draws one",
    )
    limit: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="use only this many rows from the top"
    )

    @property
    def source(self) -> str:
        """The name of the manifest's file or of the dataset."""
        return self.dataset.name if self.dataset is not None else cast(Path, self.manifest).name

    def narrow(self, names: Collection[str]) -> Self:
        """Return the options to open these modalities alone: `first` names no others."""
        return self.model_copy(update={"first": tuple(name for name in self.first if name in names)})

    @model_validator(mode="before")
    @classmethod
    def _take_dataset(cls, values: Any) -> Any:
        """Move the block whose key is the name of a dataset to the field of datasets."""
        if not isinstance(values, Mapping):
            return values
        block = dict(cast("Mapping[Any, Any]", values))
        fields = {*cls.model_fields} - {"dataset"} | {_DATASET}
        unknown_keys = [key for key in block if key not in fields]
        if not unknown_keys:
            return block
        installed = registry()
        datasets = {key: block.pop(key) for key in unknown_keys if key in installed.plugins}
        given = [name for name, options in datasets.items() if options is not None]
        unknown = next((key for key in unknown_keys if key not in datasets), None)
        if len(given) > 1:
            raise ValueError(_one_of_all())
        if given:
            block[_DATASET] = given[0], datasets[given[0]]
        elif unknown is not None and installed.broken:  # it may be of a plugin that fails to load
            block[_DATASET] = str(unknown), block.pop(unknown)
        return block

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.manifest is None) == (self.dataset is None):
            raise ValueError(_one_of_all())
        if self.dataset is not None and (
            self.root or self.links or self.files or self.inline or self.rasters
        ):
            raise ValueError(
                "`root`, `links`, `files`, `inline`, `rasters` belong to a manifest; "
                f"{self.dataset.title} has no files"
            )
        for name, column in self.columns.items():
            if name in RESERVED and not isinstance(column, str):
                raise ValueError(
                    f"`columns`: '{name}' is one column; only a modality's may be a vector of many"
                )
        for name, rasters in self.rasters.items():
            if rasters.paths and name in self.columns:
                raise ValueError(f"'{name}' has both a column and a raster's `path`; keep one")
        both = sorted(set(self.files) & set(self.inline))
        if both:
            raise ValueError(f"column '{both[0]}' is in both `files` and `inline`")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, dump_fields: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        fields: dict[str, Any] = dump_fields(self)
        given_alone = info.exclude_none or info.exclude_unset or info.exclude_defaults
        if self.dataset is not None:
            own = self.dataset.model_dump(
                mode=info.mode,
                exclude_none=info.exclude_none,
                exclude_unset=info.exclude_unset,
                exclude_defaults=info.exclude_defaults,
            )
            dataset = {self.dataset.name: own}
        else:
            dataset = {} if given_alone else {_DUMPED_UNUSED: None}
        manifest = {"manifest": fields.pop("manifest")} if "manifest" in fields else {}
        return manifest | dataset | fields

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema, with a key for each dataset that is installed."""
        made = handler(schema)
        body = handler.resolve_ref_schema(made)
        keys = {key: value for key, value in body["properties"].items() if key not in (_DATASET, "dataset")}
        datasets = {
            name: {
                "anyOf": [handler(plugin.cls.__pydantic_core_schema__), {"type": "null"}],
                "default": None,
                "description": plugin.cls.about,
            }
            for name, plugin in registry().plugins.items()
        }
        body["properties"] = {"manifest": keys.pop("manifest"), **datasets, **keys}
        return made


def _one_of_all() -> str:
    names = ["`manifest`", *(f"`{name}`" for name in registry().plugins)]
    return f"give exactly one of {', '.join(names[:-1])} and {names[-1]}"


class MixedData(DataOptions):
    """One of several tables that a stage draws from."""

    weight: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        allow_inf_nan=False,
        description="share of the rows drawn, relative to the other tables' weights; "
        "default for all: as many rows as each has",
    )


class NeighbourOptions(NamedTuple):
    """Options of neighbour batches: the distance range, the share of grouped rows, the group size."""

    min_km: float
    max_km: float
    share: float  # of the rows of a batch that come in groups
    group_size: int  # rows of a group, at most
