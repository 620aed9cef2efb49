"""The base class of the methods' layers: several adapters, forward pass, merging."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from .config import AdapterConfig
from .contraction import wide


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A linear layer W ∈ R^{m×n} and adapters beside it; y = W x + Σ ΔW x over the active ones.

    A method adds :meth:`make_factors`, :meth:`add_delta` and :meth:`dense_delta`. The base layer may be an
    ``nn.Linear``, GPT-2's ``Conv1D``, or any layer with ``in_features`` and ``out_features``, such as a quantised one:
    only its own forward pass is used until it is merged.
    """

    other_param_names: tuple[str, ...] = ("r", "lora_alpha", "scaling", "lora_dropout")

    def __init__(self, base_layer: nn.Module, adapter_name: str, module_name: str, config: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        self.out_features, self.in_features = _sizes(self.get_base_layer(), module_name)
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.lora_dropout = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.make_containers()
        self.update_layer(adapter_name, config)

    @property
    def is_transposed(self) -> bool:
        """Whether the base layer stores Wᵀ."""
        return isinstance(self.get_base_layer(), Conv1D)

    def update_layer(self, adapter_name: str, config: AdapterConfig) -> None:
        """Add an adapter, or reset one."""
        name = self.module_name
        r = of_pattern(config.rank_pattern, name, config.r)
        alpha = of_pattern(config.alpha_pattern, name, config.lora_alpha)
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = alpha
        self.scaling[adapter_name] = alpha / (math.sqrt(r) if config.use_rslora else r)
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.lora_dropout[adapter_name] = dropout
        self.make_factors(adapter_name, r, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @abstractmethod
    def make_containers(self) -> None:
        """The dictionaries of factors, by adapter name."""

    @abstractmethod
    def make_factors(self, adapter_name: str, r: int, config: Any) -> None:
        """Initialised factors of one adapter."""

    @abstractmethod
    def add_delta(self, adapter_name: str, result: Tensor, x: Tensor) -> Tensor:
        """result + ΔW dropout(x); result is (…, m), x (…, n)."""

    @abstractmethod
    def dense_delta(self, adapter_name: str) -> Tensor:
        """ΔW (m, n), scaled, in float32 or float64."""

    def trained_dtype(self, adapter_name: str) -> torch.dtype:
        """The dtype of the trained factors."""
        factors = (getattr(self, name) for name in self.adapter_layer_names)
        return next(own[adapter_name].dtype for own in factors if adapter_name in own)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """ΔW in the shape of the base layer's weight, (m, n) or (n, m), and in the dtype of the factors."""
        return self._delta(adapter).to(self.trained_dtype(adapter))

    def _delta(self, adapter: str) -> Tensor:
        with torch.no_grad():
            dense = self.dense_delta(adapter)
        return dense.T if self.is_transposed else dense

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.scaling:
                result = self.add_delta(name, result, self._cast_input_dtype(x, self.trained_dtype(name)))
        return result.to(dtype)

    def check_mergeable(self) -> None:
        """``ValueError`` unless ΔW can be added to the base layer's weight."""
        base = self.get_base_layer()
        weight = getattr(base, "weight", None)
        shape = (self.in_features, self.out_features) if self.is_transposed else (self.out_features, self.in_features)
        plain = isinstance(weight, Tensor) and weight.is_floating_point() and tuple(weight.shape) == shape
        if not plain or type(base).__module__.startswith("bitsandbytes"):
            raise ValueError(
                f"{self.module_name}: ΔW cannot be merged into a {type(base).__name__} with a quantised weight; "
                "expected a floating-point weight: load the base model unquantised to merge"
            )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW to the base weight with one rounding. ``safe_merge`` refuses a result that is not finite."""
        for name in check_adapters_to_merge(self, adapter_names) or ():
            if name in self.scaling:
                self._shift(name, 1, safe_merge)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract ΔW from the base weight. The result differs from the original W by two roundings to its dtype."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.scaling:
                self._shift(name, -1)

    def _shift(self, name: str, sign: int, safe: bool = False) -> None:
        self.check_mergeable()
        weight: Tensor = self.get_base_layer().weight.data  # pyright: ignore[reportAssignmentType]
        # At least in float32, so that only the sum is rounded to the dtype of the weight.
        delta = self._delta(name).to(weight.device)
        shifted = (weight.to(torch.promote_types(weight.dtype, delta.dtype)) + sign * delta).to(weight.dtype)
        if safe and not torch.isfinite(shifted).all():
            raise ValueError(
                f"{self.module_name}: merging adapter {name} would give NaN or Inf; the weight is unchanged"
            )
        weight.copy_(shifted)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True


def of_pattern(patterns: dict[str, Any], module_name: str, default: Any) -> Any:
    """The value of the pattern that matches a module, by PEFT's rule for ``rank_pattern``."""
    return patterns.get(get_pattern_key(list(patterns), module_name), default)


def initialised(*shape: int, zero: bool = False) -> nn.Parameter:
    """A factor of zeros, or Kaiming-uniform with a = √5 like PEFT's lora_A."""
    factor = nn.Parameter(torch.zeros(*shape) if zero else torch.empty(*shape))
    if not zero:
        nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
    return factor


def wide_factor(factor: Tensor) -> Tensor:
    """The factor in the dtype in which ΔW is computed."""
    return factor.to(wide(factor.dtype))


def _sizes(base: nn.Module, module_name: str) -> tuple[int, int]:
    """m and n."""
    if isinstance(base, Conv1D):
        n, m = getattr(base.weight, "ds_shape", base.weight.shape)  # ds_shape: sharded by DeepSpeed
        return m, n
    m, n = getattr(base, "out_features", None), getattr(base, "in_features", None)
    # nn.MultiheadAttention reads the weight of its out_proj without calling it: an adapter there would have no effect.
    if not isinstance(m, int) or not isinstance(n, int) or isinstance(base, NonDynamicallyQuantizableLinear):
        raise TypeError(
            f"{module_name}: a {type(base).__name__} cannot be adapted; expected a linear layer (nn.Linear, Conv1D, or "
            "a quantised one with in_features and out_features): change target_modules"
        )
    return m, n
