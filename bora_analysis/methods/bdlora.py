"""BD-LoRA: LoRA with one factor block-diagonal, stored compactly.

PEFT, ``use_bdlora`` in the configuration: ``<module>.lora_A.weight`` (r, n/N), whose N groups of rows are the blocks,
for modules of ``target_modules_bd_a``; ``.lora_B.weight`` (m, r/N) for those of ``target_modules_bd_b``
(``lora/variants.py``, ``BdLoraLinearVariant``). A module belongs to a list if its path contains one of the names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..files.parts import collect, fitted
from ..linalg import Array
from ..linalg.gaussian import gaussian_triangle
from ..projections import Find, Projection, Target, Wish
from ..updates.blocks import lora
from ..updates.contract import Update
from ..updates.sums import block_diagonal
from .file_form import Arrays, Form, Settings, same, stored
from .random_factors import Maker, NoNullError, Null, Parts, Recipe, Sizes, Spec, kaiming, orthonormal, pair, slots


def read(source: Source) -> Found | None:
    """BD-LoRA as PEFT saves it."""
    settings = (source.config or {}).get("use_bdlora")
    if not settings:
        return None
    if not isinstance(settings, Mapping) or not isinstance(settings.get("nblocks"), int):
        raise AdapterError(f"{source.path}: use_bdlora is {settings!r}; expected its settings, nblocks among them")
    found, rest = collect(source, "lora_[AB]")
    loaders = {module: _loader(source, module, parts, settings) for module, parts in found.items()}
    return Found("bdlora", loaders, rest, [])


def _loader(source: Source, module: str, parts: dict[str, str], settings: Mapping[str, Any]) -> Loader:
    keys, sizes = fitted(source, parts, A="lora_A (r, n)", B="lora_B (m, width)")
    A, B, r, rows = keys["A"], keys["B"], sizes["r"], sizes["m"]
    cut = {
        side: any(name in module for name in settings.get(f"target_modules_bd_{side.lower()}") or ()) for side in "AB"
    }
    if cut["A"] and cut["B"]:
        raise AdapterError(f"{source.path}: use_bdlora names {module} for both factors; expected one")
    count = settings["nblocks"]
    source.expect(not cut["A"] or r % count == 0, A, f"rows in {count} blocks")
    width = r // count if cut["B"] else r
    source.expect(sizes["width"] == width, B, f"(m, {width}) from lora_A {source.tensors.shape(A)}")
    source.expect(not cut["B"] or (rows % count == 0 and r % count == 0), B, f"rows in {count} blocks")
    source.check_rank(module, A, r)
    return source.loader(keys, partial(build, cut=cut, count=count, scaling=source.scaling(module, r)))


def build(B: Array, A: Array, *, cut: Mapping[str, bool], count: int, scaling: float, dtype: str) -> Update:
    trained = B.size + A.size
    left, right = (_spread(X, count) if cut[side] else X for side, X in (("B", B), ("A", A)))
    update = lora(left, right, scaling=scaling, method="bdlora", dtype=dtype, any_rank=True)
    return update.with_facts(parameters=trained, macs_per_token=trained)


def _spread(X: Array, count: int) -> Array:
    """The groups of rows of X, beside each other on the diagonal."""
    p, q = X.shape
    out = np.zeros((count, p // count, count, q), dtype=X.dtype)
    index = np.arange(count)
    out[index, :, index] = X.reshape(count, p // count, q)
    return out.reshape(p, count * q)


def random(side: str) -> Maker:
    """The factor on ``side`` has N blocks, its rows (r of A, m of B) in as many groups."""

    def make(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
        B, A = pair(spec, rng, m, n)
        N, width = spec.blocks, spec.r // spec.blocks
        shape = (spec.r, n // N) if side == "A" else (m, width)
        outer = shape[1] if side == "A" else m // N
        if spec.kind == "init":
            cut = kaiming(rng, shape) if side == "A" else np.zeros(shape, np.float32)
        else:
            stacks = rng.standard_normal((N, outer, width))
            stacks = stacks / math.sqrt(outer) if spec.kind == "gaussian" else np.stack([*map(orthonormal, stacks)])
            stacks *= np.sqrt(spec.scale * slots(spec, spec.r)).reshape(N, 1, width)
            cut = (stacks.transpose(0, 2, 1) if side == "A" else stacks).reshape(shape)
        return {"A": A, "B": B, side: cut.astype(np.float32), "nblocks": np.array([N])}

    return make


def _form(side: str) -> Form:
    """``side`` is that of the block-diagonal factor."""

    def from_parts(a: Arrays, scaling: float, _: str) -> Update:
        cut, count = {"A": side == "A", "B": side == "B"}, int(a["nblocks"][0])
        return build(a["B"], a["A"], cut=cut, count=count, scaling=scaling, dtype=stored(a))

    def config(settings: Settings) -> dict[str, Any]:
        lists = {f"target_modules_bd_{name}": list(settings) if name == side.lower() else [] for name in "ab"}
        return {"use_bdlora": same(settings) | lists}

    keys = {"A": "lora_A.weight", "B": "lora_B.weight"}
    told = ("nblocks",)
    return Form(
        keys, from_parts, lambda a: len(a["A"]), lambda a: {"nblocks": int(a["nblocks"][0])}, config=config, told=told
    )


def nearest(side: str) -> Find:
    """Each block of columns of ΔW, or of rows where B is block-diagonal, has its own pair of rank r/N."""

    def find(target: Target, wish: Wish) -> tuple[Parts, float]:
        N, part, all_of = wish.blocks, wish.r // wish.blocks, slice(None)
        size = target.shape[1 if side == "A" else 0] // N
        cuts = [slice(k * size, k * size + size) for k in range(N)]
        blocks = [target.block(*((all_of, cut) if side == "A" else (cut, all_of))) for cut in cuts]
        B, A, captured = zip(*(block.pair(part) for block in blocks), strict=True)
        pair = {"A": np.concatenate(A), "B": np.concatenate(B, axis=1 if side == "A" else 0)}
        return {**pair, "nblocks": np.array([N])}, sum(captured)

    return find


FORMS = {"bdlora-a": _form("A"), "bdlora-b": _form("B")}


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    """Which factor has blocks, and how many, follows from the number of parameters."""
    r, found = sizes.r, set()
    for whole, cut in ((sizes.m, sizes.n), (sizes.n, sizes.m)):
        N, rest = divmod(cut * r, max(1, sizes.parameters - whole * r))
        if N > 1 and not (rest or cut % N or r % N):
            found.add((whole, cut, N))
    if len(found) != 1:
        raise NoNullError("has blocks whose number its row does not tell")
    ((whole, cut, N),) = found
    blocks = block_diagonal(gaussian_triangle(rng, cut // N, r // N, N))
    return [(gaussian_triangle(rng, whole, r) @ blocks.T)[None]]


NULLS = {"bdlora": Null(null_cores)}
RECIPES = {"bdlora-a": Recipe(random("A")), "bdlora-b": Recipe(random("B"))}
NEAREST = {  # each of the N pairs has r/N
    "bdlora-a": Projection(nearest("A"), useful=lambda m, n, N: N * min(m, n // N)),
    "bdlora-b": Projection(nearest("B"), scale="A", useful=lambda m, n, N: N * min(m // N, n)),
}
