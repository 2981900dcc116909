"""Commands beside `run` that write: killed anywhere, done again, and compared with undisturbed ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import fault_world as world
import pyarrow.parquet as pq
import scenes
import torch
import toy
from fault_kills import Different, Kill, kill_in_chains
from fault_moments import Deck, Moments, moments_of
from PIL import Image

from geobind.archive import Archive, embed_raster
from geobind.binder import Binder
from geobind.data import pack, split
from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import GeobindError
from geobind.importers import writing
from geobind.studies import runner
from geobind.studies.grid import build_grid, parse_axis
from geobind_datasets.image_folder import ImageFolder

SHORT = ("stages.0.steps=3", "stages.0.epochs=null", "stages.1.steps=2", "stages.1.epochs=null")
RATES = "stages.two.optimizer.lr=0.01,0.02"


class Command(NamedTuple):
    """A command: what it needs, what it does, and what it comes to."""

    prepare: Callable[[Path], None]
    act: Callable[[Path], None]
    outcome: Callable[[Path], object]
    check: Callable[[Path], None] = lambda _: None  # right after a kill


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digests(folder: Path, pattern: str) -> dict[str, str]:
    return {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob(pattern))}


def _card(folder: Path) -> dict[str, object]:
    card = json.loads((folder / "binder.json").read_text())
    card.pop("created")
    return card


def _binder(seed: int) -> Binder:
    return Binder({"left": toy.Left(), "right": toy.Right()}, 8, seed=seed)


def _embedded(binder: Binder) -> str:
    return hashlib.sha256(binder.embed("left", [toy.view(3, "left")], numpy=True).tobytes()).hexdigest()


def _save_old(folder: Path) -> None:
    _binder(0).save(folder / "bundle")


def _save(folder: Path) -> None:
    _binder(1).save(folder / "bundle")


def _saved(folder: Path) -> object:
    return _digests(folder / "bundle", "*.safetensors"), _card(folder / "bundle")


def _old_new_or_refused(folder: Path) -> None:
    try:
        found = _embedded(Binder.load(folder / "bundle"))
    except GeobindError as error:
        if "binder.json" not in str(error):
            raise Different(f"a bundle whose saving was killed says: {error}") from error
        return
    if found not in {_embedded(_binder(0)), _embedded(_binder(1))}:
        raise Different("a bundle whose saving was killed loads, and is neither the old one nor the new")


def _write_images(folder: Path) -> None:
    lines = ["key,satellite,lat,lon"]
    for number in range(12):
        path = folder / "scenes" / f"class{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 2 * number, 3 * number)).save(path)
        lines.append(f"row{number},{path.relative_to(folder)},{number},{number}")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")


def _pack(folder: Path) -> None:
    table = open_table(DataOptions(manifest=Path("images.csv")), folder, ("satellite",))
    pack.pack_table(table, folder / "packed", shard_bytes=800)


def _packed(folder: Path) -> object:
    """The contents of the shards, without the time in their heads at which the manifest was written."""
    return {path.name: pq.read_table(path).to_pydict() for path in sorted((folder / "packed").iterdir())}


def _import(folder: Path) -> None:
    writing.write_manifest(ImageFolder(sources=(folder / "scenes",)), folder / "images.parquet")


def _split(folder: Path) -> None:
    options = split.SplitOptions(shares=(0.5, 0.5), names=("train", "test"), by="random")
    split.split_manifest(folder / "images.csv", folder / "split.csv", options)


def _write_scene(folder: Path) -> None:
    scenes.write_scene(folder / "scene.tif")


def _embed(folder: Path) -> None:
    out = folder / "scene.parquet"
    embed_raster(
        scenes.build_binder(), "mean", folder / "scene.tif", out, size_m=160, stride_m=40, progress=False
    )


def _embedded_scene(folder: Path) -> object:
    """The archive, and that nothing is left beside it and its item."""
    return _digests(folder, "scene.parquet"), sorted(path.name for path in folder.glob("scene.*"))


def _whole_or_absent(folder: Path) -> None:
    if (folder / "scene.parquet").exists():
        Archive.open(folder / "scene.parquet").check()


def _write_wheel(folder: Path) -> None:
    world.prepare(folder)
    toy.recipe(folder, text=world.THREE)


def _sweep(folder: Path) -> None:
    def run_cell(cell: object, key: str, home: Path) -> bool:
        from geobind.recipe import load_recipe
        from geobind.training.run import run

        run(load_recipe(cell.recipe, cell.overrides), home, resume=True)
        runner.files.write_json(home / "cell.json", {"key": key})
        return True

    runner._run = run_cell  # in this process, which is thrown away, so that a kill hits the cell as well
    cells = build_grid(str(folder / "toy.yaml"), [parse_axis(RATES)], SHORT)
    runner.run_cells(cells, folder / "grid")


def _swept(folder: Path) -> object:
    cells = sorted((folder / "grid").iterdir())
    losses = [[tuple(row) for row in world._rows(cell / "metrics.csv")] for cell in cells]
    weights = _digests(folder / "grid", "*.safetensors")
    return weights, _digests(folder / "grid", "retrieval.json"), losses


def _write_evaluated(folder: Path) -> None:
    world.prepare(folder)
    modalities = {"hub": toy.Hub(), "spoke": toy.Spoke(), "rim": toy.Rim()}
    Binder(modalities, 8, seed=0).save(folder / "bundle")


def _evaluate(folder: Path) -> None:
    from geobind.cli import main

    words = [str(folder / "bundle"), "--data", str(folder / "wheel.jsonl"), "--calibrate", "val", "--keep"]
    words += ["--column", "hub=hub", "--column", "spoke=spoke", "--column", "rim=rim"]
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.suppress(SystemExit),
    ):
        main(["eval", *words], standalone_mode=False)


def _train(folder: Path) -> None:
    """Train beside another process that fills the same embedding cache and is killed as well."""
    world.train(folder / "one", *SHORT, resume=True)


def _prepare_two(folder: Path) -> None:
    for name in ("one", "two"):
        world.prepare(folder / name)


def _trained(folder: Path) -> object:
    return world.outcome(folder / "one" / "run")


COMMANDS = {
    "save": Command(_save_old, _save, _saved, _old_new_or_refused),
    "pack": Command(_write_images, _pack, _packed),
    "import": Command(_write_images, _import, lambda folder: _digests(folder, "*.parquet")),
    "split": Command(_write_images, _split, lambda folder: _digests(folder, "split.csv")),
    "embed": Command(_write_scene, _embed, _embedded_scene, _whole_or_absent),
    "sweep": Command(_write_wheel, _sweep, _swept),
    "eval --keep": Command(_write_evaluated, _evaluate, _saved),
    "cache, two processes": Command(_prepare_two, _train, _trained),
}
BESIDE = {"cache, two processes": lambda folder: world.train(folder / "two", *SHORT, resume=True)}


class CommandKilling:
    """Kills commands, in turn.

    Args:
        folder: For all that they write; what ended well is removed.
        seed: Of where and when to kill.
        names: The commands.
        timed: The share of kills by the clock, at any instruction; the others are at moments that are known.
    """

    def __init__(self, folder: Path, seed: int, names: Sequence[str] = (*COMMANDS,), timed: float = 0.3):
        self.folder, self.chance, self.timed, self.names = folder, random.Random(seed), timed, list(names)
        self._decks = {name: Deck(self.chance) for name in names}
        self._whole: dict[str, tuple[object, dict[str, int], float]] = {}

    def kills(self, wanted: int) -> Iterator[Kill]:
        """Kill so many processes; after each few the command is let end and compared.

        Raises:
            Different: It came to something else than one that nothing happened to.
        """
        return kill_in_chains(self._chain, wanted)

    def _uninterrupted(self, name: str) -> tuple[object, dict[str, int], float]:
        if name not in self._whole:
            home = self._home(name)
            code, seconds = self._live(name, home, Moments())
            if code:
                raise Different(f"{name} fails by itself:\n{(home / 'said.txt').read_text()}")
            self._whole[name] = COMMANDS[name].outcome(home), moments_of(home / "moments.txt"), seconds
            shutil.rmtree(home)
        return self._whole[name]

    def _chain(self, number: int, most: int) -> list[Kill]:
        name = self.names[number % len(self.names)]
        expected, moments, seconds = self._uninterrupted(name)
        home, command, deck = self._home(name), COMMANDS[name], self._decks[name]
        kills: list[Kill] = []
        for _ in range(most):
            if self.chance.random() < self.timed:
                delay = self.chance.uniform(0, seconds)
                code, _ = self._live(name, home, None, delay)
                where = f"after {delay:.4f} s"
            else:
                target = deck.draw(moments)
                code, _ = self._live(name, home, Moments(target))
                deck.hit(target)
                where = f"{target.kind}, moment {target.number}"
            if code != -signal.SIGKILL:
                break
            kills.append(Kill(number, name, where))
            command.check(home)
        story = f"'{name}' in {home}, killed {' | '.join(kill.where for kill in kills) or 'never'}"
        if self._live(name, home, None)[0]:
            raise Different(f"{story}: cannot be done again:\n{(home / 'said.txt').read_text()}")
        found = command.outcome(home)
        if found != expected:
            raise Different(f"{story}: came to\n{found}\nand not to\n{expected}")
        if left := [path for path in home.rglob(".*.part") if "cache" not in path.parts]:
            raise Different(f"{story}: leaves {left}")
        shutil.rmtree(home)
        return kills

    def _live(
        self, name: str, home: Path, moments: Moments | None, kill_after: float | None = None
    ) -> tuple[int, float]:
        """Do a command in a forked process, some beside another one; return its exit code and its seconds."""
        beside = _fork(home / "beside.txt", home, BESIDE[name], None) if name in BESIDE else None
        started = time.monotonic()
        child = _fork(home / "said.txt", home, COMMANDS[name].act, moments)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)  # one that has ended is a zombie, and feels nothing
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        seconds = time.monotonic() - started
        if beside is not None:
            if code:
                os.kill(beside, signal.SIGKILL)
            os.waitpid(beside, 0)
        return code, seconds

    def _home(self, name: str) -> Path:
        """Prepare the folder of a command: always the same, as results may hold the names of files."""
        home = self.folder / name.replace(" ", "_").replace(",", "")
        home.mkdir(parents=True)
        COMMANDS[name].prepare(home)
        return home


def _fork(said: Path, home: Path, act: Callable[[Path], None], moments: Moments | None) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with said.open("w") as file:
            os.dup2(file.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.environ["GEOBIND_CACHE"] = str(home / "cache")
        torch.set_num_threads(1)
        if moments is not None:
            moments.watch_files()
        act(home)
        if moments is not None:
            moments.write(home / "moments.txt")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
