"""How much of an update each method could have represented, at equal trained parameters.

A rank bound says what a method may reach, not what it can represent. For a target T = ΔW and the set C of all updates
that a method has at its sizes, the captured share is ρ = 1 − min_{X ∈ C} ‖T − X‖_F² / ‖T‖_F². How the nearest member is
found stands in each method's file, see :mod:`bora_analysis.projections`. Beside it stands the LoRA of as many
parameters: with r = N / (m+n), and the captured share interpolated between whole ranks.

The captured share says nothing about what training finds, or about what the task loses without the rest.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np

from ..adapters import Adapter
from ..adapters.given import adapters_of, one_of
from ..adapters.reading import Options
from ..catalogue import ACTIVATIONS, METHODS, names
from ..catalogue.cost import cost
from ..catalogue.module_names import layer, projection
from ..files.errors import AdapterError
from ..linalg import NotFiniteError, normalised
from ..linalg.threads import in_order
from ..methods import projection as projection_of
from ..methods import projects, recipe
from ..methods.random_factors import Spec
from ..projections import ENOUGH, Target, Wish
from ..updates.contract import Update
from .progress import progress
from .tables import typed

if TYPE_CHECKING:
    import pandas as pd

CAPTURE_COLUMNS = (
    "adapter", "step", "module", "layer", "projection", "target", "energy", "method", "r", "blocks", "activation",
    "parameters", "captured", "kind", "starts", "spread", "drawn", "lora_rank", "lora_captured",
)  # fmt: skip
#: Budgets without one given, as multiples of the target's own parameters.
MULTIPLES = (0.5, 1.0, 2.0, 4.0)
#: The r of the LoRA whose parameters stand for those of a target without factors.
WHOLE = 8
#: The largest r that is tried without one given: LoHa works with r² rows, VeRA gains little.
_MOST = {"loha": 16, "vera": 256}


class Member(NamedTuple):
    """A method at its sizes.

    >>> str(Member("bora", 8, 16)), str(Member("c3a", 1, 4))
    ('BoRA r = 8, b = 16', 'C³A b = 4')
    """

    method: str
    r: int = 1
    blocks: int = 1

    def __str__(self) -> str:
        row = METHODS[self.method]
        sizes = [f"r = {self.r}"] * row.ranked + [f"b = {self.blocks}"] * (row.blocks is not None)
        return f"{row.label} {', '.join(sizes)}".rstrip()

    def parameters(self, m: int, n: int) -> int:
        row = METHODS[self.method]
        return cost(
            self.method,
            m,
            n,
            self.r,
            blocks=self.blocks if row.cut else 1,
            experts=self.blocks if row.experts else None,
        ).parameters


def capturing() -> tuple[str, ...]:
    """The methods whose nearest member can be found, and counted."""
    return names(lambda row: row.cost is not None and projects(row.name))


def capture(
    targets: Any,
    members: Iterable[Member | tuple[Any, ...] | str] | None = None,
    *,
    budget: int | None = None,
    like: Any = None,
    bora_activation: str = "exp-norm",
    starts: int = 3,
    known: pd.DataFrame | None = None,
    on_module: Callable[[], object] | None = None,
    **reading: Unpack[Options],
) -> pd.DataFrame:
    """One row per module and member of ``members``: how much of ΔW's energy the method can represent.

    Parameters
    ----------
    targets, reading : adapters, or fine-tuned models with ``base=``; as for :func:`bora_analysis.analyse`.
    members : ``("bora", 8, 16)`` is BoRA of r = 8 and b = 16; a name alone is sized by the budget: the largest r with
        which all modules together cost at most so much, and the catalogue's default of blocks. Default: every method of
        :func:`capturing` that the budget reaches.
    budget : trained parameters of the adapter; default those of ``like``, or else half, once, twice and four times
        those of the target, or of LoRA r = 8 where ΔW has no factors (full fine-tuning).
    like : an adapter whose parameters are the budget.
    bora_activation : of the BoRA that is looked for; ``"identity"`` allows any Σ.
    starts : of the local methods: one from the truncated SVD, the others from random factors (seeds 1, 2, …). The best
        counts.
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
    >>> table[["method", "parameters", "captured", "lora_captured"]].round(3).values.tolist()
    [['lora', 384, 0.616, 0.616], ['bora', 448, 0.65, 0.656], ['melora', 384, 0.225, 0.616]]
    """
    rows: list[tuple[Any, ...]] = []
    chosen = adapters_of(targets, **reading)
    with progress(sum(map(len, chosen)), on_module) as step:
        options: dict[str, Any] = {"budget": budget, "like": like, "bora_activation": bora_activation, "starts": starts}
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
        sized = _sized(adapter, given, budget)
        work = partial(_of_module, adapter, members=sized, activation=bora_activation, starts=starts, old=old)
        for _, rows in in_order(work, adapter):
            yield rows


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
        modules (with ΔW ≠ 0); fewest parameters first.

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
        least=("captured", "min"), most=("captured", "max"), spread=("spread", "max"), modules=("module", "size"),
    ).reset_index()  # fmt: skip
    found["captured"], found["lora_captured"] = found["weighted"] / found["energy"], found["lora"] / found["energy"]
    found["member"] = [str(Member(*row)) for row in found[["method", "r", "blocks"]].itertuples(index=False)]
    columns = [*keys, "member", "parameters", "captured", "least", "most", "lora_captured", "spread", "modules"]
    return found[columns].sort_values(["adapter", "step", "parameters"], kind="stable", ignore_index=True)


def nearest(
    update: Update, member: Member | tuple[Any, ...], *, bora_activation: str = "exp-norm", starts: int = 3
) -> dict[str, Any]:
    """The nearest member's parts, by the names of :func:`bora_analysis.write_adapter`; their scaling is 1.

    Parameters
    ----------
    update : the target.
    member : method, r, blocks.
    bora_activation, starts : as for :func:`capture`.

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
    member = member_of(member)
    if reason := _misfit(member, *update.shape):
        raise ValueError(reason)
    target, size = _target(update)
    if target is None:  # the start of the search, times 0
        target = Target(np.eye(update.shape[0], 1), np.eye(1, update.shape[1]))
    parts, *_ = _best(target, member, bora_activation, starts)
    scale = projection_of(member.method).scale
    return {**parts, scale: parts[scale] * size}


def member_of(given: Member | tuple[Any, ...] | str) -> Member:
    """Method, r and blocks; r is 0 where it is still to be found. ValueError for a method that cannot be."""
    method, *sizes = (given,) if isinstance(given, str) else given
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; expected one of {', '.join(capturing())}")
    if method not in capturing():
        known = ", ".join(capturing())
        raise ValueError(f"the nearest {METHODS[method].label} of an update is not known; expected one of {known}")
    row = METHODS[method]
    r, blocks = (*(sizes or [0]), 0)[:2]  # 0: to be sized
    r = r or (0 if row.ranked else 1)
    return Member(method, int(r), int(blocks) or (row.blocks.default if row.blocks else 1))


def _sized(adapter: Adapter, given: Sequence[Member] | None, budget: int | None) -> list[Member]:
    """The members to try, each with its r: those without one are sized by the budgets."""
    if given is not None and all(member.r for member in given):
        return list(given)
    facts = [adapter[module].facts for module in adapter]
    shapes = [(each.out_features, each.in_features) for each in facts]
    own = sum(min(each.parameters, WHOLE * sum(shape)) if each.parameters >= np.prod(shape) else each.parameters
              for each, shape in zip(facts, shapes, strict=True))  # fmt: skip
    budgets = [budget] if budget is not None else [int(own * factor) for factor in MULTIPLES]
    found: dict[Member, None] = {}
    for member in given or [member_of(method) for method in capturing()]:
        if given is not None and member.r and METHODS[member.method].ranked:
            found[member] = None
            continue
        for limit in budgets:
            if (largest := _largest(member, shapes, limit)) is not None:
                found[largest] = None
    if not found:
        raise ValueError(
            f"{adapter.name}: no method has as few as {max(budgets):,} parameters in {len(shapes)} modules; "
            "expected a larger budget"
        )
    return list(found)


def _largest(member: Member, shapes: Sequence[tuple[int, int]], budget: int) -> Member | None:
    """The member with the largest r that all modules have for the budget."""
    row = METHODS[member.method]
    step = member.blocks if row.splits else 1
    top = min(min(shape) for shape in shapes)
    most = recipe(member.method).most
    if most is not None:
        spec = Spec(member.method, {}, 1, member.blocks)
        top = min([top, *(most(spec, m, n) for m, n in set(shapes))])
    top = min(top, _MOST.get(member.method, top)) if row.ranked else 1

    def total(r: int) -> float:
        sized = member._replace(r=r)
        if any(_misfit(sized, m, n) for m, n in set(shapes)):
            return float("inf")
        return sum(sized.parameters(m, n) for m, n in shapes)

    possible = range(step, top + 1, step) if row.ranked else range(1, 2)
    fitting = bisect_right(possible, budget, key=total)
    return member._replace(r=possible[fitting - 1]) if fitting else None


def _misfit(member: Member, m: int, n: int) -> str | None:
    """Why the member has no such sizes."""
    try:
        member.parameters(m, n)
    except ValueError as error:
        return f"{member}: {error}"
    return None


def _of_module(
    adapter: Adapter, module: str, members: Sequence[Member], activation: str, starts: int, old: Mapping[Any, Any]
) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    target: Target | None = None
    update, energy, curve = None, 0.0, np.zeros(1)
    for member in members:
        local = projection_of(member.method).kind == "local"
        own = activation if member.method == "bora" else ""
        key = (adapter.name, adapter.step, module, *member, own, starts if local else 1)
        if key in old:
            rows.append(old[key])
            continue
        if update is None:
            update = adapter[module]
            try:
                target, size = _target(update)
            except NotFiniteError as error:
                raise AdapterError(f"{adapter.path or adapter.name}: {module}: {error}") from None
            energy = size**2
            curve = np.array([0.0]) if target is None else np.concatenate([[0.0], np.cumsum(target.svd[1] ** 2)])
        m, n = update.shape
        if reason := _misfit(member, m, n):
            raise ValueError(f"{adapter.name}: {module}: {reason}")
        parameters = member.parameters(m, n)
        rank = parameters / (m + n)
        found = (float("nan"),) * 3
        if target is not None:
            _, captured, spread, drawn = _best(target, member, activation, starts)
            found = captured, spread, drawn
        captured, spread, drawn = found
        lora = float(np.interp(rank, np.arange(len(curve)), curve)) if target is not None else float("nan")
        rows.append((
            adapter.name, adapter.step, module, layer(module), projection(module), update.facts.method, energy,
            *member, own, parameters, captured, projection_of(member.method).kind,
            starts if local else 1, spread, drawn, rank, lora,
        ))  # fmt: skip
    return rows


def _best(
    target: Target, member: Member, activation: str = "exp-norm", starts: int = 3
) -> tuple[dict[str, Any], float, float, float]:
    """Parts and captured share of the best start, the spread over the starts, and the share of a random choice."""
    method = projection_of(member.method)
    found = []
    for start in range(starts if method.kind == "local" else 1):
        found.append(method.find(target, Wish(member.r, member.blocks, activation, start)))
        if found[-1][1] > 1 - ENOUGH:
            break
    parts, captured = max(found, key=lambda each: each[1])
    wish = Wish(member.r, member.blocks)
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
