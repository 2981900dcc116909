"""Measure a bundle on the held-out items, by concept, for every ordered pair of modalities.

    python measure.py run/bundle manifests data

An item of the gallery is right when it is of the query's concept: class-level, not geographic, retrieval.
"""

# Q queries, G gallery items, C concepts, D width

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from geobind import Binder
from geobind.evaluation import RetrievalSettings, mark_by_pairs, retrieval

SHOWN_METRICS = ("R@1", "R@5", "mAP")


class HeldOutItems(NamedTuple):
    """The held-out items of one modality."""

    files: list[Path]
    labels: list[str]


def read_held_out(table: Path, data: Path, modalities: Sequence[str]) -> dict[str, HeldOutItems]:
    """Read the items of each modality from the table of one item a row."""
    found = {name: HeldOutItems([], []) for name in modalities}
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name in modalities:
                if row.get(name):
                    found[name].files.append(data / row[name])
                    found[name].labels.append(row["label"])
    return {name: items for name, items in found.items() if items.files}


def concept_recall(
    query_QD: Tensor, query_labels: Sequence[str], gallery_GD: Tensor, gallery_labels: Sequence[str]
) -> dict[str, float]:
    """Compute the share of each concept's queries nearest to the mean of their concept in the gallery."""
    concepts = sorted(set(gallery_labels))
    gallery_G = torch.tensor([concepts.index(label) for label in gallery_labels])
    mean_CD = functional.normalize(
        torch.stack([gallery_GD[gallery_G == c].mean(0) for c in range(len(concepts))]), dim=1
    )
    nearest_Q = (query_QD @ mean_CD.T).argmax(1)
    query_Q = torch.tensor([concepts.index(label) for label in query_labels])
    return {name: (nearest_Q[query_Q == c] == c).float().mean().item() for c, name in enumerate(concepts)}


def measure(
    embeddings: Mapping[str, Tensor], labels: Mapping[str, Sequence[str]], trained: set[frozenset[str]]
) -> list[dict[str, Any]]:
    """Measure retrieval and classification by concept between every two modalities, both ways."""
    marks = mark_by_pairs(embeddings, trained)
    rows: list[dict[str, Any]] = []
    for query, gallery in permutations(embeddings, 2):
        found = retrieval(
            embeddings[query],
            embeddings[gallery],
            query_ids=labels[query],
            gallery_ids=labels[gallery],
            settings=RetrievalSettings(recall_at=(1, 5, 10), recall_percent=()),
        ).to_dict()
        recall = concept_recall(embeddings[query], labels[query], embeddings[gallery], labels[gallery])
        rows.append(
            {
                "query": query,
                "gallery": gallery,
                "mark": marks[frozenset((query, gallery))],
                "queries": found["queries"],
                "gallery_size": found["gallery"],
                "metrics": found["metrics"],
                "accuracy": {"value": sum(recall.values()) / len(recall), "chance": 1 / len(recall)},
                "accuracy_by_concept": recall,
            }
        )
    return rows


def line(row: dict[str, Any]) -> str:
    """Write one pair as a line of the table: each figure with its chance level in brackets."""
    pair = f"{row['query']} > {row['gallery']}"
    items = f"{row['queries']} > {row['gallery_size']}"
    figures = [row["metrics"][name] for name in SHOWN_METRICS] + [row["accuracy"]]
    cells = "  ".join(f"{figure['value']:.3f} ({figure['chance']:.3f})" for figure in figures)
    weakest, share = min(row["accuracy_by_concept"].items(), key=lambda item: item[1])
    return f"{pair:<27} {row['mark']:<8} {items:>9}  {cells}  {weakest} {share:.2f}"


def main(bundle: Path, manifests: Path, data: Path) -> None:
    """Embed, measure, print a table and write `concepts.json` beside the bundle."""
    binder = Binder.load(bundle)
    items = read_held_out(manifests / "evaluate.csv", data, list(binder.modalities))
    stages = binder.card.stages if binder.card else []
    rows = measure(
        {name: binder.embed(name, of.files) for name, of in items.items()},
        {name: of.labels for name, of in items.items()},
        {frozenset((stage["anchor"], stage["align"])) for stage in stages},
    )
    print("class-level, not co-located; chance in brackets")
    heads = "".join(f"{name:<15}" for name in (*SHOWN_METRICS, "accuracy"))
    print(f"{'query > gallery':<27} {'pair':<8} {'items':>9}  {heads}weakest concept")
    print("\n".join(line(row) for row in rows))
    (bundle.parent / "concepts.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure a bundle by concept on the held-out items.")
    parser.add_argument("bundle", type=Path, help="the folder `bundle` of a run")
    parser.add_argument("manifests", type=Path, help="the folder make_manifests.py wrote")
    parser.add_argument("data", type=Path, help="the folder of real data")
    given = parser.parse_args()
    main(given.bundle, given.manifests, given.data)
