"""PSOFT (ICLR 2026): ΔW = U S^p (R − I) S^q Vᵀ, U S Vᵀ the leading part of W0, R a scaled rotation of r directions.

PEFT: ``<module>.psoft_R.weight`` (r(r−1)/2,), or (r, r) without ``psoft_orth``, ``.psoft_R.vector_a`` and ``.vector_b``
(r,). p = 1 and q = 0, or both ½ for ``pissa_init`` (``psoft/layer.py``). The signs of singular vectors are those of
LAPACK here and in PEFT; PyTorch's LAPACK may choose others than NumPy's, which turns ΔW, but not its singular values.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..extras import require
from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.parts import need, read_parts
from ..files.tensors import Array
from ..linalg.solvers import svd_with_vectors
from ..updates.blocks import lora
from ..updates.contract import FactorError, Update
from .oft import cayley, neumann
from .on_base_model import base_matrix
from .random_base import deviations, form_on_base, on_base, skew, told_apart
from .random_factors import Parts, Spec


def read(source: Source) -> Found | None:
    """PSOFT as PEFT saves it."""
    return read_parts(source, r"psoft_R\.(weight|vector_[ab])", "psoft", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys = {part.rpartition(".")[2]: key for part, key in parts.items()}
    (key,) = need(source, parts, "psoft_R.weight")
    base = base_matrix(source, "PSOFT", module, key)
    shape, size = source.tensors.shape(key), int(np.prod(source.tensors.shape(key)))
    orth = len(shape) == 1
    r = (1 + int(np.sqrt(1 + 8 * size) + 0.5)) // 2 if orth else shape[0]
    fits = r * (r - 1) // 2 == size if orth else shape == (r, r)
    source.expect(fits and r <= min(base.shape), key, f"r(r−1)/2 numbers or (r, r) with r ≤ {min(base.shape)}")
    source.check_rank(module, key, r)
    for own in keys.values():
        source.check_factor(own)
        source.expect(own == key or source.tensors.shape(own) == (r,), own, f"({r},)")
    options = {
        "terms": source.setting("num_cayley_neumann_terms", int, 5)
        if source.setting("use_cayley_neumann", bool)
        else None,
        "bound": source.setting("cayley_neumann_eps", (int, float)),
        "even": source.setting("ab_svd_init", str, "psoft_init") == "pissa_init",
        "steps": source.setting("psoft_svd_lowrank_niter", int, 10)
        if source.setting("psoft_svd", str) == "lowrank"
        else None,
        "seed": source.setting("random_seed", int, 0),
    }
    return source.loader(keys, partial(_build, r=r, base=base, **options))


def _build(
    weight: Array, vector_a: Array | None = None, vector_b: Array | None = None, *, r: int, base: BaseMatrix,
    terms: int | None, bound: float | None, even: bool, steps: int | None, seed: int, dtype: str,
) -> Update:  # fmt: skip
    R = weight.astype(np.float64)
    if weight.ndim == 1:
        S = np.zeros((r, r))
        S[np.triu_indices(r, 1)] = weight
        S -= S.T
        if terms is not None and bound is not None and (size := np.linalg.norm(S)) > bound:
            S *= bound / (size + 1e-12)
        R = cayley(-S) if terms is None else neumann(S[None], terms)[0]
    R = R if vector_b is None else vector_b[:, None] * R
    R = R if vector_a is None else R * vector_a
    U, s, V = _leading(base.read(), r, steps, seed)
    left, right = (np.sqrt(s), np.sqrt(s)) if even else (s, np.ones(r))
    update = lora(U * left @ (R - np.eye(r)), right[:, None] * V, method="psoft", dtype=dtype, any_rank=True)
    trained = sum(own.size for own in (weight, vector_a, vector_b) if own is not None)
    # Without scales R − I is a skew-symmetric matrix times a regular one.
    bound_of_rank = r - r % 2 if trained == r * (r - 1) // 2 and weight.ndim == 1 else r
    macs = update.facts.macs_per_token + r * r
    return update.with_facts(parameters=trained, macs_per_token=macs, rank_bound=bound_of_rank)


def _leading(W: Array, r: int, steps: int | None, seed: int) -> tuple[Array, Array, Any]:
    """The r largest singular values of W and their vectors; with ``steps`` as PyTorch's iteration finds them."""
    if steps is None:
        U, s, V = svd_with_vectors(W.astype(np.float64))
        return U[:, :r], s[:r], V[:r]
    require(
        "torch",
        "is relative to vectors that PyTorch's generator began with",
        "torch",
        error=partial(FactorError, "weight"),
    )
    import torch  # here: its generator and its iteration found them

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        U, s, V = torch.svd_lowrank(torch.from_numpy(np.ascontiguousarray(W, np.float32)), q=r, niter=steps)
    return U.double().numpy(), s.double().numpy(), V.T.double().numpy()


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """A rotation and both scales, PEFT's default, which start with S = 0 and 1."""
    (m, n), r = W0.shape, spec.r
    weight = skew(spec, rng, 1, r, m, n)[0][np.triu_indices(r, 1)]
    scales = {name: 1 + deviations(spec, rng, r, m, n) for name in ("vector_a", "vector_b")}
    return {"weight": weight, **scales}


FORMS = {
    "psoft": form_on_base(
        read,
        {part: f"psoft_R.{part}" for part in ("weight", "vector_a", "vector_b")},
        lambda a: len(a["vector_a"]),
        lambda _: {"ab_svd_init": "psoft_init", "psoft_svd": "full", "psoft_orth": True},
    )
}
RECIPES = {"psoft": on_base(random, lambda spec, m, n: min(m, n) if told_apart(spec) else 0)}
