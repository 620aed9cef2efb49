"""Claims on accuracies: statements about the paper's tables."""

from __future__ import annotations

from itertools import pairwise

import pandas as pd

from ..tables import parameters, table
from .common import BORA, LORA, LORA32, MODELS, PRINTED, Finding, averages, by_model, gains_over_lora, span, verdict


def two_to_four() -> Finding:
    gains = gains_over_lora(BORA)
    inside = {key: gain for key, gain in gains.items() if 2 <= round(gain) <= 4}
    rest = [gain for key, gain in gains.items() if key not in inside]
    return Finding(
        verdict(not rest, bool(inside)),
        f"r = 8, b = 16 against LoRA r = 8: {by_model(inside)}" + (f"; the others gain {span(rest)}" if rest else ""),
    )


def mean_gain(k: int, setting: tuple[str, int, int], printed: str) -> Finding:
    """The mean gain over LoRA r = 8 in table k, against the number that the text prints."""
    gains = [gain for (number, _), gain in gains_over_lora(setting).items() if number == k]
    mean = sum(gains) / len(gains)
    digits = len(printed.partition(".")[2])
    off = abs(mean - float(printed))
    return Finding(
        verdict(off <= 0.5 * 10**-digits + PRINTED),
        f"table {k}: {', '.join(f'{gain:.2f}' for gain in gains)}; mean {mean:.3f} ± {PRINTED}, printed {printed}",
    )


def best_baseline() -> Finding:
    found = {}
    for (_, model), runs in averages([1]).items():
        baseline = max(avg for (method, r, _), avg in runs.items() if method != "bora" and r <= 8)
        found[model] = max(avg for (method, _, _), avg in runs.items() if method == "bora") - baseline
    right = [round(found["roberta-base"]) == 1, round(found["roberta-large"]) == 2]
    shown = ", ".join(f"{MODELS[model]} +{gain:.2f}" for model, gain in found.items())
    return Finding(verdict(all(right), any(right)), f"over the best of LoRA r = 8, DoRA, MELoRA, HydraLoRA: {shown}")


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


def norm_matters_more() -> Finding:
    drops = {}
    for (_, model), runs in averages([7]).items():
        full = runs[BORA]
        drops[MODELS[model]] = full - runs["bora-no-exp", 8, 16], full - runs["bora-no-norm", 8, 16]
    more = [norm > exp for exp, norm in drops.values()]
    shown = ", ".join(f"{model} {norm:.2f} and {exp:.2f}" for model, (exp, norm) in drops.items())
    return Finding(verdict(all(more), any(more)), f"points lost without normalisation and without Exp: {shown}")


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
