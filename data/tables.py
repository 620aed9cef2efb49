"""The tables of data/README.md, from the CSV files beside it: ``python data/tables.py`` prints them as Markdown.

A difference is taken seed by seed; its interval is Student's, of 95 %, over the seeds that both have.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import make_adapters as made
import make_experiments as experiments
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


#: The adapters of table 1 → the variants of the preset table1-small, whose settings they have.
TABLE_1 = {
    **{name: name for name in ("lora-r8", "lora-r16", "lora-r32", "dora-r8", "hydralora-r4")},
    "melora-r8-n4": "melora-n4-r8",
    "bora-r8-b8": "bora-r8-b8",
    "bora-r8-b16": "bora-r8-b16",
}


def paper_table(name: str, task: str = "products") -> str:
    """An experiment at its small size; where the paper has it, beside the paper's differences, in points."""
    import pandas as pd

    from bora_analysis.training import read_plan
    from bora_analysis.training.beside import APART, START, beside_paper
    from bora_analysis.training.experiment import table_of

    if name == "table1":
        kind = "regression" if task == "products" else "classification"
        plan, found = read_plan("table1-small", {**experiments.GIVEN, "task": kind}), scores()
        rows = [(TABLE_1[each], seed, found[Run(task, each, seed)]) for each in TABLE_1 for seed in SEEDS]
        runs = pd.DataFrame(rows, columns=["variant", "seed", "value"]).assign(metric=plan.runs[0].settings.scored_by)
    else:
        plan, runs = experiments.plan_of(name), pd.read_csv(experiments.TABLES[name])
        runs = runs[runs["experiment"] == name].assign(value=lambda rows: 100 * rows["value"])
    frame = beside_paper(table_of(plan, runs), plan)
    models = [str(head) for head in frame if str(head).startswith(START) and not str(head).endswith(APART)]
    measured = "effective_rank" in frame
    axes = [{"target": "projections"}.get(axis, axis) for axis in plan.axes]
    heads = ["variant", *axes, "seeds", HEADS[task].split(", ")[1], f"− {plan.reference} [95 %], p"]
    heads += ["effective rank, bound"] * measured + [f"paper, {head.removeprefix(START)}" for head in models]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
    for row in frame.to_dict("records"):
        if not row["n"]:
            continue
        cells = [row["variant"], *(str(row[axis]) for axis in plan.axes), str(row["n"])]
        cells.append(f"{row['mean']:.2f} ± {row['sd']:.2f}" if row["n"] > 1 else f"{row['mean']:.2f}")
        apart = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}], {row['p']:.2g}"
        cells.append(
            "" if row["variant"] == plan.reference else apart if row["pairs"] > 1 else f"{row['difference']:+.2f}"
        )
        if measured:
            cells.append(f"{row['effective_rank']:.1f} of {row['rank_bound']:.0f}")
        for head in models:
            told = row[head + APART]
            cells.append(f"{row[head]:.2f}" + (f" ({told:+.2f})" if told == told else ""))
        lines.append(f"| {' | '.join(map(_signed, cells))} |")
    return "\n".join(lines)


#: What the paper says of an experiment → the experiment, its variant and the one that it is compared with, and where.
CLAIMS = (
    ("Without Exp BoRA is less accurate (§4.3, figure 3 a)", "figure3a", "bora-no-exp", "bora", "QV"),
    ("Without Norm BoRA is less accurate (§4.3, figure 3 a)", "figure3a", "bora-no-norm", "bora", "QV"),
    ("Norm matters more than Exp (§4.3)", "figure3a", "bora-no-norm", "bora-no-exp", "QV"),
    ("BoRA is more accurate than LoRA: Q (§4.4, figure 3 c)", "table8", "bora-r8-b16", "lora-r8", "Q"),
    ("… QV", "table8", "bora-r8-b16", "lora-r8", "QV"),
    ("… QKV", "table8", "bora-r8-b16", "lora-r8", "QKV"),
    ("… even with b = 2, r = 8 (§4.4, figure 3 b)", "table9", "bora-b2", "lora", "QV"),
    ("Accuracy rises with b: from 2 to 16, r = 8 (§4.4)", "table9", "bora-b16", "bora-b2", "QV"),
    ("BoRA is more accurate than at LoRA's gain (no claim of the paper)", "gain", "bora", "bora-gain-1", "QV"),
    ("At LoRA's gain BoRA is more accurate than LoRA (no claim of the paper)", "gain", "bora-gain-1", "lora", "QV"),
)


def claim_table() -> str:
    """What the paper says and what the small experiments show: differences in points, over the seeds that both have."""
    import pandas as pd

    from bora_analysis.training.beside import APART, START, beside_paper
    from bora_analysis.training.experiment import paired, table_of

    lines = ["| claim | the paper's differences | here [95 %], p | seeds | so |", "|---|--:|--:|--:|---|"]
    for claim, name, variant, other, target in CLAIMS:
        plan, runs = experiments.plan_of(name), pd.read_csv(experiments.TABLES[name])
        runs = runs[(runs["experiment"] == name) & (runs["target"] == target)].assign(
            value=lambda rows: 100 * rows["value"]
        )
        own = runs.pivot_table(index="seed", columns="variant", values="value")[[variant, other]].dropna()
        apart = (own[variant] - own[other]).tolist()
        middle, low, high, p = paired(apart)
        frame = beside_paper(table_of(plan, runs), plan)
        if "target" in frame:
            frame = frame[frame["target"] == target]
        heads = [str(head) for head in frame if str(head).startswith(START) and not str(head).endswith(APART)]
        found: Any = frame.set_index("variant")
        told = [found.loc[variant, head] - found.loc[other, head] for head in heads]
        paper = ", ".join(f"{each:+.2f}" for each in told) or "–"
        expected = -1.0 if variant.startswith("bora-no") else 1.0
        so = "cannot be told" if not (low > 0 or high < 0) else "holds here" if middle * expected > 0 else "fails here"
        here = f"{middle:+.2f} [{low:+.2f}, {high:+.2f}], {p:.2g}" if len(apart) > 1 else f"{middle:+.2f}"
        lines.append(f"| {' | '.join([claim, _signed(paper), _signed(here), str(len(apart)), so])} |")
    return "\n".join(lines)


def interval(values: list[float]) -> str:
    """Mean and Student's interval of 95 %: +0.66 [−1.27, +2.58]."""
    from bora_analysis.training.experiment import paired

    middle, low, high, _ = paired(values)
    return f"{middle:+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")


def _signed(cell: str) -> str:
    """Minus signs in place of hyphens before numbers; names keep theirs."""
    return re.sub(r"(?<![\w])-(?=\d)", "−", cell)


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
    **{f"paper's table 1, {task}": partial(paper_table, "table1", task) for task in TASKS},
    **{f"experiment {name}": partial(paper_table, name) for name in experiments.NAMES},
}


if __name__ == "__main__":
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")
