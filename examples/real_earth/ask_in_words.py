"""Ask modalities of real Earth questions in words that some of them have never met, and measure the answers.

    geobind run real_earth
    python ask_in_words.py runs/real_earth/bundle

A question is a pair of prompts, written once and not tuned; the answer for a place is the difference of its
similarities to the two. Truth comes from the rasters. The AUC is the share of pairs of a true and an untrue
place that are in the right order: 0.5 is chance. Intervals leave out each block of 10 degrees in turn
(jackknife) and use Student's t; the last column is the same encoder with random weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from scipy.stats import t as student

import geobind
from geobind.data import DataOptions, open_table
from geobind_earth.places import FACTS

QUESTIONS = {  # prompts, the fact that tells the truth, above which value a place is true, below which untrue
    "mountains": (("mountains", "flat land"), "relief_m", 1200.0, 300.0),
    "a large urban area": (("a large urban area", "nobody lives near"), "population", 1e6, 1.0),
    "on the coast": (("on the coast", "inland"), "water", 0.1, 0.001),
    "forest": (("forest", "barren land"), "forest", 0.6, 0.01),
}
COLUMNS = {"satellite": "tile", "elevation": "heights", "environment": "climate", "location": "place"}


def area_under_curve(score_N: np.ndarray, true_N: np.ndarray) -> float:
    """Return the share of true-untrue pairs of places that the scores put in order; NaN without pairs."""
    positive, negative = int(true_N.sum()), int((~true_N).sum())
    if not positive or not negative:
        return float("nan")
    ranks_N = rankdata(score_N)
    return float((ranks_N[true_N].sum() - positive * (positive + 1) / 2) / (positive * negative))


def bound_by_blocks(score_N: np.ndarray, true_N: np.ndarray, block_N: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval of the AUC that takes the places of one block for dependent."""
    left_out = [
        area_under_curve(score_N[block_N != block], true_N[block_N != block]) for block in np.unique(block_N)
    ]
    blocks = len(left_out)
    error = np.sqrt((blocks - 1) / blocks * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    reach = student.ppf(0.975, blocks - 1) * error
    value = area_under_curve(score_N, true_N)
    return max(0.0, value - reach), min(1.0, value + reach)


def answer(binder: geobind.Binder, name: str, raws: list, prompts: tuple[str, str]) -> np.ndarray:
    """Return how much nearer each observation is to the first prompt than to the second."""
    words_2D = binder.embed("text", list(prompts))
    return (binder.embed(name, raws, batch_size=256) @ (words_2D[0] - words_2D[1])).numpy()


def main(bundle: Path, limit: int | None) -> None:
    """Print one line for each question and modality."""
    trained = geobind.Binder.load(bundle)
    torch.manual_seed(0)
    random = geobind.Binder.load(bundle)
    for name in COLUMNS:
        for module in random.encoders[name].modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    options = trained.card.recipe["data"]["earth"]
    data = DataOptions.model_validate({"earth": options, "columns": {**COLUMNS, "facts": "facts"}})
    table = open_table(data).split("test")
    rows = range(min(len(table), limit or len(table)))
    facts = table.samples("facts")
    facts_NF = np.stack([facts[row] for row in rows])
    block_N = np.array([table.groups[row] for row in rows])
    print(f"{len(rows):,} test places in {len(np.unique(block_N))} blocks")
    for question, (prompts, fact, above, below) in QUESTIONS.items():
        value_N = facts_NF[:, FACTS.index(fact)]
        used_N = (value_N > above) | (value_N <= below)
        true_N = value_N[used_N] > above
        for name in COLUMNS:
            raws = [table.samples(name)[row] for row in np.flatnonzero(used_N)]
            score_N = answer(trained, name, raws, prompts)
            low, high = bound_by_blocks(score_N, true_N, block_N[used_N])
            untrained = area_under_curve(answer(random, name, raws, prompts), true_N)
            print(
                f"{question:20} {name:12} {area_under_curve(score_N, true_N):.3f} [{low:.3f}, {high:.3f}]"
                f"   {int(true_N.sum()):5} of {len(true_N):5}   random weights {untrained:.3f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--limit", type=int, help="first test places only")
    arguments = parser.parse_args()
    main(arguments.bundle, arguments.limit)
