"""T-LoRA (arXiv 2507.05964), as LyCORIS saves it (``modules/tlora.py``): ΔW = s (P diag(λ) Q − P₀ diag(λ₀) Q₀).

``<module>.q_layer.weight`` (r, n), ``.p_layer.weight`` (m, r), ``.lambda_layer`` (1, r). The start P₀, λ₀, Q₀ is not
saved: where LyCORIS loads a file, it takes the first r singular directions of W0. The mask of a timestep, which leaves
out the last directions, is not applied: ΔW is that of the last steps, with all r.
"""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.errors import AdapterError
from ..files.parts import fitted, read_parts
from ..linalg import Array
from ..linalg.solvers import svd_with_vectors
from ..patterns import late
from ..updates.blocks import lora
from ..updates.contract import Update
from .on_base_model import base_matrix
from .random_base import form_on_base, on_base, told_apart
from .random_factors import Parts, Spec, slots

_OTHER_START = late(r'"sig_type": "(last|middle)"|"use_data_init": "?false', re.IGNORECASE)


def read(source: Source) -> Found | None:
    """T-LoRA's linear layers, with the base model."""
    if not any(key.endswith(".lambda_layer") for key in source.tensors.keys()):  # noqa: SIM118  no mapping
        return None
    if hit := _OTHER_START.search(source.tensors.metadata.get("ss_network_args", "")):
        raise AdapterError(
            f"{source.path}: T-LoRA that starts elsewhere than LyCORIS loads it ({hit[0]}) is not readable"
        )
    found = read_parts(source, "[qp]_layer|lambda_layer", "tlora", _loader, scaled=True)
    if found:
        found.notes.append(
            "T-LoRA with all r directions, from the start that LyCORIS takes where it loads a file, the first r "
            "singular directions of W0; a run with sig_type last or middle, or without use_data_init, began elsewhere"
        )
    return found


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    base = base_matrix(source, "T-LoRA", module, next(iter(parts.values())))
    m, n = base.shape
    keys, sizes = fitted(
        source, parts, {"m": m, "n": n}, base.key, Q="q_layer (r, n)", P="p_layer (m, r)", weights="lambda_layer (1, r)"
    )
    return source.loader(keys, partial(_build, base=base, scaling=source.scaling(module, sizes["r"])))


def _build(Q: Array, P: Array, weights: Array, *, base: BaseMatrix, scaling: float, dtype: str) -> Update:
    r = len(Q)
    U, s, Vh = svd_with_vectors(base.read().astype(np.float64))
    left = np.concatenate([P.astype(np.float64) * weights, -U[:, :r] * s[:r]], axis=1)
    right = np.concatenate([Q.astype(np.float64), Vh[:r]])
    update = lora(scaling * left, right, method="tlora", dtype=dtype, any_rank=True)
    size = Q.size + P.size + r
    return update.with_facts(r=r, scaling=scaling, parameters=size, macs_per_token=2 * size)


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """P, λ and Q moved from W0's first singular directions; in kind ``"decay"`` λ alone, by the singular values of ΔW.

    A direction of P or of Q counts as its λ, so each is moved by as much of the scale.
    """
    r, (m, n) = spec.r, W0.shape
    U, s, Vh = svd_with_vectors(W0.astype(np.float64))
    P, weights, Q = U[:, :r], s[:r], Vh[:r]
    moved = np.full(r, spec.scale / 2) / weights
    if spec.kind == "gaussian":
        P = P + rng.standard_normal((m, r)) * (moved / np.sqrt(m))
        Q = Q + rng.standard_normal((r, n)) * (moved / np.sqrt(n))[:, None]
        weights = weights + spec.scale / 2 * rng.standard_normal(r)
    if spec.kind == "decay":
        weights = weights + spec.scale * slots(spec, r)
    return {"P": P, "weights": weights[None], "Q": Q}


# As LyCORIS saves it; PEFT has no such method.
FORMS = {
    "tlora": form_on_base(
        read,
        {"P": "p_layer.weight", "weights": "lambda_layer", "Q": "q_layer.weight"},
        lambda a: len(a["Q"]),
        alpha="lora_alpha",
        named=lambda module: f"lycoris_{module.replace('.', '_')}",
        alpha_key="alpha",
    )
}
RECIPES = {"tlora": on_base(random, lambda spec, m, n: min(m, n) if told_apart(spec) else 0)}
