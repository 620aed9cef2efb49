"""Full fine-tuning: one pair of matrices, `python benchmarks/dense.py [--size 4096] [--runs 5]`.

A bfloat16 base matrix and a fine-tuned one, from their files to the table's row: all singular values, and the quick
count. Against `torch.linalg.svdvals` of the difference alone, in memory, with all of torch's threads (ours has one per
module), in turn. Writes a Markdown table on stdout and exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from bora_analysis import analyse, read_adapter
from bora_analysis.linalg.threads import available_cores


def pair(home: Path, size: int) -> tuple[Path, Path, torch.Tensor]:
    """A base model of one matrix, a fine-tuned one, and their difference."""
    torch.manual_seed(0)
    base = (0.02 * torch.randn(size, size)).bfloat16()
    step = torch.randn(size, 64) @ torch.randn(64, size) * (2e-3 / 8)
    tuned = (base.float() + step + 1e-3 * torch.randn(size, size)).bfloat16()
    for name, weight in (("base", base), ("tuned", tuned)):
        (home / name).mkdir()
        save_file({"model.layers.0.self_attn.q_proj.weight": weight}, home / name / "model.safetensors")
        (home / name / "config.json").write_text("{}")
    return home / "base", home / "tuned", tuned.float() - base.float()


def main() -> int:
    parser = argparse.ArgumentParser(description="Full fine-tuning: one pair of matrices.")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        base, tuned, difference = pair(Path(home), options.size)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        on_device, doubled = difference.to(device), difference.double().to(device)
        adapter = read_adapter(tuned, base=base)
        work: dict[str, Callable[[], object]] = {
            "svdvals, float32": lambda: torch.linalg.svdvals(on_device).cpu(),
            "svdvals, float64": lambda: torch.linalg.svdvals(doubled).cpu(),
            "all": lambda: analyse(adapter),
            "quick": lambda: analyse(adapter, quick=True),
        }
        whole, quick = (analyse(adapter, quick=wish).layer_metrics.iloc[0] for wish in (False, True))
        assert whole["effective_rank"] == quick["effective_rank"]
        times = defaultdict(list)
        for _ in range(options.runs):
            for name, call in work.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    torch_time = min(median["svdvals, float32"], median["svdvals, float64"])
    print(f"{options.size}² pair, bfloat16, {device}, {available_cores()} cores; medians of {options.runs}\n")
    print("| what | seconds | against the faster svdvals | target |\n|---|---|---|---|")
    targets = {"all": 1.0, "quick": 2.0}
    for name, seconds in median.items():
        target = f"≥ {targets[name]:g}×" if name in targets else ""
        print(f"| {name} | {seconds:.2f} | {torch_time / seconds:.1f}× | {target} |")
    return int(any(torch_time / median[name] < least for name, least in targets.items()))


if __name__ == "__main__":
    sys.exit(main())
