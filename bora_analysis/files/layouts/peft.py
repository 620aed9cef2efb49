"""PEFT's layout out; in, it needs no translation: ``base_model.model.<module>.lora_A.weight`` (r, n) and ``.lora_B``.

``nn.MultiheadAttention`` is wrapped, and its out_proj inside it, with one rank for both (``tuners/lora/layer.py``). The
experts of a parameter have one pair, A (E·r, n) and B (m, r·E); several parameters of a module are nested, the one that
the module registers first innermost (``ParamWrapper``).
"""

from __future__ import annotations

from typing import Any

from ..tensors import Array
from .out import Job, Layer, Out, lora_settings

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
#: The order in which transformers' expert modules register their parameters; PEFT nests its wrappers in that order.
REGISTERED = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")


def name(_part: str, path: str, _module: str) -> str:
    """The module's path in the model."""
    return path


def write(job: Job) -> None:
    """``adapter_model.safetensors`` and ``adapter_config.json``."""
    names: dict[str, list[str]] = {}  # module with adapted parameters → their names
    inside: list[str] = []  # parts of nn.MultiheadAttention, which its settings hold for

    def tensors(layer: Layer) -> dict[str, Array]:
        if layer.kind == "parameter":
            stem, _, parameter = layer.module.rpartition(".")
            names.setdefault(stem, []).append(parameter)
            E, m, r = layer.B.shape
            key = f"{PREFIX}{stem}{layer.nesting}"
            B = layer.B.transpose(1, 2, 0).reshape(m, r * E)
            return {f"{key}.lora_A.weight": layer.A.reshape(E * r, -1), f"{key}.lora_B.weight": B}
        key = f"{PREFIX}{layer.module}"
        if layer.kind == "embedding":
            return {f"{key}.lora_embedding_A": layer.A, f"{key}.lora_embedding_B": layer.B}
        if layer.kind == "attention" and layer.module.endswith(".out_proj"):
            inside.append(layer.module)
            key = f"{key.removesuffix('.out_proj')}.base_layer.out_proj"
        B, A = layer.shaped
        return {f"{key}.lora_A.weight": A, f"{key}.lora_B.weight": B}

    def config() -> dict[str, Any]:
        told = {module: own for module, own in job.told.items() if module not in inside}
        parameters = [f"{stem}.{parameter}" for stem, own in names.items() for parameter in own]
        return {
            "peft_type": "LORA",
            "base_model_name_or_path": None,
            "task_type": None,
            "inference_mode": True,
            "target_modules": [module for module in told if module not in parameters],
            **({"target_parameters": parameters} if parameters else {}),
            **lora_settings(told),
            "bias": "none",
            **job.settings,
        }

    job.save(WEIGHTS, tensors, config=config)


def claims(keys: list[str]) -> bool:
    """Whether the file is PEFT's; any wrapper may stand before its prefix."""
    return any(PREFIX in key for key in keys)


_KINDS = ("linear", "embedding", "conv", "grouped conv", "attention")
OUT = {
    "peft": Out(write, name, claims, WEIGHTS, _KINDS, "fused", configured=True),
    "per-expert": Out(write, name, lambda _: False, WEIGHTS, _KINDS, "single", configured=True),
}
