"""The 1,000 adapters of docs/fleet.md: `python benchmarks/film.py FOLDER`, then `bora-analysis sweep FOLDER -o OUT`.

Perturbations of the bundled LoRA of both tasks and three ranks, and of a synthetic one: noise of 5 to 100 % in ΔW's
left factor, a scale of its own for each. One module of one adapter is twenty times too large, one adapter is there
twice, one file is torn. The same adapters every time.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bora_analysis import read_adapter, synthetic_adapter, write_adapter

DATA = Path(__file__).parents[1] / "data"
NAMES = [f"trained-{task}lora-r{r}" for task in ("", "rating-") for r in (8, 16, 32)]
COUNT = 1000


def main(home: Path) -> None:
    rng = np.random.default_rng(0)
    sources: list[tuple[str, Any]] = [(name, read_adapter(DATA / name)) for name in NAMES]
    shapes = {module: sources[0][1][module].shape for module in sources[0][1]}
    sources.append(("synthetic", synthetic_adapter("lora", shapes, r=16, seed=0, kind="decay")))
    base = sources[0][1].base_model
    for k in range(COUNT - 2):
        name, source = sources[k % len(sources)]
        noise, scale = 0.05 * 20 ** rng.random(), 2.0 ** rng.uniform(-1, 1)
        factors = {}
        for module in source:
            left, right = source[module].factors()
            own = rng.standard_normal(left.shape)
            moved = left + noise * np.linalg.norm(left) / np.linalg.norm(own) * own
            factors[module] = {"B": (scale * moved).astype(np.float32), "A": right.astype(np.float32)}
        if k == 777:
            factors[next(iter(factors))]["B"] *= 20
        rank = next(iter(factors.values()))["A"].shape[0]
        write_adapter(home / f"{k:04d}-{name}", "lora", factors, alpha=rank, base_model=base)
    shutil.copytree(home / "0000-trained-lora-r8", home / "0998-copy")
    torn = shutil.copytree(home / "0001-trained-lora-r16", home / "0999-torn") / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
