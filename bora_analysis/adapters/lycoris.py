"""LoHa and LoKr, as PEFT saves them (LyCORIS has the same names).

LoHa: ``<module>.hada_w1_a`` (m, r), ``.hada_w1_b`` (r, n), ``.hada_w2_a``, ``.hada_w2_b``. A convolution may be
decomposed instead: ``.hada_t1``, ``.hada_t2`` (r, r, k, k) beside ``_a`` (r, m) and ``_b`` (r, channels).

LoKr: ``.lokr_w1`` (p, q) or ``.lokr_w1_a`` (p, r) and ``.lokr_w1_b`` (r, q); the same for ``.lokr_w2``, whose kernel
counts in its columns; or decomposed ``.lokr_t2`` (r, r, k, k), ``.lokr_w2_a`` (r, u), ``.lokr_w2_b`` (r, v).

Scaling is α/r with the configuration's ``alpha``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from ..delta import Update, dense
from ..structures import loha, lokr
from .errors import AdapterError
from .source import Found, Loader, Source, collect, need, of_layer, others
from .tensors import Array


def read_loha(source: Source) -> Found | None:
    """LoHa, linear layers and convolutions."""
    found, rest = collect(source, "hada_(w[12]_[ab]|t[12])")
    if not found:
        return None
    loaders = {module: _loha(source, module, parts) for module, parts in found.items()}
    return Found("loha", loaders, others(source, rest), [])


def _loha(source: Source, module: str, parts: Mapping[str, str]) -> Loader:
    keys = need(source, parts, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    decomposed = "hada_t1" in parts or "hada_t2" in parts
    if decomposed:
        keys += need(source, parts, "hada_t1", "hada_t2")
    for key in keys:
        source.check_factor(key)
    shapes = [source.tensors.shape(key) for key in keys]
    for key, shape in zip(keys[:4], shapes[:4], strict=True):
        source.expect(len(shape) == 2, key, "two dimensions")
    r = shapes[1][0]
    for key, shape in zip(keys[4:], shapes[4:], strict=True):
        source.expect(len(shape) > 2 and shape[:2] == (r, r), key, f"({r}, {r}, kernel…) from hada_w1_b {shapes[1]}")
    source.check_rank(module, keys[1], r)
    scaling = source.scaling(module, r, name="alpha")
    names = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    return source.loader(dict(zip(names, keys, strict=False)), partial(build_loha, scaling=scaling))


def build_loha(
    w1_a: Array,
    w1_b: Array,
    w2_a: Array,
    w2_b: Array,
    t1: Array | None = None,
    t2: Array | None = None,
    *,
    scaling: float,
    dtype: str,
) -> Update:
    if t1 is None or t2 is None:
        return loha(w1_a, w1_b, w2_a, w2_b, scaling=scaling, dtype=dtype)
    count = sum(array.size for array in (w1_a, w1_b, w2_a, w2_b, t1, t2))
    # Each half is aᵀ · t · b: contracted with b it is an (r, channels · kernel) right factor.
    right = [_contracted(t, b) for t, b in ((t1, w1_b), (t2, w2_b))]
    found = loha(w1_a.T, right[0], w2_a.T, right[1], scaling=scaling, parameters=count, dtype=dtype)
    return of_layer(found, t1.shape[2:])


def _contracted(t: Array, b: Array) -> Array:
    """(r, r, kernel…) and (r, c) → (r, c · kernel)."""
    product = np.einsum("ij...,jc->ic...", t.astype(np.float64), b.astype(np.float64))
    return product.reshape(len(product), -1)


def read_lokr(source: Source) -> Found | None:
    """LoKr, linear layers and convolutions; KronA is LoKr with both factors whole."""
    found, rest = collect(source, "lokr_(w[12](_[ab])?|t2)")
    if not found:
        return None
    loaders = {module: _lokr(source, module, parts) for module, parts in found.items()}
    notes = []
    if source.config is None and source.alpha is not None:
        notes.append("the factors do not tell r where both are whole; there α is taken as the scaling itself")
    return Found("lokr", loaders, others(source, rest), notes)


def _lokr(source: Source, module: str, parts: Mapping[str, str]) -> Loader:
    keys: dict[str, str] = {}
    r = None
    for half in ("w1", "w2"):
        whole = f"lokr_{half}"
        if whole in parts:
            keys[half] = parts[whole]
            continue
        keys[f"{half}_a"], keys[f"{half}_b"] = need(source, parts, f"{whole}_a", f"{whole}_b")
        r = source.tensors.shape(keys[f"{half}_b"])[0]
    if "lokr_t2" in parts:
        keys["t2"] = parts["lokr_t2"]
        if "w2" in keys:
            raise AdapterError(f"{source.path}: {keys['t2']} stands beside a whole {keys['w2']}; expected one of them")
    for name, key in keys.items():
        source.check_factor(key)
        expected = {"w1": "(p, q)", "t2": "(r, r, kernel…)", "w2": "(u, v) or (u, v, kernel…)"}.get(
            name, "two dimensions"
        )
        size = len(source.tensors.shape(key))
        source.expect(size > 2 if name == "t2" else size == 2 or (name == "w2" and size > 2), key, expected)
    configured = source.rank(module)
    if r is not None:
        source.check_rank(module, next(key for name, key in keys.items() if name.endswith("_b")), r)
    rank = r or configured or 1
    scaling = source.scaling(module, rank, name="alpha")
    return source.loader(keys, partial(build_lokr, r=configured or r, scaling=scaling))


def build_lokr(
    *,
    w1: Array | None = None,
    w1_a: Array | None = None,
    w1_b: Array | None = None,
    w2: Array | None = None,
    w2_a: Array | None = None,
    w2_b: Array | None = None,
    t2: Array | None = None,
    r: int | None,
    scaling: float,
    dtype: str,
) -> Update:
    given = [array for array in (w1, w1_a, w1_b, w2, w2_a, w2_b, t2) if array is not None]
    if t2 is not None and w2_a is not None and w2_b is not None:
        w2_a, w2_b = w2_a.T, _contracted(t2, w2_b)
    if w2 is not None and w2.ndim == 3:
        # PEFT's kron of a matrix and a 1-D convolution's kernel: its dimensions are matched from the last one, so that
        # the factors meet in channels and kernel, and what comes out is taken as ΔW (``lokr/layer.py:make_kron``).
        whole = w1_a @ w1_b if w1_a is not None and w1_b is not None else w1
        matrix = np.kron(np.asarray(whole, dtype=np.float64)[None], w2.astype(np.float64)) * scaling
        size = len(np.asarray(whole)) * len(w2)
        count = sum(array.size for array in given)
        found = dense(matrix.reshape(size, -1), method="lokr", r=r, scaling=scaling, parameters=count, dtype=dtype)
        return of_layer(found, w2.shape[2:])
    first = (w1_a, w1_b) if w1 is None else w1
    second = (w2_a, w2_b) if w2 is None else w2.reshape(len(w2), -1)
    count = sum(array.size for array in given)
    kernel = t2.shape[2:] if t2 is not None else w2.shape[2:] if w2 is not None else ()
    return of_layer(lokr(first, second, r=r, scaling=scaling, parameters=count, dtype=dtype), kernel)
