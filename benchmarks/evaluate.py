"""Retrieval ranks against the ways others compute them: time as ratios, and extra memory.

    python benchmarks/evaluate.py                    # 10,000 x 10,000, width 512, seven contenders
    python benchmarks/evaluate.py --n 4000 --d 256
    python benchmarks/evaluate.py --large            # 100,000 x 100,000: only ours, for its memory

Every measurement is a process of its own, with one thread; the quick ones take turns for --rounds rounds and
their median counts, the slow ones run once. Seconds are the process's own (CPU time, user and system): a busy
machine disturbs them less than the clock. Extra memory is the peak resident size (ru_maxrss) less that once
the embeddings are in memory and the libraries warm. The peers need pandas and torchmetrics.
"""

# N queries and as many gallery items, D width

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
ROWS = 1024  # the bare product is taken in blocks of rows too: quicker than into one large matrix


class Result(NamedTuple):
    """Time and memory of one run."""

    seconds: float
    extra_mb: float
    recall_at_10: float | None


def product(query_ND, gallery_ND):
    """The similarities alone, blocks of rows into one buffer."""
    import torch

    room = torch.empty(ROWS, len(gallery_ND))
    for start in range(0, len(query_ND), ROWS):
        block_BD = query_ND[start : start + ROWS]
        torch.mm(block_BD, gallery_ND.T, out=room[: len(block_BD)])


def ours_both(query_ND, gallery_ND):
    """Ranks in both directions."""
    from geobind.evaluation import rank_counts_both

    there, _ = rank_counts_both(query_ND, gallery_ND)
    return there.hit_Q(10).mean()


def ours_one(query_ND, gallery_ND):
    """Ranks from query to gallery."""
    from geobind.evaluation import rank_counts

    return rank_counts(query_ND, gallery_ND).hit_Q(10).mean()


def five_lines(query_ND, gallery_ND):
    """Count larger similarities block by block, in both directions: what one would write."""
    import torch

    own_N, there_N, back_N = (query_ND * gallery_ND).sum(1), [], torch.zeros(len(query_ND))
    for start in range(0, len(query_ND), ROWS):
        block_BN = query_ND[start : start + ROWS] @ gallery_ND.T
        there_N.append((block_BN > own_N[start : start + ROWS, None]).sum(1))
        back_N += (block_BN > own_N).sum(0)
    return (torch.cat(there_N) < 10).double().mean()


def argsort(query_ND, gallery_ND):
    """Sort every row of the whole matrix, look up where the positive went."""
    import torch

    order_NN = (query_ND @ gallery_ND.T).argsort(dim=1, descending=True)
    place_N = (order_NN == torch.arange(len(query_ND))[:, None]).int().argmax(dim=1)
    return (place_N < 10).double().mean()


def torchmetrics_recall(query_ND, gallery_ND):
    """RetrievalRecall over every query-item pair."""
    import torch
    from torchmetrics.retrieval import RetrievalRecall

    n = len(query_ND)
    score_NN = query_ND @ gallery_ND.T
    metric = RetrievalRecall(top_k=10)
    metric.update(
        score_NN.flatten(), torch.eye(n, dtype=torch.bool).flatten(), torch.arange(n).repeat_interleave(n)
    )
    return metric.compute()


def pandas_rank(query_ND, gallery_ND):
    """For each query a data frame of distances indexed by key, ranked, looked up by the query's own key.

    This is how the evaluation published with SoundingEarth, and used by its successors, finds a rank.
    """
    import numpy

    try:
        import pandas
    except ImportError:
        sys.exit(
            "this comparison needs pandas: install it, or leave the contender out with --without pandas_rank"
        )

    distance_NN = 1 - (query_ND @ gallery_ND.T).numpy()
    keys = numpy.array([f"place_{at}" for at in range(len(distance_NN))])
    ranks = []
    for key, distance_N in zip(keys, distance_NN, strict=True):
        frame = pandas.DataFrame({"item": keys, "distance": distance_N}).set_index("item")
        frame["rank"] = frame["distance"].rank()
        ranks.append(frame.loc[key, "rank"])
    return sum(rank <= 10 for rank in ranks) / len(ranks)


QUICK: dict[str, Callable] = {"product": product, "ours_both": ours_both, "ours_one": ours_one}
QUICK["five_lines"] = five_lines
SLOW: dict[str, Callable] = {
    "argsort": argsort,
    "torchmetrics": torchmetrics_recall,
    "pandas_rank": pandas_rank,
}


def embeddings(n: int, d: int):
    """Seeded unit vectors and noisy copies of them, made in place so that the peak memory is theirs alone."""
    import torch

    random = torch.Generator().manual_seed(0)
    query_ND = torch.randn(n, d, generator=random)
    query_ND /= query_ND.norm(dim=1, keepdim=True)
    gallery_ND = torch.randn(n, d, generator=random).mul_(0.3).add_(query_ND)
    gallery_ND /= gallery_ND.norm(dim=1, keepdim=True)
    return query_ND, gallery_ND


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure_here(name: str, n: int, d: int) -> None:
    """The child's part: one contender, once, printed as JSON."""
    import torch

    torch.set_num_threads(1)
    contender = (QUICK | SLOW)[name]
    query_ND, gallery_ND = embeddings(n, d)
    contender(query_ND[:64], gallery_ND[:64])
    before_mb = resident_mb()
    start = time.process_time()
    recall = contender(query_ND, gallery_ND)
    seconds = time.process_time() - start
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, peak_mb - before_mb, None if recall is None else float(recall)]))


def measure(name: str, n: int, d: int) -> Result:
    command = [sys.executable, __file__, "--child", name, "--n", str(n), "--d", str(d)]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | THREADS | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return Result(*json.loads(done.stdout.splitlines()[-1]))


def median(results: list[Result]) -> Result:
    return Result(
        statistics.median(result.seconds for result in results),
        max(result.extra_mb for result in results),
        results[0].recall_at_10,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--n", type=int, default=None, help="queries and gallery items (10,000; 100,000 with --large)"
    )
    parser.add_argument("--d", type=int, default=512, help="width of the embeddings")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each quick contender")
    parser.add_argument("--without", nargs="*", default=[], choices=list(SLOW), help="peers to leave out")
    parser.add_argument(
        "--large", action="store_true", help="only ours, at a size whose matrix would take 40 GB"
    )
    parser.add_argument("--child", choices=list(QUICK | SLOW), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    n = wanted.n or (100_000 if wanted.large else 10_000)
    if wanted.child:
        measure_here(wanted.child, n, wanted.d)
        return
    if wanted.large:
        result = measure("ours_both", n, wanted.d)
        flops = 2 * n * n * wanted.d / result.seconds / 1e9
        print(
            f"{n:,} x {n:,}, D = {wanted.d}, both directions: {result.seconds:.0f} s ({flops:.0f} GFLOP/s), "
            f"{result.extra_mb:.0f} MB extra; the matrix alone would take {4 * n * n / 1e6:,.0f} MB"
        )
        return
    compare(n, wanted.d, wanted.rounds, [name for name in SLOW if name not in wanted.without])


def compare(n: int, d: int, rounds: int, slow: list[str]) -> None:
    turns: dict[str, list[Result]] = {name: [] for name in QUICK}
    for _ in range(rounds):
        for name in QUICK:
            turns[name].append(measure(name, n, d))
    results = {name: median(found) for name, found in turns.items()}
    results |= {name: measure(name, n, d) for name in slow}
    ours = results["ours_both"].seconds
    print(f"{n:,} x {n:,}, D = {d}, one thread; ours_both = 1.0 ({ours:.2f} s) and gives both directions")
    print(f"{'':14}{'seconds':>9}{'ratio':>8}{'extra MB':>10}{'R@10':>9}")
    for name, result in results.items():
        recall = "-" if result.recall_at_10 is None else f"{result.recall_at_10:.4f}"
        print(
            f"{name:14}{result.seconds:9.2f}{result.seconds / ours:8.2f}{result.extra_mb:10.1f}{recall:>9}",
            flush=True,
        )
    print(f"ours_both takes {ours / results['product'].seconds:.2f} of the bare product")


if __name__ == "__main__":
    main()
