"""FRoD (AAAI 2026): ΔW = U (S + diag(λ)) Vᵀ − W0, S few entries outside the diagonal.

PEFT: ``<module>.frod_lambda_l`` (n,), ``.frod_lambda_s_values`` (k,), and once for all layers of a kind
``base_model.frod_V.KIND`` (n, n), ``base_model.frod_s_indices.KIND`` (2, k). The columns of U are those of W0 V⁻ᵀ, of
length 1 (``frod/layer.py``); the kind is the end of the module's path (``frod/model.py``).
"""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.errors import AdapterError
from ..files.parts import collect, need, others
from ..files.tensors import Array
from ..updates.contract import Facts, Update
from .on_base_model import base_matrix, checked

_SHARED = re.compile(r"(^|\.)frod_(?P<part>V|s_indices|s_size)\.(?P<kind>[^.]+)(\.[^.]+)?$")


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
        try:
            U = np.linalg.solve(right, W.T).T
        except np.linalg.LinAlgError:
            U = W @ np.linalg.pinv(right, rcond=1e-6).T
        lengths = np.linalg.norm(U, axis=0)
        U = np.divide(U, lengths, out=np.zeros_like(U), where=lengths > 1e-12)
        middle = np.diag(scale.astype(np.float64))
        np.add.at(middle, tuple(indices.astype(np.int64)), values)
        return U @ middle @ right.T - W

    return checked(source, key, facts, make)


def _kind(module: str) -> str:
    """PEFT's ``_category_from_key``."""
    *rest, last = module.split(".")
    if not rest or rest[-1].isdigit():
        return last
    return "attention_output" if [*rest[-2:], last] == ["attention", "output", "dense"] else f"{rest[-1]}_{last}"
