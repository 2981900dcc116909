"""Write a small stand-in for the data of examples/ucm and examples/real_data: toy Earth, and random weights.

    python stand_in.py DATA              # every file that both examples read, 41 MB
    python stand_in.py DATA --weights    # random weights alone, into a folder with the real files

Every command of the examples runs on it. Its figures say nothing about real places: tiles, photos, sounds and
sentences are drawn, and the trunks have learnt nothing. STAND_IN.txt in the folder says so, and the examples
repeat it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path

import torch
from safetensors.torch import save_file

EXAMPLES = Path(__file__).resolve().parent
sys.path[:0] = [str(EXAMPLES / "geobind-modality-yamnet"), str(EXAMPLES / "real_data")]

import make_manifests  # noqa: E402

MARK = "STAND_IN.txt"
# concept of examples/real_data -> class of toy Earth
CLASSES = {"coast": "water", "forest": "forest", "road": "bare", "city": "town", "farmland": "crops"}
PLACES, HELD_OUT = 240, 60

Row = Mapping[str, str]


def main(data: Path, *, weights_only: bool = False, places: int = PLACES, held_out: int = HELD_OUT) -> None:
    """Write the stand-in into a folder that is empty or not there; weights alone into any."""
    if not weights_only:
        if data.exists() and any(data.iterdir()):
            sys.exit(f"{data}: is not empty; name another folder, so that nothing is taken for real data")
        with tempfile.TemporaryDirectory() as drawn:
            rows = draw_toy_earth(Path(drawn), places, held_out)
            write_captions(data, Path(drawn), rows)
            write_concepts(data, Path(drawn), rows)
    write_weights(data / "weights")
    what = "random weights" if weights_only else "toy Earth and random weights"
    (data / MARK).write_text(f"{what}; figures say nothing about real places\n", encoding="utf-8")
    print(f"{data}: a stand-in, {what}; its figures say nothing about real places")


def draw_toy_earth(folder: Path, places: int, held_out: int) -> list[Row]:
    """Write toy Earth's files into a folder, and return the rows of its manifest."""
    from geobind_toyearth import ToyEarth

    manifest = ToyEarth(places=places, held_out=held_out, seconds=2.0).write_files(folder)
    with open(manifest, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_captions(data: Path, drawn: Path, rows: Iterable[Row]) -> None:
    """Write tiles with five captions each, in the layout of UC Merced."""
    images = []
    for number, row in enumerate(rows, start=1):
        place = f"sat/ucm/{row['label']}/{row['label']}{number:04}{Path(row['tile']).suffix}"
        copy(drawn / row["tile"], data / place)
        split = row["split"] if row["split"] == "test" or number % 8 else "val"
        captions = json.loads(row["captions"])
        images.append(
            {
                "file": place,
                "ucm_id": number,
                "cls": row["label"],
                "split": split,
                "captions": captions,
                "suspect": False,
            }
        )
    path = data / "captions/ucm_captions.json"
    path.parent.mkdir(parents=True)
    content = {"dataset": "a stand-in for UCM-captions", "images": images}
    path.write_text(json.dumps(content, indent=0), encoding="utf-8")


def write_concepts(data: Path, drawn: Path, rows: Iterable[Row]) -> None:
    """Write tiles, photos and sounds of five concepts, each of another place, in the layout of real_data."""
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_class[row["label"]].append(row)
    clips = []
    for concept, (tiles, photos, sounds) in make_manifests.CONCEPTS.items():
        found = by_class[CLASSES[concept]]
        for row, folder in zip(found, cycle(tiles)):
            copy(drawn / row["tile"], data / "sat/ucm" / folder / Path(row["tile"]).name)
        for row, folder in zip(found, cycle(photos)):
            name = f"{row['split']}_{Path(row['photo']).name}"
            copy(drawn / row["photo"], data / "ground/scene8" / folder / name)
        for row, folder in zip(found, cycle(sounds)):
            file = f"audio/{folder}/{Path(row['sound']).name}"
            copy(drawn / row["sound"], data / file)
            dataset, cls = folder.split("/")
            clips.append({"file": file, "dataset": dataset, "cls": cls, "group": row["key"]})
    with open(data / "audio/manifest.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["file", "dataset", "cls", "group"], lineterminator="\n")
        table.writeheader()
        table.writerows(clips)
    (data / "geo_soundmap").mkdir()
    (data / "geo_soundmap/manifest.json").write_text("[]", encoding="utf-8")


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that may not be there yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def write_weights(folder: Path) -> None:
    """Write random weights under the names of MobileNetV2's and YAMNet's; files that are there stay."""
    import timm
    from geobind_yamnet_network import Yamnet

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    convs = {f"conv{name}": value for name, value in Yamnet().convs.state_dict().items()}
    mobilenet = timm.create_model("mobilenetv2_100", pad_type="same").state_dict()
    for name, state in (("timm_mobilenetv2_100_fp16", mobilenet), ("yamnet_fp16", convs)):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            halves = {
                key: value.half() if value.is_floating_point() else value for key, value in state.items()
            }
            save_file(halves, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a small stand-in for the examples' data.")
    parser.add_argument("data", type=Path, help="the folder that the files go to")
    parser.add_argument("--weights", action="store_true", help="write random weights alone")
    given = parser.parse_args()
    main(given.data, weights_only=given.weights)
