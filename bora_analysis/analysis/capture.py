"""How much of an update each method could have represented, at equal trained parameters.

A rank bound says what a method may reach, not what it can represent. For a target T = ΔW and the set C of all updates
that a method has at its sizes, the captured share is ρ = 1 − min_{X ∈ C} ‖T − X‖_F² / ‖T‖_F². How the nearest member is
found stands in each method's file, see :mod:`bora_analysis.projections`. Beside it stands the LoRA of as many
parameters: with r = N / (m+n), and the captured share interpolated between whole ranks.

The captured share says nothing about what training finds, or about what the task loses without the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ..adapters import Adapter
from ..adapters.given import adapters_of, one_of
from ..adapters.reading import Options
from ..catalogue import ACTIVATIONS
from ..catalogue.module_names import layer, projection
from ..files.errors import AdapterError
from ..linalg import NotFiniteError, normalised
from ..linalg.threads import in_order
from ..methods import projection as projection_of
from ..projections import ENOUGH, Target, Wish
from ..updates.contract import Update
from .columns import typed
from .members import Member, member_of, sized, with_default
from .progress import progress

if TYPE_CHECKING:
    import pandas as pd

CAPTURE_COLUMNS = (
    "adapter", "step", "module", "layer", "projection", "target", "energy", "method", "r", "blocks", "activation",
    "parameters", "captured", "kind", "starts", "spread", "drawn", "lora_rank", "lora_captured",
)  # fmt: skip


def capture(
    targets: Any,
    members: Iterable[Member | tuple[Any, ...] | str] | None = None,
    *,
    budget: int | None = None,
    like: Any = None,
    bora_activation: str = "exp-norm",
    starts: int = 3,
    sample: int | None = None,
    known: pd.DataFrame | None = None,
    on_module: Callable[[], object] | None = None,
    **reading: Unpack[Options],
) -> pd.DataFrame:
    """One row per module and member of ``members``: how much of ΔW's energy the method can represent.

    Parameters
    ----------
    targets, reading : adapters, or fine-tuned models with ``base=``; as for :func:`bora_analysis.analyse`.
    members : ``("bora", 8, 16)`` is BoRA of r = 8 and b = 16; a name alone is sized by the budget: the largest r with
        which all modules together cost at most so much, and the catalogue's default of blocks. Default: every set of
        :func:`bora_analysis.analysis.members.capturing` that the budget reaches; LoRA stands for rsLoRA, AdaLoRA and
        DeLoRA, which have the same.
    budget : trained parameters of the adapter; default those of ``like``, or else half, once, twice and four times
        those of the target, or of LoRA r = 8 where ΔW has no factors (full fine-tuning).
    like : an adapter whose parameters are the budget.
    bora_activation : of the BoRA that is looked for; ``"identity"`` allows any Σ.
    starts : of the local methods: one from the truncated SVD, the others from random factors (seeds 1, 2, …). The best
        counts.
    sample : at most so many modules of each adapter, see :func:`sampled`; sizes and budget are still of all modules.
    known : an earlier table; its rows are not computed again.
    on_module : called after each module, for progress.

    Returns
    -------
    DataFrame
        adapter, step, module, layer, projection, target (its method), energy (‖T‖_F²), method, r, blocks, activation,
        parameters (of this module), captured (NaN for ΔW = 0), kind (exact, local, or best case, where training would
        draw at random what the projection chooses), starts, spread (best − worst start), drawn (the share to expect
        from a best case's random choice), lora_rank and lora_captured (LoRA of the same parameters).

    Raises
    ------
    ValueError
        An unknown method or activation, sizes that fit no module, a budget below every method's least.
    AdapterError
        As for :func:`bora_analysis.analyse`.

    Examples
    --------
    >>> from bora_analysis import capture, synthetic_adapter
    >>> target = synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=16, kind="decay", decay=0.5)
    >>> table = capture(target, [("lora", 4), ("bora", 4, 4), ("melora", 4, 4)])
    >>> table[["method", "parameters", "captured", "lora_captured"]].round(2).values.tolist()
    [['lora', 384, 0.62, 0.62], ['bora', 448, 0.65, 0.66], ['melora', 384, 0.22, 0.62]]
    """
    rows: list[tuple[Any, ...]] = []
    chosen = adapters_of(targets, **reading)
    with progress(sum(len(sampled(adapter, sample)) for adapter in chosen), on_module) as step:
        options: dict[str, Any] = {"budget": budget, "like": like, "bora_activation": bora_activation, "starts": starts}
        options["sample"] = sample
        for found in each_capture(chosen, members, **options, known=known):
            rows += found
            step()
    return table_of(rows)


def each_capture(
    adapters: Sequence[Adapter],
    members: Iterable[Member | tuple[Any, ...] | str] | None = None,
    *,
    budget: int | None = None,
    like: Any = None,
    bora_activation: str = "exp-norm",
    starts: int = 3,
    sample: int | None = None,
    known: pd.DataFrame | None = None,
) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of one module after another, for a caller who keeps them as they come; see :func:`capture`."""
    if bora_activation not in ACTIVATIONS:
        raise ValueError(f"activation {bora_activation!r} is unknown; expected one of {', '.join(ACTIVATIONS)}")
    if starts < 1:
        raise ValueError(f"starts is {starts}; expected at least 1")
    if like is not None:
        if budget is not None:
            raise ValueError("got budget and like; expected one of them")
        other = one_of(like)
        budget = sum(other[module].facts.parameters for module in other)
    given = None if members is None else [member_of(each) for each in members]
    old = _by_key(known)
    for adapter in adapters:
        tried = sized(adapter, given, budget)
        room = room_of(adapter)
        work = partial(
            of_module, adapter, members=tried, wish=Wish(1, 1, bora_activation, room=room), starts=starts, old=old
        )
        for _, rows in in_order(work, sampled(adapter, sample)):
            yield rows


def room_of(adapter: Adapter) -> tuple[int, int]:
    """The largest m and n of its modules."""
    facts = [adapter[module].facts for module in adapter]
    return max(each.out_features for each in facts), max(each.in_features for each in facts)


def sampled(adapter: Adapter, count: int | None) -> list[str]:
    """At most so many modules: of every projection in turn, spread over the layers; all of them for None.

    Examples
    --------
    >>> from bora_analysis import synthetic_adapter
    >>> shapes = {f"layers.{k}.{name}_proj": (8, 8) for k in range(4) for name in "qv"}
    >>> sampled(synthetic_adapter("lora", shapes, r=1), 4)
    ['layers.0.q_proj', 'layers.0.v_proj', 'layers.3.q_proj', 'layers.3.v_proj']
    """
    if count is None or count >= len(adapter):
        return list(adapter)
    groups: dict[str, list[str]] = {}
    for module in adapter:
        groups.setdefault(projection(module), []).append(module)
    counts = dict.fromkeys(groups, 0)
    while (left := count - sum(counts.values())) > 0:
        for name in [name for name, group in groups.items() if counts[name] < len(group)][:left]:
            counts[name] += 1
    chosen = {
        group[round(k * (len(group) - 1) / max(1, counts[name] - 1))]
        for name, group in groups.items()
        for k in range(counts[name])
    }
    return [module for module in adapter if module in chosen]


def table_of(rows: Iterable[tuple[Any, ...]]) -> pd.DataFrame:
    """Rows of :func:`each_capture` as the frame of :func:`capture`."""
    import pandas as pd

    numbers = dict.fromkeys(("captured", "spread", "drawn", "lora_captured"), float)
    return typed(pd.DataFrame(rows, columns=list(CAPTURE_COLUMNS)).astype(numbers))


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """The captured share of all modules together, weighted by their energy: one row per adapter, step and member.

    Parameters
    ----------
    table : of :func:`capture`.

    Returns
    -------
    DataFrame
        adapter, step, target, method, r, blocks, activation, kind, member (the method at its sizes, in words),
        parameters (of all modules), captured, least and most (over the modules), lora_captured, spread (the largest),
        starts, modules (with ΔW ≠ 0); fewest parameters first.

    Examples
    --------
    >>> from bora_analysis import capture, synthetic_adapter
    >>> target = synthetic_adapter("lora", {f"layers.{k}.q_proj": (32, 32) for k in range(2)}, r=4)
    >>> shares(capture(target, [("lora", 4)]))[["method", "parameters", "modules"]].values.tolist()
    [['lora', 512, 2]]
    """
    keys = ["adapter", "step", "target", "method", "r", "blocks", "activation", "kind"]
    used = table[table["energy"] > 0]
    used = used.assign(weighted=used["captured"] * used["energy"], lora=used["lora_captured"] * used["energy"])
    found = used.groupby(keys, sort=False, dropna=False).agg(
        parameters=("parameters", "sum"), weighted=("weighted", "sum"), lora=("lora", "sum"), energy=("energy", "sum"),
        least=("captured", "min"), most=("captured", "max"), spread=("spread", "max"), starts=("starts", "max"),
        modules=("module", "size"),
    ).reset_index()  # fmt: skip
    found["captured"], found["lora_captured"] = found["weighted"] / found["energy"], found["lora"] / found["energy"]
    found["member"] = [str(Member(*row)) for row in found[["method", "r", "blocks"]].itertuples(index=False)]
    columns = [
        *keys,
        "member",
        "parameters",
        "captured",
        "least",
        "most",
        "lora_captured",
        "spread",
        "starts",
        "modules",
    ]
    return found[columns].sort_values(["adapter", "step", "parameters"], kind="stable", ignore_index=True)


def nearest(
    update: Update,
    member: Member | tuple[Any, ...],
    *,
    bora_activation: str = "exp-norm",
    starts: int = 3,
    room: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The nearest member's parts, by the names of :func:`bora_analysis.write_adapter`; their scaling is 1.

    Parameters
    ----------
    update : the target.
    member : method, r, blocks.
    bora_activation, starts : as for :func:`capture`.
    room : the largest m and n of the modules, for a method whose modules share something of these sizes (VeRA).

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Sizes that do not fit the module.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora
    >>> parts = nearest(lora(np.eye(4)[:, :2] * [3.0, 2.0], np.eye(2, 6)), ("lora", 1))
    >>> (parts["B"] @ parts["A"]).round(9).tolist()[0][:2]
    [3.0, 0.0]
    """
    member = with_default(member_of(member), [update.shape])
    if reason := member.misfit(*update.shape):
        raise ValueError(reason)
    target, size = _target(update)
    if target is None:  # the start of the search, times 0
        target = Target(np.eye(update.shape[0], 1), np.eye(1, update.shape[1]))
    parts, *_ = _best(target, member, Wish(1, 1, bora_activation, room=room), starts)
    scale = projection_of(member.method).scale
    return {**parts, scale: parts[scale] * size}


def of_module(
    adapter: Adapter, module: str, members: Sequence[Member], wish: Wish, starts: int, old: Mapping[Any, Any]
) -> list[tuple[Any, ...]]:
    update = adapter[module]
    m, n = update.shape
    most = max(max(member.r, ceil(member.parameters(m, n) / (m + n))) for member in members)
    rows: list[tuple[Any, ...]] = []
    target: Target | None = None
    energy, curve = -1.0, np.zeros(1)  # still to be found
    for member in members:
        local = projection_of(member.method).kind == "local"
        own = wish.activation if member.method == "bora" else ""
        key = (adapter.name, adapter.step, module, *member, own, starts if local else 1)
        if key in old:
            rows.append(old[key])
            continue
        if energy < 0:
            try:
                target, size = _target(update)
            except NotFiniteError as error:
                raise AdapterError(f"{adapter.path or adapter.name}: {module}: {error}") from None
            energy = size**2
            curve = curve if target is None else target.curve(min(most, m, n))
        parameters = member.parameters(m, n)
        rank = parameters / (m + n)
        captured = spread = drawn = lora = float("nan")
        if target is not None:
            _, captured, spread, drawn = _best(target, member, wish, starts)
            lora = float(np.interp(rank, np.arange(len(curve)), curve))
        rows.append((
            adapter.name, adapter.step, module, layer(module), projection(module), update.facts.method, energy,
            *member, own, parameters, captured, projection_of(member.method).kind,
            starts if local else 1, spread, drawn, rank, lora,
        ))  # fmt: skip
    return rows


def _best(target: Target, member: Member, wish: Wish, starts: int = 3) -> tuple[dict[str, Any], float, float, float]:
    """Parts and captured share of the best start, the spread over the starts, and the share of a random choice."""
    method = projection_of(member.method)
    wish = replace(wish, r=member.r, blocks=member.blocks)
    found = []
    for start in range(starts if method.kind == "local" else 1):
        found.append(method.find(target, replace(wish, start=start)))
        if found[-1][1] > 1 - ENOUGH:
            break
    parts, captured = max(found, key=lambda each: each[1])
    spread = captured - min(each[1] for each in found)
    return parts, captured, spread, method.drawn(target, wish) if method.drawn else float("nan")


def _target(update: Update) -> tuple[Target | None, float]:
    """T / ‖T‖_F and ‖T‖_F; None for ΔW = 0."""
    (left, p), (right, q) = (normalised(factor) for factor in update.factors())
    size = Target(left, right).energy ** 0.5
    if size == 0:
        return None, 0.0
    whole = float(np.ldexp(size, int(p.item() + q.item())))
    if not np.isfinite(whole**2):
        raise NotFiniteError("its energy Σσ² is beyond the range of float64 (1.8e308); check α and the factors")
    return Target(left / size, right), whole


def _by_key(known: pd.DataFrame | None) -> dict[Any, Any]:
    if known is None:
        return {}
    missing = [name for name in CAPTURE_COLUMNS if name not in known]
    if missing:
        raise ValueError(f"the earlier table has no column {', '.join(missing[:3])}; expected one of capture")
    known = known.fillna({"activation": ""}).astype(object)  # csv has no empty text
    known = known.where(known.notna(), None)
    found = {}
    for row in known[list(CAPTURE_COLUMNS)].itertuples(index=False):
        key = (row.adapter, row.step, row.module, row.method, row.r, row.blocks, row.activation, row.starts)
        found[key] = tuple(row)
    return found
