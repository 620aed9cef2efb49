"""LoHa, as PEFT saves it (LyCORIS has the same names).

``<module>.hada_w1_a`` (m, r), ``.hada_w1_b`` (r, n), ``.hada_w2_a``, ``.hada_w2_b``. A convolution may be decomposed
instead: ``.hada_t1``, ``.hada_t2`` (r, r, k, k) beside ``_a`` (r, m) and ``_b`` (r, channels). Scaling is α/r with the
configuration's ``alpha``.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source, of_layer
from ..files.parts import fitted, read_parts
from ..linalg import Array
from ..projections import Projection, Target, Wish
from ..updates.contract import Update
from ..updates.hadamard import loha
from .file_form import Form, stored
from .random_factors import Parts, Recipe, Spec, pair


def read(source: Source) -> Found | None:
    """LoHa, linear layers and convolutions."""
    return read_parts(source, "hada_(w[12]_[ab]|t[12])", "loha", _loader, scaled=True)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    first, sizes = fitted(source, parts, w1_b="hada_w1_b (r, n)")
    source.check_rank(module, first["w1_b"], sizes["r"])
    if "hada_t1" in parts or "hada_t2" in parts:
        shapes = {"w1_a": "hada_w1_a (r, m)", "w2_a": "hada_w2_a (s, m)", "w2_b": "hada_w2_b (s, n)"}
        shapes |= {"t1": "hada_t1 (r, r, kernel…)", "t2": "hada_t2 (s, s, kernel…)"}
    else:
        shapes = {"w1_a": "hada_w1_a (m, r)", "w2_a": "hada_w2_a (m, s)", "w2_b": "hada_w2_b (s, n)"}
    others, sizes = fitted(source, parts, sizes, first["w1_b"], **shapes)
    return source.loader(first | others, partial(build, scaling=source.scaling(module, sizes["r"], name="alpha")))


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


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    from ..projections.hadamard import nearest  # here: reading does without

    return nearest(target, wish)


FORMS = {
    "loha": Form(
        {part: f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
        lambda a, s, _: build(**a, scaling=s, dtype=stored(a)),  # pyright: ignore[reportCallIssue]
        lambda a: len(a["w1_b"]),
        alpha="alpha",
    )
}
RECIPES = {"loha": Recipe(random)}
NEAREST = {"loha": Projection(nearest, "w1_a", "local", tried=8)}
