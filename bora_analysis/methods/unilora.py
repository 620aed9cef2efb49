"""Uni-LoRA (arXiv 2506.00799): every number of A and B is one of a single trained vector θ, scaled.

PEFT: once ``base_model.unilora_theta_d`` (d,), and with ``save_indices`` ``<module>.unilora_indices_A`` (r, n),
``.unilora_indices_B`` (m, r) and ``.unilora_scales_A``, ``_B`` of the same shapes. ΔW = BA without a scaling. Without
``save_indices`` the places follow from the order of the model's layers, which the file does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from zlib import crc32

import numpy as np

from ..catalogue.formulas import SHARED_VECTOR
from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..files.parts import collect, fitted, need, others
from ..linalg import Array
from ..patterns import late
from ..updates.blocks import lora
from ..updates.checks import coarsest
from ..updates.contract import FactorError, Update
from .file_form import Arrays, Form
from .random_factors import Parts, Recipe, Spec, pair_null, slots

_VECTOR = late(r"(^|\.)unilora_theta_d(\.[^.]+)?$")


def read(source: Source) -> Found | None:
    """Uni-LoRA as PEFT saves it with its indices."""
    found, rest = collect(source, "unilora_(indices|scales)_[AB]")
    vectors = [key for key in rest if _VECTOR.search(key)]
    if not (found or vectors):
        return None
    if not (found and vectors):
        raise AdapterError(
            f"{source.path}: {vectors[0] if vectors else next(iter(found))} has no "
            f"{'unilora_indices' if vectors else 'unilora_theta_d'} beside it: where the numbers of Uni-LoRA's vector "
            "stand follows from the order of all layers, which the file does not have; save with save_indices=True"
        )
    source.check_factor(vectors[0])
    (size,) = source.tensors.shape(vectors[0])
    vector = cache(lambda: source.read_shared(vectors[0]).astype(np.float64))

    def loader(module: str, parts: dict[str, str]) -> Loader:
        keys, _ = fitted(source, parts, scales_A="unilora_scales_A (r, n)", scales_B="unilora_scales_B (m, r)")
        for side, key in zip("AB", need(source, parts, "unilora_indices_A", "unilora_indices_B"), strict=True):
            shape = source.tensors.shape(keys[f"scales_{side}"])
            source.expect(source.tensors.shape(key) == shape, key, f"{shape} from unilora_scales_{side}")
            keys[f"indices_{side}"] = key
        return source.loader(keys, partial(build, vector=vector, trained=size * (module == next(iter(found)))))

    loaders = {module: loader(module, parts) for module, parts in found.items()}
    note = f"the vector of {size:,} trained numbers is shared by all modules and counted for the first"
    return Found("unilora", loaders, others(source, [key for key in rest if key not in vectors]), [note], scaled=False)


def build(
    indices_A: Array,
    indices_B: Array,
    scales_A: Array,
    scales_B: Array,
    *,
    vector: Callable[[], Array],
    trained: int,
    dtype: str,
) -> Update:
    theta = vector()
    for side, indices in (("A", indices_A), ("B", indices_B)):
        if indices.min() < 0 or indices.max() >= len(theta):
            raise FactorError(f"indices_{side}", f"reach from {indices.min()} to {indices.max()}; θ has {len(theta)}")
    B, A = theta[indices_B] * scales_B, theta[indices_A] * scales_A
    return lora(B, A, method="unilora", dtype=dtype, any_rank=True).with_facts(parameters=trained)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """θ of PEFT's length for all modules, each number as often as another, and scaled by the root of how often.

    In kind ``"decay"`` slot k has a part of θ of its own, of smaller numbers. PEFT begins with a uniform θ, and ΔW ≠ 0.
    """
    draw, groups = np.random.default_rng([spec.seed, crc32(b"unilora")]), spec.r if spec.kind == "decay" else 1
    width = SHARED_VECTOR // groups
    each = [(p + q) * spec.r // groups for p, q in spec.shapes.values()]
    count = np.sum([size // width + (np.arange(width) < size % width) for size in each], axis=0)
    if spec.kind == "init":
        theta = draw.uniform(-0.02, 0.02, SHARED_VECTOR)
    else:
        span = float(np.median([np.sqrt(p * q) for p, q in spec.shapes.values()]))
        theta = draw.standard_normal(SHARED_VECTOR) * np.sqrt(spec.scale / span * count.mean())
        theta[: groups * width] *= np.repeat(np.sqrt(slots(spec, groups)), width)
    stand = [rng.permutation(np.resize(np.arange(width), (m + n) * spec.r // groups)) for _ in range(groups)]
    indices = np.stack([k * width + own for k, own in enumerate(stand)]).reshape(spec.r, m + n)
    scales = (np.maximum(count, 1) ** -0.5).astype(np.float32)[indices % width]
    parts = {"indices": indices, "scales": scales}
    sides = {f"{name}_A": part[:, :n] for name, part in parts.items()}
    sides |= {f"{name}_B": np.ascontiguousarray(part[:, n:].T) for name, part in parts.items()}
    return sides | {"theta": theta.astype(np.float32), "layer": np.array(spec.layer)}


def from_parts(a: Arrays, _: float, __: str) -> Update:
    theta, scales = a["theta"], [a[f"scales_{side}"] for side in "AB"]
    return build(
        a["indices_A"], a["indices_B"], *scales, vector=lambda: theta.astype(np.float64),
        trained=0 if a["layer"] else len(theta), dtype=coarsest(part.dtype.name for part in scales),
    )  # fmt: skip


FORMS = {
    "unilora": Form(
        {f"{part}_{side}": f"unilora_{part}_{side}" for part in ("indices", "scales") for side in "AB"},
        from_parts,
        lambda a: len(a["indices_A"]),
        lambda a: {"theta_d_length": len(a["theta"]), "save_indices": True},
        alpha=None,
        shared={"theta": "base_model.unilora_theta_d"},
        told=("layer",),
    )
}
RECIPES = {"unilora": Recipe(random, lambda spec, m, n: min(m, n, SHARED_VECTOR))}
NULLS = {"unilora": pair_null()}
