"""MiSS (arXiv 2409.15371): one block, added to every group of r columns of the weight.

PEFT: ``<module>.miss_block`` (r, m), or (r, mini_r) repeated down the rows with ``init_weights: mini``. The block's
transpose is added to columns 0 … r−1, r … 2r−1 and so on, the last group cut off at n (``miss/layer.py``). The file
does not store n, which the singular values depend on. The variant ``init_weights: bat`` multiplies the base model's
weights.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..linalg import Array
from ..projections import Projection, Target, Wish
from ..updates.blocks import lora
from ..updates.contract import Facts, Update
from .file_form import Arrays, Form, size
from .on_base_model import base_matrix, checked
from .random_factors import Parts, Recipe, Spec, pair, slots


def read(source: Source) -> Found | None:
    """MiSS as PEFT saves it; the variant "bat" needs the base model."""
    bat = (source.config or {}).get("init_weights") == "bat"
    return read_parts(source, "miss_block", "miss", _bat_loader if bat else _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys, sizes = fitted(source, parts, block="miss_block (r, width)")
    key, r, width = keys["block"], sizes["r"], sizes["width"]
    m, n = source.shape_of(module, key)
    mini = (source.config or {}).get("init_weights") == "mini"
    source.expect(r <= n and (m % width == 0 if mini else m == width), key, f"(r, {m}), r up to {n}")
    source.check_rank(module, key, r)
    return source.loader(keys, partial(build, repeats=m // width, n=n))


def build(block: Array, *, repeats: int, n: int, dtype: str) -> Update:
    r = len(block)
    right = np.zeros((r, n), np.float32)
    right[np.arange(n) % r, np.arange(n)] = 1
    update = lora(np.tile(block.T, (repeats, 1)), right, method="miss", dtype=dtype, any_rank=True)
    # The columns of a group are summed before the block: additions, no multiply-adds.
    return update.with_facts(parameters=block.size, macs_per_token=r * block.shape[1] * repeats)


def _bat_loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys, sizes = fitted(source, parts, M="miss_block (m/r, r, r)")
    key, count, r = keys["M"], sizes["m/r"], sizes["r"]
    base = base_matrix(source, "MiSS (bat)", module, key)
    m, n = base.shape
    fits = count * r == m and n % r == 0
    source.expect(fits, key, f"(m/r, r, r) with m = {m}, and r dividing n = {n} ({base.key})")

    def build(M: Array, *, dtype: str) -> Update:
        M = M.astype(np.float64)
        facts = Facts("miss", m, n, r, 1, 1.0, M.size, M.size * (n // r), min(m, n), dtype)

        def make() -> Array:
            W = base.read().astype(np.float64).reshape(count, r * (n // r), r)
            product = (W @ M).reshape(count, r, n // r, r)
            product += M[:, :, None, :]
            return product.reshape(m, n)

        return checked(source, key, facts, make)

    return source.loader(keys, build)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """ΔW repeats the block's columns n/r times, which makes its singular values √(n/r) times the block's."""
    B, _ = pair(spec, rng, m, n)
    size = math.sqrt(spec.scale) * math.sqrt(spec.r / n)
    falling = np.sqrt(slots(spec, spec.r))[:, None]  # the other half of k^−p
    return {"block": (B.T * falling * size).astype(np.float32), "shape": np.array([m, n])}


def from_parts(a: Arrays, _: float, __: str) -> Update:
    _, n = size(a, "block", 1)
    return build(a["block"], repeats=1, n=n, dtype=a["block"].dtype.name)


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    """The mean over the groups of columns; the last group may lack some."""
    m, n = target.shape
    place = np.arange(n) % wish.r
    sums = np.zeros((len(target.right), wish.r))
    np.add.at(sums.T, place, target.right.T)
    count = np.bincount(place, minlength=wish.r)
    block = target.left @ (sums / np.maximum(count, 1))
    return {"block": block.T, "shape": np.array([m, n])}, float((block**2 * count).sum())


FORMS = {
    "miss": Form(
        {"block": "miss_block"},
        from_parts,
        lambda a: len(a["block"]),
        lambda _: {"init_weights": True},
        alpha=None,
        told=("shape",),
    )
}
RECIPES = {"miss": Recipe(random, most=lambda _, m, n: min(m, n))}
NEAREST = {"miss": Projection(nearest, scale="block", useful=lambda _, n, __: n, limit=lambda _, n, __: n)}
