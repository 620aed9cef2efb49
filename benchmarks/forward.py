"""Training time of one adapted layer against PEFT's LoRA, in one run: `python benchmarks/forward.py [--rounds N]`.

Forward and backward of a frozen linear layer and its adapter, 2,048 tokens, float32, r = 8, b = 16 (4 minis), gradients
to the input and to the adapter. The methods take turns within each round, and a ratio is the median over rounds of
(method / LoRA in the same round), so that what else runs on the machine falls on all of them. Writes a Markdown table
on stdout and exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from bora_analysis.peft_bora import BoraConfig, MeloraConfig, SboraConfig
from bora_analysis.spectrum import available_cores

TOKENS, RANK, BLOCKS = 2048, 8, 16
#: Shape (m, n) → rounds, and BoRA's time over LoRA's at most (None: no target).
SHAPES: dict[tuple[int, int], tuple[int, float | None]] = {
    (384, 384): (200, 1.25),
    (768, 768): (40, None),
    (1024, 4096): (10, None),
    (4096, 4096): (7, 1.15),
}


def configs() -> dict[str, Any]:
    common: dict[str, Any] = {"r": RANK, "target_modules": ["0"]}
    return {
        "LoRA (PEFT)": LoraConfig(**common),
        "BoRA": BoraConfig(**common, num_blocks=BLOCKS),
        "MELoRA": MeloraConfig(**common),
        "SBoRA-FA": SboraConfig(**common),
        "SBoRA-FB": SboraConfig(**common, variant="fb"),
    }


def seconds(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> float:
    layer.zero_grad()
    x.grad = None
    start = time.perf_counter()
    layer(x).backward(gradient)
    return time.perf_counter() - start


def measure(m: int, n: int, rounds: int) -> dict[str, list[float]]:
    """Method → seconds, one for each round."""
    torch.manual_seed(0)
    x, gradient = torch.randn(TOKENS, n, requires_grad=True), torch.randn(TOKENS, m)
    layers: dict[str, nn.Module] = {"no adapter": nn.Linear(n, m).requires_grad_(False)}
    for name, config in configs().items():
        layers[name] = get_peft_model(nn.Sequential(nn.Linear(n, m)), config).base_model.model[0]
    for layer in layers.values():
        seconds(layer, x, gradient)
    times: dict[str, list[float]] = {name: [] for name in layers}
    for k in range(rounds):
        order = list(layers) if k % 2 else list(layers)[::-1]
        for name in order:
            times[name].append(seconds(layers[name], x, gradient))
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=float, default=1.0, help="multiplies the number of rounds")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{platform.machine()}, {available_cores()} cores, torch {torch.__version__}; medians\n")
    print("| m×n | method | ms | /LoRA | target |\n|---|---|---|---|---|")
    missed = False
    for (m, n), (rounds, target) in SHAPES.items():
        times = measure(m, n, max(1, round(rounds * options.rounds)))
        lora = times["LoRA (PEFT)"]
        for name, values in times.items():
            ratio = statistics.median(own / peer for own, peer in zip(values, lora, strict=True))
            limit = target if name == "BoRA" else None
            missed |= limit is not None and ratio > limit
            verdict = "" if limit is None else f"≤ {limit} {'met' if ratio <= limit else 'MISSED'}"
            print(f"| {m}×{n} | {name} | {1000 * statistics.median(values):.1f} | {ratio:.2f} | {verdict} |")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
