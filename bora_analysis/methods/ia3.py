"""IA³ (arXiv 2205.05638): ΔW = (l − 1) ⊙ W0. ``ia3_l`` (m, 1), or (1, n) in the feed-forward part."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np

from ..files.adapter_file import Found, Source
from ..files.base_model import BaseMatrix
from ..files.parts import collect, others
from ..files.tensors import Array
from ..updates.contract import Facts, Update
from .on_base_model import base_matrix, checked


def read(source: Source) -> Found | None:
    """IA³: a factor per output, or per input where the configuration counts a module to the feed-forward part."""
    found, rest = collect(source, "ia3_l")
    if not found:
        return None
    loaders = {}
    for module, parts in found.items():
        key = parts["ia3_l"]
        source.check_factor(key)
        base = base_matrix(source, "IA³", module, key)
        shape, stored = source.tensors.shape(key), base.stored
        m, n = base.shape
        if len(stored) > 2:
            inputs = _is_feedforward(source, module)
            fits = int(np.prod(shape)) % stored[1] == 0 if inputs else int(np.prod(shape)) == m
            source.expect(fits, key, f"a number per {'input' if inputs else 'output'} channel of {base.key} {stored}")
        else:
            inputs = shape != (m, 1)
            source.expect(shape == ((1, n) if inputs else (m, 1)), key, f"({m}, 1) or (1, {n}) from {base.key}")
        build = partial(_ia3, source=source, key=key, base=base, inputs=inputs)
        loaders[module] = source.loader({"l": key}, build)
    return Found("ia3", loaders, others(source, rest), [], scaled=False)


def _is_feedforward(source: Source, module: str) -> bool:
    """PEFT's rule (``tuners/ia3/model.py``): a string is a regular expression, a list holds endings."""
    named: Any = (source.config or {}).get("feedforward_modules") or []
    if isinstance(named, str):
        return bool(re.fullmatch(named, module))
    return any(module.endswith(ending) for ending in named)


def _ia3(l: Array, *, source: Source, key: str, base: BaseMatrix, inputs: bool, dtype: str) -> Update:  # noqa: E741
    m, n = base.shape
    change = l.astype(np.float64).ravel() - 1.0
    if inputs and len(base.stored) > 2:  # output group g of a convolution sees channels g
        change = change.reshape(-1, base.stored[1])
        change = np.repeat(np.repeat(change, m // len(change), axis=0), n // base.stored[1], axis=1)
    elif not inputs:
        change = change[:, None]
    facts = Facts("ia3", m, n, 1, 1, 1.0, l.size, l.size, min(m, n), dtype)
    return checked(source, key, facts, lambda: base.read() * change)
