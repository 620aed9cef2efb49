"""OSF (arXiv 2504.07097): ΔW = U diag(s) V − U0 diag(s0) V0, the start being W0's smaller singular values.

PEFT: ``<module>.osf_svd_params.U_low`` (m, q), ``.S_low`` (q,), ``.V_low`` (q, n); the start has the last q of W0's
min(m, n) (``osf/layer.py``).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.parts import fitted, read_parts
from ..files.tensors import Array
from ..linalg.solvers import svd_with_vectors
from ..updates.blocks import lora
from ..updates.contract import Update
from ..updates.sums import combine
from .on_base_model import base_matrix
from .random_base import form_on_base, on_base, told_apart
from .random_factors import Parts, Spec, slots


def read(source: Source) -> Found | None:
    """OSF as PEFT saves it."""
    return read_parts(source, r"osf_svd_params\.[USV]_low", "osf", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    base = base_matrix(source, "OSF", module, next(iter(parts.values())))
    shapes = {"U": "U_low (m, q)", "s": "S_low (q,)", "V": "V_low (q, n)"}
    known = dict(zip("mn", base.shape, strict=True))
    keys, sizes = fitted(
        source, parts, known, base.key, **{name: f"osf_svd_params.{shape}" for name, shape in shapes.items()}
    )
    source.expect(sizes["q"] <= min(base.shape), keys["s"], f"up to {min(base.shape)} numbers ({base.key})")
    return source.loader(keys, partial(_build, base=base))


def _build(U: Array, s: Array, V: Array, *, base: BaseMatrix, dtype: str) -> Update:
    q = len(s)
    left, sigma, right = svd_with_vectors(base.read().astype(np.float64))
    pairs = (U * s.astype(np.float64), V), (left[:, -q:] * sigma[-q:], right[-q:])
    now, start = (lora(*each, dtype=dtype, any_rank=True) for each in pairs)
    update = combine([now, start], [1.0, -1.0], method="osf")
    return update.with_facts(r=q, parameters=U.size + q + V.size)


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """The smaller half of W0's singular values, moved; their vectors are where PEFT starts."""
    left, sigma, right = svd_with_vectors(W0.astype(np.float64))
    q = -(-len(sigma) // 2)
    moved = np.zeros(q) if spec.kind == "init" else spec.scale * slots(spec, q)
    if spec.kind == "gaussian":
        moved = moved * rng.standard_normal(q)
    return {"U": left[:, -q:], "S": sigma[-q:] + moved, "V": right[-q:]}


FORMS = {"osf": form_on_base(read, {part: f"osf_svd_params.{part}_low" for part in "USV"})}
RECIPES = {"osf": on_base(random, lambda spec, m, n: spec.r if told_apart(spec) else 0)}
