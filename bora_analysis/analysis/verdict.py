"""One sentence on the rank that an adapter uses: the same in tables, cards, the dashboard and Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ..catalogue import METHODS
from ..files.errors import counted
from .given import layers_of
from .tables import Analysis
from .views import last_steps

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
    found = verdicts(layers_of(adapters, **options))
    return "\n".join(f"{each.adapter}: {each}" if len(found) > 1 else str(each) for each in found)


def verdicts(layers: pd.DataFrame) -> list[Verdict]:
    """The verdict on each adapter of a frame of layer_metrics, in its order."""
    return [_judged(str(name), part) for name, part in last_steps(layers).groupby("adapter", sort=False)]


def _judged(name: str, layers: Any) -> Verdict:
    steps = layers["step"].dropna()
    step = None if steps.empty else int(steps.iloc[0])
    moved = layers[~(layers["spectral_norm"] <= 0)]
    still = f"ΔW = 0 in {len(layers) - len(moved)} of {counted(len(layers), 'module')}"
    if moved.empty:
        return Verdict(name, step, "ΔW = 0 in every module: nothing was trained", "check", {})
    known = moved.dropna(subset=["energy_rank_99"])  # a quick analysis counts, and does not tell
    if known.empty:
        told = "the singular values were counted and not computed, so that nothing is known of the energy"
        return Verdict(name, step, told, "analyze", {})
    needed, bound = known["energy_rank_99"].astype(int), known["rank_bound"].astype(int)
    allowed = f"{bound.iloc[0]}" if bound.nunique() == 1 else f"{bound.min()}–{bound.max()}"
    mean = f"{needed.mean():.1f}" if len(known) > 1 else f"{needed.iloc[0]}"
    parts = [f"99 % of the energy in {mean} of {allowed} directions{_ends(known, needed, bound)}"]
    kinds = _kinds(known, needed, bound)
    words = [(_FREE if kind == "free" else f"rank {kind}", count) for kind, count in kinds.items()]
    if len(words) == 1:
        parts.append(words[0][0])
    else:
        first, *others = (f"{word} in {count}" for word, count in words)
        more = [each.removeprefix("rank ") for each in others]
        parts.append(", ".join([f"{first} of {len(known)} modules", *more]))
    if len(known) < len(moved):
        parts.append(f"{len(moved) - len(known)} of {len(moved)} modules were only counted")
    if len(moved) < len(layers):
        parts.append(still)
    most = max(kinds, key=lambda kind: kinds[kind])
    return Verdict(name, step, "; ".join(parts), KINDS[most], kinds)


def _ends(known: Any, needed: Any, bound: Any) -> str:
    """From which module to which: the ones that need least and most."""
    if needed.min() == needed.max():
        return ""
    names = short_modules(known)
    mixed = bound.nunique() > 1
    ends = [
        f"{needed[place]}{f' of {bound[place]}' if mixed else ''} ({names[known.at[place, 'module']]})"
        for place in (needed.idxmin(), needed.idxmax())
    ]
    return f", from {ends[0]} to {ends[1]}"


def _kinds(known: Any, needed: Any, bound: Any) -> dict[str, int]:
    """Kind → number of modules, the most frequent first."""
    room = known[["out_features", "in_features"]].min(axis=1)
    ranked = known["method"].map(lambda name: name not in METHODS or METHODS[name].ranked).astype(bool)
    free = (bound >= room) & (~ranked | (known["r"] * known["blocks"] < room))
    found = np.select(
        [free, needed <= bound / 2, (needed == bound) & (bound < room)], ["free", "spare", "short"], "fits"
    )
    counts = {kind: int((found == kind).sum()) for kind in KINDS}
    return dict(sorted(((kind, n) for kind, n in counts.items() if n), key=lambda each: -each[1]))


def short_modules(layers: Any) -> dict[str, str]:
    """Module → "layer 11 q", with what tells it from others of that layer and projection; else an end of its path.

    Parameters
    ----------
    layers : a frame with module, layer and projection.

    >>> import pandas as pd
    >>> paths = ["h.0.q", "h.0.experts.0.w1", "h.0.experts.1.w1", "lm_head"]
    >>> columns = {"module": paths, "layer": [0, 0, 0, None], "projection": ["q", "gate", "gate", "lm_head"]}
    >>> list(short_modules(pd.DataFrame(columns)).values())
    ['layer 0 q', 'layer 0 gate (experts.0)', 'layer 0 gate (experts.1)', 'lm_head']
    """
    import pandas as pd

    kin: dict[tuple[Any, str], list[str]] = {}
    for module, layer, projection in zip(layers["module"], layers["layer"], layers["projection"], strict=True):
        known = None if pd.isna(layer) else int(layer)
        own = kin.setdefault((known, projection), [])
        if module not in own:
            own.append(module)
    found = {}
    for (layer, projection), modules in kin.items():
        title = projection if layer is None else f"layer {layer} {projection}"
        found |= {modules[0]: title} if len(modules) == 1 else dict(_apart(title, modules, layer))
    return found


def _apart(title: str, modules: list[str], layer: int | None) -> Iterable[tuple[str, str]]:
    """Each module with the parts of its path that tell it from the others."""
    parts = [module.split(".") for module in modules]
    behind = parts[0].index(str(layer)) + 1 if str(layer) in parts[0] else 0
    start = behind if all(own[:behind] == parts[0][:behind] for own in parts) else 0
    ends = {own[-1] for own in parts}
    for module, own in zip(modules, parts, strict=True):
        rest = ".".join(own[start : len(own) - 1 if len(ends) == 1 else len(own)])
        yield module, f"{title} ({rest or module})"
