"""Claims on accuracies: statements about the paper's tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from ...style import MODELS
from ..tables import parameters, table
from .common import Finding, claim, span, verdict

#: Accuracies are printed to 0.01, so a difference of two averages is known to this (in percentage points).
PRINTED = 0.01
LORA, LORA32, BORA = ("lora", 8, 1), ("lora", 32, 1), ("bora", 8, 16)
BENCHMARKS = {1: "GLUE", 2: "maths", 3: "commonsense"}


@claim("C18", "§1, §5", "2–4 % more accuracy than LoRA at similar parameters")
def two_to_four() -> Finding:
    gains = gains_over_lora(BORA)
    inside = {key: gain for key, gain in gains.items() if 2 <= round(gain) <= 4}
    rest = [gain for key, gain in gains.items() if key not in inside]
    return Finding(
        verdict(not rest, bool(inside)),
        f"r = 8, b = 16 against LoRA r = 8: {by_model(inside)}" + (f"; the others gain {span(rest)}" if rest else ""),
    )


@claim("C21", "§4.2", "GLUE: 2 % over LoRA at the same rank", 1, BORA, "2")
@claim("C23", "§4.2", "mathematical reasoning: on average 2.4 % over LoRA", 2, BORA, "2.4")
@claim("C24", "§4.2", "four times LoRA's rank gains only 1.9 % there", 2, LORA32, "1.9")
@claim("C25", "§4.2", "commonsense reasoning: on average 0.95 % over LoRA", 3, BORA, "0.95")
@claim("C26", "§4.2", "four times LoRA's rank gains only 0.77 % there", 3, LORA32, "0.77")
def mean_gain(k: int, setting: tuple[str, int, int], printed: str) -> Finding:
    """The mean gain over LoRA r = 8 in table k: it rounds to what the text prints, and is within 5 % of it."""
    gains = [gain for (number, _), gain in gains_over_lora(setting).items() if number == k]
    mean = sum(gains) / len(gains)
    digits = len(printed.partition(".")[2])
    off = abs(mean - float(printed))
    right = rounds, near = off <= 0.5 * 10**-digits + PRINTED, off <= 0.05 * abs(mean)
    said = {(True, False): ": rounds to it, and is off by more than 5 %", (False, True): ": off by less than 5 %"}
    return Finding(
        verdict(rounds and near, rounds or near),
        f"table {k}: {', '.join(f'{gain:.2f}' for gain in gains)}; mean {mean:.3f} ± {PRINTED}, printed {printed}"
        + said.get(right, ""),
    )


@claim("C22", "§4.2", "GLUE, similar parameters: up to 1 % (Base) and 2 % (Large) over the best baseline")
def best_baseline() -> Finding:
    found = {}
    for (_, model), runs in averages([1]).items():
        baseline = max(avg for (method, r, _), avg in runs.items() if method != "bora" and r <= 8)
        found[model] = max(avg for (method, _, _), avg in runs.items() if method == "bora") - baseline
    right = [round(found["roberta-base"]) == 1, round(found["roberta-large"]) == 2]
    shown = ", ".join(f"{MODELS[model]} +{gain:.2f}" for model, gain in found.items())
    return Finding(verdict(all(right), any(right)), f"over the best of LoRA r = 8, DoRA, MELoRA, HydraLoRA: {shown}")


@claim("C28", "§4.2", "the best accuracy on GLUE and on commonsense reasoning")
def best_accuracy() -> Finding:
    leads = {}
    for key, runs in averages([1, 3]).items():
        others = [avg for (method, _, _), avg in runs.items() if method != "bora"]
        leads[key] = max(avg for (method, _, _), avg in runs.items() if method == "bora") - max(others)
    behind = {key: lead for key, lead in leads.items() if lead <= 0}
    ahead = [lead for lead in leads.values() if lead > 0]
    return Finding(
        verdict(not behind, bool(ahead)),
        f"ahead of all others by {span(ahead, '.2f')} in {len(ahead)} of {len(leads)}"
        + (f"; not in {by_model(behind, '+.2f')} against LoRA r = 32" if behind else ""),
    )


@claim("C27", "§4.2", "similar accuracy with more than four times fewer parameters")
def four_times_fewer() -> Finding:
    ratios = []
    for (k, model), runs in averages([1, 2, 3]).items():
        target = "QV" if k == 1 else "QKV"
        larger = parameters(model, *LORA32, target)
        for setting in (("bora", 8, 8), BORA):
            if runs[setting] >= runs[LORA32]:
                ratios.append(larger / parameters(model, *setting, target))
    elsewhere = {}
    runs = averages([9])[9, "llama-3-8b"]
    for plain, ours in ((a, c) for a in runs for c in runs if a[0] == "lora" and c[0] == "bora"):
        ratio = parameters("llama-3-8b", *plain, "QKV") / parameters("llama-3-8b", *ours, "QKV")
        if runs[ours] >= runs[plain] and ratio > 4:
            elsewhere[ratio] = (
                f"BoRA r = {ours[1]}, b = {ours[2]} ({runs[ours]:.2f}) has {ratio:.1f} times fewer than LoRA "
                f"r = {plain[1]} ({runs[plain]:.2f})"
            )
    shown = f"in table 9 {elsewhere[max(elsewhere)]}" if elsewhere else "nor anywhere in table 9"
    return Finding(
        verdict(bool(ratios) and min(ratios) > 4, bool(elsewhere)),
        f"where BoRA r = 8 is at least as good as LoRA r = 32 in tables 1–3, LoRA has {span(ratios, '.2f')} times "
        f"its parameters; {shown}",
    )


@claim("C29", "§4.3", "leaving out the normalisation hurts more than leaving out Exp")
def norm_matters_more() -> Finding:
    drops = {}
    for (_, model), runs in averages([7]).items():
        full = runs[BORA]
        drops[MODELS[model]] = full - runs["bora-no-exp", 8, 16], full - runs["bora-no-norm", 8, 16]
    more = [norm > exp for exp, norm in drops.values()]
    shown = ", ".join(f"{model} {norm:.2f} and {exp:.2f}" for model, (exp, norm) in drops.items())
    return Finding(verdict(all(more), any(more)), f"points lost without normalisation and without Exp: {shown}")


@claim("C30", "§4.4", "BoRA outperforms LoRA at every rank, even with b = 2")
def two_blocks() -> Finding:
    runs = averages([9])[9, "llama-3-8b"]
    gains = {(r, b): avg - runs["lora", r, 1] for (method, r, b), avg in runs.items() if method == "bora"}
    twos = [gain for (_, b), gain in gains.items() if b == 2]
    better = [gain > 0 for gain in gains.values()]
    return Finding(
        verdict(all(better), any(better)),
        f"{sum(better)} of {len(gains)} settings of table 9 are above LoRA of the same r, those with b = 2 by "
        f"{span(twos)}",
    )


@claim("C31", "§4.4", "accuracy rises with b, and falls past a threshold where r is large")
def more_blocks() -> Finding:
    runs = averages([9])[9, "llama-3-8b"]
    rising, falls = [], []
    for r in (2, 4, 8, 16, 32, 64):
        curve = {b: runs["bora", r, b] for b in (2, 4, 8, 16, 32, 64)}
        down = [f"r = {r}: {curve[c] - curve[b]:.2f} at b = {c}" for b, c in pairwise(curve) if curve[c] <= curve[b]]
        falls += down
        rising += [] if down else [r]
    return Finding(
        verdict(not falls, bool(rising)),
        f"rises at every step for r = {', '.join(map(str, rising)) or 'none'}"
        + (f"; {', '.join(falls)}" if falls else ""),
    )


@claim("C32", "§4.4", "BoRA outperforms LoRA whatever the target modules")
def granularity() -> Finding:
    frame = table(8)
    frame = frame[frame["task"] == "Avg"]
    gains, more = {}, []
    for target, part in frame.groupby("target", sort=False):
        value = part.set_index("method")["value"]
        gains[target] = value["bora"] - value["lora"]
        more.append(
            parameters("llama-3-8b", *BORA, str(target)) / parameters("llama-3-8b", *LORA, str(target)) - 1
        )  # fmt: skip
    better = [gain > 0 for gain in gains.values()]
    shown = ", ".join(f"{target} +{gain:.2f}" for target, gain in gains.items())
    return Finding(verdict(all(better), any(better)), f"{shown}, for {span(more, '.1%')} more parameters")


@claim("C33", "App. C.1", "standard deviations are much smaller than BoRA's gain")
def deviations() -> Finding:
    frame = pd.concat([table(k) for k in (1, 2, 3)])
    frame = frame[frame["std"].notna()]
    small: dict[str, list[bool]] = {"the averages of tables 2 and 3": [], "the single tasks of table 1": []}
    averages, tasks = small.values()
    for _, part in frame.groupby(["table", "model", "task"]):
        runs = {(row["method"], row["r"], row["blocks"]): (row["value"], row["std"]) for row in part.to_dict("records")}
        (plain, plain_std), (ours, our_std) = runs[LORA], runs[BORA]
        (tasks if part["table"].iloc[0] == 1 else averages).append(max(plain_std, our_std) < (ours - plain) / 2)
    every = [value for values in small.values() for value in values]
    shown = ", ".join(f"{sum(values)} of {len(values)} of {name}" for name, values in small.items())
    return Finding(
        verdict(all(every), any(every)),
        f"below half of the gain (r = 8, b = 16 over LoRA r = 8; the larger of the two deviations) in {shown}",
    )


def averages(numbers: Sequence[int]) -> dict[tuple[int, str], dict[tuple[str, int, int], float]]:
    """(table, model) → (method, r, blocks) → Avg."""
    out: dict[tuple[int, str], dict[tuple[str, int, int], float]] = {}
    for k in numbers:
        frame = table(k)
        for row in frame[frame["task"] == "Avg"].to_dict("records"):
            out.setdefault((k, row["model"]), {})[row["method"], row["r"], row["blocks"]] = row["value"]
    return out


def gains_over_lora(setting: tuple[str, int, int]) -> dict[tuple[int, str], float]:
    """(table, model) → points that a setting gains over LoRA r = 8, tables 1–3."""
    return {key: runs[setting] - runs[LORA] for key, runs in averages([1, 2, 3]).items()}


def by_model(values: dict[tuple[int, str], float], form: str = ".2f") -> str:
    return ", ".join(f"{MODELS[model]} {BENCHMARKS[k]} {value:{form}}" for (k, model), value in values.items())
