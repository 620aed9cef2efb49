"""Poly (arXiv 2202.13914) and its multi-head routing (2211.03831): LoRAs that each task mixes in its own way.

PEFT: ``<module>.poly_lora_A`` (Q, K, n/Q, r), ``.poly_lora_B`` (Q, K, r, m/Q), ``.poly_router.module_logits`` (tasks,
Q K). In evaluation the weights of a task are sigmoid(logits), with sum 1 over the K skills; the mixed A and B of the Q
splits stand beside each other, and ΔW = B A / r (``poly/layer.py``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, need, others
from ..linalg import Array
from ..updates.blocks import lora
from ..updates.contract import Update


def read(source: Source) -> Found | None:
    """Poly as PEFT saves it, each task of a layer a module of its own."""
    found, rest = collect(source, r"poly_lora_[AB]|poly_router\.module_logits")
    if not found:
        return None
    loaders: dict[str, Loader] = {}
    notes: list[str] = []
    for module, parts in found.items():
        A, B, route = keys = need(source, parts, "poly_lora_A", "poly_lora_B", "poly_router.module_logits")
        for key in keys:
            source.check_factor(key)
        shape, other, logits = (source.tensors.shape(key) for key in keys)
        source.expect(len(shape) == 4, A, "(splits, skills, n/splits, r)")
        source.expect(
            len(other) == 4 and other[:3] == (*shape[:2], shape[3]), B, f"{(*shape[:2], shape[3])} and m/splits"
        )
        source.expect(len(logits) == 2 and logits[1] == shape[0] * shape[1], route, f"(tasks, {shape[0] * shape[1]})")
        source.check_rank(module, A, shape[3])
        for task in range(logits[0]):
            name = f"{module}.{task}" if logits[0] > 1 else module
            loaders[name] = source.loader({"A": A, "B": B, "route": route}, partial(_build, task=task))
        if logits[0] > 1 and not notes:
            notes = ["Poly's update depends on the task: each is a module of its own, named by its number"]
    return Found("poly", loaders, others(source, rest), notes, scaled=False)


def _build(A: Array, B: Array, route: Array, *, task: int, dtype: str) -> Update:
    splits, skills, _, r = A.shape
    from scipy.special import expit  # here: importing it takes longer than --help may

    weights = expit(route[task].astype(np.float64)).reshape(splits, skills)
    weights /= weights.sum(axis=1, keepdims=True) + 1e-12
    right = np.einsum("qk,qkdr->rqd", weights, A).reshape(r, -1)
    left = np.einsum("qk,qkrd->qdr", weights, B).reshape(-1, r)
    update = lora(left, right, scaling=1 / r, method="poly", dtype=dtype, any_rank=True)
    # Task 0 counts what all tasks share, so that they add up to the layer.
    trained = route.shape[1] + (0 if task else A.size + B.size)
    return replace(update, facts=replace(update.facts, parameters=trained))
