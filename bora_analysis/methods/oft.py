"""OFT (arXiv 2306.07280): ΔW = W0 (Rᵀ − I), R block-diagonal. ``oft_R.weight`` (n/b, b(b−1)/2)."""

from __future__ import annotations

import re
from math import gcd
from typing import Any

import numpy as np

from ..catalogue.sizes import divisor_near
from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..files.tensors import Array
from ..updates.contract import Facts, Update
from .file_form import Arrays
from .on_base_model import base_matrix, checked
from .random_base import form_on_base, on_base, skew
from .random_factors import Parts, Spec


def read(source: Source) -> Found | None:
    """OFT of PEFT from 0.14 on, with Cayley's transform or its Neumann series."""
    found = read_parts(source, "oft_R|oft_embedding_R", "oft", _loader)
    if found is None:
        return None
    if source.setting("use_cayley_neumann", bool) is None:
        found.notes.append(
            "the file does not say whether OFT uses Cayley's transform or its Neumann series; read with the series, "
            "PEFT's default"
        )
    if source.config is not None and _terms(source) and _version(source.setting("peft_version", str, "0")) < (0, 18):
        found.notes.append(
            "PEFT changed OFT's Neumann series in 0.18.0, and this file is older; it is read with the new series"
        )
    return found


def _terms(source: Source) -> int | None:
    """Those of the Neumann series; None for Cayley's transform itself."""
    series = source.setting("use_cayley_neumann", bool, True)
    return source.setting("num_cayley_neumann_terms", int, 5) if series else None


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    ((part, key),) = parts.items()
    base = base_matrix(source, "OFT", module, key)
    m, n = base.shape
    keys, sizes = fitted(source, parts, R=f"{part} (n/b, b(b−1)/2)")
    blocks, pairs = sizes.values()
    b = (1 + int(np.sqrt(1 + 8 * pairs) + 0.5)) // 2
    shared = source.setting("block_share", bool, False)
    fits = b * (b - 1) // 2 == pairs and n % b == 0 and blocks == (1 if shared else n // b)
    source.expect(fits, key, f"(n/b, b(b−1)/2) with n = {n} ({base.key})")
    terms, embedding = _terms(source), part == "oft_embedding_R"
    bound = source.setting("eps", float, 6e-5) if source.setting("coft", bool, False) else None

    def build(R: Array, *, dtype: str) -> Update:
        S = np.zeros((len(R), b, b))
        rows, columns = np.triu_indices(b, 1)
        S[:, rows, columns] = R
        S -= S.transpose(0, 2, 1)
        if bound is not None:  # constrained OFT keeps each block near zero
            norms = np.linalg.norm(S, axis=(1, 2), keepdims=True)
            limit = bound / np.sqrt(len(R))
            S = np.where(norms <= limit, S, limit * S / np.maximum(norms, np.finfo(float).tiny))
        rotation = np.broadcast_to(cayley(S) if terms is None else neumann(S, terms), (n // b, b, b))
        if embedding:  # there PEFT multiplies by R, and not by Rᵀ
            rotation = rotation.transpose(0, 2, 1)
        # R − I = S · (…), and a skew-symmetric S of odd size is singular.
        rank = min(m, n // b * (b - b % 2))
        shown = (n, m) if embedding else (m, n)  # an embedding's ΔW is (d, V) here
        facts = Facts("oft", *shown, b, n // b, 1.0, R.size, n * b, rank, dtype)

        def make() -> Array:
            W = base.read().astype(np.float64)
            change = rotated(W, rotation - np.eye(b))
            return change.T if embedding else change

        return checked(source, key, facts, make)

    return source.loader(keys, build)


def rotated(W: Array, blocks: Array) -> Array:
    """W blkdiag(blocks)ᵀ for blocks (k, b, b)."""
    k, b, _ = blocks.shape
    cut = W.reshape(len(W), k, b).transpose(1, 0, 2)
    return (cut @ blocks.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(W.shape)


def cayley(S: Array) -> Array:
    """(I − S)(I + S)⁻¹: orthogonal for a skew-symmetric S."""
    identity = np.eye(S.shape[-1])
    return np.linalg.solve((identity + S).swapaxes(-1, -2), (identity - S).swapaxes(-1, -2)).swapaxes(-1, -2)


def neumann(S: Array, terms: int) -> Array:
    """PEFT's series for it, with the sign of S turned: I + 2S + 2S² + … , and the last power once."""
    R = np.tile(np.eye(S.shape[-1]), (len(S), 1, 1))
    if terms > 1:
        R += 2 * S
    if terms > 2:
        power = S @ S
        R += 2 * power
        for _ in range(3, terms - 1):
            power = power @ S
            R += 2 * power
        R += power @ S
    return R


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def block_size(spec: Spec) -> int:
    """The size of a block that fits all layers; 1 where none does."""
    return divisor_near(gcd(*(n for _, n in spec.shapes.values())), spec.r)


def room(spec: Spec, m: int, n: int) -> int:
    """The largest size of a block; 0 where none above 1 fits."""
    return n if block_size(spec) > 1 else 0


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """PEFT starts with S = 0."""
    b = block_size(spec)
    S = skew(spec, rng, W0.shape[1] // b, b, *W0.shape)
    return {"R": S[:, *np.triu_indices(b, 1)]}


def _settings(a: Arrays) -> dict[str, Any]:
    size = (1 + int(np.sqrt(1 + 8 * a["R"].shape[1]) + 0.5)) // 2
    return {"r": 0, "oft_block_size": size, "use_cayley_neumann": False}


FORMS = {"oft": form_on_base(read, {"R": "oft_R.weight"}, settings=_settings)}
RECIPES = {"oft": on_base(random, room)}
