"""From the settings of a run to a PEFT configuration for the adapted modules.

A row of the catalogue says which configuration, and which of its settings are options of ``train``. The others are set
by PEFT's own names, and checked against the fields of the configuration before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..catalogue import METHODS, Training, may_pad
from ..catalogue.architectures import LETTERS
from ..catalogue.module_names import projection
from ..catalogue.sizes import PADS, check_blocks
from .errors import TrainingError
from .settings import OPTIONS, Settings, blocks_of

# Settings of every configuration that ``train`` sets or leaves alone → what to do instead.
_NOT_SET = {
    "target_modules": "give --target (target)",
    "task_type": "give --task (task)",
    "base_model_name_or_path": "give --model (model)",
    **dict.fromkeys(("peft_type", "auto_mapping", "peft_version", "revision", "inference_mode"), "PEFT sets it itself"),
}
# Ways to begin that need more than a model and its data, by ``init_lora_weights``.
_NOT_BEGUN = {
    "eva": "EVA needs the activations of the whole data before training",
    "loftq": "LoftQ quantises the base model itself",
}


def peft_config(settings: Settings, model: Any, steps: int = 1) -> Any:
    """The configuration of the method, for ``get_peft_model``.

    Parameters
    ----------
    settings : of the run. model : whose layers are adapted. steps : of the whole run, which AdaLoRA's schedule needs.

    Raises
    ------
    TrainingError
        The model lacks the target modules, b does not divide their sizes, or PEFT refuses the settings.
    """
    from peft import TaskType

    chosen = target_modules(settings, model)
    targets = _short(model, list(chosen))
    row, training = METHODS[settings.method], method_of(settings)
    values = {**vars(settings), **_following(settings, steps), "targets": targets}
    values["blocks"] = blocks = blocks_of(settings)
    padded = may_pad(row) and (settings.peft or {}).get("pad")
    if blocks is not None and row.cut and not padded and "blocks" in training.passed.values():
        try:
            check_blocks(blocks, chosen.values(), PADS if may_pad(row) else "")
        except ValueError as error:
            raise TrainingError(f"blocks is {blocks}: {error}") from None
    told: dict[str, Any] = {"target_modules": targets}
    told["task_type"] = TaskType.CAUSAL_LM if settings.task == "causal-lm" else TaskType.SEQ_CLS
    for theirs, ours in training.passed.items():
        value = values[ours]
        if value is not None:
            _put(told, theirs, dict(value) if isinstance(value, Mapping) else value)
    for key, value in {**training.fixed, **(settings.peft or {})}.items():
        _put(told, key, value)
    kind = config_class(training)
    try:
        return kind(**_built(kind, told, settings.method, checked=False))
    except ValueError as error:
        raise TrainingError(f"{settings.method}: {_line(error)}") from None


def check_settings(settings: Settings) -> None:
    """TrainingError where ``peft`` sets what the method's configuration lacks, or what is set otherwise."""
    training = method_of(settings)
    if not training.config or not settings.peft:
        return
    kind = config_class(training)
    for key, value in settings.peft.items():
        first = key.partition(".")[0]
        if first in _NOT_SET:
            raise TrainingError(f"{settings.method}: {first} is not set so; {_NOT_SET[first]}")
        option = training.passed.get(key)
        if option in OPTIONS:
            raise TrainingError(f"{settings.method}: {key} comes from the option {option}; give that in its place")
        _check_selects(settings.method, key, value)
    told: dict[str, Any] = {}
    for key, value in settings.peft.items():
        _put(told, key, value)
    _built(kind, told, settings.method)


def own_settings(method: str) -> list[str]:
    """The settings of a method's configuration that no option of ``train`` sets, without those that all have."""
    training = METHODS[method].training
    if training is None or not training.config:
        return []
    set_here = {*training.fixed, *(key.partition(".")[0] for key in training.passed), *_NOT_SET}
    return [field.name for field in fields(config_class(training)) if field.name not in set_here]


def config_class(training: Training) -> Any:
    """The class of a method's configuration."""
    module, _, name = training.config.rpartition(".")
    return getattr(import_module(module), name)


def method_of(settings: Settings) -> Training:
    """How the method is configured."""
    training = METHODS[settings.method].training
    assert training is not None  # Settings has checked it
    return training


def _following(settings: Settings, steps: int) -> dict[str, Any]:
    """What follows from the options, by the names that the catalogue's rows use."""
    r, alpha, stages = settings.r, settings.lora_alpha, blocks_of(settings) or 1
    told: dict[str, Any] = {"alpha": alpha, "steps_in_all": steps}
    if r is not None:
        told["kept_r"] = max(1, 2 * r // 3)  # PEFT's defaults are 12 and 8
        told["r_of_stages"] = stages * r
        if alpha is not None:  # so that the scaling is that of one stage
            told["alpha_of_stages"] = alpha * (stages**0.5 if settings.rslora else stages)
    return told


def _put(told: dict[str, Any], key: str, value: Any) -> None:
    """``a.b`` is b in the table a."""
    first, dot, rest = key.partition(".")
    if not dot:
        told[first] = (
            {**told[first], **value} if isinstance(value, dict) and isinstance(told.get(first), dict) else value
        )
        return
    inside = told.setdefault(first, {})
    if not isinstance(inside, dict):
        raise TrainingError(f"{first} is {inside!r}, and {key} is set; expected one of them")
    _put(inside, rest, value)


def _check_selects(method: str, key: str, value: Any) -> None:
    """Refuse a setting that would make it another method."""
    mine = METHODS[method]
    for name, row in METHODS.items():
        theirs = row.training
        if row is mine or theirs is None or mine.training is None or theirs.config != mine.training.config:
            continue
        meant = theirs.fixed.get(key)
        begins = row.initialises and key == "init_lora_weights" and str(value).lower().startswith(row.initialises)
        own = mine.training.fixed.get(key) == value or (key in mine.training.fixed and isinstance(value, dict))
        if key in theirs.fixed and not own and value and (meant in (value, {}) or begins):
            raise TrainingError(f"{method}: {key} = {value!r} makes it {row.label}; give --method {name}")
    if mine.training is not None and key in mine.training.fixed:
        meant = mine.training.fixed[key]
        if isinstance(meant, dict) or value == meant:
            return
        if not (mine.initialises and str(value).lower().startswith(mine.initialises)):
            raise TrainingError(f"{method}: {key} is {meant!r}, which makes it {mine.label}; leave it out")
    if key == "init_lora_weights" and str(value).lower() in _NOT_BEGUN:
        raise TrainingError(f"{method}: {key} = {value!r} cannot be trained here: {_NOT_BEGUN[str(value).lower()]}")


def _built(kind: Any, told: Mapping[str, Any], where: str, checked: bool = True) -> dict[str, Any]:
    """The values for a configuration, by default checked against its fields; tables become configurations within it."""
    hints, known = get_type_hints(kind), [field.name for field in fields(kind) if field.init]
    made = {}
    for key, value in told.items():
        if key not in known:
            close = get_close_matches(key, known, 1)
            shown = [name for name in known if name not in _NOT_SET]
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(shown)}"
            raise TrainingError(f"{where}: {kind.__name__} has no setting {key!r}; {hint}")
        inner: list[Any] = [part for part in _parts(hints[key]) if is_dataclass(part)]
        if inner and isinstance(value, dict):
            made[key] = inner[0](**_built(inner[0], value, f"{where}: {key}", checked))
            continue
        if checked and not _fits(value, hints[key]):
            raise TrainingError(f"{where}: {key} is {value!r}; expected {_words(hints[key])}")
        made[key] = value
    return made


def _parts(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union."""
    is_union = get_origin(hint) is not None and type(None) is not hint and "Union" in str(get_origin(hint))
    return tuple(part for each in get_args(hint) for part in _parts(each)) if is_union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    for part in _parts(hint):
        origin = get_origin(part) or part
        if part is Any or (part is type(None) and value is None):
            return True
        if origin is Literal:
            # PEFT writes "pissa_niter_[number of iters]" for all such texts.
            if value in get_args(part) or (isinstance(value, str) and any("[" in str(one) for one in get_args(part))):
                return True
        elif isinstance(value, bool):
            if origin is bool:
                return True
        elif origin is float:
            if isinstance(value, int | float):
                return True
        elif origin in (list, set, tuple):
            if isinstance(value, list | set | tuple) and _all_fit(value, part):
                return True
        elif isinstance(origin, type) and isinstance(value, origin):
            return True
    return False


def _all_fit(values: Any, part: Any) -> bool:
    inner = get_args(part)
    return not inner or all(_fits(value, inner[0]) for value in values) or get_origin(part) is tuple


def _words(hint: Any) -> str:
    """A type for a message: "true or false", "a number or None"."""
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    told = []
    for part in _parts(hint):
        if get_origin(part) is Literal:
            told += [repr(one) for one in get_args(part)]
        elif is_dataclass(part):
            told.append(f"a table of {', '.join(field.name for field in fields(part))}")
        else:
            origin = get_origin(part) or part
            told.append(plain.get(origin) or {list: "a list", dict: "a table"}.get(origin) or str(origin))
    return " or ".join(dict.fromkeys(told))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


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
