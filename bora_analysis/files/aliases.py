"""Modules that stand in a file under two names, with the same tensors: tied ones, and copies for a server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod

import numpy as np

from ..patterns import late
from .keys import ancestors, module_path
from .tensors import Tensors

_NUMBER = late(r"\d+")


def aliases(tensors: Tensors, modules: Iterable[str]) -> dict[str, str]:
    """Module → the one of a shorter name that has the same tensors.

    Only modules of one layer and of one last name are compared: layers that were copied are layers of their own.
    """
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for module in modules:
        groups[module.rstrip(".0123456789").rpartition(".")[2], *_NUMBER.findall(module)].append(module)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return {}
    parts = _parts(tensors, {module for group in several for module in group})
    found: dict[str, str] = {}
    for group in several:
        kept: list[str] = []
        for module in sorted(group, key=lambda module: (len(module), module)):
            same = next((other for other in kept if _equal(tensors, parts[module], parts[other])), None)
            if same is None:
                kept.append(module)
            else:
                found[module] = same
    return found


def _parts(tensors: Tensors, modules: set[str]) -> dict[str, dict[str, str]]:
    """Module → what follows it in a key → key."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for key in tensors.keys():  # noqa: SIM118  no mapping
        path = module_path(key)
        module = next((own for own in ancestors(path) if own in modules), None)
        if module is not None:
            parts[module][path.removeprefix(module)] = key
    return parts


def _equal(tensors: Tensors, ours: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Whether all tensors agree. Constant ones, of a start or of a test, say nothing."""
    if not ours or ours.keys() != theirs.keys():
        return False
    if any(tensors.shape(ours[part]) != tensors.shape(theirs[part]) for part in ours):
        return False
    varies = False
    for part in sorted(ours, key=lambda part: prod(tensors.shape(ours[part]))):  # the least to read first
        own = tensors.read(ours[part])
        if not np.array_equal(own, tensors.read(theirs[part])):
            return False
        varies = varies or (own.size > 1 and bool((own != own.flat[0]).any()))
    return varies
