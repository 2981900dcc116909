"""Trials to raise what emerges by other ways of training: the table "while training" of docs/bridge.md.

    geobind run three_modal --set seed=0 --out runs/toy0       # and seeds 1 and 2
    python benchmarks/emergent_share.py runs/toy0 runs/toy1 runs/toy2 --out runs/share [--only noise-0.3 bank]

Every trial takes over what it shares with a run and trains the rest anew, on the same rows in the same order:

as-it-is     the run itself, since runs are deterministic
noise-S      Gaussian noise of length S is added to the frozen side's embeddings
bank         both sides are drawn towards the run's bank before the loss, as the bridge does after training
hubs         logits are corrected for hubs (half of CSLS), with the last 2,048 rows of each side as references
two-anchors  sounds are trained with the frozen photos too, which makes audio and photos a trained pair
words-too    tiles are trained with the frozen words too, which makes tiles and words a trained pair

Printed is R@10 of the emergent pairs of each, the mean of both directions, plain and bridged, and its
difference from `as-it-is` over seeds with a 95 % Student interval.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from geobind.binder import Binder
from geobind.bridge import Bridge
from geobind.recipe import load_recipe
from geobind.studies.summary import format_interval, seed_interval
from geobind.training.module import ContrastiveModule
from geobind.training.run import run
from geobind.utils.vectors import unit

QUEUE, NEIGHBOURS = 2_048, 50
LAST, PHOTOS = 2, 1  # places of two stages in the recipe

Loss = Callable[[Tensor, Tensor, Any], Tensor]  # of anchors, others and the pair's own loss
Figures = dict[tuple[str, str], tuple[float, float]]  # R@10 by pair: plain and bridged, NaN without


class Noise:
    """A loss of anchors with noise of a given length."""

    def __init__(self, length: float, seed: int) -> None:
        self.length, self.random = length, torch.Generator().manual_seed(seed)

    def __call__(self, anchor_ND: Tensor, other_ND: Tensor, own: Any) -> Tensor:
        noise_ND = torch.randn(anchor_ND.shape, generator=self.random) / anchor_ND.shape[1] ** 0.5
        return own(unit(anchor_ND + self.length * noise_ND), other_ND)


class Hubs:
    """An InfoNCE loss of similarities corrected for hubs among the last rows of each side."""

    def __init__(self) -> None:
        self.anchor_QD, self.other_QD = torch.empty(0), torch.empty(0)

    def __call__(self, anchor_ND: Tensor, other_ND: Tensor, own: Any) -> Tensor:
        score_NN = anchor_ND @ other_ND.T
        if len(self.other_QD) >= NEIGHBOURS:
            score_NN = score_NN - hubness(anchor_ND, self.other_QD)[:, None] / 2
            score_NN = score_NN - hubness(other_ND, self.anchor_QD)[None] / 2
        self.anchor_QD = torch.cat([anchor_ND.detach(), self.anchor_QD])[:QUEUE]
        self.other_QD = torch.cat([other_ND.detach(), self.other_QD])[:QUEUE]
        logit_NN, pair_N = own.temperature.scale * score_NN, torch.arange(len(score_NN))
        return (cross_entropy(logit_NN, pair_N) + cross_entropy(logit_NN.T, pair_N)) / 2


def hubness(x_ND: Tensor, other_QD: Tensor) -> Tensor:
    """Return the mean similarity of each row to the nearest rows of the other side."""
    return (x_ND @ other_QD.T).topk(NEIGHBOURS, dim=1).values.mean(dim=1)


def build_loss(trial: str, base: Path, seed: int) -> Loss | None:
    """Build the loss of the last stage in a trial; None for the recipe's own."""
    if trial.startswith("noise-"):
        return Noise(float(trial.removeprefix("noise-")), seed)
    if trial == "bank":
        bank = Binder.load(base / "bundle").bank
        assert bank is not None, f"{base} has no bank"
        draw = Bridge(bank).apply
        return lambda anchor_ND, other_ND, own: own(draw(anchor_ND), draw(other_ND))
    return Hubs() if trial == "hubs" else None


RECIPES: Mapping[str, tuple[str, ...]] = {
    "two-anchors": (f"stages.{LAST}.align=[audio,ground_image]", f"stages.{LAST}.pairs=all"),
    "words-too": (f"stages.{PHOTOS}.align=[ground_image,text]",),
}
TRIALS = ("as-it-is", "noise-0.3", "noise-1", "bank", "hubs", *RECIPES)


@contextmanager
def replace_loss(loss: Loss | None) -> Generator[None]:
    """Replace the loss of every pair inside the block."""
    if loss is None:
        yield
        return

    def patched(self: Any, name: str, sides: tuple[Tensor, Tensor], *_: Any) -> Tensor:
        return loss(sides[0], sides[1], self.losses[name])

    with patch.object(ContrastiveModule, "_loss", patched):
        yield


def measure(trial: str, base: Path, out: Path) -> Figures:
    """Train a trial where it is not there yet, and read its emergent pairs without the anchor."""
    home = base if trial == "as-it-is" else out / f"{base.resolve().name}-{trial}"
    if not (home / "bundle").is_dir():
        recipe = load_recipe(base / "recipe.yaml", RECIPES.get(trial, ()))
        if not home.is_dir():
            kept = shutil.ignore_patterns(
                "bundle", "report*", "03_*", *(["02_*"] if trial == "words-too" else [])
            )
            shutil.copytree(base, home, ignore=kept)
        with replace_loss(build_loss(trial, base, recipe.seed)):
            run(recipe, home, resume=True)
    return read_emergent(json.loads((home / "retrieval.json").read_text()))


def read_emergent(table: Mapping[str, Any]) -> Figures:
    """Read R@10 of the emergent pairs of audio and words or photos, in the mean of both directions."""
    of = {(row["query"], row["gallery"]): row for row in table["rows"]}
    bridged = {(one["row"]["query"], one["row"]["gallery"]): one["row"] for one in table["bridged"]}
    found: Figures = {}
    for pair in combinations(("audio", "ground_image", "text"), 2):
        if of[pair]["mark"] == "emergent":
            both = (pair, (pair[1], pair[0]))
            plain = sum(of[one]["metrics"]["R@10"]["value"] for one in both) / 2
            drawn = sum(bridged[one]["metrics"]["R@10"]["value"] for one in both) / 2
            found[pair] = (plain, drawn)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trials")
    parser.add_argument("--only", nargs="+", default=TRIALS, metavar="TRIAL")
    chosen = parser.parse_args()
    base = {one: measure("as-it-is", one, chosen.out) for one in chosen.runs}
    print(
        "| trial | pair | R@10 | difference | bridged | difference |\n|---|---|---|---|---|---|", flush=True
    )
    for trial in chosen.only:
        found = {one: measure(trial, one, chosen.out) for one in chosen.runs}
        for pair in sorted({pair for figures in found.values() for pair in figures}):
            cells = []
            for at in (0, 1):
                cells.append(", ".join(f"{figures[pair][at]:.3f}" for figures in found.values()))
                gains = [figures[pair][at] - base[one][pair][at] for one, figures in found.items()]
                cells.append(format_interval(seed_interval(gains)))
            print(f"| {trial} | {' and '.join(pair)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
