"""Options, arguments and output shared by commands."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import click

from geobind.errors import CheckpointError, DataError
from geobind.utils.formatting import format_first_fault

if TYPE_CHECKING:
    from rich.table import Column, Table

    from geobind.binder import Binder
    from geobind.bundles.card import Card
    from geobind.data.options import ColumnChoice, DataOptions
    from geobind.plugins import C, Plugin, Registry
    from geobind.precision import Precision
    from geobind.runtimes import Runtime


Command = TypeVar("Command", bound=Callable[..., Any])


def _bundle(ctx: click.Context, parameter: click.Parameter, name: str) -> str:
    """Return the name of a bundle, that of its run's folder resolved.

    What cannot be one is refused before any heavy import or download.
    """
    from geobind.recipe.base_bundle import find_bundle

    folder = Path(name)
    if (inside := find_bundle(folder)) != folder:
        return str(inside)
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise CheckpointError(
            f"no folder '{name}'; give a bundle's folder, such as runs/NAME/bundle, or owner/name of the hub"
        )
    return name


bundle_argument = click.argument("bundle", callback=_bundle)
bundle_option = click.option(
    "--bundle",
    required=True,
    callback=_bundle,
    help="The bundle that the archive was made with: a folder or hub id.",
)
recipe_argument = click.argument("recipe")
overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Change a value of the recipe, such as stages.0.batch_size=64; repeatable.",
)


def _reserve_stdout(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    """Keep standard output for JSON: whatever else is printed, by plugins too, goes to standard error."""
    if value:
        ctx.meta[_STDOUT] = sys.stdout
        ctx.with_resource(redirect_stdout(sys.stderr))
    return value


_STDOUT = "geobind.stdout"
json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_reserve_stdout, help="Print JSON for programs."
)


def print_json(values: Any) -> None:
    """Print values as JSON on standard output."""
    click.echo(json.dumps(values, indent=1), file=click.get_current_context().meta.get(_STDOUT))


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


def parse_assignments(
    option: str,
    texts: Iterable[str],
    form: str,
    example: str,
    *,
    empty: bool = False,
    repeat: str = "keep one",
) -> dict[str, str]:
    """Read a repeatable option of the form NAME=VALUE.

    Args:
        option: The option, such as `--column`.
        texts: What was given.
        form: Its form, for messages.
        example: One that is right, for messages.
        empty: Whether a value may be empty.
        repeat: What to do instead of giving a name twice, for messages.

    Raises:
        DataError: One is not of that form, or a name is given twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or not (value or empty):
            raise DataError(f"{option} {text}: write {form}, such as {option} {example}")
        if name in values:
            raise DataError(f"{option} {name} is given twice; {repeat}")
        values[name] = value
    return values


def parse_columns(texts: Iterable[str]) -> dict[str, str]:
    """Read `--column NAME=COLUMN`.

    Raises:
        DataError: One is not of that form, or a name is given twice.
    """
    return parse_assignments("--column", texts, "NAME=COLUMN", "label=class")


def split_vectors(columns: Mapping[str, str]) -> dict[str, ColumnChoice]:
    """Return the columns of `--column`; several for one modality, with commas between, are one vector."""
    from geobind.data.cells import PLACE_COLUMNS

    return {
        name: tuple(column.split(",")) if "," in column and name not in PLACE_COLUMNS else column
        for name, column in columns.items()
    }


def read_bundle_card(bundle: str) -> Card:
    """Read the card of a bundle in a folder or on the hub: what it embeds is known before weights are read.

    Raises:
        CheckpointError: There is none.
    """
    from geobind.bundles.bundle import fetch_folder
    from geobind.bundles.card import CARD, read_card

    return read_card(fetch_folder(bundle, (CARD,)))


class Compute(NamedTuple):
    """Where and how the encoders of a command compute."""

    device: str | None  # None: a GPU where there is one
    precision: Precision
    workers: int | None  # None: as many as suit the machine
    runtime: Runtime = "torch"

    def load(self, bundle: str, modalities: Collection[str] | None = None) -> Binder:
        """Load a bundle, a folder or a hub id, with these modalities or all.

        Raises:
            GeobindError: It cannot be read, or there is no such device, or precision of the runtime.
        """
        import torch

        from geobind.binder import Binder

        device = self.device
        if device is None:
            device = "cuda" if self.runtime == "torch" and torch.cuda.is_available() else "cpu"
        binder = Binder.from_pretrained(
            bundle, device=device, precision=self.precision, runtime=self.runtime, modalities=modalities
        )
        if self.workers is not None:
            binder.workers = self.workers
        return binder


def compute_options(*, workers: bool, runtime: bool = False) -> Callable[[Command], Command]:
    """Return the options that say where and how encoders compute; a command gets them as `compute`.

    Args:
        workers: Whether the command embeds so much that threads prepare it.
        runtime: Whether it embeds so much that compiling an encoder pays, and says what came of it.
    """
    low = "auto: bfloat16 where it is faster and embeddings stay the same"
    options = [
        click.option("--device", help="Where encoders compute: cpu, cuda:1, ...; default: a GPU, if any."),
        click.option(
            "--precision",
            type=click.Choice(["float32", "bfloat16", *(["int8"] if runtime else []), "auto"]),
            default="float32",
            show_default=True,
            help=f"What encoders compute in; {low}{'; int8: onnxruntime alone' if runtime else ''}.",
        ),
    ]
    if runtime:
        about = "What encoders run in, on the CPU; prints the least cosine to torch in float32."
        chosen = click.Choice(["torch", "onnxruntime", "openvino"])
        options.append(click.option("--runtime", type=chosen, default="torch", show_default=True, help=about))
    if workers:
        about = "Threads that prepare inputs; default: one for each processor."
        options.append(click.option("--workers", type=click.IntRange(0, 1024), help=about))

    def add(command: Command) -> Command:
        @wraps(command)
        def run(
            *args: Any, device: Any, precision: Any, workers: Any = None, runtime: Any = "torch", **given: Any
        ) -> Any:
            return command(*args, compute=Compute(device, precision, workers, runtime), **given)

        for option in reversed(options):
            run = option(run)
        return cast("Command", run)

    return add


def print_precisions(binder: Binder) -> None:
    """Print the type that each modality was computed in, where another than float32 was asked for."""
    for name, choice in binder.precisions.items():
        click.echo(f"{name}: {choice}", err=True)


def describe_precisions(binder: Binder) -> dict[str, Any]:
    """Return the same for JSON."""
    return {name: choice.to_dict() for name, choice in binder.precisions.items()}


def data_options_from_cli(
    card: Card, data: str, columns: Mapping[str, str], root: Path | None
) -> DataOptions:
    """Return the `data` block of the options `--data`, `--column` and `--root`."""
    from pydantic import ValidationError

    from geobind.data.dataset import registry
    from geobind.data.options import DataOptions

    if data not in registry().plugins:
        return DataOptions(manifest=Path(data), columns=split_vectors(columns), root=root)
    for block in _of_recipe(card):
        if isinstance(block, Mapping) and block.get(data) is not None:
            try:
                known = DataOptions.model_validate(block)
            except ValidationError as error:
                raise CheckpointError(f"binder.json: {format_first_fault(error, 'recipe', 'data')}") from None
            return known.model_copy(update={"columns": {**known.columns, **split_vectors(columns)}})
    return DataOptions.model_validate({data: {}, "columns": split_vectors(columns)})


def _of_recipe(card: Card) -> list[Any]:
    """Return the `data` blocks of a bundle's recipe, that of `evaluate` first."""
    recipe: Mapping[str, Any] = card.recipe
    evaluate = recipe.get("evaluate")
    return [evaluate.get("data") if isinstance(evaluate, Mapping) else None, recipe.get("data")]


def list_plugins(
    found: Registry[C],
    key: str,
    row_of: Callable[[Plugin[C]], dict[str, Any]],
    line_of: Callable[[dict[str, Any]], str],
    as_json: bool,
) -> None:
    """Print the plugins of a registry.

    Args:
        found: The registry.
        key: What its rows are called in JSON.
        row_of: Returns the facts of one plugin, its `name` included.
        line_of: Returns the text beside a plugin's name, from its facts.
        as_json: Whether to print JSON.
    """
    rows = [row_of(plugin) for plugin in found.plugins.values()]
    broken = [{"plugin": str(one.source), "reason": one.reason} for one in found.broken]
    if as_json:
        print_json({key: rows, "broken": broken})
        return
    wide = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        click.echo(f"{row['name']:{wide}}  {line_of(row)}")
    if not rows:
        click.echo(f"no {found.kind} is installed; is geobind itself? pip install -e .")
    for one in broken:
        click.echo(f"failed to load: {one['plugin']}: {one['reason']}", err=True)


_MAX_TEXT = 36  # letters of a cell of text that are kept on one line; figures are never broken


def print_table(table: Table) -> None:
    """Print a table without breaking figures: one too wide for the terminal is printed in parts.

    Each part has the first column and as many others as fit; the caption follows the last.
    """
    from rich.console import Console

    console = Console(emoji=False)  # a key such as earth:train:5 is no train
    for number, (columns, wide) in enumerate(_fit_columns(table, console.width)):
        part = _take_columns(table, columns)
        part.title = table.title if number == 0 else None
        Console(width=max(console.width, wide), emoji=False).print(part)
    if table.caption:
        console.print(table.caption, style="dim", highlight=False)


def _fit_columns(table: Table, width: int) -> Iterator[tuple[list[int], int]]:
    """Yield the columns of each part and its width, which is no more than `width` if any part can be."""
    wide = [_measure_column(column) for column in table.columns]
    line = 1 if table.box else 0
    apart = table.padding[1] + table.padding[3] + line
    used, chosen = wide[0] + apart + line, [0]
    for number in range(1, len(wide)):
        if len(chosen) > 1 and used + wide[number] + apart > width:
            yield chosen, used
            used, chosen = wide[0] + apart + line, [0]
        used += wide[number] + apart
        chosen.append(number)
    yield chosen, used


def _measure_column(column: Column) -> int:
    """Return the letters of the widest line of a column; long texts may be wrapped between words."""
    from rich.text import Text

    widest = 0
    for cell in (column.header, *column.cells):
        text = cell if isinstance(cell, Text) else Text.from_markup(str(cell), emoji=False)
        for line in text.split("\n"):
            words = max((len(word) for word in line.plain.split()), default=0)
            most = line.cell_len if column.no_wrap else max(min(line.cell_len, _MAX_TEXT), words)
            widest = max(widest, most)
    return widest


def _take_columns(table: Table, columns: Sequence[int]) -> Table:
    from rich.table import Table

    part = Table(box=table.box, padding=table.padding, show_lines=table.show_lines)
    cells: list[list[Any]] = []
    for number in columns:
        column = table.columns[number]
        part.add_column(
            column.header,
            justify=column.justify,
            no_wrap=column.no_wrap,
            overflow=column.overflow,
        )
        cells.append(list(column.cells))
    for row, values in zip(table.rows, zip(*cells, strict=True), strict=True):
        part.add_row(*values, end_section=row.end_section)
    return part
