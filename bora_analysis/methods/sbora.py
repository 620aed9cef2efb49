"""SBoRA (Po et al., ICONIP 2024): LoRA with one factor of standard basis vectors, stored as their indices.

Ours: ``<module>.sbora_B`` (m, r) for SBoRA-FA or ``.sbora_A`` (r, n) for SBoRA-FB, ``.sbora_index`` (r,) whole numbers,
the columns or rows of ΔW that are not zero, and ``.sbora_size`` (1,), n or m. The authors': ``<module>.lora_A`` (r,)
whole numbers and ``.lora_B.weight`` (m, r), or ``.lora_A.weight`` (r, n) and ``.lora_B`` (r,); the size is not stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..catalogue.cost import cost
from ..catalogue.dtypes import EPSILON
from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..files.keys import module_path
from ..linalg import Array
from ..linalg.gaussian import gaussian_triangle
from ..linalg.qr import triangle
from ..patterns import late
from ..projections import Find, Projection, Target, Wish
from ..updates.blocks import lora
from ..updates.contract import Update
from .file_form import Arrays, Form
from .random_factors import Maker, Null, Parts, Recipe, Sizes, Spec, pair

_FACTOR = late(r"(?P<module>.+)\.(sbora_(?P<ours>index|size|A|B)|lora_(?P<side>[AB]))(\.[^.]+?)??(\.weight)?")


def read(source: Source) -> Found | None:
    """SBoRA in either layout."""
    keys = source.tensors.keys()
    if ".sbora_" not in source.text and not any(_is_index(source, key) for key in keys):
        return None  # without a look at each key
    found, rest = sort_sbora_keys(source, keys)
    if not found:
        return None
    method, loaders, notes = sbora_loaders(source, found)
    return Found(method, loaders, rest, notes)


def sort_sbora_keys(source: Source, keys: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module → ``index``, ``A`` or ``B``, and ``size`` → key, in either layout; and the other keys."""
    keys = list(keys)
    hits = {key: hit for key in keys if (hit := _FACTOR.fullmatch(module_path(key)))}
    # A plain LoRA pair has the authors' keys too: a vector of whole numbers makes the difference.
    theirs = {hit["module"] for key, hit in hits.items() if hit["side"] and _is_index(source, key)}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    for key in keys:
        hit = hits.get(key)
        if not hit or (hit["side"] and hit["module"] not in theirs):
            rest.append(key)
            continue
        part = hit["ours"] or ("index" if _is_index(source, key) else hit["side"])
        if part in found[hit["module"]]:
            raise AdapterError(f"{source.path}: {key}: several adapters in one file; save one at a time")
        found[hit["module"]][part] = key
    for parts in found.values():
        key = next(iter(parts.values()))
        if "index" not in parts or ("A" in parts) == ("B" in parts):
            raise AdapterError(
                f"{source.path}: {key}: its module has {', '.join(sorted(parts))}; expected an index and one of A and B"
            )
    return dict(found), rest


def sbora_loaders(source: Source, found: Mapping[str, Mapping[str, str]]) -> tuple[str, dict[str, Loader], list[str]]:
    """The method, module → loader, and a warning where the sizes are not stored."""
    loaders = {module: _loader(source, module, keys) for module, keys in found.items()}
    methods = {"sbora-fa" if "B" in keys else "sbora-fb" for keys in found.values()}
    unsized = [keys["index"] for keys in found.values() if "size" not in keys]
    notes = []
    if unsized:
        notes.append(
            f"{unsized[0]}: the size of the base layer is stored nowhere, so ΔW ends after the last index; its "
            "spectrum is right, in_features (SBoRA-FB: out_features) is too small"
        )
    return "+".join(sorted(methods)), loaders, notes


def _is_index(source: Source, key: str) -> bool:
    return len(source.tensors.shape(key)) == 1 and source.tensors.dtype(key) not in EPSILON


def _loader(source: Source, module: str, keys: Mapping[str, str]) -> Loader:
    side = "B" if "B" in keys else "A"
    source.check_factor(keys[side])
    shape = source.tensors.shape(keys[side])
    source.expect(len(shape) == 2, keys[side], "(m, r)" if side == "B" else "(r, n)")
    r = shape[1 if side == "B" else 0]
    dtype = source.tensors.dtype(keys["index"])
    if dtype in EPSILON or source.tensors.shape(keys["index"]) != (r,):
        raise AdapterError(
            f"{source.path}: {keys['index']} has dtype {dtype} and shape {source.tensors.shape(keys['index'])}; "
            f"expected whole numbers ({r},) from {keys[side]} {shape}"
        )
    source.check_rank(module, keys[side], r)
    scaling = source.scaling(module, r)

    def load() -> Update:
        index = source.tensors.read(keys["index"]).astype(np.int64)
        size = int(source.tensors.read(keys["size"]).item()) if "size" in keys else int(index.max()) + 1
        if index.min() < 0 or index.max() >= size or len(set(index.tolist())) < r:
            raise AdapterError(
                f"{source.path}: {keys['index']}: expected {r} different indices from 0 to {size - 1}, "
                f"found {index.min()} to {index.max()}, {len(set(index.tolist()))} different"
            )
        made = partial(build, side=side, index=index, size=size, scaling=scaling)
        return source.loader({"factor": keys[side]}, made)()

    return load


def build(factor: Array, *, side: str, index: Array, size: int, scaling: float, dtype: str) -> Update:
    basis = np.zeros((len(index), size), dtype=np.float32)
    basis[np.arange(len(index)), index] = 1
    pair: dict[str, Any] = {"B": factor, "A": basis} if side == "B" else {"B": basis.T, "A": factor}
    method = "sbora-fa" if side == "B" else "sbora-fb"
    update = lora(**pair, scaling=scaling, method=method, dtype=dtype, any_rank=True)
    price = cost(method, update.facts.out_features, update.facts.in_features, len(index))
    support = {"support_columns" if side == "B" else "support_rows": len(index)}
    return update.with_facts(parameters=price.parameters, macs_per_token=price.macs_per_token, **support)


def random(side: str) -> Maker:
    """One factor, and different indices at random for the other."""

    def make(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
        B, A = pair(spec, rng, m, n)
        factor, size = (B, n) if side == "B" else (A, m)
        if spec.kind == "init":  # the trained factor starts at zero, or ΔW would not
            factor = np.zeros_like(factor)
        return {side: factor, "index": np.sort(rng.choice(size, spec.r, replace=False)), "size": np.array([size])}

    return make


def _form(variant: str) -> Form:
    side = "B" if variant == "fa" else "A"

    def from_parts(a: Arrays, scaling: float, _: str) -> Update:
        index, size = a["index"], int(a["size"][0])
        dtype = a[side].dtype.name
        return build(a[side], side=side, index=index, size=size, scaling=scaling, dtype=dtype)

    keys = {part: f"sbora_{part}" for part in (side, "index", "size")}
    return Form(keys, from_parts, lambda a: len(a["index"]), lambda _: {"variant": variant})


def nearest(side: str) -> Find:
    """The r columns, or rows, of largest norm. Training draws them at random, and has r/n, or r/m, of the energy."""

    def find(target: Target, wish: Wish) -> tuple[Parts, float]:
        left, right = (target.left, target.right) if side == "B" else (target.right.T, target.left.T)
        squares = (triangle(left) @ right) ** 2
        index = np.sort(np.argsort(-squares.sum(0), kind="stable")[: wish.r])
        factor, size = left @ right[:, index], right.shape[1]
        parts = {side: factor if side == "B" else factor.T, "index": index, "size": np.array([size])}
        return parts, float(squares[:, index].sum())

    return find


FORMS = {"sbora-fa": _form("fa"), "sbora-fb": _form("fb")}


def _null(side: str) -> Null:
    """The trained factor; the other one only picks rows or columns."""

    def size(sizes: Sizes) -> int:
        return sizes.m if side == "B" else sizes.n

    return Null(
        lambda sizes, rng: [gaussian_triangle(rng, size(sizes), sizes.r)[None]],
        lambda sizes: (sizes.r, (sizes.r / size(sizes),), 1.0),
    )


NULLS = {"sbora-fa": _null("B"), "sbora-fb": _null("A")}
RECIPES = {
    "sbora-fa": Recipe(random("B"), most=lambda _, m, n: n),
    "sbora-fb": Recipe(random("A"), most=lambda _, m, n: m),
}
NEAREST = {
    "sbora-fa": Projection(
        nearest("B"),
        kind="best case",
        drawn=lambda target, wish: wish.r / target.shape[1],
        useful=lambda _, n, __: n,
        limit=lambda _, n, __: n,
    ),
    "sbora-fb": Projection(
        nearest("A"),
        "A",
        "best case",
        drawn=lambda target, wish: wish.r / target.shape[0],
        useful=lambda m, _, __: m,
        limit=lambda m, _, __: m,
    ),
}
