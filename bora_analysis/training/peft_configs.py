"""From the settings of a run to a PEFT configuration for the adapted modules."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..catalogue import METHODS, Training
from ..catalogue.architectures import LETTERS
from ..catalogue.module_names import projection
from ..catalogue.sizes import check_blocks
from .errors import TrainingError
from .settings import Settings


def peft_config(settings: Settings, model: Any) -> Any:
    """The configuration of the method, for ``get_peft_model``.

    Raises
    ------
    TrainingError
        The model lacks the target modules, or b does not divide their sizes.
    """
    from peft import TaskType

    chosen = target_modules(settings, model)
    shared: dict[str, Any] = {
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rslora,
        "target_modules": _short(model, list(chosen)),
        "task_type": TaskType.CAUSAL_LM if settings.task == "causal-lm" else TaskType.SEQ_CLS,
    }
    row, training = METHODS[settings.method], method_of(settings)
    values = {
        **vars(settings),
        "blocks": settings.blocks or (row.blocks and (row.blocks.trained or row.blocks.default)),
    }
    if row.cut:
        try:
            check_blocks(values["blocks"], chosen.values())
        except ValueError as error:
            raise TrainingError(f"blocks is {values['blocks']}: {error}") from None
    module, _, name = training.config.rpartition(".")
    own = {theirs: values[ours] for theirs, ours in training.passed.items()}
    patterns = {"rank_pattern": settings.rank_pattern, "alpha_pattern": settings.alpha_pattern}
    own |= {name: dict(pattern) for name, pattern in patterns.items() if pattern}
    return getattr(import_module(module), name)(**shared, **training.fixed, **own)


def method_of(settings: Settings) -> Training:
    """How the method is configured."""
    training = METHODS[settings.method].training
    assert training is not None  # Settings has checked it
    return training


def target_modules(settings: Settings, model: Any) -> dict[str, tuple[int, int]]:
    """Module path → (out_features, in_features) of the layers that ``target`` names."""
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
            raise TrainingError(f"target names {name}, which the model lacks; its linear layers are {', '.join(ends)}")
        chosen |= hits
    return chosen


def _linear(model: Any) -> dict[str, tuple[int, int]]:
    """Path → (m, n) of the linear layers below the head."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    sizes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if "." not in name:  # the head
            continue
        if isinstance(module, nn.Linear):
            sizes[name] = module.out_features, module.in_features
        elif isinstance(module, Conv1D):
            sizes[name] = module.weight.shape[1], module.weight.shape[0]
    return sizes


def _short(model: Any, chosen: list[str]) -> list[str]:
    """The modules' last names if these select the same modules, else whole paths (BERT has many ``dense``)."""
    ends = {name.rpartition(".")[2] for name in chosen}
    meant = [name for name in _linear(model) if name.rpartition(".")[2] in ends]
    return sorted(ends) if len(meant) == len(chosen) else chosen
