"""Questions in words over several seeds: the tables of docs/evaluation.md and docs/real_earth.md.

    geobind run three_modal --set seed=0 --out runs/toy0       # and seeds 1 and 2
    python benchmarks/zero_shot.py runs/toy0 runs/toy1 runs/toy2 --data toyearth --questions toyearth

Bundles are asked by `geobind eval --questions --untrained --json`. Cells hold the area under the curve of
each seed, with `*` where its interval, over cells or blocks, lies above chance, their mean, and in brackets
that of random weights, which may order rows in either direction. Sums below count the cells.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

Answers = dict[str, dict[str, dict[str, Any]]]  # by question and modality


def ask(run: Path, data: str, questions: str, clusters: str | None) -> Answers:
    """Ask a bundle, or read what it or its run answered before."""
    kept = run / ("questions.json" if questions == "recipe" else f"asked_{Path(questions).stem}.json")
    if not kept.is_file():
        command = [sys.executable, "-m", "geobind", "eval", str(run / "bundle"), "--data", data, "--json"]
        command += ["--questions", questions, "--untrained", *(["--clusters", clusters] if clusters else [])]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        kept.write_text(json.dumps(json.loads(found)["questions"]))
    found = json.loads(kept.read_text())["questions"]
    return {
        " / ".join(one["prompts"]): {answer["modality"]: answer for answer in one["answers"]} for one in found
    }


def write_cell(answers: list[dict[str, Any]]) -> str:
    """Write the areas of all seeds, their mean, and that of untrained encoders."""
    areas = [f"{one['auc']['value']:.2f}{'*' * (one['auc']['low'] > 0.5)}" for one in answers]
    mean, untrained = (fmean(one[key]["value"] for one in answers) for key in ("auc", "untrained"))
    return f"{', '.join(areas)}: **{mean:.2f}** ({untrained:.2f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--clusters")
    chosen = parser.parse_args()
    by_run = [ask(run, chosen.data, chosen.questions, chosen.clusters) for run in chosen.runs]
    modalities = {
        name: f"{name} ({'met words' if answer['mark'] == 'trained' else 'never met words'})"
        for answers in by_run[0].values()
        for name, answer in answers.items()
    }
    print(f"| question | {' | '.join(modalities.values())} |\n|---{'|---' * len(modalities)}|")
    for question in by_run[0]:
        cells = [write_cell([answers[question][name] for answers in by_run]) for name in modalities]
        print(f"| {question} | {' | '.join(cells)} |")
    for name, title in modalities.items():
        every = [answer[name] for answers in by_run for answer in answers.values()]
        above, below = (
            sum(1 for one in every if holds(one["auc"]))
            for holds in (lambda auc: auc["low"] > 0.5, lambda auc: auc["high"] < 0.5)
        )
        beside = [one for one in every if one["anchor"]]
        better = sum(1 for one in beside if one["auc"]["value"] > one["anchor"]["value"])
        against = f", {better} better than the anchor" if beside else ""
        print(f"\n{title}: {above} of {len(every)} above chance, {below} below{against}")


if __name__ == "__main__":
    main()
