"""What a plugin can implement. There is one hook; docs/hooks.md explains it."""

from __future__ import annotations

import pluggy

from geobind.modality import Modality

hookspec = pluggy.HookspecMarker("geobind")
hookimpl = pluggy.HookimplMarker("geobind")


@hookspec
def geobind_modalities() -> list[type[Modality]]:  # pyright: ignore[reportReturnType]
    """Return the modality classes this plugin provides."""
