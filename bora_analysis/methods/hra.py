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
