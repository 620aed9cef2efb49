"""DoRA (arXiv 2402.09353): ΔW = diag(g / ‖V‖_row) V − W0 with V = W0 + s B A.

A LoRA pair and ``lora_magnitude_vector`` (m,); its authors': ``weight_m_wdecomp.weight`` (m, 1), also without a pair.
LyCORIS has it over LoKr and LoHa too, whose ΔW then stands for s B A (``lokr.py``, ``loha.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.errors import AdapterError
from ..files.layouts.view import View
from ..files.parts import collect, incomplete
from ..files.tensors import Array
from ..updates.checks import coarsest
from ..updates.contract import Facts, Update
from . import loha, lokr
from .lora_modules import lora_loaders
from .on_base_model import base_matrix, checked
from .pairs import Pair, single, sort_keys
from .random_base import deviations, form_on_base, on_base
from .random_factors import Parts, Spec, pair

_MAGNITUDES = "lora_magnitude_vector|lora_magnitude_columns|weight_m_wdecomp"


def read(source: Source) -> Found | None:
    """DoRA as PEFT and its authors save it. ``lora_magnitude_columns`` (channels in) is LyCORIS's default: there the
    norms are those of the columns, over outputs and kernel."""
    found, rest = collect(source, _MAGNITUDES)
    if not found:
        if (source.config or {}).get("use_dora"):
            raise AdapterError(f"{source.path}: the configuration sets use_dora, but the file holds no magnitudes")
        return None
    below = replace(source, tensors=View(source.tensors, {key: key for key in rest}))
    other = lokr.read(below) or loha.read(below)
    parts = sort_keys(source, other.passed_over if other else rest)
    pairs = single(source, parts)
    low, notes = lora_loaders(source, pairs, "dora")
    if other:
        low, notes = low | other.loaders, [*notes, *other.notes]
    bare = sorted(set(low) - set(found))
    if bare:
        key = pairs[bare[0]].A if bare[0] in pairs else next(key for key in rest if bare[0] in key)
        raise incomplete(source, key, "lora_magnitude_vector")
    loaders = {module: _dora_loader(source, module, keys, pairs, low) for module, keys in found.items()}
    return Found("dora", loaders, parts.passed_over, notes, scaled=bool(low))


def _dora_loader(
    source: Source, module: str, keys: Mapping[str, str], pairs: Mapping[str, Pair], low: Mapping[str, Loader]
) -> Loader:
    if len(keys) > 1:
        raise AdapterError(f"{source.path}: {' and '.join(keys.values())}: two magnitudes for one module")
    ((part, key),) = keys.items()
    source.check_factor(key)
    pair = pairs.get(module)
    base = base_matrix(source, "DoRA", module, key, embedding=pair is not None and pair.embedding)
    m, n = base.shape
    columns = part == "lora_magnitude_columns"
    length = base.stored[1] if columns else m
    source.expect(np.prod(source.tensors.shape(key)) == length, key, f"{length} numbers, for W0 {base.stored}")
    if pair is not None:
        A, B = source.tensors.shape(pair.A), source.tensors.shape(pair.B)
        fits = B[0] == m and int(np.prod(A[1:])) == n
        source.expect(fits, pair.B, f"a product with lora_A {A} of the base model's shape {(m, n)} ({base.key})")

    def build(magnitude: Array, *, dtype: str) -> Update:
        product = low[module]() if module in low else None
        told = product.facts if product else Facts("dora", m, n, 0, 1, 1.0, 0, 0, 0, dtype)
        if (told.out_features, told.in_features) != (m, n):
            raise AdapterError(
                f"{source.path}: {key}: the update beside it is {told.out_features}×{told.in_features}; expected "
                f"{m}×{n}, as {base.key} of the base model"
            )
        facts = replace(
            told,
            method="dora",
            parameters=told.parameters + length,
            macs_per_token=told.macs_per_token + length,
            rank_bound=min(m, n),
            dtype=coarsest((told.dtype, dtype)),
        )
        return checked(source, key, facts, partial(_dora, base, product, magnitude.ravel(), columns))

    return source.loader({"magnitude": key}, build)


def _dora(base: BaseMatrix, product: Update | None, magnitude: Array, columns: bool) -> Array:
    W = base.read()
    V = W.astype(np.float64)
    if product is not None:
        V += product.to_dense()
    if columns:
        kernel = V.reshape(len(V), len(magnitude), -1)  # (m, channels, kernel)
        norms = np.sqrt(np.einsum("ick,ick->c", kernel, kernel))
        kernel *= (magnitude / norms)[None, :, None]
    else:
        norms = np.sqrt(np.einsum("ij,ij->i", V, V))
        V *= (magnitude / norms)[:, None]
    V -= W
    return V


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """A LoRA, and the norms of W0's rows, moved a little."""
    B, A = pair(spec, rng, *W0.shape)
    norms = np.linalg.norm(W0, axis=1)
    return {"A": A, "B": B, "magnitude": norms * np.abs(1 + deviations(spec, rng, len(W0), *W0.shape))}


FORMS = {
    "dora": form_on_base(
        read,
        {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"},
        lambda a: len(a["A"]),
        lambda _: {"use_dora": True},
        alpha="lora_alpha",
    )
}
RECIPES = {"dora": on_base(random)}
