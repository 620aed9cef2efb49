"""Claims on parameters and multiply-adds (§3.3, §3.4, §4.4)."""

from __future__ import annotations

import math

import numpy as np

from ...catalogue.architectures import architecture, chosen
from ...catalogue.cost import cost
from ...catalogue.sizes import common_divisors
from ...style import MODELS
from ...updates.blocks import bora, lora
from ..tables import parameters
from .common import QUERY, SAME, Finding, claim, forward_pass, span, verdict


@claim("C9", "abstract, §3.3", "b times the rank for only b²r more parameters")
def extra_parameters() -> Finding:
    wrong = cases = 0
    for m, n in paper_shapes():
        for b in (b for b in common_divisors([m, n]) if b <= 64):
            for r in (2, 8, 64):
                plain, ours = cost("lora", m, n, r), cost("bora", m, n, r, blocks=b)
                extra, bound = ours.parameters - plain.parameters, min(m, n, b * plain.rank_bound)
                wrong, cases = wrong + (extra != b * b * r or ours.rank_bound != bound), cases + 1
    m, n, r, b = QUERY
    plain, ours = cost("lora", m, n, r), cost("bora", m, n, r, blocks=b)
    extra = ours.parameters - plain.parameters
    return Finding(
        verdict(wrong == 0),
        f"{cases} settings of the paper's layers: {wrong} differ; {m}×{n}, r = {r}, b = {b}: {extra:,} more than "
        f"{plain.parameters:,} ({extra / plain.parameters:.1%}) for a bound of {ours.rank_bound} instead of {r}",
    )


@claim("C10", "§3.3", "for rank br LoRA needs (m+n)(b²r) parameters")
def lora_for_rank_br() -> Finding:
    agree = cases = 0
    for m, n in paper_shapes():
        for r, b in ((2, 2), (8, 8), (8, 16)):
            agree, cases = agree + (_lora_reaching(m, n, b * r) == (m + n) * b * b * r), cases + 1
    m, n, r, b = QUERY
    needed, printed = _lora_reaching(m, n, b * r), (m + n) * b * b * r
    return Finding(
        verdict(agree == cases, agree > 0),
        f"right in {agree} of {cases} settings; {m}×{n}, r = {r}, b = {b}: LoRA's bound is {b * r} with {needed:,} "
        f"parameters, (m+n)br, and the formula gives {printed:,}, {printed / needed:g} times as many",
    )


def _lora_reaching(m: int, n: int, rank: int) -> int:
    """Parameters of the smallest LoRA whose rank bound is ``rank``."""
    return next(c.parameters for k in range(1, rank + 1) if (c := cost("lora", m, n, k)).rank_bound >= rank)


@claim("C11", "§3.3", "N(b) = R((m+n)/b + b), for rank R = br, is least at b = √(m+n)")
def best_blocks() -> Finding:
    shapes = [*paper_shapes(), (2048, 2048), (1024, 3072)]  # in the last two √(m+n) = 64 divides m and n
    right = met = 0
    for m, n in shapes:
        price, root = price_per_rank(m, n), math.sqrt(m + n)
        best = [b for b, value in price.items() if value == min(price.values())]
        beside = [max((b for b in price if b <= root), default=1), min((b for b in price if b >= root), default=1)]
        right += all(b in beside for b in best) and min(price.values()) >= 2 * root * (1 - SAME)
        met += best == [root]
    price = price_per_rank(4096, 4096)
    tie = [b for b, value in price.items() if value == min(price.values())]
    return Finding(
        verdict(right == len(shapes) and met > 0),
        f"in {right} of {len(shapes)} shapes the best b is a divisor next to √(m+n), in {met} √(m+n) itself; "
        f"4096×4096: √(m+n) = {math.sqrt(8192):.1f}, best b = {' and '.join(map(str, tie))}",
    )


@claim("C19", "§3.3", "in practice one can simply set b = ⌊√n⌋")
def rule_of_thumb() -> Finding:
    fits, misfits = {}, []
    for m, n in paper_shapes():
        rule, price = math.isqrt(n), price_per_rank(m, n)
        if rule in price:
            fits[f"{m}×{n}"] = price[rule] / (2 * math.sqrt(m + n)) - 1, price[rule] == min(price.values())
        else:
            misfits.append(f"{m}×{n} ({rule})")
    best = sum(least for _, least in fits.values())
    worst = max(fits, key=lambda shape: fits[shape][0]) if fits else "none"
    return Finding(
        verdict(not misfits and best == len(fits), best > 0),
        f"⌊√n⌋ divides m and n in {len(fits)} of {len(fits) + len(misfits)} shapes that the paper adapts, not in "
        f"{', '.join(misfits)}; where it does, it is the best divisor in {best}, and N is at most "
        f"{fits[worst][0] if fits else 0:.0%} above that of b = √(m+n) ({worst})",
    )


@claim("C12", "§3.4", "a forward pass takes mn + (m+n)r + b²r FLOPs per token")
def multiply_adds() -> Finding:
    m, n, r, b = 48, 32, 3, 4
    rng = np.random.default_rng(12)
    done = forward_pass(
        rng.standard_normal((m, r)), rng.standard_normal((r, n)), np.ones((b, b, r)), rng.standard_normal(n)
    )
    claimed, library = (m + n) * r + b * b * r, cost("bora", m, n, r, blocks=b).macs_per_token
    as_flops = done.multiplications + done.additions == claimed
    as_macs = done.multiplications == claimed == library
    return Finding(
        verdict(as_flops, as_macs),
        f"eq. 8 carried out for {m}×{n}, r = {r}, b = {b} takes {done.multiplications} multiplications and "
        f"{done.additions} additions beyond W X; (m+n)r + b²r is {claimed}: one FLOP per multiply-add; the "
        "usual convention counts two",
    )


@claim("C13", "§3.4", "mn + (m+n)r (+ b²r) is also the number of trainable parameters")
def count_with_frozen() -> Finding:
    m, n, r, b = QUERY
    trained = {
        "LoRA": (lora(np.zeros((m, r)), np.zeros((r, n))).facts.parameters, m * n + (m + n) * r),
        "BoRA": (
            bora(np.zeros((m, r)), np.zeros((r, n)), np.zeros((b, b, r))).facts.parameters,
            m * n + (m + n) * r + b * b * r,
        ),
    }
    right = [count == printed for count, printed in trained.values()]
    shown = "; ".join(f"{name} trains {count:,}, printed {printed:,}" for name, (count, printed) in trained.items())
    frozen = all(printed - count == m * n for count, printed in trained.values())
    return Finding(
        verdict(all(right), any(right)),
        f"{m}×{n}, r = {r}, b = {b}: {shown}" + ("; the difference is the frozen mn" if frozen else ""),
    )


@claim("C17", "§4.4", "with b = 64 BoRA trains approximately 1.6 times LoRA's parameters")
def sixty_four_blocks() -> Finding:
    ratios = [
        parameters("llama-3-8b", "bora", r, 64, "QKV") / parameters("llama-3-8b", "lora", r, 1, "QKV")
        for r in (2, 4, 8, 16, 32, 64)
    ]
    rounded, cut = {round(ratio, 1) for ratio in ratios}, {math.floor(ratio * 10) / 10 for ratio in ratios}
    return Finding(
        verdict(rounded == {1.6}, cut == {1.6}),
        f"LLaMA-3-8B, QKV, every r: {span(ratios, '.3f')} times, {max(rounded)} when rounded and {max(cut)} when cut "
        f"off; {max(ratios) - 1:.0%} more",
    )


def paper_shapes() -> list[tuple[int, int]]:
    """Every (m, n) that the paper's experiments adapt: QV on RoBERTa, all seven of LLaMA-3-8B (table 8), else QKV."""
    shapes = []
    for name in MODELS:
        target = {"roberta-base": "QV", "roberta-large": "QV", "llama-3-8b": "QKVOGUD"}.get(name, "QKV")
        known = architecture(name)
        shapes += [known.projections[projection][1:] for projection in chosen(target, known.projections)]
    return list(dict.fromkeys(shapes))


def price_per_rank(m: int, n: int) -> dict[int, float]:
    """b → parameters per unit of rank, for every b that divides m and n."""
    rank = max(common_divisors([m, n]))
    return {b: cost("bora", m, n, rank // b, blocks=b).parameters / rank for b in common_divisors([m, n])}
