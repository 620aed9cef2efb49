"""Spectra at 4096² of all methods without a base model, compared with a dense SVD: `python benchmarks/family.py`.

Shown is the median over runs of the spectrum of one module whose factors are in memory, in wall time and in CPU time of
the one thread that does it; on a shared machine the second is the one to compare. Dense is `torch.linalg.svdvals` of
one float32 matrix with one thread, measured once (`--dense SECONDS` gives an earlier figure instead). Targets: 100×
faster than dense for all, and 50 ms for LoHa r = 16 and LoKr. Writes a Markdown table on stdout and exits with 1 if a
target is missed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from bora_analysis import singular_values, synthetic_adapter
from bora_analysis.catalogue import METHODS, names
from bora_analysis.linalg.threads import available_cores
from bora_analysis.updates.contract import Update
from bora_analysis.updates.sums import combine

SIZE, RUNS = 4096, 7
LIMIT = 50.0  # ms, for methods with a limit
R, BLOCKS = {"vera": 256, "gralora": 32, "bora": 8, "melora": 8}, {"bora": 16, "melora": 16, "c3a": 32}


def updates() -> dict[str, Update]:
    """One matrix of every synthetic method, and a difference."""
    found = {}
    for method in names(lambda row: row.made and not (row.accompanied or row.staged)):
        row = METHODS[method]
        r, blocks = R.get(method, 16), BLOCKS.get(method, row.blocks.default if row.blocks else 1)
        update = synthetic_adapter(method, {"q": (SIZE, SIZE)}, r, blocks)["q"]
        words = [row.label, f"r = {r}" * row.ranked]
        words.append({"c3a": f"blocks of {SIZE // blocks}", "fourierft": "1,000 frequencies"}.get(method, ""))
        if blocks > 1 and method != "c3a":
            words.append(f"{blocks} experts" if row.experts else f"b = {blocks}")
        found[", ".join(filter(None, words))] = update
    two = [synthetic_adapter("lora", {"q": (SIZE, SIZE)}, 16, seed=seed)["q"] for seed in (0, 1)]
    return {**found, "PiSSA, r = 16, less its start": combine(two, [1.0, -1.0])}


def median(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU milliseconds."""
    work()
    times = []
    for _ in range(RUNS):
        wall, cpu = time.perf_counter(), time.thread_time()
        work()
        times.append((1000 * (time.perf_counter() - wall), 1000 * (time.thread_time() - cpu)))
    walls, cpus = zip(*times, strict=True)
    return statistics.median(walls), statistics.median(cpus)


def dense(rng: np.random.Generator) -> float:
    """CPU seconds of one dense SVD."""
    torch.set_num_threads(1)
    matrix = torch.from_numpy(rng.standard_normal((SIZE, SIZE), dtype=np.float32))
    start = time.process_time()
    torch.linalg.svdvals(matrix)
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=float, help="CPU seconds of a dense SVD, to save measuring it")
    seconds = parser.parse_args().dense or dense(np.random.default_rng(0))
    print(f"{platform.machine()}, {available_cores()} cores; dense: {seconds:.1f} s of CPU\n")
    print("| method | core | wall ms | CPU ms | × faster than dense | |\n|---|---|---|---|---|---|")
    missed = False
    for name, update in updates().items():
        core = max((core.shape[1:] for core in update.cores()), key=lambda shape: shape[0] * shape[1])
        wall, cpu = median(lambda update=update: singular_values(update, device="cpu"))
        met = 1000 * seconds / cpu >= 100 and (cpu <= LIMIT or not name.startswith(("LoHa", "LoKr")))
        missed |= not met
        print(
            f"| {name} | {core[0]}×{core[1]} | {wall:.1f} | {cpu:.1f} | {1000 * seconds / cpu:,.0f} "
            f"| {'met' if met else 'MISSED'} |"
        )
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
