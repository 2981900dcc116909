"""Measure how tiles and captions find each other, with all five captions of a tile, beside a linear baseline.

    python measure_captions.py run/bundle manifests/ucm.csv data

A tile has five right captions, a caption one right tile. Two yardsticks. Features of the frozen trunk, as
ImageNet left them, mapped to the words of captions by ridge regression; it has seen the same training rows.
And one who knows the class of every tile and caption, and nothing else.
"""

# N tiles, T captions (five to a tile), W words, D width

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geobind import Binder
from geobind.evaluation import RetrievalSettings, build_trunk, retrieval, ridge

Floats = NDArray[np.float64]
SETTINGS = RetrievalSettings(recall_at=(1, 5, 10), recall_percent=())
SHOWN = ("R@1", "R@5", "R@10", "median_rank")
TILE, CAPTION = "satellite", "text"


class Rows(NamedTuple):
    """Tiles of a split with their captions."""

    tiles: list[Path]
    captions: list[list[str]]
    labels: list[str]

    @property
    def said(self) -> list[str]:
        """All captions in the order of their tiles."""
        return [caption for of_tile in self.captions for caption in of_tile]

    @property
    def owner_T(self) -> list[int]:
        """The number of each caption's tile."""
        return [tile for tile, of_tile in enumerate(self.captions) for _ in of_tile]


def rows_of(table: Path, data: Path, split: str) -> Rows:
    """Read the rows of a split."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    captions = [json.loads(row[CAPTION]) for row in rows]
    return Rows([data / row[TILE] for row in rows], captions, [row["label"] for row in rows])


def ceilings(rows: Rows) -> tuple[float, float]:
    """Compute the best possible R@1, to captions and to tiles: some tiles share captions to the letter."""
    copies = Counter(rows.said)
    own = [Counter(of_tile) for of_tile in rows.captions]
    to_captions = [max(times / copies[caption] for caption, times in of_tile.items()) for of_tile in own]
    most = {caption: max(of_tile[caption] for of_tile in own) for caption in copies}
    return float(np.mean(to_captions)), sum(most.values()) / len(rows.said)


def both_ways(tile_ND: Any, caption_TD: Any, rows: Rows) -> list[dict[str, Any]]:
    """Measure retrieval of captions by tiles, and of tiles by captions."""
    tiles, owners = list(range(len(rows.tiles))), rows.owner_T
    sides = [(tile_ND, tiles, TILE), (caption_TD, owners, CAPTION)]
    found: list[dict[str, Any]] = []
    for (query, query_ids, name), (gallery, gallery_ids, other) in (sides, sides[::-1]):
        result = retrieval(query, gallery, query_ids=query_ids, gallery_ids=gallery_ids, settings=SETTINGS)
        found.append({"from": name, "to": other, **result.to_dict()})
    return found


class Words(NamedTuple):
    """Words of the training captions and their weights (idf)."""

    number: dict[str, int]
    weight_W: Floats

    def vectors(self, captions: Sequence[str]) -> Floats:
        """Build tf-idf vectors of captions at unit length (T, W)."""
        count_TW = np.zeros((len(captions), len(self.number)))
        for row, caption in enumerate(captions):
            for word in words_of(caption):
                if word in self.number:
                    count_TW[row, self.number[word]] += 1
        return unit(count_TW * self.weight_W)


def words_of(caption: str) -> list[str]:
    """Return the words of a caption in lower case."""
    return re.findall(r"[a-z]+", caption.lower())


def learnt_words(captions: Sequence[str]) -> Words:
    """List words, with the logarithm of one over the share of captions that have them (idf)."""
    having = Counter(word for caption in captions for word in set(words_of(caption)))
    weights = np.log(len(captions) / np.array([having[word] for word in sorted(having)]))
    return Words({word: number for number, word in enumerate(sorted(having))}, weights)


def unit(rows_NW: Floats) -> Floats:
    """Scale rows to unit length; one of zeros stays."""
    return rows_NW / np.maximum(np.linalg.norm(rows_NW, axis=1, keepdims=True), 1e-12)


def linear_baseline(train_ND: Floats, test_ND: Floats, train: Rows, test: Rows) -> list[dict[str, Any]]:
    """Measure retrieval by a ridge regression from frozen features to words."""
    words = learnt_words(train.said)
    said_TW, owner_T = words.vectors(train.said), np.array(train.owner_T)
    mean_NW = np.stack([said_TW[owner_T == tile].mean(0) for tile in range(len(train.tiles))])
    predicted_NW = unit(ridge(train_ND, mean_NW).predict(test_ND))
    return both_ways(predicted_NW, words.vectors(test.said), test)


def class_known(rows: Rows) -> list[dict[str, Any]]:
    """Measure retrieval by class alone: items of a class are tied."""
    classes = sorted(set(rows.labels))
    tile_NC = np.eye(len(classes))[[classes.index(label) for label in rows.labels]]
    return both_ways(tile_NC, tile_NC[rows.owner_T], rows)


def line(name: str, row: dict[str, Any], ceiling: float) -> str:
    """Write one direction as a line: each figure with its interval, then chance."""
    figures = [row["metrics"][of] for of in SHOWN]
    cells = "  ".join(
        f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}] ({of['chance']:.3f})" for of in figures
    )
    return f"{name:<24} {row['from'] + ' > ' + row['to']:<17} {cells}  R@1 at most {ceiling:.3f}"


def main(bundle: Path, table: Path, data: Path, split: str) -> None:
    """Embed, measure, print a table and write `captions.json` beside the bundle."""
    binder = Binder.load(bundle)
    train, test = rows_of(table, data, "train"), rows_of(table, data, split)
    trunk = build_trunk(binder, TILE)
    features = [trunk.embed(TILE, rows.tiles, numpy=True).astype(np.float64) for rows in (train, test)]
    found = {
        "geobind": both_ways(binder.embed(TILE, test.tiles), binder.embed(CAPTION, test.said), test),
        "frozen features, linear": linear_baseline(features[0], features[1], train, test),
        "the class, nothing else": class_known(test),
    }
    print(f"{len(test.tiles)} tiles, {len(test.said)} captions; R@1, R@5, R@10, median rank")
    for name, rows in found.items():
        for row, ceiling in zip(rows, ceilings(test), strict=True):
            print(line(name, row, ceiling))
    (bundle.parent / "captions.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure retrieval of captions and tiles.")
    parser.add_argument("bundle", type=Path, help="the folder `bundle` of a run")
    parser.add_argument("table", type=Path, help="the CSV file make_manifest.py wrote")
    parser.add_argument("data", type=Path, help="the folder of real data")
    parser.add_argument("--split", default="test", help="the rows that are measured")
    given = parser.parse_args()
    main(given.bundle, given.table, given.data, given.split)
