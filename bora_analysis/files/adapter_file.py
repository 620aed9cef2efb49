"""One adapter's weights and configuration, and what every reader looks up in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from ..catalogue.dtypes import EPSILON
from ..updates.checks import coarsest, is_finite
from ..updates.contract import FactorError, Update
from .errors import AdapterError, BaseNeededError, RankError
from .keys import module_pattern
from .tensors import Array, Tensors

if TYPE_CHECKING:
    from .base_model import BaseWeights

#: Entry of a configuration that we write: module path → [m, n].
SHAPES = "bora_analysis_shapes"
Loader = Callable[[], Update]


class Found(NamedTuple):
    """What a reader finds in a file.

    Attributes
    ----------
    method : of the adapter.
    loaders : module path → function that reads its update.
    passed_over : keys that are no part of an update.
    notes : one line each, where the numbers need a caveat.
    scaled : whether the method has an α, so that a missing one is worth a warning.
    """

    method: str
    loaders: dict[str, Loader]
    passed_over: list[str]
    notes: list[str]
    scaled: bool = True


@dataclass(frozen=True)
class Source:
    """Weights, configuration and the caller's options.

    Attributes
    ----------
    config : content of adapter_config.json, or None.
    alpha : the caller's α, in place of every α in the configuration.
    method : the method by the caller's option, where keys and configuration leave it open.
    packed : configurations that the weight file carries in its header, by key prefix (diffusers writes them).
    alphas, scalings, ranks : what a layout stores for each module, see :class:`layouts.Translation`. They take
        precedence over the configuration.
    experts : for HydraLoRA, MoELoRA and Lily, see :func:`read_adapter`.
    shapes : module path → (m, n) of the base model's layers, for methods whose tensors do not show them. Our writer
        puts them into the configuration, as ``bora_analysis_shapes``.
    base : the base model's weights, where they were given.
    """

    tensors: Tensors
    config: Mapping[str, Any] | None
    alpha: float | None = None
    activation: str | None = None
    method: str | None = None
    packed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    scalings: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    experts: str | Mapping[str, Any] = "mean"
    shapes: Mapping[str, tuple[int, int]] | None = None
    base: BaseWeights | None = None

    @property
    def path(self) -> Any:
        return self.tensors.path

    @property
    def all_settings(self) -> list[Mapping[str, Any]]:
        return [self.config] if self.config is not None else list(self.packed.values())

    @cached_property
    def text(self) -> str:
        """All keys, a line each: one search in it is much faster than one in each key, and most readers find none."""
        return "\n".join(self.tensors.keys())

    def has(self, pattern: str) -> bool:
        """Whether a regular expression, in which $ is the end of a key, is found in one of the keys."""
        found = re.search(pattern, self.text, re.MULTILINE)
        return bool(found) and any(re.search(pattern, key) for key in self.tensors.keys())  # noqa: SIM118  no mapping

    def settings(self, module: str) -> Mapping[str, Any] | None:
        """The configuration that holds for a module, or None."""
        if self.config is not None:
            return self.config
        return self.packed.get(module.split(".")[0], self.packed.get(""))

    def rank(self, module: str) -> int | None:
        """The configured r of a module; None where there is no configuration or no single number in it."""
        settings = self.settings(module)
        if settings is None:
            return None
        r = _lookup(self, settings, "rank_pattern", module, settings.get("r"))
        if r is None or isinstance(r, list | tuple):
            return None
        if isinstance(r, bool) or not isinstance(r, int) or r < 1:
            raise AdapterError(f"{self.path}: the configuration gives {module} r = {r!r}; expected a positive integer")
        return r

    def check_rank(self, module: str, key: str, r: int) -> None:
        """Raise unless the tensors' r is the configured one; PEFT could not load the file otherwise."""
        told = self.rank(module)
        r = self.ranks.get(module, r)
        if told is not None and told != r:
            raise RankError(
                f"{self.path}: {key} has rank {r} (shape {self.tensors.shape(key)}) but the configuration says "
                f"r = {told} for {module}; correct r or rank_pattern",
                module, r, told,
            )  # fmt: skip

    def setting(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """One entry of the configuration, checked; the default where there is none."""
        value = (self.config or {}).get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = kind.__name__ if isinstance(kind, type) else " or ".join(one.__name__ for one in kind)
            raise AdapterError(f"{self.path}: the configuration says {name} = {value!r}; expected {wanted}")
        return value

    @property
    def sized(self) -> bool:
        """Whether the sizes of the layers are known from elsewhere than the file."""
        return self.shapes is not None or self.base is not None or self._written_shapes is not None

    @property
    def _written_shapes(self) -> Mapping[str, Any] | None:
        return self.setting(SHAPES, Mapping)

    def shape_of(self, module: str, key: str) -> tuple[int, int]:
        """(m, n) of a layer, for a method whose file does not store it."""
        if self.shapes is not None and module in self.shapes:
            m, n = self.shapes[module]
            return int(m), int(n)
        if self.base is not None:
            return self.base.matrix(module, fan_in_fan_out=bool((self.config or {}).get("fan_in_fan_out"))).shape
        written = (self._written_shapes or {}).get(module)
        if written is None:
            raise BaseNeededError(
                f"{self.path}: {key} does not store the size of {module}, which the method needs",
                "; give the base model (--base), or the sizes of its layers (shapes)",
            )
        if not isinstance(written, list) or len(written) != 2 or not all(type(k) is int and k > 0 for k in written):
            raise AdapterError(f"{self.path}: the configuration's {SHAPES} gives {module} {written!r}; expected [m, n]")
        return written[0], written[1]

    def scaling(self, module: str, r: int, mini: int | None = None, *, name: str = "lora_alpha") -> float:
        """α/r, or α/√r for rsLoRA; 1 where no α is stored (a warning of the adapter says so)."""
        if self.alpha is None and module in self.scalings:
            return self.scalings[module]
        alpha = self.alpha_of(module, mini, name=name)
        r = self.ranks.get(module, r)
        return 1.0 if alpha is None else alpha / (math.sqrt(r) if self.is_rslora(self.settings(module)) else r)

    def alpha_of(self, module: str, mini: int | None = None, *, name: str = "lora_alpha") -> float | None:
        """α of a module, the caller's first and the file's second; None where there is no configuration either."""
        settings = self.settings(module)
        alpha: Any = self.alphas.get(module) if self.alpha is None else self.alpha
        if alpha is None:
            if settings is None:
                return None
            alpha = _lookup(self, settings, "alpha_pattern", module, settings.get(name))
            if isinstance(alpha, list | tuple) and mini is not None and mini < len(alpha):
                alpha = alpha[mini]
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            found = f"no {name}" if alpha is None else f"{name} = {alpha!r}"
            raise AdapterError(
                f"{self.path}: the configuration gives {module} {found}; expected a number; set it with alpha (--alpha)"
            )
        return float(alpha)

    def scaling_settings(self, module: str) -> tuple[Any, ...]:
        """What the scaling of a module depends on beside its r, to be compared."""
        settings = self.settings(module) or {}
        pattern = _lookup(self, settings, "alpha_pattern", module, None)
        return self.alphas.get(module), self.scalings.get(module), pattern, settings

    def is_rslora(self, settings: Mapping[str, Any] | None) -> bool:
        """Whether α is divided by √r (rsLoRA, arXiv 2312.03732) where this configuration holds."""
        told = (settings or {}).get("use_rslora")
        return self.method == "rslora" if told is None else bool(told)

    def says_scaling(self, module: str) -> bool:
        """Whether the caller, the file or its configuration gives the module's α or scaling."""
        told = module in self.alphas or module in self.scalings or self.settings(module) is not None
        return told or self.alpha is not None

    def expect(self, condition: Any, key: str, expected: str) -> None:
        """Raise :class:`AdapterError` with the key's shape unless the condition holds."""
        if not condition:
            raise AdapterError(f"{self.path}: {key} has shape {self.tensors.shape(key)}; expected {expected}")

    def read_shared(self, key: str) -> Array:
        """A tensor that several modules share. It is read by itself, so that an error names its own key."""
        array = self.tensors.read(key)
        if not is_finite(array):
            raise AdapterError(f"{self.path}: {key} holds NaN or Inf")
        return array

    def check_factor(self, key: str) -> None:
        """Raise unless the tensor holds numbers of a floating-point type."""
        self.expect(
            0 not in self.tensors.shape(key),
            key,
            "no empty dimension (were sharded weights saved before they were gathered?)",
        )
        dtype = self.tensors.dtype(key)
        if dtype not in EPSILON:
            raise AdapterError(f"{self.path}: {key} has dtype {dtype}; expected one of {', '.join(EPSILON)}")

    def loader(
        self, keys: Mapping[str, str | Sequence[str]], build: Callable[..., Update], *, read: Any = None
    ) -> Loader:
        """A function that reads the factors, by name, and builds the update; its errors name file and key."""
        flat = [key for value in keys.values() for key in ([value] if isinstance(value, str) else value)]
        dtype = coarsest(name for name in map(self.tensors.dtype, flat) if name in EPSILON)  # indices have none
        read = read or self.tensors.read

        def load() -> Update:
            factors: dict[str, Array | list[Array]] = {
                name: read(value) if isinstance(value, str) else [read(key) for key in value]
                for name, value in keys.items()
            }
            try:
                return build(**factors, dtype=dtype)
            except FactorError as error:
                key = keys.get(error.factor, flat[0])
                shown = key if isinstance(key, str) else f"{key[0]} …"
                # What a factor was made of may have another key than the first.
                shown = next((own for own in flat if not is_finite(self.tensors.read(own))), shown)
                raise AdapterError(f"{self.path}: {shown}: {error}") from None

        return load


def of_layer(update: Any, kernel: tuple[int, ...]) -> Update:
    """The update of a convolution with that kernel; as it is where the kernel is empty."""
    return update.with_facts(kind="conv", kernel=kernel) if kernel else update


def _lookup(source: Source, settings: Mapping[str, Any], name: str, module: str, default: Any) -> Any:
    patterns = settings.get(name) or {}
    if not isinstance(patterns, Mapping):
        raise AdapterError(f"{source.path}: {name} is {patterns!r}; expected a dictionary of patterns")
    if source.config is None and module.split(".")[0] in source.packed:  # its patterns do not know the prefix
        module = module.partition(".")[2]
    return match_pattern(source, patterns, module, default)


def match_pattern(source: Source, patterns: Mapping[str, Any], module: str, default: Any = None) -> Any:
    """The value of the first pattern that fits, by PEFT's rule (``utils/other.py:get_pattern_key``)."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({module_pattern(pattern)})$", module):
                return value
        except re.error as error:
            raise AdapterError(f"{source.path}: pattern {pattern!r} is no regular expression: {error}") from None
    # PEFT then looks for the module's own name, which a pattern with special characters may equal.
    return patterns.get(module, default)


def peft_type(config: Mapping[str, Any] | None) -> str:
    """The configuration's ``peft_type``; LORA where there is none."""
    return str((config or {}).get("peft_type") or "LORA").upper()
