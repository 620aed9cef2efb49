"""Facts about methods, their costs and the models that the paper adapts. Uses the standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from .layouts import WRITTEN
from .methods import METHODS
from .row import Blocks, Formula, Method, Training

__all__ = [
    "ACTIVATIONS", "EXPERTS", "LAYOUTS", "METHODS", "Blocks", "Formula", "Method", "Training", "check_may_pad",
    "costed", "labels", "made", "may_pad", "method", "names", "register", "trained",
]  # fmt: skip

#: How Σ follows from BoRA's stored σ, see :func:`bora_analysis.updates.blocks.activate`.
ACTIVATIONS = ("exp-norm", "no-exp", "no-norm", "identity")
#: The update that represents a layer with a router, see :func:`bora_analysis.updates.mixture.mixed`.
EXPERTS = ("mean", "each", "stacked")
#: In which a LoRA is written.
LAYOUTS = tuple(WRITTEN)


def register(row: Method) -> None:
    """Add a method of another package: its row; its code is in the file ``row.module``.

    The method is then read, written, made at random, costed and listed in menus, as its row specifies.

    Raises
    ------
    ValueError
        Another method has that name.
    """
    if METHODS.setdefault(row.name, row) is not row:
        raise ValueError(f"method {row.name!r} exists already ({METHODS[row.name].label}); choose another name")


def method(name: str) -> Method | None:
    """The row of a method by its name, with or without punctuation; None for an unknown method.

    >>> method("bora").label, method("LoRA-GA").name, method("newra")
    ('BoRA', 'lora-ga', None)
    """
    return METHODS.get(name) or next((row for row in METHODS.values() if _bare(row.name) == _bare(name)), None)


def costed(*, every: bool = False) -> tuple[str, ...]:
    """The methods with a known cost; with ``every`` also special cases of other methods."""
    special = names(lambda row: row.cost is not None and not row.listed)
    return names(lambda row: row.cost is not None and row.listed) + (special if every else ())


def made() -> tuple[str, ...]:
    """The methods that can be written and made at random."""
    return names(lambda row: row.made)


def may_pad(row: Method) -> bool:
    """Whether a layer may be padded where the method's blocks do not divide it."""
    return row.blocks is not None and row.blocks.pads


def check_may_pad(methods: Iterable[str]) -> None:
    """Raise ``ValueError`` unless one of the methods may be padded."""
    methods = tuple(methods)
    if not any(may_pad(METHODS[name]) for name in methods):
        raise ValueError(f"{', '.join(methods)} cannot be padded; methods that can: {', '.join(names(may_pad))}")


def trained() -> tuple[str, ...]:
    """The methods that ``train`` accepts."""
    return names(lambda row: row.training)


def names(fits: Callable[[Method], object]) -> tuple[str, ...]:
    """The names of the rows for which ``fits`` is true, in order."""
    return tuple(row.name for row in METHODS.values() if fits(row))


def labels(fits: Callable[[Method], object], joined: str = " and ") -> str:
    """The labels of the rows for which ``fits`` is true, for a sentence: "A, B and C".

    >>> labels(lambda row: row.experts)
    'HydraLoRA, MoELoRA and Lily'
    """
    return in_words([row.label for row in METHODS.values() if fits(row)], joined)


def in_words(found: Sequence[str], joined: str = " and ") -> str:
    """A list for a sentence: "A, B and C"."""
    return joined.join([", ".join(found[:-1]), found[-1]]) if len(found) > 1 else "".join(found)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())
