"""DeLoRA (arXiv 2503.18225): ΔW = B diag(λ / (r ‖A_i‖ ‖B_i‖)) A diag(w).

PEFT: ``<module>.delora_A`` (r, n), ``.delora_B`` (m, r), ``.delora_lambda`` (1,), and ``.delora_w_norm`` (n,), the
column norms of the frozen weight, which are saved, so that the base model is not needed (``delora/layer.py``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..delta import Update
from ..structures import diagonal
from .source import Found, Loader, Source, collect, need, others
from .tensors import Array


def read(source: Source) -> Found | None:
    """DeLoRA as PEFT saves it."""
    found, rest = collect(source, "delora_(A|B|lambda|w_norm)")
    if not found:
        return None
    loaders = {module: _loader(source, module, parts) for module, parts in found.items()}
    return Found("delora", loaders, others(source, rest), [], scaled=False)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    B, A, bound, norm = need(source, parts, "delora_B", "delora_A", "delora_lambda", "delora_w_norm")
    for key in (B, A, bound, norm):
        source.check_factor(key)
    shape = source.tensors.shape(A)
    source.expect(len(shape) == 2, A, "(r, n)")
    r, n = shape
    source.expect(source.tensors.shape(B)[1:] == (r,), B, f"(m, {r}) from delora_A {shape}")
    source.expect(source.tensors.shape(bound) == (1,), bound, "(1,)")
    source.expect(source.tensors.shape(norm) == (n,), norm, f"({n},) from delora_A {shape}")
    source.check_rank(module, A, r)
    return source.loader({"B": B, "A": A, "bound": bound, "norm": norm}, build)


def build(B: Array, A: Array, bound: Array, norm: Array, *, dtype: str) -> Update:
    left, right = B.astype(np.float64), A.astype(np.float64)
    # PEFT keeps the norms above 1e-4, so that a zero row does not divide by zero.
    sizes = np.maximum(np.linalg.norm(left, axis=0), 1e-4) * np.maximum(np.linalg.norm(right, axis=1), 1e-4)
    d = float(bound[0]) / (len(A) * sizes)
    update = diagonal(B, d, right * norm, method="delora", parameters=B.size + A.size + 1, dtype=dtype)
    # The norms multiply every input.
    return replace(update, facts=replace(update.facts, macs_per_token=update.facts.macs_per_token + norm.size))
