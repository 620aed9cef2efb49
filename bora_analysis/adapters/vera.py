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
import re
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from ..delta import FactorError, Update
from ..extras import require
from ..structures import diagonal
from .errors import AdapterError
from .source import Found, Loader, Source, collect, need, others
from .tensors import Array

_SHARED = re.compile(r"(^|\.)p?vera_(?P<side>[AB])(\.[^.]+)?$")


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
    pairs = {module: need(source, parts, f"{kind}_lambda_b", f"{kind}_lambda_d") for module, parts in found.items()}
    for b, d in pairs.values():
        for key in (b, d):
            source.check_factor(key)
            source.expect(len(source.tensors.shape(key)) == 1, key, "one dimension")
    notes: list[str] = []
    if len(shared) == 2:
        project, widest = _saved(source, shared)
    else:
        project, widest = _drawn(source, kind, pairs)
    if not source.sized and len({module.rpartition(".")[2] for module in pairs}) > 1:
        notes.append(
            f"the file does not store in_features of the layers; all are taken to have {widest}, the largest; if they "
            "differ give the base model (--base) or the sizes of its layers (shapes)"
        )
    loaders = {module: _loader(source, module, kind, b, d, widest, project) for module, (b, d) in pairs.items()}
    return Found(kind, loaders, others(source, left), notes, scaled=False)


def _saved(source: Source, shared: dict[str, str]) -> tuple[Callable[[], tuple[Array, Array]], int]:
    for key in shared.values():
        source.check_factor(key)
        source.expect(len(source.tensors.shape(key)) == 2, key, "two dimensions")
    (r, n), B = source.tensors.shape(shared["A"]), source.tensors.shape(shared["B"])
    source.expect(B[1] in (r, r // 2), shared["B"], f"(m, {r}) from vera_A {(r, n)}")

    @cache
    def project() -> tuple[Array, Array]:
        return source.read_shared(shared["A"]), source.read_shared(shared["B"])

    return project, n


def _drawn(source: Source, kind: str, pairs: dict[str, list[str]]) -> tuple[Callable[[], tuple[Array, Array]], int]:
    """The projections as PEFT draws them: Kaiming-uniform, A and then B from one generator on the CPU."""
    key = source.setting("projection_prng_key", int)
    _, d = next(iter(pairs.values()))
    if key is None:
        raise AdapterError(f"{source.path}: {d}: A and B are neither in the file nor is projection_prng_key configured")
    if kind == "pvera":
        raise AdapterError(f"{source.path}: {d}: PVeRA without its projections is not readable; save_projection=True")
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
