"""RoAd (arXiv 2409.00119): ΔW = (R − I) W0, R rotates and scales pairs of outputs.

PEFT: ``<module>.road_theta`` and ``.road_alpha``, a number for every pair (``road_1``), every output (``road_2``), or
two for every output (``road_4``). In each group of ``group_size`` outputs the first half is paired with the second
(``road/layer.py``).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.parts import fitted, read_parts
from ..files.tensors import Array
from ..updates.contract import Facts, Update
from .on_base_model import base_matrix, checked
from .random_base import deviations, form_on_base, on_base
from .random_factors import Parts, Spec


def read(source: Source) -> Found | None:
    """RoAd as PEFT saves it."""
    return read_parts(source, "road_(theta|alpha)", "road", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys, sizes = fitted(source, parts, theta="road_theta (k,)", alpha="road_alpha (k,)")
    theta = keys["theta"]
    base = base_matrix(source, "RoAd", module, theta)
    m, group = base.shape[0], source.setting("group_size", int, 64)
    source.expect(
        group > 1 and group % 2 == 0 and m % group == 0, theta, f"outputs in groups of {group}; {base.key} has {m}"
    )
    fits = sizes["k"] in (m // 2, m, 2 * m)
    source.expect(fits, theta, f"({m // 2},), ({m},) or ({2 * m},) from {base.key}")
    return source.loader(keys, partial(_build, source=source, key=theta, base=base, group=group))


def _build(theta: Array, alpha: Array, *, source: Source, key: str, base: BaseMatrix, group: int, dtype: str) -> Update:
    (m, n), half = base.shape, group // 2
    facts = Facts("road", m, n, 1, 1, 1.0, theta.size + alpha.size, 2 * m, min(m, n), dtype)
    # (groups, for cos and sin, halves of the group, pairs); what is stored once serves both.
    angle, scale = (np.broadcast_to(_spread(X, m, half), (m // group, 2, 2, half)) for X in (theta, alpha))
    cos, sin = scale[:, 0] * np.cos(angle[:, 0]), scale[:, 1] * np.sin(angle[:, 1])

    def make() -> Array:
        W = base.read().astype(np.float64).reshape(m // group, 2, half, n)
        turned = np.stack([-W[:, 1], W[:, 0]], axis=1)
        return ((cos[..., None] - 1.0) * W + sin[..., None] * turned).reshape(m, n)

    return checked(source, key, facts, make)


def _spread(X: Array, m: int, half: int) -> Array:
    once, both = X.size < 2 * m, X.size >= m
    return X.astype(np.float64).reshape(m // (2 * half), 1 if once else 2, 2 if both else 1, half)


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """PEFT's default, an angle and a scale for two outputs, which starts with 0 and 1."""
    m, n = W0.shape
    theta, alpha = (deviations(spec, rng, m // 2, m, n) for _ in range(2))
    return {"theta": theta, "alpha": 1 + alpha}


FORMS = {
    "road": form_on_base(
        read, {"theta": "road_theta", "alpha": "road_alpha"}, settings=lambda _: {"variant": "road_1", "group_size": 2}
    )
}
RECIPES = {"road": on_base(random, lambda spec, m, n: spec.r if m % 2 == 0 else 0)}
