"""RandLoRA (arXiv 2502.00987): ΔW = s Σ_j B_j diag(λ_j) A diag(γ_j) of full rank, A and B_j random and frozen.

PEFT: ``<module>.randlora_lambda`` (r, N), ``.randlora_gamma`` (N, min(m, n)), and once ``base_model.randlora_A``
(r, 1, …), ``base_model.randlora_B`` (…, …, r), of which a layer uses the first. They make a product of
max(m, n) × min(m, n), which is transposed where m < n. PEFT flattens A in the order (r, N) and B in the order (N, r),
and so do we (``randlora/layer.py``). The files do not store a layer's larger size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from zlib import crc32

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..files.in_memory import InMemory
from ..files.parts import collect, fitted, others
from ..linalg import Array
from ..patterns import late
from ..updates.checks import coarsest
from ..updates.contract import FactorError, Facts, Update
from .file_form import Arrays, Form
from .on_base_model import checked
from .random_factors import Parts, Recipe, Spec, slots

_SHARED = late(r"(^|\.)randlora_(?P<side>[AB])(\.[^.]+)?$")


def read(source: Source) -> Found | None:
    """RandLoRA as PEFT saves it, with its projections."""
    found, rest = collect(source, "randlora_(lambda|gamma)")
    if not found:
        return None
    shared: dict[str, str] = {}
    for key in rest:
        if hit := _SHARED.search(key):
            shared.setdefault(hit["side"], key)  # PEFT repeats them for every layer, the same numbers
    if len(shared) < 2:
        raise AdapterError(
            f"{source.path}: {next(iter(next(iter(found.values())).values()))}: the projections A and B are not in the "
            "file, and PEFT draws them in other numbers on other machines; save with save_projection=True"
        )
    bases = cache(lambda: (source.read_shared(shared["A"]), source.read_shared(shared["B"])))
    loaders = {module: _loader(source, module, parts, bases) for module, parts in found.items()}
    rest = [key for key in rest if not _SHARED.search(key)]
    return Found("randlora", loaders, others(source, rest), [], scaled=False)


def _loader(source: Source, module: str, parts: dict[str, str], bases: Callable[[], tuple[Array, Array]]) -> Loader:
    size = source.shape_of(module, next(iter(parts.values())))
    known, shapes = {"least": min(size)}, {"lambda_": "randlora_lambda (r, N)", "gamma": "randlora_gamma (N, least)"}
    keys, sizes = fitted(source, parts, known, f"a layer of {size}", **shapes)
    source.check_rank(module, keys["lambda_"], sizes["r"])
    scaling = source.scaling(module, sizes["r"], name="randlora_alpha")
    build = partial(_build, source=source, key=keys["gamma"], size=size, scaling=scaling, bases=bases)
    return source.loader(keys, build)


def _build(
    lambda_: Array, gamma: Array, *, source: Source, key: str, size: tuple[int, int], scaling: float,
    bases: Callable[[], tuple[Array, Array]], dtype: str,
) -> Update:  # fmt: skip
    (m, n), (r, count), (A, B) = size, lambda_.shape, bases()
    least, most = min(size), max(size)
    if A.shape[::2] < (r, least) or len(A) != r or B.shape[0] < most or B.shape[1] < count or B.shape[2] != r:
        raise FactorError(
            "gamma", f"has shape {gamma.shape}; the projections {A.shape} and {B.shape} do not fit {size}"
        )
    trained = lambda_.size + gamma.size
    facts = Facts("randlora", m, n, r, count, scaling, trained, (m + n) * r * count, min(least, r * count), dtype)

    def make() -> Array:
        right = (scaling * lambda_.astype(np.float64)[:, :, None]) * A[:, :1, :least] * gamma.astype(np.float64)
        whole = B[:most, :count].reshape(most, -1).astype(np.float64) @ right.reshape(-1, least)
        return whole if n == least else whole.T

    return checked(source, key, facts, make)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """A and B of independent numbers of variance 1, as in PEFT, for the largest m and n of all modules.

    γ is random too: with the equal ones of PEFT's beginning ΔW would have the rank r. Of the N r pairs, each of
    the norm |λγ| √(mn), number k is scaled by k^−p in kind ``"decay"``; else they share the spectrum of a matrix.
    """
    rows, columns = (max(shape[side] for shape in spec.shapes.values()) for side in (0, 1))
    longest, shortest, r = max(rows, columns), min(rows, columns), spec.r
    draw, least = np.random.default_rng([spec.seed, crc32(b"randlora")]), min(m, n)
    A = draw.standard_normal((r, 1, shortest), dtype=np.float32)
    B = draw.standard_normal((longest, -(-shortest // r), r), dtype=np.float32)
    count = -(-least // r)
    gamma = np.full((count, least), 1 / max(count, least))
    weights = np.zeros((r, count))
    if spec.kind != "init":
        gamma *= rng.standard_normal(gamma.shape)
        spread = np.sqrt(m * n) if spec.kind == "decay" else np.sqrt(count * r) * (np.sqrt(m) + np.sqrt(n))
        signs = np.sign(rng.standard_normal(count * r)) * slots(spec, count * r)
        weights = (spec.scale * max(count, least) / spread * signs).reshape(count, r).T
    parts = {"lambda_": weights, "gamma": gamma, "A": A, "B": B}
    return {name: part.astype(np.float32) for name, part in parts.items()} | {"shape": np.array([m, n])}


def from_parts(a: Arrays, _: float, __: str) -> Update:
    m, n = a["shape"].tolist()
    weights, gamma = a["lambda_"], a["gamma"]
    return _build(
        weights, gamma, source=Source(InMemory("parts in memory", {}), {}), key="gamma", size=(m, n), scaling=1.0,
        bases=lambda: (a["A"], a["B"]), dtype=coarsest([weights.dtype.name, gamma.dtype.name]),
    )  # fmt: skip


FORMS = {
    "randlora": Form(
        {"lambda_": "randlora_lambda", "gamma": "randlora_gamma"},
        from_parts,
        lambda a: len(a["lambda_"]),
        lambda a: {"randlora_alpha": len(a["lambda_"]), "save_projection": True},
        alpha=None,
        shared={side: f"base_model.randlora_{side}" for side in "AB"},
        told=("shape",),
    )
}
RECIPES = {"randlora": Recipe(random, lambda spec, m, n: min(m, n))}
