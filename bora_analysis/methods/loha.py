"""LoHa, as PEFT saves it (LyCORIS has the same names).

``<module>.hada_w1_a`` (m, r), ``.hada_w1_b`` (r, n), ``.hada_w2_a``, ``.hada_w2_b``. A convolution may be decomposed
instead: ``.hada_t1``, ``.hada_t2`` (r, r, k, k) beside ``_a`` (r, m) and ``_b`` (r, channels). Scaling is α/r with the
configuration's ``alpha``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source, of_layer
from ..files.parts import collect, need, others
from ..linalg import Array
from ..updates.contract import Update
from ..updates.hadamard import loha
from .file_form import Form, stored
from .random_factors import Parts, Recipe, Spec, pair


def read(source: Source) -> Found | None:
    """LoHa, linear layers and convolutions."""
    found, rest = collect(source, "hada_(w[12]_[ab]|t[12])")
    if not found:
        return None
    loaders = {module: _loader(source, module, parts) for module, parts in found.items()}
    return Found("loha", loaders, others(source, rest), [])


def _loader(source: Source, module: str, parts: Mapping[str, str]) -> Loader:
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
    return source.loader(dict(zip(names, keys, strict=False)), partial(build, scaling=scaling))


def build(
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
    right = [contracted(t, b) for t, b in ((t1, w1_b), (t2, w2_b))]
    found = loha(w1_a.T, right[0], w2_a.T, right[1], scaling=scaling, parameters=count, dtype=dtype)
    return of_layer(found, t1.shape[2:])


def contracted(t: Array, b: Array) -> Array:
    """(r, r, kernel…) and (r, c) → (r, c · kernel)."""
    product = np.einsum("ij...,jc->ic...", t.astype(np.float64), b.astype(np.float64))
    return product.reshape(len(product), -1)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """Entries of the second product are about 1, so that the update has the size of the first."""
    first, second = pair(spec, rng, m, n), (rng.standard_normal((m, spec.r)), rng.standard_normal((spec.r, n)))
    w2_a, w2_b = (factor.astype(np.float32) / np.float32(spec.r**0.25) for factor in second)
    return {"w1_a": first[0], "w1_b": first[1], "w2_a": w2_a, "w2_b": w2_b}


FORMS = {
    "loha": Form(
        {part: f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
        lambda a, s, _: build(**a, scaling=s, dtype=stored(a)),  # pyright: ignore[reportCallIssue]
        lambda a: len(a["w1_b"]),
        alpha="alpha",
    )
}
RECIPES = {"loha": Recipe(random)}
