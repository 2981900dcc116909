"""Real places with finer tiles and night lights: does what emerges hold over seeds, on whole blocks of land?

    python benchmarks/earth_trial.py [FOLDER] [--seeds 0,1,2] [--brief] [--out runs/earth_trial]

FOLDER holds train.parquet and test.parquet of the trial (by default `earth` in $GEOBIND_TEST_DATA): tiles of
64 pixels, night lights, heights, coordinates, climate and captions of 5,410 and 1,564 places, in splits of
whole blocks of 10 degrees. Words are trained with tiles, then the others with the frozen tiles, each alone,
by the plugins in plugins/. Printed are text-location R@10, an emergent pair, and the AUC of "mountains" asked
of heights, which never met words (relief above 800 m), each with its interval over blocks, and means over
seeds. A run that is there already is taken up again. `--brief` leaves out night lights and climate, which
neither figure depends on.
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


def write_recipe(seed: int, brief: bool) -> dict[str, Any]:
    """Return the recipe as plain values."""
    modalities = {name: of for name, of in _MODALITIES.items() if not (brief and name in _OTHERS)}
    stages = [
        {
            "name": name,
            "align": name,
            "train": ["satellite", "text"] if name == "text" else [name],
            "batch_size": 128,
            "epochs": epochs,
            "optimizer": {"lr": 2.0e-3, "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup_steps": 20},
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
        "evaluate": {
            "split": "test",
            "clusters": "group",
            "untrained": True,
            "questions": {"mountains": _QUESTION},
        },
    }


def main(folder: Path, out: Path, seeds: list[int], brief: bool) -> None:
    """Train with every seed, and print the figures of each and their means."""
    write_metres(folder, out)
    recalls: list[float] = []
    areas: list[float] = []
    for seed in seeds:
        recipe = build_recipe(write_recipe(seed, brief), out, source="earth_trial", files=True)
        finished = run(recipe, out / f"seed{seed}", resume=True)
        if finished.table is None or finished.questions is None:
            raise SystemExit("the run measured nothing")
        rows = {(row.query, row.gallery): row for row in finished.table.rows}
        pair = rows["text", "location"]
        found, fresh = pair.metrics["R@10"], pair.beside["untrained"]["R@10"]
        (answer,) = (one for one in finished.questions.questions[0].answers if one.modality == "elevation")
        untrained = answer.untrained.value if answer.untrained else float("nan")
        recalls.append(found.value)
        areas.append(answer.auc.value)
        print(
            f"seed {seed}: text to location R@10 {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], "
            f"untrained {fresh.value:.3f}, chance {found.chance:.4f}; mountains by elevation "
            f"AUC {answer.auc.value:.3f} [{answer.auc.low:.3f}, {answer.auc.high:.3f}], "
            f"untrained {untrained:.3f}",
            flush=True,
        )
    print(f"text to location R@10 over seeds: {format_interval(seed_interval(recalls))}")
    print(f"mountains by elevation AUC over seeds: {format_interval(seed_interval(areas))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = os.environ.get("GEOBIND_TEST_DATA")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(home) / "earth" if home else None)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/earth_trial"))
    given = parser.parse_args()
    if given.folder is None:
        parser.error("name the folder of the trial, or set GEOBIND_TEST_DATA")
    main(given.folder, given.out, [int(word) for word in given.seeds.split(",")], given.brief)
