"""Check a table of three_modal: every trained pair finds R@10 >= 0.4, every emergent pair R@10 >= 0.25."""

import json
import sys
from pathlib import Path

BOUNDS = {"trained": 0.4, "emergent": 0.25}
PAIRS = {"trained": 6, "emergent": 6}  # both directions

rows = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["rows"]
found = {mark: [row for row in rows if row["mark"] == mark] for mark in BOUNDS}
faults = [
    f"{len(found[mark])} {mark} pairs, expected {count}"
    for mark, count in PAIRS.items()
    if len(found[mark]) != count
]
for mark, bound in BOUNDS.items():
    for row in found[mark]:
        recall = row["metrics"]["R@10"]["value"]
        print(f"{mark:8} {row['query']:>12} -> {row['gallery']:12} R@10 {recall:.3f}")
        if recall < bound:
            faults.append(f"{row['query']} -> {row['gallery']} ({mark}): R@10 {recall:.3f} is below {bound}")
if faults:
    sys.exit("\n".join(faults))
