"""Hook specifications of plugins; docs/hooks.md explains each hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

from geobind.modality import Modality

if TYPE_CHECKING:
    from geobind.data.dataset import Dataset
    from geobind.importers.contract import Importer
    from geobind.loggers import Logger
    from geobind.pretrained import PackagedWeights
    from geobind.search import VectorIndex

hookspec = pluggy.HookspecMarker("geobind")
hookimpl = pluggy.HookimplMarker("geobind")


@hookspec
def geobind_modalities() -> list[type[Modality]]:  # pyright: ignore[reportReturnType]
    """Return the modality classes this plugin provides."""


@hookspec
def geobind_importers() -> list[type[Importer]]:  # pyright: ignore[reportReturnType]
    """Return the importers of datasets this plugin provides."""


@hookspec
def geobind_datasets() -> list[type[Dataset]]:  # pyright: ignore[reportReturnType]
    """Return the datasets this plugin provides: named sources of the tables of recipes."""


@hookspec
def geobind_loggers() -> list[type[Logger]]:  # pyright: ignore[reportReturnType]
    """Return the loggers this plugin provides."""


@hookspec
def geobind_weights() -> list[type[PackagedWeights]]:  # pyright: ignore[reportReturnType]
    """Return the pretrained weights in packages that this plugin offers."""


@hookspec
def geobind_indexes() -> list[type[VectorIndex]]:  # pyright: ignore[reportReturnType]
    """Return the kinds of index this plugin provides, for search over archives of embeddings."""
