"""LoKr, as PEFT saves it (LyCORIS has the same names), and KronA, which is LoKr with both factors whole.

``<module>.lokr_w1`` (p, q) or ``.lokr_w1_a`` (p, r) and ``.lokr_w1_b`` (r, q); the same for ``.lokr_w2``, whose kernel
counts in its columns; or decomposed ``.lokr_t2`` (r, r, k, k), ``.lokr_w2_a`` (r, u), ``.lokr_w2_b`` (r, v). Scaling is
α/r with the configuration's ``alpha``.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ..catalogue.sizes import kronecker_factors
from ..files.adapter_file import Found, Loader, Source, of_layer
from ..files.errors import AdapterError
from ..files.parts import need, read_parts
from ..linalg import Array
from ..linalg.gaussian import gaussian_values
from ..linalg.solvers import svd_values
from ..projections import Projection, Target, Wish
from ..updates.contract import Update
from ..updates.dense import dense
from ..updates.kronecker import lokr
from .file_form import Form, stored
from .loha import contracted
from .random_factors import Null, Parts, Recipe, Sizes, Spec, expect, orthonormal, pair, pair_core


def read(source: Source) -> Found | None:
    """LoKr, linear layers and convolutions; KronA is LoKr with both factors whole."""
    found = read_parts(source, "lokr_(w[12](_[ab])?|t2)", "lokr", _loader, scaled=True)
    if found and source.config is None and source.alpha is not None:
        found.notes.append("where both factors are whole they do not show r; there the scaling is α itself")
    return found


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
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
    return source.loader(keys, partial(build, r=configured or r, scaling=scaling))


def build(
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
        w2_a, w2_b = w2_a.T, contracted(t2, w2_b)
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


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """w1 orthonormal, so that each singular value of w2 appears once for each of its own."""
    (p, u), (q, v) = kronecker_factors(m), kronecker_factors(n)
    w2_a, w2_b = pair(spec, rng, u, v)
    return {"w1": orthonormal(rng.standard_normal((p, q))).astype(np.float32), "w2_a": w2_a, "w2_b": w2_b}


def random_krona(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    (p, u), (q, v) = kronecker_factors(m), kronecker_factors(n)
    if spec.kind == "gaussian":
        w2 = rng.standard_normal((u, v)) * (spec.scale / math.sqrt(max(u, v)))
    else:
        B, A = pair(spec, rng, u, v, min(u, v))
        w2 = B @ A
    return {"w1": orthonormal(rng.standard_normal((p, q))).astype(np.float32), "w2": w2.astype(np.float32)}


def largest_rank(_: Spec, m: int, n: int) -> int:
    """PEFT keeps w2 whole from max(u, v) / 2 on."""
    return _largest(m, n)


def _largest(m: int, n: int, _: int = 1) -> int:
    u, v = kronecker_factors(m)[1], kronecker_factors(n)[1]
    return min(u, v, (max(u, v) - 1) // 2)


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    from ..projections import kronecker  # here: reading does without

    return kronecker.nearest(target, wish)


def nearest_whole(target: Target, wish: Wish) -> tuple[Parts, float]:
    from ..projections import kronecker

    return kronecker.nearest_whole(target, wish)


FORMS = {
    "lokr": Form(
        {part: f"lokr_{part}" for part in ("w1", "w2_a", "w2_b")},
        lambda a, s, _: build(**a, r=len(a["w2_b"]), scaling=s, dtype=stored(a)),
        lambda a: len(a["w2_b"]),
        alpha="alpha",
    ),
    "krona": Form(  # LoKr with both factors whole; PEFT keeps w2 so from r = max(u, v) / 2 on
        {part: f"lokr_{part}" for part in ("w1", "w2")},
        lambda a, s, _: build(**a, r=max(a["w2"].shape), scaling=s, dtype=stored(a)),
        lambda a: max(a["w2"].shape),
        alpha="alpha",
    ),
}


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    """Both factors Gaussian; the second of rank r, or whole."""
    (p, u), (q, v) = kronecker_factors(sizes.m), kronecker_factors(sizes.n)
    if sizes.method == "krona" or sizes.parameters == p * q + u * v:
        expect(sizes, p * q + u * v)
        second = gaussian_values(rng, u, v)
    else:
        expect(sizes, p * q + (u + v) * sizes.r)
        second = svd_values(pair_core(rng, u, v, sizes.r))[0]
    return [np.outer(gaussian_values(rng, p, q), second).reshape(-1, 1, 1)]


NULLS = {"lokr": Null(null_cores), "krona": Null(null_cores)}
RECIPES = {"lokr": Recipe(random, most=largest_rank), "krona": Recipe(random_krona)}
NEAREST = {
    "lokr": Projection(nearest, "w1", "local", useful=_largest, limit=_largest),
    "krona": Projection(nearest_whole, "w1"),
}
