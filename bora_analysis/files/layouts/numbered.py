"""Layouts that number the factors and name no modules: the modules are numbered too.

cloneofsimo/lora (``lora_diffusion/lora.py``): ``unet:12:up`` (m, r) and ``unet:12:down`` (r, n), with the ranks and the
classes of the adapted modules in the header; or a ``.pt`` list up, down, up, down … of one model. ΔW = up down. The
numbers follow the order in which the trainer found the modules. Learned tokens, ``<s1>``, stand beside the factors.

SAM-LoRA (JamesQFreeman/Sam_LoRA, MathieuNlp/Sam_LoRA, ``lora.py``): ``w_a_000`` (r, n) and ``w_b_000`` (m, r); even
numbers are the query's and odd ones the value's rows of a block's ``qkv``, block after block. ΔW = w_b w_a.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...patterns import late
from ..errors import AdapterError
from ..tensors import Tensors
from .view import Derived, Translation, View, add

_CLONEOFSIMO = late(r"(?P<model>[\w.]+):(?P<number>\d+):(?P<side>up|down)")
_ITEM = late(r"\[(\d+)\]")  # entry of a list
_SAM = late(r"w_(?P<side>[ab])_(?P<number>\d+)")


def cloneofsimo(tensors: Tensors, _config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where the file is not cloneofsimo's."""
    names = {"up": "lora_B", "down": "lora_A"}
    entries: dict[str, str | Derived] = {}
    modules = []
    keys = tensors.keys()
    if keys and all(_ITEM.fullmatch(key) for key in keys):
        if len(keys) % 2:
            raise AdapterError(
                f"{tensors.path}: is a list of {len(keys)} tensors; expected pairs up, down (cloneofsimo/lora)"
            )
        for position, key in enumerate(keys):
            add(entries, tensors, f"module.{position // 2}.{names['down' if position % 2 else 'up']}", key)
        modules = [f"module.{number}" for number in range(len(keys) // 2)]
    else:
        for key in keys:
            hit = _CLONEOFSIMO.fullmatch(key)
            if hit:
                modules.append(f"{hit['model']}.{int(hit['number'])}")
                add(entries, tensors, f"{modules[-1]}.{names[hit['side']]}", key)
            else:
                entries[key] = key
    return _translation(tensors, entries, modules, "the trainer found them")


def sam(tensors: Tensors, _config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where the file is not SAM-LoRA's."""
    entries: dict[str, str | Derived] = {}
    modules = []
    keys = tensors.keys()
    for key in keys:
        hit = _SAM.fullmatch(key)
        if hit:
            block, value = divmod(int(hit["number"]), 2)
            modules.append(f"image_encoder.blocks.{block}.attn.{'v' if value else 'q'}")
            add(entries, tensors, f"{modules[-1]}.lora_{hit['side'].upper()}", key)
        else:
            entries[key] = key
    return _translation(tensors, entries, modules, "the blocks were adapted, which need not be all")


def _translation(
    tensors: Tensors, entries: Mapping[str, str | Derived], modules: list[str], order: str
) -> Translation | None:
    if not modules:
        return None
    note = f"the file names no modules; they are numbered in the order in which {order}"
    return Translation(View(tensors, entries), None, scalings=dict.fromkeys(modules, 1.0), notes=(note,))
