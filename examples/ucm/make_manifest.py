"""Write the table of UC Merced tiles with their captions: a row for each tile, in the published split.

    python make_manifest.py data manifests/ucm.csv

Every tile has five captions that people wrote of it. Training draws one of them anew each epoch.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

# The classes in the words of the training captions, which nowhere say "agricultural" or "freeway".
NAMES = {
    "agricultural": "farmland",
    "baseballdiamond": "baseball diamond",
    "denseresidential": "dense residential area",
    "freeway": "freeways",
    "golfcourse": "golf course",
    "mediumresidential": "medium residential area",
    "mobilehomepark": "mobile home park",
    "parkinglot": "parking lot",
    "sparseresidential": "sparse residential area",
    "storagetanks": "storage tanks",
    "tenniscourt": "tennis court",
}
COLUMNS = ("key", "split", "label", "satellite", "text")


def row_of(image: dict[str, Any]) -> dict[str, str]:
    """Make the row of one tile."""
    return {
        "key": Path(image["file"]).stem,
        "split": image["split"],
        "label": NAMES.get(image["cls"], image["cls"]),
        "satellite": image["file"],
        "text": json.dumps(image["captions"]),
    }


def main(data: Path, target: Path) -> None:
    """Write the table and say how many rows are in each split."""
    images = json.loads((data / "captions/ucm_captions.json").read_text(encoding="utf-8"))["images"]
    # Captions of other tiles: all of these are in the training split.
    rows = [row_of(image) for image in images if not image["suspect"]]
    if missing := [row["satellite"] for row in rows if not (data / row["satellite"]).is_file()]:
        raise SystemExit(f"{data / missing[0]}: no such file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    counts = ", ".join(f"{split} {count}" for split, count in Counter(row["split"] for row in rows).items())
    if (data / "STAND_IN.txt").exists():
        print("a stand-in, not UC Merced: figures say nothing about real places")
    print(f"{target}: {counts}; {len(images) - len(rows)} tiles with captions of another are left out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the table of tiles and captions.")
    parser.add_argument("data", type=Path, help="the folder of real data")
    parser.add_argument("target", type=Path, help="the CSV file to write")
    given = parser.parse_args()
    main(given.data, given.target)
