"""Tables as text for a terminal, and as files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analysis.columns import Columns, missing
from ..analysis.columns import mean as average
from ..atomic import replacing
from ..files.errors import counted
from ..style import method_look
from ..threshold import Threshold
from .cells import error, mean_of, number, numbers, short, span
from .grid import Block, Column, Page

if TYPE_CHECKING:
    import pandas as pd

    from ..analysis.consensus import Consensus
    from ..analysis.recommendation import Recommendation


def layer_table(layers: Columns | pd.DataFrame, threshold: float | str | Threshold) -> Page:
    """What `analyze` prints: a table per adapter and step, a line per module."""
    blocks, tau, layers = [], Threshold.of(threshold), Columns.of(layers)
    limits = tau.limit(layers["spectral_norm"], layers["frobenius_norm"])
    noisy = (layers["noise_floor"] > limits / 10).any()
    for title, part in _adapters(layers):
        title += f", r = {span(part['r'])}"
        if (part["blocks"] > 1).any():
            title += f", b = {span(part['blocks'])}"
        title += f", scaling {part['scaling'][0]:.4g}" if len(set(part["scaling"].tolist())) == 1 else ""
        title += f"; {counted(len(part), 'module')}, {part['parameters'].sum():,} parameters"
        columns = [_column(part, "bound", "rank_bound", meaning="highest rank that the sizes allow")]
        columns += [_column(part, f"σ>{tau.formula}", "effective_rank", meaning="effective rank")]
        if noisy:  # beside the effective rank, whose meaning it limits
            told = "the largest σ that rounding of the stored numbers alone can cause"
            columns += [_column(part, "noise", "noise_floor", 4, meaning=told, mean=False)]
            columns += [_column(part, "σ>noise", "rank_above_rounding", 3, meaning="the rank above it")]
        columns += [*_spectrum(part), _column(part, "‖ΔW‖_F", "frobenius_norm", 2), *_statistics(part)]
        blocks.append(Block(title, _modules(part, columns), part))
    return Page(blocks)


def relative_table(given: pd.DataFrame) -> Page:
    """What `relative` prints: one line per module."""
    frame = Columns.of(given)
    told = f"how many of the {span(frame['intruder_k'])} largest directions of W0 + ΔW have a cosine below "
    told += f"{span(frame['intruder_epsilon'])} with every direction of W0"
    shared = f"share of ‖ΔW‖² within the {span(frame['subspace_k'])} largest directions of W0, on both sides"
    blocks = []
    for title, part in _adapters(frame):
        columns = [
            _column(part, "‖ΔW‖/‖W0‖", "relative_norm", meaning="Frobenius norms"),
            _column(part, "σ₁/σ₁", "relative_spectral_norm", 3, meaning="largest singular values"),
            _column(part, "r", "directions", 2, mean=False),
            _column(
                part, "amplification", "amplification", 1,
                meaning="‖ΔW‖_F/‖UᵀW0V‖_F, U and V the top r directions of ΔW",
            ),
            _column(part, "intruders", "intruder_dimensions", meaning=told),
            _column(part, "within W0", "share_both", 2, form=_percent, meaning=shared),
        ]  # fmt: skip
        blocks.append(Block(f"{title}, {counted(len(part), 'module')}", _modules(part, columns), part))
    return Page(blocks)


def summary_table(frame: Columns | pd.DataFrame, threshold: float | str | Threshold) -> Page:
    """What `compare` prints: the adapters as a whole, then each projection, adapters side by side."""
    blocks, frame = [], Columns.of(frame)
    for projection, part in frame.parts("projection"):
        labels = [f"{name}{step_of(step)}" for name, step in zip(part["adapter"], part["step"], strict=True)]
        columns = [Column("adapter", labels, "adapter")]
        title = f"Projection {projection}"
        if projection == "all":
            title = f"All modules ({span(part['modules'])} in each; ranks are means)"
            letters = [letter or "·" for letter in part["equal_budget"]]
            same = "same letter, parameters equal within 5 %" if any(frame["equal_budget"]) else ""
            columns.append(Column("budget", letters, "equal_budget", spare=5, meaning=same))
        columns += [
            _column(part, "params", "parameters", 3, form=short, mean=False),
            _column(part, "bound", "rank_bound"),
            _column(part, f"σ>{Threshold.of(threshold).formula}", "effective_rank", meaning="effective rank"),
            _column(
                part, "used", "rank_utilisation", 4,
                cells=[f"{value:.0%}" for value in part["rank_utilisation"]], meaning="its share of the bound",
            ),
            *_spectrum(part),
            _column(part, "Σσ²", "energy", 2),
        ]  # fmt: skip
        columns = [replace(column, last="") for column in beside_null(columns, part)]
        blocks.append(Block(title, columns, part))
    return Page(blocks)


def _statistics(part: Columns) -> list[Column]:
    """What was computed on request."""
    from ..metrics import STATISTICS

    told = (
        ("rows", "how many hold the energy, were it in equal parts"),
        ("columns", "the same of the columns"),
        ("kurtosis", "of ΔW's entries, 3 for Gaussian ones"),
        ("σ>bulk", "directions above the bulk of random factors"),
    )
    heads = zip(STATISTICS, told, strict=True)
    return [_column(part, head, name, 1, meaning=meaning) for name, (head, meaning) in heads if name in part]


def beside_null(columns: list[Column], part: Columns) -> list[Column]:
    """With the null's rank after each rank that has one."""
    out = []
    for column in columns:
        out.append(column)
        name = f"null_{column.name}"
        if name in part:
            told = "" if len(out) > 9 else "that of random factors of the same sizes and ‖ΔW‖_F, mean of the draws"
            out.append(_column(part, f"{column.head} null", name, 1, meaning=told))
    return out


def factor_ranks_table(frame: pd.DataFrame) -> Page:
    """What `factors` prints: means over the modules, a line per adapter and step."""
    names = ("rank_B", "rank_sigma", "rank_A", "rank_bound")
    rows, labels, limits = [], [], []
    for (name, step), part in Columns.of(frame).parts("adapter", "step"):
        rows.append((name, step, *(average(part[each]) for each in names)))
        labels.append(f"{name}{step_of(step)}")
        told = Counter(part["limiting"].tolist()).most_common()
        limits.append("; ".join(f"{names} in {count} of {len(part)}" for names, count in told))
    means = Columns.of_rows(rows, ("adapter", "step", *names))
    heads = {"rank B'": "rank_B", "rank Σ'": "rank_sigma", "rank A'": "rank_A"}
    columns = [
        Column("adapter", labels, "adapter"),
        *(_column(means, head, name, mean=False) for head, name in heads.items()),
        _column(means, "bound", "rank_bound", 2, mean=False, meaning="min(m, n, br)"),
        Column(
            "least", limits, "limiting", spare=1,
            meaning="the factors that limit the rank of ΔW, and in how many modules",
        ),
    ]  # fmt: skip
    notes = ["Numerical ranks of the factors of ΔW = B' Σ' A' (eq. 6), means over the modules."]
    return Page([Block("", columns, means)], notes)


def capture_table(frame: pd.DataFrame) -> Page:
    """What `capture` prints: a line per adapter and member, weighted over the modules."""
    from ..analysis.capture import shares
    from ..analysis.members import same_set

    blocks = []
    for title, part in _adapters(Columns.of(shares(frame).rename(columns={"method": "nearest", "target": "method"}))):
        found = zip(part["kind"], part["spread"], part["starts"], strict=True)
        ranges = [f"{low:.0%} – {high:.0%}" for low, high in zip(part["least"], part["most"], strict=True)]
        more = part["captured"] - part["lora_captured"]
        columns = [
            Column("nearest", [*part["member"]], "member"),
            _column(part, "params", "parameters", 1, form=short, mean=False),
            _column(
                part, "captured", "captured", form=_percent,
                meaning="1 − ‖ΔW − X‖²/‖ΔW‖² of the nearest X, over all modules",
            ),
            _column(part, "modules", "least", 3, cells=ranges, meaning="the least and the most of one"),
            _column(
                part, "LoRA", "lora_captured", 2, form=_percent,
                meaning="the same of a LoRA with as many parameters, between whole ranks",
            ),
            Column("more", [f"{x:+.2%}" for x in more], "more", list(more)),
            Column(
                "found", [f"local ±{spread:.1%}" if starts > 1 else kind for kind, spread, starts in found], "kind",
                spare=4,
                meaning="exact, local (the best start, ± the spread of all), or the best case of what training draws",
            ),
        ]  # fmt: skip
        columns = [replace(column, last="") for column in columns]
        blocks.append(Block(f"{title}; {counted(part['modules'].max(), 'module')} with ΔW ≠ 0", columns, part))
    limits = "The table says what a method can represent, not what training finds."
    there = set(frame["method"])
    for first, *others in {same_set(method) for method in there}:
        if others and there.isdisjoint(others):
            names = [method_look(each).label for each in others]
            limits += f" {', '.join(names[:-1])} and {names[-1]} have the set of {method_look(first).label}."
    return Page(blocks, [limits])


def cut_table(given: pd.DataFrame) -> Page:
    """What `convert` prints: rank and error of each module, and the parameters before and after."""
    frame = Columns.of(given)
    columns = [_column(frame, "rank", "rank_before", 1), _column(frame, "kept", "rank")]
    columns.append(_column(frame, "energy", "energy_kept", form=_percent))
    if frame["capped"].any():
        columns.append(_column(frame, "capped", "capped"))
        columns.append(_column(frame, "removed", "energy_capped", form=_percent))
    errors = {"‖error‖₂": ("error_spectral", 3), "‖error‖_F": ("error_frobenius", 4), "relative": ("error_relative", 0)}
    columns += [_column(frame, head, name, spare, form=error) for head, (name, spare) in errors.items()]
    before, after = int(frame["parameters_before"].sum()), int(frame["parameters"].sum())
    told = (
        f"{_methods(frame)} of {before:,} parameters as a LoRA of {after:,}, ranks {span(frame['rank'])}; "
        f"the largest relative error is {error(frame['error_relative'].max())}."
    )
    least = "no matrix of rank k has less than σ_{k+1} and √Σ_{i>k}σᵢ²"
    notes = [told, f"error: of the file as written, rounding included; {least}."]
    return Page([Block("", _modules(frame, columns), frame)], notes)


def representation_table(given: pd.DataFrame) -> Page:
    """What `convert --to` prints: how near each module is, and the parameters before and after."""
    frame = Columns.of(given)
    from ..analysis.members import Member

    columns = [
        _column(
            frame, "captured", "captured", form=_percent,
            meaning="share of Σσ² that the file keeps, rounding included",
        ),
        _column(
            frame, "relative", "error_relative", form=error,
            meaning="‖ΔW − X‖_F / ‖ΔW‖_F",
        ),
    ]  # fmt: skip
    before, after = int(frame["parameters_before"].sum()), int(frame["parameters"].sum())
    member = Member(*(frame[name][0] for name in ("method", "r", "blocks")))
    notes = [f"The nearest {member}: {after:,} parameters, where {before:,} were."]
    return Page([Block("", _modules(frame, columns), frame)], notes)


def advice_table(
    found: Sequence[Recommendation], energy: float, common: Consensus | None = None, method: pd.DataFrame | None = None
) -> Page:
    """What `recommend` prints: a table per adapter, the saving, the settings for PEFT, and the limits of the advice.

    Then what the adapters agree on, and which method keeps most of them.
    """
    from ..analysis.recommendation import LIMITS

    blocks = []
    for each in found:
        frame = each.columns
        rows = frame.records()
        first, ranks = rows[0], [f"{_open(row['verdict'] == 'exhausted')}{row['rank']}" for row in rows]
        needed = "least rank that keeps the share, highest over the layers"
        judged = "wasted where at most half of R is needed, exhausted where all of it"
        columns = [
            _column(frame, "projection", "projection", cells=frame["projection"]),
            _column(frame, "layers", "layers", 1, cells=frame["layers"]),
            _column(frame, "R", "rank_bound", meaning="rank bound as trained"),
            _column(frame, "needed", "needed", 2, meaning=needed),
            _column(
                frame, "σ_R/σ₁", "tail", 8, cells=[f"{x:.2g}" for x in frame["tail"]],
                meaning="last singular value over first",
            ),
            _column(frame, "verdict", "verdict", cells=frame["verdict"], meaning=judged),
            _column(frame, "rank", "rank", cells=ranks),
            _column(frame, "keeps", "kept", 5, cells=["?" if missing(x) else f"{x:.2%}" for x in frame["kept"]]),
            _column(frame, "params", "parameters", 4, cells=map(short, frame["parameters"])),
            _column(
                frame, "advised", "advised_parameters", 3, cells=map(short, frame["advised_parameters"]),
                meaning="parameters with the rank advised",
            ),
        ]  # fmt: skip
        if "best_r" in frame:
            pairs = {"r, b": ("r", "blocks", 6), "cheapest r, b": ("best_r", "best_blocks", 0)}
            columns += [
                _column(frame, head, r, spare, cells=[f"{x}, {y}" for x, y in zip(frame[r], frame[b], strict=True)])
                for head, (r, b, spare) in pairs.items()
            ]
            its = map(short, frame["best_parameters"])
            columns.append(_column(frame, "its params", "best_parameters", 7, cells=its))
        change = each.advised_parameters / max(1, each.parameters) - 1
        label = method_look(str(first["method"])).label
        title = f"{first['adapter']}{step_of(first['step'])}: {label}, the rank that keeps {energy:.4g} of Σσ²"
        below = [
            f"{each.parameters:,} parameters trained, {each.advised_parameters:,} advised ({change:+.0%}). PEFT:",
            json.dumps(each.config),
        ]
        if each.unused:
            below.append(f"No advice for {counted(len(each.unused), 'module')} with ΔW = 0 ({each.unused[0]} …).")
        blocks.append(Block(title, [replace(column, last="") for column in columns], frame, below))
    notes = ["The settings for PEFT keep the scaling of each module.", "", LIMITS]
    if common is not None:
        agreed = consensus_table(common)
        blocks, notes = [*blocks, *agreed.blocks], [*agreed.notes, "", *notes]
    if method is not None:
        from ..analysis import method_advice

        notes += ["", *method_advice.in_words(method), "", method_advice.LIMITS]
    return Page(blocks, notes)


def consensus_table(common: Consensus) -> Page:
    """What several adapters agree on."""
    from ..analysis.consensus import sentence

    frame = common.columns
    rows = frame.records()
    ranks = [
        "?" if missing(low) else f"{low}" if low == high else f"{low} – {high}"
        for low, high in ((row["needed_least"], row["needed_most"]) for row in rows)
    ]
    advised = [f"{_open(row['agreement'] == 'open')}{row['rank']}" for row in rows]
    labels = ["all" if name == "all" else method_look(name).label for name in frame["method"]]
    columns = [
        _column(frame, "projection", "projection", cells=frame["projection"]),
        _column(frame, "method", "method", cells=labels),
        _column(frame, "adapters", "adapters", 1),
        _column(frame, "exhausted", "exhausted", 3, meaning="those whose spectrum ends before it decays"),
        _column(frame, "ranks", "needed_most", cells=ranks, meaning="least and most that an adapter needs"),
        _column(
            frame, "agreement", "agreement", cells=frame["agreement"],
            meaning="stable where the most is at most 1.5 times the least",
        ),
        _column(frame, "common rank", "rank", cells=advised),
    ]  # fmt: skip
    told = [sentence(common)]
    for side in ("above", "below"):
        named = [name for names in frame[side][frame["adapters"] > 1] if names for name in names.split(", ")]
        if named := list(dict.fromkeys(named)):
            word, more = "More" if side == "above" else "Less", " …" * (len(named) > 6)
            told.append(f"{word} than their projection in every adapter: {', '.join(named[:6])}{more}.")
    title = f"What {len(common.adapters)} adapters agree on"
    return Page([Block(title, [replace(column, last="") for column in columns], frame)], told)


def _open(end: bool) -> str:
    """What stands before a rank that is a lower bound."""
    return "≥" if end else ""


def similarity_table(given: pd.DataFrame) -> Page:
    """What `similarity` prints: φ, chance, and the smallest angle of each module."""
    frame = Columns.of(given)
    columns = [Column("module", [*frame["module"]], "module")]
    columns += [_column(frame, head, head, 2, cells=numbers(frame[head]), mean=False) for head in ("i", "j")]
    for side in ("left", "right"):
        for head, name, spare in (("φ", "phi", 0), ("chance", "random", 3), ("angle", "angle", 1)):
            columns.append(_column(frame, f"{head} {side}", f"{name}_{side}", spare, form=number))
    told = (
        "φ = ‖UᵢᵀUⱼ‖_F² / min(i, j), 1 where the smaller subspace lies in the other; chance: max(i, j)/d, two random "
        "subspaces; angle: smallest principal angle in degrees; left: output side of ΔW, right: input side."
    )
    title = f"{frame['adapter_a'][0]} (i) and {frame['adapter_b'][0]} (j)"
    return Page([Block(title, _with_mean(columns), frame)], [told])


def text(table: Columns | pd.DataFrame, form: str, *, ascii_only: bool = False) -> str:
    """The whole table, unrounded, as csv or json (a list of records; NaN and missing values are null).

    ``ascii_only`` escapes other characters in json.
    """
    table, out = Columns.of(table), StringIO()
    plain = [[_plain(value) for value in table[name].tolist()] for name in table]
    if form == "csv":
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*plain, strict=True))
        return out.getvalue()
    records = [dict(zip(table, row, strict=True)) for row in zip(*plain, strict=True)]
    json.dump(records, out, indent=1, ensure_ascii=ascii_only, allow_nan=False)
    return out.getvalue() + "\n"


def _plain(value: Any) -> Any:
    """None for what is missing, Python's number for one of NumPy's, which a column of objects may hold."""
    if missing(value):
        return None
    return value.item() if hasattr(value, "item") else value


def write(table: Columns | pd.DataFrame, path: Path, form: str) -> None:
    """Write the table as a csv, json or parquet file; a failed write leaves no file."""
    with replacing(path) as temporary:
        if form == "parquet":
            frame = table.frame() if isinstance(table, Columns) else table
            frame.to_parquet(temporary, index=False)
        else:
            temporary.write_text(text(table, form), encoding="utf-8")


def _spectrum(part: Columns) -> list[Column]:
    """The columns of the spectrum, as far as it is known."""
    return [
        _column(part, "entropy", "entropy_rank", 7, meaning="exp H(σ/Σσ)"),
        _column(part, "stable", "stable_rank", 6, meaning="‖ΔW‖_F²/σ₁²"),
        _column(part, "99 %", "energy_rank_99", meaning="directions that hold 99 % of Σσ²"),
    ]


def _adapters(table: Columns) -> Iterator[tuple[str, Columns]]:
    """Name, step and method, and the rows, of each adapter and step."""
    for (name, step), part in table.parts("adapter", "step"):
        yield f"{name}{step_of(step)}: {_methods(part)}", part


def _modules(part: Columns, columns: Sequence[Column]) -> list[Column]:
    """The columns behind the modules and their shapes; below several modules stand means."""
    shapes = [f"{m}×{n}" for m, n in zip(part["out_features"], part["in_features"], strict=True)]
    sizes = [*(part["out_features"] * part["in_features"])]
    first = [Column("module", [*part["module"]], "module"), Column("out×in", shapes, "shape", sizes, spare=8)]
    return _with_mean([*first, *columns])


def _with_mean(columns: list[Column]) -> list[Column]:
    """The columns with their means in the last row, where there are several rows and a mean."""
    count = len(columns[0].cells)
    if count == 1 or not any(column.last for column in columns):
        return [replace(column, last="") for column in columns]
    return [replace(columns[0], last=f"mean of {count}"), *columns[1:]]


def _column(
    frame: Columns,
    head: str,
    name: str,
    spare: int = 0,
    *,
    cells: Iterable[str] | None = None,
    form: Callable[[float], str] | None = None,
    meaning: str = "",
    mean: bool = True,
) -> Column:
    """A column of the table: its cells, or its numbers by ``form`` or else rounded, and with ``mean`` their mean."""
    values, last = frame[name], ""
    if form is not None:
        cells, last = map(form, values), form(average(values)) if mean else ""
    elif cells is None:
        cells, last = numbers(values), mean_of(values) if mean else ""
    return Column(head, [*cells], name, values.tolist(), spare, last, meaning)


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _methods(part: Columns) -> str:
    return ", ".join(method_look(str(method)).label for method in dict.fromkeys(part["method"].tolist()))


def step_of(step: Any) -> str:
    return "" if missing(step) else f" step {step}"
