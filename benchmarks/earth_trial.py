"""Real places with finer tiles and night lights: does what emerges hold over seeds, on whole blocks of land?

    python benchmarks/earth_trial.py [FOLDER] [--seeds 0,1,2] [--brief] [--together] [--out runs/earth_trial]

FOLDER holds train.parquet and test.parquet of the trial (by default `earth` in $GEOBIND_TEST_DATA): tiles of
64 pixels, night lights, heights, coordinates, climate and captions of 5,410 and 1,564 places, in splits of
whole blocks of 10 degrees. Words are trained with tiles, then the others with the frozen tiles, each alone,
by the plugins in plugins/. Printed are text-location R@10, an emergent pair, and the AUC of "mountains" asked
of heights, which never met words (relief above 800 m), each with its interval over blocks, and means over
seeds; with them tile-height R@10, a trained pair of rasters. A run that is there already is taken up again.
`--brief` leaves out night lights and climate, which no figure depends on. `--together` mirrors the tile and
the heights of a place alike, and trains nothing but words and heights.
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from geobind.evaluation.retrieval_metrics import Metric
from geobind.recipe import build_recipe
from geobind.studies.summary import format_interval, seed_interval
from geobind.training.run import run

_SMALL = {
    "model": "resnet10t",
    "pretrained": False,
    "options": {"channels": [24, 48, 96, 128], "stem_width": 12, "global_pool": "catavgmax"},
}
_MIRRORED = {"hflip": True, "vflip": True}
_CLIP = {
    "embed_dim": 128,
    "text_cfg": {"context_length": 64, "width": 128, "heads": 4, "layers": 2},
    "vision_cfg": {},
}
_RASTER = {"timm": _SMALL, "size": 32, "head": "mlp", "augment": _MIRRORED}
_MODALITIES: dict[str, Any] = {
    "satellite": {**_RASTER, "size": 64},
    "text": {"role": "trainable", "clip": {"pretrained": False, "model": _CLIP}},
    "elevation": _RASTER,
    "location": {"features": "fourier", "scales": [0.16, 0.32, 0.64, 1.27], "hidden": 256},
    "nightlights": _RASTER,
    "environment": {"size": 44, "hidden": [128, 128]},
}
_EPOCHS = {"text": 8, "elevation": 6, "location": 12, "nightlights": 6, "environment": 12}
_OTHERS = ("nightlights", "environment")
_QUESTION = {"prompts": ["mountains", "flat land"], "truth": "relief_m", "above": 800.0}


def write_metres(folder: Path, out: Path) -> Path:
    """Write the trial's tables with heights in metres, in place of pictures that hold their square roots."""
    home = out / "earth"
    home.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        path = home / f"{split}.parquet"
        if path.exists():
            continue
        table = pq.read_table(folder / f"{split}.parquet")
        cells = [_metres(cell.as_py()) for cell in table.column("elevation")]
        at = table.schema.get_field_index("elevation")
        table = table.set_column(at, "elevation", pa.array(cells, pa.binary()))
        pq.write_table(table, path, row_group_size=256)
    return home


def _metres(picture: bytes) -> bytes:
    grey_HW = np.asarray(Image.open(io.BytesIO(picture))).astype(np.float64)
    file = io.BytesIO()
    np.save(file, ((np.maximum(grey_HW - 52, 0) * 112.5 / 255) ** 2).round().astype(np.int16))
    return file.getvalue()


def write_recipe(seed: int, brief: bool, together: bool) -> dict[str, Any]:
    """Return the recipe as plain values."""
    left_out = {*_OTHERS, "location"} if together else set(_OTHERS) if brief else set[str]()
    modalities = {name: of for name, of in _MODALITIES.items() if name not in left_out}
    stages = [
        {
            "name": name,
            "align": name,
            "train": ["satellite", "text"] if name == "text" else [name],
            "batch_size": 128,
            "epochs": epochs,
            "optimizer": {"lr": 2.0e-3, "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup_steps": 20},
            "cache": "off" if together and name == "elevation" else "auto",
        }
        for name, epochs in _EPOCHS.items()
        if name in modalities
    ]
    return {
        "name": "earth_trial",
        "seed": seed,
        "width": 128,
        "modalities": modalities,
        "data": {"manifest": "earth", "inline": ["text"], "columns": {"location": "place"}},
        "stages": stages,
        "augment": {"together": ["satellite", "elevation"] if together else []},
        "evaluate": {
            "split": "test",
            "clusters": "group",
            "untrained": True,
            "questions": {"mountains": _QUESTION},
        },
    }


def main(folder: Path, out: Path, seeds: list[int], brief: bool, together: bool) -> None:
    """Train with every seed, and print the figures of each and their means."""
    write_metres(folder, out)
    pairs = [("satellite", "elevation"), *([] if together else [("text", "location")])]
    found: dict[str, list[float]] = {}
    for seed in seeds:
        recipe = build_recipe(write_recipe(seed, brief, together), out, source="earth_trial", files=True)
        finished = run(recipe, out / f"seed{seed}{'_together' if together else ''}", resume=True)
        if finished.table is None or finished.questions is None:
            raise SystemExit("the run measured nothing")
        rows = {(row.query, row.gallery): row for row in finished.table.rows}
        (answer,) = (one for one in finished.questions.questions[0].answers if one.modality == "elevation")
        measured: dict[str, tuple[Metric, Metric | None]] = {
            f"{query} to {gallery} R@10": (
                rows[query, gallery].metrics["R@10"],
                rows[query, gallery].beside["untrained"]["R@10"],
            )
            for query, gallery in pairs
        }
        measured["mountains by elevation AUC"] = (answer.auc, answer.untrained)
        for name, (value, untrained) in measured.items():
            found.setdefault(name, []).append(value.value)
            beside = f"{untrained.value:.3f}" if untrained else "unknown"
            print(
                f"seed {seed}: {name} {value.value:.3f} [{value.low:.3f}, {value.high:.3f}], "
                f"untrained {beside}",
                flush=True,
            )
    for name, values in found.items():
        print(f"{name} over seeds: {format_interval(seed_interval(values))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = os.environ.get("GEOBIND_TEST_DATA")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(home) / "earth" if home else None)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/earth_trial"))
    given = parser.parse_args()
    if given.folder is None:
        parser.error("name the folder of the trial, or set GEOBIND_TEST_DATA")
    main(given.folder, given.out, [int(word) for word in given.seeds.split(",")], given.brief, given.together)
