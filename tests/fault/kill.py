"""Kill runs of the toy modalities at random moments for as long as you like.

`python tests/fault/kill.py --kills 200 --seed 1` draws where from the seed; a run that was killed must end
with the weights, losses and measurements of one that was not. Kills by the
clock (`--timed`) hit any instruction, but not the same one twice.

`--commands` kills `save`, `pack`, `import`, `split`, `embed` into an archive, sweeps, `eval --keep` and two
processes that fill one cache in the same way.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "helpers"))

import fault_commands
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
    parser.add_argument(
        "--commands",
        nargs="*",
        choices=fault_commands.COMMANDS,
        help="kill other commands that write, not runs; without names all in turn",
    )
    args = parser.parse_args()
    fault_world.quick(whole=args.whole)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if args.commands is None:
            killing = fault_kills.Killing(Path(folder), args.seed, args.variants, args.timed)
        else:
            names = args.commands or [*fault_commands.COMMANDS]
            killing = fault_commands.CommandKilling(Path(folder), args.seed, names, args.timed)
        try:
            for kill in killing.kills(args.kills):
                clock = kill.where.startswith("after")
                what = kill.variant if args.commands is not None else ""
                where = "by the clock" if clock else kill.where.split(",")[0]
                counts[f"{what}: {where}" if what else where] += 1
                if not counts.total() % 50:
                    print(f"{counts.total()} of {args.kills}", file=sys.stderr, flush=True)
        except fault_kills.Different as error:
            print(f"after {counts.total()} kills: {error}", file=sys.stderr)
            return 1
    print(
        f"{counts.total()} kills in {time.monotonic() - began:.0f} s; everything ended as if there were none"
    )
    for where, count in counts.most_common():
        print(f"{count:6d}  {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
