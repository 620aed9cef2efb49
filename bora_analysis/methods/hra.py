"""HRA (arXiv 2405.17484): ΔW = W0 (H_1 … H_r − I), H_i = I − 2 u_i u_iᵀ.

``hra_u`` (n, r), whose columns are the u_i before normalisation.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.errors import AdapterError
from ..files.parts import fitted, read_parts
from ..files.tensors import Array
from ..updates.blocks import lora
from ..updates.contract import Update
from .on_base_model import base_matrix, product
from .random_base import form_on_base, largest_of, on_base
from .random_factors import Parts, Spec, orthonormal, slots


def read(source: Source) -> Found | None:
    """HRA: products of Householder reflections. They are I − U T Uᵀ, so ΔW = −(W0 U T) Uᵀ, a product like LoRA's."""
    return read_parts(source, "hra_u", "hra", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    key = parts["hra_u"]
    base = base_matrix(source, "HRA", module, key)
    keys, sizes = fitted(source, parts, {"n": base.shape[1]}, base.key, u="hra_u (n, r)")
    source.check_rank(module, key, sizes["r"])
    gram_schmidt = source.setting("apply_GS", bool, False)
    return source.loader(keys, partial(_build, source=source, key=key, base=base, gram_schmidt=gram_schmidt))


def _build(u: Array, *, source: Source, key: str, base: BaseMatrix, gram_schmidt: bool, dtype: str) -> Update:
    U = u.astype(np.float64)
    n, r = U.shape
    norms = np.linalg.norm(U, axis=0)
    if not (np.isfinite(norms).all() and norms.all()):
        raise AdapterError(f"{source.path}: {key} has a column that is zero or not finite; a reflection needs its axis")
    if gram_schmidt:  # I − 2 Q Qᵀ
        if r > n:
            raise AdapterError(f"{source.path}: {key} has shape {U.shape}: {r} orthogonal columns of length {n}")
        U, T = np.linalg.qr(U).Q, 2.0 * np.eye(r)
    else:  # the compact WY form (Schreiber & Van Loan 1989), T upper triangular
        U, T = U / norms, np.zeros((r, r))
        inner = U.T @ U
        for k in range(r):
            T[:k, k] = -2.0 * (T[:k, :k] @ inner[:k, k])
            T[k, k] = 2.0
    update = lora(-product(base, U) @ T, U.T, method="hra", dtype=dtype, any_rank=True)
    return update.with_facts(parameters=n * r, macs_per_token=2 * n * r + r * r)


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """Reflections in pairs, as PEFT starts: two along one axis undo each other. Two at an angle θ turn by 2θ and change
    W0 by 2 sin θ ‖W0‖; of an odd r the last one stands alone."""
    m, n = W0.shape
    r, pairs = spec.r, spec.r // 2
    axes = orthonormal(rng.standard_normal((n, r), dtype=np.float32))
    if spec.kind == "init":
        return {"u": np.concatenate([np.repeat(axes[:, :pairs], 2, axis=1), axes[:, r - r % 2 :]], axis=1)}
    sines = np.minimum(1.0, spec.scale / (2 * largest_of(spec, m, n)) * slots(spec, pairs))
    turned = np.sqrt(1 - sines**2) * axes[:, 0 : 2 * pairs : 2] + sines * axes[:, 1 : 2 * pairs : 2]
    axes[:, 1 : 2 * pairs : 2] = turned
    return {"u": axes}


FORMS = {"hra": form_on_base(read, {"u": "hra_u"}, lambda a: a["u"].shape[1], lambda _: {"apply_GS": False})}
RECIPES = {"hra": on_base(random, lambda spec, m, n: n)}
