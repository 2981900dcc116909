"""The probe process: reads a recipe from standard input and writes measurements line by line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from geobind.errors import GeobindError


def main() -> None:
    """Measure the recipe on standard input."""
    asked = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        # Other output goes to standard error, so that nothing mixes with the lines.
        os.dup2(2, 1)

        def send(kind: str, values: object) -> None:
            print(json.dumps([kind, values]), file=out, flush=True)

        try:
            from geobind.planning.probe import Progress, measure_recipe
            from geobind.recipe import build_recipe
            from geobind.training.interruption import deterministic_algorithms
            from geobind.utils.logs import log_to_stderr

            written, base = asked["recipe"], Path(asked["base"])
            recipe = build_recipe(written, base, source=asked["name"], begin=True)
            with log_to_stderr(), deterministic_algorithms(recipe.fabric.deterministic):
                for event in measure_recipe(recipe, Path(asked["folder"]), asked["seconds"], asked["limit"]):
                    values = event.what if isinstance(event, Progress) else event.model_dump(mode="json")
                    send(type(event).__name__, values)
        except GeobindError as error:
            send("error", [type(error).__name__, str(error)])


if __name__ == "__main__":
    main()
