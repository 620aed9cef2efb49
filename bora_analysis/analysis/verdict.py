"""One sentence on the rank that an adapter uses: the same in tables, cards, the dashboard and Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from ..catalogue import METHODS
from ..files.errors import counted
from ..style import shortened
from .columns import Columns, last_steps, missing
from .given import columns_of
from .tables import LOST, STILL, Analysis

if TYPE_CHECKING:
    import pandas as pd

#: What is said of a module's rank, and the command and function that is of use then.
KINDS = {"spare": "recommend", "short": "recommend", "fits": "capture", "free": "recommend"}
_FREE = "any rank is allowed"


@dataclass(frozen=True)
class Verdict:
    """What is said of one adapter.

    Attributes
    ----------
    adapter, step : of which the verdict is; of several steps the last.
    sentence : without name and next step.
    next : the command, and function, that goes on from here.
    kinds : ``"spare"``, ``"fits"``, ``"short"`` or ``"free"`` → in how many modules.
    """

    adapter: str
    step: int | None
    sentence: str
    next: str
    kinds: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.sentence}; next: {self.next}"


def verdict(adapters: Any, **options: Unpack[Analysis]) -> str:
    """How many directions hold 99 % of the energy, of how many allowed; whether rank is spare, fits or is short.

    By the rules of :func:`bora_analysis.recommend`, module by module: rank is *spare* where at most half of the rank
    bound is needed, *short* where all of it is and the sizes would allow more (the spectrum ends before it decays).
    Where the method sets no bound below the full rank (DoRA, the difference of two models) no such thing is said. It
    ends with the function, and command of the command line, that goes on from there.

    Parameters
    ----------
    adapters : a frame of :func:`bora_analysis.layer_metrics`, or what that takes, with its options; of several steps
        the last one counts.

    Returns
    -------
    str
        Of several adapters a line for each, which begins with its name.

    Examples
    --------
    >>> from bora_analysis import synthetic_adapter, verdict
    >>> shapes = {f"layers.{k}.q_proj": (64, 32) for k in range(2)}
    >>> verdict(synthetic_adapter("lora", shapes, r=16, kind="decay", decay=2.0))
    '99 % of the energy in 3.0 of 16 directions; rank spare; next: recommend'
    """
    found = verdicts(columns_of(adapters, **options))
    return "\n".join(f"{each.adapter}: {each}" if len(found) > 1 else str(each) for each in found)


def verdicts(layers: Columns | pd.DataFrame) -> list[Verdict]:
    """The verdict on each adapter of layer_metrics, in its order."""
    table = Columns.of(layers)
    last = table.rows(last_steps(table["adapter"].tolist(), table["step"].tolist()))
    return [judged(str(name), {key: part[key].tolist() for key in JUDGED}) for name, part in last.parts("adapter")]


def judged(name: str, columns: Mapping[str, Sequence[Any]]) -> Verdict:
    """The verdict on one adapter, without pandas: a sweep asks for it ten thousand times.

    Parameters
    ----------
    columns : those of ``JUDGED``, a value per module; what is missing is None or NaN.
    """
    rows = [_Row(*cells) for cells in zip(*(columns[column] for column in JUDGED), strict=True)]
    step = next((int(row.step) for row in rows if not missing(row.step)), None)
    moved = [row for row in rows if missing(row.spectral_norm) or row.spectral_norm > 0]
    lost = sum(underflows(row.spectral_norm, row.energy_rank_99) for row in rows)
    if not moved:
        told = f"{LOST.format('float64')} in {lost} of {counted(len(rows), 'module')}" if lost else STILL
        return Verdict(name, step, told, "check", {})
    known = [row for row in moved if not missing(row.energy_rank_99)]  # a quick analysis counts, and does not tell
    if not known:
        told = "the singular values were counted and not computed, so that nothing is known of the energy"
        return Verdict(name, step, told, "analyze", {})
    bounds = {int(row.rank_bound) for row in known}
    allowed = f"{min(bounds)}" if len(bounds) == 1 else f"{min(bounds)}–{max(bounds)}"
    needed = [int(row.energy_rank_99) for row in known]
    mean = f"{sum(needed) / len(needed):.1f}" if len(known) > 1 else f"{needed[0]}"
    parts = [f"99 % of the energy in {mean} of {allowed} directions{_ends(known, len(bounds) > 1)}"]
    kinds = _kinds(known)
    words = [(_FREE if kind == "free" else f"rank {kind}", count) for kind, count in kinds.items()]
    if len(words) == 1:
        parts.append(words[0][0])
    else:
        first, *others = (f"{word} in {count}" for word, count in words)
        more = [each.removeprefix("rank ") for each in others]
        parts.append(", ".join([f"{first} of {len(known)} modules", *more]))
    if len(known) < len(moved):
        parts.append(f"{len(moved) - len(known)} of {len(moved)} modules were only counted")
    for words, number in (("ΔW = 0", len(rows) - len(moved) - lost), (LOST.format("float64"), lost)):
        if number:
            parts.append(f"{words} in {number} of {counted(len(rows), 'module')}")
    most = max(kinds, key=lambda kind: kinds[kind])
    return Verdict(name, step, "; ".join(parts), KINDS[most], kinds)


def underflows(spectral_norm: Any, energy_rank_99: Any) -> bool:
    """Whether a row of layer_metrics is of a ΔW that is 0 in float64 and yet not 0: its ranks are missing."""
    return not missing(spectral_norm) and spectral_norm == 0 and missing(energy_rank_99)


class _Row(NamedTuple):
    """A module, as far as the verdict needs it."""

    module: str
    layer: Any
    projection: str
    step: Any
    method: str
    spectral_norm: Any
    energy_rank_99: Any
    rank_bound: Any
    out_features: Any
    in_features: Any
    r: Any
    blocks: Any


#: The columns of layer_metrics on which the verdict rests.
JUDGED = _Row._fields


def _ends(known: Sequence[_Row], mixed: bool) -> str:
    """From which module to which: the ones that need least and most; ``mixed`` with their bounds."""
    least, most = (pick(known, key=lambda row: int(row.energy_rank_99)) for pick in (min, max))
    if least.energy_rank_99 == most.energy_rank_99:
        return ""
    names = _named((row.module, None if missing(row.layer) else int(row.layer), row.projection) for row in known)
    ends = [
        f"{int(row.energy_rank_99)}{f' of {int(row.rank_bound)}' if mixed else ''} ({names[row.module]})"
        for row in (least, most)
    ]
    return f", from {ends[0]} to {ends[1]}"


def _kinds(known: Sequence[_Row]) -> dict[str, int]:
    """Kind → number of modules, the most frequent first."""
    found = [_kind(row) for row in known]
    counts = {kind: found.count(kind) for kind in KINDS}
    return dict(sorted(((kind, n) for kind, n in counts.items() if n), key=lambda each: -each[1]))


def _kind(row: _Row) -> str:
    room, bound, needed = min(row.out_features, row.in_features), int(row.rank_bound), int(row.energy_rank_99)
    ranked = row.method not in METHODS or METHODS[row.method].ranked
    if bound >= room and (not ranked or (not missing(row.r) and row.r * row.blocks < room)):
        return "free"
    if needed <= bound / 2:
        return "spare"
    return "short" if needed == bound and bound < room else "fits"


#: Letters of a module's short name.
LONGEST = 48


def short_modules(layers: Any) -> dict[str, str]:
    """Module → "layer 11 q", with what tells it from others of that layer and projection; else an end of its path.

    Parameters
    ----------
    layers : a frame, or columns, with module, layer and projection.

    >>> from bora_analysis.analysis.columns import Columns
    >>> paths = ["h.0.q", "h.0.experts.0.w1", "h.0.experts.1.w1", "lm_head"]
    >>> columns = {"module": paths, "layer": [0, 0, 0, None], "projection": ["q", "gate", "gate", "lm_head"]}
    >>> list(short_modules(Columns(columns)).values())
    ['layer 0 q', 'layer 0 gate (experts.0)', 'layer 0 gate (experts.1)', 'lm_head']
    """
    known = [None if missing(layer) else int(layer) for layer in layers["layer"]]
    return _named(zip(layers["module"], known, layers["projection"], strict=True))


def _named(modules: Iterable[tuple[str, int | None, str]]) -> dict[str, str]:
    """:func:`short_modules` of module, layer and projection."""
    kin: dict[tuple[int | None, str], list[str]] = {}
    for module, layer, projection in modules:
        own = kin.setdefault((layer, projection), [])
        if module not in own:
            own.append(module)
    found = {}
    for (layer, projection), own in kin.items():
        title = projection if layer is None else f"layer {layer} {projection}"
        found |= {own[0]: title} if len(own) == 1 else dict(_apart(title, own, layer))
    # Paths without layers may be of any length, and stand in sentences: cut in the middle, still different.
    return dict(zip(found, shortened(found.values(), LONGEST), strict=True))


def _apart(title: str, modules: list[str], layer: int | None) -> Iterable[tuple[str, str]]:
    """Each module with the parts of its path that tell it from the others."""
    parts = [module.split(".") for module in modules]
    behind = parts[0].index(str(layer)) + 1 if str(layer) in parts[0] else 0
    start = behind if all(own[:behind] == parts[0][:behind] for own in parts) else 0
    ends = {own[-1] for own in parts}
    for module, own in zip(modules, parts, strict=True):
        rest = ".".join(own[start : len(own) - 1 if len(ends) == 1 else len(own)])
        yield module, f"{title} ({rest or module})"
