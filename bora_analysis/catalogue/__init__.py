"""Facts in one place: the methods, what they cost, the models that the paper adapts. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable

from .methods import METHODS, Blocks, Formula, Method, Training

__all__ = [
    "ACTIVATIONS", "EXPERTS", "METHODS", "Blocks", "Formula", "Method", "Training", "costed", "labels", "made",
    "method", "names", "register", "trained",
]  # fmt: skip

#: How Σ comes from BoRA's stored σ, see :func:`bora_analysis.updates.blocks.activate`.
ACTIVATIONS = ("exp-norm", "no-exp", "no-norm", "identity")
#: What stands for the update of a layer with a router, see :func:`bora_analysis.updates.mixture.mixed`.
EXPERTS = ("mean", "each", "stacked")


def register(row: Method) -> None:
    """Add a method of another package: its row here, its code in the file that ``row.module`` names.

    From then on it is read, written, made at random, costed and offered in every menu, as far as its row says so.

    Raises
    ------
    ValueError
        There is another method of that name.
    """
    if METHODS.setdefault(row.name, row) is not row:
        raise ValueError(f"there is a method {row.name!r} already ({METHODS[row.name].label}); choose another name")


def method(name: str) -> Method | None:
    """The row of a method by its name, as it is or without its punctuation; None for one that is not known.

    >>> method("bora").label, method("LoRA-GA").name, method("newra")
    ('BoRA', 'lora-ga', None)
    """
    return METHODS.get(name) or next((row for row in METHODS.values() if _bare(row.name) == _bare(name)), None)


def costed(*, every: bool = False) -> tuple[str, ...]:
    """The methods whose cost is known; with ``every`` also those that are special cases of another."""
    special = names(lambda row: row.cost is not None and not row.listed)
    return names(lambda row: row.cost is not None and row.listed) + (special if every else ())


def made() -> tuple[str, ...]:
    """The methods that are written and made at random."""
    return names(lambda row: row.made)


def trained() -> tuple[str, ...]:
    """The methods that ``train`` takes."""
    return names(lambda row: row.training)


def names(fits: Callable[[Method], object]) -> tuple[str, ...]:
    """The names of the rows that fit, in their order."""
    return tuple(row.name for row in METHODS.values() if fits(row))


def labels(fits: Callable[[Method], object], joined: str = " and ") -> str:
    """The labels of the rows that fit, for a sentence: "A, B and C".

    >>> labels(lambda row: row.experts)
    'HydraLoRA and MoELoRA'
    """
    found = [row.label for row in METHODS.values() if fits(row)]
    return joined.join([", ".join(found[:-1]), found[-1]]) if len(found) > 1 else "".join(found)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())
