"""From settings to a PEFT configuration, for the modules that are to be adapted."""

from __future__ import annotations

from typing import Any

from ..architectures import LETTERS
from ..modules import projection
from .errors import TrainingError
from .settings import Settings

#: b of BoRA and minis of MELoRA where none is named: the paper's (§4.1).
_BLOCKS = {"bora": 16, "melora": 4}


def peft_config(settings: Settings, model: Any) -> Any:
    """The configuration of the method, for ``get_peft_model``.

    Raises
    ------
    TrainingError
        The model has no such modules, or b does not divide them.
    """
    from peft import LoraConfig, TaskType

    from ..cost import check_blocks
    from ..peft_bora import BoraConfig, HydraloraConfig, MeloraConfig, SboraConfig

    chosen = target_modules(settings, model)
    shared: dict[str, Any] = {
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "target_modules": _short(model, list(chosen)),
        "task_type": TaskType.CAUSAL_LM if settings.task == "causal-lm" else TaskType.SEQ_CLS,
    }
    method = settings.method
    if method in ("lora", "dora"):
        return LoraConfig(**shared, use_dora=method == "dora")
    if method == "hydralora":
        return HydraloraConfig(**shared, num_experts=settings.experts)
    if method in ("sbora-fa", "sbora-fb"):
        return SboraConfig(**shared, variant=method[-2:])  # pyright: ignore[reportArgumentType]
    blocks = settings.blocks or _BLOCKS[method]
    try:
        check_blocks(blocks, chosen.values())
    except ValueError as error:
        raise TrainingError(f"blocks is {blocks}: {error}") from None
    if method == "melora":
        return MeloraConfig(**shared, num_minis=blocks)
    return BoraConfig(**shared, num_blocks=blocks, activation=settings.activation)  # pyright: ignore[reportArgumentType]


def target_modules(settings: Settings, model: Any) -> dict[str, tuple[int, int]]:
    """Module path → (out_features, in_features) of the layers that ``target`` means."""
    linear = _linear(model)
    if set(settings.target.upper()) <= {letter.upper() for letter in LETTERS}:
        wished = [LETTERS[letter] for letter in settings.target.lower()]
        found = {projection(name) for name in linear}
        missing = [name for name in wished if name not in found]
        if missing:
            fused = sorted({name.rpartition(".")[2] for name in linear if projection(name) == "qkv"})
            hint = f"; this model fuses q, k and v: --target {fused[0]}" if fused and set(missing) & set("qkv") else ""
            raise TrainingError(
                f"target is {settings.target}: the model has no projection {', '.join(missing)}{hint}; "
                f"it has {', '.join(sorted(found))}"
            )
        return {name: size for name, size in linear.items() if projection(name) in wished}
    chosen: dict[str, tuple[int, int]] = {}
    for name in (part.strip() for part in settings.target.split(",")):
        hits = {path: size for path, size in linear.items() if f".{path}".endswith(f".{name}")}
        if not hits:
            ends = sorted({path.rpartition(".")[2] for path in linear})
            raise TrainingError(f"target names {name}, which the model has not; its linear layers: {', '.join(ends)}")
        chosen |= hits
    return chosen


def _linear(model: Any) -> dict[str, tuple[int, int]]:
    """Path → (m, n) of the linear layers below the head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    sizes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if "." not in name:  # the head, and models of one layer, which nobody adapts
            continue
        if isinstance(module, nn.Linear):
            sizes[name] = module.out_features, module.in_features
        elif isinstance(module, Conv1D):
            sizes[name] = module.weight.shape[1], module.weight.shape[0]
    return sizes


def _short(model: Any, chosen: list[str]) -> list[str]:
    """The modules' last names where they mean the same modules, else whole paths (BERT has many ``dense``)."""
    ends = {name.rpartition(".")[2] for name in chosen}
    meant = [name for name in _linear(model) if name.rpartition(".")[2] in ends]
    return sorted(ends) if len(meant) == len(chosen) else chosen
