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
# Those of torch spin for some microseconds, in which most waits of small encoders end, and then sleep.
# This must be set before torch and numpy are imported. numpy's OpenBLAS has threads of its own, which always
# spin: its products are small here, and torch makes the large ones.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

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
    "recipes": (
        "geobind.cli.recipe:recipes_command",
        "List the recipes that come with geobind, show or copy one.",
    ),
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


# Which commands serve what, in the order a newcomer meets them.
SECTIONS = {
    "Train": ("run", "plan", "sweep", "emergence", "check", "schema", "recipes", "new"),
    "Data": ("import", "data", "modalities", "toyearth"),
    "Use": (
        "embed",
        "archive",
        "search",
        "map",
        "index",
        "serve",
        "classify",
        "similarity",
        "compose",
        "export",
    ),
    "Inspect": ("eval", "probe", "report", "compare", "verify", "cache", "doctor"),
}
_BUNDLE = "runs/three_modal"
EXAMPLES = {
    "run": "geobind run three_modal --set stages.0.epochs=2",
    "plan": "geobind plan three_modal --memory 8GiB",
    "sweep": "geobind sweep ablations/temperature --measure R@1",
    "emergence": "geobind emergence three_modal --out runs/anchors",
    "check": "geobind check my_recipe.yaml --set width=256",
    "schema": "geobind schema > recipe.schema.json",
    "recipes": "geobind recipes",
    "recipes show": "geobind recipes show three_modal",
    "recipes copy": "geobind recipes copy three_modal --out mine.yaml",
    "new modality": "geobind new modality weather",
    "new dataset": "geobind new dataset lakes",
    "new recipe": "geobind new recipe photos_and_tiles --out mine.yaml",
    "import": "geobind import eurosat EuroSAT/ --out eurosat.parquet",
    "data check": "geobind data check places.csv --good good.csv",
    "data split": "geobind data split places.csv --out split.parquet",
    "data pack": "geobind data pack places.csv --out packed",
    "data show": "geobind data show places.csv --out rows.png",
    "modalities": "geobind modalities list",
    "modalities list": "geobind modalities list --json",
    "modalities show": "geobind modalities show satellite",
    "toyearth": "geobind toyearth planet --places 100",
    "embed": f"geobind embed {_BUNDLE} satellite tile1.png tile2.png --out tiles.npy",
    "archive info": "geobind archive info scene.parquet",
    "archive check": "geobind archive check scene.parquet",
    "archive merge": "geobind archive merge scene.parquet",
    "search": f'geobind search scene.parquet --bundle {_BUNDLE} --query text="deep snow" -k 20',
    "map": f'geobind map scene.parquet --bundle {_BUNDLE} --query text="deep snow" --out snow.tif',
    "index build": "geobind index build scene.parquet --out index",
    "index info": "geobind index info index",
    "serve": f"geobind serve scene.parquet --bundle {_BUNDLE}",
    "classify": f"geobind classify {_BUNDLE} satellite tile.png --label snow --label desert",
    "similarity": f'geobind similarity {_BUNDLE} satellite=@tile.png text="deep snow"',
    "compose": f'geobind compose {_BUNDLE} --query text="deep snow" --out snow.npy',
    "export": f"geobind export {_BUNDLE} satellite --out tiles.onnx",
    "eval": f"geobind eval {_BUNDLE} --data toyearth --split test",
    "probe": f"geobind probe {_BUNDLE} --data toyearth --modality satellite",
    "report": "geobind report runs/three_modal",
    "compare": "geobind compare runs/first runs/second --out compare.html",
    "verify": f"geobind verify {_BUNDLE}",
    "cache list": "geobind cache list",
    "cache prune": "geobind cache prune --max-gb 20",
    "cache verify": "geobind cache verify",
    "doctor": "geobind doctor --json",
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
        _add_examples(command, cmd_name)
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
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:10}", COMMANDS[name][1]) for name in names])

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
        if not command.invoke_without_command:
            return
    if not any(param.name == "quiet" for param in command.params):
        for letter, name, text in (("-q", "--quiet", _QUIET), ("-v", "--verbose", _VERBOSE)):
            option = click.Option(
                [letter, name], is_flag=True, expose_value=False, callback=change, help=text
            )
            command.params.append(option)
        command.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, callback=show, help=_SHOW)
        )


def _add_examples(command: click.Command, name: str) -> None:
    """End the help of a command, and of those below it, with an example."""
    if name in EXAMPLES:
        command.epilog = f"\b\nExample:\n  {EXAMPLES[name]}"
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            _add_examples(inner, f"{name} {word}")


def _print_versions(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Print the versions that a report of a fault needs, without importing torch."""
    if not value or ctx.resilient_parsing:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    click.echo(f"geobind {geobind.__version__}")
    for package in ("torch", "torchvision", "numpy"):
        try:
            click.echo(f"{package} {version(package)}")
        except PackageNotFoundError:
            click.echo(f"{package} not installed")
    click.echo(f"Python {platform.python_version()}\n{platform.platform()}")
    ctx.exit()


def _level(*, quiet: bool, verbose: bool) -> int:
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other")
    return logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Print the versions of geobind, torch, Python and the platform.",
)
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
