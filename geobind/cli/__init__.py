"""The command line, whose commands are imported on first use."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import traceback
from contextlib import suppress
from typing import Any

import click

import geobind
from geobind.errors import GeobindError, did_you_mean
from geobind.utils.logs import log_to_stderr, set_level

# Threads that spin while they wait for each other lose the cores they need wherever another program runs too.
# This must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# command -> (module:attribute, one line for --help); commands import heavy libraries inside their functions.
COMMANDS = {
    "run": ("geobind.cli.run:run_command", "Run a recipe: train its stages, measure, save a bundle."),
    "plan": ("geobind.cli.plan:plan_command", "Predict what a run takes of time, memory and disk."),
    "sweep": ("geobind.cli.studies:sweep_command", "Run a recipe with many settings: one table, one plot."),
    "emergence": (
        "geobind.cli.studies:emergence_command",
        "Compare anchors with all to all, on your data, with equal work.",
    ),
    "check": ("geobind.cli.recipe:check_command", "Find every mistake of a recipe without running it."),
    "schema": ("geobind.cli.recipe:schema_command", "Print the JSON schema of recipes, for editors."),
    "recipes": ("geobind.cli.recipe:recipes_command", "List the recipes that come with geobind."),
    "import": (
        "geobind.cli.importing:import_command",
        "Turn a public dataset, as distributed, into a manifest.",
    ),
    "data": ("geobind.cli.data:data_command", "Look at a manifest, split it by place, pack it, draw it."),
    "modalities": ("geobind.cli.plugins:modalities_command", "List the installed modalities, or show one."),
    "eval": (
        "geobind.cli.evaluate:eval_command",
        "Measure a bundle on held-out rows, by clean and published conventions.",
    ),
    "probe": (
        "geobind.cli.probe:probe_command",
        "Recognise classes from a few examples or none; read facts of places.",
    ),
    "embed": (
        "geobind.cli.embed:embed_command",
        "Embed files, a raster's tiles or a table's rows with a bundle.",
    ),
    "archive": ("geobind.cli.archive:archive_command", "Look at an archive of embeddings, check or join it."),
    "search": ("geobind.cli.search:search_command", "Find the tiles of an archive that a query describes."),
    "map": ("geobind.cli.search:map_command", "Draw a map of a query over an archive, as a GeoTIFF."),
    "index": ("geobind.cli.search:index_command", "Build an index of an archive, its recall measured."),
    "classify": ("geobind.cli.search:classify_command", "Classify observations by labels in words."),
    "similarity": ("geobind.cli.search:similarity_command", "Compare observations of any modalities."),
    "compose": ("geobind.cli.search:compose_command", "Add observations into one embedding."),
    "export": (
        "geobind.cli.export:export_command",
        "Write an encoder as ONNX or a torch program, checked against the bundle.",
    ),
    "serve": (
        "geobind.cli.serve:serve_command",
        "Explore an archive on a map in the browser: by words, sounds, pictures.",
    ),
    "verify": (
        "geobind.cli.bundle:verify_command",
        "See that a bundle is whole, and which indexes of an older one hold.",
    ),
    "report": ("geobind.cli.bundle:report_command", "Write the report of a run again."),
    "compare": (
        "geobind.cli.bundle:compare_command",
        "Set runs side by side: what differs, and what it changed.",
    ),
    "cache": (
        "geobind.cli.plugins:cache_command",
        "List, prune or verify the embeddings kept of frozen encoders.",
    ),
    "new": ("geobind.cli.new:new_command", "Begin a modality, a dataset or a recipe from a template."),
    "doctor": (
        "geobind.cli.doctor:doctor_command",
        "Check this installation, and name what mends each fault.",
    ),
    "toyearth": (
        "geobind.cli.data:dataset_command",
        "Write toy Earth as files: tiles, photos, sounds, captions.",
    ),
}


class LazyGroup(click.Group):
    """A group of commands that are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        _add_level_options(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of a name, or raise with the name that may be meant."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], COMMANDS, f"there are {', '.join(COMMANDS)}")
            raise click.UsageError(f"no command '{args[0]}'; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that --help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn every error into one message and an exit code."""
        ctx.meta[_DEBUG] = ctx.params["debug"]
        try:
            with log_to_stderr(_level(quiet=ctx.params["quiet"], verbose=ctx.params["verbose"])):
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, SystemExit):
            raise
        except BaseException as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # whoever read standard output has gone, which click knows to be no error
            sys.exit(_explain(error, debug=ctx.meta[_DEBUG]))


def _explain(error: BaseException, *, debug: bool) -> int:
    """Print what went wrong and return the exit code."""
    if debug:
        with suppress(OSError):
            traceback.print_exception(error)
    if isinstance(error, GeobindError):
        from geobind.cli.run import message_of_rank

        if (message := message_of_rank(str(error))) is not None:
            _print_error("error: ", error, message)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        _print_error("", error)
        return getattr(error, "exit_code", 130)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _print_error("error: the disk is full: ", error)
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        _print_error("error: ", error, f"{error.filename}: {error.strerror} (--debug shows the traceback)")
    elif isinstance(error, MemoryError):
        _print_error("error: ", error, f"memory is full{f': {error}' if str(error) else ''}; free some")
    else:
        from geobind.cli.bug_report import explain_unexpected

        _print_error("error: ", error, explain_unexpected(error))
    return 1


def _print_error(start: str, error: BaseException, message: str | None = None) -> None:
    """Print a message and what was noted on its way; a full disk under standard error costs nothing more."""
    told = message or str(error) or ("" if hasattr(error, "exit_code") else "interrupted")
    with suppress(OSError):
        if told:
            click.echo("\n".join([start + told, *getattr(error, "__notes__", [])]), err=True)


_DEBUG = "geobind.debug"
_SHOW = "Print the traceback of an error, too."
_QUIET, _VERBOSE = "Print warnings and errors, no progress.", "Print debug messages, with times and modules."


def _add_level_options(command: click.Command) -> None:
    """Add --quiet, --verbose and --debug to a command, for use after its name."""

    def change(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            set_level(_level(quiet=param.name == "quiet", verbose=param.name == "verbose"))

    def show(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.meta[_DEBUG] = True

    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _add_level_options(inner)
    elif not any(param.name == "quiet" for param in command.params):
        for letter, name, text in (("-q", "--quiet", _QUIET), ("-v", "--verbose", _VERBOSE)):
            option = click.Option(
                [letter, name], is_flag=True, expose_value=False, callback=change, help=text
            )
            command.params.append(option)
        command.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, callback=show, help=_SHOW)
        )


def _level(*, quiet: bool, verbose: bool) -> int:
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other")
    return logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(geobind.__version__, "--version")
@click.option("-q", "--quiet", is_flag=True, help=_QUIET)
@click.option("-v", "--verbose", is_flag=True, help=_VERBOSE)
@click.option("--debug", is_flag=True, help=_SHOW)
@click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE.py", help="Use the modalities of this file."
)
def main(quiet: bool, verbose: bool, debug: bool, plugins: tuple[str, ...]) -> None:  # `invoke` reads three
    """Bind any kind of observation of a place to satellite imagery, in one embedding space."""
    if plugins:
        from geobind.plugins import register

        for file in plugins:
            register(file)
