"""Spectra of the other methods at 4096² against a dense SVD, in one run: `python benchmarks/family.py`.

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

from bora_analysis import lora, singular_values
from bora_analysis.delta import Update
from bora_analysis.experts import mixed
from bora_analysis.spectrum import available_cores
from bora_analysis.structures import c3a, combine, diagonal, fourierft, loha, lokr

SIZE, RUNS = 4096, 7
LIMIT = 50.0  # ms, of those that have one


def updates(rng: np.random.Generator) -> dict[str, Update]:
    n = SIZE

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def pair(r: int) -> tuple[np.ndarray, np.ndarray]:
        return normal(n, r), normal(r, n)

    places = rng.choice(n * n, 1000, replace=False)
    return {
        "LoRA, r = 16": lora(*pair(16)),
        "AdaLoRA, r = 16": diagonal(normal(n, 16), normal(16), normal(16, n), method="adalora"),
        "PiSSA, r = 16, less its start": combine([lora(*pair(16)), lora(*pair(16))], [1.0, -1.0]),
        "LoHa, r = 16": loha(*pair(16), *pair(16)),
        "LoKr, r = 16": lokr(normal(64, 64), (normal(64, 16), normal(16, 64))),
        "KronA": lokr(normal(64, 64), normal(64, 64)),
        "VeRA, r = 256": diagonal(normal(n, 256), normal(256), normal(256, n), method="vera"),
        "GraLoRA, r = 32, k = 2": lora(normal(n, 64), normal(64, n)),
        "HydraLoRA, r = 16, 3 experts": mixed([normal(n, 16) for _ in range(3)], [normal(16, n)], "mean"),
        "MoELoRA, r = 16, 8 experts": mixed([normal(n, 2) for _ in range(8)], [normal(2, n) for _ in range(8)], "mean"),
        "C³A, b = 128": c3a(normal(32, 32, 128)),
        "FourierFT, 1,000 frequencies": fourierft(normal(1000), places // n, places % n, (n, n)),
    }


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
    rng = np.random.default_rng(0)
    seconds = parser.parse_args().dense or dense(rng)
    print(f"{platform.machine()}, {available_cores()} cores; dense: {seconds:.1f} s of CPU\n")
    print("| method | core | wall ms | CPU ms | × faster than dense | |\n|---|---|---|---|---|---|")
    missed = False
    for name, update in updates(rng).items():
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
