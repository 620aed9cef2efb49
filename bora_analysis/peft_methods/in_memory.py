"""A PEFT model in memory as an adapter, by the same readers as its files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..adapters import Adapter, read_adapter
from ..adapters.in_memory import model_of


def read_model(model: Any, *, adapter: str | None = None, name: str | None = None, step: int | None = None) -> Adapter:
    """The current updates of a PEFT model, as :func:`bora_analysis.read_adapter` would read them from its saved files.

    Parameters
    ----------
    model : a ``PeftModel`` of any method whose files can be read, also inside torch.compile or data-parallel wrappers.
    adapter : name of the model's adapter; by default the active one.
    name, step : of the result; the default name is the adapter's.

    Returns
    -------
    Adapter
        It refers to the model's own tensors. Access to a module copies its current factors to the CPU.

    Raises
    ------
    TypeError
        Not a PEFT model.
    AdapterError
        An unknown method, or one that needs the base model.

    Examples
    --------
    >>> import torch
    >>> from peft import get_peft_model
    >>> from bora_analysis.peft_methods import BoraConfig, read_model
    >>> config = BoraConfig(num_blocks=4, target_modules=["0"])
    >>> read_model(get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 12)), config))["0"].facts.rank_bound
    8
    """
    if model_of(model) is None:
        raise TypeError(f"a {type(model).__name__} is not a PEFT model; expected the result of get_peft_model")
    found = read_adapter(model, adapter=adapter, name=name)
    assert isinstance(found, Adapter)
    return replace(found, step=step)
