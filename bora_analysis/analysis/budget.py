"""What a budget of trained parameters buys: every method, r and b that fits."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from ..catalogue import METHODS, Method, check_may_pad, costed, may_pad
from ..catalogue.cost import cost
from ..catalogue.sizes import common_divisors
from .optimal_blocks import check_shapes


class Choice(NamedTuple):
    """An adapter that a budget may buy: a method at r and b on all matrices, and what it costs there in all."""

    method: str
    r: int
    blocks: int
    parameters: int
    macs_per_token: int
    #: Mean over the matrices.
    rank_bound: float
    #: Σ rank bounds / Σ parameters.
    bound_per_parameter: float

    @property
    def settings(self) -> str:
        """Its r and b, without those that the method does not have: "r = 8, b = 16"."""
        row = METHODS[self.method]
        return ", ".join([f"r = {self.r}"] * row.ranked + [f"b = {self.blocks}"] * row.cut)


def within_budget(
    shapes: Sequence[tuple[int, int]],
    budget: int,
    *,
    methods: Sequence[str] | None = None,
    at_least: float = 0.9,
    experts: int | None = None,
    pad: bool = False,
) -> list[Choice]:
    """Every (method, r, b) whose parameters lie between ``at_least`` · budget and the budget.

    r runs over the powers of two, three times these, and the largest r that fits, up to the smallest min(m, n); b over
    the divisors ≥ 2 that all sizes share (1 for the methods without blocks). Methods without r have r = 1;
    those that split r among their blocks only multiples of b.

    Parameters
    ----------
    shapes : (m, n) of the adapted matrices, one entry per matrix.
    budget : trained parameters of the whole adapter.
    at_least : share of the budget that has to be used; 0 for everything below it.
    methods : default all of :func:`bora_analysis.catalogue.costed`.
    experts : K of the methods with a router, see :func:`bora_analysis.catalogue.cost.cost`.
    pad : BoRA with every b ≥ 2, also where the layers must be padded.

    Returns
    -------
    Sorted by rank bound, the highest first, then by parameters, the fewest first.

    Raises
    ------
    ValueError
        Nothing fits; the message names the nearest below and above. No method may be padded.

    Examples
    --------
    >>> best = within_budget([(768, 768)] * 24, 300_000, methods=["lora", "bora"])[0]
    >>> best.method, best.r, best.blocks, best.rank_bound, best.parameters
    ('bora', 3, 48, 144.0, 276480)
    """
    check_shapes(shapes)
    if budget < 1:
        raise ValueError(f"budget is {budget}; expected at least 1 parameter")
    if not 0 <= at_least <= 1:
        raise ValueError(f"at_least is {at_least}; expected a share of the budget between 0 and 1")
    methods = costed() if methods is None else methods
    if pad:
        check_may_pad(methods)
    every = _choices(shapes, budget, methods, experts, pad)
    found = [choice for choice in every if at_least * budget <= choice.parameters <= budget]
    if not found:
        below = max((c for c in every if c.parameters <= budget), key=lambda c: c.parameters, default=None)
        above = min((c for c in every if c.parameters > budget), key=lambda c: c.parameters, default=None)
        near = " and ".join(
            f"{f'{c.method} {c.settings}'.rstrip()} with {c.parameters:,}" for c in (below, above) if c is not None
        )
        raise ValueError(f"nothing takes {ceil(at_least * budget):,} to {budget:,} parameters; the nearest: {near}")
    return sorted(found, key=lambda c: (-c.rank_bound, c.parameters))


def _choices(
    shapes: Sequence[tuple[int, int]], budget: int, methods: Sequence[str], experts: int | None, pad: bool
) -> list[Choice]:
    counts = Counter(shapes)
    top = min(min(shape) for shape in shapes)
    usual = sorted(r for k in range(top.bit_length()) for r in (2**k, 3 * 2**k) if r <= top)
    shared = common_divisors(size for shape in counts for size in shape)[1:]
    out: dict[tuple[object, ...], Choice] = {}
    for method in methods:
        row = METHODS[method]
        padded = pad and may_pad(row)
        for b in range(2, top + 1) if padded else shared if row.cut else (1,):

            def choice(r: int, row: Method = row, b: int = b, padded: bool = padded) -> Choice:
                method, count = row.name, experts if row.experts else None
                each = [(k, cost(method, m, n, r, blocks=b, experts=count, pad=padded)) for (m, n), k in counts.items()]
                once = row.cost.shared if row.cost else 0
                parameters = sum(k * c.parameters for k, c in each) + once
                bounds = sum(k * c.rank_bound for k, c in each)
                macs = sum(k * c.macs_per_token for k, c in each)
                return Choice(method, r, b, parameters, macs, bounds / len(shapes), bounds / parameters)

            step = b if row.splits else 1
            possible = range(step, top + 1, step)
            largest = bisect_right(possible, budget, key=lambda r: choice(r).parameters)
            for r in sorted({*usual, step * max(largest, 1)} & set(possible)):
                found = choice(r)
                # LoKr stops growing at some r, others have none: the first one stands for the rest.
                out.setdefault((method, b, *found[3:]), found)
            if padded and choice(1).parameters > budget:
                break  # more blocks cost more
    return list(out.values())
