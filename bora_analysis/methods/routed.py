"""Several updates of one layer, mixed by a router: what HydraLoRA, MoELoRA and Lily share.

There is no single ΔW: it depends on the router. ``experts`` says what is read instead, see
:func:`bora_analysis.updates.mixture.mixed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..catalogue import EXPERTS
from ..files.adapter_file import Loader, Source
from ..files.errors import AdapterError
from ..files.tensors import Array
from ..updates.contract import FactorError, Update
from ..updates.mixture import mixed, routing


def note(source: Source, label: str) -> str:
    if isinstance(source.experts, str):
        what = {
            "mean": "the uniform mean of the experts",
            "each": "each expert by itself",
            "stacked": "the experts on top of each other, whose singular values bound those of every mixture",
        }[source.experts]
    else:
        what = "the mean over the given inputs of the router"
    return f"{label}'s update depends on its router; shown is {what} (--experts {'|'.join(EXPERTS)})"


def loaders_of(
    source: Source,
    module: str,
    keys: Mapping[str, Any],
    count: int,
    method: str,
    scaling: float,
    router: int = 0,
    build: Callable[..., Update] | None = None,
) -> dict[str, Loader]:
    """One loader, or one an expert. ``build`` takes what :func:`mix` takes, where the factors lie otherwise."""
    if isinstance(source.experts, str):
        choices: dict[str, Any] = {module: source.experts}
        if source.experts == "each":
            choices = {f"{module}.{k}": k for k in range(count)}
    elif module not in source.experts:
        raise AdapterError(f"{source.path}: experts holds no inputs for {module}; expected (T, n) for every module")
    else:
        choices = {module: np.asarray(source.experts[module])}
    return {
        name: source.loader(keys, partial(build or mix, choice=choice, method=method, scaling=scaling, router=router))
        for name, choice in choices.items()
    }


def mix(
    A: list[Array],
    B: list[Array],
    route: Array | None = None,
    *,
    choice: Any,
    method: str,
    scaling: float,
    router: int,
    dtype: str,
) -> Update:
    matrices, A = (list(side[0]) if len(side) == 1 and side[0].ndim == 3 else side for side in (B, A))
    if isinstance(choice, np.ndarray):
        if route is None:
            raise FactorError(
                "A", "has no router beside it, so inputs cannot be routed; expected experts to be mean, each or stacked"
            )
        choice = routing(route, choice)
    trained = router or (route.size if route is not None else 0)
    return mixed(matrices, A, choice, method=method, scaling=scaling, router=trained, dtype=dtype)
