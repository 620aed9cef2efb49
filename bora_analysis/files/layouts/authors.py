"""Checkpoints of the methods' authors whose keys differ from PEFT's by a name.

QSBoRA (cityuhkai/SBoRA, ``QSBoRA/peft_sbora/tuners/lora.py``) with its adapter ``dora``: the magnitude is
``<module>.magnitude.weight`` (m, 1) beside the pair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..keys import module_path
from ..tensors import Tensors
from .view import Derived, Translation, View, add

_MAGNITUDE = re.compile(r"(?P<module>.+)\.magnitude(\.[^.]+)?\.weight")
_PAIR = re.compile(r"(?P<module>.+)\.lora_A(\.[^.]+)??(\.weight)?")


def translate(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where all are PEFT's already."""
    paths = {key: module_path(key) for key in tensors.keys()}  # noqa: SIM118  no mapping
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
