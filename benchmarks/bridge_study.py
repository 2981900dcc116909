"""Gains of a bridge for emergent pairs: the tables of docs/bridge.md.

    geobind run three_modal --set seed=0 --out runs/toy0       # and further seeds, and real_earth
    python benchmarks/bridge_study.py runs/toy0 runs/toy1 --keep kept [--direct text-audio=0.71] [--large]

Every run's training rows (without pairs or labels) and test rows are embedded once and kept in a folder.
Gains are over the same queries, with 95 % intervals over whole clusters where there are any. `--direct` gives
the R@10 of two modalities trained on each other, the bound of an emergent pair.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from geobind.bridge import BANK_ROWS, REFERENCE_ROWS, AnchorBank, Bridge, BridgeOptions, fit_options
from geobind.evaluation import EmbeddedRows, calibrate, calibrate_fuser, evaluate_subsets
from geobind.evaluation.intervals import compare_means
from geobind.evaluation.pairs import Gain
from geobind.fuser import Fuser, train_fuser
from geobind.fusion import fuse
from geobind.scoring import Calibration

MOST_ROWS = 6_000
SIZES = (100, 300, 1_000, 2_000, BANK_ROWS)
LARGE = (BANK_ROWS, 10_000, 30_000, 100_000)
CUT = 10


@dataclass(frozen=True)
class Space:
    """Embeddings of one run: training rows of each modality, test rows with their cluster and place."""

    name: str
    anchor: str
    pairs: tuple[tuple[str, str], ...]  # emergent, without the anchor
    trained: tuple[tuple[str, str], ...]
    train: Mapping[str, Tensor]
    test: Mapping[str, Tensor]
    cluster_N: np.ndarray | None
    places: Mapping[str, np.ndarray]  # latitudes and longitudes by split

    def bank(self, size: int = BANK_ROWS, rows: np.ndarray | None = None) -> AnchorBank:
        """Draw a bank, of training rows or of some of them; each modality's rows on their own."""
        random = np.random.default_rng(0)
        rows = np.arange(len(self.train[self.anchor])) if rows is None else rows
        of = {self.anchor: size} | {name: REFERENCE_ROWS for pair in self.pairs for name in pair}
        drawn = {
            name: random.choice(rows, min(count, len(rows)), replace=False) for name, count in of.items()
        }
        embedded = {name: self.train[name][torch.from_numpy(np.sort(one))] for name, one in drawn.items()}
        return AnchorBank(embedded.pop(self.anchor), self.anchor, embedded)


def open_space(run: Path, keep: Path) -> Space:
    """Embed a run's rows, or read what is kept of them."""
    from geobind.binder import Binder
    from geobind.data.table import open_table
    from geobind.evaluation.embedded import embed_rows
    from geobind.evaluation.split_leakage import choose_clusters
    from geobind.recipe import build_recipe

    binder = Binder.load(run / "bundle")
    assert binder.card is not None
    kept = keep / f"{run.resolve().name}.safetensors"
    if not kept.is_file():
        recipe = build_recipe(binder.card.recipe, Path.cwd(), source=str(run))
        assert recipe.data is not None and recipe.evaluate is not None
        table = open_table(recipe.data, recipe.base, tuple(recipe.modalities))
        tensors: dict[str, Tensor] = {}
        for split in ("train", recipe.evaluate.split):
            part, key = table.split(split), "train" if split == "train" else "test"
            if len(part) > MOST_ROWS:
                rows = np.random.default_rng(0).choice(len(part), MOST_ROWS, replace=False)
                part = part.take(np.sort(rows))
            tensors |= {f"{key}.{name}": one.embedding_QD for name, one in embed_rows(binder, part).items()}
            groups = choose_clusters(part, recipe.evaluate.clusters).of_rows
            if groups is not None:
                codes = np.unique([str(group) for group in groups], return_inverse=True)[1]
                tensors[f"{key}.cluster"] = torch.from_numpy(codes)
            if part.places_LL is not None:
                unknown = (np.nan, np.nan)
                places = np.array([unknown if at is None else tuple(at) for at in part.places_LL])
                tensors[f"{key}.place"] = torch.from_numpy(places)
        keep.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, kept)
    tensors = load_file(kept)
    of = {
        split: {
            name: tensors[f"{split}.{name}"] for name in binder.modalities if f"{split}.{name}" in tensors
        }
        for split in ("train", "test")
    }
    anchor, marks = binder.anchor, binder.marks
    sorted_pairs = {tuple(sorted(pair)): mark for pair, mark in marks.items()}
    return Space(
        run.resolve().name,
        anchor,
        tuple((a, b) for (a, b), mark in sorted_pairs.items() if mark == "emergent" and anchor not in (a, b)),
        tuple((a, b) for (a, b), mark in sorted_pairs.items() if mark == "trained"),
        of["train"],
        of["test"],
        tensors["test.cluster"].numpy() if "test.cluster" in tensors else None,
        {split: tensors[f"{split}.place"].numpy() for split in of if f"{split}.place" in tensors},
    )


def hit_Q(score_QG: Tensor) -> np.ndarray:
    """Whether each query's own row is among the first, ties at their expectation."""
    own_Q = score_QG.diagonal()[:, None]
    larger_Q = (score_QG > own_Q + 1e-6).sum(1).double()
    tied_Q = ((score_QG - own_Q).abs() <= 1e-6).sum(1).double()
    return ((CUT - larger_Q) / tied_Q).clamp(0, 1).numpy()


def both_ways(space: Space, pair: tuple[str, str], bridge: Bridge | None, rows: np.ndarray | None = None):
    """Hits of all queries, in both directions: the first's, then the second's."""
    one, two = (
        space.test[name] if rows is None else space.test[name][torch.from_numpy(rows)] for name in pair
    )
    score_QG = one @ two.T if bridge is None else bridge.between(*pair).score(one, two)
    return np.concatenate([hit_Q(score_QG), hit_Q(score_QG.T)])


def gain(space: Space, plain_Q: np.ndarray, bridged_Q: np.ndarray):
    """The mean difference with its interval; a row's two directions count as one cluster."""
    unit_N = np.arange(len(plain_Q) // 2) if space.cluster_N is None else space.cluster_N
    return compare_means(bridged_Q - plain_Q, np.concatenate([unit_N, unit_N]))


def gains_table(space: Space, direct: Mapping[frozenset[str], float]) -> Iterator[str]:
    """Yield a line for each emergent pair: plain, bridged, gain, share of the direct bound."""
    bridge = Bridge(space.bank())
    yield "| pair | R@10 | bridged | gain | share of direct |\n|---|---|---|---|---|"
    for pair in space.pairs:
        plain_Q, bridged_Q = both_ways(space, pair, None), both_ways(space, pair, bridge)
        found, bound = gain(space, plain_Q, bridged_Q), direct.get(frozenset(pair))
        share = f"{plain_Q.mean() / bound:.0%} to {bridged_Q.mean() / bound:.0%}" if bound else ""
        yield (
            f"| {pair[0]}, {pair[1]} | {plain_Q.mean():.3f} | {bridged_Q.mean():.3f} "
            f"| {found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] | {share} |"
        )


def variants_table(space: Space) -> Iterator[str]:
    """Yield the mean over emergent pairs of each variant: parts of the formula, sizes and places of banks."""
    bank = space.bank()
    alone = AnchorBank(bank.vectors, bank.anchor)
    variants: dict[str, Bridge | None] = {"plain": None, "bridged": Bridge(bank)}
    variants["projection alone"] = Bridge(alone)
    variants["correction alone"] = Bridge(bank, BridgeOptions(weight=0))
    trained = [(space.test[one], space.test[two]) for one, two in space.trained]
    fitted = fit_options(bank, trained)
    variants[f"fitted on trained pairs (w {fitted.weight:g}, t {fitted.temperature:g})"] = Bridge(
        bank, fitted
    )
    for weight in (0.25, 1.0, 2.0):
        variants[f"w {weight:g}"] = Bridge(bank, BridgeOptions(weight=weight))
    for temperature in (0.01, 0.03, 0.05):
        variants[f"t {temperature:g}"] = Bridge(bank, BridgeOptions(temperature=temperature))
    for neighbours in (10, 30):
        variants[f"k {neighbours}"] = Bridge(bank, BridgeOptions(neighbours=neighbours))
    for size in SIZES:
        variants[f"bank of {size:,}"] = Bridge(space.bank(size))
    yield "| variant | R@10, mean over emergent pairs |\n|---|---|"
    for name, bridge in variants.items():
        yield f"| {name} | {np.mean([both_ways(space, pair, bridge).mean() for pair in space.pairs]):.3f} |"
    yield from places_lines(space)


def places_lines(space: Space) -> Iterator[str]:
    """Yield the same for eastern test rows, with banks of the east and of the west of one size."""
    if set(space.places) != {"train", "test"}:
        return
    east = {split: np.flatnonzero(at[:, 1] >= 0) for split, at in space.places.items()}
    west = np.flatnonzero(space.places["train"][:, 1] < 0)
    size = min(len(east["train"]), len(west), BANK_ROWS)
    for name, rows in (("plain", None), ("bank of the east", east["train"]), ("bank of the west", west)):
        bridge = None if rows is None else Bridge(space.bank(size, rows))
        found = [both_ways(space, pair, bridge, east["test"]).mean() for pair in space.pairs]
        yield f"| eastern test rows, {name}{f' ({size:,})' if bridge else ''} | {np.mean(found):.3f} |"


def large_banks_table(space: Space, tile_RD: Tensor) -> Iterator[str]:
    """Yield the mean over emergent pairs with banks of tiles that no stage has seen."""
    references = space.bank().references
    yield "| bank of further places | R@10, mean over emergent pairs |\n|---|---|"
    for size in LARGE:
        bridge = Bridge(AnchorBank(tile_RD[:size], space.anchor, references))
        yield f"| {size:,} | {np.mean([both_ways(space, pair, bridge).mean() for pair in space.pairs]):.3f} |"


def embed_further_tiles(run: Path, keep: Path) -> Tensor:
    """Embed tiles of further places of toy Earth, or read what is kept of them."""
    from geobind.binder import Binder
    from geobind_toyearth.planet import Planet
    from geobind_toyearth.tiles import render_tiles

    kept = keep / f"{run.resolve().name}-tiles.safetensors"
    if not kept.is_file():
        binder = Binder.load(run / "bundle")
        places = Planet(0).places(LARGE[-1], seed=1)  # a run's places are of seed 0
        parts = [
            binder.embed(
                "satellite", list(render_tiles(places.take(slice(at, at + 1_000)), 0)), progress=False
            )
            for at in range(0, LARGE[-1], 1_000)
        ]
        save_file({"tiles": torch.cat(parts)}, kept)
    return load_file(kept)["tiles"]


def subsets_table(space: Space) -> Iterator[str]:
    """Yield subsets of inputs, weighed by scales fitted on half of the test clusters, on the others.

    A fuser, trained on the training rows, stands beside where these hold every modality.
    """
    rows = len(space.test[space.anchor])
    cluster_N = np.arange(rows) if space.cluster_N is None else space.cluster_N
    groups = np.random.default_rng(0).permutation(np.unique(cluster_N))
    fitting_N = np.isin(cluster_N, groups[: len(groups) // 2])
    halves = [np.flatnonzero(fitting_N), np.flatnonzero(~fitting_N)]
    fitted, measured = (
        {
            name: EmbeddedRows(np.arange(len(half)), one[torch.from_numpy(half)])
            for name, one in space.test.items()
        }
        for half in halves
    )
    calibration = calibrate(fitted, "half of the test clusters")
    yield f"{len(halves[1]):,} rows\n"
    whole = len({len(rows) for rows in space.train.values()}) == 1
    fuser = calibrate_fuser(train_fuser(space.train), fitted) if whole else None
    yield (
        "| inputs to gallery | together | best single input | gain | over the sum | fuser | over best single "
        "| over together |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    losses: list[tuple[float, float, float]] = []
    for row in evaluate_subsets(measured, calibration, cluster_N[halves[1]].tolist(), fuser):
        found = f"{row.metrics['R@10'].value:.3f} | {row.single.value:.3f} {row.best_single}"
        by = row.fuser
        cells = [found, *map(show_gain, (row.over_single, row.over_sum))]
        if fuser is not None and by is not None:
            cells += [f"{by.metrics['R@10'].value:.3f}", *map(show_gain, (by.over_single, by.over_product))]
            losses.append(log_losses(measured, row.inputs, row.gallery, calibration, fuser))
        yield f"| {' + '.join(row.inputs)} to {row.gallery} | {' | '.join(cells)} |"
    if losses:
        product, raw, fused = np.mean(losses, axis=0)
        yield (
            f"\nmean log loss of the own row: together {product:.2f}, fuser {fused:.2f} nats "
            f"({raw:.2f} with concentrations as trained)"
        )


def show_gain(gain: Gain) -> str:
    """Write a gain with its interval."""
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def log_losses(
    measured: Mapping[str, EmbeddedRows],
    inputs: tuple[str, ...],
    gallery: str,
    calibration: Calibration,
    fuser: Fuser,
) -> tuple[float, float, float]:
    """Return the mean log loss of each row's own embedding: calibrated product, fuser as trained, fuser."""
    given = {name: measured[name].embedding_QD for name in inputs}
    gallery_QD = measured[gallery].embedding_QD
    raw = replace(fuser, scales={})
    expected = (
        fuse(given, gallery, calibration),
        *(one.infer(given, [gallery])[gallery] for one in (raw, fuser)),
    )
    product, unscaled, fused = (
        -(one.concentration_N[:, None] * (one.mean_ND @ gallery_QD.T)).log_softmax(1).diagonal().mean().item()
        for one in expected
    )
    return product, unscaled, fused


def main() -> None:
    """Print the tables of each run."""
    parser = argparse.ArgumentParser(description="What a bridge gains for emergent pairs.")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="folder of kept embeddings")
    parser.add_argument("--direct", action="append", default=[], metavar="ONE-TWO=R@10")
    parser.add_argument("--subsets", action="store_true", help="only the table of several inputs together")
    parser.add_argument("--large", action="store_true", help="only banks of up to 100,000 toy tiles")
    chosen = parser.parse_args()
    bounds = dict(text.split("=") for text in chosen.direct)
    direct = {frozenset(names.split("-")): float(value) for names, value in bounds.items()}
    for run in chosen.runs:
        space = open_space(run, chosen.keep)
        print(
            f"\n## {space.name}: anchor {space.anchor}, {len(space.test[space.anchor]):,} test rows\n",
            flush=True,
        )
        tables = (gains_table(space, direct), variants_table(space))
        if chosen.subsets:
            tables = (subsets_table(space),)
        elif chosen.large:
            tables = (large_banks_table(space, embed_further_tiles(run, chosen.keep)),)
        for lines in tables:
            for line in lines:
                print(line, flush=True)
            print(flush=True)


if __name__ == "__main__":
    main()
