"""VeRA and PVeRA: frozen random A and B for all layers, and trained vectors that scale them.

VeRA (arXiv 2310.11454), PEFT: ``<module>.vera_lambda_b`` (m,), ``.vera_lambda_d`` (r,), and once
``base_model.vera_A`` (r, largest n), ``base_model.vera_B`` (largest m, r), of which a layer uses the first columns
and rows. Without ``save_projection`` the two are drawn again from ``projection_prng_key``, as ``vera/model.py`` does.

PVeRA: ``.pvera_lambda_b`` (m,), ``.pvera_lambda_d`` (2r,), ``base_model.pvera_A`` (2r, n), ``base_model.pvera_B``
(m, r). Merged is the mean, the first r rows (``pvera/layer.py``).

The files do not store a layer's n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from zlib import crc32

import numpy as np

from ..extras import require
from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..files.parts import collect, fitted, others
from ..linalg import Array
from ..patterns import late
from ..projections import Projection, Target, Wish
from ..updates.blocks import diagonal
from ..updates.checks import coarsest
from ..updates.contract import FactorError, Update
from .file_form import Arrays, Form, size
from .random_factors import Parts, Recipe, Spec, kaiming, slots

_SHARED = late(r"(^|\.)p?vera_(?P<side>[AB])(\.[^.]+)?$")


def read(source: Source) -> Found | None:
    """VeRA and PVeRA, with and without saved projections."""
    found, rest = collect(source, "p?vera_lambda_[bd]")
    if not found:
        return None
    kind = "pvera" if any("pvera_lambda_b" in parts for parts in found.values()) else "vera"
    shared: dict[str, str] = {}
    left = []
    for key in rest:
        hit = _SHARED.search(key)
        if hit:
            shared.setdefault(hit["side"], key)  # PEFT may repeat them for every layer, the same numbers
        else:
            left.append(key)
    shapes = {"b": f"{kind}_lambda_b (m,)", "d": f"{kind}_lambda_d (r,)"}
    pairs = {module: (*fitted(source, parts, **shapes)[0].values(),) for module, parts in found.items()}
    notes: list[str] = []
    if len(shared) == 2:
        project, widest = _saved(source, shared)
    else:
        project, widest = _drawn(source, kind, pairs)
    if not source.sized and len({module.rpartition(".")[2] for module in pairs}) > 1:
        notes.append(
            f"the file does not store the layers' in_features; {widest}, the largest, stands for all; if they differ, "
            "give the base model (--base) or the sizes of its layers (shapes)"
        )
    loaders = {module: _loader(source, module, kind, b, d, widest, project) for module, (b, d) in pairs.items()}
    return Found(kind, loaders, others(source, left), notes, scaled=False)


def _saved(source: Source, shared: dict[str, str]) -> tuple[Callable[[], tuple[Array, Array]], int]:
    _, sizes = fitted(source, shared, A="A (r, n)", B="B (m, s)")
    r, n = sizes["r"], sizes["n"]
    source.expect(sizes["s"] in (r, r // 2), shared["B"], f"(m, {r}) from vera_A {(r, n)}")

    @cache
    def project() -> tuple[Array, Array]:
        return source.read_shared(shared["A"]), source.read_shared(shared["B"])

    return project, n


def _drawn(
    source: Source, kind: str, pairs: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[], tuple[Array, Array]], int]:
    """The projections as PEFT draws them: Kaiming-uniform, A and then B from one generator on the CPU."""
    key = source.setting("projection_prng_key", int)
    _, d = next(iter(pairs.values()))
    if key is None:
        raise AdapterError(
            f"{source.path}: {d}: the projections A and B are not in the file, and the configuration has no "
            "projection_prng_key to draw them; save with save_projection=True"
        )
    if kind == "pvera":
        raise AdapterError(
            f"{source.path}: {d}: the projections of PVeRA are not in the file; save with save_projection=True"
        )
    rows = max(source.tensors.shape(own)[0] for own, _ in pairs.values())
    columns = max(source.shape_of(module, b)[1] for module, (b, _) in pairs.items())
    (r,) = source.tensors.shape(d)

    @cache
    def project() -> tuple[Array, Array]:
        require("torch", "must be drawn by PyTorch's generator", "torch", error=partial(FactorError, "A"))
        import torch  # here: its generator is what drew them

        generator = torch.Generator(device="cpu").manual_seed(key)

        def draw(shape: tuple[int, int]) -> Array:
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))  # fan-in is the second dimension
            return torch.empty(shape).uniform_(-bound, bound, generator=generator).numpy()

        A = draw((r, columns))
        return A, draw((rows, r))

    return project, columns


def _loader(
    source: Source, module: str, kind: str, b: str, d: str, widest: int, project: Callable[[], tuple[Array, Array]]
) -> Loader:
    (r,) = source.tensors.shape(d)
    source.check_rank(module, d, r // 2 if kind == "pvera" else r)
    n = source.shape_of(module, b)[1] if source.sized else widest

    def load(lambda_b: Array, lambda_d: Array, *, dtype: str) -> Update:
        return build(lambda_b, lambda_d, *project(), n=n, kind=kind, dtype=dtype)

    return source.loader({"lambda_b": b, "lambda_d": d}, load)


def build(lambda_b: Array, lambda_d: Array, A: Array, B: Array, *, n: int, kind: str, dtype: str) -> Update:
    """diag(lambda_b) B[:m] diag(lambda_d) A[:, :n]."""
    m, r, inner = len(lambda_b), len(lambda_d), B.shape[1]
    if len(B) < m or len(A) != r or A.shape[1] < n:
        raise FactorError(
            "lambda_b",
            f"has shape ({m},), lambda_d ({r},) and in_features is {n}; the projections A {A.shape} and B {B.shape} "
            "do not fit them",
        )
    left = lambda_b.astype(np.float64)[:, None] * B[:m]
    return diagonal(left, lambda_d[:inner], A[:inner, :n], method=kind, parameters=m + r, dtype=dtype)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """Projections as PEFT draws them (Kaiming-uniform with a = 0), of the largest m and n, the same for all modules.

    PVeRA's A and λ_d have r rows more, for the variance, which a merged ΔW does not have.
    """
    rows, columns = (max(shape[side] for shape in spec.shapes.values()) for side in (0, 1))
    draw, r = np.random.default_rng([spec.seed, crc32(b"vera")]), spec.r
    inner = 2 * r if spec.method == "pvera" else r
    A = (math.sqrt(6) * kaiming(draw, (inner, columns))).astype(np.float32)
    B = (math.sqrt(6) * kaiming(draw, (rows, r))).astype(np.float32)
    if spec.kind == "init":
        lambda_b, lambda_d = np.zeros(m), np.full(inner, 0.1)
    else:
        reach = math.sqrt(2 * n / columns) * math.sqrt(2 * m / r)  # norms of A's rows and B's columns
        lambda_b, lambda_d = rng.standard_normal(m) * (spec.scale / reach), np.resize(slots(spec, r), inner)
    vectors = {"lambda_b": lambda_b.astype(np.float32), "lambda_d": lambda_d.astype(np.float32)}
    return {**vectors, "A": A, "B": B, "shape": np.array([m, n])}


def _form(kind: str, repeats: int) -> Form:
    """λ_d has ``repeats`` times r numbers."""

    def from_parts(a: Arrays, _: float, __: str) -> Update:
        _, n = size(a, "lambda_b", 0)
        dtype = coarsest(a[part].dtype.name for part in ("lambda_b", "lambda_d"))
        return build(a["lambda_b"], a["lambda_d"], a["A"], a["B"], n=n, kind=kind, dtype=dtype)

    return Form(
        {part: f"{kind}_{part}" for part in ("lambda_b", "lambda_d")},
        from_parts,
        lambda a: len(a["lambda_d"]) // repeats,
        lambda _: {"save_projection": True},
        alpha=None,
        shared={side: f"base_model.{kind}_{side}" for side in "AB"},
        told=("shape",),
    )


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    """λ_b and λ_d in turn, each in closed form, beside random projections of one seed, which all modules share."""
    (m, n), r = target.shape, wish.r
    rows, columns = wish.room or (m, n)
    frozen = np.random.default_rng([0, crc32(b"vera")])
    A = math.sqrt(6) * kaiming(frozen, (r, columns))
    B = math.sqrt(6) * kaiming(frozen, (rows, r))
    parts = {"A": A, "B": B, "shape": np.array([m, n])}
    A, B = A[:, :n].astype(float), B[:m].astype(float)
    seen, gram = target.left @ (target.right @ A.T), A @ A.T  # T Aᵀ (m, r)
    b = np.random.default_rng(wish.start).standard_normal(m) if wish.start else np.ones(m)
    d, captured = np.ones(r), -1.0
    for _ in range(200):
        last, scaled = captured, b[:, None] * B
        normal = (scaled.T @ scaled) * gram
        ridge = 1e-13 * float(np.trace(normal)) or 1.0  # where r is larger than what it can add, this is singular
        d = np.linalg.solve(normal + ridge * np.eye(r), (scaled * seen).sum(0))
        right = B * d
        top = (right * seen).sum(1)
        squares = ((right @ gram) * right).sum(1)
        b = top / np.where(squares > 0, squares, 1.0)
        captured = float((b * top).sum())
        if captured - last <= 1e-6 * (1 - captured):
            break
    return {"lambda_b": b, "lambda_d": d, **parts}, captured


FORMS = {"vera": _form("vera", 1), "pvera": _form("pvera", 2)}
RECIPES = dict.fromkeys(FORMS, Recipe(random))
NEAREST = {"vera": Projection(nearest, "lambda_b", "local", useful=lambda m, n, _: m * n, tried=256)}
