"""MiSS (arXiv 2409.15371): one block, added to every group of r columns of the weight.

PEFT: ``<module>.miss_block`` (r, m), or (r, mini_r) repeated down the rows with ``init_weights: mini``. The block's
transpose is added to columns 0 … r−1, r … 2r−1 and so on, the last group cut off at n (``miss/layer.py``). The file
does not store n, which the singular values depend on. The variant ``init_weights: bat`` multiplies the base model's
weights and is read in :mod:`.on_base`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from ..delta import Update, lora
from .source import Found, Loader, Source, collect, others
from .tensors import Array


def read(source: Source) -> Found | None:
    """MiSS as PEFT saves it, but for the variant "bat"."""
    found, rest = collect(source, "miss_block")
    if not found:
        return None
    loaders = {module: _loader(source, module, parts["miss_block"]) for module, parts in found.items()}
    return Found("miss", loaders, others(source, rest), [], scaled=False)


def _loader(source: Source, module: str, key: str) -> Loader:
    source.check_factor(key)
    shape = source.tensors.shape(key)
    source.expect(len(shape) == 2, key, "(r, m)")
    m, n = source.shape_of(module, key)
    mini = (source.config or {}).get("init_weights") == "mini"
    source.expect(shape[0] <= n and (m % shape[1] == 0 if mini else m == shape[1]), key, f"(r, {m}), r up to {n}")
    source.check_rank(module, key, shape[0])
    return source.loader({"block": key}, partial(build, repeats=m // shape[1], n=n))


def build(block: Array, *, repeats: int, n: int, dtype: str) -> Update:
    r = len(block)
    right = np.zeros((r, n), np.float32)
    right[np.arange(n) % r, np.arange(n)] = 1
    update = lora(np.tile(block.T, (repeats, 1)), right, method="miss", dtype=dtype, any_rank=True)
    # The columns of a group are summed before the block: additions, no multiply-adds.
    return replace(
        update, facts=replace(update.facts, parameters=block.size, macs_per_token=r * block.shape[1] * repeats)
    )
