"""The search for the nearest BoRA, r = 8 and b = 16, at 4096²: `python benchmarks/capture.py`.

Shown is the median of RUNS in CPU time of the one thread that does it, for one start and for three; on a shared machine
wall time would measure the others. The factored target is a LoRA of r = 64, flat and with σ_k = k^−½; the dense one is
Gaussian, the hardest: its spectrum is flat, and the truncated SVD that the first start takes is part of its time.
Targets: 1.5 s factored, 15 s dense, with three starts. Measured on two shared cores: 0.3 to 0.5 s, and 14 s (one start
0.1 and 6 s; before the search was extrapolated 0.8 and 54 s). Exits with 1 if a target is missed.
"""

from __future__ import annotations

import platform
import statistics
import time

import numpy as np

from bora_analysis.linalg.threads import available_cores, one_blas_thread
from bora_analysis.methods import projection
from bora_analysis.projections import Target, Wish

SIZE, RUNS, STARTS = 4096, 3, 3
LIMITS = {"factored, flat": 1.5, "factored, σ_k = k^−½": 1.5, "dense, Gaussian": 15.0}


def target(name: str) -> Target:
    """A target of norm 1, new each time: it keeps what it has found."""
    rng = np.random.default_rng(0)
    if name.startswith("dense"):
        matrix = rng.standard_normal((SIZE, SIZE))
        return Target(matrix / np.linalg.norm(matrix), np.eye(SIZE))
    left, right = rng.standard_normal((SIZE, 64)), rng.standard_normal((64, SIZE))
    if "flat" not in name:
        right *= np.arange(1, 65)[:, None] ** -0.5
    return Target(left / Target(left, right).energy ** 0.5, right)


def seconds(name: str, starts: int) -> float:
    """CPU seconds of the search, and of nothing before it."""
    made, times = [target(name) for _ in range(RUNS)], []
    for each in made:
        begin = time.process_time()
        for start in range(starts):
            projection("bora").find(each, Wish(8, 16, "exp-norm", start))
        times.append(time.process_time() - begin)
    return statistics.median(times)


def main() -> int:
    print(f"{platform.machine()}, {available_cores()} cores\n")
    print("| target | one start, s | three, s | limit, s | |\n|---|--:|--:|--:|---|")
    missed = False
    with one_blas_thread():
        for name, limit in LIMITS.items():
            one, three = (seconds(name, starts) for starts in (1, STARTS))
            missed |= three > limit
            print(f"| {name} | {one:.2f} | {three:.2f} | {limit:g} | {'MISSED' if three > limit else 'met'} |")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
