"""VB-LoRA (arXiv 2405.15179): every vector of A and B is a mixture of the top k vectors of one bank.

PEFT: ``<module>.vblora_logits_A`` (r, n/v, h), ``.vblora_logits_B`` (m/v, r, h), and once
``base_model.vblora_vector_bank`` (h, v). With ``save_only_topk_weights`` the logits are ``…_topk_indices`` (…, k) and
``…_topk_weights`` (…, k−1), and the last weight makes their sum 1. ΔW = BA without a scaling (``vblora/layer.py``).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any
from zlib import crc32

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, fitted, incomplete, need, others
from ..linalg import Array
from ..patterns import late
from ..updates.blocks import lora
from ..updates.checks import coarsest, is_finite
from ..updates.contract import FactorError, Update
from .file_form import Arrays, Form
from .random_factors import LENGTH, Parts, Recipe, Spec, slots

#: Vectors that are mixed, PEFT's default.
TOPK = 2
_BANK = late(r"(^|\.)vblora_vector_bank(\.[^.]+)?$")


def read(source: Source) -> Found | None:
    """VB-LoRA as PEFT saves it, with logits or with the top k alone."""
    found, rest = collect(source, "vblora_logits_[AB](_topk_(indices|weights))?")
    if not found:
        return None
    banks = [key for key in rest if _BANK.search(key)]
    if not banks:
        raise incomplete(source, next(iter(next(iter(found.values())).values())), "vblora_vector_bank")
    _, sizes = fitted(source, {"bank": banks[0]}, bank="bank (h, v)")
    shape = (sizes["h"], sizes["v"])
    bank = cache(lambda: source.read_shared(banks[0]).astype(np.float64))
    loaders = {module: _loader(source, module, parts, shape, bank) for module, parts in found.items()}
    note = f"the vector bank of {shape[0] * shape[1]:,} trained numbers is shared by all modules and counted for none"
    return Found("vblora", loaders, others(source, [key for key in rest if key not in banks]), [note], scaled=False)


def _loader(source: Source, module: str, parts: dict[str, str], bank_shape: tuple[int, ...], bank: Any) -> Loader:
    topk = source.setting("topk", int, TOPK)
    keys: dict[str, list[str]] = {}
    for side in "AB":
        whole = f"vblora_logits_{side}"
        names = [whole] if whole in parts else [f"{whole}_topk_indices", f"{whole}_topk_weights"]
        keys[side] = need(source, parts, *names)
        for name, key in zip(names, keys[side], strict=True):
            source.expect(len(source.tensors.shape(key)) == 3, key, "three dimensions")
            if not name.endswith("indices"):
                source.check_factor(key)
        if len(names) == 1:
            shape = source.tensors.shape(keys[side][0])
            source.expect(shape[2] == bank_shape[0] >= topk, keys[side][0], f"(…, …, {bank_shape[0]}), the bank's h")
    r = source.tensors.shape(keys["A"][0])[0]
    source.expect(source.tensors.shape(keys["B"][0])[1] == r, keys["B"][0], f"(m/v, {r}, …), the r of A")
    source.check_rank(module, keys["A"][0], r)

    def load(A: list[Array], B: list[Array], *, dtype: str) -> Update:
        return build(A, B, bank(), topk=topk, dtype=dtype)

    return source.loader(keys, load)


def build(A: list[Array], B: list[Array], bank: Array, *, topk: int, dtype: str) -> Update:
    """From the logits of each factor, or from its top k indices and weights."""
    r = len(A[0])
    right = _mixed(A, bank, topk).reshape(r, -1)  # from (r, n/v, v)
    left = _mixed(B, bank, topk).transpose(0, 2, 1).reshape(-1, r)  # from (m/v, r, v)
    update = lora(left, right, method="vblora", dtype=dtype, any_rank=True)
    trained = (right.size + left.size) // bank.shape[1] * bank.shape[0]
    # An error in a logit is a relative one of the weight; those of weights go into the last one, 1 − their sum.
    logits = [float(np.abs(stored[0]).max()) if len(stored) == 1 else float("nan") for stored in (A, B)]
    return replace(update.with_facts(parameters=trained), steepness=2 * max(logits))


def _mixed(stored: list[Array], bank: Array, topk: int) -> Array:
    """The vectors of one factor, (…, …, v), from its logits or from its top k indices and weights."""
    if len(stored) == 1:
        from scipy.special import softmax  # here: no other method needs it

        logits = stored[0].astype(np.float64)
        if not is_finite(logits):  # NaN would not be among the top k
            raise FactorError("A", "holds NaN or Inf")
        index = np.argpartition(-logits, topk - 1, axis=-1)[..., :topk]
        weights = softmax(np.take_along_axis(logits, index, axis=-1), axis=-1)
    else:
        index, some = stored[0].astype(np.int64), stored[1].astype(np.float64)
        weights = np.concatenate([some, 1 - some.sum(axis=-1, keepdims=True)], axis=-1)
        if index.shape != weights.shape or index.min() < 0 or index.max() >= len(bank):
            raise FactorError(
                "A", f"has indices {index.shape} and weights {some.shape} that do not fit the bank {bank.shape}"
            )
    return (weights[..., None] * bank[index]).sum(axis=-2)


def vector_length(spec: Spec) -> int:
    """The longest vector, up to 256, that divides all sizes: that of VB-LoRA's bank, and the number of its vectors."""
    common = math.gcd(*(size for shape in spec.shapes.values() for size in shape))
    return max(k for k in range(1, LENGTH + 1) if common % k == 0)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """A bank of h vectors for all modules; with decay, slot k mixes the vectors of group k, which become shorter."""
    h = v = vector_length(spec)
    draw, r = np.random.default_rng([spec.seed, crc32(b"vblora")]), spec.r
    logits = [rng.standard_normal(shape) for shape in ((r, n // v, h), (m // v, r, h))]
    if spec.kind == "init":  # PEFT's
        bank, logits = draw.uniform(-0.02, 0.02, (h, v)), [0.1 * part for part in logits]
    else:
        spans = [math.sqrt(p * q) for p, q in spec.shapes.values()]
        # A mixture of two independent vectors, half of each, is shorter by √2.
        bank = draw.standard_normal((h, v)) * math.sqrt(2 * spec.scale / float(np.median(spans)))
        if spec.kind == "decay":
            group = np.arange(h) * r // h
            bank *= np.sqrt(slots(spec, r))[group, None]
            own = 20.0 * (group[None] == np.arange(r)[:, None])  # (r, h), above all other logits
            logits = [logits[0] + own[:, None], logits[1] + own[None]]
    parts = {"A": logits[0], "B": logits[1], "bank": bank}
    return {name: part.astype(np.float32) for name, part in parts.items()}


def from_parts(a: Arrays, _: float, __: str) -> Update:
    (r, _, h), (_, columns, other) = a["A"].shape, a["B"].shape
    if columns != r or not h == other == len(a["bank"]):
        raise FactorError("B", f"has shape {a['B'].shape}; expected (m/v, {r}, {len(a['bank'])}) from A and the bank")
    dtype = coarsest(a[part].dtype.name for part in "AB")
    return build([a["A"]], [a["B"]], a["bank"].astype(np.float64), topk=TOPK, dtype=dtype)


FORMS = {
    "vblora": Form(
        {"A": "vblora_logits_A", "B": "vblora_logits_B"},
        from_parts,
        lambda a: len(a["A"]),
        lambda a: {"num_vectors": len(a["bank"]), "vector_length": a["bank"].shape[1], "topk": TOPK},
        alpha=None,
        shared={"bank": "base_model.vblora_vector_bank"},
    )
}
RECIPES = {"vblora": Recipe(random, most=lambda spec, m, n: vector_length(spec) // TOPK)}
