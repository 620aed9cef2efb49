"""Layouts of other programs, translated to the names that the readers know.

A layout is recognised by its keys and configuration, never by shapes. Its translation is a view of the same file under
PEFT's names, so that each method has one reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..tensors import Tensors
from . import authors, kohya, loralib, mlx, numbered
from .view import Translation

_LAYOUTS = (numbered.cloneofsimo, numbered.sam, mlx.translate, loralib.translate, authors.translate, kohya.translate)


def translate(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation:
    """The file under PEFT's names; unchanged where it has them already."""
    for layout in _LAYOUTS:
        translation = layout(tensors, config)
        if translation is not None:
            return translation
    return Translation(tensors, config)


__all__ = ["Translation", "translate"]
