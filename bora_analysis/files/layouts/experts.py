"""Stacks of the factors of experts: ΔW of expert e is that of factors A[e] and B[e], and it becomes a module.

Tinker (``weights/_merge.py``), llama.cpp and Megatron: ``<module>.lora_A.weight`` (E, r, n) and ``.lora_B.weight``
(E, m, r), where 1 in place of E, or a matrix, is a factor that all experts share. A shared factor may also stand
beside experts under names of their own, ``experts.gate_proj`` beside ``experts.0.gate_proj`` (Megatron-Bridge #5588).

vLLM (Megatron-Bridge #5939): ``….experts.base_layer`` is ``gate_up_proj`` and ``….experts`` is ``down_proj``, with
lora_B (m, r, E).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any, TypeVar

import numpy as np

from ...patterns import late
from ..errors import AdapterError
from ..keys import module_path
from ..tensors import Array, Tensors
from .view import Derived, Translation, View, add

_FACTOR = late(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.weight)?")
_EXPERTS = late(r"(.*\.)?experts(\..+)?|.+_exps")
_VLLM = {"experts": "down_proj", "base_layer": "gate_up_proj"}
Value = TypeVar("Value")


def stacks(tensors: Tensors) -> set[str]:
    """The modules whose factors are stacks."""
    keys = [key for key in tensors.keys() if len(tensors.shape(key)) == 3]  # noqa: SIM118  no mapping
    hits = [hit for key in keys if (hit := _FACTOR.fullmatch(module_path(key)))]
    return {hit["module"] for hit in hits if _EXPERTS.fullmatch(hit["module"])}


def unstacked(told: Translation) -> Translation:
    """The translation with a module for each expert; as it is where no factor is a stack."""
    tensors = told.tensors
    stacked = stacks(tensors)
    if not stacked:
        return told
    factors: dict[str, dict[str, str]] = defaultdict(dict)
    entries: dict[str, str | Derived] = {}
    for key in tensors.keys():  # noqa: SIM118  no mapping
        hit = _FACTOR.fullmatch(module_path(key))
        if hit and hit["module"] in stacked:
            factors[hit["module"]][hit["side"]] = key
        else:
            entries[key] = key
    made: dict[str, list[str]] = {}
    empty: list[str] = []
    for module, sides in factors.items():
        if len(sides) == 1:
            made[module] = _beside(tensors, module, sides, entries)
        elif all(prod(tensors.shape(key)) == 0 for key in sides.values()):  # Tinker's, for a layer that the model lacks
            empty += sides.values()
        else:
            made[module] = _pair(tensors, module, sides["A"], sides["B"], entries)
    return replace(
        told,
        tensors=View(tensors, entries),
        config=_with_patterns(told.config),
        alphas=_for_each(told.alphas, made),
        scalings=_for_each(told.scalings, made),
        passed_over=(*told.passed_over, *map(str, empty)),
    )


def _pair(tensors: Tensors, module: str, A: str, B: str, entries: dict[str, str | Derived]) -> list[str]:
    a, b = tensors.shape(A), tensors.shape(B)
    name = _VLLM.get(module.rpartition(".")[2])
    r = a[-2]
    if name:
        module = f"{module.removesuffix('.base_layer')}.{name}"
    last = name is not None and len(b) == 3  # the experts are B's last axis
    m, inner = (b[0], b[1]) if last else (b[-2], b[-1])
    counts = {1 if len(a) == 2 else a[0], 1 if len(b) == 2 else b[2 if last else 0]} - {1} or {1}
    if inner != r or len(counts) > 1:
        raise AdapterError(
            f"{tensors.path}: {A} has shape {a} and {B} {b}; expected stacks of the factors of E experts, "
            f"(E, r, n) and {'(m, r, E)' if last else '(E, m, r)'}, or a factor that they share"
        )
    (count,) = counts
    for e in range(count):
        add(entries, tensors, f"{module}.{e}.lora_A", A, Derived((A,), a[-2:], _expert(e, 0)))
        add(entries, tensors, f"{module}.{e}.lora_B", B, Derived((B,), (m, r), _expert(e, 2 if last else 0)))
    return [f"{module}.{e}" for e in range(count)]


def _beside(tensors: Tensors, module: str, sides: Mapping[str, str], entries: dict[str, str | Derived]) -> list[str]:
    """A factor that the experts share, whose other factors have keys of their own."""
    ((side, key),) = sides.items()
    head, _, tail = module.rpartition("experts.")
    own = re.compile(
        rf"({re.escape(head)}experts\.\d+\.{re.escape(tail)})\.lora_{'B' if side == 'A' else 'A'}(\.weight)?"
    )
    found = [hit[1] for other in tensors.keys() if (hit := own.fullmatch(module_path(other)))]  # noqa: SIM118
    shape = tensors.shape(key)
    if not tail or not found or shape[0] != 1:
        raise AdapterError(
            f"{tensors.path}: {key} {shape} has no lora_{'B' if side == 'A' else 'A'} beside it, nor experts' own "
            "ones; the file is incomplete"
        )
    for path in found:
        add(entries, tensors, f"{path}.lora_{side}", key, Derived((key,), shape[1:], _expert(0, 0)))
    return found


def _expert(expert: int, axis: int) -> Callable[[Array], Array]:
    def take(stack: Array) -> Array:
        if stack.ndim == 2:
            return stack
        # A copy: the slice would keep the whole stack in memory. One expert is a factor that all share.
        return np.take(stack, expert if stack.shape[axis] > 1 else 0, axis)

    return take


def _with_patterns(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The configuration, whose patterns of r and α for a stack then fit its experts too."""
    if config is None:
        return None
    made = dict(config)
    for name in ("rank_pattern", "alpha_pattern"):
        if isinstance(patterns := config.get(name), Mapping):
            made[name] = {**patterns, **{rf"({pattern})\.\d+": value for pattern, value in patterns.items()}}
    return made


def _for_each(values: Mapping[str, Value], made: Mapping[str, list[str]]) -> dict[str, Value]:
    return {name: value for module, value in values.items() for name in made.get(module, [module])}
