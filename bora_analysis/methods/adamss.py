"""AdaMSS: the rows of ΔW in clusters, cluster k of them is B_k A_k V, V the leading right singular vectors of W0.

PEFT: ``<module>.adamss_A.K`` (r_k, r), ``.adamss_B.K`` (rows, r_k), ``.adamss_newB`` (r, n), or (r, n + 1) where the
layer has a bias, whose change is the last column. Which rows belong to which cluster is not in the file: PEFT finds
them in W0 and its bias (``adamss/layer.py``, ``utils.py``), and so do we, with its own functions; V shows whether they
agree.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..catalogue.formulas import CLUSTERS
from ..extras import require
from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.errors import AdapterError
from ..files.parts import need, read_parts
from ..files.tensors import Array
from ..linalg.solvers import svd_with_vectors
from ..updates.blocks import lora
from ..updates.contract import FactorError, Update
from .on_base_model import base_matrix
from .random_base import form_on_base, on_base
from .random_factors import Parts, Spec, orthonormal, slots

#: PEFT's default.
SEED = 0


def read(source: Source) -> Found | None:
    """AdaMSS as PEFT saves it."""
    return read_parts(source, r"adamss_([AB]\.\d+|newB)", "adamss", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    (V,) = need(source, parts, "adamss_newB")
    base = base_matrix(source, "AdaMSS", module, V)
    count = sum(part.startswith("adamss_A") for part in parts)
    A, B = (need(source, parts, *(f"adamss_{side}.{k}" for k in range(count))) for side in "AB")
    for key in (V, *A, *B):
        source.check_factor(key)
    m, n = base.shape
    r, columns = source.tensors.shape(V)
    source.expect(columns in (n, n + 1), V, f"(r, {n}) or (r, {n + 1}) from {base.key}")
    for a, b in zip(A, B, strict=True):
        source.expect(source.tensors.shape(a)[1:] == (r,), a, f"(…, {r}) from adamss_newB")
        source.expect(source.tensors.shape(b)[1:] == source.tensors.shape(a)[:1], b, "as many columns as A has rows")
    rows = sum(source.tensors.shape(key)[0] for key in B)
    source.expect(rows == m and count > 0, V, f"clusters of {m} rows together ({base.key}), found {rows}")
    seed, clusters = source.setting("random_seed", int, SEED), source.setting("num_subspaces", int, count)
    bias = None if columns == n else base.key.removesuffix("weight") + "bias"
    if bias and bias not in base.weights.keys():  # noqa: SIM118  no mapping
        raise AdapterError(f"{source.path}: {V} has a column for the bias of {module}; the base model has no {bias}")
    build = partial(_build, base=base, bias=bias, seed=seed, clusters=clusters)
    return source.loader({"A": A, "B": B, "V": V}, build)


def _build(
    A: list[Array],
    B: list[Array],
    V: Array,
    *,
    base: BaseMatrix,
    bias: str | None,
    seed: int,
    clusters: int,
    dtype: str,
) -> Update:
    W = base.read().astype(np.float32)
    if bias is not None:
        W = np.concatenate([W, base.weights.read(bias).astype(np.float32)[:, None]], axis=1)
    found, _, rows = _clustered(W, len(V), seed, clusters)
    if np.linalg.norm(found - V) > 0.01 * np.linalg.norm(V):
        raise FactorError("V", "is not what this base model and PEFT's random_seed give; the base model is another one")
    if [len(own) for own in rows] != [len(X) for X in B]:
        raise FactorError(
            "B", f"has clusters of {[len(X) for X in B]} rows; PEFT finds {[len(own) for own in rows]} here"
        )
    m, n = base.shape
    product = np.zeros((m, len(V)))
    for own, first, last in zip(rows, A, B, strict=True):
        product[own] = last.astype(np.float64) @ first
    update = lora(product, V[:, :n], method="adamss", dtype=dtype, any_rank=True)
    ranks, trained = [len(X) for X in A], sum(X.size for X in (*A, *B))
    bound = min(update.facts.rank_bound, sum(ranks))
    return update.with_facts(blocks=len(A), parameters=trained, macs_per_token=trained + V.size, rank_bound=bound)


def _clustered(W: Array, r: int, seed: int, clusters: int) -> tuple[Array, Array, list[Array]]:
    """V (r, n), the left vectors (m, r) of a float32 matrix, and the rows of each cluster, as PEFT finds them."""
    told = "belongs to clusters of rows, which PEFT must find"
    require("train", told, "peft", "sklearn", error=partial(FactorError, "V"))
    import torch  # here: its random numbers and PEFT's functions found the clusters
    from peft.tuners.adamss.utils import clustering_Z, seg_locations, slice_pca

    whole = torch.from_numpy(np.ascontiguousarray(W))[None, None]
    V, left = (found[0, 0] for found in slice_pca(whole, r, whole.device, torch.float32, random_seed=seed))
    cluster, _ = clustering_Z(left, clusters, 10)
    return V.numpy(), left.numpy(), [own.numpy() for own in seg_locations(cluster).values()]


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """B_k of the scale's length, in PEFT's default of clusters of rank 1, whose A_k are orthonormal where r allows it.

    PEFT begins with B = 0 and each A_k along its own rows.
    """
    V, left, rows = _clustered(W0, spec.r, SEED, CLUSTERS)
    if spec.kind == "init":
        A, B = np.stack([svd_with_vectors(left[own])[2][0] for own in rows]), [np.zeros(len(own)) for own in rows]
    else:
        A = orthonormal(rng.standard_normal((len(rows), spec.r)))
        A = A / np.linalg.norm(A, axis=1, keepdims=True)
        B = [rng.standard_normal(len(own)) for own in rows]
        B = [spec.scale * k * own / np.linalg.norm(own) for k, own in zip(slots(spec, len(rows)), B, strict=True)]
    return {
        "A": A[:, None],
        "B": np.concatenate(B)[:, None],
        "V": V,
        "rows": np.array([len(own) for own in rows]),
    }


FORMS = {
    "adamss": form_on_base(
        read,
        {"A": "adamss_A.{k}", "B": "adamss_B.{k}", "V": "adamss_newB"},
        lambda a: len(a["V"]),
        lambda a: {"num_subspaces": CLUSTERS, "subspace_rank": a["A"].shape[1], "random_seed": SEED},
        told=("rows",),
        split={"B": "rows"},
    )
}
# Rounding W0 would move rows from one cluster to another.
RECIPES = {"adamss": on_base(random, lambda spec, m, n: min(m, n), exact=True)}
