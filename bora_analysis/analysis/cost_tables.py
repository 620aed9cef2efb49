"""What an adapter would cost on a model, as frames: for the command ``cost`` and the dashboard's page on budgets."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..catalogue import METHODS, check_may_pad, costed, in_words, may_pad
from ..catalogue.architectures import Matrices
from ..catalogue.cost import cost, step_products
from ..catalogue.methods import THROUGH
from ..catalogue.sizes import PADS, check_blocks
from .budget import Choice, within_budget
from .optimal_blocks import Blocks, optimal_blocks, shared_blocks

COST_COLUMNS = (
    "model", "projection", "method", "r", "blocks", "out_features", "in_features", "layers",
    "parameters", "macs_per_token", "rank_bound", "macs_per_pass", "overhead", "forward_flops", "backward_flops",
)  # fmt: skip
BLOCK_COLUMNS = (
    "model", "projection", "out_features", "in_features", "layers", "blocks", "parameters_per_rank", "best",
    "optimum", "paper_rule", "paper_rule_valid",
)  # fmt: skip


def cost_table(
    model: str,
    parts: Sequence[Matrices],
    methods: Sequence[str],
    r: int,
    blocks: int,
    experts: int | None = None,
    *,
    pad: bool = False,
) -> pd.DataFrame:
    """One row per method and projection, summed over its layers; ``rank_bound`` is that of one matrix.

    ``overhead`` is macs_per_token as a share of the frozen layers' multiply-adds. ``forward_flops`` and
    ``backward_flops`` are those per token that the products of the adapter's matrices take in training, as torch counts
    them (missing where they are not known, see :func:`~bora_analysis.catalogue.cost.step_products`). ``pad``: where a
    method allows it, b need not divide the sizes.

    Raises
    ------
    ValueError
        b does not divide the sizes, no method may be padded, or r is above the full rank of a projection.

    Examples
    --------
    >>> from bora_analysis.catalogue.architectures import matrices
    >>> cost_table("roberta-base", matrices("roberta-base")[:1], ["lora", "bora"], 8, 16)["parameters"].tolist()
    [147456, 172032]
    """
    rows_of = [METHODS[method] for method in methods]
    if pad:
        check_may_pad(methods)
    if cut := [row for row in rows_of if row.cut and not (pad and may_pad(row))]:
        sizes = [(part.out_features, part.in_features) for part in parts]
        check_blocks(blocks, sizes, PADS if all(map(may_pad, cut)) else "")
    largest = min(min(part.out_features, part.in_features) for part in parts)
    if r > largest and any(row.ranked and not (row.cost and row.cost.any_rank) for row in rows_of):
        smallest = next(p for p in parts if largest in (p.out_features, p.in_features))
        raise ValueError(
            f"r = {r} is above the full rank of {smallest.projection} "
            f"({smallest.out_features}×{smallest.in_features}); r may be 1 to {largest}"
        )
    records = []
    for row in rows_of:
        own, count = blocks if row.cut or row.staged else 1, experts if row.experts else None
        for projection, m, n, layers in parts:
            padded = pad and may_pad(row)
            one = cost(row.name, m, n, r, blocks=own, experts=count, pad=padded)
            sums = one.parameters * layers, one.macs_per_token * layers
            sizes = model, projection, row.name, r, own, m, n, layers
            known = step_products(row.name, m, n, r, blocks=own, experts=count, pad=padded)
            passes = [2 * layers * k for k in (known.forward, known.backward + known.inputs)] if known else [None] * 2
            whole = one.macs_per_pass * layers, one.macs_per_token / (m * n)
            records.append((*sizes, *sums, one.rank_bound, *whole, *passes))
    frame = pd.DataFrame.from_records(records, columns=list(COST_COLUMNS))
    return frame.astype(dict.fromkeys(COST_COLUMNS[-2:], "Int64"))


def budget_table(
    model: str,
    parts: Sequence[Matrices],
    budget: int,
    *,
    methods: Sequence[str] | None = None,
    at_least: float = 0.9,
    experts: int | None = None,
    pad: bool = False,
) -> pd.DataFrame:
    """One row per method, r and b that the budget buys, by rank bound; see :func:`within_budget`.

    Columns: model, target, those of :class:`Choice`, and ``share`` of the budget.
    """
    methods = costed() if methods is None else methods
    found = within_budget(shapes_of(parts), budget, methods=methods, at_least=at_least, experts=experts, pad=pad)
    frame = pd.DataFrame.from_records(found, columns=list(Choice._fields))
    frame.insert(0, "model", model)
    frame.insert(1, "target", " ".join(dict.fromkeys(part.projection for part in parts)))
    return frame.assign(share=frame["parameters"] / budget)


def best_blocks(parts: Sequence[Matrices]) -> dict[str, Blocks]:
    """Names of the projections of one shape → its best b; ``"all"``: one b for all, where shapes differ."""
    names: dict[tuple[int, int], list[str]] = {}
    for part in parts:
        names.setdefault((part.out_features, part.in_features), []).append(part.projection)
    found = {" ".join(dict.fromkeys(own)): optimal_blocks(*shape) for shape, own in names.items()}
    return found | ({"all": shared_blocks(shapes_of(parts))} if len(found) > 1 else {})


def block_table(model: str, parts: Sequence[Matrices]) -> pd.DataFrame:
    """One row per shape and b: N(b)/R, what BoRA takes per unit of rank (paper §3.3)."""
    counts: dict[tuple[int, int], int] = {}
    for shape in shapes_of(parts):
        counts[shape] = counts.get(shape, 0) + 1
    records = []
    for name, best in best_blocks(parts).items():
        matrices = len(best.shapes)
        m, n = (None, None) if name == "all" else best.shapes[0]
        layers = matrices if name == "all" else counts[best.shapes[0]]
        for b in best.valid:
            price = float(best.parameters(b) / matrices)
            rule = best.paper, best.paper in best.valid
            records.append((model, name, m, n, layers, b, price, b in best.best, best.optimum, *rule))
    frame = pd.DataFrame.from_records(records, columns=list(BLOCK_COLUMNS))
    return frame.astype(dict.fromkeys(("out_features", "in_features", "paper_rule"), "Int64"))


def shapes_of(parts: Sequence[Matrices]) -> list[tuple[int, int]]:
    """(m, n) of every matrix."""
    return [(part.out_features, part.in_features) for part in parts for _ in range(part.layers)]


def notes(methods: Sequence[str]) -> list[str]:
    """What must be said wherever the parameters or bounds of these methods stand."""
    rows = [METHODS[method] for method in methods]
    lines = [row.cost.beside for row in rows if row.cost and row.cost.beside]
    frozen = in_words([row.label for row in rows if row.needs_base and row.core == THROUGH])
    if frozen:
        verb, who = ("reaches", "it trains") if " " not in frozen else ("reach", "they train")
        lines.append(f"{frozen} {verb} the bound only through the frozen W, not by what {who}.")
    return lines + [f"Stages of {row.label}: {row.cost.stages}." for row in rows if row.cost and row.cost.stages]
