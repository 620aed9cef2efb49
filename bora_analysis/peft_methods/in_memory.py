"""A PEFT model in memory as an adapter, by the same readers as its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..adapters import Adapter, read_adapter
from ..adapters.in_memory import model_of, open_model
from ..atomic import replacing


def read_model(
    model: Any, *, adapter: str | None = None, name: str | None = None, step: int | None = None, initial: Any = None
) -> Adapter:
    """The current updates of a PEFT model, as :func:`bora_analysis.read_adapter` would read them from its saved files.

    Parameters
    ----------
    model : a ``PeftModel``, or a model of transformers with an adapter, of any method whose files can be read, also
        inside torch.compile or data-parallel wrappers. Its own base model serves methods that need one.
    adapter : name of the model's adapter; by default the active one.
    name, step : of the result; the default name is the adapter's.
    initial : the adapter as it was before training, to subtract: PiSSA, OLoRA, CorDA, LoRA-GA; see :func:`keep`.

    Returns
    -------
    Adapter
        It refers to the model's own tensors. Access to a module copies its current factors to the CPU.

    Raises
    ------
    TypeError
        Not a PEFT model.
    AdapterError
        An unknown method, or a quantised base model where its weights are needed.

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
        raise TypeError(
            f"a {type(model).__name__} is not a PEFT model; expected the result of get_peft_model, or of add_adapter"
        )
    found = read_adapter(model, adapter=adapter, name=name, initial=initial)
    assert isinstance(found, Adapter)
    return replace(found, step=step)


def keep(model: Any, folder: Path, adapter: str | None = None) -> Path:
    """Write the adapter as it is now, for ``initial``; the folder."""
    from safetensors.torch import save_file

    found, config, _ = open_model(model_of(model), adapter)
    tensors = {key: found.tensors[key].detach().cpu().contiguous() for key in found.keys()}  # noqa: SIM118  no mapping
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary)
    with replacing(folder / "adapter_config.json") as temporary:
        temporary.write_text(json.dumps(config), encoding="utf-8")
    return folder
