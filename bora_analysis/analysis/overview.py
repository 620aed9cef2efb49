"""What an adapter is, in a few words each: for the first screen of the command line and the top of dashboard pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters import Adapter, AdapterError
from ..files.configuration import read_configuration
from ..files.errors import counted
from ..files.tensors import open_tensors
from ..style import method_look, projections_in_order, shortened
from .columns import Columns
from .verdict import LONGEST

# Of kohya's and LyCORIS's header: entry → what it is called here.
_HEADER = {
    "ss_output_name": "", "ss_learning_rate": "learning rate", "ss_unet_lr": "U-Net's learning rate",
    "ss_num_epochs": "epochs", "ss_steps": "steps", "ss_num_train_images": "images", "modelspec.date": "",
}  # fmt: skip


def overview(adapter: Adapter, layers: Any, *, beside: bool = True) -> dict[str, str]:
    """Method, r, b, α or scaling, targets, parameters, dtype, base model, and what its trainer left beside it.

    Parameters
    ----------
    adapter : of one step. layers : its rows of :func:`bora_analysis.layer_metrics`, a frame or columns.
    beside : whether to look into the files that trainers leave beside the adapter's own, and one folder above.

    Returns
    -------
    Name → words; what is not known is left out.

    Examples
    --------
    >>> from bora_analysis import layer_metrics, synthetic_adapter
    >>> adapter = synthetic_adapter("bora", {f"layers.{k}.q_proj": (64, 32) for k in range(2)}, r=2, blocks=4)
    >>> overview(adapter, layer_metrics(adapter))["targets"]
    'q in 2 layers (2 modules)'
    """
    layers, config = Columns.of(layers), _configuration(adapter)
    found = {"method": ", ".join(method_look(str(name)).label for name in dict.fromkeys(layers["method"].tolist()))}
    found["r"] = _span(layers["r"])
    if (layers["blocks"] > 1).any():
        found["b"] = _span(layers["blocks"])
    alpha = config.get("lora_alpha", config.get("alpha"))
    patterns = config.get("alpha_pattern")
    if isinstance(alpha, int | float) and not patterns:
        found["α"] = f"{alpha:g}"
    else:
        found["scaling"] = _span(layers["scaling"])
    names = projections_in_order(layers["projection"].tolist())
    shown = ", ".join(shortened(names[:8], LONGEST)) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    count = len({layer for layer in layers["layer"].tolist() if layer is not None})
    where = f" in {counted(count, 'layer')}" if count else ""
    found["targets"] = f"{shown}{where} ({counted(len(layers), 'module')})"
    found["parameters"] = f"{layers['parameters'].sum():,}"
    found["dtype"] = _dtype(adapter)
    found["base"] = adapter.base_model or ""
    found["trained"] = ", ".join(_trained(adapter, config, beside))
    return {name: words for name, words in found.items() if words}


def _span(values: Any) -> str:
    there = values[~np.isnan(values)]
    low, high = (there.min(), there.max()) if there.size else (np.nan, np.nan)
    return "" if low != low else f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _dtype(adapter: Adapter) -> str:
    """That of the first module, as the file has it."""
    try:
        return next(iter(adapter.values())).facts.dtype
    except (AdapterError, StopIteration):
        return ""


def _configuration(adapter: Adapter) -> Mapping[str, Any]:
    try:
        return (read_configuration(adapter.path.parent) if adapter.path else None) or {}
    except (AdapterError, OSError):
        return {}


def _trained(adapter: Adapter, config: Mapping[str, Any], beside: bool) -> list[str]:
    """What the files say of the training, in the order of their worth."""
    if adapter.path is None:
        return []
    folder = adapter.path.parent
    words = []
    state = _json(folder / "trainer_state.json") if beside else {}
    if isinstance(state.get("global_step"), int):
        of = f" of {state['max_steps']}" if isinstance(state.get("max_steps"), int) and state["max_steps"] > 0 else ""
        words.append(f"step {state['global_step']:,}{of}")
    if isinstance(state.get("best_metric"), int | float):
        words.append(f"best metric {state['best_metric']:.4g}")
    for home in (folder, folder.parent) if beside else ():  # a run of `train` has it beside its checkpoints
        metric = _json(home / "run.json").get("metric")
        if isinstance(metric, dict) and all(isinstance(value, int | float) for value in metric.values()):
            words += [f"{name} {value:.4g}" for name, value in metric.items()]
            break
    if adapter.path.suffix == ".safetensors":  # the others may need torch for their header
        try:
            header = open_tensors(adapter.path).metadata
        except (AdapterError, OSError):
            header = {}
        words += [f"{name} {header[key]}".strip() for key, name in _HEADER.items() if _worth(header.get(key))]
    kind, version = config.get("task_type"), config.get("peft_version")
    return [*words, *([str(kind)] if kind else []), *([f"PEFT {version}"] if version else [])]


def _worth(value: str | None) -> bool:
    return value not in (None, "", "None", "null", "0", "0.0") and len(str(value)) < 60


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
