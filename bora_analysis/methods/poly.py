"""Poly (arXiv 2202.13914) and its multi-head routing (2211.03831): LoRAs that each task mixes in its own way.

PEFT: ``<module>.poly_lora_A`` (Q, K, n/Q, r), ``.poly_lora_B`` (Q, K, r, m/Q), ``.poly_router.module_logits`` (tasks,
Q K). In evaluation the weights of a task are sigmoid(logits), with sum 1 over the K skills; the mixed A and B of the Q
splits stand beside each other, and ΔW = B A / r (``poly/layer.py``).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..catalogue.formulas import SKILLS
from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, fitted, others
from ..linalg import Array
from ..updates.blocks import lora
from ..updates.contract import Update
from .file_form import Form, stored
from .random_factors import Parts, Recipe, Spec, pair


def read(source: Source) -> Found | None:
    """Poly as PEFT saves it, each task of a layer a module of its own."""
    found, rest = collect(source, r"poly_lora_[AB]|poly_router\.module_logits")
    if not found:
        return None
    loaders: dict[str, Loader] = {}
    notes: list[str] = []
    for module, parts in found.items():
        shapes = {"A": "poly_lora_A (Q, K, n/Q, r)", "B": "poly_lora_B (Q, K, r, m/Q)"}
        keys, sizes = fitted(source, parts, **shapes, route="poly_router.module_logits (tasks, QK)")
        splits, skills, tasks = sizes["Q"], sizes["K"], sizes["tasks"]
        source.expect(sizes["QK"] == splits * skills, keys["route"], f"(tasks, {splits * skills})")
        source.check_rank(module, keys["A"], sizes["r"])
        for task in range(tasks):
            loaders[f"{module}.{task}" if tasks > 1 else module] = source.loader(keys, partial(_build, task=task))
        if tasks > 1 and not notes:
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
    return update.with_facts(parameters=trained, kind="task" if len(route) > 1 else "linear")


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """One task and one split; the mean of K independent skills is shorter by √K, and r divides ΔW."""
    pairs = [pair(spec, rng, m, n) for _ in range(SKILLS)]
    size = 1.0 if spec.kind == "init" else np.float32(np.sqrt(SKILLS * spec.r))
    A, B = (np.stack([own.T for own in side])[None] for side in zip(*((A, B) for B, A in pairs), strict=True))
    return {"A": size * A, "B": size * B, "route": rng.uniform(-1e-3, 1e-3, (1, SKILLS)).astype(np.float32)}


FORMS = {
    "poly": Form(
        {"A": "poly_lora_A", "B": "poly_lora_B", "route": "poly_router.module_logits"},
        lambda a, _, __: _build(**a, task=0, dtype=stored(a)),
        lambda a: a["A"].shape[-1],
        lambda a: {"n_tasks": 1, "n_skills": a["A"].shape[1], "n_splits": a["A"].shape[0], "poly_type": "poly"},
        alpha=None,
    )
}
RECIPES = {"poly": Recipe(random)}
