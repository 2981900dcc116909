"""Check each recipe in the plugins' READMEs with `geobind check`; the first ones, on toy Earth, can be run.

python .ci/check_plugin_recipes.py plugins --run elevation imu --set data.toyearth.places=96
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import yaml


def write_table(path: Path, recipe: dict[str, Any]) -> None:
    """Write one row that has every column which the recipe reads."""
    columns = {name: [name] for name in recipe["modalities"]}
    for name, cells in recipe["data"].get("columns", {}).items():
        columns.pop(name, None)
        columns |= {cell: ["1"] for cell in ([cells] if isinstance(cells, str) else cells)}
    columns.pop("place", None)
    table = pa.table({**columns, "lat": [48.1], "lon": [11.6], "time": ["2024-05-01T10:00:00Z"]})
    write = pyarrow.parquet.write_table if path.suffix == ".parquet" else pyarrow.csv.write_csv
    write(table, path)


def run_command(readme: Path, block: str, *command: str) -> str:
    """Run a command on a recipe in a folder of its own, beside the files that it reads; return faults."""
    with tempfile.TemporaryDirectory() as folder:
        file, recipe = Path(folder, "recipe.yaml"), yaml.safe_load(block)
        file.write_text(block, encoding="utf-8")
        for name in re.findall(r"(?<=[ :])\./[\w./-]+", block):
            Path(folder, name).touch()  # a file that an option names is not read yet
        if manifest := recipe["data"].get("manifest"):
            write_table(Path(folder, manifest), recipe)
        words = [sys.executable, "-m", "geobind", command[0], file.name, *command[1:]]
        start = os.times()
        ended = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    seconds = sum(os.times()[2:4]) - sum(start[2:4])
    print(f"{readme.parent.name}: {command[0]} {'ok' if ended.returncode == 0 else 'faulty'}", flush=True)
    if command[0] == "run":
        print(f"{ended.stdout}{seconds:.0f} CPU s", flush=True)
    return f"{readme}:\n{ended.stdout}{ended.stderr}" if ended.returncode else ""


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("plugins", type=Path, help="the folder of plugins")
parser.add_argument(
    "--run", nargs="*", default=(), metavar="NAME", help="also run the first recipe of these plugins"
)
parser.add_argument(
    "--set", action="append", default=[], metavar="KEY=VALUE", help="a change to the recipes run"
)
given = parser.parse_args()
changes = [word for change in given.set for word in ("--set", change)]
faults: list[str] = []
names = {
    readme.parent.name.removeprefix("geobind-modality-"): readme
    for readme in given.plugins.glob("*/README.md")
}
for name, readme in sorted(names.items()):
    blocks = re.findall(r"^```yaml\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if not blocks or "toyearth" not in blocks[0]:
        faults.append(f"{readme}: its first recipe does not run on toy Earth")
        continue
    faults += [run_command(readme, block, "check") for block in blocks]
    if name in given.run:
        faults.append(run_command(readme, blocks[0], "run", *changes))
faults += [f"--run {name}: no such plugin" for name in given.run if name not in names]
sys.exit("\n".join(filter(None, faults)) or 0)
