"""The base class of the methods' layers: several adapters, forward pass, merging."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from peft.utils.other import get_pattern_key
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend, QuantizationBackend
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from .config import AdapterConfig
from .contraction import wide


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A linear layer W ∈ R^{m×n} and adapters beside it; y = W x + Σ ΔW x over the active ones.

    A method adds :meth:`make_factors`, :meth:`add_delta` and :meth:`dense_delta`. The base layer may be an
    ``nn.Linear``, GPT-2's ``Conv1D``, or any layer with ``in_features`` and ``out_features``, such as a quantised one:
    only its own forward pass is used until it is merged. Names of classes for linear layers end in Linear, by which
    PEFT finds them for ``all-linear``.
    """

    #: The layers that :meth:`accepts` names, for a message.
    what = "a linear layer (nn.Linear, Conv1D, or a quantised one with in_features and out_features)"
    r: dict[str, int]
    lora_alpha: dict[str, float]
    scaling: dict[str, float]
    buffer_names: tuple[str, ...] = ()  #: those of other_param_names that are saved
    cast_input_dtype_enabled = True  # see peft.helpers.disable_input_dtype_casting
    other_param_names: tuple[str, ...] = ("r", "lora_alpha", "scaling", "lora_dropout")

    def __init__(self, base_layer: nn.Module, adapter_name: str, module_name: str, config: Any, **backend: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        self.quantization_backend = _backend(self.get_base_layer(), backend)
        self.out_features, self.in_features = self.sizes()
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        for name in self.other_param_names:
            setattr(self, name, {})
        for name in self.buffer_names:
            setattr(self, name, BufferDict(persistent=True))
        self.lora_dropout = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    @classmethod
    def accepts(cls, base: nn.Module) -> bool:
        """Whether this class adapts such a layer."""
        # nn.MultiheadAttention reads the weight of its out_proj without calling it: an adapter would have no effect.
        sizes = (getattr(base, "out_features", None), getattr(base, "in_features", None))
        numbers = all(isinstance(size, int) for size in sizes) and not isinstance(base, NonDynamicallyQuantizableLinear)
        return isinstance(base, Conv1D) or numbers

    def sizes(self) -> tuple[int, int]:
        """m and n."""
        base: Any = self.get_base_layer()
        if isinstance(base, Conv1D):
            n, m = getattr(base.weight, "ds_shape", base.weight.shape)  # ds_shape: sharded by DeepSpeed
            return m, n
        return base.out_features, base.in_features

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The last dimensions of A: n, or a convolution's channels and kernel."""
        return (self.in_features,)

    @property
    def is_transposed(self) -> bool:
        """Whether the base layer stores Wᵀ."""
        return isinstance(self.get_base_layer(), Conv1D)

    def extra_repr(self) -> str:
        own = {name: getattr(self, name) for name in self.other_param_names}
        shown = [f"{name}={value}" for name, value in own.items() if type(value) is dict]
        return ", ".join(filter(None, [*shown, quantization_extra_repr(self)]))

    def update_layer(self, adapter_name: str, config: AdapterConfig) -> None:
        """Add an adapter, or reset one."""
        self.r[adapter_name] = r = of_pattern(config.rank_pattern, self.module_name, config.r)
        self.set_scaling(adapter_name, config)
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.lora_dropout[adapter_name] = dropout
        self.make_factors(adapter_name, r, config)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_scaling(self, adapter_name: str, config: AdapterConfig) -> None:
        """α/r, or α/√r, of a configuration."""
        r, alpha = self.r[adapter_name], of_pattern(config.alpha_pattern, self.module_name, config.lora_alpha)
        self.lora_alpha[adapter_name] = alpha
        self.scaling[adapter_name] = alpha / (math.sqrt(r) if config.use_rslora else r)

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

    def apply_delta(self, name: str, result: Tensor, x: Tensor) -> Tensor:
        """The output with an adapter's part added, for the layer's own input."""
        return self.add_delta(name, result, self._cast_input_dtype(x, self.trained_dtype(name)))

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapter_names is not None:
            self._check_names(adapter_names, x)
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for name in self.active_adapters if adapter_names is None else sorted(set(adapter_names)):
            if name not in self.scaling:
                continue
            if adapter_names is None:
                result = self.apply_delta(name, result, x)
            else:  # each sample of the batch has an adapter of its own
                rows = torch.tensor([i for i, own in enumerate(adapter_names) if own == name], device=x.device)
                result = result.index_copy(0, rows, self.apply_delta(name, result[rows], x[rows]).to(dtype))
        return result.to(dtype)

    def _check_names(self, names: list[str], x: Tensor) -> None:
        # PEFT's own words, as in its LoRA.
        if len(names) != len(x):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )

    def check_mergeable(self) -> None:
        """``ValueError`` unless ΔW can be added to the base layer's weight."""
        base, backend = self.get_base_layer(), self.quantization_backend
        weight = getattr(base, "weight", None)
        size = self.out_features * self.in_features
        plain = isinstance(weight, Tensor) and weight.is_floating_point() and weight.numel() == size
        if not (plain if backend is None else backend.supports_merge):
            raise ValueError(
                f"{self.module_name}: ΔW cannot be merged into {_a(base)} with a quantised weight; "
                "expected a floating-point weight: load the base model unquantised to merge"
            )
        self._check_readable()

    def _check_readable(self) -> None:
        """``ValueError`` if bitsandbytes has put a 4-bit weight in an order that PEFT's backend reads as another one.

        It does so on processors with AVX512-BF16, in the first forward pass in evaluation mode.
        """
        state = getattr(getattr(self.get_base_layer(), "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(
                f"{self.module_name}: bitsandbytes has reordered the 4-bit weight for this processor in a forward "
                "pass, and PEFT would read a wrong one; expected it as it was loaded: merge before the first pass in "
                "evaluation mode, or into the base model unquantised"
            )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW to the base weight with one rounding, and quantise the sum again where the weight is quantised.

        ``safe_merge`` refuses a result that is not finite.
        """
        self.check_mergeable()
        names = [name for name in check_adapters_to_merge(self, adapter_names) or () if name in self.scaling]
        if safe_merge:
            self.check_finite(names)
        for name in names:
            self._shift(name, 1)
            self.merged_adapters.append(name)

    def check_finite(self, names: Iterable[str]) -> None:
        """``ValueError`` if merging these adapters would give NaN or Inf."""
        weight = self.get_base_weight()
        for name in names:
            if name in self.scaling and name not in self.merged_adapters:
                weight = self._shifted(weight, name, 1)
                if not torch.isfinite(weight).all():  # begins with PEFT's own words
                    raise ValueError(
                        f"NaNs detected in the merged weights. The adapter {name} seems to be broken: "
                        f"{self.module_name} would have NaN or Inf; nothing was changed"
                    )

    def unmerge(self) -> None:
        """Subtract ΔW from the base weight. The result differs from the original W by two roundings to its dtype."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        self._check_readable()
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.scaling:
                self._shift(name, -1)

    def _shift(self, name: str, sign: int) -> None:
        weight = self.get_base_weight()
        shifted = self._shifted(weight, name, sign)
        if self.quantization_backend is None:
            weight.copy_(shifted)  # in place: the weight may be tied
        else:
            self.set_base_weight(shifted)

    def _shifted(self, weight: Tensor, name: str, sign: int) -> Tensor:
        # At least in float32, so that only the sum is rounded to the dtype of the weight.
        delta = self._delta(name).to(weight.device)
        return (weight.to(torch.promote_types(weight.dtype, delta.dtype)) + sign * delta).to(weight.dtype)

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


def layer_class(kinds: Iterable[type[AdapterLayer]], base: nn.Module, module_name: str) -> type[AdapterLayer]:
    """The class that adapts such a layer."""
    kinds = tuple(kinds)
    found = next((kind for kind in kinds if kind.accepts(base)), None)
    if found is None:
        expected = ", or ".join(kind.what for kind in kinds)
        raise TypeError(f"{module_name}: {_a(base)} cannot be adapted; expected {expected}: change target_modules")
    return found


def _a(layer: nn.Module) -> str:
    name = type(layer).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _backend(base: nn.Module, settings: dict[str, Any]) -> QuantizationBackend | None:
    try:
        return resolve_quantization_backend(base, **settings)
    except ValueError:  # quantised by torchao itself: only transformers keeps how, which merging needs
        return ForwardOnlyQuantizationBackend("torchao")
