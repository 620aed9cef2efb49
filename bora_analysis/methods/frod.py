"""FRoD (AAAI 2026): ΔW = U (S + diag(λ)) Vᵀ − W0, S few entries outside the diagonal.

PEFT: ``<module>.frod_lambda_l`` (n,), ``.frod_lambda_s_values`` (k,), and once for all layers of a kind
``base_model.frod_V.KIND`` (n, n), ``base_model.frod_s_indices.KIND`` (2, k). The columns of U are those of W0 V⁻ᵀ, of
length 1 (``frod/layer.py``); the kind is the end of the module's path (``frod/model.py``).
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..catalogue.formulas import beside_diagonal
from ..extras import require
from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.errors import AdapterError
from ..files.parts import collect, need, others
from ..files.tensors import Array
from ..patterns import late
from ..updates.contract import FactorError, Facts, Update
from .on_base_model import base_matrix, checked
from .random_base import base_of, form_on_base, on_base
from .random_factors import Parts, Spec, generator, slots

_SHARED = late(r"(^|\.)frod_(?P<part>V|s_indices|s_size)\.(?P<kind>[^.]+)(\.[^.]+)?$")


def read(source: Source) -> Found | None:
    """FRoD as PEFT saves it, with its projections."""
    found, rest = collect(source, "frod_lambda_(l|s_values)")
    if not found:
        return None
    shared = {(hit["part"], hit["kind"]): key for key in rest if (hit := _SHARED.search(key))}
    loaders = {module: _loader(source, module, parts, shared) for module, parts in found.items()}
    return Found("frod", loaders, others(source, [key for key in rest if not _SHARED.search(key)]), [], scaled=False)


def _loader(source: Source, module: str, parts: dict[str, str], shared: dict[tuple[str, str], str]) -> Loader:
    own, values = need(source, parts, "frod_lambda_l", "frod_lambda_s_values")
    base = base_matrix(source, "FRoD", module, own)
    n = base.shape[1]
    missing = [part for part in ("V", "s_indices") if (part, _kind(module)) not in shared]
    if missing:
        raise AdapterError(
            f"{source.path}: {own} has no frod_{missing[0]}.{_kind(module)}, and PEFT makes it from all layers "
            "together; save with save_projection=True"
        )
    keys = {
        "scale": own,
        "values": values,
        "V": shared["V", _kind(module)],
        "indices": shared["s_indices", _kind(module)],
    }
    for name, shape in (("scale", (n,)), ("V", (n, n)), ("indices", (2, *source.tensors.shape(values)))):
        source.expect(source.tensors.shape(keys[name]) == shape, keys[name], f"{shape} from {base.key}")
    for key in (own, keys["V"]):  # without entries outside the diagonal the others are empty
        source.check_factor(key)
    return source.loader(keys, partial(_build, source=source, key=own, base=base))


def _build(
    scale: Array,
    values: Array,
    V: Array,
    indices: Array,
    *,
    source: Source,
    key: str,
    base: BaseMatrix,
    dtype: str,
) -> Update:
    (m, n), trained = base.shape, scale.size + values.size
    facts = Facts("frod", m, n, n, 1, 1.0, trained, n * n + trained, min(m, n), dtype)

    def make() -> Array:
        W, right = base.read().astype(np.float64), V.astype(np.float64)
        columns, lengths = _columns(W, right)
        U = np.divide(columns, lengths, out=np.zeros_like(columns), where=lengths > 1e-12)
        middle = np.diag(scale.astype(np.float64))
        np.add.at(middle, tuple(indices.astype(np.int64)), values)
        return U @ middle @ right.T - W

    return checked(source, key, facts, make)


def _columns(W: Array, V: Array) -> tuple[Array, Array]:
    """Those of W V⁻ᵀ, and their lengths, from float64; λ begins as the lengths."""
    try:
        columns = np.linalg.solve(V, W.T).T
    except np.linalg.LinAlgError:
        columns = W @ np.linalg.pinv(V, rcond=1e-6).T
    return columns, np.linalg.norm(columns, axis=0)


def _kind(module: str) -> str:
    """PEFT's ``_category_from_key``."""
    *rest, last = module.split(".")
    if not rest or rest[-1].isdigit():
        return last
    return "attention_output" if [*rest[-2:], last] == ["attention", "output", "dense"] else f"{rest[-1]}_{last}"


def _one_width(spec: Spec) -> bool:
    """Whether the layers of each kind have one number of inputs."""
    widths: dict[str, tuple[str, int]] = {}
    for module, (_, n) in spec.shapes.items():
        first, width = widths.setdefault(_kind(module), (module, n))
        if n != width:
            raise ValueError(
                f"{first} and {module} have {width} and {n} inputs, and FRoD has one V for both; expected layers of "
                "one kind and one width"
            )
    return True


@lru_cache(maxsize=16)  # kinds of one model
def _found(settings: tuple[tuple[str, Any], ...], layers: tuple[tuple[str, tuple[int, int]], ...]) -> Array:
    """V of the layers of one kind, as PEFT finds it in their W0."""
    require("train", "is what PEFT finds in all layers of a kind", "peft", error=partial(FactorError, "V"))
    import torch  # here: PEFT loads the file beside its own U, whose signs are those of its own V
    from peft.tuners.frod.model import _layer_index_from_key, _projection_from_weights

    spec = Spec("frod", dict(layers), 1, **dict(settings))
    # A model of two towers has two layers of a number; the last one stands for both.
    of_layer = {_layer_index_from_key(module, k): module for k, (module, _) in enumerate(layers)}
    matrices = [torch.from_numpy(base_of(spec, module)) for _, module in sorted(of_layer.items())]
    return _projection_from_weights(matrices, 1e-3).contiguous().numpy()  # regularization_alpha of its default


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """V as PEFT finds it, λ and S moved from where PEFT starts, where ΔW = 0.

    U has columns of length 1, so a change of U (S + diag(λ)) Vᵀ is about that of the middle times the length of V's.
    """
    module, n = list(spec.shapes)[spec.layer], W0.shape[1]
    kind = _kind(module)
    layers = tuple((own, shape) for own, shape in spec.shapes.items() if _kind(own) == kind)
    V = _found(tuple((name, getattr(spec, name)) for name in ("seed", "base_spectrum", "base_decay")), layers)
    _, lengths = _columns(W0.astype(np.float64), V.astype(np.float64))
    size = 0.0 if spec.kind == "init" else spec.scale * np.sqrt(n) / np.linalg.norm(V)
    count = beside_diagonal(n)
    places = generator(spec, f"frod {kind}").choice(n * (n - 1), count, replace=False)
    row, column = np.divmod(places, n - 1) if n > 1 else (places, places)
    return {
        "scale": lengths + size * rng.standard_normal(n) * slots(spec, n),
        "values": size * rng.standard_normal(count) * slots(spec, count),
        "V": V,
        "indices": np.stack([row, column + (column >= row)]),
        "size": np.array([n, n]),
        "kind": np.array(kind),
    }


FORMS = {
    "frod": form_on_base(
        read,
        {"scale": "frod_lambda_l", "values": "frod_lambda_s_values"},
        settings=lambda _: {"sparse_rate": 0.01, "save_projection": True},
        shared={
            "V": "base_model.frod_V.{kind}",
            "indices": "base_model.frod_s_indices.{kind}",
            "size": "base_model.frod_s_size.{kind}",
        },
        told=("kind",),
    )
}
RECIPES = {"frod": on_base(random, lambda spec, m, n: spec.r if _one_width(spec) else 0)}
