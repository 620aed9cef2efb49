"""MELoRA (arXiv 2402.17263), ours: ``<module>.melora_A`` (N, r, n/N), ``.melora_B`` (N, m/N, r). Its authors':
``<module>.lora_A.{i}.weight`` (r_i, n/N), ``.lora_B.{i}.weight`` (m/N, r_i).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..linalg import Array
from ..projections import Projection, Target, Wish, longer_side
from ..updates.blocks import melora
from ..updates.contract import FactorError, Update
from .bora import check_count, of_kind, read_blocks
from .file_form import Arrays, Form, columns
from .pairs import Pair, check_pair
from .random_factors import Bulk, NoNullError, Null, Parts, Recipe, Sizes, Spec, expect, pair, pair_core


def read(source: Source) -> Found | None:
    """MELoRA in our own layout."""
    return read_blocks(source, "melora", ("B",), melora_loader)


def melora_loader(source: Source, module: str, keys: Mapping[str, str]) -> Loader:
    """Check the shapes of one MELoRA module in our layout and return its loader."""
    for key in keys.values():
        source.check_factor(key)
    A, B = source.tensors.shape(keys["A"]), source.tensors.shape(keys["B"])
    source.expect(len(A) >= 3, keys["A"], "(N, r, n/N), or (N, r, channels/N, kernel …) for a convolution")
    source.expect(len(B) == 3 and B[0] == A[0] and B[2] == A[1], keys["B"], f"({A[0]}, m/N, {A[1]}) from melora_A {A}")
    source.check_rank(module, keys["A"], A[1])
    check_count(source, module, "num_minis", keys["A"], A[0])
    build = partial(_minis, scaling=source.scaling(module, A[1]))
    return source.loader(keys, of_kind(build, keys["A"], kernel=A[3:]))


def minis_loader(source: Source, module: str, minis: Mapping[str, Pair]) -> Loader:
    """Check the shapes of one MELoRA module in its authors' layout and return its loader."""
    pairs = [minis[name] for name in sorted(minis, key=int)]
    if sorted(map(int, minis)) != list(range(len(minis))):
        raise AdapterError(
            f"{source.path}: {pairs[0].A}: minis {', '.join(sorted(minis, key=int))}; expected 0 … N−1, none missing"
        )
    ranks = [check_pair(source, module, pair)[0] for pair in pairs]
    told = (source.settings(module) or {}).get("r")
    if isinstance(told, list) and told != ranks:
        raise AdapterError(f"{source.path}: {pairs[0].A}: minis have ranks {ranks} but the configuration says {told}")
    scaling = [source.scaling(module, r, i) for i, r in enumerate(ranks)]
    keys = {"B": [pair.B for pair in pairs], "A": [pair.A for pair in pairs]}
    return source.loader(keys, partial(_minis, scaling=scaling))


def _minis(B: Any, A: Any, *, scaling: float | list[float], dtype: str) -> Update:
    return melora(list[Array](B), list[Array](A), scaling=scaling, dtype=dtype)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    minis = [pair(spec, rng, m // spec.blocks, n // spec.blocks) for _ in range(spec.blocks)]
    return {"B": np.stack([B for B, _ in minis]), "A": np.stack([A for _, A in minis])}


def from_parts(a: Arrays, scaling: float, _: str) -> Update:
    for part, array in a.items():
        if array.ndim != 3:
            raise FactorError(part, f"has shape {array.shape}; expected three dimensions, the minis first")
    if a["A"].shape[1] != a["B"].shape[2]:
        raise FactorError("A", "and B differ in r")
    return melora(list(a["B"]), list(a["A"]), scaling=scaling, any_rank=True)


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    """Each mini is nearest to its block on the diagonal; the other blocks are lost."""
    B, A, captured = zip(*(row[i].pair(wish.r) for i, row in enumerate(target.grid(wish.blocks))), strict=True)
    return {"B": np.stack(B), "A": np.stack(A)}, sum(captured)


FORMS = {
    "melora": Form(
        {"A": "melora_A", "B": "melora_B"},
        from_parts,
        lambda a: columns(a["A"]),
        lambda a: {"num_minis": a["A"].shape[0]},
    )
}


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    """Minis of equal size."""
    N = sizes.blocks
    expect(sizes, (sizes.m + sizes.n) * sizes.r)
    if sizes.m % N or sizes.n % N or sizes.rank_bound != N * min(sizes.m // N, sizes.n // N, sizes.r):
        raise NoNullError("has minis of several sizes, which its row does not tell")
    return [pair_core(rng, sizes.m // N, sizes.n // N, sizes.r, N)]


def bulk(sizes: Sizes) -> Bulk:
    expect(sizes, (sizes.m + sizes.n) * sizes.r)
    Nr = sizes.blocks * sizes.r
    return Nr, (Nr / sizes.m, Nr / sizes.n), 1.0


RECIPES = {"melora": Recipe(random)}
NULLS = {"melora": Null(null_cores, bulk)}
NEAREST = {
    "melora": Projection(
        nearest, useful=lambda m, n, b: min(m, n) // b, limit=lambda m, n, b: longer_side(m, n, b) // b
    )
}
