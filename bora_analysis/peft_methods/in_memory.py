"""A PEFT model in memory as an adapter, by the readers that read its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict

from ..adapters import Adapter
from ..adapters.read import adapter_of
from ..files.tensors import LiveTensors


def read_model(model: Any, *, adapter: str | None = None, name: str | None = None, step: int | None = None) -> Adapter:
    """The updates of a PEFT model as it is now, as :func:`bora_analysis.read_adapter` would read them once saved.

    Parameters
    ----------
    model : a ``PeftModel`` of any method that can be read from its files; wrapped by torch.compile or data-parallel.
    adapter : which of its adapters, by default the active one.
    name, step : of the result; the name is by default the adapter's.

    Returns
    -------
    Adapter
        It refers to the model's own tensors: a module's factors are copied, to the CPU, when it is asked for, and show
        the training up to then.

    Raises
    ------
    TypeError
        No PEFT model.
    AdapterError
        A method that no reader knows, or that needs the base model.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from bora_analysis.peft_methods import BoraConfig, read_model
    >>> config = BoraConfig(num_blocks=4, target_modules=["0"])
    >>> read_model(get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 12)), config))["0"].facts.rank_bound
    8
    """
    while not hasattr(model, "peft_config") and (inner := getattr(model, "_orig_mod", getattr(model, "module", None))):
        model = inner
    if not hasattr(model, "peft_config"):
        raise TypeError(f"a {type(model).__name__} is no PEFT model; expected what get_peft_model returns")
    chosen: str = adapter or model.active_adapter
    # Whether embeddings are saved too is otherwise asked of the Hub.
    tensors = get_peft_model_state_dict(model, adapter_name=chosen, save_embedding_layers=False)
    # As it would be in adapter_config.json.
    settings = json.loads(json.dumps(model.peft_config[chosen].to_dict(), default=_plain))
    return adapter_of(LiveTensors(Path(f"adapter {chosen} of the model"), tensors), settings, name or chosen, step)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
