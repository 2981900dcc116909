"""Write the tables of a class-level task: satellite tiles, ground photos and sounds of five kinds of place.

    python make_manifests.py DATA manifests

Tile and photo, tile and sound are paired by concept alone: **class-level pseudo-pairs, not co-located**.
Nothing here knows where anything was recorded, so nothing trained on it retrieves places.

A row of a training table is one tile with a list of every photo (or sound) of its concept and split; training
draws one of them anew each epoch. Photo and sound never meet in a row. No split parts what belongs together:
tiles of the same content, the photos' own training and test sets, and all clips cut from one recording.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PAIRING = "class-level"  # every row says so

# concept -> folders of satellite tiles, of ground photos, of sounds
CONCEPTS = {
    "coast": (["beach"], ["coast"], ["esc10/sea_waves", "ambient/sea_waves"]),
    "forest": (["forest"], ["forest"], ["ambient/forest_ambience", "ambient/birds"]),
    "road": (["freeway", "overpass"], ["highway"], ["ambient/traffic_highway"]),
    "city": (
        ["buildings", "denseresidential"],
        ["inside_city", "street", "tallbuilding"],
        ["ambient/city_street", "ambient/crowd"],
    ),
    "farmland": (["agricultural"], ["opencountry"], ["ambient/farm_animals", "esc10/rooster"]),
}
PLACES_TAG, PLACES_CONCEPT = "traffic", "road"  # of geo_soundmap, the places with this tag sound like roads
TEST, VAL = 0.3, 0.15  # shares of the tiles, and of the recordings of each folder


class Item(NamedTuple):
    """One tile, photo or clip."""

    modality: str
    file: str  # relative to the folder of data, with forward slashes
    label: str
    group: str  # items of one group are in one split
    split: str


def satellite(data: Path, seed: int) -> Iterator[Item]:
    """List the tiles; tiles of equal content form a group."""
    for label, (folders, _, _) in CONCEPTS.items():
        for folder in folders:
            groups: dict[str, list[str]] = defaultdict(list)
            for file in files(data, f"sat/ucm/{folder}"):
                groups[content(data / file)].append(file)
            yield from divided("satellite", label, groups, f"{seed} {folder}")


def ground_image(data: Path, seed: int) -> Iterator[Item]:
    """List the photos; the source's own test set is the test split, a part of its training set is val."""
    for label, (_, folders, _) in CONCEPTS.items():
        for folder in folders:
            known = {
                file: Path(file).name.partition("_")[0] for file in files(data, f"ground/scene8/{folder}")
            }
            if strange := set(known.values()) - {"train", "test"}:
                raise SystemExit(
                    f"ground/scene8/{folder}: a photo's name begins with {min(strange)!r}, not train or test"
                )
            for file in (file for file, split in known.items() if split == "test"):
                yield Item("ground_image", file, label, file, "test")
            train = [file for file, split in known.items() if split == "train"]
            random.Random(f"{seed} {folder}").shuffle(train)
            val = round(VAL * len(train))
            for at, file in enumerate(train):
                yield Item("ground_image", file, label, file, "val" if at < val else "train")


def sound(data: Path, seed: int) -> Iterator[Item]:
    """List the clips; all clips of one recording, and of one mapped place, form a group."""
    recordings: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    with open(data / "audio/manifest.csv", newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            recordings[f"{row['dataset']}/{row['cls']}"][f"{row['dataset']}/{row['group']}"].append(
                row["file"]
            )
    mapped: dict[str, list[str]] = {}
    for place in json.loads((data / "geo_soundmap/manifest.json").read_text(encoding="utf-8")):
        if PLACES_TAG in place["tags"]:
            mapped[f"geo_soundmap/{place['id']}"] = place["audio"]
    for label, (_, _, folders) in CONCEPTS.items():
        for folder in folders:
            yield from divided("audio_yamnet", label, recordings[folder], f"{seed} {folder}")
        if label == PLACES_CONCEPT:
            yield from divided("audio_yamnet", label, mapped, f"{seed} geo_soundmap")


def files(data: Path, folder: str) -> list[str]:
    """List the files of a folder in a fixed order."""
    return sorted(f"{folder}/{path.name}" for path in (data / folder).iterdir() if path.is_file())


def content(path: Path) -> str:
    """Name the content of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def divided(modality: str, label: str, groups: dict[str, list[str]], seed: str) -> Iterator[Item]:
    """Share groups out by lot: a lone group goes to train, two to train and test, four to all splits."""
    names = sorted(groups)
    random.Random(seed).shuffle(names)
    test = max(round(TEST * len(names)), 1) if len(names) > 1 else 0
    val = max(round(VAL * len(names)), 1) if len(names) > 3 else 0
    for at, name in enumerate(names):
        split = "test" if at < test else "val" if at < test + val else "train"
        yield from (Item(modality, file, label, name, split) for file in sorted(groups[name]))


def check(data: Path, items: Iterable[Item]) -> None:
    """Stop if a file is missing, or if a file, a group or a content is in two splits."""
    seen: dict[tuple[str, str], Item] = {}
    for item in items:
        if not (data / item.file).is_file():
            raise SystemExit(f"{data / item.file}: no such file")
        facts = {
            "file": item.file,
            "group": f"{item.modality} {item.group}",
            "content": content(data / item.file),
        }
        for kind, fact in facts.items():
            other = seen.setdefault((kind, fact), item)
            if other.split != item.split:
                raise SystemExit(
                    f"{item.file} ({item.split}) and {other.file} ({other.split}) have the same {kind}: "
                    "put them into one group"
                )


def training_rows(items: list[Item], other: str) -> Iterator[dict[str, str]]:
    """Pair every tile of train and val with the list of its concept's items of another modality."""
    for tile in (item for item in items if item.modality == "satellite" and item.split != "test"):
        wanted = (other, tile.label, tile.split)
        pool = [item.file for item in items if (item.modality, item.label, item.split) == wanted]
        # Evaluation takes the first of a list: let the rows differ in it.
        start = int(hashlib.sha256(tile.file.encode()).hexdigest(), 16) % max(len(pool), 1)
        yield {
            "key": tile.file,
            "split": tile.split,
            "label": tile.label,
            "pairing": PAIRING,
            "satellite": tile.file,
            other: json.dumps(pool[start:] + pool[:start]),
        }


def held_out_rows(items: list[Item]) -> Iterator[dict[str, str]]:
    """List the test items, one in a row: they are compared by concept, never row by row."""
    for item in (item for item in items if item.split == "test"):
        yield {
            "key": item.file,
            "split": item.split,
            "label": item.label,
            "pairing": PAIRING,
            "group": item.group,
            item.modality: item.file,
        }


def write(path: Path, rows: Iterable[dict[str, str]], columns: list[str]) -> None:
    """Write a CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def main(data: Path, out: Path, seed: int) -> None:
    """Write the three tables and say how many items are in each split."""
    if (data / "STAND_IN.txt").exists():
        print("a stand-in, not real data: figures say nothing about real places")
    items = [*satellite(data, seed), *ground_image(data, seed), *sound(data, seed)]
    check(data, items)
    out.mkdir(parents=True, exist_ok=True)
    shared = ["key", "split", "label", "pairing"]
    write(
        out / "train_ground.csv", training_rows(items, "ground_image"), [*shared, "satellite", "ground_image"]
    )
    write(
        out / "train_audio.csv", training_rows(items, "audio_yamnet"), [*shared, "satellite", "audio_yamnet"]
    )
    modalities = ["satellite", "ground_image", "audio_yamnet"]
    write(out / "evaluate.csv", held_out_rows(items), [*shared, "group", *modalities])
    for modality in modalities:
        for split in ("train", "val", "test"):
            of = [item for item in items if (item.modality, item.split) == (modality, split)]
            each = ", ".join(f"{label} {sum(item.label == label for item in of)}" for label in CONCEPTS)
            print(
                f"{modality:>12} {split:>5} {len(of):>4}: {each} ({len({item.group for item in of})} groups)"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the tables of the class-level task.")
    parser.add_argument("data", type=Path, help="the folder of real data")
    parser.add_argument("out", type=Path, help="where the tables go")
    parser.add_argument("--seed", type=int, default=0, help="which split")
    given = parser.parse_args()
    main(given.data, given.out, given.seed)
