"""Layouts of other programs, translated to the names that the readers know.

A layout is recognised by its keys and configuration, never by shapes. Its translation is a view of the same file under
PEFT's names, so that each method has one reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..configuration import LITGPT
from ..tensors import Tensors
from . import authors, kohya, merged, mlx, numbered
from .view import Translation

_LAYOUTS = (numbered.cloneofsimo, numbered.sam, mlx.translate, merged.translate, *authors.LAYOUTS, kohya.translate)


def translate(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation:
    """The file under PEFT's names; unchanged where it has them already."""
    own = None if config is not None and LITGPT in config else config
    for layout in _LAYOUTS:
        translation = layout(tensors, config if layout is merged.translate else own)
        if translation is not None:
            return translation
    return Translation(tensors, own)


__all__ = ["Translation", "translate"]
