"""MLX (mlx-lm, ``tuner/lora.py``): transposed factors and a factor in place of α.

``<module>.lora_a`` (n, r) and ``.lora_b`` (r, m); ΔW = scale · (lora_a lora_b)ᵀ, with ``lora_parameters.scale`` of
adapter_config.json as it is (mlx-examples #982: "the scale parameter is exactly the factor α/r"). ``alpha`` beside it
is a default that was not used (mlx-lm #65), except by versions of early 2024, where the factor was scale · alpha/rank
(mlx-examples #623). They wrote ``lora_layers`` where later ones write ``num_layers``.

An embedding has ``lora_a`` (V, r) and ``lora_b`` (r, d). Experts (``LoRASwitchLinear``) are stacked: ``lora_a``
(E·r, n) or (E, r, n) and ``lora_b`` (E, m, r), not transposed; each becomes a module, numbered behind the module's
path. DoRA (``tuner/dora.py``) has the magnitude ``m`` too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from ..errors import AdapterError
from ..tensors import Array, Tensors
from .view import Derived, Translation, View, add, transposed

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])")
_EMBEDDING = re.compile(r"(.*\.)?(\w*embed\w*|wte|wpe)")


def translate(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where the file is not MLX's."""
    factors: dict[str, dict[str, str]] = defaultdict(dict)
    entries: dict[str, str | Derived] = {}
    names = tensors.keys()
    for key in names:
        hit = _FACTOR.fullmatch(key)
        if hit:
            factors[hit["module"]][hit["side"]] = key
        else:
            entries[key] = key
    if not factors:
        if (config or {}).get("fine_tune_type") == "full":
            raise AdapterError(
                f"{tensors.path}: adapter_config.json says fine_tune_type full: these are whole weights, and ΔW is "
                "their difference to the base model's"
            )
        return None
    modules: list[str] = []
    for module, keys in factors.items():
        if f"{module}.m" in entries:
            del entries[f"{module}.m"]
            add(entries, tensors, f"{module}.lora_magnitude_vector", f"{module}.m")
        if set(keys) == {"a", "b"} and len(tensors.shape(keys["b"])) == 3:
            modules += _experts(tensors, module, keys, entries)
            continue
        kind = "embedding_" if _EMBEDDING.fullmatch(module) else ""
        for side, key in keys.items():
            add(entries, tensors, f"{module}.lora_{kind}{side.upper()}", key, transposed(tensors, key))
        modules.append(module)
    scale, notes = _scale(tensors, config)
    scalings = {} if scale is None else dict.fromkeys(modules, scale)
    return Translation(View(tensors, entries), None, scalings=scalings, notes=notes)


def _experts(tensors: Tensors, module: str, keys: Mapping[str, str], entries: dict[str, str | Derived]) -> list[str]:
    A, B = tensors.shape(keys["a"]), tensors.shape(keys["b"])
    count, m, r = B
    if A not in ((count * r, A[-1]), (count, r, A[-1])):
        raise AdapterError(
            f"{tensors.path}: {keys['a']} has shape {A}; expected ({count * r}, n) or ({count}, {r}, n): "
            f"{keys['b']} has shape {B}, so {count} experts"
        )
    for e in range(count):
        path = f"{module}.{e}"
        add(entries, tensors, f"{path}.lora_A", keys["a"], Derived((keys["a"],), (r, A[-1]), _slice(count, e)))
        add(entries, tensors, f"{path}.lora_B", keys["b"], Derived((keys["b"],), (m, r), _slice(count, e)))
    return [f"{module}.{e}" for e in range(count)]


def _slice(count: int, expert: int) -> Callable[[Array], Array]:
    # A copy: the slice would keep the whole stack in memory.
    return lambda stack: stack.reshape(count, -1, stack.shape[-1])[expert].copy()


def _scale(tensors: Tensors, config: Mapping[str, Any] | None) -> tuple[float | None, tuple[str, ...]]:
    """The factor, None where it is not stored, and a warning where a version may have used another."""
    parameters = (config or {}).get("lora_parameters", {})
    if not isinstance(parameters, Mapping):
        raise AdapterError(f"{tensors.path}: lora_parameters is {parameters!r}; expected a dictionary with scale")
    scale = parameters.get("scale")
    if scale is None:
        return None, ()
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not isfinite(scale):
        raise AdapterError(f"{tensors.path}: the configuration says scale = {scale!r}; expected a number")
    alpha = parameters.get("alpha")
    if alpha is not None and "num_layers" not in (config or {}):
        note = (
            f"the scaling is taken as scale = {scale:g}; versions of mlx-lm of early 2024 multiplied it by alpha/rank "
            f"(alpha = {alpha}); if yours did, set alpha (--alpha)"
        )
        return float(scale), (note,)
    return float(scale), ()
