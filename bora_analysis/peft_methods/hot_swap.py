"""``peft.utils.hotswap.hotswap_adapter`` for BoRA and MELoRA: new factors in the place of the loaded ones.

PEFT takes the layer's path from keys that end in ``lora_A.<adapter>.weight``; ours end in ``bora_A.<adapter>``. So the
part that swaps is replaced for the methods here. What comes before it, files and configurations, stays PEFT's.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from peft.utils import hotswap
from torch import Tensor, nn

from .adapter_layer import AdapterLayer
from .config import AdapterConfig, BoraConfig, MeloraConfig

#: Settings that must agree and that no tensor's shape tells. α, its pattern and rsLoRA are taken over.
_SAME = {BoraConfig: ["activation", "lora_dropout"], MeloraConfig: ["lora_dropout"]}


def extend_peft() -> None:
    """Make PEFT's function swap adapters of these methods, too. Further calls are harmless."""
    if BoraConfig().peft_type in hotswap.CONFIG_KEYS_TO_CHECK:
        return
    for config, settings in _SAME.items():
        hotswap.CONFIG_KEYS_TO_CHECK[config().peft_type] = settings
    swap_of_peft, prepare_of_peft = hotswap.hotswap_adapter_from_state_dict, hotswap.prepare_model_for_compiled_hotswap

    @wraps(swap_of_peft)
    def swap(model: nn.Module, state_dict: dict[str, Tensor], adapter_name: str, config: Any, *more: Any, **named: Any):
        if isinstance(config, tuple(_SAME)):
            _swap(model, state_dict, adapter_name, config)
        else:
            swap_of_peft(model, state_dict, adapter_name, config, *more, **named)

    @wraps(prepare_of_peft)
    def prepare(model: nn.Module, *more: Any, **named: Any):
        if any(isinstance(layer, AdapterLayer) for layer in model.modules()):
            raise ValueError(
                "prepare_model_for_compiled_hotswap pads LoRAs to one rank; BoRA and MELoRA are swapped without it, at "
                "the same r and number of blocks. Where α/r changes, torch compiles once more"
            )
        prepare_of_peft(model, *more, **named)

    hotswap.hotswap_adapter_from_state_dict = swap
    hotswap.prepare_model_for_compiled_hotswap = prepare


def _swap(model: nn.Module, given: dict[str, Tensor], adapter: str, config: AdapterConfig) -> None:
    """Check everything, then copy. A layer that the new adapter lacks gets ΔW = 0, as in PEFT."""
    layers = {
        name.replace("_orig_mod.", ""): layer  # torch.compile wraps modules
        for name, layer in model.named_modules()
        if isinstance(layer, AdapterLayer) and adapter in layer.scaling
    }
    if any(adapter in layer.merged_adapters for layer in layers.values()):
        raise ValueError(f"Cannot hot-swap adapter '{adapter}': it is merged; call unmerge_adapter first")
    keys = {
        name: {f"{name}.{factor}.{adapter}": factor for factor in layer.adapter_layer_names}
        for name, layer in layers.items()
    }
    unknown = given.keys() - {key for own in keys.values() for key in own}
    if unknown:
        raise RuntimeError(
            f"Hot swapping the adapter did not succeed, unexpected keys found: {', '.join(sorted(unknown))}."
        )
    for name, own in keys.items():
        missing = [key for key in own if key not in given]
        if 0 < len(missing) < len(own):
            raise RuntimeError(f"Hot swapping the adapter did not succeed, missing keys: {', '.join(missing)}.")
        for key in [key for key in own if key in given]:
            new, old = tuple(given[key].shape), tuple(getattr(layers[name], own[key])[adapter].shape)
            if new != old:
                raise ValueError(
                    f"Cannot hot-swap adapter '{adapter}': {key} has shape {new}, the loaded one {old}; "
                    "expected the same r and the same number of blocks: use load_adapter and set_adapter instead"
                )
    with torch.no_grad():
        for name, own in keys.items():
            layers[name].set_scaling(adapter, config)
            for key, factor in own.items():
                old = getattr(layers[name], factor)[adapter]
                old.copy_(given[key]) if key in given else old.zero_()
    loaded = getattr(model, "peft_config", {}).get(adapter)
    for setting in ("lora_alpha", "alpha_pattern", "use_rslora") if loaded is not None else ():
        setattr(loaded, setting, getattr(config, setting))  # so that the swapped adapter is saved as it is
