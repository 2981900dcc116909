"""Print what of loading a bundle goes into comparing its weights with its card.

`python benchmarks/bundles.py` saves two towers of CLIP ViT-B/32 with random weights, 605 MB, and loads them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from geobind.binder import Binder
from geobind.bundles.bundle import WEIGHTS
from geobind.bundles.stability import check_weights
from geobind.plugins import registry
from geobind.towers.weights import read_weights

MODEL = "ViT-B-32-quickgelu"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default=MODEL, help="a name of open_clip.list_models()")
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = {"clip": {"model": args.model, "pretrained": False}}
    modalities = {
        name: registry().plugins[name].cls.model_validate(options) for name in ("satellite", "text")
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Binder(modalities, 512, seed=0).save(Path(name) / "bundle")
        loading: list[float] = []
        comparing: list[float] = []
        for _ in range(args.repeats + 1):
            started = time.perf_counter()
            binder = Binder.load(folder)
            loaded = time.perf_counter()
            assert binder.card is not None
            tensors = read_weights(folder / WEIGHTS)
            read = time.perf_counter()
            check_weights(tensors, binder.encoders.state_dict(), binder.modalities, binder.card.digests)
            loading.append(loaded - started)
            comparing.append(time.perf_counter() - read)
        size = (folder / WEIGHTS).stat().st_size
    share = median(comparing[1:]) / median(loading[1:])  # the first one imports
    seconds = median(comparing[1:])
    print(f"{size / 1e6:.0f} MB: comparing takes {share:.0%} of loading ({seconds:.1f} s on one core)")


if __name__ == "__main__":
    main()
