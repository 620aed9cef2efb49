"""PEFT as the oracle: tiny models, adapted, saved and merged by PEFT itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def saved(model: Any, config: Any, folder: Path, seed: int = 0, **save: Any) -> dict[str, Array]:
    """Adapt ``model``, randomise the adapter, save it, and return what merging added, by parameter name."""
    return save_and_merge(adapted(model, config, seed), folder, **save)


def adapted(model: Any, config: Any, seed: int = 0) -> Any:
    import torch
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, config)
    torch.manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name or (parameter.requires_grad and peft_model.base_model.prefix in name):
            parameter.data.normal_()
    return peft_model


def save_and_merge(peft_model: Any, folder: Path, **save: Any) -> dict[str, Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model.save_pretrained(folder, **save)
        before = base_weights(peft_model)
        merged = peft_model.merge_and_unload()
    after = {name: parameter.detach().double().numpy() for name, parameter in merged.named_parameters()}
    return {name: after[name] - before[name] for name in after if name in before}


def base_weights(peft_model: Any) -> dict[str, Array]:
    """The base model's own parameters under the names they have without PEFT."""
    out = {}
    for name, parameter in peft_model.base_model.model.named_parameters():
        if peft_model.base_model.prefix not in name and ".modules_to_save." not in name:
            plain = name.replace("base_layer.", "").replace("original_module.", "")
            out[plain] = parameter.detach().double().numpy().copy()
    return out


def module(**children: Any) -> Any:
    """A model with the given children, which PEFT can wrap."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in children.items():
                setattr(self, name, child)

    torch.manual_seed(1)
    return Model()


def tiny_llama(**changes: Any) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    return _tiny(AutoModelForCausalLM.from_config, LlamaConfig, num_key_value_heads=1, **changes)


def tiny_gpt2() -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    return AutoModelForCausalLM.from_config(config)


def tiny_mixtral() -> Any:
    from transformers import AutoModelForCausalLM, MixtralConfig

    return _tiny(AutoModelForCausalLM.from_config, MixtralConfig, num_local_experts=3, num_key_value_heads=1)


def tiny_gpt_oss() -> Any:
    from transformers import AutoModelForCausalLM, GptOssConfig

    return _tiny(AutoModelForCausalLM.from_config, GptOssConfig, num_local_experts=3, num_key_value_heads=1, head_dim=8)


def _tiny(build: Callable[[Any], Any], config: Any, **changes: Any) -> Any:
    import torch

    torch.manual_seed(2)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return build(config(**{**sizes, "num_attention_heads": 2, **changes}))


def distance(found: Array, expected: Array) -> float:
    """‖found − expected‖_F / ‖expected‖_F."""
    assert found.shape == expected.shape
    assert np.linalg.norm(expected) > 0
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
