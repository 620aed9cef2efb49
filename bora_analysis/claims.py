"""The checkable claims of the BoRA paper (arXiv 2508.06953), each judged by a computation made on the spot.

No verdict is written down: every claim has a function that computes and from its numbers alone says "holds", "holds
under a condition" (true in part of the cases that the claim covers; the evidence names which) or "erratum". Random
factors come from fixed seeds. Gains in accuracy are percentage points of the Avg columns, as in the paper.

What only a trained adapter can show is left out: figure 4, and that "the effective rank of BoRA approaches br".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from .architectures import ARCHITECTURES, architecture, targets
from .cost import common_divisors, cost
from .delta import Array, bora, lora, melora
from .paper import parameters, table
from .spectrum import FactorRanks, factor_ranks, singular_values
from .synthetic import Synthetic, synthetic_adapter

Verdict = Literal["holds", "holds under a condition", "erratum"]
HOLDS: Verdict = "holds"
CONDITION: Verdict = "holds under a condition"
ERRATUM: Verdict = "erratum"

#: Two float64 computations of one matrix count as equal below this difference, relative to the largest entry.
SAME = 1e-12
#: An entry of Σ within this of 1 is "close to 1" (§4.3), one within this of 0 "near zero" (§3.2).
CLOSE, NEAR_ZERO = 0.1, 0.05
#: Accuracies are printed to 0.01, so a difference of two averages is known to this (in percentage points).
PRINTED = 0.01

LORA, LORA32, BORA = ("lora", 8, 1), ("lora", 32, 1), ("bora", 8, 16)
MODELS = {
    "roberta-base": "RoBERTa-Base",
    "roberta-large": "RoBERTa-Large",
    "gemma-7b": "Gemma-7B",
    "llama-3-8b": "LLaMA-3-8B",
    "qwen2.5-14b": "Qwen2.5-14B",
}
BENCHMARKS = {1: "GLUE", 2: "maths", 3: "commonsense"}
#: A layer that stands for many: q of LLaMA-3-8B with r = 8, b = 16.
QUERY = (4096, 4096, 8, 16)


class Finding(NamedTuple):
    """What a computation says about a claim."""

    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes
    ----------
    id : ``"C1"`` …, fixed.
    where : equation, section or table of the paper.
    text : what is claimed, in one line.
    judge : computes the evidence and derives the verdict from it.
    """

    id: str
    where: str
    text: str
    judge: Callable[[], Finding]


def claims() -> pd.DataFrame:
    """Judge every claim anew.

    Returns
    -------
    DataFrame, one row per claim: ``id``, ``where``, ``claim``, ``verdict``, ``evidence``.

    Raises
    ------
    FileNotFoundError
        The bundled tables of the paper were not installed.

    Examples
    --------
    >>> from bora_analysis.claims import CLAIMS
    >>> [claim.judge().verdict for claim in CLAIMS if claim.id in ("C10", "C11", "C12")]  # three of them
    ['erratum', 'holds', 'holds under a condition']
    """
    rows = [(claim.id, claim.where, claim.text, *claim.judge()) for claim in CLAIMS]
    return pd.DataFrame(rows, columns=["id", "where", "claim", "verdict", "evidence"])


def _verdict(everywhere: bool, partly: bool = False) -> Verdict:
    if everywhere:
        return HOLDS
    return CONDITION if partly else ERRATUM


# --- The construction: equations 4 to 8 and the special cases


def _lora_is_bora() -> Finding:
    worst, cases = 0.0, 0
    for B, A, sigma in _draws(100, seed=1):
        plain = lora(B, A).to_dense()
        ones = bora(B, A, np.ones_like(sigma), activation="identity")
        untouched = bora(B, A, np.zeros_like(sigma))
        worst = max(worst, *(_difference(update.to_dense(), plain) for update in (ones, untouched)))
        cases += 1
    return Finding(
        _verdict(worst <= SAME),
        f"{cases} random layers with b = 1 to 4, Σ = I given and from σ = 0: largest relative difference {worst:.1g}",
    )


def _melora_is_bora() -> Finding:
    worst, cases = 0.0, 0
    for B, A, sigma in _draws(100, seed=2, inside=True):
        b = len(sigma)
        minis = melora(np.split(B, b), np.split(A, b, axis=1)).to_dense()
        same = bora(B, A, np.broadcast_to(np.eye(b)[:, :, None], sigma.shape), activation="identity").to_dense()
        worst, cases = max(worst, _difference(same, minis)), cases + 1
    return Finding(
        _verdict(worst <= SAME),
        f"{cases} random layers with 1 to 4 minis, Σ_ij = δ_ij I: largest relative difference {worst:.1g}",
    )


def _three_factors() -> Finding:
    worst, cases = 0.0, 0
    for B, A, sigma in _draws(100, seed=3):
        update = bora(B, A, sigma)
        left, middle, right = update.expanded()
        worst, cases = max(worst, _difference(left @ middle @ right, _block_by_block(B, A, update.sigma))), cases + 1
    return Finding(_verdict(worst <= SAME), f"{cases} random layers: largest relative difference {worst:.1g}")


def _forward() -> Finding:
    worst, cases = 0.0, 0
    for B, A, sigma in _draws(100, seed=4):
        update = bora(B, A, sigma)
        x = np.random.default_rng(cases).standard_normal(A.shape[1])
        out = _forward_pass(B, A, update.sigma, x).out
        worst, cases = max(worst, _difference(out, update.to_dense() @ x)), cases + 1
    return Finding(_verdict(worst <= SAME), f"{cases} random layers: largest relative difference {worst:.1g}")


def _row_from_row() -> Finding:
    rng = np.random.default_rng(20)
    m, _, r, b = QUERY
    found = {}
    for rows in (r, m // b):
        first, second, A1 = rng.standard_normal((rows, r)), rng.standard_normal((rows, r)), rng.standard_normal((r, 64))
        rebuilt = second @ np.linalg.pinv(first) @ (first @ A1)
        invertible = first.shape[0] == first.shape[1] and np.linalg.matrix_rank(first) == rows
        found[rows] = invertible, _difference(rebuilt, second @ A1)
    exact = all(error <= 1e-9 for _, error in found.values())  # the pseudoinverse loses a few digits
    inverse, error = found[m // b]
    return Finding(
        _verdict(exact and inverse, exact and found[r][0]),
        f"m = {m}, b = {b}: B_1 is {m // b}×{r}, of rank {r}, and has {'an' if inverse else 'no'} inverse, which needs "
        f"m/b = r; with the pseudoinverse B_2 B_1⁺ (B_1 A_1) is B_2 A_1 to {error:.0e}",
    )


# --- Rank (§3.3, Appendix F)


def _bound() -> Finding:
    cases = reached = above = 0
    for B, A, sigma in _draws(1500, seed=5, whole=3):
        update = bora(B, A, sigma, activation="identity")
        rank, most = _rank(update.to_dense()), min(len(B), A.shape[1], sigma.shape[0] * sigma.shape[2])
        cases, reached, above = cases + 1, reached + (rank == most), above + (rank > most)
    return Finding(
        _verdict(above == 0), f"{cases:,} layers of whole numbers: {above} above the bound, {reached:,} reach it"
    )


def _slots() -> Finding:
    unequal = cases = 0
    for B, A, sigma in _draws(400, seed=6, whole=1):
        update = bora(B, A, sigma, activation="identity")
        split = sum(_rank(slot) for slot in update.slots())
        unequal, cases = unequal + (split != _rank(update.expanded().sigma)), cases + 1
    b, r = 8, 4
    size = 64
    B, A = np.ones((size, r)), np.ones((r, size))
    raw = _initial(size, size, r, b)["sigma"]
    ranks = {}
    for name, sigma, activation in (
        ("LoRA", np.ones((b, b, r)), "identity"),
        ("MELoRA", np.broadcast_to(np.eye(b)[:, :, None], (b, b, r)), "identity"),
        ("BoRA", raw, "exp-norm"),
    ):
        slots = bora(B, A, sigma, activation=activation).slots()
        ranks[name] = [_rank(slot) for slot in slots]
    expected = {"LoRA": [1] * r, "MELoRA": [b] * r, "BoRA": [b] * r}
    totals = ", ".join(f"{name} {r}·{found[0]} = {sum(found)}" for name, found in ranks.items())
    return Finding(
        _verdict(unequal == 0 and ranks == expected),
        f"{cases} σ of whole numbers: {unequal} unequal; r = {r}, b = {b}: rank Σ' is {totals}",
    )


def _full_rank_factors() -> Finding:
    inside = short_inside = beyond = short_beyond = 0
    for B, A, sigma in _draws(1500, seed=7, whole=1):
        b, _, r = sigma.shape
        m, n, inner = len(B), A.shape[1], b * r
        update = bora(B, A, sigma, activation="identity")
        full_ranks = min(m, inner), inner, min(n, inner)
        if any(_rank(factor) < full for factor, full in zip(update.expanded(), full_ranks, strict=True)):
            continue
        short = _rank(update.to_dense()) < min(m, n, inner)
        if inner <= max(m, n):
            inside, short_inside = inside + 1, short_inside + short
        else:
            beyond, short_beyond = beyond + 1, short_beyond + short
    limits, rank = _counterexample()
    fails = (limits.B, limits.sigma, limits.A) == (2, 4, 2) and rank < limits.bound
    return Finding(
        _verdict(not (fails or short_inside or short_beyond), inside > 0 and not short_inside),
        f"where the three factors have full rank, {short_inside} of {inside:,} layers with br ≤ max(m, n) stay below "
        f"the bound and {short_beyond} of {beyond:,} with br > max(m, n); counterexample b = r = m = n = 2, "
        f"B_i = [1 0], A_j = [0 1]ᵀ: ranks {limits.B}, {limits.sigma}, {limits.A}, rank ΔW = {rank}, "
        f"bound {limits.bound}",
    )


def _counterexample() -> tuple[FactorRanks, int]:
    """Three factors of full rank whose product is 0."""
    B, A = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 1.0]])
    update = bora(B, A, np.random.default_rng(0).standard_normal((2, 2, 2)))
    return factor_ranks(update), _rank(update.to_dense())


def _generic_factors() -> Finding:
    cases = short = beyond = 0
    for B, A, sigma in _draws(400, seed=8):
        b, _, r = sigma.shape
        m, n = len(B), A.shape[1]
        # Far above rounding, far below what random factors of this size come near to in these draws.
        rank = int(np.linalg.matrix_rank(bora(B, A, sigma).to_dense(), rtol=1e-11))
        cases, short, beyond = cases + 1, short + (rank < min(m, n, b * r)), beyond + (b * r > max(m, n))
    return Finding(
        _verdict(short == 0),
        f"{cases} layers of normal numbers, {beyond} of them with br > max(m, n): {short} below min(m, n, br)",
    )


def _rank_at_start() -> Finding:
    m, r, b = 256, 4, 8
    update = synthetic_adapter("bora", {"q": (m, m)}, r, b, kind="init")["q"]
    limits, largest = factor_ranks(update), singular_values(update).values.max()
    zero = limits.B == 0 and largest == 0
    return Finding(
        _verdict(zero and (limits.sigma, limits.A) == (b * r, b * r)),
        f"m = n = {m}, r = {r}, b = {b} as initialised: rank B' = {limits.B}, rank Σ' = {limits.sigma}, "
        f"rank A' = {limits.A}, largest singular value of ΔW {largest:g}",
    )


# --- Σ at initialisation (§3.2, §4.3)


def _normalisation() -> Finding:
    with_norm, without = _initial_sigma("exp-norm"), _initial_sigma("no-norm")
    near = {name: float(np.mean(np.abs(S - 1) <= CLOSE)) for name, S in (("with", with_norm), ("without", without))}
    return Finding(
        _verdict(near["without"] > 0.5 and near["with"] < 0.5),
        f"r = 8, b = 16, Kaiming-uniform σ: without it Σ is {_spread(without)}, {near['without']:.0%} within {CLOSE} "
        f"of 1; with it {_spread(with_norm)}, {near['with']:.0%}",
    )


def _exponential() -> Finding:
    found = {activation: np.abs(_initial_sigma(activation)) for activation in ("exp-norm", "no-exp")}
    lost = {activation: float(np.mean(S < NEAR_ZERO)) for activation, S in found.items()}
    negative = bool((_initial_sigma("exp-norm") <= 0).any())
    return Finding(
        _verdict(lost["exp-norm"] == 0 and lost["no-exp"] > 0 and not negative),
        f"r = 8, b = 16 at initialisation: smallest |Σ| {found['exp-norm'].min():.3f} with Exp and "
        f"{found['no-exp'].min():.1g} without; below {NEAR_ZERO}: {lost['exp-norm']:.0%} and {lost['no-exp']:.1%}",
    )


# --- Parameters and multiply-adds (§3.3, §3.4, §4.4)


def _extra_parameters() -> Finding:
    wrong = cases = 0
    for m, n in _paper_shapes():
        for b in (b for b in common_divisors([m, n]) if b <= 64):
            for r in (2, 8, 64):
                plain, ours = cost("lora", m, n, r), cost("bora", m, n, r, blocks=b)
                extra, bound = ours.parameters - plain.parameters, min(m, n, b * plain.rank_bound)
                wrong, cases = wrong + (extra != b * b * r or ours.rank_bound != bound), cases + 1
    m, n, r, b = QUERY
    plain, ours = cost("lora", m, n, r), cost("bora", m, n, r, blocks=b)
    extra = ours.parameters - plain.parameters
    return Finding(
        _verdict(wrong == 0),
        f"{cases} settings of the paper's layers: {wrong} differ; {m}×{n}, r = {r}, b = {b}: {extra:,} more than "
        f"{plain.parameters:,} ({extra / plain.parameters:.1%}) for a bound of {ours.rank_bound} instead of {r}",
    )


def _lora_for_rank_br() -> Finding:
    agree = cases = 0
    for m, n in _paper_shapes():
        for r, b in ((2, 2), (8, 8), (8, 16)):
            agree, cases = agree + (_lora_reaching(m, n, b * r) == (m + n) * b * b * r), cases + 1
    m, n, r, b = QUERY
    needed, printed = _lora_reaching(m, n, b * r), (m + n) * b * b * r
    return Finding(
        _verdict(agree == cases, agree > 0),
        f"right in {agree} of {cases} settings; {m}×{n}, r = {r}, b = {b}: LoRA's bound is {b * r} with {needed:,} "
        f"parameters, (m+n)br, and the formula gives {printed:,}, {printed / needed:g} times as many",
    )


def _lora_reaching(m: int, n: int, rank: int) -> int:
    """Parameters of the smallest LoRA whose rank bound is ``rank``."""
    return next(c.parameters for k in range(1, rank + 1) if (c := cost("lora", m, n, k)).rank_bound >= rank)


def _best_blocks() -> Finding:
    shapes = [*_paper_shapes(), (2048, 2048), (1024, 3072)]  # in the last two √(m+n) = 64 divides m and n
    right = met = 0
    for m, n in shapes:
        price, root = _price(m, n), math.sqrt(m + n)
        best = [b for b, value in price.items() if value == min(price.values())]
        beside = [max((b for b in price if b <= root), default=1), min((b for b in price if b >= root), default=1)]
        right += all(b in beside for b in best) and min(price.values()) >= 2 * root * (1 - SAME)
        met += best == [root]
    price = _price(4096, 4096)
    tie = [b for b, value in price.items() if value == min(price.values())]
    return Finding(
        _verdict(right == len(shapes) and met > 0),
        f"in {right} of {len(shapes)} shapes the best b is a divisor next to √(m+n), in {met} √(m+n) itself; "
        f"4096×4096: √(m+n) = {math.sqrt(8192):.1f}, best b = {' and '.join(map(str, tie))}",
    )


def _rule_of_thumb() -> Finding:
    fits, misfits = {}, []
    for m, n in _paper_shapes():
        rule, price = math.isqrt(n), _price(m, n)
        if rule in price:
            fits[f"{m}×{n}"] = price[rule] / (2 * math.sqrt(m + n)) - 1, price[rule] == min(price.values())
        else:
            misfits.append(f"{m}×{n} ({rule})")
    best = sum(least for _, least in fits.values())
    worst = max(fits, key=lambda shape: fits[shape][0]) if fits else "none"
    return Finding(
        _verdict(not misfits and best == len(fits), best > 0),
        f"⌊√n⌋ divides m and n in {len(fits)} of {len(fits) + len(misfits)} shapes that the paper adapts, not in "
        f"{', '.join(misfits)}; where it does, it is the best divisor in {best}, and N is at most "
        f"{fits[worst][0] if fits else 0:.0%} above that of b = √(m+n) ({worst})",
    )


def _multiply_adds() -> Finding:
    m, n, r, b = 48, 32, 3, 4
    rng = np.random.default_rng(12)
    done = _forward_pass(
        rng.standard_normal((m, r)), rng.standard_normal((r, n)), np.ones((b, b, r)), rng.standard_normal(n)
    )
    claimed, library = (m + n) * r + b * b * r, cost("bora", m, n, r, blocks=b).macs_per_token
    as_flops = done.multiplications + done.additions == claimed
    as_macs = done.multiplications == claimed == library
    return Finding(
        _verdict(as_flops, as_macs),
        f"eq. 8 carried out for {m}×{n}, r = {r}, b = {b} takes {done.multiplications} multiplications and "
        f"{done.additions} additions beyond W X; (m+n)r + b²r is {claimed}: one FLOP per multiply-add; the "
        "usual convention counts two",
    )


def _count_with_frozen() -> Finding:
    m, n, r, b = QUERY
    trained = {
        "LoRA": (lora(np.zeros((m, r)), np.zeros((r, n))).facts.parameters, m * n + (m + n) * r),
        "BoRA": (
            bora(np.zeros((m, r)), np.zeros((r, n)), np.zeros((b, b, r))).facts.parameters,
            m * n + (m + n) * r + b * b * r,
        ),
    }
    right = [count == printed for count, printed in trained.values()]
    told = "; ".join(f"{name} trains {count:,}, printed {printed:,}" for name, (count, printed) in trained.items())
    frozen = all(printed - count == m * n for count, printed in trained.values())
    return Finding(
        _verdict(all(right), any(right)),
        f"{m}×{n}, r = {r}, b = {b}: {told}" + ("; the difference is the frozen mn" if frozen else ""),
    )


def _sixty_four_blocks() -> Finding:
    ratios = [
        parameters("llama-3-8b", "bora", r, 64, "QKV") / parameters("llama-3-8b", "lora", r, 1, "QKV")
        for r in (2, 4, 8, 16, 32, 64)
    ]
    rounded, cut = {round(ratio, 1) for ratio in ratios}, {math.floor(ratio * 10) / 10 for ratio in ratios}
    return Finding(
        _verdict(rounded == {1.6}, cut == {1.6}),
        f"LLaMA-3-8B, QKV, every r: {_range(ratios, '.3f')} times, {max(rounded)} when rounded and {max(cut)} when cut "
        f"off; {max(ratios) - 1:.0%} more",
    )


# --- Accuracies: what the paper says of its own tables


def _two_to_four() -> Finding:
    gains = _gains(BORA)
    inside = {key: gain for key, gain in gains.items() if 2 <= round(gain) <= 4}
    rest = [gain for key, gain in gains.items() if key not in inside]
    return Finding(
        _verdict(not rest, bool(inside)),
        f"r = 8, b = 16 against LoRA r = 8: {_listed(inside)}" + (f"; the others gain {_range(rest)}" if rest else ""),
    )


def _mean_gain(k: int, setting: tuple[str, int, int], printed: str) -> Finding:
    """The mean gain over LoRA r = 8 in table k, against the number that the text prints."""
    gains = [gain for (number, _), gain in _gains(setting).items() if number == k]
    mean = sum(gains) / len(gains)
    digits = len(printed.partition(".")[2])
    off = abs(mean - float(printed))
    return Finding(
        _verdict(off <= 0.5 * 10**-digits + PRINTED),
        f"table {k}: {', '.join(f'{gain:.2f}' for gain in gains)}; mean {mean:.3f} ± {PRINTED}, printed {printed}",
    )


def _best_baseline() -> Finding:
    found = {}
    for (_, model), runs in _averages([1]).items():
        baseline = max(avg for (method, r, _), avg in runs.items() if method != "bora" and r <= 8)
        found[model] = max(avg for (method, _, _), avg in runs.items() if method == "bora") - baseline
    right = [round(found["roberta-base"]) == 1, round(found["roberta-large"]) == 2]
    told = ", ".join(f"{MODELS[model]} +{gain:.2f}" for model, gain in found.items())
    return Finding(_verdict(all(right), any(right)), f"over the best of LoRA r = 8, DoRA, MELoRA, HydraLoRA: {told}")


def _best_accuracy() -> Finding:
    leads = {}
    for key, runs in _averages([1, 3]).items():
        others = [avg for (method, _, _), avg in runs.items() if method != "bora"]
        leads[key] = max(avg for (method, _, _), avg in runs.items() if method == "bora") - max(others)
    behind = {key: lead for key, lead in leads.items() if lead <= 0}
    ahead = [lead for lead in leads.values() if lead > 0]
    return Finding(
        _verdict(not behind, bool(ahead)),
        f"ahead of all others by {_range(ahead, '.2f')} in {len(ahead)} of {len(leads)}"
        + (f"; not in {_listed(behind, '+.2f')} against LoRA r = 32" if behind else ""),
    )


def _four_times_fewer() -> Finding:
    ratios = []
    for (k, model), runs in _averages([1, 2, 3]).items():
        target = "QV" if k == 1 else "QKV"
        larger = parameters(model, *LORA32, target)
        for setting in (("bora", 8, 8), BORA):
            if runs[setting] >= runs[LORA32]:
                ratios.append(larger / parameters(model, *setting, target))
    elsewhere = {}
    runs = _averages([9])[9, "llama-3-8b"]
    for plain, ours in ((a, c) for a in runs for c in runs if a[0] == "lora" and c[0] == "bora"):
        ratio = parameters("llama-3-8b", *plain, "QKV") / parameters("llama-3-8b", *ours, "QKV")
        if runs[ours] >= runs[plain] and ratio > 4:
            elsewhere[ratio] = (
                f"BoRA r = {ours[1]}, b = {ours[2]} ({runs[ours]:.2f}) has {ratio:.1f} times fewer than LoRA "
                f"r = {plain[1]} ({runs[plain]:.2f})"
            )
    told = f"in table 9 {elsewhere[max(elsewhere)]}" if elsewhere else "nor anywhere in table 9"
    return Finding(
        _verdict(bool(ratios) and min(ratios) > 4, bool(elsewhere)),
        f"where BoRA r = 8 is at least as good as LoRA r = 32 in tables 1–3, LoRA has {_range(ratios, '.2f')} times "
        f"its parameters; {told}",
    )


def _norm_matters_more() -> Finding:
    drops = {}
    for (_, model), runs in _averages([7]).items():
        full = runs[BORA]
        drops[MODELS[model]] = full - runs["bora-no-exp", 8, 16], full - runs["bora-no-norm", 8, 16]
    more = [norm > exp for exp, norm in drops.values()]
    told = ", ".join(f"{model} {norm:.2f} and {exp:.2f}" for model, (exp, norm) in drops.items())
    return Finding(_verdict(all(more), any(more)), f"points lost without normalisation and without Exp: {told}")


def _two_blocks() -> Finding:
    runs = _averages([9])[9, "llama-3-8b"]
    gains = {(r, b): avg - runs["lora", r, 1] for (method, r, b), avg in runs.items() if method == "bora"}
    twos = [gain for (_, b), gain in gains.items() if b == 2]
    better = [gain > 0 for gain in gains.values()]
    return Finding(
        _verdict(all(better), any(better)),
        f"{sum(better)} of {len(gains)} settings of table 9 are above LoRA of the same r, those with b = 2 by "
        f"{_range(twos)}",
    )


def _more_blocks() -> Finding:
    runs = _averages([9])[9, "llama-3-8b"]
    rising, falls = [], []
    for r in (2, 4, 8, 16, 32, 64):
        curve = {b: runs["bora", r, b] for b in (2, 4, 8, 16, 32, 64)}
        down = [f"r = {r}: {curve[c] - curve[b]:.2f} at b = {c}" for b, c in pairwise(curve) if curve[c] <= curve[b]]
        falls += down
        rising += [] if down else [r]
    return Finding(
        _verdict(not falls, bool(rising)),
        f"rises at every step for r = {', '.join(map(str, rising)) or 'none'}"
        + (f"; {', '.join(falls)}" if falls else ""),
    )


def _granularity() -> Finding:
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
    told = ", ".join(f"{target} +{gain:.2f}" for target, gain in gains.items())
    return Finding(_verdict(all(better), any(better)), f"{told}, for {_range(more, '.1%')} more parameters")


def _deviations() -> Finding:
    frame = pd.concat([table(k) for k in (1, 2, 3)])
    frame = frame[frame["std"].notna()]
    small: dict[str, list[bool]] = {"the averages of tables 2 and 3": [], "the single tasks of table 1": []}
    averages, tasks = small.values()
    for _, part in frame.groupby(["table", "model", "task"]):
        runs = {(row["method"], row["r"], row["blocks"]): (row["value"], row["std"]) for row in part.to_dict("records")}
        (plain, plain_std), (ours, our_std) = runs[LORA], runs[BORA]
        (tasks if part["table"].iloc[0] == 1 else averages).append(max(plain_std, our_std) < (ours - plain) / 2)
    every = [value for values in small.values() for value in values]
    told = ", ".join(f"{sum(values)} of {len(values)} of {name}" for name, values in small.items())
    return Finding(
        _verdict(all(every), any(every)),
        f"below half of the gain (r = 8, b = 16 over LoRA r = 8; the larger of the two deviations) in {told}",
    )


CLAIMS: tuple[Claim, ...] = (
    Claim("C1", "§3.5, fig. 1", "LoRA is BoRA with every Σ_ij = I, for any b", _lora_is_bora),
    Claim("C2", "§3.5, fig. 1", "MELoRA is BoRA with Σ_ij = I for i = j and 0 otherwise", _melora_is_bora),
    Claim("C3", "eq. 4, eq. 6", "ΔW = B' Σ' A' is the same matrix as ΔW_ij = B_i Σ_ij A_j", _three_factors),
    Claim("C4", "eq. 8", "Y_j = B_j Σ_k Σ_jk A_k X_k is ΔW X", _forward),
    Claim("C5", "§3.3, eq. 7", "rank(ΔW) ≤ min(m, n, br)", _bound),
    Claim(
        "C6",
        "§3.3, App. F",
        "Σ breaks the correlation of the blocks: rank Σ' = Σ_k rank S_k, S_k = [Σ_ij[k]]_ij; r for LoRA, br for "
        "MELoRA and a random σ",
        _slots,
    ),
    Claim(
        "C7",
        "§3.3, Prop. 1",
        "the bound is achieved when B', Σ' and A' have full rank",
        _full_rank_factors,
    ),
    Claim("C8", "App. F", "random (generic) factors reach the bound, as trained ones typically do", _generic_factors),
    Claim("C9", "abstract, §3.3", "b times the rank for only b²r more parameters", _extra_parameters),
    Claim("C10", "§3.3", "for rank br LoRA needs (m+n)(b²r) parameters", _lora_for_rank_br),
    Claim("C11", "§3.3", "N(b) = R((m+n)/b + b), for rank R = br, is least at b = √(m+n)", _best_blocks),
    Claim("C12", "§3.4", "a forward pass takes mn + (m+n)r + b²r FLOPs per token", _multiply_adds),
    Claim("C13", "§3.4", "mn + (m+n)r (+ b²r) is also the number of trainable parameters", _count_with_frozen),
    Claim("C14", "App. F", "at the start B = 0 and rank(ΔW) = 0, while Σ' and A' have full rank", _rank_at_start),
    Claim("C15", "§4.3", "without normalisation most entries of Σ remain close to 1", _normalisation),
    Claim("C16", "§3.2", "Exp keeps Σ positive and away from zero", _exponential),
    Claim("C17", "§4.4", "with b = 64 BoRA trains approximately 1.6 times LoRA's parameters", _sixty_four_blocks),
    Claim("C18", "§1, §5", "2–4 % more accuracy than LoRA at similar parameters", _two_to_four),
    Claim("C19", "§3.3", "in practice one can simply set b = ⌊√n⌋", _rule_of_thumb),
    Claim(
        "C20",
        "§3.1",
        "if rank(B_1) = r, B_1⁻¹ exists, and B_2 B_1⁻¹ makes the second block row of the first",
        _row_from_row,
    ),
    Claim("C21", "§4.2", "GLUE: 2 % over LoRA at the same rank", partial(_mean_gain, 1, BORA, "2")),
    Claim(
        "C22",
        "§4.2",
        "GLUE, similar parameters: up to 1 % (Base) and 2 % (Large) over the best baseline",
        _best_baseline,
    ),
    Claim("C23", "§4.2", "mathematical reasoning: on average 2.4 % over LoRA", partial(_mean_gain, 2, BORA, "2.4")),
    Claim("C24", "§4.2", "four times LoRA's rank gains only 1.9 % there", partial(_mean_gain, 2, LORA32, "1.9")),
    Claim("C25", "§4.2", "commonsense reasoning: on average 0.95 % over LoRA", partial(_mean_gain, 3, BORA, "0.95")),
    Claim("C26", "§4.2", "four times LoRA's rank gains only 0.77 % there", partial(_mean_gain, 3, LORA32, "0.77")),
    Claim("C27", "§4.2", "similar accuracy with more than four times fewer parameters", _four_times_fewer),
    Claim("C28", "§4.2", "the best accuracy on GLUE and on commonsense reasoning", _best_accuracy),
    Claim("C29", "§4.3", "leaving out the normalisation hurts more than leaving out Exp", _norm_matters_more),
    Claim("C30", "§4.4", "BoRA outperforms LoRA at every rank, even with b = 2", _two_blocks),
    Claim("C31", "§4.4", "accuracy rises with b, and falls past a threshold where r is large", _more_blocks),
    Claim("C32", "§4.4", "BoRA outperforms LoRA whatever the target modules", _granularity),
    Claim("C33", "App. C.1", "standard deviations are much smaller than BoRA's gain", _deviations),
)


# --- What several claims use


def _draws(
    count: int, *, seed: int, whole: int | None = None, inside: bool = False
) -> Iterator[tuple[Array, Array, Array]]:
    """Random (B, A, σ) of small layers, b = 1 to 4: normal numbers, or whole ones from −whole to whole.

    Whole numbers make ΔW exact in float64, and singular values that are not zero stay far above rounding.
    ``inside``: r ≤ max(m, n)/b.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        b, p, q, r = rng.integers(1, (5, 4, 4, 4))
        r = min(r, max(p, q) * (1 if inside else b))
        shapes = (b * p, r), (r, b * q), (b, b, r)
        if whole is None:
            B, A, sigma = (rng.standard_normal(shape) for shape in shapes)
        else:
            B, A, sigma = (rng.integers(-whole, whole + 1, shape).astype(float) for shape in shapes)
        yield B, A, sigma


def _difference(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(float).tiny))


def _rank(matrix: Array) -> int:
    return int(np.linalg.matrix_rank(matrix))


def _block_by_block(B: Array, A: Array, diagonals: Array) -> Array:
    """ΔW as eq. 4 has it, one block at a time: shares no code with :mod:`bora_analysis.delta`."""
    rows, columns = np.split(B, len(diagonals)), np.split(A, len(diagonals), axis=1)
    return np.block(
        [[rows[i] @ np.diag(diagonals[i, j]) @ columns[j] for j in range(len(columns))] for i in range(len(rows))]
    )


class _Pass(NamedTuple):
    out: Array
    multiplications: int
    additions: int


def _forward_pass(B: Array, A: Array, diagonals: Array, x: Array) -> _Pass:
    """Eq. 8 carried out segment by segment, counting."""
    b, _, r = diagonals.shape
    multiplications = additions = 0
    inner = []
    for A_k, x_k in zip(np.split(A, b, axis=1), np.split(x, b), strict=True):
        inner.append(A_k @ x_k)
        multiplications, additions = multiplications + A_k.size, additions + A_k.size - r
    out = []
    for B_j, row in zip(np.split(B, b), diagonals, strict=True):
        out.append(B_j @ sum(diagonal * u for diagonal, u in zip(row, inner, strict=True)))
        multiplications += b * r + B_j.size
        additions += (b - 1) * r + B_j.size - len(B_j)
    return _Pass(np.concatenate(out), multiplications, additions)


def _initial(m: int, n: int, r: int, b: int) -> dict[str, Array]:
    return Synthetic("bora", {"q": (m, n)}, r, b, kind="init")["q"]


def _initial_sigma(activation: str) -> Array:
    """Σ of a layer as initialised, (b, b, r)."""
    m, n, r, b = QUERY
    raw = _initial(m, n, r, b)
    return bora(raw["B"], raw["A"], raw["sigma"], activation=activation).sigma


def _paper_shapes() -> list[tuple[int, int]]:
    """Every (m, n) that the paper's experiments adapt: QV on RoBERTa, all seven of LLaMA-3-8B (table 8), else QKV."""
    shapes = []
    for name in MODELS:
        target = {"roberta-base": "QV", "roberta-large": "QV", "llama-3-8b": "QKVOGUD"}.get(name, "QKV")
        known = ARCHITECTURES[name]
        shapes += [known.projections[projection][1:] for projection in targets(target, architecture(name))]
    return list(dict.fromkeys(shapes))


def _price(m: int, n: int) -> dict[int, float]:
    """b → parameters per unit of rank, for every b that divides m and n."""
    rank = max(common_divisors([m, n]))
    return {b: cost("bora", m, n, rank // b, blocks=b).parameters / rank for b in common_divisors([m, n])}


def _averages(numbers: Sequence[int]) -> dict[tuple[int, str], dict[tuple[str, int, int], float]]:
    """(table, model) → (method, r, blocks) → Avg."""
    out: dict[tuple[int, str], dict[tuple[str, int, int], float]] = {}
    for k in numbers:
        frame = table(k)
        for row in frame[frame["task"] == "Avg"].to_dict("records"):
            out.setdefault((k, row["model"]), {})[row["method"], row["r"], row["blocks"]] = row["value"]
    return out


def _gains(setting: tuple[str, int, int]) -> dict[tuple[int, str], float]:
    """(table, model) → points that a setting gains over LoRA r = 8, tables 1–3."""
    return {key: runs[setting] - runs[LORA] for key, runs in _averages([1, 2, 3]).items()}


def _listed(values: dict[tuple[int, str], float], form: str = ".2f") -> str:
    return ", ".join(f"{MODELS[model]} {BENCHMARKS[k]} {value:{form}}" for (k, model), value in values.items())


def _range(values: Sequence[float], form: str = ".2f") -> str:
    if not values:
        return "nothing"
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def _spread(values: Array) -> str:
    return f"{values.min():.3f}–{values.max():.3f} (std {values.std():.3f})"
