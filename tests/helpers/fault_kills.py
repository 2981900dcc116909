"""Kill a run again and again, go on with it, and see that it ends as one that nothing happened to."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import fault_world as world
from fault_moments import Deck, Moments, moments_of

IN_A_ROW = 4  # kills of one run before it is let end


class Kill(NamedTuple):
    """A process that was killed."""

    chain: int  # which run, of those that were killed several times
    variant: str
    where: str


class Different(Exception):
    """A run that was killed ended otherwise than one that was not; the message says where it was killed."""


def kill_in_chains(kill_chain: Callable[[int, int], Sequence[Kill]], wanted: int) -> Iterator[Kill]:
    """Kill so many processes in chains, each of one run; yield the kills of a chain when it has ended."""
    done = chain = 0
    while done < wanted:
        for kill in kill_chain(chain, min(IN_A_ROW, wanted - done)):
            done += 1
            yield kill
        chain += 1


class Killing:
    """Kills runs of recipes, in turn.

    Args:
        folder: For all that the runs write; what ended well is removed.
        seed: Of where and when to kill.
        variants: Names of recipes.
        timed: The share of kills by the clock, at any instruction; the others are at moments that are known.
    """

    def __init__(self, folder: Path, seed: int, variants: Sequence[str], timed: float = 0.3) -> None:
        self.folder, self.chance, self.timed = folder, random.Random(seed), timed
        self.variants, self._deck = list(variants), Deck(self.chance)
        self.whole: dict[str, tuple[world.Outcome, dict[str, int], float]] = {}

    def kills(self, wanted: int) -> Iterator[Kill]:
        """Kill so many processes; after each few the run is let end and compared.

        Raises:
            Different: It ended otherwise than a run that nothing happened to.
        """
        return kill_in_chains(self._chain, wanted)

    def uninterrupted(self, variant: str) -> tuple[world.Outcome, dict[str, int], float]:
        """The results of an undisturbed run, its moments, and its seconds."""
        if variant not in self.whole:
            home = self._home(f"whole {variant}")
            ended = world.live(home, *world.VARIANTS[variant], moments=Moments(), resume=False)
            if ended.code:
                raise Different(f"a run of '{variant}' fails by itself:\n{ended.said}")
            found = world.outcome(home / "run"), moments_of(home / "moments.txt"), ended.seconds
            self.whole[variant] = found
            shutil.rmtree(home)
        return self.whole[variant]

    def _chain(self, number: int, most: int) -> list[Kill]:
        variant = self.variants[number % len(self.variants)]
        expected, moments, seconds = self.uninterrupted(variant)
        home = self._home(f"{number:05d} {variant}")
        overrides = world.VARIANTS[variant]
        kills: list[Kill] = []
        while True:
            if len(kills) == most:
                ended, where = world.live(home, *overrides), ""
            elif self.chance.random() < self.timed:
                delay = self.chance.uniform(0, seconds)
                ended, where = world.live(home, *overrides, kill_after=delay), f"after {delay:.4f} s"
            else:
                target = self._deck.draw(moments)
                ended = world.live(home, *overrides, moments=Moments(target))
                where = f"{target.kind}, moment {target.number}"
                if ended.killed:
                    self._deck.hit(target)
            if not ended.killed:
                break
            kills.append(Kill(number, variant, where))
        story = f"'{variant}' in {home}, killed {' | '.join(kill.where for kill in kills) or 'never'}"
        if ended.code:
            raise Different(f"{story}: cannot be gone on with:\n{ended.said}")
        found = world.outcome(home / "run")
        for field, one, other in zip(found._fields, found, expected, strict=True):
            if one != other:
                raise Different(f"{story}: other {field}")
        if left := [path for pattern in (".*.part", "*.ckpt") for path in (home / "run").rglob(pattern)]:
            raise Different(f"{story}: leaves {left}")
        shutil.rmtree(home)
        return kills

    def _home(self, name: str) -> Path:
        home = self.folder / name.replace(" ", "_")
        world.prepare(home)
        return home
