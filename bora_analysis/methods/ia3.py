"""IA³ (arXiv 2205.05638): ΔW = (l − 1) ⊙ W0. ``ia3_l`` (m, 1), or (1, n) in the feed-forward part."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import read_parts
from ..files.tensors import Array
from ..updates.contract import Facts, Update
from .on_base_model import base_matrix, checked
from .random_base import deviations, form_on_base, on_base
from .random_factors import Parts, Spec


def read(source: Source) -> Found | None:
    """IA³: a factor per output, or per input where the configuration counts a module to the feed-forward part."""
    return read_parts(source, "ia3_l", "ia3", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
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

    def build(scale: Array, *, dtype: str) -> Update:
        change = scale.astype(np.float64).ravel() - 1.0
        if inputs and len(stored) > 2:  # output group g of a convolution sees channels g
            change = change.reshape(-1, stored[1])
            change = np.repeat(np.repeat(change, m // len(change), axis=0), n // stored[1], axis=1)
        elif not inputs:
            change = change[:, None]
        facts = Facts("ia3", m, n, 1, 1, 1.0, scale.size, scale.size, min(m, n), dtype)
        return checked(source, key, facts, lambda: base.read() * change)

    return source.loader({"scale": key}, build)


def _is_feedforward(source: Source, module: str) -> bool:
    """PEFT's rule (``tuners/ia3/model.py``): a string is a regular expression, a list holds endings."""
    named: Any = (source.config or {}).get("feedforward_modules") or []
    if isinstance(named, str):
        return bool(re.fullmatch(named, module))
    return any(module.endswith(ending) for ending in named)


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """PEFT starts with l = 1."""
    return {"l": 1 + deviations(spec, rng, len(W0), *W0.shape)[:, None]}


FORMS = {"ia3": form_on_base(read, {"l": "ia3_l"}, settings=lambda _: {"feedforward_modules": []})}
RECIPES = {"ia3": on_base(random)}
