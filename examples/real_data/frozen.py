"""Measure baselines of the frozen trunks on the held-out items of a bundle.

    python frozen.py run/bundle manifests data

Two yardsticks. Tiles and photos go through one ImageNet trunk, so its features can be compared as they are;
sounds have another trunk and cannot. And a classifier of concepts, a logistic regression on each modality's
frozen features, lets any two modalities meet in the five probabilities: no shared space, but the same labels.
"""

# N items, C concepts, D width

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from measure import SHOWN_METRICS, HeldOutItems, line, measure, read_held_out
from torch import Tensor
from torch.nn import functional

from geobind import Binder
from geobind.evaluation import FewShotOptions, LabelledEmbeddings, build_trunk, few_shot, logistic

TABLES = {"ground_image": "train_ground.csv", "audio_yamnet": "train_audio.csv"}
ALIKE = ("satellite", "ground_image")  # seen through the same trunk
PENALTY = 0.1


def trained_on(manifests: Path, data: Path) -> dict[str, HeldOutItems]:
    """List the training items of each modality, each once."""
    labels: dict[str, dict[str, str]] = {"satellite": {}}
    for other, table in TABLES.items():
        with open(manifests / table, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["split"] == "train":
                    labels["satellite"][row["satellite"]] = row["label"]
                    labels.setdefault(other, {}).update(dict.fromkeys(json.loads(row[other]), row["label"]))
    return {
        name: HeldOutItems([data / file for file in of], list(of.values())) for name, of in labels.items()
    }


def probabilities(train_ND: Tensor, labels: list[str], test_ND: Tensor) -> Tensor:
    """Train a classifier on some items, and give concepts' probabilities of others, at unit length (N, C)."""
    concepts = sorted(set(labels))
    class_N = torch.tensor([concepts.index(label) for label in labels])
    (fit,) = logistic(train_ND, class_N, len(concepts), [PENALTY])
    return functional.normalize(fit.scores(test_ND).softmax(1).float(), dim=1)


def main(bundle: Path, manifests: Path, data: Path) -> None:
    """Embed with the trunks, measure, print tables and write `frozen.json` beside the bundle."""
    binder = Binder.load(bundle)
    names = list(binder.modalities)
    trunks = {name: build_trunk(binder, name) for name in names}
    train, test = trained_on(manifests, data), read_held_out(manifests / "evaluate.csv", data, names)
    train_features = {name: trunks[name].embed(name, of.files) for name, of in train.items()}
    features = {name: trunks[name].embed(name, of.files) for name, of in test.items()}
    labels = {name: of.labels for name, of in test.items()}
    classified = {
        name: probabilities(train_features[name], train[name].labels, features[name]) for name in names
    }
    found = {
        "frozen ImageNet features as they are": measure({n: features[n] for n in ALIKE}, labels, set()),
        "classifiers of frozen features": measure(classified, labels, set()),
    }
    print("class-level, not co-located; chance in brackets")
    heads = "".join(f"{name:<15}" for name in (*SHOWN_METRICS, "accuracy"))
    for title, rows in found.items():
        print(f"\n{title}\n{'query > gallery':<27} {'':<8} {'items':>9}  {heads}weakest concept")
        print("\n".join(line({**row, "mark": ""}) for row in rows))
    print_curves(train_features, train, features, test)
    (bundle.parent / "frozen.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def print_curves(
    train_features: Mapping[str, Tensor],
    train: Mapping[str, HeldOutItems],
    features: Mapping[str, Tensor],
    test: Mapping[str, HeldOutItems],
) -> None:
    """Print the few-shot curve of each modality's frozen features."""
    print("\nfew-shot logistic regression on frozen features, accuracy and interval")
    options = FewShotOptions(shots=(1, 4, 16, "all"), penalty=PENALTY)
    for name, items in test.items():
        sides = (
            LabelledEmbeddings(train_features[name], train[name].labels),
            LabelledEmbeddings(features[name], items.labels),
        )
        points = few_shot(*sides, options=options)[0].points
        cells = [
            "{}: {:.3f} [{:.3f}, {:.3f}]".format(
                p.shots, *(getattr(p.metrics["accuracy"], k) for k in ("value", "low", "high"))
            )
            for p in points
        ]
        print(f"{name:<14} {'  '.join(cells)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure what the frozen trunks know by themselves.")
    parser.add_argument("bundle", type=Path, help="the folder `bundle` of a run")
    parser.add_argument("manifests", type=Path, help="the folder make_manifests.py wrote")
    parser.add_argument("data", type=Path, help="the folder of real data")
    given = parser.parse_args()
    main(given.bundle, given.manifests, given.data)
