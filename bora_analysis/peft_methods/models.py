"""The PEFT model of each method: a base model whose target layers are adapted."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from .adapter_layer import AdapterLayer
from .method_layers import BoraLayer, HydraloraLayer, MeloraLayer, SboraLayer


class AdapterModel(BaseTuner):
    """Base class of the methods' models."""

    tuner_layer_cls: type[AdapterLayer]  # pyright: ignore[reportIncompatibleVariableOverride]
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **_: Any,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            layer = target
        else:
            layer = self.tuner_layer_cls(target, adapter_name, current_key, peft_config)
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)  # a further adapter is trained once it is activated
            self._replace_module(parent, target_name, layer, target)
        peft_config.fan_in_fan_out = layer.is_transposed

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        # All layers first: a refusal half-way would leave a partly merged model.
        for module in self.model.modules():
            if isinstance(module, AdapterLayer):
                module.check_mergeable()


class BoraModel(AdapterModel):
    """A model adapted by BoRA (arXiv 2508.06953); ``get_peft_model`` makes it.

    Examples
    --------
    >>> import torch
    >>> from bora_analysis.peft_methods import BoraConfig, BoraModel
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
    >>> adapted = BoraModel(model, BoraConfig(r=2, num_blocks=2, target_modules=["0"]), "default")
    >>> {name: tuple(value.shape) for name, value in adapted.named_parameters() if value.requires_grad}
    {'model.0.bora_A.default': (2, 4), 'model.0.bora_B.default': (6, 2), 'model.0.bora_sigma.default': (2, 2, 2)}
    """

    prefix: str = "bora_"
    tuner_layer_cls = BoraLayer


class MeloraModel(AdapterModel):
    """A model adapted by MELoRA (arXiv 2402.17263).

    Examples
    --------
    >>> import torch
    >>> from bora_analysis.peft_methods import MeloraConfig, MeloraModel
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
    >>> adapted = MeloraModel(model, MeloraConfig(r=1, num_minis=2, target_modules=["0"]), "default")
    >>> {name: tuple(value.shape) for name, value in adapted.named_parameters() if value.requires_grad}
    {'model.0.melora_A.default': (2, 1, 2), 'model.0.melora_B.default': (2, 3, 1)}
    """

    prefix: str = "melora_"
    tuner_layer_cls = MeloraLayer


class SboraModel(AdapterModel):
    """A model adapted by SBoRA-FA or SBoRA-FB.

    Examples
    --------
    >>> import torch
    >>> from bora_analysis.peft_methods import SboraConfig, SboraModel
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
    >>> adapted = SboraModel(model, SboraConfig(r=2, target_modules=["0"]), "default")
    >>> {name: tuple(value.shape) for name, value in adapted.named_parameters() if value.requires_grad}
    {'model.0.sbora_B.default': (6, 2)}
    """

    prefix: str = "sbora_"
    tuner_layer_cls = SboraLayer


class HydraloraModel(AdapterModel):
    """A model adapted by HydraLoRA (arXiv 2404.19245).

    Examples
    --------
    >>> import torch
    >>> from bora_analysis.peft_methods import HydraloraConfig, HydraloraModel
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
    >>> adapted = HydraloraModel(model, HydraloraConfig(r=1, num_experts=2, target_modules=["0"]), "default")
    >>> sum(value.numel() for value in adapted.parameters() if value.requires_grad)  # nr + K(mr + n)
    24
    """

    prefix: str = "hydralora_"
    tuner_layer_cls = HydraloraLayer
