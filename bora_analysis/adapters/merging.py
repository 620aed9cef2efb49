"""Sums and differences of adapters of the same modules, as concatenated factors.

Σ_k w_k ΔW_k = [w_1 L_1 … w_K L_K] · [R_1; …; R_K], exactly, where ΔW_k = L_k R_k. ReLoRA (arXiv 2307.05695) is the sum
of its stages; PiSSA (arXiv 2404.02948) and LoRA-GA (arXiv 2407.05000) update the original model by the difference to
their initial adapter, as do two seeds or two steps of one run by theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..files.errors import AdapterError
from ..files.keys import natural
from ..updates.contract import FactorError, Update
from ..updates.sums import combine
from .adapter import Adapter
from .given import items_of, one_of


def merge(
    adapters: Any,
    weights: Sequence[float] | None = None,
    *,
    name: str | None = None,
    method: str = "sum",
    force: bool = False,
    **reading: Any,
) -> Adapter:
    """Σ_k w_k ΔW_k of adapters, module by module, read when asked for.

    Parameters
    ----------
    adapters : a list of what :func:`bora_analysis.read_adapter` takes. Where an adapter lacks a module, its update
        there is zero; a warning lists such modules.
    weights : one per adapter; default 1. (1, −1) is the difference.
    name : default the adapters' names with their weights.
    method : the name under which the updates appear in tables.
    force : add adapters that :func:`check_related` refuses.
    reading : options of :func:`bora_analysis.read_adapter`.

    Returns
    -------
    Adapter
        In memory: ``path`` is None, and ``passed_over`` has what stands beside ΔW in the parts. Each update is that of
        :func:`bora_analysis.updates.sums.combine`.

    Raises
    ------
    AdapterError
        No adapters, another number of weights, or a weight that is not finite; adapters of several base models, or one
        that shares no module with another; when a module is asked for, shapes
        that differ.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import Adapter, lora, merge
    >>> one = Adapter.from_updates("one", {"q": lora(np.ones((4, 1)), np.ones((1, 3)))})
    >>> two = Adapter.from_updates("two", {"q": lora(np.full((4, 1), 4.0), np.ones((1, 3)))})
    >>> difference = merge([one, two], [1, -1])
    >>> difference.name, difference["q"].to_dense()[0].tolist()
    ('one-two', [-3.0, -3.0, -3.0])
    """
    adapters = [one_of(item, **reading) for item in items_of(adapters)]
    weights = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    if not adapters or len(weights) != len(adapters):
        raise AdapterError(
            f"merge: {len(adapters)} adapters and {len(weights)} weights; expected as many, at least one"
        )
    for adapter, weight in zip(adapters, weights, strict=True):
        if not np.isfinite(weight):
            raise AdapterError(f"merge: the weight of {adapter.name} is {weight}; expected a finite number")
    told = check_related(adapters, force=force)
    modules = sorted({module for adapter in adapters for module in adapter}, key=natural)
    warnings = [f"{adapter.name}: {line}" for adapter in adapters for line in adapter.warnings]
    warnings += told
    for adapter in adapters:
        missing = [module for module in modules if module not in adapter]
        if missing:
            shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            warnings.append(
                f"{adapter.name} lacks {len(missing)} of {len(modules)} modules; its update there is zero ({shown})"
            )
    title = name or "".join(_term(adapter.name, weight) for adapter, weight in zip(adapters, weights, strict=True))
    parts = list(zip(adapters, weights, strict=True))
    loaders = {module: partial(_load, parts, module, method) for module in modules}
    beside = tuple(dict.fromkeys(key for adapter in adapters for key in adapter.passed_over))
    bases = {adapter.base_model for adapter in adapters if adapter.base_model}
    base = bases.pop() if len(bases) == 1 else None
    layouts = {adapter.layout for adapter in adapters}
    layout = layouts.pop() if len(layouts) == 1 else None
    return Adapter(
        title.removeprefix("+"), method, None, None, loaders, beside, tuple(dict.fromkeys(warnings)), base, layout
    )  # fmt: skip


def check_related(adapters: Sequence[Adapter], *, force: bool = False) -> list[str]:
    """What speaks against putting adapters together: several base models, or one without a module of the others.

    Returns
    -------
    list of str
        One line each, where ``force`` lets it pass.

    Raises
    ------
    AdapterError
        The first of these lines, without ``force``.
    """
    found = []
    named = {adapter.base_model: adapter.name for adapter in adapters if adapter.base_model}
    if len(named) > 1:
        told = ", ".join(f"{name} of {base}" for base, name in named.items())
        found.append(f"the adapters have {len(named)} base models: {told}")
    for adapter in adapters:
        others = [other for other in adapters if other is not adapter]
        if others and not any(module in other for other in others for module in adapter):
            firsts = f"{next(iter(adapter), 'none')} and {next(iter(others[0]), 'none')}"
            found.append(f"{adapter.name} and {others[0].name} have no module in common (the first are {firsts})")
            break
    if found and not force:
        raise AdapterError(f"{found[0]}; expected adapters of one base model (--force, force=True, to do it anyway)")
    return found


def _term(name: str, weight: float) -> str:
    factor = {1.0: "+", -1.0: "-"}.get(weight)
    return f"{factor}{name}" if factor else f"{weight:+g}·{name}"


def _load(parts: Sequence[tuple[Adapter, float]], module: str, method: str) -> Update:
    present = [(adapter, weight, adapter[module]) for adapter, weight in parts if module in adapter]
    shapes = {
        (u.facts.out_features, u.facts.in_features, u.facts.kind, u.facts.kernel, u.facts.groups) for _, _, u in present
    }
    if len(shapes) > 1:
        found = ", ".join(
            f"{adapter.name} {u.facts.out_features}×{u.facts.in_features} ({u.facts.kind})" for adapter, _, u in present
        )
        raise AdapterError(f"merge: {module} differs in shape or kind: {found}; expected adapters of one base model")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return combine([update for _, _, update in present], [weight for _, weight, _ in present], method=method)
    except FactorError:
        names = ", ".join(adapter.name for adapter, _, _ in present)
        raise AdapterError(f"merge: {module}: the sum of {names} is beyond the range of float64; check α") from None
