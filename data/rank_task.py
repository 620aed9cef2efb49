"""A task that needs rank: distil a random full-rank update into each method by training, at equal budgets.

    python data/rank_task.py            # → data/rank_task.csv, some minutes on one core
    python data/rank_task.py --table

The teacher is a linear layer W0 + T, the student the same W0, frozen, with an adapter of PEFT or of this package. The
inputs are fresh Gaussian vectors, so that the loss E‖(T − ΔW)x‖² is ‖T − ΔW‖_F², and what is left of it at the end says
what training captured: 1 − ‖T − ΔW‖_F² / ‖T‖_F². Beside it stands what the method can represent, from ``capture``.
T is Gaussian (a flat spectrum), or has singular values 1/k. All methods train 768 numbers in a 64 × 64 layer.
"""

from __future__ import annotations

import argparse
import csv
import os
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np

TABLE = Path(__file__).parent / "rank_task.csv"
SIZE, STEPS, BATCH = 64, 2000, 128
#: ‖T‖_F, that of a Gaussian matrix with entries of variance 1/64.
NORM = 8.0
SPECTRA = ("flat", "1/k")
RATES = (3e-3, 1e-2, 3e-2)
SEEDS = (0, 1, 2)
COLUMNS = ("spectrum", "student", "parameters", "rank_bound", "learning_rate", "seed", "trained", "reachable")


class Student(NamedTuple):
    """A method at its sizes: its name in the catalogue, and the configuration that PEFT makes it from."""

    method: str
    r: int
    blocks: int
    config: str
    more: dict[str, Any]


_OURS = "bora_analysis.peft_methods."
STUDENTS = {
    "LoRA r = 6": Student("lora", 6, 1, "peft.LoraConfig", {}),
    "GraLoRA r = 6, k = 2": Student("gralora", 6, 2, "peft.GraloraConfig", {"gralora_k": 2}),
    "MELoRA r = 6, 4 minis": Student("melora", 6, 4, _OURS + "MeloraConfig", {"num_minis": 4}),
    "BoRA r = 4, b = 8": Student("bora", 4, 8, _OURS + "BoraConfig", {"num_blocks": 8}),
    "BoRA r = 2, b = 16": Student("bora", 2, 16, _OURS + "BoraConfig", {"num_blocks": 16}),
    "BoRA r = 4, b = 8, no exp": Student("bora", 4, 8, _OURS + "BoraConfig", {"num_blocks": 8, "activation": "no-exp"}),
}


def target(spectrum: str, seed: int) -> Any:
    """T of a teacher, (64, 64) float64."""
    rng = np.random.default_rng([seed, SPECTRA.index(spectrum)])
    matrix = rng.standard_normal((SIZE, SIZE))
    if spectrum != "flat":
        left, _, right = np.linalg.svd(matrix)
        matrix = left / np.arange(1, SIZE + 1) @ right
    return matrix * (NORM / np.linalg.norm(matrix))


def distil(student: Student, matrix: Any, rate: float, seed: int, steps: int = STEPS) -> Any:
    """ΔW of a student that was trained on the teacher with T = ``matrix``: Adam, a linear decay to 0."""
    import torch
    from peft import get_peft_model
    from torch import nn

    torch.manual_seed(seed)
    base = nn.Sequential()
    base.add_module("layer", nn.Linear(SIZE, SIZE, bias=False))
    module, _, name = student.config.rpartition(".")
    alpha = {"alpha" if "gralora" in student.config.lower() else "lora_alpha": 2 * student.r}
    config = getattr(import_module(module), name)(r=student.r, target_modules=["layer"], **alpha, **student.more)
    model: Any = get_peft_model(base, config)  # pyright: ignore[reportArgumentType]
    update = torch.tensor(matrix, dtype=torch.float32)
    frozen = model.base_model.model.layer.base_layer.weight.detach().clone()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in range(steps):
        x = torch.randn(BATCH, SIZE)
        loss = (model(x) - x @ (frozen + update).T).square().sum(dim=1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return (model.eval()(torch.eye(SIZE)).T - frozen).double().numpy()


def captured(matrix: Any, change: Any) -> float:
    return float(1 - np.square(matrix - change).sum() / np.square(matrix).sum())


def reachable(student: Student, matrix: Any) -> tuple[float, int]:
    """The share that the nearest member of the method's set captures, and its parameters."""
    from bora_analysis import capture
    from bora_analysis.updates.dense import dense

    activation = student.more.get("activation", "exp-norm")
    given = {"layer": dense(matrix, dtype="float64")}
    member = (student.method, student.r, student.blocks)
    (row,) = capture(given, [member], bora_activation=activation, starts=5).to_dict("records")
    return float(row["captured"]), int(row["parameters"])


def runs() -> Iterator[tuple[str, str, float, int]]:
    for seed in SEEDS:
        for spectrum in SPECTRA:
            for name in STUDENTS:
                for rate in RATES:
                    yield spectrum, name, rate, seed


def write() -> None:
    """Train all, and write the table."""
    warnings.filterwarnings("ignore", category=UserWarning)  # PEFT's notes on a model without a configuration
    known: dict[tuple[str, str, int], tuple[float, int]] = {}
    rows = []
    for spectrum, name, rate, seed in runs():
        student, matrix = STUDENTS[name], target(spectrum, seed)
        if (spectrum, name, seed) not in known:
            known[spectrum, name, seed] = reachable(student, matrix)
        most, parameters = known[spectrum, name, seed]
        found = captured(matrix, distil(student, matrix, rate, seed))
        bound = min(SIZE, student.r * student.blocks)
        rows.append((spectrum, name, parameters, bound, rate, seed, round(found, 5), round(most, 5)))
        print(*rows[-1], flush=True)
    with TABLE.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def table() -> str:
    """Markdown, in per cent: for each student the rate that is best in the mean over the seeds, and its result."""
    with TABLE.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    heads = [f"{spectrum}: {what}" for spectrum in SPECTRA for what in ("trained", "reachable", "rate")]
    lines = [f"| student | rank ≤ | {' | '.join(heads)} |", f"|---|--:|{'--:|' * len(heads)}"]
    for name in STUDENTS:
        cells = []
        for spectrum in SPECTRA:
            own = [row for row in rows if (row["student"], row["spectrum"]) == (name, spectrum)]
            by_rate = {
                rate: [100 * float(row["trained"]) for row in own if float(row["learning_rate"]) == rate]
                for rate in RATES
            }
            best = max(RATES, key=lambda rate: mean(by_rate[rate]))
            most = mean(100 * float(row["reachable"]) for row in own)
            cells += [f"{mean(by_rate[best]):.1f} ± {stdev(by_rate[best]):.1f}", f"{most:.1f}", f"{best:g}"]
        bound = next(row["rank_bound"] for row in rows if row["student"] == name)
        lines.append(f"| {name} | {bound} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print the table of rank_task.csv and exit")
    if parser.parse_args().table:
        print(table())
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    write()


if __name__ == "__main__":
    main()
