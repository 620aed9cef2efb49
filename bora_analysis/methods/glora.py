"""GLoRA (arXiv 2306.07967): ΔW = W0 ⊙ A + B, each a product, a number for every output, one number, or nothing.

PEFT: ``<module>.glora_A.Xd`` (m, r) and ``.Xu`` (r, n), or ``.X`` (m, 1) or (1,), or ``.zeros``; the same of
``glora_B`` (``glora/layer.py``). ``glora_C``, ``glora_D`` and ``glora_E`` change the bias and are passed over.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.parts import fitted, read_parts
from ..files.tensors import Array
from ..updates.contract import Facts, Update
from .on_base_model import base_matrix, checked
from .random_base import form_on_base, largest_of, on_base
from .random_factors import Parts, Spec, pair


def read(source: Source) -> Found | None:
    """GLoRA as PEFT saves it."""
    return read_parts(source, r"glora_[AB]\.(X|Xd|Xu|zeros)", "glora", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    first = next(iter(parts.values()))
    base = base_matrix(source, "GLoRA", module, first)
    m, n = base.shape
    keys: dict[str, Any] = {}
    r = 1
    for side in "AB":
        if f"glora_{side}.zeros" in parts:
            continue
        if f"glora_{side}.X" in parts:
            keys[side] = [parts[f"glora_{side}.X"]]
            source.check_factor(keys[side][0])
            source.expect(source.tensors.shape(keys[side][0]) in ((m, 1), (1,)), keys[side][0], f"({m}, 1) or (1,)")
        else:
            shapes = {"Xd": f"glora_{side}.Xd (m, r)", "Xu": f"glora_{side}.Xu (r, n)"}
            own, sizes = fitted(source, parts, {"m": m, "n": n}, base.key, **shapes)
            keys[side], r = list(own.values()), sizes["r"]
    return source.loader(keys or {"zeros": first}, partial(_build, source=source, key=first, base=base, r=r))


def _build(
    A: list[Array] | None = None, B: list[Array] | None = None, zeros: Array | None = None, *, source: Source, key: str,
    base: BaseMatrix, r: int, dtype: str,
) -> Update:  # fmt: skip
    m, n = base.shape
    trained = sum(X.size for X in (A or []) + (B or []))
    facts = Facts("glora", m, n, r, 1, 1.0, trained, m * n, min(m, n), dtype)

    def make() -> Array:
        whole = np.zeros((m, n))
        if A:
            whole += base.read() * _path(A)
        if B:
            whole += _path(B)
        return whole

    return checked(source, key, facts, make)


def _path(parts: list[Array]) -> Array:
    return np.linalg.multi_dot([X.astype(np.float64) for X in parts]) if len(parts) > 1 else parts[0].astype(np.float64)


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """Both products as HiRA's and LoRA's."""
    m, n = W0.shape
    (A_left, A_right), (B_left, B_right) = pair(spec, rng, m, n), pair(spec, rng, m, n)
    A_left = A_left * (np.sqrt(m * n) / largest_of(spec, m, n))
    return {"A_left": A_left, "A_right": A_right, "B_left": B_left, "B_right": B_right}


FORMS = {
    "glora": form_on_base(
        read,
        {"A_left": "glora_A.Xd", "A_right": "glora_A.Xu", "B_left": "glora_B.Xd", "B_right": "glora_B.Xu"},
        lambda a: len(a["A_right"]),
        lambda _: {"config_A_B": "lora", "config_C": "none", "config_D_E": "none"},
    )
}
RECIPES = {"glora": on_base(random)}
