"""Whether a modality learns: a small stage binds it to the facts of toy Earth, and held-out places are found.

For tests of plugins. Such a figure says that an encoder and its preparation work, and nothing of the Earth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Learning(NamedTuple):
    """R@10 of held-out places, the mean of both directions between a modality and the facts."""

    trained: float
    untrained: float  # of the same encoders before the stage
    chance: float


def bind_to_facts(
    name: str,
    column: str,
    folder: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    places: int = 400,
    epochs: int = 8,
    frozen: bool = False,
    width: int = 64,
) -> Learning:
    """Train a modality and the facts of toy Earth on each other; measure retrieval of 100 held-out places.

    Args:
        name: The modality, of an installed plugin.
        column: The column of toy Earth that it reads.
        folder: For the run; it must hold none.
        options: Its options.
        places: Places to train on.
        epochs: Times that each is seen.
        frozen: Train the facts' encoder alone.
        width: Numbers of an embedding.

    Raises:
        GeobindError: As `geobind.run`.
    """
    from geobind.recipe.loading import load_recipe
    from geobind.training.run import run

    small = {"tile_size": 32, "gsd": 20, "photo_size": 32}
    stage = {"name": "facts", "align": name, "train": ["vector"] if frozen else ["vector", name]}
    recipe = {
        "name": "facts",
        "width": width,
        "anchor": "vector",
        "modalities": {
            "vector": {"size": 16, "hidden": [64], "mean": [0.4], "std": [0.3]},
            name: dict(options or {}),
        },
        "data": {
            "toyearth": {"places": places, "held_out": 100, **small},
            "columns": {"vector": "facts", name: column},
        },
        "stages": [{**stage, "batch_size": 50, "epochs": epochs, "optimizer": {"lr": 2e-3}}],
        "workers": 0,
        "evaluate": {"split": "test", "untrained": True},
    }
    file = Path(folder) / "recipe.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    table = run(load_recipe(file), Path(folder) / "run").table
    assert table is not None  # the recipe evaluates
    after, before = [row.metrics for row in table.rows], [row.beside["untrained"] for row in table.rows]
    return Learning(
        float(np.mean([metrics["R@10"].value for metrics in after])),
        float(np.mean([metrics["R@10"].value for metrics in before])),
        float(np.mean([metrics["R@10"].chance for metrics in after])),
    )
