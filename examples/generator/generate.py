"""Train a generator of a bundle's anchor, and drive it by a query of any modality.

    python generate.py train BUNDLE --out decoder.safetensors
    python generate.py draw BUNDLE decoder.safetensors --query text="a wide bay of the sea" --out bay.png
    python generate.py draw BUNDLE decoder.safetensors --query audio=@rain.wav --out rain.png

It is trained on the pictures of the table that the bundle itself was trained on, or of `--data manifest.csv`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from decoder import Generator, train_generator

from geobind import Binder, GeobindError, open_table
from geobind.data import DataOptions, Table
from geobind.errors import DataError
from geobind.search import embed_query, parse_query


def open_data(binder: Binder, manifest: Path | None = None, /, **columns: str) -> Table:
    """Open the table that a bundle was trained on, with its columns and perhaps more; or a manifest.

    Raises:
        DataError: The bundle does not say what it was trained on, or the table cannot be opened.
    """
    if manifest is not None:
        return open_table(DataOptions(manifest=manifest, columns=dict(columns)))
    data = binder.card.recipe.get("data") if binder.card else None
    if not data:
        raise DataError("the bundle's recipe has no `data`: name a table with --data manifest.csv")
    return open_table(DataOptions.model_validate(data | {"columns": data.get("columns", {}) | columns}))


def read_inputs(table: Table, name: str, limit: int | None = None) -> list[Any]:
    """Read the first observations of a modality; of several of one place, the first."""
    samples = table.samples(name)
    raw = (samples[row] for row in range(min(len(table), limit or len(table))))
    return [one[0] if isinstance(one, list) else one for one in raw]


def main(words: Sequence[str] | None = None) -> None:
    """Train, or draw."""
    parser = argparse.ArgumentParser(description="Train a generator, or draw by a query of any modality.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a decoder")
    train.add_argument("bundle", help="the folder of a bundle or run, or its id on the hub")
    train.add_argument("--data", type=Path, help="a manifest; default: what the bundle was trained on")
    train.add_argument("--column", default="satellite", help="of the manifest: the pictures")
    train.add_argument("--split", default="train")
    train.add_argument("--modality", help="what the pictures are; default: the anchor")
    train.add_argument("--size", type=int, default=64, help="side of a picture")
    train.add_argument("--epochs", type=int, default=10)
    train.add_argument("--limit", type=int, help="so many pictures")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", type=Path, required=True)
    draw = commands.add_parser("draw", help="draw pictures")
    draw.add_argument("bundle")
    draw.add_argument("decoder", type=Path)
    draw.add_argument("--query", action="append", default=[], metavar="NAME=VALUE", help="as in search")
    draw.add_argument("--weight", action="append", default=[], metavar="NAME=NUMBER", help="of parts")
    draw.add_argument("--via", choices=["bank", "nothing"], default="bank", help="how a query is moved")
    draw.add_argument("--count", type=int, default=4, help="pictures side by side, of different noise")
    draw.add_argument("--out", type=Path, required=True, help="NAME.png")
    given = parser.parse_args(words)
    binder = Binder.from_pretrained(given.bundle)
    if given.command == "train":
        modality = given.modality or binder.anchor
        table = open_data(binder, given.data, **({modality: given.column} if given.data else {}))
        pictures = read_inputs(table.split(given.split), modality, given.limit)
        trained = train_generator(
            binder, pictures, modality, size=given.size, epochs=given.epochs, seed=given.seed, show=print
        )
        trained.save(given.out)
        return
    generator = Generator.load(given.decoder, binder)
    query = embed_query(binder, parse_query(given.query, given.weight, binder.modalities))
    vectors_1D = query.vector[None]
    pictures = [generator.draw(vectors_1D, given.via, seed=seed)[0] for seed in range(given.count)]
    save_row(pictures, given.out)
    print(f"{query.label}: {given.out}")


def save_row(pictures: Sequence[np.ndarray], out: Path) -> None:
    """Write pictures side by side as PNG."""
    from PIL import Image

    Image.fromarray(np.concatenate(pictures, axis=1)).save(out)


if __name__ == "__main__":
    try:
        main()
    except GeobindError as error:
        sys.exit(f"error: {error}")
