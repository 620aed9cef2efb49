"""State dicts and models in memory, for the readers that read files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..files.errors import AdapterError
from ..files.in_memory import BaseInMemory, InMemory, is_array


def base_of(model: Any) -> BaseInMemory:
    """The base model's weights inside an adapted model."""
    named = {re.sub(r"^base_model\.model\.|base_layer\.", "", key): x for key, x in model.state_dict().items()}
    return BaseInMemory(named, settings_of(getattr(model, "config", {})))


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
