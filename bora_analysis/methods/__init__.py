"""One file a method: how a file of it is read, how one is written, how random factors are made.

A method's file has

* ``read(source)``: what it makes of an open file, or None where it does not find its own keys. From its first own key
  on the file is its own, and what does not fit is an error.
* ``FORMS``: name → :class:`~bora_analysis.methods.file_form.Form`, how it lies in a file;
* ``PADDED``: the same for layers that its blocks need not divide, where the row says ``pads``;
* ``RECIPES``: name → :class:`~bora_analysis.methods.random_factors.Recipe`;
* ``NULLS``: name → :class:`~bora_analysis.methods.random_factors.Null`, the singular values of its random factors,
  where they are known without the factors, or where the recipe is not what training begins with;
* ``NEAREST``: name → :class:`~bora_analysis.projections.Projection`, how its nearest member to an update is found.

Each is there as far as the method's row in :mod:`bora_analysis.catalogue` says so. What has no reader is refused by
name in :mod:`.unreadable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from ..catalogue import METHODS, Method
from ..extras import available

if TYPE_CHECKING:
    import numpy as np

    from ..linalg import Array
    from ..projections import Projection
    from .file_form import Form
    from .random_factors import Null, Recipe, Sizes

# The reader that takes every file.
_LAST = METHODS["lora"].module


def implementation(method: str) -> ModuleType:
    """The file of a method that has one."""
    return _imported(METHODS[method].module)


def form(method: str, *, pad: bool = False) -> Form:
    """How a method of :func:`bora_analysis.catalogue.made` lies in a file; with ``pad`` for one that may be padded."""
    return getattr(implementation(method), "PADDED" if pad else "FORMS")[method]


def recipe(method: str) -> Recipe:
    """How a method of :func:`bora_analysis.catalogue.made` is made at random."""
    return implementation(method).RECIPES[method]


def null(method: str) -> Null:
    """What an update of the method is compared with; NoNullError, with the reason, where there is nothing.

    A method without an own ``NULLS`` has that of its recipe, for updates of the sizes that the recipe makes.
    """
    from .random_factors import NoNullError, Null

    row = METHODS.get(method)
    if row is None or not row.module or row.initialises or row.staged:
        raise NoNullError(f"{method} is no method, or a sum of several, with random factors of its own")
    known = getattr(implementation(method), "NULLS", {})
    if method in known:
        return known[method]
    if row.needs_base:
        raise NoNullError(f"ΔW of {row.label} is made from the base model's weights")
    if not row.made:
        raise NoNullError(f"how {row.label} begins is not known here")
    return Null(partial(_recipe_cores, method))


def _recipe_cores(method: str, sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    from .random_factors import NoNullError, Spec

    shapes = {"null": (sizes.m, sizes.n)}
    spec = Spec(method, shapes, sizes.r, sizes.blocks, seed=int(rng.integers(2**31)))
    update = form(method).build(recipe(method).make(spec, rng, sizes.m, sizes.n), 1.0, sizes.activation or "exp-norm")
    made = update.facts
    if (made.parameters, made.rank_bound) != (sizes.parameters, sizes.rank_bound):
        raise NoNullError(
            f"trains {sizes.parameters:,} numbers and not {made.parameters:,}: its sizes do not tell its structure"
        )
    return update.cores()


def projects(method: str) -> bool:
    """Whether the nearest member of a method's set can be found, with what is installed."""
    known = getattr(implementation(method), "NEAREST", {}) if METHODS[method].module else {}
    return method in known and (not known[method].needs or available(known[method].needs))


def projection(method: str) -> Projection:
    """How the nearest member of the set of a method that :func:`projects` is found."""
    return implementation(method).NEAREST[method]


def readers() -> Iterator[ModuleType]:
    """The files with a reader, in the order in which they are tried, those of methods registered meanwhile as well."""
    modules = dict.fromkeys(row.module for row in METHODS.values() if row.module)
    return map(_imported, sorted(modules, key=lambda module: module == _LAST))


def _imported(module: str) -> ModuleType:
    """The file; of another package whatever its name stands for now."""
    return _own(module) if module.startswith(".") else import_module(module)


@cache
def _own(module: str) -> ModuleType:
    return import_module(module, __name__)  # without the cache it takes a small adapter a twentieth of its time


def readable(row: Method) -> bool:
    """Whether a reader finds the method."""
    return bool(row.module)
