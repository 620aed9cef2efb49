"""Layouts whose factors are transposed, or have more axes than two: KerasHub's, Qwix's.

KerasHub (``models/backbone.py``): ``lora/3/lora_kernel_a`` (…, r) and ``lora_kernel_b`` (r, m), ΔW = (a b)ᵀ, numbered
by the layers of the model that have weights; ``lora/rank``. It is not scaled.

Qwix and Tunix (``models/safetensors_saver.py``): ``<module>.<w>_lora_a`` (…, r) and ``_lora_b`` (r, …);
ΔW = α/r · (a b)ᵀ with the axes of a flattened, and those of b. α is in the program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

from ...patterns import late
from ..errors import AdapterError
from ..keys import module_path
from ..tensors import Array, Tensors
from .view import Derived, Translation, View, add

_KERAS = late(r"lora/(?P<module>\d+)/(vars/)?lora_kernel_(?P<side>[ab])")
_KERAS_RANK = late(r"lora/(vars/)?rank")
_QWIX = late(r"(?P<module>.+?)([./](w|kernel|weight))?_lora_(?P<side>[ab])([./]value)?")


_THREE_AXES = (
    "kernels of three axes, such as that of {}. As a map from inputs to outputs it has the same norm and, where one of "
    "the axes counts heads or experts, other singular values; the file does not say which"
)


def keras(tensors: Tensors, _config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where the file is not KerasHub's."""
    view, modules, deep, rest = _flattened(tensors, _KERAS, "layers.{}")
    if not modules:
        return None
    rank = next((key for key in rest if _KERAS_RANK.fullmatch(key)), None)
    told = None if rank is None else int(tensors.read(rank))
    for module in modules:
        r = view.shape(f"{module}.lora_A")[0] if f"{module}.lora_A" in view.keys() else told  # noqa: SIM118
        if told is not None and r != told:
            raise AdapterError(f"{tensors.path}: {rank} is {told}, but the factors of {module} have rank {r}")
    notes = ("the file names no modules; they are numbered as the layers of the model that have weights", *deep)
    passed_over = tuple(key for key in rest if key != rank)
    scalings = dict.fromkeys(modules, 1.0)
    return Translation(view, None, scalings=scalings, passed_over=passed_over, notes=notes)


def qwix(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where the file is not Qwix's."""
    view, modules, deep, rest = _flattened(tensors, _QWIX, "{}")
    return Translation(view, config, passed_over=tuple(rest), notes=deep) if modules else None


def _flattened(
    tensors: Tensors, pattern: re.Pattern[str], called: str
) -> tuple[View, list[str], tuple[str, ...], list[str]]:
    """The factors as matrices, transposed; the modules; a note on factors of more axes; the other keys."""
    entries: dict[str, str | Derived] = {}
    modules: dict[str, None] = {}
    rest, notes = [], ()
    for key in tensors.keys():  # noqa: SIM118  no mapping
        hit = pattern.fullmatch(module_path(key))
        if hit is None:
            rest.append(key)
            continue
        shape, first = tensors.shape(key), hit["side"] == "a"
        size = prod(shape[:-1] if first else shape[1:])
        r = shape[-1 if first else 0] if len(shape) > 1 else 0
        if len(shape) not in (2, 3):
            raise AdapterError(f"{tensors.path}: {key} has shape {shape}; expected two or three axes")
        if len(shape) > 2 and first:
            told = f"{key} {shape}: ΔW is shown as the program multiplies it, with {size} columns"
            notes = notes or (_THREE_AXES.format(told),)
        module = called.format(hit["module"].replace("/", "."))
        build = partial(_matrix, shape=(size, r) if first else (r, size))
        add(
            entries,
            tensors,
            f"{module}.lora_{'A' if first else 'B'}",
            key,
            Derived((key,), build.keywords["shape"][::-1], build),
        )
        modules[module] = None
    return View(tensors, entries), list(modules), notes, rest


def _matrix(factor: Array, *, shape: tuple[int, int]) -> Array:
    return factor.reshape(shape).T


LAYOUTS = (keras, qwix)
