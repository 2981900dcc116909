"""Check the recipe in each plugin's README with `geobind check`, beside a table of the columns it names."""

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


faults = []
for readme in sorted(Path(sys.argv[1]).glob("*/README.md")):
    blocks = re.findall(r"^```yaml\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if not blocks:
        faults.append(f"{readme}: no recipe")
    for block in blocks:
        with tempfile.TemporaryDirectory() as folder:
            file, recipe = Path(folder, "recipe.yaml"), yaml.safe_load(block)
            file.write_text(block, encoding="utf-8")
            for name in re.findall(r"(?<=[ :])\./[\w./-]+", block):
                Path(folder, name).touch()  # a file that an option names is not read yet
            if manifest := recipe["data"].get("manifest"):
                write_table(Path(folder, manifest), recipe)
            command = [sys.executable, "-m", "geobind", "check", file.name]
            checked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        print(f"{readme.parent.name}: {'ok' if checked.returncode == 0 else 'faulty'}", flush=True)
        if checked.returncode:
            faults.append(f"{readme}:\n{checked.stdout}{checked.stderr}")
sys.exit("\n".join(faults))
