"""Random base models, and the random adapters beside them, for methods whose ΔW depends on W0.

A module's W0 ∈ R^{m×n} is the same for every method: it depends on the seed, the module's path and its spectrum alone.
The root mean square of its entries is 0.02, as transformers begins its models (``initializer_range``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..files.adapter_file import Found, Source
from ..files.in_memory import BaseInMemory, InMemory
from ..files.keys import module_path
from ..linalg import Array
from ..updates.contract import Update
from .file_form import Arrays, Form
from .random_factors import Parts, Recipe, Spec, generator, orthonormal, slots

#: Name → the singular values of W0, up to a factor.
SPECTRA = {
    "mp": "independent normal entries: the law of Marchenko and Pastur",
    "flat": "all equal",
    "power": "σ_k proportional to k^-p",
}
ROOT_MEAN_SQUARE = 0.02
#: Name of W0 among the parts of a module.
BASE = "W0"
_MODULE = "q"
Maker = Callable[[Spec, "np.random.Generator", Array], Parts]  # quoted: np.random is a slow import


def random_base(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Array:
    """W0 (m, n) of the specification's spectrum, float32."""
    normal = rng.standard_normal((m, n), dtype=np.float32)
    if spec.base_spectrum == "mp":
        return normal * np.float32(ROOT_MEAN_SQUARE)
    sigma = _sigma(spec, m, n)
    if spec.base_spectrum == "flat":
        return (orthonormal(normal) * sigma[0]).astype(np.float32)
    k = len(sigma)
    left, right = orthonormal(normal[:, :k]), orthonormal(rng.standard_normal((n, k), dtype=np.float32))
    return ((left * sigma) @ right.T).astype(np.float32)


def base_of(spec: Spec, module: str) -> Array:
    """W0 of another module of the specification."""
    return random_base(spec, _before(generator(spec, module)), *spec.shapes[module])


def _before(rng: np.random.Generator) -> np.random.Generator:
    """The generator of W0, which is that of every method because no factor has been drawn."""
    return rng.spawn(1)[0]


def largest_of(spec: Spec, m: int, n: int) -> float:
    """‖W0‖₂: exact, but for independent entries, where it is that of large matrices."""
    if spec.base_spectrum == "mp":
        return ROOT_MEAN_SQUARE * (math.sqrt(m) + math.sqrt(n))
    return float(_sigma(spec, m, n)[0])


def told_apart(spec: Spec) -> bool:
    """Whether W0's singular directions are; a method that begins with some of them needs it."""
    if spec.base_spectrum == "flat" or (spec.base_spectrum == "power" and not spec.base_decay):
        raise ValueError(
            f"{spec.method} begins with some of W0's singular directions, which equal singular values do not tell "
            "apart; expected a base spectrum that is not flat"
        )
    return True


def _sigma(spec: Spec, m: int, n: int) -> Array:
    k = min(m, n)
    shape = np.arange(1, k + 1) ** -(spec.base_decay if spec.base_spectrum == "power" else 0.0)
    return shape * (ROOT_MEAN_SQUARE * math.sqrt(m * n) / np.linalg.norm(shape))


def deviations(spec: Spec, rng: np.random.Generator, count: int, m: int, n: int) -> Array:
    """Numbers that multiply parts of W0 and change it by about the scale; zeros for the kind ``"init"``."""
    size = 0.0 if spec.kind == "init" else spec.scale / largest_of(spec, m, n)
    return size * rng.standard_normal(count) * slots(spec, count)


def skew(spec: Spec, rng: np.random.Generator, blocks: int, b: int, m: int, n: int) -> Array:
    """Skew-symmetric S (blocks, b, b) whose rotations (I − S)(I + S)⁻¹ change W0 by about the scale.

    ‖S‖₂ of independent entries of variance t² is about 2 t √b, and R − I is about −2 S.
    """
    size = 0.0 if spec.kind == "init" else spec.scale / (4 * math.sqrt(b) * largest_of(spec, m, n))
    S = rng.standard_normal((blocks, b, b)) * (size * slots(spec, blocks))[:, None, None]
    upper = np.triu(S, 1)
    return upper - upper.swapaxes(-1, -2)


def on_base(make: Maker, most: Callable[[Spec, int, int], int] | None = None, *, exact: bool = False) -> Recipe:
    """The recipe of a method whose factors are made beside W0, which becomes one of the parts.

    ``exact`` is whether what a file means hangs on every digit of W0.
    """

    def whole(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
        W0 = random_base(spec, _before(rng), m, n)
        return {name: _single(part) for name, part in make(spec, rng, W0).items()} | {BASE: W0}

    return Recipe(whole, most, exact)


def _single(part: Array) -> Array:
    return part.astype(np.float32, copy=False) if part.dtype.kind == "f" else part


def form_on_base(
    read: Callable[[Source], Found | None],
    keys: dict[str, str],
    rank: Callable[[Arrays], int] | None = None,
    settings: Callable[[Arrays], dict[str, Any]] = lambda _: {},
    alpha: str | None = None,
    *,
    shared: Mapping[str, str] | None = None,
    told: tuple[str, ...] = (),
    **layout: Any,
) -> Form:
    """The form of a method on W0, which is one of the parts and is not written: the reader makes the update."""

    def build(a: Arrays, scaling: float, _: str) -> Update:
        module = str(a.get("kind", _MODULE))  # by which a reader finds what modules share
        tensors = {key: array for _, key, array in form.tensors(module, a)}
        base = BaseInMemory({f"{module}.weight": a[BASE]}, {})
        config = settings(a) | ({} if rank is None else {"r": rank(a)})
        own = module_path(form.named(module))
        scalings = {} if alpha is None else {own: scaling}
        found = read(Source(InMemory("parts in memory", tensors), config, scalings=scalings, base=base))
        assert found is not None, "the reader knows its own keys"
        return found.loaders[own]()

    form = Form(keys, build, rank, settings, alpha, shared=shared or {}, told=(BASE, *told), **layout)
    return form
