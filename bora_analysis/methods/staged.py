"""Methods whose files are LoRA's and whose training is not: it begins elsewhere than at zero, or goes in stages.

PiSSA, LoRA-GA, OLoRA and CorDA take s B₀ A₀ out of W0 at the start, which ``checkpoint-0`` of the run keeps:
ΔW = s (B A − B₀ A₀). ReLoRA trains K LoRAs, each merged before the next begins; together they are a LoRA of rank K r.
:mod:`.lora` reads the files, :mod:`bora_analysis.adapters.initialisation` subtracts the start.
"""

from __future__ import annotations

import math

import numpy as np

from ..catalogue import METHODS
from ..files.adapter_file import Found, Source
from ..linalg import Array
from ..linalg.solvers import svd_with_vectors
from ..updates.blocks import lora
from ..updates.contract import Update
from ..updates.sums import since
from .file_form import Arrays, Form
from .random_base import random_base
from .random_factors import Parts, Recipe, Spec, pair


def read(_: Source) -> Found | None:
    """Nothing: the file of a LoRA is LoRA's."""
    return None


def begin(spec: Spec, rng: np.random.Generator, W0: Array) -> tuple[Array, Array]:
    """B₀ and A₀ as PEFT takes them from W0.

    OLoRA's are the QR of W0. The others' are leading singular directions: of W0 for PiSSA, and for CorDA where the
    inputs of a layer are white; of a gradient, here a random one, for LoRA-GA.
    """
    r = spec.r
    if spec.method == "olora":
        Q, R = np.linalg.qr(W0.astype(np.float64))
        return Q[:, :r], R[:r]
    if spec.method == "lora-ga":
        W0 = random_base(spec, rng, *W0.shape)
    U, sigma, V = svd_with_vectors(W0.astype(np.float64))
    size = np.sqrt(sigma[:r] / spec.scaling)
    return U[:, :r] * size, size[:, None] * V[:r]


def moved(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """The start, and factors that training has moved such that ΔW, before the scaling, has about the scale's size."""
    B0, A0 = begin(spec, rng, random_base(spec, rng.spawn(1)[0], m, n))
    B, A = B0, A0
    if spec.kind != "init":
        left, right = pair(spec, rng, m, n)
        share = math.sqrt(spec.scale) / 2
        B = B0 + left * (share / np.linalg.norm(A0, 2))
        A = A0 + right * (share / np.linalg.norm(B0, 2))
    parts = {"A": A, "B": B, "A0": A0, "B0": B0}
    return {name: part.astype(np.float32) for name, part in parts.items()}


def stages(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """A pair for each stage. A stage that has just begun has B = 0."""
    each = [pair(spec, rng, m, n) for _ in range(spec.blocks)]
    return {"A": np.concatenate([A for _, A in each]), "B": np.concatenate([B for B, _ in each], axis=1)}


_KEYS = {"A": "lora_A.weight", "B": "lora_B.weight"}


def _form(method: str) -> Form:
    def build(a: Arrays, scaling: float, _: str) -> Update:
        now, start = (lora(a[f"B{k}"], a[f"A{k}"], scaling=scaling) for k in ("", "0"))
        return since(now, start, method)

    begins = METHODS[method].initialises
    return Form(_KEYS, build, lambda a: len(a["A"]), lambda _: {"init_lora_weights": begins}, told=("A0", "B0"))


_MOVED = [name for name, row in METHODS.items() if row.initialises]
FORMS = {name: _form(name) for name in _MOVED} | {
    "relora": Form(_KEYS, lambda a, scaling, _: lora(a["B"], a["A"], scaling=scaling), lambda a: len(a["A"]))
}
RECIPES = {name: Recipe(moved, lambda spec, m, n: min(m, n)) for name in _MOVED} | {
    "relora": Recipe(stages, lambda spec, m, n: min(m, n) // spec.blocks)
}
