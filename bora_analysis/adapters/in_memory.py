"""State dicts and models in memory, for the readers that read files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16 and float8
import numpy as np

from ..files.base_model import BaseWeights
from ..files.errors import AdapterError
from ..linalg import Array


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
    """The base model's weights inside an adapted model, by their own names; nothing is copied until it is read."""

    def __init__(self, model: Any):
        named = {re.sub(r"^base_model\.model\.|base_layer\.", "", key): x for key, x in model.state_dict().items()}
        self._named = InMemory("the base model in memory", named)
        self.path, self.metadata, self._files = self._named.path, {}, dict.fromkeys(named, self._named.path)
        self.config = settings_of(getattr(model, "config", {}))

    def _tensors(self, key: str) -> Any:
        return self._named


def is_array(value: object) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_state_dict(given: object) -> bool:
    return (
        isinstance(given, Mapping) and all(isinstance(key, str) for key in given) and any(map(is_array, given.values()))
    )


def model_of(given: object) -> Any:
    """The model of PEFT, or of transformers with an adapter, inside what torch.compile or data-parallel made of it."""
    while hasattr(given, "state_dict"):
        if hasattr(given, "peft_config"):
            return given
        given = getattr(given, "_orig_mod", getattr(given, "module", None))
    return None


def open_model(model: Any, adapter: str | None) -> tuple[InMemory, dict[str, Any], str]:
    """Tensors, configuration and name of one of a model's adapters, by default the active one."""
    from peft import get_peft_model_state_dict  # here: it costs seconds

    if adapter is None:
        # PEFT has a name or a list, transformers a method.
        active: Any = getattr(model, "active_adapters", None) or getattr(model, "active_adapter", None)
        with suppress(ValueError):  # transformers' method, where PEFT alone has set the adapter in
            active = active() if callable(active) else active
        if active is None or callable(active):
            active = model.peft_config
        names = [active] if isinstance(active, str) else list(active)
        if len(names) != 1:
            raise AdapterError(f"the model has {len(names)} active adapters ({', '.join(names)}); name one (adapter=)")
        adapter = str(names[0])
    if adapter not in model.peft_config:
        raise AdapterError(f"the model has no adapter {adapter!r}; it has {', '.join(model.peft_config)}")
    # Whether embeddings are saved too is otherwise asked of the Hub.
    tensors = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return InMemory(f"adapter {adapter} of the model", tensors), settings_of(model.peft_config[adapter]), adapter


def settings_of(config: Any) -> Any:
    """A PEFT configuration as it would be in adapter_config.json; a dictionary as it is."""
    if not hasattr(config, "to_dict"):
        return config
    return json.loads(
        json.dumps(config.to_dict(), default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )
