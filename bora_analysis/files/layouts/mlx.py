"""MLX (mlx-lm, ``tuner/lora.py``): transposed factors and a factor in place of α.

``<module>.lora_a`` (n, r) and ``.lora_b`` (r, m); ΔW = scale · (lora_a lora_b)ᵀ, with ``lora_parameters.scale`` of
adapter_config.json as it is (mlx-examples #982: "the scale parameter is exactly the factor α/r"). ``alpha`` beside it
is a default that was not used (mlx-lm #65), except by versions of early 2024, where the factor was scale · alpha/rank
(mlx-examples #623). They wrote ``lora_layers`` where later ones write ``num_layers``.

An embedding has ``lora_a`` (V, r) and ``lora_b`` (r, d). Experts (``LoRASwitchLinear``) are stacked: ``lora_a``
(E·r, n) or (E, r, n) and ``lora_b`` (E, m, r), not transposed; each becomes a module, numbered behind the module's
path. DoRA (``tuner/dora.py``) has the magnitude ``m`` too.

mlx-lm builds its layers by the configuration (``tuner/utils.py``: ``load_adapters``): one rank and one scale, and the
names of the modules as ``keys``, within a layer or whole.

Where the configuration holds α and rank and no scale, the factor is α/rank (mlx-examples #1186).

mlx-vlm (``trainer/lora.py``): ``<module>.A`` (n, r) and ``.B`` (r, m), with ``{"rank": …, "alpha": …}`` in the
configuration; ΔW = alpha · (A B)ᵀ, not divided by the rank.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from ...patterns import late
from ..errors import AdapterError
from ..keys import module_path
from ..tensors import Array, Tensors
from .out import Job, Layer, Out
from .view import Derived, Translation, View, add, transposed

_FACTOR = late(r"(?P<module>.+)\.lora_(?P<side>[ab])")
_VLM = late(r"(?P<module>.+)\.(?P<side>[AB])")
_EMBEDDING = late(r"(.*\.)?(\w*embed\w*|wte|wpe)")


def translate(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where the file is not MLX's."""
    factors: dict[str, dict[str, str]] = defaultdict(dict)
    entries: dict[str, str | Derived] = {}
    vlm = {"rank", "alpha"} <= set(config or ())
    for key in tensors.keys():  # noqa: SIM118  no mapping
        path = module_path(key)
        hit = _FACTOR.fullmatch(path) or (_VLM.fullmatch(path) if vlm else None)
        if hit:
            factors[hit["module"]][hit["side"].lower()] = key
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
    plain = vlm and all(key.endswith((".A", ".B")) for keys in factors.values() for key in keys.values())
    scale, alpha, notes = _scale(tensors, config, plain)
    scalings = {} if scale is None else dict.fromkeys(modules, scale)
    alphas = {} if alpha is None else dict.fromkeys(modules, alpha)
    return Translation(View(tensors, entries), None, alphas=alphas, scalings=scalings, notes=notes)


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


def _scale(
    tensors: Tensors, config: Mapping[str, Any] | None, vlm: bool
) -> tuple[float | None, float | None, tuple[str, ...]]:
    """The factor, or α where that alone is stored, and a warning where a version may have used another."""
    parameters = (config or {}).get("lora_parameters") or config or {}
    if not isinstance(parameters, Mapping):
        raise AdapterError(f"{tensors.path}: lora_parameters is {parameters!r}; expected a dictionary with scale")
    scale, alpha = (_number(tensors, parameters, name) for name in ("scale", "alpha"))
    if scale is not None:
        if alpha is None or "num_layers" in (config or {}):
            return scale, None, ()
        note = (
            f"the scaling is scale = {scale:g}; versions of mlx-lm from early 2024 multiplied it by alpha/rank "
            f"(alpha = {alpha:g}); if yours did, set alpha (--alpha)"
        )
        return scale, None, (note,)
    if vlm:
        return alpha, None, ()
    if alpha is None:
        return None, None, ()
    return None, alpha, (f"the configuration holds alpha = {alpha:g} and no scale; the scaling is taken as alpha/rank",)


def _number(tensors: Tensors, parameters: Mapping[str, Any], name: str) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise AdapterError(f"{tensors.path}: the configuration says {name} = {value!r}; expected a number")
    return float(value)


def name(_part: str, path: str, _module: str) -> str:
    """The module's path in the model."""
    return path


def write(job: Job) -> None:
    """``adapters.safetensors`` and ``adapter_config.json``."""

    def tensors(layer: Layer) -> dict[str, Array]:
        stacked = layer.A.ndim == 3
        A, B = (layer.A, layer.B) if stacked else (layer.A.T, layer.B.T)
        return {f"{layer.module}.lora_a": A, f"{layer.module}.lora_b": B}

    def config() -> dict[str, Any]:
        (told,) = set(job.told.values())
        keys = dict.fromkeys(re.sub(r"^(.*\.)?layers\.\d+\.", "", module) for module in job.told)
        return {
            "model": job.settings.get("base_model_name_or_path"),
            "fine_tune_type": "lora",
            "num_layers": -1,
            "lora_parameters": {"rank": told.r, "scale": told.scaling, "dropout": 0.0, "keys": list(keys)},
        }

    job.save("adapters.safetensors", tensors, config=config)


def claims(keys: list[str]) -> bool:
    """Whether the file is MLX's."""
    return any(key.endswith(".lora_a") and not key.endswith(".weight.lora_a") for key in keys)  # that is llama.cpp's


OUT = {
    "mlx": Out(
        write, name, claims, "adapters.safetensors", ("linear", "embedding"), "stacked", one_rank=True, configured=True
    )
}
