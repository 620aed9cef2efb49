"""A BoRA's configuration from the LoRA's that a program makes of its own options."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from peft import LoraConfig

from bora_analysis.peft_methods import BoraConfig


def bora_config(lora: LoraConfig, **own: Any) -> BoraConfig:
    """``BoraConfig`` with the settings of a LoRA; ``own`` are BoRA's, such as ``num_blocks``.

    Raises
    ------
    ValueError
        A setting is in use that only a LoRA has, such as DoRA.
    """
    usual, known = LoraConfig(), {field.name for field in fields(BoraConfig) if field.init} - {"peft_type"}
    told = {field.name: getattr(lora, field.name) for field in fields(LoraConfig) if field.init}
    lost = [name for name, value in told.items() if name not in known | {"peft_type"} and value != getattr(usual, name)]
    if not isinstance(lora.init_lora_weights, bool):
        lost.append("init_lora_weights")
    if lost:
        raise ValueError(f"{', '.join(lost)}: only a LoRA has such a setting; expected it unset for BoRA")
    if lora.bias == "lora_only":
        told["bias"] = "bora_only"
    return BoraConfig(**{name: value for name, value in told.items() if name in known} | own)
