"""The PEFT model of each method: a base model whose target layers are adapted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, onload_layer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    AuxiliaryTrainingWrapper,
    get_quantization_kwargs,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from .adapter_layer import AdapterLayer, layer_class
from .method_layers import BoraLinear, HydraLoraLinear, MeloraLinear, MoeLoraLinear, SboraLinear
from .other_layers import BoraConv, BoraEmbedding, MeloraConv, MeloraEmbedding


class AdapterModel(BaseTuner):
    """Base class of the methods' models."""

    tuner_layer_cls: type[AdapterLayer]  # pyright: ignore[reportIncompatibleVariableOverride]
    #: Classes for layers that are not linear.
    other_layers: tuple[type[AdapterLayer], ...] = ()
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    # For ensure_weight_tying with modules_to_save, and to unload a layer with new tokens: nothing is special to LoRA.
    _add_modules_to_save_to_tie: Any = LoraModel._add_modules_to_save_to_tie
    _replace_module: Any = LoraModel._replace_module

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
            base: Any = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            make = layer_class((self.tuner_layer_cls, *self.other_layers), base, current_key)
            layer = make(target, adapter_name, current_key, peft_config, **get_quantization_kwargs(self))
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)  # a further adapter is trained once it is activated
            self._replace_module(parent, target_name, layer, target)
        if isinstance(layer.get_base_layer(), Conv1D | nn.Linear):
            peft_config.fan_in_fan_out = layer.is_transposed

    def adapter_layers(self) -> Iterator[AdapterLayer]:
        """All layers of this method."""
        return (module for module in self.model.modules() if isinstance(module, AdapterLayer))

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        # All layers first: a refusal half-way would leave a partly merged model.
        for layer in self.adapter_layers():
            layer.check_mergeable()

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        if safe_merge:
            self._check_finite(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge and safe_merge:
            self._check_finite(adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _check_finite(self, names: list[str] | None) -> None:
        self._check_merge_allowed()
        for layer in self.adapter_layers():
            with onload_layer(layer):
                layer.check_finite(layer.active_adapters if names is None else names)

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refused: a sum of updates is not an update of the same method."""
        raise NotImplementedError(
            f"{type(self).__name__}: a sum of adapters is not an adapter of this method. Convert each to a LoRA "
            "(bora_analysis.convert), add these with add_weighted_adapter(combination_type='cat'), or activate several"
        )

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **options: Any) -> Iterator[None]:
        """Give every layer the argument ``adapter_names`` of a batch for several adapters, as PEFT's LoRA does."""
        names = options.get("adapter_names")
        with ExitStack() as hooks:
            if names is not None:
                self._add_hooks(hooks, names, options.get("num_beams"))
            yield

    def _add_hooks(self, hooks: ExitStack, names: list[str], beams: Any) -> None:
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        known = {name for layer in self.adapter_layers() for name in layer.scaling}
        unknown = sorted(set(names) - known - {"__base__"})
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        # Beam search repeats each sample in the decoder, not in the encoder.
        repeated = [name for name in names for _ in range(beams if isinstance(beams, int) else 1)]
        encoder = getattr(self.model, "get_encoder", lambda: None)()
        inside = {id(module) for module in encoder.modules()} if encoder not in (None, self.model) else set()
        for module in self.modules():
            if isinstance(module, AdapterLayer | AuxiliaryTrainingWrapper):
                told = {"adapter_names": names if id(module) in inside else repeated}
                hook = module.register_forward_pre_hook(lambda _, a, k, told=told: (a, k | told), with_kwargs=True)
                hooks.callback(hook.remove)


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
    tuner_layer_cls = BoraLinear
    other_layers = (BoraEmbedding, BoraConv)


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
    tuner_layer_cls = MeloraLinear
    other_layers = (MeloraEmbedding, MeloraConv)


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
    tuner_layer_cls = SboraLinear


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
    tuner_layer_cls = HydraLoraLinear


class MoeloraModel(AdapterModel):
    """A model adapted by MoELoRA (arXiv 2310.18339).

    Examples
    --------
    >>> import torch
    >>> from bora_analysis.peft_methods import MoeloraConfig, MoeloraModel
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6))
    >>> adapted = MoeloraModel(model, MoeloraConfig(r=1, num_experts=2, target_modules=["0"]), "default")
    >>> sum(value.numel() for value in adapted.parameters() if value.requires_grad)  # K((m + n)r + n)
    28
    """

    prefix: str = "moelora_"
    tuner_layer_cls = MoeLoraLinear
