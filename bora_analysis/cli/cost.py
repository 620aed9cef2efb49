"""The command cost: what an adapter costs before it is trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..cost import ALSO, BANK, BLOCK_METHODS, BYTES, EXPERT_METHODS, METHODS, NO_RANK, SPLIT, memory
from .common import FORMATS, usage

if TYPE_CHECKING:
    import pandas as pd

    from ..architectures import Matrices

RECORD = (
    "model", "projection", "method", "r", "blocks", "out_features", "in_features", "layers",
    "parameters", "macs_per_token", "rank_bound",
)  # fmt: skip


class _Count(click.ParamType):
    """A number of parameters: 5000000, 500k, 4.72M, 1G."""

    name = "count"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([kmg]?)", str(value).replace(",", "").replace("_", "").lower())
        number = int(Decimal(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2]]) if match else 0
        if number < 1:
            self.fail(f"{value!r} is no number of parameters; expected e.g. 4718592, 500k or 4.72M", param, ctx)
        return number


@click.command()
@click.option(
    "--model",
    default="llama-3-8b",
    show_default=True,
    metavar="NAME|DIR|ID",
    help="A known model, a folder with a config.json of transformers, or a Hub id.",
)
@click.option("--target", default="qkv", show_default=True, help="Projections: letters of QKVOGUD, names,names or all.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice([*METHODS, *ALSO, "all"], case_sensitive=False),
    help="May be given again to compare, or all.  [default: bora; all with --budget]",
)
@click.option("-r", "--rank", type=click.IntRange(min=1), help="r, the same for all methods.  [default: 8]")
@click.option("--blocks", type=click.IntRange(min=1), help="b of BoRA, minis of MELoRA and so on.  [default: 8]")
@click.option("--experts", type=click.IntRange(min=1), help="Experts of HydraLoRA and MoELoRA.  [default: 3 and 8]")
@click.option("--budget", type=_Count(), help="Instead: every (method, r, b) that so many parameters buy, e.g. 5M.")
@click.option(
    "--at-least",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="Share of the budget that must be used.",
)
@click.option(
    "--top", type=click.IntRange(min=0), default=20, show_default=True, help="Rows of a --budget table; 0: all."
)
@click.option("--optimal-blocks", is_flag=True, help="Instead: N(b), what BoRA takes per unit of rank, and the best b.")
@click.option(
    "--dtype", type=click.Choice(list(BYTES)), default="float32", show_default=True, help="For the memory in the table."
)
@click.option("--master", is_flag=True, help="Memory with a float32 copy of the weights and float32 moments.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write the records there, in the format of --format (or csv).")
def cost(
    model: str,
    target: str,
    methods: tuple[str, ...],
    rank: int | None,
    blocks: int | None,
    experts: int | None,
    budget: int | None,
    at_least: float,
    top: int,
    optimal_blocks: bool,
    dtype: str,
    master: bool,
    form: str,
    output: str | None,
) -> None:
    """Parameters, multiply-adds, memory and rank bound of an adapter, before it is trained.

    One record per projection, summed over its layers; rank_bound is that of one matrix. With --budget one record per
    (method, r, b), with --optimal-blocks one per shape and b.
    """
    if form == "parquet" and output is None:
        raise click.UsageError("parquet is no text: give a file with -o FILE")
    if budget is not None and (optimal_blocks or rank is not None or blocks is not None):
        raise click.UsageError("--budget finds r and b by itself; leave out -r, --blocks and --optimal-blocks")
    if optimal_blocks and (methods or rank is not None or blocks is not None):
        raise click.UsageError("--optimal-blocks is about BoRA at any r; leave out --method, -r and --blocks")
    named = tuple(dict.fromkeys(methods)) or (("all",) if budget is not None else ("bora",))
    wished = METHODS if "all" in named else named
    if "all" in named and budget is None and (rank or 8) % (blocks or 8):
        wished = tuple(method for method in METHODS if method not in SPLIT)
        click.echo(
            f"note: {', '.join(map(_label, SPLIT))} are left out: they split r among the blocks, and {rank or 8} is no "
            f"multiple of {blocks or 8}",
            err=True,
        )
    limited = (("--blocks", blocks, BLOCK_METHODS), ("--experts", experts, tuple(EXPERT_METHODS)))
    for option, value, concerned in limited:
        if value is not None and not set(wished) & set(concerned):
            raise click.UsageError(f"{option} concerns {' and '.join(concerned)}, not {', '.join(wished)}")
    from ..architectures import ARCHITECTURES, chosen, matrices
    from ..report import text, write

    with usage():
        known = matrices(model)
        order = chosen(target, (part.projection for part in known))
        parts = sorted((part for part in known if part.projection in order), key=lambda p: order.index(p.projection))
        name = model.lower() if model.lower() in ARCHITECTURES else model
        title = f"{name}, {' '.join(order)}"
        if budget is not None:
            frame, shown = _within(name, parts, title, budget, wished, at_least, experts, top)
        elif optimal_blocks:
            frame, shown = _best_blocks(name, parts, title)
        else:
            r, b = rank or 8, blocks or 8
            frame, shown = _costs(name, parts, title, wished, r, b, experts, dtype, master)
        if output is not None:
            write(frame, Path(output), "csv" if form == "table" else form)
    if form == "table":
        click.echo(shown)
    elif output is None:
        click.echo(text(frame, form), nl=False)


def _costs(
    model: str,
    parts: Sequence[Matrices],
    title: str,
    methods: Sequence[str],
    r: int,
    b: int,
    experts: int | None,
    dtype: str,
    master: bool,
) -> tuple[pd.DataFrame, str]:
    import pandas as pd

    from ..cost import check_blocks
    from ..cost import cost as cost_of
    from ..report import grid

    if set(methods) & set(BLOCK_METHODS):
        check_blocks(b, [(part.out_features, part.in_features) for part in parts])
    largest = min(min(part.out_features, part.in_features) for part in parts)
    if r > largest and set(methods) - {"vera", "lokr", *NO_RANK}:  # VeRA's r may be anything; LoKr's stops to matter
        smallest = next(p for p in parts if largest in (p.out_features, p.in_features))
        raise ValueError(
            f"r = {r} is above the full rank of {smallest.projection} "
            f"({smallest.out_features}×{smallest.in_features}); r may be 1 to {largest}"
        )
    records, per_pass = [], dict.fromkeys(methods, 0)
    for method in methods:
        own = b if method in BLOCK_METHODS else 1
        count = experts if method in EXPERT_METHODS else None
        for part in parts:
            m, n, layers = part.out_features, part.in_features, part.layers
            each = cost_of(method, m, n, r, blocks=own, experts=count)
            sums = each.parameters * layers, each.macs_per_token * layers
            records.append((model, part.projection, method, r, own, m, n, layers, *sums, each.rank_bound))
            per_pass[method] += each.macs_per_pass * layers
    frame = pd.DataFrame.from_records(records, columns=list(RECORD))
    settings = [f"r = {r}"]
    if set(methods) & set(BLOCK_METHODS):
        settings.append(f"b = {b}")
    for method in methods:
        if method in EXPERT_METHODS:
            settings.append(f"{experts or EXPERT_METHODS[method]} experts ({_label(method)})")
    if len(methods) == 1:
        heads = ["projection", "out×in", "layers", "parameters", "MACs/token", "bound"]
        rows = [
            [p, f"{m}×{n}", f"{k}", f"{size:,}", f"{macs:,}", f"{bound:,}"]
            for _, p, _, _, _, m, n, k, size, macs, bound in records
        ]
        total, macs = int(frame["parameters"].sum()), int(frame["macs_per_token"].sum())
        rows.append(["total", "", f"{frame['layers'].sum()}", f"{total:,}", f"{macs:,}", _span(frame["rank_bound"])])
        lines = [f"{title}: {_label(methods[0])}, {', '.join(settings)}", grid(heads, _columns(rows)), ""]
        lines += [f"Training memory: {_memory(total, dtype, master)},", "without activations and the frozen model."]
        flops = f": here {2 * macs:,}"
    else:
        heads = ["method", "parameters", "MACs/token", "FLOPs/token", "bound", "memory"]
        rows = []
        for method, part in frame.groupby("method", sort=False):
            total, macs = int(part["parameters"].sum()), int(part["macs_per_token"].sum())
            size = _bytes(memory(total, dtype, master=master).total)
            rows.append(
                [_label(str(method)), f"{total:,}", f"{macs:,}", f"{2 * macs:,}", _span(part["rank_bound"]), size]
            )
        lines = [f"{title}: {', '.join(settings)}", grid(heads, _columns(rows)), ""]
        state = f"AdamW's state{' with a float32 copy' if master else ''}"
        lines.append(f"memory: weights, gradients and {state} in {dtype}, without activations and the frozen model.")
        flops = ""
    lines.append(
        f"MACs: multiply-adds per token beyond the frozen layers, the paper's FLOPs; FLOPs at two for each{flops}."
    )
    once = [f"{_label(method)} {_short(value)}" for method, value in per_pass.items() if value]
    if once:
        lines.append(f"Multiply-adds once per forward pass besides: {', '.join(once)}.")
    lines += _bank(methods)
    lines.append("bound: most that the rank of one ΔW can be.")
    return frame, "\n".join(lines)


def _within(
    model: str,
    parts: Sequence[Matrices],
    title: str,
    budget: int,
    methods: Sequence[str],
    at_least: float,
    experts: int | None,
    top: int,
) -> tuple[pd.DataFrame, str]:
    import pandas as pd

    from ..cost import Choice, within_budget
    from ..report import grid

    shapes = [(part.out_features, part.in_features) for part in parts for _ in range(part.layers)]
    found = within_budget(shapes, budget, methods=methods, at_least=at_least, experts=experts)
    frame = pd.DataFrame.from_records(found, columns=list(Choice._fields))
    frame.insert(0, "model", model)
    frame.insert(1, "target", " ".join(dict.fromkeys(part.projection for part in parts)))
    shown = found[: top or None]
    rows = [
        [
            _label(c.method), "·" if c.method in NO_RANK else f"{c.r}",
            f"{c.blocks}" if c.method in BLOCK_METHODS else "·", f"{c.parameters:,}",
            f"{c.parameters / budget:.1%}", f"{c.rank_bound:,.5g}", f"{1000 * c.bound_per_parameter:.3g}",
            f"{c.macs_per_token:,}",
        ]
        for c in found[: top or None]
    ]  # fmt: skip
    heads = ["method", "r", "b", "parameters", "of budget", "bound", "per 1k params", "MACs/token"]
    number = f"the first {len(shown)} of {len(found)}" if len(shown) < len(found) else f"{len(found)}"
    return frame, "\n".join([
        f"{title}: {number} that take {at_least:.0%} to 100% of {budget:,} parameters",
        grid(heads, _columns(rows)),
        "",
        "r: powers of two, 3·2^k, and the largest that fits. bound: most that the rank of one ΔW can be, mean over the",
        "matrices; per 1k params: their sum for 1,000 parameters. DoRA and HiRA reach it only through the frozen W.",
        "MACs: multiply-adds per token beyond the frozen layers, which the paper calls FLOPs.",
        *_bank({choice.method for choice in shown}),
    ])  # fmt: skip


def _bank(methods: Iterable[str]) -> list[str]:
    """The line that VB-LoRA needs wherever its parameters stand."""
    return [f"VB-LoRA trains a bank of {BANK:,} numbers besides, once for all matrices."] * ("vblora" in methods)


def _best_blocks(model: str, parts: Sequence[Matrices], title: str) -> tuple[pd.DataFrame, str]:
    import pandas as pd

    from ..cost import optimal_blocks, shared_blocks
    from ..report import grid

    names: dict[tuple[int, int], list[str]] = {}
    counts: dict[tuple[int, int], int] = {}
    for part in parts:
        shape = part.out_features, part.in_features
        names.setdefault(shape, []).append(part.projection)
        counts[shape] = counts.get(shape, 0) + part.layers
    found = {" ".join(names[shape]): optimal_blocks(*shape) for shape in names}
    if len(found) > 1:
        found["all"] = shared_blocks([shape for shape, count in counts.items() for _ in range(count)])
    records: list[tuple[object, ...]] = []
    rows: list[list[str]] = []
    for name, best in found.items():
        m, n = (None, None) if name == "all" else best.shapes[0]
        layers = len(best.shapes) if name == "all" else counts[best.shapes[0]]
        matrices = len(best.shapes)
        for b in best.valid:
            each = float(best.parameters(b) / matrices)
            records.append(
                (model, name, m, n, layers, b, each, b in best.best, best.optimum, best.paper, best.paper in best.valid)
            )
        paper = "·" if best.paper is None else f"{best.paper}{'' if best.paper in best.valid else ' (not valid)'}"
        rows.append([
            name, "·" if m is None else f"{m}×{n}", f"{layers}", f"{best.optimum:.2f}", paper,
            f"{', '.join(map(str, best.best))}{' (tie)' if len(best.best) > 1 else ''}",
            f"{float(best.parameters(min(best.best)) / matrices):,.6g}",
        ])  # fmt: skip
    columns = [
        "model", "projection", "out_features", "in_features", "layers", "blocks", "parameters_per_rank", "best",
        "optimum", "paper_rule", "paper_rule_valid",
    ]  # fmt: skip
    frame = pd.DataFrame.from_records(records, columns=columns)
    frame = frame.astype(dict.fromkeys(("out_features", "in_features", "paper_rule"), "Int64"))
    curve: list[list[str]] = []
    for b in sorted({b for best in found.values() for b in best.valid}):
        cells = []
        for best in found.values():
            value = f"{float(best.parameters(b) / len(best.shapes)):,.6g}" if b in best.valid else "·"
            cells.append(f"{value}*" if b in best.best else value)
        curve.append([f"{b}", *cells])
    lines = [
        f"{title}: the b with which BoRA reaches a rank R = br most cheaply",
        grid(["projection", "out×in", "layers", "√(m+n)", "⌊√n⌋", "best b", "N(b)/R"], _columns(rows)),
        "",
        "N(b)/R = (m+n)/b + b, parameters of one matrix per unit of rank, for every b that divides m and n; *: least",
        grid(["b", *found], _columns(curve)),
        "",
        "√(m+n): where N(b) is least for real b; ⌊√n⌋: the paper's practical rule (§3.3).",
    ]
    if "all" in found:
        lines[-1] += "\nall: one b for all matrices; N(b)/R is the mean over them."
    return frame, "\n".join(lines)


def _memory(parameters: int, dtype: str, master: bool) -> str:
    size = memory(parameters, dtype, master=master)
    state = "AdamW's moments and float32 copy" if master else "AdamW's moments"
    return (
        f"weights {_bytes(size.weights)}, gradients {_bytes(size.gradients)}, {state} {_bytes(size.optimizer)}: "
        f"{_bytes(size.total)} in {dtype}{' and float32' if master else ''}"
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _label(method: str) -> str:
    from ..style import method_look

    return method_look(method).label


def _span(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _bytes(size: int) -> str:
    return f"{_short(size)}B"


def _short(value: float) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} "
