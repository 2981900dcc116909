"""The plugins in numbers: lines, CPU time of installation and of the tests, retrieval on toy Earth.

    python benchmarks/plugins.py [elevation imu ...]

Each is installed by pip, without its requirements, into the environment that runs this script, which holds
geobind, pip, pytest and hypothesis: use one made for it. Lines are those of the module: all, and those that
are neither blank nor comments. CPU seconds are those of the processes started, with one thread.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def spend(*command: str | Path) -> tuple[float, str]:
    """Run a command and return its CPU seconds and what it printed."""
    start = os.times()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment)
    if ended.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{ended.stdout}{ended.stderr}")
    end = os.times()
    used = end.children_user + end.children_system - start.children_user - start.children_system
    return used, ended.stdout


def count_lines(module: Path) -> tuple[int, int]:
    """Count the lines of a module: all, and those that are neither blank nor comments."""
    lines = module.read_text(encoding="utf-8").splitlines()
    return len(lines), sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)


def main() -> None:
    """Print a row for each plugin."""
    print("| plugin | lines (of code) | install, CPU s | tests, CPU s | R@10 on toy Earth (untrained) |")
    print("|---|---|---|---|---|")
    for folder in sorted((ROOT / "plugins").iterdir()):
        name = folder.name.removeprefix("geobind-modality-")
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        lines, code = count_lines(folder / f"geobind_modality_{name}.py")
        installing, _ = spend("pip", "install", "--quiet", "--force-reinstall", "--no-deps", folder)
        testing, output = spend("pytest", "-q", "-rP", "-p", "no:cacheprovider", folder)
        passed = re.search(r"(\d+) passed", output)
        learning = re.search(r"Learning\(trained=([\d.]+), untrained=([\d.]+)", output)
        figures = f"{float(learning[1]):.2f} ({float(learning[2]):.2f})" if learning else ""
        tests = f"{testing:.0f} for {passed[1] if passed else 0}"
        print(f"| {name} | {lines} ({code}) | {installing:.1f} | {tests} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
