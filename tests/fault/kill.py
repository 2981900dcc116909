"""Kill runs of the toy modalities at random moments for as long as you like.

`python tests/fault/kill.py --kills 200 --seed 1` draws where from the seed; a run that was killed must end
with the weights, losses and measurements of one that was not. Kills by the clock (`--timed`) hit any
instruction, but not the same one twice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "helpers"))

import fault_kills
import fault_world


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timed", type=float, default=0.3, help="share of kills by the clock")
    parser.add_argument("--whole", action="store_true", help="draw the report's figures as well")
    parser.add_argument(
        "--variants", nargs="+", choices=fault_world.VARIANTS, default=[*fault_world.VARIANTS]
    )
    args = parser.parse_args()
    fault_world.quick(whole=args.whole)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        killing = fault_kills.Killing(Path(folder), args.seed, args.variants, args.timed)
        try:
            for kill in killing.kills(args.kills):
                counts["by the clock" if kill.where.startswith("after") else kill.where.split(",")[0]] += 1
                if not counts.total() % 50:
                    print(f"{counts.total()} of {args.kills}", file=sys.stderr, flush=True)
        except fault_kills.Different as error:
            print(f"after {counts.total()} kills: {error}", file=sys.stderr)
            return 1
    print(
        f"{counts.total()} kills in {time.monotonic() - began:.0f} s; every run ended as if there were none"
    )
    for where, count in counts.most_common():
        print(f"{count:6d}  {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
