"""A weight file under other names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...catalogue.dtypes import EPSILON
from ..errors import AdapterError
from ..tensors import Array, Tensors


class Key(str):
    """PEFT's name of a tensor, printed as the name that it has in the file.

    The readers match and look up PEFT's name; their messages name the tensor as the user finds it in the file.
    """

    stored: str

    def __new__(cls, name: str, stored: str) -> Key:
        key = super().__new__(cls, name)
        key.stored = stored
        return key

    def __str__(self) -> str:
        return self.stored

    def __repr__(self) -> str:
        return repr(self.stored)

    def __format__(self, spec: str) -> str:
        return format(self.stored, spec)


class Derived(NamedTuple):
    """A tensor that is made of tensors of the file when it is read."""

    stored: tuple[str, ...]
    shape: tuple[int, ...]
    build: Callable[..., Array]


class View:
    """Tensors of a file under new names, some transposed, cut or multiplied when they are read."""

    def __init__(self, given: Tensors, entries: Mapping[str, str | Derived]):
        self.path: Path = given.path
        self.metadata = given.metadata
        self.unread = given.unread
        self._given = given
        self._entries = {
            key: Derived((entry,), given.shape(entry), _same) if isinstance(entry, str) else entry
            for key, entry in entries.items()
        }
        uses = Counter(stored for entry in self._entries.values() for stored in entry.stored)
        self._shared = {stored for stored, count in uses.items() if count > 1}
        # Experts are slices of one stack, which must not be read once for each.
        self._cached = lru_cache(maxsize=4)(given.read)

    def keys(self) -> list[str]:
        return list(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key].shape

    def dtype(self, key: str) -> str:
        dtypes = [self._given.dtype(stored) for stored in self._entries[key].stored]
        return max(dtypes, key=lambda dtype: EPSILON.get(dtype, np.inf))  # a type that is no float must be seen

    def read(self, key: str) -> Array:
        entry = self._entries[key]
        return entry.build(*(self._read(stored) for stored in entry.stored))

    def _read(self, stored: str) -> Array:
        return self._cached(stored) if stored in self._shared else self._given.read(stored)


@dataclass(frozen=True)
class Translation:
    """A file under PEFT's names, and what its layout says about scaling.

    Attributes
    ----------
    config : the configuration, None where the layout's own has been used up.
    parts : ``tensors`` by method, where a file holds modules of several.
    alphas : module → α, where each module stores its own.
    scalings : module → the factor in front of the product, where that is stored and not α.
    ranks : module → the r that divides α, where it is not the first dimension of A.
    parameters : module → trained numbers, where a tensor is made of several.
    passed_over : keys that are no part of ΔW, left out of ``tensors``.
    alpha_keys : module → key of its α.
    notes : warnings.
    """

    tensors: Tensors
    config: Mapping[str, Any] | None = None
    parts: tuple[Tensors, ...] = ()
    alphas: Mapping[str, float] = field(default_factory=dict)
    scalings: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    alpha_keys: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def add(
    entries: dict[str, str | Derived], given: Tensors, name: str, stored: str, derived: Derived | None = None
) -> None:
    """Give a tensor of the file PEFT's name; AdapterError where another one has it."""
    key = Key(name, stored)
    if key in entries:
        other = next(other for other in entries if other == key)
        raise AdapterError(f"{given.path}: {stored} and {other}: two factors for one module")
    entries[key] = derived or stored


def transposed(given: Tensors, key: str) -> Derived:
    """The transpose of a matrix of the file. Other shapes stay, for the reader to refuse."""
    shape = given.shape(key)
    return Derived((key,), shape[::-1], np.transpose) if len(shape) == 2 else Derived((key,), shape, _same)


def _same(tensor: Array) -> Array:
    return tensor
