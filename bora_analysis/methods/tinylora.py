"""TinyLoRA (arXiv 2602.04118): ΔW = B (Σ_i v_i P_i) A, all but v frozen.

PEFT: ``<module>.tinylora_A`` (r, n), ``.tinylora_B`` (m, r), ``.tinylora_P`` (u, r, r), and for each group of
consecutive layers ``base_model.tinylora_v.K`` (u,). The file does not say which layer is which; PEFT draws the P of
layer k from ``projection_seed`` + k (``tinylora/layer.py``), and that tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial

import numpy as np

from ..catalogue.formulas import VECTOR
from ..extras import require
from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..files.parts import collect, fitted, others
from ..linalg import Array
from ..patterns import late
from ..updates.blocks import lora
from ..updates.checks import coarsest
from ..updates.contract import FactorError, Update
from .file_form import Arrays, Form
from .random_base import largest_of
from .random_factors import Parts, Recipe, Spec, orthonormal, slots

#: PEFT's default.
SEED = 42
_VECTOR = late(r"(^|\.)tinylora_v\.([^.]+\.)?(?P<group>\d+)$")


def read(source: Source) -> Found | None:
    """TinyLoRA as PEFT saves it, with its projections."""
    found, rest = collect(source, "tinylora_[ABP]")
    vectors = {int(hit["group"]): key for key in rest if (hit := _VECTOR.search(key))}
    if not found:
        return None
    notes = []
    if len(vectors) < len(found):
        notes = ["layers share their trained vectors, each of which is counted for its first layer"]
    first = next(iter(found))
    loaders = {m: _loader(source, parts, vectors, len(found), m == first) for m, parts in found.items()}
    rest = [key for key in rest if key not in vectors.values()]
    return Found("tinylora", loaders, others(source, rest), notes, scaled=False)


def _loader(source: Source, parts: dict[str, str], vectors: Mapping[int, str], layers: int, first: bool) -> Loader:
    if "tinylora_P" not in parts or sorted(vectors) != list(range(len(vectors))) or not vectors:
        what = "tinylora_v of its group" if "tinylora_P" in parts else "tinylora_P"
        raise AdapterError(
            f"{source.path}: {next(iter(parts.values()))} has no {what} beside it, and without it the update is "
            "unknown; save with save_projection=True"
        )
    keys, sizes = fitted(source, parts, A="tinylora_A (r, n)", B="tinylora_B (m, r)", P="tinylora_P (u, r, r)")
    u = sizes["u"]
    for key in vectors.values():
        source.check_factor(key)
        source.expect(source.tensors.shape(key) == (u,), key, f"({u},) from tinylora_P")
    seed = source.setting("projection_seed", int, SEED)

    def load(A: Array, B: Array, P: Array, *, dtype: str) -> Update:
        group, counted = 0, first
        if len(vectors) > 1:  # PEFT's rule (``tinylora/model.py``)
            layer, size = _layer(P, seed, layers), max(1, layers // len(vectors))
            group = min(layer // size, len(vectors) - 1)
            counted = layer == group * size
        return build(A, B, P, source.read_shared(vectors[group]), trained=u * counted, dtype=dtype)

    return source.loader(keys, load)


def build(A: Array, B: Array, P: Array, v: Array, *, trained: int, dtype: str) -> Update:
    update = lora(B @ np.tensordot(v.astype(np.float64), P, 1), A, method="tinylora", dtype=dtype, any_rank=True)
    return update.with_facts(parameters=trained, macs_per_token=update.facts.macs_per_token + P[0].size)


def _layer(P: Array, seed: int, layers: int) -> int:
    """Which layer has these projections."""
    u, r, _ = P.shape
    apart = [np.linalg.norm(_drawn(u, r, seed + k) - P) for k in range(layers)]
    if min(apart) > 2.0**-7 * np.linalg.norm(P):  # half precision rounds them
        raise FactorError("P", f"is drawn from no seed from projection_seed = {seed} on, so its vector is unknown")
    return int(np.argmin(apart))


@lru_cache(maxsize=1024)
def _drawn(u: int, r: int, seed: int) -> Array:
    told = "tells its layer only to PyTorch's generator"
    require("torch", told, "torch", error=partial(FactorError, "P"))
    import torch  # here: its generator is what drew them

    return torch.normal(0.0, 1.0 / r**0.5, (u, r, r), generator=torch.Generator().manual_seed(seed)).numpy()


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """Directions as those of a W0 of independent entries, P as PEFT draws it for the layer, v zero at the start.

    All r singular values of W0 are its largest, or fall as k^−p in kind ``"decay"``. ‖Σ v_i P_i‖₂ is about 2 ‖v‖.
    """
    r, largest = spec.r, largest_of(spec, m, n)
    B, A = (orthonormal(rng.standard_normal((size, r), dtype=np.float32)) for size in (m, n))
    root = np.sqrt(largest * slots(spec, r))
    v = rng.standard_normal(VECTOR)
    size = 0.0 if spec.kind == "init" else spec.scale / (2 * largest * np.linalg.norm(v))
    parts = {"A": root[:, None] * A.T, "B": B * root, "P": _drawn(VECTOR, r, SEED + spec.layer), "v": size * v}
    return {name: part.astype(np.float32) for name, part in parts.items()} | {"layer": np.array(spec.layer)}


def from_parts(a: Arrays, _: float, __: str) -> Update:
    A, B, P = factors = [a[part] for part in "ABP"]
    return build(A, B, P, a["v"], trained=len(P), dtype=coarsest(part.dtype.name for part in factors))


FORMS = {
    "tinylora": Form(
        {part: f"tinylora_{part}" for part in "ABP"},
        from_parts,
        lambda a: len(a["A"]),
        lambda a: {"u": len(a["P"]), "weight_tying": 0.0, "projection_seed": SEED, "save_projection": True},
        alpha=None,
        shared={"v": "base_model.tinylora_v.{layer}"},
        told=("layer",),
    )
}
RECIPES = {"tinylora": Recipe(random, lambda spec, m, n: min(m, n))}
