"""The tables of data/README.md, from results.csv and capture.csv: ``python data/tables.py`` prints them as Markdown.

A difference is taken seed by seed; its interval is Student's, of 95 %, over the seeds that both have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


def rate_difference_table() -> str:
    """Is it the rank or the scale? BoRA b = 8, with its own gain and with LoRA's, against LoRA at each rate."""
    found = scores()
    plain, matched, lora = ("bora-r8-b8", made.PLAIN), ("bora-r8-b8", made.MATCHED), ("lora-r8", made.PLAIN)
    pairs = {
        "BoRA − LoRA": (plain, lora),
        "matched gain − LoRA": (matched, lora),
        "matched gain − BoRA": (matched, plain),
    }
    lines = [f"| difference, points | {' | '.join(f'{task}, {rate}' for task in TASKS for rate in made.RATES)} |"]
    lines.append(f"|---|{'--:|' * (len(TASKS) * len(made.RATES))}")
    for name, (one, other) in pairs.items():
        cells = []
        for task in TASKS:
            for rate in made.RATES:
                both = [[Run(task, which, seed, variant, rate) for which, variant in (one, other)] for seed in SEEDS]
                cells.append(interval([found[left] - found[right] for left, right in both]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def full_table() -> str:
    """Full fine-tuning of query and value."""
    found = scores()
    lines = ["| rate | task | seed | reached |", "|--:|---|--:|--:|"]
    for run in filter(found.__contains__, made.runs("full")):
        lines.append(f"| {run.rate} | {HEADS[run.task]} | {run.seed} | {found[run]:.2f} |")
    return "\n".join(lines)


def advice_table() -> str:
    """The adapters with the advised ranks beside those that were advised, over the seeds."""
    found, sizes = scores(), parameters()
    lines = ["| adapter | task | parameters | advised | reached | advised | difference, points |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for task in TASKS:
        for name in made.ASKED:
            runs = [[Run(task, name, seed, variant) for variant in (made.PLAIN, made.ADVISED)] for seed in SEEDS]
            before, after = ([found[pair[k]] for pair in runs] for k in (0, 1))
            own, advised = (sizes[run] for run in runs[0])
            apart = interval([b - a for a, b in zip(before, after, strict=True)])
            lines.append(
                f"| {name} | {task} | {own:,} | {advised:,} | {_spread(before)} | {_spread(after)} | {apart} |"
            )
    return "\n".join(lines)


#: The rows of the table of what could have represented full fine-tuning: method, r, blocks.
REPRESENTING = (
    ("lora", 8, 1), ("gralora", 8, 4), ("melora", 8, 4), ("bora", 8, 8), ("hydralora", 4, 3), ("bora", 8, 16),
    ("bora", 14, 8), ("lora", 16, 1), ("bora", 29, 8), ("lora", 32, 1),
)  # fmt: skip


def capture_table() -> str:
    """The share of the energy of full fine-tuning that a method can represent: all twelve modules, weighted.

    The mean over the targets of a rate, and how far that is from the LoRA of as many parameters: least and most.
    """
    import pandas as pd

    from bora_analysis.analysis.capture import shares

    table = pd.read_csv(DATA / "capture.csv")
    found = pd.concat([shares(part) for _, part in table.groupby("adapter")])
    rates = [f"lr{rate}" for rate in reversed(made.FULL_RATES)]
    lines = [f"| method | parameters / (m+n) | {' | '.join(f'ρ, {rate[2:]}' for rate in rates)} | ρ − LoRA's, points |"]
    lines.append(f"|---|--:|{'--:|' * len(rates)}--:|")
    for method, r, blocks in REPRESENTING:
        own = found[(found["method"] == method) & (found["r"] == r) & (found["blocks"] == blocks)]
        means = [own[own["adapter"].str.contains(f"-{rate}-")]["captured"].mean() for rate in rates]
        apart = 100 * (own["captured"] - own["lora_captured"])
        span = "" if method == "lora" else f"{apart.min():+.2f} to {apart.max():+.2f}".replace("-", "−")
        cells = [own["member"].iloc[0], f"{own['parameters'].iloc[0] / (12 * 768):.2f}", *(f"{x:.4f}" for x in means)]
        lines.append(f"| {' | '.join(cells)} | {span} |")
    return "\n".join(lines)


#: Task → the table of ``evaluate``, and the k that are shown.
CUTS = {"movies": "accuracy_by_rank.csv", "products": "correlation_by_rank.csv"}
KEPT = ("0", "1", "2", "4", "8", "16", "32", "64", "all")


def cut_table(task: str) -> str:
    """What a task loses when every ΔW is cut to its k largest directions."""
    import pandas as pd

    table = pd.read_csv(DATA / CUTS[task], dtype={"keep": str})
    table = table[(table["metric"] == table["metric"].iloc[0]) & (table["order"] == "largest")]
    heads = ["k = 0", *KEPT[1:], "energy in k = 1", "lost by k = 1"]
    lines = [f"| adapter | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name, part in table.groupby("adapter", sort=False):
        values, one = part.set_index("keep")["value"], part[part["keep"] == "1"].iloc[0]
        cells = [f"{100 * values[k]:.1f}" if k in values else "" for k in KEPT]
        lost = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * one[["change", "change_low", "change_high"]]))
        cells += [f"{one['energy_mean']:.0%}".replace("%", " %"), lost.replace("-", "−")]
        lines.append(f"| {str(name).removeprefix(TASKS[task][1])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """Mean and Student's interval of 95 %: +0.66 [−1.27, +2.58]."""
    from bora_analysis.training.experiment import paired

    middle, low, high, _ = paired(values)
    return f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")


def _spread(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{mean(values):.2f}"


#: What README.md must have.
TABLES: dict[str, Callable[[], str]] = {
    "bundled": main_table,
    "differences": difference_table,
    "full": full_table,
    "capture": capture_table,
    **{f"rates, {task}": partial(rate_table, task) for task in TASKS},
    "rank or scale": rate_difference_table,
    "advice": advice_table,
    "a task that needs rank": rank_task.table,
    **{f"cuts, {task}": partial(cut_table, task) for task in CUTS},
}


if __name__ == "__main__":
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")
