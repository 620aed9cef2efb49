"""The performance targets, in one run: `make bench`, or `python benchmarks/run.py [--peer PATH_TO_GRADIENCE]`.

Machines are shared and noisy: what counts are medians and the ratios of figures taken in turn. Writes a Markdown
table on stdout and exits with 1 if a target is missed.

The file: LoRA r = 16 on all 7 projections of LLaMA-3-8B's 32 layers, float32, 168 MB. Peer: `gradience audit`
0.11.0 (PyPI), which reads LoRA pairs only and takes singular values from a float64 Gram matrix.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bora_analysis import analyse, read_adapter
from bora_analysis.adapters import checkpoints
from bora_analysis.linalg.threads import available_cores
from bora_analysis.updates.blocks import BlockProduct

RUNS = 7


@dataclass
class Row:
    what: str
    measured: str
    target: str
    met: bool | None = None


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(work: Callable[[], object], runs: int = RUNS) -> float:
    work()
    return statistics.median(seconds(work) for _ in range(runs))


def process(*command: str) -> tuple[float, float]:
    """Wall seconds and peak memory (MB) of a whole process."""
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-S", "-c", code, *command], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, int(done.stdout) / 1024


@contextmanager
def spinning(count: int):
    """Run a number of other processes that use one core each."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def synth(folder: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "bora_analysis", "synth", "--model", "llama-3-8b", *options, "-o", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def dense_seconds(folder: Path, modules: list[str]) -> dict[str, float]:
    """Seconds of ``torch.linalg.svdvals(B @ A)`` for a module, float32, on all cores."""
    import torch

    (adapter,) = checkpoints(read_adapter(folder))
    out = {}
    for module in modules:
        update = adapter[module]
        assert isinstance(update, BlockProduct)
        B, A = (torch.from_numpy(factor[0].copy()) for factor in (update.B, update.A))
        out[module] = seconds(lambda B=B, A=A: torch.linalg.svdvals(B @ A))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description="The performance targets, in one run.")
    parser.add_argument("--peer", help="the gradience executable, to compare with")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as home:
        lora = synth(Path(home) / "lora", "--method", "lora", "-r", "16", "--target", "all", "--kind", "gaussian")
        bora = synth(Path(home) / "bora", "--method", "bora", "-r", "8", "--blocks", "16", "--target", "qkv")
        size = (lora / "adapter_model.safetensors").stat().st_size / 1e6

        idle = median(lambda: analyse(read_adapter(lora)))
        rows.append(Row(f"analysis, LoRA r=16, 224 modules, {size:.0f} MB", f"{idle:.2f} s", "≤ 0.6 s", idle <= 0.6))
        blocks = median(lambda: analyse(read_adapter(bora)))
        rows.append(Row("analysis, BoRA r=8 b=16, 96 modules", f"{blocks:.2f} s", "≤ 0.3 s", blocks <= 0.3))

        cores = available_cores()
        with spinning(cores):
            busy = median(lambda: analyse(read_adapter(lora)))
        # With as many busy processes as cores we get half of each core: a factor of 2 is lost.
        rows.append(
            Row(f"the same with {cores} spinning processes", f"{busy / idle:.1f}× idle", "≤ 6×", busy <= 6 * idle)
        )

        # A dense SVD takes seconds per matrix, so one module of middle size is compared.
        module = "model.layers.0.self_attn.q_proj"
        dense = dense_seconds(lora, [module])[module]
        ratio = dense / (idle / 224)
        rows.append(Row("per module against dense svdvals (4096², torch)", f"{ratio:,.0f}×", "≥ 1,000×", ratio >= 1000))

        ours = [process(sys.executable, "-m", "bora_analysis", "analyze", str(lora)) for _ in range(RUNS)]
        memory = max(peak for _, peak in ours)
        rows.append(Row("peak memory of the whole process", f"{memory:.0f} MB", "≤ 90 MB", memory <= 90))
        small = synth(Path(home) / "small", "--method", "lora", "-r", "16", "--target", "all", "--layers", "4")
        _, base = process(sys.executable, "-m", "bora_analysis", "analyze", str(small))
        rows.append(
            Row(
                "… above that of a file of an eighth the size",
                f"{memory - base:.0f} MB",
                "≤ 20 MB",
                memory - base <= 20,
            )
        )

        if options.peer:
            pairs = []
            for _ in range(RUNS):
                theirs, their_memory = process(options.peer, "audit", "--peft-dir", str(lora), "--no-udr")
                mine, _ = process(sys.executable, "-m", "bora_analysis", "analyze", str(lora))
                pairs.append((theirs / mine, theirs, mine, their_memory))
            ratio, theirs, mine, their_memory = (statistics.median(column) for column in zip(*pairs, strict=True))
            rows.append(
                Row(
                    "whole process against `gradience audit`",
                    f"{mine:.2f} s against {theirs:.2f} s: {ratio:.1f}×",
                    "> 1×",
                    ratio > 1,
                )
            )
            rows.append(Row("memory of `gradience audit`", f"{their_memory:.0f} MB", ""))

        start = statistics.median(
            process(str(Path(sys.executable).parent / "bora-analysis"), "--help")[0] for _ in range(RUNS)
        )
        rows.append(Row("`bora-analysis --help`", f"{start:.2f} s", "≤ 0.3 s", start <= 0.3))

    system = f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"
    print(f"{system}; medians of {RUNS}\n\n| what | measured | target | |\n|---|---|---|---|")
    for row in rows:
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        print(f"| {row.what} | {row.measured} | {row.target} | {verdict} |")
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
