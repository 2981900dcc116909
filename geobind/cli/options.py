"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from geobind.errors import CheckpointError

Command = TypeVar("Command", bound=Callable[..., Any])


def _bundle(ctx: click.Context, parameter: click.Parameter, name: str) -> str:
    """Refuse what can be no bundle before anything heavy is imported, or the hub is asked for it."""
    folder = Path(name)
    if (folder / "bundle").is_dir() and not (folder / "binder.json").is_file():
        raise CheckpointError(f"{name}: is the folder of a run; its bundle is {folder / 'bundle'}")
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"no folder '{name}'; give a bundle's folder, such as runs/NAME/bundle, or owner/name of the hub"
        )
    return name


bundle_argument = click.argument("bundle", callback=_bundle)
recipe_argument = click.argument("recipe")
overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Change a value of the recipe, such as stages.0.batch_size=64; repeatable.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
memory_option = click.option(
    "--memory",
    metavar="SIZE",
    envvar="GEOBIND_MEMORY",
    help="Memory there is, such as 8GiB, of the accelerator or of the process; default: what is free.",
)


def out_file(*names: str, about: str) -> Callable[[Command], Command]:
    """Return the option that says which file a command writes; a folder is refused before any work."""
    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option(*names, type=kind, required=True, help=about)
