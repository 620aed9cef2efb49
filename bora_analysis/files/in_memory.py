"""Tensors in memory, for the readers that read files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16 and float8
import numpy as np

from ..linalg import Array
from .base_model import BaseWeights


class InMemory:
    """Named tensors of PyTorch, on any device, or arrays, as an open file: nothing is copied until it is read."""

    metadata: dict[str, str]

    def __init__(self, title: str, named: Mapping[str, Any]):
        self.path = Path(title)
        self.metadata = {}
        self.tensors = {key: value for key, value in named.items() if is_array(value)}
        self.unread = tuple(key for key in named if key not in self.tensors)

    def keys(self) -> list[str]:
        return list(self.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self.tensors[key].shape)

    def dtype(self, key: str) -> str:
        return str(self.tensors[key].dtype).removeprefix("torch.")

    def read(self, key: str) -> Array:
        value, narrow = self.tensors[key], self.dtype(key).startswith(("bfloat16", "float8"))
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = (value.float() if narrow else value).numpy()
        return np.array(value, dtype=np.float32 if narrow else None)


class BaseInMemory(BaseWeights):
    """The base model's weights by their own names; nothing is copied until it is read."""

    def __init__(self, named: Mapping[str, Any], config: Mapping[str, Any]):
        self._named = InMemory("the base model in memory", named)
        self.path, self.metadata, self._files = self._named.path, {}, dict.fromkeys(named, self._named.path)
        self.config = config

    def _tensors(self, key: str) -> Any:
        return self._named


def is_array(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
