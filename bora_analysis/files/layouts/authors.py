"""Programs and authors whose keys differ from PEFT's by a name.

QSBoRA (cityuhkai/SBoRA, ``QSBoRA/peft_sbora/tuners/lora.py``) with its adapter ``dora``: the magnitude is
``<module>.magnitude.weight`` (m, 1) beside the pair.

torchtune (``modules/peft/lora.py``, ``dora.py``): ``<module>.lora_a.weight`` (r, n), ``.lora_b.weight`` (m, r) and
``.magnitude`` (m,). α is in the recipe.

AdapterHub's adapters (``methods/lora.py``): ``<module>.loras.<name>.lora_A`` (r, n), ``.lora_B`` (m, r); α and r under
``config`` in adapter_config.json.

OpenDelta (``delta_models/lora.py``): ``<module>.lora.lora_A`` (r, n), ``.lora_B`` (m, r); α is ``lora_alpha`` of
config.json.

Megatron-Bridge and NeMo (``peft/lora_layers.py``): ``<module>.adapter.linear_in.weight`` (r, n),
``.adapter.linear_out.weight`` (m, r), DoRA's ``.adapter.weight_magnitude``; α is in the settings of the training. The
rows of a fused layer have an order of their own, on which no singular value depends.

CLIP-LoRA (MaxZanella/CLIP-LoRA, ``loralib/utils.py``): ``layer_0.q_proj.w_lora_A`` (r, n), ``.w_lora_B`` (m, r), with
α in ``metadata``; ΔW = α/√r · B A. The layers are numbered through both encoders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...patterns import late
from ..errors import AdapterError
from ..keys import module_path
from ..tensors import Tensors
from .view import Derived, Translation, View, add

_MAGNITUDE = late(r"(?P<module>.+)\.magnitude(\.[^.]+)?\.weight")
_PAIR = late(r"(?P<module>.+)\.lora_A(\.[^.]+)??(\.weight)?")
_TORCHTUNE = late(r"(?P<module>.+)\.(lora_(?P<side>[ab])\.weight|magnitude)")
_ADAPTERHUB = late(r"(?P<module>.+)\.loras\.(?P<name>[^.]+)\.lora_(?P<side>[AB])")
_OPENDELTA = late(r"(?P<module>.+)\.lora\.lora_(?P<side>[AB])")
_MEGATRON = late(r"(?P<module>.+\.adapter(_layer)?(\.\w+)?)\.(linear_(?P<side>in|out)\.weight|weight_magnitude)")
_RANK = late(r"(mp|tp)_rank_\d+.*")
_ADAPTER = late(r"\.adapter(?=\.|$)")
_SIDES = {"in": "A", "out": "B"}
_CLIP = late(r"(?P<module>layer_\d+\.\w+)\.w_lora_(?P<side>[AB])")


def qsbora(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where all are PEFT's already."""
    keys = tensors.keys()
    if not any(".magnitude" in key for key in keys):
        return None
    paths = {key: module_path(key) for key in keys}
    magnitudes = {key: hit["module"] for key, path in paths.items() if (hit := _MAGNITUDE.fullmatch(path))}
    if not magnitudes:
        return None
    pairs = {hit["module"] for path in paths.values() if (hit := _PAIR.fullmatch(path))}
    entries: dict[str, str | Derived] = {}
    for key in paths:
        module = magnitudes.get(key)
        if module in pairs:
            add(entries, tensors, f"{module}.lora_magnitude_vector", key)
        else:
            entries[key] = key
    return Translation(View(tensors, entries), config)


def torchtune(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where nothing is torchtune's."""
    return _renamed(tensors, config, _TORCHTUNE) if _any(tensors, (".lora_a.weight", ".lora_b.weight")) else None


def adapterhub(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where nothing is AdapterHub's."""
    keys = [key for key in tensors.keys() if ".loras." in key]  # noqa: SIM118  no mapping
    names = {hit["name"] for key in keys if (hit := _ADAPTERHUB.fullmatch(module_path(key)))}
    if not names:
        return None
    if len(names) > 1:
        told = ", ".join(sorted(names))
        raise AdapterError(f"{tensors.path}: holds {len(names)} adapters: {told}; save one at a time")
    own = (config or {}).get("config")
    if not isinstance(own, Mapping):
        return _renamed(tensors, config, _ADAPTERHUB)
    if own.get("composition_mode", "add") != "add":
        raise AdapterError(
            f"{tensors.path}: the configuration says composition_mode = {own['composition_mode']!r}; expected 'add'"
        )
    return _renamed(tensors, {"r": own.get("r"), "lora_alpha": own.get("alpha")}, _ADAPTERHUB)


def opendelta(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where nothing is OpenDelta's."""
    if not _any(tensors, (".lora.lora_A", ".lora.lora_B")):
        return None
    if config and "lora_r" in config:
        config = {"r": config["lora_r"], "lora_alpha": config.get("lora_alpha")}
    return _renamed(tensors, config, _OPENDELTA)


def megatron(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where nothing is Megatron's."""
    if not any(".adapter" in key and key.endswith(".linear_in.weight") for key in tensors.keys()):  # noqa: SIM118
        return None
    norm = next((key for key in tensors.keys() if ".adapter" in key and ".layer_norm." in key), None)  # noqa: SIM118
    if norm is not None:
        raise AdapterError(
            f"{tensors.path}: {norm} is a norm inside the adapter, which is then no product; expected LoRA"
        )
    home = Path(tensors.path).parent
    if _RANK.fullmatch(home.name) and sum(_RANK.fullmatch(each.name) is not None for each in home.parent.iterdir()) > 1:
        raise AdapterError(
            f"{tensors.path}: is one of several processes' parts of the adapter ({home.name}), which alone are other "
            "matrices; save it whole, or name the folder of a distributed checkpoint"
        )
    return _renamed(tensors, config, _MEGATRON)


def clip_lora(tensors: Tensors, _config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where nothing is CLIP-LoRA's."""
    if not _any(tensors, (".w_lora_A", ".w_lora_B")):
        return None
    own: dict[str, Any] = {"use_rslora": True}
    if stored := tensors.metadata.get("alpha"):
        try:
            own["lora_alpha"] = float(stored)
        except ValueError:
            raise AdapterError(f"{tensors.path}: metadata says alpha = {stored!r}; expected a number") from None
    return _renamed(tensors, own, _CLIP)


def _any(tensors: Tensors, endings: tuple[str, ...]) -> bool:
    return any(key.endswith(endings) for key in tensors.keys())  # noqa: SIM118  no mapping


def _renamed(tensors: Tensors, config: Mapping[str, Any] | None, pattern: re.Pattern[str]) -> Translation:
    entries: dict[str, str | Derived] = {}
    for key in tensors.keys():  # noqa: SIM118  no mapping
        hit = pattern.fullmatch(module_path(key))
        if hit is None:
            entries[key] = key
        elif hit["side"]:
            side = _SIDES.get(hit["side"], hit["side"].upper())
            add(entries, tensors, f"{_ADAPTER.sub('', hit['module'])}.lora_{side}.weight", key)
        else:
            add(entries, tensors, f"{_ADAPTER.sub('', hit['module'])}.lora_magnitude_vector", key)
    return Translation(View(tensors, entries), config)


LAYOUTS: tuple[Callable[[Tensors, Mapping[str, Any] | None], Translation | None], ...] = (
    torchtune, adapterhub, opendelta, megatron, clip_lora, qsbora,
)  # fmt: skip
