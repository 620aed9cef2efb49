"""The tables of data/README.md, from results.csv and capture.csv: ``python data/tables.py`` prints them as Markdown.

A difference is taken seed by seed; its interval is Student's, of 95 %, over the seeds that both have.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import make_adapters as made
import rank_task
from make_adapters import ADAPTERS, SEEDS, TASKS, Run

DATA = Path(__file__).parent
HEADS = {"movies": "movies, accuracy", "products": "products, Pearson"}


def scores() -> dict[Run, float]:
    """Run → its metric, in per cent."""
    return {made.run_of(row): 100 * float(row["value"]) for row in made.read_results()}


def parameters() -> dict[Run, int]:
    return {made.run_of(row): int(row["parameters"]) for row in made.read_results()}


def main_table() -> str:
    """The bundled runs in the shape of the paper's table 1: mean ± standard deviation over the seeds."""
    found, sizes = scores(), parameters()
    lines = [f"| adapter | parameters | {' | '.join(HEADS.values())} |", "|---|--:|--:|--:|"]
    for name in ADAPTERS:
        cells = [_spread([found[Run(task, name, seed)] for seed in SEEDS]) for task in TASKS]
        lines.append(f"| {name} | {sizes[Run('movies', name, 0)]:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference_table() -> str:
    """Each adapter against LoRA r = 8 in points, n = 3 seeds."""
    found = scores()
    lines = ["| adapter | movies | products |", "|---|--:|--:|"]
    for name in list(ADAPTERS)[1:]:
        apart = [[found[Run(task, name, seed)] - found[Run(task, "lora-r8", seed)] for seed in SEEDS] for task in TASKS]
        lines.append(f"| {name} | {' | '.join(map(interval, apart))} |")
    return "\n".join(lines)


def rate_table(task: str) -> str:
    """What each method reaches at each learning rate, with the number of seeds that were run."""
    found = scores()
    lines = [f"| {task} | {' | '.join(made.RATES)} |", f"|---|{'--:|' * len(made.RATES)}"]
    for name, variant in made.RATED:
        cells = []
        for rate in made.RATES:
            values = [found[run] for seed in SEEDS if (run := Run(task, name, seed, variant, rate)) in found]
            cells.append(f"{_spread(values)} (n = {len(values)})" if values else "not run")
        lines.append(f"| {name}{', matched gain' * (variant == made.MATCHED)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def full_table() -> str:
    """Full fine-tuning of query and value."""
    found = scores()
    lines = ["| rate | task | seed | reached |", "|--:|---|--:|--:|"]
    for run in filter(found.__contains__, made.runs("full")):
        lines.append(f"| {run.rate} | {HEADS[run.task]} | {run.seed} | {found[run]:.2f} |")
    return "\n".join(lines)


def advice_table() -> str:
    """The adapters with the advised ranks beside those that were advised, seed by seed."""
    found, sizes = scores(), parameters()
    lines = ["| adapter | task | seed | parameters | advised | reached | advised |", "|---|---|--:|--:|--:|--:|--:|"]
    for run in filter(found.__contains__, made.runs("advised")):
        before = run._replace(variant=made.PLAIN)
        lines.append(
            f"| {run.adapter} | {run.task} | {run.seed} | {sizes[before]:,} | {sizes[run]:,} | {found[before]:.2f} | "
            f"{found[run]:.2f} |"
        )
    return "\n".join(lines)


def capture_table() -> str:
    """The share of the energy of full fine-tuning that each method can represent: all twelve modules, weighted."""
    import pandas as pd

    from bora_analysis.analysis.capture import shares

    table = pd.read_csv(DATA / "capture.csv")
    found = {target: shares(part) for target, part in table.groupby("adapter")}
    lines = [f"| method | parameters / (m+n) | {' | '.join(f'{each}: ρ | LoRA' for each in found)} |"]
    lines.append(f"|---|--:|{'--:|' * (2 * len(found))}")
    first = next(iter(found.values()))
    for row in first.itertuples():
        cells = []
        for part in found.values():
            (own,) = part[part["member"] == row.member].itertuples()
            cells.append(f"{own.captured:.4f} | {own.lora_captured:.4f}")
        lines.append(f"| {row.member} | {row.parameters / (12 * 768):.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """Mean and Student's interval of 95 %: +0.66 [−1.27, +2.58]."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    shown = f"{mean(values):+.2f} [{mean(values) - half:+.2f}, {mean(values) + half:+.2f}]"
    return shown.replace("-", "−")


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{mean(values):.2f}"


#: What README.md must have.
TABLES: dict[str, Callable[[], str]] = {
    "bundled": main_table,
    "differences": difference_table,
    "full": full_table,
    "capture": capture_table,
    "rates, movies": lambda: rate_table("movies"),
    "advice": advice_table,
    "a task that needs rank": rank_task.table,
}


if __name__ == "__main__":
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")
