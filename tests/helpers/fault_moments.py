"""The moments of a run at which it can be killed: each change of a file, halfway and whole, each step."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Target(NamedTuple):
    """The n-th moment of a kind."""

    kind: str
    number: int


def kind_of(path: object) -> str:
    """The purpose of a file."""
    text = str(path)
    for word, kind in (
        ("embeddings", "cache"),
        ("cache", "tables"),
        ("state.ckpt", "checkpoint"),
        ("metrics.csv", "metrics"),
        ("stages", "end of a stage"),
        ("packed", "packing"),
        ("images.parquet", "import"),
        ("split.csv", "split"),
        ("scene.parts", "part of an archive"),
        ("scene.", "archive"),
        ("bundle", "bundle"),
        ("figures", "report"),
        ("report", "report"),
    ):
        if word in text:
            return kind
    return "other files"


class Moments:
    """Counts the moments of this process by kind, and kills it at one of them."""

    def __init__(self, target: Target | None = None) -> None:
        self.target = target
        self.seen: Counter[str] = Counter()

    def pass_by(self, kind: str, before: Callable[[], object] = lambda: None) -> None:
        """Count a moment; if it is the last, do what comes `before` the end."""
        self.seen[kind] += 1
        if self.target == (kind, self.seen[kind]):
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, path: Path) -> None:
        path.write_text("".join(f"{count} {kind}\n" for kind, count in sorted(self.seen.items())))

    def watch_files(self) -> None:
        """Watch the files of this process, which is one that will be thrown away."""
        for name in ("replace", "rename", "unlink", "mkdir", "rmdir", "link", "open"):
            self._around(os, name, lambda args: kind_of(args[0]))
        self._writing()

    def install(self) -> None:
        """Watch a run in this process, which is one that will be thrown away."""
        import toy

        from geobind.data import loader
        from geobind.evaluation import held_out
        from geobind.training import metrics as record
        from geobind.training import stage

        self.watch_files()
        self._around(record.Recorder, "add", lambda _: "step")
        self._around(toy.Net, "forward", lambda _: self._computing)
        self._around(stage.Checkpoint, "restore", lambda _: "between stages")
        self._around(stage, "run_stage", lambda _: "between stages")
        self._around(loader.Collator, "__call__", lambda _: "loading")
        self._appending(record.MetricsFile)
        self._computing = "computing"
        measure = held_out.build_retrieval_table

        def tabulate(*args: Any, **named: Any) -> Any:
            self.pass_by("evaluation")
            found = measure(*args, **named)
            self.pass_by("evaluation")
            return found

        held_out.build_retrieval_table = tabulate
        embed = held_out.embed_rows

        def embed_rows(*args: Any, **named: Any) -> Any:
            self._computing = "evaluation"
            return embed(*args, **named)

        held_out.embed_rows = embed_rows

    def _around(self, owner: Any, name: str, kind: Callable[[Sequence[Any]], str]) -> None:
        """Pass by before and after a call."""
        call = getattr(owner, name)

        def watched(*args: Any, **named: Any) -> Any:
            this = kind(args)
            self.pass_by(this)
            found = call(*args, **named)
            self.pass_by(this)
            return found

        setattr(owner, name, watched)

    def _writing(self) -> None:
        """Pass by before a file is written, when it is empty, when a part of it is there, and after."""
        write = Path.write_bytes

        def write_bytes(path: Path, content: Any) -> int:
            kind = kind_of(path)
            self.pass_by(kind)
            self.pass_by(kind, lambda: write(path, b""))
            self.pass_by(kind, lambda: write(path, bytes(content)[: len(content) // 2]))
            found = write(path, content)
            self.pass_by(kind)
            return found

        Path.write_bytes = write_bytes
        sync = os.fsync

        def fsync(handle: int) -> None:
            self.pass_by("fsync")
            sync(handle)

        os.fsync = fsync

    def _appending(self, metrics: Any) -> None:
        """Pass by before a row is appended, when a part of it is there, and after."""
        add = metrics.add

        def torn(path: Path, stage: str, rows: Sequence[dict[str, Any]]) -> None:
            with path.open("a") as file:
                file.write(f"{stage},{rows[0]['step']},{rows[0]['loss']}"[: random.randrange(1, 12)])

        def watched(self_: Any, stage: str, rows: Sequence[dict[str, Any]]) -> None:
            self.pass_by("metrics")
            self.pass_by("torn row", lambda: torn(self_.path, stage, rows))
            add(self_, stage, rows)
            self.pass_by("metrics")

        metrics.add = watched


def moments_of(path: Path) -> dict[str, int]:
    """Read how many moments of each kind a run had."""
    lines = (line.split(" ", 1) for line in path.read_text().splitlines())
    return {kind: int(count) for count, kind in lines}


class Deck:
    """Draws moments so that every kind comes in turn, what is over soon as well.

    Args:
        chance: Draws.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._kinds: list[str] = []

    def draw(self, counts: dict[str, int]) -> Target:
        """Draw a moment of a run that has so many of each kind."""
        if not (left := [kind for kind in self._kinds if kind in counts]):
            self._kinds = left = sorted(counts)
        kind = self._chance.choice(left)
        return Target(kind, self._chance.randint(1, counts[kind]))

    def hit(self, target: Target) -> None:
        """Lay the kind aside until all others have had their turn."""
        if target.kind in self._kinds:
            self._kinds.remove(target.kind)
