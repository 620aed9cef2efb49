"""Whole differences of weights, as LyCORIS's "full" algorithm saves them: ``<module>.diff`` (m, n) or (m, c, k, k).

ΔW is the tensor (``lycoris/modules/full.py``); no α scales it. Those of norms and biases have one dimension and are
passed over.
"""

from __future__ import annotations

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect
from ..files.tensors import Array
from ..updates.contract import Update
from ..updates.dense import dense
from .random_factors import whole_null


def read(source: Source) -> Found | None:
    """Full differences of matrices and convolutions."""
    found, rest = collect(source, "diff")
    if not found:
        return None
    loaders: dict[str, Loader] = {}
    for module, parts in found.items():
        key = parts["diff"]
        if len(source.tensors.shape(key)) < 2:
            rest.append(key)
            continue
        source.check_factor(key)
        loaders[module] = source.loader({"delta": key}, _build)
    return Found("full", loaders, rest, [], scaled=False)


def _build(delta: Array, *, dtype: str) -> Update:
    return dense(delta.reshape(delta.shape[0], -1), dtype=dtype)


NULLS = {"full": whole_null()}
