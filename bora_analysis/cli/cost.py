"""The command that computes the cost of an adapter before it is trained."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

import click

from .. import catalogue
from ..catalogue import METHODS
from ..catalogue.cost import BYTES, OPTIMIZERS, Memory, memory
from .common import POSITIVE, command, note, usage
from .names import Named, Several, flat
from .output import RECORDS, Output, output

if TYPE_CHECKING:
    import pandas as pd

    from .grid import Column, Page


class Batch(click.ParamType):
    """A batch: 32x64, 32 examples of 64 tokens."""

    name = "BxL"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,6})", str(value))
        if match is None:
            self.fail(f"{value!r} is no batch; expected EXAMPLESxTOKENS, e.g. 32x64", param, ctx)
        return int(match[1]), int(match[2])


class _Count(click.ParamType):
    """A number of parameters: 5000000, 500k, 4.72M, 1G."""

    name = "count"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([kmg]?)", str(value).replace(",", "").replace("_", "").lower())
        number = int(Decimal(match[1]) * {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}[match[2]]) if match else 0
        if number < 1:
            self.fail(f"{value!r} is not a number of parameters; expected e.g. 4718592, 500k or 4.72M", param, ctx)
        return number


@command(
    "cost --model llama-3-8b --target qkv --method bora -r 8 --blocks 16",
    "cost --model roberta-base --target qv --budget 500k",
    "cost --model llama-3-8b --step 4x512 --base nf4 --checkpointing",
)
@click.option(
    "--model",
    default="llama-3-8b",
    metavar="NAME|DIR|ID",
    help="A known model, a folder with a transformers config.json, or a Hub id.",
)
@click.option(
    "--target", default="qkv", help="Projections: letters of QKVOGUD, names with commas between them, or all."
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=Several(Named([*catalogue.costed(every=True), "all"])),
    callback=flat,
    help="Several to compare, with commas or repeated; or all.  [default: bora; all with --budget]",
)
@click.option("-r", "--rank", type=POSITIVE, help="r, for every method.  [default: 8]")
@click.option(
    "--blocks",
    type=POSITIVE,
    help="Into how many blocks or minis a method cuts the layer, or the stages of ReLoRA.  [default: 8]",
)
@click.option(
    "--pad",
    is_flag=True,
    help="BoRA with a --blocks that need not divide the layers; its rank bound may be lower.",
)
@click.option(
    "--experts",
    type=POSITIVE,
    help=f"Experts of {catalogue.labels(lambda row: row.experts)}.  [default: the method's own]",
)
@click.option(
    "--budget", type=_Count(), help="Instead: list every (method, r, b) with at most this many parameters, e.g. 5M."
)
@click.option("--at-least", type=click.FloatRange(0, 1), default=0.9, help="Least share of the budget to use.")
@click.option(
    "--optimal-blocks", is_flag=True, help="Instead: N(b)/R, BoRA's parameters per unit of rank, and the best b."
)
@click.option("--dtype", type=click.Choice(list(BYTES)), default="float32", help="Dtype for the memory in the table.")
@click.option("--optimizer", type=click.Choice(list(OPTIMIZERS)), default="adamw", help="For the memory.")
@click.option("--master", is_flag=True, help="Count a float32 copy of the weights and float32 moments in the memory.")
@click.option(
    "--step",
    "batch",
    type=Batch(),
    metavar="BxL",
    help="Instead: what a training step of B examples of L tokens takes, FLOPs and memory (extra `train`).",
)
@click.option(
    "--base",
    type=click.Choice(["int8", "nf4", "nf4-double"]),
    help="With --step: in which the frozen layers are kept.  [default: --dtype]",
)
@click.option("--checkpointing", is_flag=True, help="With --step: gradient checkpointing.")
@click.option("--measure", is_flag=True, help="With --step: an estimate of its time, from steps of two layers.")
@output("Write the records there; its end names the format: .csv, .json, .parquet, .md, .tex.")
def cost(
    model: str,
    target: str,
    methods: tuple[str, ...],
    rank: int | None,
    blocks: int | None,
    pad: bool,
    experts: int | None,
    budget: int | None,
    at_least: float,
    optimal_blocks: bool,
    dtype: str,
    optimizer: str,
    master: bool,
    batch: tuple[int, int] | None,
    base: str | None,
    checkpointing: bool,
    measure: bool,
    out: Output,
) -> None:
    """Parameters, multiply-adds, memory and rank bound of an adapter, before it is trained.

    One record per projection, summed over its layers; rank_bound is that of one matrix. With --budget one record per
    (method, r, b), with --optimal-blocks one per shape and b. --columns has more: forward_flops and backward_flops,
    those of a training step per token, as torch counts them. With --step one record per method, for the whole model:
    FLOPs of the products of matrices, and bytes of tensors; --dtype is then that of the base model.
    """
    if batch is None and (base or checkpointing or measure):
        raise click.UsageError("--base, --checkpointing and --measure are for a training step; add --step BxL")
    if batch is not None and (budget is not None or optimal_blocks or master):
        raise click.UsageError("--step takes --method, -r, --blocks; leave out --budget, --optimal-blocks and --master")
    if budget is not None and (optimal_blocks or rank is not None or blocks is not None):
        raise click.UsageError("--budget searches r and b itself; leave out -r, --blocks and --optimal-blocks")
    if optimal_blocks and (methods or rank is not None or blocks is not None):
        raise click.UsageError("--optimal-blocks is for BoRA at any r; leave out --method, -r and --blocks")
    if batch is not None and "all" in methods:
        methods = catalogue.trained()
    if pad and optimal_blocks:
        raise click.UsageError("--optimal-blocks is for b that divide the layers; leave out --pad")
    named = methods or (("all",) if budget is not None else ("bora",))
    wished = catalogue.costed() if "all" in named else named
    if "all" in named and budget is None and (rank or 8) % (blocks or 8):
        wished = tuple(name for name in wished if not METHODS[name].splits)
        note(
            f"{catalogue.labels(lambda row: row.cost and row.splits, ', ')} are left out: they split r among the "
            f"blocks, and {rank or 8} is not a multiple of {blocks or 8}"
        )
    limited = (("--blocks", blocks, lambda row: row.cut or row.staged), ("--experts", experts, lambda row: row.experts))
    for option, value, fits in limited:
        if value is not None and not any(fits(METHODS[name]) for name in wished):
            concerned = catalogue.names(lambda row, fits=fits: row.cost and fits(row))
            raise click.UsageError(f"{option} is for {' and '.join(concerned)}, not for {', '.join(wished)}")
    from ..analysis.cost_tables import block_table, budget_table, cost_table
    from ..catalogue.architectures import ARCHITECTURES, chosen, matrices

    with usage():
        known = matrices(model)
        order = chosen(target, (part.projection for part in known))
        parts = sorted((part for part in known if part.projection in order), key=lambda p: order.index(p.projection))
        name = model.lower() if model.lower() in ARCHITECTURES else model
        title = f"{name}, {' '.join(order)}"
        if budget is not None:
            frame = budget_table(name, parts, budget, methods=wished, at_least=at_least, experts=experts, pad=pad)
            if out.top is None and out.form not in RECORDS and not out.sort:
                out = replace(out, top=20)
            shown = _within(frame, title, budget, at_least, out.top, pad)
        elif batch is not None:
            from .cost_step import foresee, step_page

            if pad:
                catalogue.check_may_pad(wished)
            frame, where = foresee(
                model, order, wished, batch, rank or 8, blocks, experts, dtype, base, optimizer, checkpointing, pad,
                measure,
            )  # fmt: skip
            shown = step_page(frame, f"{title}: r = {rank or 8}", batch, dtype, base, optimizer, checkpointing, where)
        elif optimal_blocks:
            frame = block_table(name, parts)
            shown = _best_blocks(frame, title)
        else:
            r, b = rank or 8, blocks or 8
            frame = cost_table(name, parts, wished, r, b, experts, pad=pad)
            shown = _costs(frame, title, r, b, experts, Trained(dtype, optimizer, master), pad)
    out.deliver(frame, lambda: shown)


class Trained(NamedTuple):
    """What the memory of the trained numbers depends on."""

    dtype: str
    optimizer: str
    master: bool

    def memory(self, parameters: int) -> Memory:
        return memory(parameters, self.dtype, master=self.master, optimizer=self.optimizer)

    @property
    def state(self) -> str:
        """The optimiser's part, in words."""
        state = {"adamw": "AdamW's moments", "adamw-8bit": "AdamW's moments in 8 bits", "sgd-momentum": "momentum"}
        return " and ".join([*filter(None, [state.get(self.optimizer)]), *["float32 copy"] * self.master])


def _costs(frame: pd.DataFrame, title: str, r: int, b: int, experts: int | None, trained: Trained, pad: bool) -> Page:
    from ..analysis.cost_tables import notes
    from .cells import cells_of, short, span
    from .grid import Block, Column, Page

    methods = list(dict.fromkeys(frame["method"]))
    rows_of = [METHODS[method] for method in methods]
    settings = [f"r = {r}"] + [f"b = {b}"] * any(row.cut for row in rows_of)
    settings += [f"{b} stages"] * any(row.staged for row in rows_of)
    settings += [
        f"{experts or row.blocks.default} experts ({row.label})" for row in rows_of if row.experts and row.blocks
    ]
    further = []
    if len(methods) == 1:
        total, macs = int(frame["parameters"].sum()) + _shared(methods[0]), int(frame["macs_per_token"].sum())
        shapes = [f"{m}×{n}" for m, n in zip(frame["out_features"], frame["in_features"], strict=True)]
        columns = [
            Column("projection", [*frame["projection"]], "projection", last="total"),
            Column("out×in", shapes, "shape", spare=3),
            _whole(frame, "layers", "layers", 2, str(frame["layers"].sum())),
            _whole(frame, "parameters", "parameters", 0, f"{total:,}"),
            _whole(frame, "MACs/token", "macs_per_token", 1, f"{macs:,}"),
            _overhead(frame["overhead"], _percent(macs / _frozen(frame))),
            _whole(frame, "bound", "rank_bound", 0, span(frame["rank_bound"], ",")),
        ]
        sums = {name: cells_of(frame[[name]].sum(skipna=False))[0] for name in _SUMMED}
        block = Block(f"{title}: {rows_of[0].label}, {', '.join(settings)}", columns, frame, totals=sums)
        size = trained.memory(total)
        further.append(
            f"Training memory: weights {_bytes(size.weights)}, gradients {_bytes(size.gradients)}"
            f"{f', {trained.state} {_bytes(size.optimizer)}' if trained.state else ''}: {_bytes(size.total)} in "
            f"{trained.dtype}{' and float32' * trained.master}, without activations and the frozen model."
        )
        flops = f": here {2 * macs:,}"
    else:
        added = ["parameters", "macs_per_token", "forward_flops", "backward_flops"]
        parts = frame.groupby("method", sort=False)
        sums = parts[added].sum(min_count=1).reset_index()
        sums["parameters"] += [_shared(str(name)) for name in sums["method"]]
        sums["flops_per_token"] = 2 * sums["macs_per_token"]
        sums["overhead"] = [
            macs / _frozen(frame[frame["method"] == name])
            for name, macs in zip(sums["method"], sums["macs_per_token"], strict=True)
        ]
        sums["memory"] = [trained.memory(int(count)).total for count in sums["parameters"]]
        bounds = [span(frame.loc[frame["method"] == name, "rank_bound"], ",") for name in sums["method"]]
        largest = [frame.loc[frame["method"] == name, "rank_bound"].max() for name in sums["method"]]
        columns = [
            Column("method", [METHODS[str(name)].label for name in sums["method"]], "method"),
            _whole(sums, "parameters", "parameters"),
            _whole(sums, "MACs/token", "macs_per_token", 1),
            _whole(sums, "FLOPs/token", "flops_per_token", 4),
            _overhead(sums["overhead"]),
            Column("bound", bounds, "rank_bound", largest),
            Column("memory", [*map(_bytes, sums["memory"])], "memory", [*sums["memory"]], 2),
        ]
        block = Block(f"{title}: {', '.join(settings)}", columns, sums)
        kept = " and ".join(["weights, gradients", *([trained.state] if trained.state else [])])
        further.append(f"memory: {kept} in {trained.dtype}, without activations and the frozen model.")
        flops = ""
    further.append(
        f"MACs: multiply-adds per token beyond the frozen layers, the paper's FLOPs; usual FLOPs are twice that{flops}"
        ". overhead: MACs as a share of the frozen layers' own."
    )
    per_pass = frame.groupby("method", sort=False)["macs_per_pass"].sum()
    once = [f"{row.label} {short(per_pass[row.name], ' ')}" for row in rows_of if per_pass[row.name]]
    if once:
        further.append(f"Further multiply-adds, once per forward pass: {', '.join(once)}.")
    if pad:
        further.append(
            f"Padded: {b} blocks of up to ⌈m/{b}⌉ rows and ⌈n/{b}⌉ columns each; the last are smaller or empty. "
            "bound: Σ min(p_i, r) over the p_i of the shorter side."
        )
    return Page([block], [*further, *notes(methods), "bound: highest possible rank of one ΔW."])


# Further columns whose numbers add up over the projections.
_SUMMED = ("macs_per_pass", "forward_flops", "backward_flops")


def _shared(method: str) -> int:
    """What a method trains once for all matrices."""
    row = METHODS[method]
    return row.cost.shared if row.cost else 0


def _frozen(frame: pd.DataFrame) -> int:
    """Multiply-adds per token of the frozen layers."""
    return int((frame["out_features"] * frame["in_features"] * frame["layers"]).sum())


def _overhead(values: pd.Series, last: str = "") -> Column:
    from .grid import Column

    return Column("overhead", [*map(_percent, values)], "overhead", [*values], 3, last)


def _percent(share: float) -> str:
    return f"{share:.2%}" if share < 0.1 else f"{share:.0%}"


def _whole(frame: pd.DataFrame, head: str, name: str, spare: int = 0, last: str = "") -> Column:
    """A column of whole numbers."""
    from .grid import Column

    return Column(head, [f"{value:,}" for value in frame[name]], name, [*frame[name]], spare, last)


def _within(frame: pd.DataFrame, title: str, budget: int, at_least: float, top: int | None, pad: bool) -> Page:
    from ..analysis.cost_tables import notes
    from .grid import Block, Column, Page

    frame = frame.assign(per_thousand=1000 * frame["bound_per_parameter"])
    rows = [METHODS[str(name)] for name in frame["method"]]
    texts = {
        "r": [f"{r}" if row.ranked else "·" for r, row in zip(frame["r"], rows, strict=True)],
        "b": [f"{b}" if row.cut else "·" for b, row in zip(frame["blocks"], rows, strict=True)],
        "bound": [f"{x:,.5g}" for x in frame["rank_bound"]],
        "share": [f"{x:.1%}" for x in frame["share"]],
        "price": [f"{x:.3g}" for x in frame["per_thousand"]],
    }
    columns = [
        Column("method", [row.label for row in rows], "method"),
        Column("r", texts["r"], "r", [*frame["r"]]),
        Column("b", texts["b"], "blocks", [*frame["blocks"]]),
        _whole(frame, "parameters", "parameters"),
        Column("of budget", texts["share"], "share", [*frame["share"]], 3),
        Column("bound", texts["bound"], "rank_bound", [*frame["rank_bound"]]),
        Column("per 1k params", texts["price"], "per_thousand", [*frame["per_thousand"]], 2),
        _whole(frame, "MACs/token", "macs_per_token", 1),
    ]
    count = len(frame)
    number = f"the first {top} of {count}" if top and top < count else f"{count}"
    head = f"{title}: {number} that use {at_least:.0%} to 100% of {budget:,} parameters"
    told = (
        "r: powers of two, 3·2^k, and the largest that fits. bound: highest possible rank of one ΔW, mean over the "
        "matrices; per 1k params: the sum of the bounds per 1,000 parameters. "
        "MACs: multiply-adds per token beyond the frozen layers, which the paper calls FLOPs."
    )
    if pad:
        told += " Padded: b of BoRA is any number, and its last blocks are smaller or empty where it does not divide."
    shown = list(dict.fromkeys(frame["method"].head(top) if top else frame["method"]))
    return Page([Block(head, columns, frame)], [told, *notes(shown)])


def _best_blocks(frame: pd.DataFrame, title: str) -> Page:
    from .grid import Block, Page, table

    rows, curve = [], {}
    for name, part in frame.groupby("projection", sort=False):
        first, best = part.iloc[0], part[part["best"]]
        rule, m = first["paper_rule"], first["out_features"]
        rows.append([
            str(name), "·" if name == "all" else f"{m}×{first['in_features']}",
            f"{first['layers']}", f"{first['optimum']:.2f}",
            "·" if str(rule) == "<NA>" else f"{rule}{'' if first['paper_rule_valid'] else ' (not valid)'}",
            f"{', '.join(map(str, best['blocks']))}{' (tie)' if len(best) > 1 else ''}",
            f"{best['parameters_per_rank'].iloc[0]:,.6g}",
        ])  # fmt: skip
        curve[str(name)] = {x.blocks: f"{x.parameters_per_rank:,.6g}{'*' if x.best else ''}" for x in part.itertuples()}
    steps = sorted({b for own in curve.values() for b in own})
    heads = ["projection", "out×in", "layers", "√(m+n)", "⌊√n⌋", "best b", "N(b)/R"]
    best = table(heads, zip(*rows, strict=True), 0, 2, 1, 3, 4)
    prices = table(["b", *curve], [steps, *([own.get(b, "·") for b in steps] for own in curve.values())])
    told = ["√(m+n): where N(b) is least for real b; ⌊√n⌋: the paper's practical rule (§3.3)."]
    if "all" in curve:
        told[0] += " all: one b for all matrices; N(b)/R is the mean over them."
    meant = (
        "N(b)/R = (m+n)/b + b, parameters of one matrix per unit of rank, for every b that divides m and n; *: least"
    )
    named = f"{title}: the b with which BoRA reaches a rank R = br most cheaply"
    return Page([Block(named, best), Block(meant, prices)], told)


def _bytes(size: int) -> str:
    from .cells import short

    return f"{short(size, ' ')}B"
