"""Options that several commands share."""

from __future__ import annotations

import click

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
