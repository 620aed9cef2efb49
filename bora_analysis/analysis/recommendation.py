"""Which rank a next run needs, and where: advice from the spectra of a trained adapter.

Per module: the least rank k that keeps a share (0.99) of ΔW's energy Σσ², and whether the spectrum ended before it
decayed. Per projection: one rank for all layers, and layers of their own where they differ much.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import numpy as np

from ..cards import based_on, card
from ..catalogue import METHODS, may_pad
from ..catalogue.cost import cost
from ..catalogue.sizes import common_divisors, padded_bound
from ..metrics import energy_rank
from ..style import projections_in_order
from .columns import Columns
from .given import tables_of
from .tables import Analysis, Tables

if TYPE_CHECKING:
    import pandas as pd

V = TypeVar("V", bound=Hashable)

#: Methods whose advice has b of its own.
_BLOCKED = ("melora", "bora")

#: What the advice rests on and what it cannot know.
LIMITS = (
    "The rank is what this run's ΔW needs for the given share of Σσ². Energy is not accuracy: small directions may "
    "matter and large ones may not. A run with a lower rank from the start is not this run truncated, and the learning "
    "rate, α and the length of training move the spectrum too. Where the spectrum is exhausted it ends before it "
    "decays: the rank needed is then unknown, at least what was trained, and twice that is a next try and no "
    "measurement. A rank bound says what BoRA and MELoRA can reach, not that their blocks can form this ΔW. "
    "Check with a run on held-out data."
)


@dataclass(frozen=True)
class _Module:
    """One module's spectrum in numbers, and the advice for it alone."""

    module: str
    layer: int | None
    projection: str
    m: int
    n: int
    r: int
    blocks: int
    scaling: float
    parameters: int
    bound: int
    energies: Any  # cumulative share of Σσ², (bound,)
    needed: int
    tail: float
    exhausted: bool
    rank: int

    def kept(self, rank: int) -> float:
        return float(self.energies[min(rank, self.bound) - 1])


@dataclass(frozen=True, eq=False, repr=False)
class Recommendation:
    """Advice for one adapter.

    Attributes
    ----------
    table : one row per projection, and per group of its layers that differs much; see :func:`recommend`. ``columns``
        before they are a frame.
    config : r, lora_alpha, rank_pattern, alpha_pattern for PEFT's ``LoraConfig``; for a BoRA or MELoRA adapter those of
        its own configuration, with num_blocks or num_minis, and pad where these need it. α/r (rsLoRA: α/√r) stays what
        it was in every module.
    ranks : module → advised rank of ΔW.
    parameters, advised_parameters : trained, and with the advice, in the same modules and the same method (LoRA for a
        method without blocks).
    unused : modules with ΔW = 0, about which nothing can be said.
    base_model : name of the base model, where it is known.

    Examples
    --------
    >>> from bora_analysis import recommend, synthetic_adapter
    >>> recommend(synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=16, kind="decay", decay=2.0))
    <Recommendation for lora-r16: 1,536 parameters → 288; q 16 → 3>
    """

    columns: Columns
    config: dict[str, Any]
    ranks: dict[str, int]
    parameters: int
    advised_parameters: int
    unused: tuple[str, ...]
    base_model: str | None = None

    @cached_property
    def table(self) -> pd.DataFrame:
        return self.columns.frame()

    def __repr__(self) -> str:
        shown = [self.columns[name][:8].tolist() for name in ("projection", "rank_bound", "rank")]
        ranks = ", ".join(f"{projection} {bound} → {rank}" for projection, bound, rank in zip(*shown, strict=True))
        name, counts = self.columns["adapter"][0], f"{self.parameters:,} parameters → {self.advised_parameters:,}"
        return f"<Recommendation for {name}: {counts}; {ranks}>"

    def _repr_html_(self) -> str:
        columns = ["projection", "layers", "rank_bound", "needed", "verdict", "rank", "kept", "r", "blocks"]
        lines = [based_on(self.base_model), f"PEFT: {json.dumps(self.config)}"]
        return card(self, lambda: (lines, self.table[columns]))


def recommend(
    adapters: Any, *, energy: float = 0.99, simple: str | None = None, **options: Unpack[Analysis]
) -> Recommendation:
    """The rank to train next, by projection.

    For each module: the least k that keeps the share ``energy`` of Σσ². With R the rank bound as trained, the spectrum
    is *exhausted* where all of R is needed and R is below min(m, n): then k is a lower bound, and 2R is the rank to
    try. Rank is *wasted* where at most half of R is needed.

    A projection gets the largest rank of its layers, so that none loses more than 1 − energy. Layers whose rank is
    above 1.5 × or below half the projection's median, by two at least, have rows of their own.

    Parameters
    ----------
    adapters : :class:`bora_analysis.Tables` of one adapter, or what :func:`bora_analysis.analyse` takes; of several
        steps the last.
    energy : share of Σσ² to keep.
    simple : ``"projection"``, one rank for each projection, or ``"all"``, one for all modules: the largest of theirs.
    options : of :func:`bora_analysis.analyse`.

    Returns
    -------
    Recommendation
        Its table has: adapter, method, step, projection, layers (as text), modules, rank_bound (R, the largest), needed
        (the largest k), tail (the largest σ_R/σ₁), verdict (``"wasted"``, ``"fits"``, ``"exhausted"``), rank (advised),
        kept (the least share of Σσ² that it keeps; missing where exhausted), r and blocks with which the method reaches
        that rank (LoRA's where it has no blocks), parameters, advised_parameters, and for BoRA and MELoRA best_r,
        best_blocks and best_parameters: the b that reaches the rank most cheaply, N(b) = (m+n+b²)⌈R/b⌉ for BoRA.

    Raises
    ------
    ValueError
        Several adapters; a share out of range, an unknown ``simple``; ΔW = 0 in every module, as before the first step;
        an advised α beyond the range of float64.

    Examples
    --------
    >>> from bora_analysis import recommend, synthetic_adapter
    >>> shapes = {f"layers.{k}.q_proj": (64, 32) for k in range(2)}
    >>> found = recommend(synthetic_adapter("lora", shapes, r=16, kind="decay", decay=2.0))
    >>> found.table[["projection", "rank_bound", "rank", "verdict"]].values.tolist(), found.config["r"]
    ([['q', 16, 3, 'wasted']], 3)
    """
    if not 0 < energy < 1:
        raise ValueError(f"energy is {energy}; expected a share of Σσ² between 0 and 1")
    if simple not in (None, "projection", "all"):
        raise ValueError(f"simple is {simple!r}; expected 'projection', 'all' or None")
    tables = tables_of(adapters, **options)
    names = tables.adapters
    if len(names) != 1:
        raise ValueError(
            f"there are {len(names)} adapters ({', '.join(names)}); expected one. bora_analysis.consensus compares them"
        )
    tables, step = of_last_step(tables)
    metrics = tables.layers
    method = "+".join(sorted(set(metrics["method"].tolist())))
    modules, unused = module_advice(tables, energy)
    if not modules:
        raise ValueError(f"{names[0]}: ΔW = 0 in every module, as before the first step; there is nothing to advise on")
    whole = method if method in _BLOCKED else "lora"
    table, ranks = [], {}
    least = max(each.rank for each in modules) if simple == "all" else 0
    for projection in projections_in_order(each.projection for each in modules):
        members = [each for each in modules if each.projection == projection]
        groups = [members] if simple else _groups(members)
        for group in groups:
            row = _row(group, whole, least, of_all=len(groups) == 1)
            table.append({"adapter": names[0], "method": method, "step": step} | row)
            ranks |= {each.module: row["rank"] for each in group}
    columns = Columns.of_records(table)
    blocks = {each.module: each.blocks if whole in _BLOCKED else 1 for each in modules}
    own = {module: -(-rank // blocks[module]) for module, rank in ranks.items()}
    return Recommendation(
        columns,
        _config(method, whole, modules, own),
        ranks,
        int(metrics["parameters"].sum()),
        int(columns["advised_parameters"].sum()),
        unused,
        tables.base_models.get(names[0]),
    )


def of_last_step(tables: Tables) -> tuple[Tables, int | None]:
    """The tables of one adapter at its last step, and that step; None for an adapter without steps."""
    steps = tables.layers["step"].tolist()
    last = max((step for step in steps if step is not None), default=None)
    if last is None:
        return tables, None
    return tables.rows(np.array([step == last for step in steps], dtype=bool)), last


def module_advice(tables: Tables, energy: float) -> tuple[list[_Module], tuple[str, ...]]:
    """The advice for each module of one adapter at one step, and the modules with ΔW = 0."""
    rows = tables.layers.records()
    moved = [place for place, row in enumerate(rows) if row["spectral_norm"] > 0]
    modules = [_module(rows[place], tables.spectrum_of(place), energy) for place in moved]
    return modules, tuple(row["module"] for row in rows if not row["spectral_norm"] > 0)


def _module(row: Mapping[str, Any], values: Any, energy: float) -> _Module:
    bound, top = int(row["rank_bound"]), float(values.max())
    needed, tail = energy_rank(values, energy), float(values[bound - 1]) / top
    room = min(row["out_features"], row["in_features"])
    exhausted = needed == bound < room
    squares = np.square(values / top)
    layer = row["layer"]
    return _Module(
        row["module"], None if layer is None or layer != layer else int(layer), row["projection"],
        int(row["out_features"]), int(row["in_features"]), int(row["r"]), int(row["blocks"]), float(row["scaling"]),
        int(row["parameters"]), bound, np.cumsum(squares) / squares.sum(), needed, tail, exhausted,
        min(2 * bound, room) if exhausted else needed,
    )  # fmt: skip


def _groups(modules: list[_Module]) -> list[list[_Module]]:
    """The modules that can share a rank, then those that differ much from their median, by rank."""
    middle = median(each.rank for each in modules)

    def differs(each: _Module) -> bool:
        return abs(each.rank - middle) >= 2 and (each.rank > 1.5 * middle or each.rank < middle / 2)

    apart: dict[tuple[int, int], list[_Module]] = defaultdict(list)
    for each in modules:
        if differs(each):
            apart[each.rank, each.bound].append(each)
    common = [each for each in modules if not differs(each)]
    return [*([common] if common else []), *(apart[key] for key in sorted(apart))]


def _row(group: list[_Module], method: str, least: int, of_all: bool) -> dict[str, Any]:
    rank, bound = max(least, *(each.rank for each in group)), max(each.bound for each in group)
    exhausted = any(each.exhausted for each in group)
    needed = max(each.needed for each in group)
    blocks = [each.blocks if method != "lora" else 1 for each in group]
    r = [_enough(each, method, rank, b) for each, b in zip(group, blocks, strict=True)]
    row = {
        "projection": group[0].projection,
        "layers": "all" if of_all else _layers(group),
        "modules": len(group),
        "rank_bound": bound,
        "needed": needed,
        "tail": max(each.tail for each in group),
        "verdict": "exhausted" if exhausted else "wasted" if needed <= bound / 2 else "fits",
        "rank": rank,
        "kept": float("nan") if exhausted else min(each.kept(rank) for each in group),
        "r": max(r),
        "blocks": max(blocks),
        "parameters": sum(each.parameters for each in group),
        "advised_parameters": sum(
            cost(method, each.m, each.n, k, blocks=b, pad=may_pad(METHODS[method])).parameters
            for each, k, b in zip(group, r, blocks, strict=True)
        ),
    }
    if method in _BLOCKED:
        row |= _cheapest(group, method, rank)
    return row


def _enough(module: _Module, method: str, rank: int, b: int) -> int:
    """The r that reaches a rank with b blocks; more than ⌈rank/b⌉ where the last blocks of a padded layer are small."""
    r = -(-rank // b)
    if may_pad(METHODS[method]):
        while padded_bound(module.m, module.n, r, b) < min(rank, module.m, module.n):
            r += 1
    return r


def _cheapest(group: list[_Module], method: str, rank: int) -> dict[str, int]:
    """The b, and r = ⌈rank/b⌉, with the fewest parameters, among those that divide all sizes."""

    def price(b: int) -> int:
        return sum(cost(method, each.m, each.n, -(-rank // b), blocks=b).parameters for each in group)

    best = min(common_divisors(size for each in group for size in (each.m, each.n)), key=price)
    return {"best_r": -(-rank // best), "best_blocks": best, "best_parameters": price(best)}


def _layers(group: list[_Module]) -> str:
    """Layers as ranges, such as "0-3, 7"; modules without a layer by their name."""
    numbers = sorted({each.layer for each in group if each.layer is not None})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join([*shown, *(each.module for each in group if each.layer is None)])


def _config(method: str, whole: str, modules: list[_Module], own: Mapping[str, int]) -> dict[str, Any]:
    """The entries of a PEFT configuration that give each module its r and keep its scaling."""
    rslora = method == "rslora"
    alphas = {each.module: _alpha(each, own[each.module] ** (0.5 if rslora else 1)) for each in modules}
    r, rank_pattern = patterns(own)
    config: dict[str, Any] = {"r": r, "rank_pattern": rank_pattern}
    if not any(math.isnan(alpha) for alpha in alphas.values()):  # MELoRA's minis may differ in scaling
        alpha, alpha_pattern = patterns(alphas)
        config = {"r": r, "lora_alpha": alpha, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern}
    if rslora:
        config["use_rslora"] = True
    if whole in _BLOCKED:
        b, by_pattern = patterns({each.module: each.blocks for each in modules})
        config["num_blocks" if whole == "bora" else "num_minis"] = {**by_pattern, ".*": b} if by_pattern else b
        if may_pad(METHODS[whole]) and any(each.m % each.blocks or each.n % each.blocks for each in modules):
            config["pad"] = True
    return config


def _alpha(module: _Module, root: float) -> float:
    """The α that keeps the scaling: a whole number without its ".0", and without the rounding of √k·(α/√k)."""
    value = module.scaling * root
    if math.isinf(value):
        raise ValueError(
            f"{module.module}: the scaling {module.scaling:.4g} times {root:.4g} is beyond the range of float64 "
            "(1.8e308): no α keeps it; check α"
        )
    near = value if math.isnan(value) else round(value)
    return near if near and math.isclose(near, value) else value


def patterns(values: Mapping[str, V]) -> tuple[V, dict[str, V]]:
    """Module → value as PEFT's default and ``rank_pattern``: the most frequent value, and patterns for the others.

    PEFT takes the first pattern p with ``re.match(rf"(.*\\.)?({p})$", module)`` (``get_pattern_key``). Modules that
    differ only in numbers share a pattern, the shortest end of their paths that fits no other module; exceptions among
    them come first.

    >>> patterns({"layers.0.q_proj": 8, "layers.1.q_proj": 2, "layers.0.v_proj": 4, "layers.1.v_proj": 4})
    (4, {'^layers\\\\.1\\\\.q_proj': 2, 'q_proj': 8})
    """
    default = Counter(values.values()).most_common(1)[0][0]
    kin: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for module in values:
        kin[tuple("#" if part.isdecimal() else part for part in module.split("."))].append(module)
    special: dict[str, V] = {}
    general: dict[str, V] = {}
    for template, modules in kin.items():
        common = Counter(values[module] for module in modules).most_common(1)[0][0]
        by_value: dict[V, list[str]] = defaultdict(list)
        for module in modules:
            if values[module] != common:
                by_value[values[module]].append(module)
        for value, members in by_value.items():
            special |= dict.fromkeys(_members(template, members, kin), value)
        if common != default:
            general[_end(template, kin, lambda part: r"\d+" if part == "#" else re.escape(part))] = common
    return default, special | general


def _members(template: tuple[str, ...], modules: list[str], kin: Mapping[tuple[str, ...], Any]) -> list[str]:
    """Patterns that fit some modules of a template: one for all where it has one number, else one for each."""
    places = [k for k, part in enumerate(template) if part == "#"]
    if len(places) != 1:
        return [f"^{re.escape(module)}" for module in modules]
    numbers = "|".join(module.split(".")[places[0]] for module in modules)
    number = numbers if len(modules) == 1 else f"({numbers})"
    return [_end(template, kin, lambda part: number if part == "#" else re.escape(part), max(0, places[0] - 1))]


def _end(
    template: tuple[str, ...], kin: Mapping[tuple[str, ...], Any], write: Callable[[str], str], start: int | None = None
) -> str:
    """The shortest end of a path, from ``start`` or before, that no other template shares; the whole path if none."""
    for k in range(len(template) - 1 if start is None else start, 0, -1):
        if not any(other != template and other[-len(template[k:]) :] == template[k:] for other in kin):
            return r"\.".join(map(write, template[k:]))
    return "^" + r"\.".join(map(write, template))
