"""Layouts of other programs, translated to the names that the readers know.

A layout is recognised by its keys and configuration, never by shapes. Its translation is a view of the same file under
PEFT's names, so that each method has one reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..configuration import LITGPT
from ..tensors import Tensors
from . import authors, gguf, kohya, merged, mlx, numbered, other_axes, peft, prefixed
from .experts import stacks, unstacked
from .out import Out
from .view import Translation

_LAYOUTS = (
    gguf.translate, *other_axes.LAYOUTS, numbered.cloneofsimo, numbered.sam, mlx.translate, merged.translate,
    *authors.LAYOUTS, kohya.translate,
)  # fmt: skip

_PAIR = (".lora_A.weight", ".lora_B.weight")
#: The layouts that are written, by name. Of several that claim a file's keys the first has it.
OUT: dict[str, Out] = {**peft.OUT, **prefixed.OUT, **kohya.OUT, **gguf.OUT, **mlx.OUT}


def layout_of(tensors: Tensors, config: Mapping[str, Any] | None) -> str | None:
    """The layout of a file, by its name in :data:`OUT`; None for one that is not written."""
    keys = tensors.keys()
    found = next((name for name, out in OUT.items() if out.claims(keys)), None)
    if "peft_type" in (config or {}):  # which others write too, beside keys of their own
        pairs = all(key.endswith(_PAIR) for key in keys)
        found = "peft" if pairs or not any(layout(tensors, config) for layout in authors.LAYOUTS) else None
    return None if found == "peft" and stacks(tensors) else found


def translate(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation:
    """The file under PEFT's names; unchanged where it has them already."""
    own = None if config is not None and LITGPT in config else config
    # Most files are PEFT's and hold pairs alone, which only a merged layer can have too.
    pairs = "peft_type" in (config or {}) and all(key.endswith(_PAIR) for key in tensors.keys())  # noqa: SIM118
    for layout in (merged.translate,) if pairs else _LAYOUTS:
        translation = layout(tensors, config if layout is merged.translate else own)
        if translation is not None:
            return unstacked(translation)
    return unstacked(Translation(tensors, own))


__all__ = ["OUT", "Translation", "layout_of", "translate"]
