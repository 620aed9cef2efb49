"""BD-LoRA: LoRA with one factor block-diagonal, stored compactly.

PEFT, ``use_bdlora`` in the configuration: ``<module>.lora_A.weight`` (r, n/N), whose N groups of rows are the blocks,
for modules of ``target_modules_bd_a``; ``.lora_B.weight`` (m, r/N) for those of ``target_modules_bd_b``
(``lora/variants.py``, ``BdLoraLinearVariant``). A module belongs to a list if its path contains one of the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..delta import Update, lora
from .errors import AdapterError
from .source import Found, Loader, Source, collect, need
from .tensors import Array


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
    A, B = need(source, parts, "lora_A", "lora_B")
    for key in (A, B):
        source.check_factor(key)
        source.expect(len(source.tensors.shape(key)) == 2, key, "two dimensions")
    cut = {
        side: any(name in module for name in settings.get(f"target_modules_bd_{side.lower()}") or ()) for side in "AB"
    }
    if cut["A"] and cut["B"]:
        raise AdapterError(f"{source.path}: use_bdlora names {module} for both factors; expected one")
    count = settings["nblocks"]
    r = source.tensors.shape(A)[0]
    source.expect(not cut["A"] or r % count == 0, A, f"rows in {count} blocks")
    width, rows = (r // count if cut["B"] else r), source.tensors.shape(B)[0]
    source.expect(source.tensors.shape(B)[1] == width, B, f"(m, {width}) from lora_A {source.tensors.shape(A)}")
    source.expect(not cut["B"] or (rows % count == 0 and r % count == 0), B, f"rows in {count} blocks")
    source.check_rank(module, A, r)
    return source.loader({"B": B, "A": A}, partial(build, cut=cut, count=count, scaling=source.scaling(module, r)))


def build(B: Array, A: Array, *, cut: Mapping[str, bool], count: int, scaling: float, dtype: str) -> Update:
    trained = B.size + A.size
    left, right = (_spread(X, count) if cut[side] else X for side, X in (("B", B), ("A", A)))
    update = lora(left, right, scaling=scaling, method="bdlora", dtype=dtype, any_rank=True)
    return replace(update, facts=replace(update.facts, parameters=trained, macs_per_token=trained))


def _spread(X: Array, count: int) -> Array:
    """The groups of rows of X, beside each other on the diagonal."""
    p, q = X.shape
    out = np.zeros((count, p // count, count, q), dtype=X.dtype)
    index = np.arange(count)
    out[index, :, index] = X.reshape(count, p // count, q)
    return out.reshape(p, count * q)
