"""Methods whose update depends on the base model's weights W0 ∈ R^{m×n}.

========= =================================== ===================================================================
method    ΔW                                  keys
========= =================================== ===================================================================
DoRA      diag(g / ‖V‖_row) V − W0,           a LoRA pair, ``lora_magnitude_vector`` (m,); its authors':
          V = W0 + s B A                      ``weight_m_wdecomp.weight`` (m, 1), also without a pair
HiRA      W0 ⊙ (B A)                          ``hira_A`` (r, n), ``hira_B`` (m, r); its authors': ``lora_A``,
                                              ``lora_B`` and ``r_ab`` in the configuration, R ⊙ (B A) with ``lora_R``
HRA       W0 (H_1 … H_r − I),                 ``hra_u`` (n, r), whose columns are the u_i before normalisation
          H_i = I − 2 u_i u_iᵀ
OFT       W0 (Rᵀ − I), R block-diagonal       ``oft_R.weight`` (n/b, b(b−1)/2)
BOFT      s ⊙ (W0 Rᵀ) − W0, R butterfly       ``boft_R`` (N, n/b, b, b), ``boft_s`` (m, 1)
IA³       (l − 1) ⊙ W0                        ``ia3_l`` (m, 1), or (1, n) in the feed-forward part
MiSS bat  W0_ij M_i + M_i in r×r blocks       ``miss_block`` (m/r, r, r)
========= =================================== ===================================================================

All of them as PEFT merges them (``peft/tuners``), in float64. HRA's is a product of two factors of r columns; the
others have no core smaller than ΔW, which is made when it is asked for. Papers: DoRA arXiv 2402.09353, HiRA ICLR 2025,
HRA arXiv 2405.17484, OFT 2306.07280, BOFT 2311.06243, IA³ 2205.05638, MiSS 2409.15371.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .. import delta
from ..delta import Dense, Facts, Update
from .adapter import natural
from .base import BaseMatrix
from .errors import AdapterError
from .lora import Pair, check_pair, lora_loaders, sort_keys
from .source import Found, Loader, Source, collect, need, others
from .tensors import Array

_MAGNITUDES = "lora_magnitude_vector|lora_magnitude_columns|weight_m_wdecomp"


# --- DoRA -----------------------------------------------------------------------------------------------------------


def read_dora(source: Source) -> Found | None:
    """DoRA as PEFT and its authors save it. ``lora_magnitude_columns`` (channels in) is LyCORIS's default: there the
    norms are those of the columns, over outputs and kernel."""
    found, rest = collect(source, _MAGNITUDES)
    if not found:
        if (source.config or {}).get("use_dora"):
            raise AdapterError(f"{source.path}: the configuration sets use_dora, but the file holds no magnitudes")
        return None
    parts = sort_keys(source, rest)
    names = sorted({name for pairs in parts.pairs.values() for name in pairs}, key=natural)
    if len(names) > 1:
        raise AdapterError(f"{source.path}: holds {len(names)} adapters: {', '.join(names)}; save one at a time")
    pairs = {module: next(iter(named.values())) for module, named in parts.pairs.items()}
    low, notes = lora_loaders(source, pairs, "dora")
    bare = sorted(set(low) - set(found))
    if bare:
        raise AdapterError(
            f"{source.path}: {pairs[bare[0]].A} has no lora_magnitude_vector beside it; it is incomplete"
        )
    loaders = {module: _dora_loader(source, module, keys, pairs, low) for module, keys in found.items()}
    return Found("dora", loaders, parts.passed_over, notes, scaled=bool(pairs))


def _dora_loader(
    source: Source, module: str, keys: Mapping[str, str], pairs: Mapping[str, Pair], low: Mapping[str, Loader]
) -> Loader:
    if len(keys) > 1:
        raise AdapterError(f"{source.path}: {' and '.join(keys.values())}: two magnitudes for one module")
    ((part, key),) = keys.items()
    source.check_factor(key)
    pair = pairs.get(module)
    base = _base(source, "DoRA", module, key, embedding=pair is not None and pair.embedding)
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
        facts = replace(
            told,
            parameters=told.parameters + length,
            macs_per_token=told.macs_per_token + length,
            rank_bound=min(m, n),
            dtype=delta.coarsest((told.dtype, dtype)),
        )
        return _dense(source, key, facts, partial(_dora, base, product, magnitude.ravel(), columns))

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


# --- HiRA -----------------------------------------------------------------------------------------------------------


def read_hira(source: Source) -> Found | None:
    """HiRA as PEFT saves it, and its authors."""
    found, rest = collect(source, "hira_A|hira_B|hira_embedding_A|hira_embedding_B")
    if found:
        loaders = {}
        for module, parts in found.items():
            embedding = any("embedding" in part for part in parts)
            middle = "embedding_" if embedding else ""
            A, B = need(source, parts, f"hira_{middle}A", f"hira_{middle}B")
            loaders[module] = _hira_loader(source, module, Pair(A, B, embedding))
        return Found("hira", loaders, others(source, rest), [], scaled=False)
    if "r_ab" not in (source.config or {}):
        return None
    random, rest = collect(source, "lora_R")
    parts = sort_keys(source, rest)
    loaders = {}
    for module, named in parts.pairs.items():
        if len(named) > 1:
            raise AdapterError(f"{source.path}: holds {len(named)} adapters: {', '.join(named)}; save one at a time")
        ((_, pair),) = named.items()
        loaders[module] = _hira_loader(source, module, pair, random.get(module, {}).get("lora_R"))
    return Found("hira", loaders, parts.passed_over, [], scaled=False)


def _hira_loader(source: Source, module: str, pair: Pair, random: str | None = None) -> Loader:
    r, groups = check_pair(source, module, pair, told=False)
    told = (source.config or {}).get("r_ab") or source.rank(module)
    source.expect(groups == 1 and told in (None, r), pair.A, f"rank {told}, which the configuration gives {module}")
    shape = source.tensors.shape(pair.B)[0], int(np.prod(source.tensors.shape(pair.A)[1:]))
    base = None
    if random is None:
        base = _base(source, "HiRA", module, pair.A, embedding=pair.embedding)
        source.expect(base.shape == shape, pair.B, f"a product of the base model's shape {base.shape} ({base.key})")
    else:
        source.check_factor(random)
        source.expect(source.tensors.shape(random) == shape, random, f"{shape} from lora_A and lora_B")

    def build(B: Array, A: Array, *, dtype: str, R: Array | None = None) -> Update:
        low = delta.lora(B.reshape(len(B), -1), A.reshape(len(A), -1), dtype=dtype, any_rank=True)
        m, n = shape
        facts = replace(low.facts, method="hira", macs_per_token=m * n, rank_bound=min(m, n))

        def make() -> Array:
            whole = low.to_dense()
            whole *= R if base is None else base.read()
            return whole

        return _dense(source, pair.A, facts, make)

    keys = {"B": pair.B, "A": pair.A} | ({} if random is None else {"R": random})
    return source.loader(keys, build)


# --- orthogonal -----------------------------------------------------------------------------------------------------


def read_hra(source: Source) -> Found | None:
    """HRA: products of Householder reflections. They are I − U T Uᵀ, so ΔW = −(W0 U T) Uᵀ, a product like LoRA's."""
    found, rest = collect(source, "hra_u")
    if not found:
        return None
    gram_schmidt = source.setting("apply_GS", bool, False)
    loaders = {}
    for module, parts in found.items():
        key = parts["hra_u"]
        source.check_factor(key)
        base = _base(source, "HRA", module, key)
        shape = source.tensors.shape(key)
        source.expect(len(shape) == 2 and shape[0] == base.shape[1], key, f"({base.shape[1]}, r) from {base.key}")
        source.check_rank(module, key, shape[1])
        build = partial(_hra, source=source, key=key, base=base, gram_schmidt=gram_schmidt)
        loaders[module] = source.loader({"u": key}, build)
    return Found("hra", loaders, others(source, rest), [], scaled=False)


def _hra(u: Array, *, source: Source, key: str, base: BaseMatrix, gram_schmidt: bool, dtype: str) -> Update:
    U = u.astype(np.float64)
    n, r = U.shape
    norms = np.linalg.norm(U, axis=0)
    if not (np.isfinite(norms).all() and norms.all()):
        raise AdapterError(f"{source.path}: {key} has a column that is zero or not finite; a reflection needs its axis")
    if gram_schmidt:  # I − 2 Q Qᵀ
        if r > n:
            raise AdapterError(f"{source.path}: {key} has shape {U.shape}: {r} orthogonal columns of length {n}")
        U, T = np.linalg.qr(U).Q, 2.0 * np.eye(r)
    else:  # the compact WY form (Schreiber & Van Loan 1989), T upper triangular
        U, T = U / norms, np.zeros((r, r))
        inner = U.T @ U
        for k in range(r):
            T[:k, k] = -2.0 * (T[:k, :k] @ inner[:k, k])
            T[k, k] = 2.0
    W = base.read()
    # In slices: a float64 copy of all of W0 is not needed.
    left = np.concatenate([part.astype(np.float64) @ U for part in np.array_split(W, max(1, W.size >> 22))])
    update = delta.lora(-left @ T, U.T, method="hra", dtype=dtype, any_rank=True)
    return replace(update, facts=replace(update.facts, parameters=n * r, macs_per_token=2 * n * r + r * r))


def read_oft(source: Source) -> Found | None:
    """OFT of PEFT from 0.14 on, with Cayley's transform or its Neumann series."""
    found, rest = collect(source, "oft_R|oft_embedding_R")
    if not found:
        return None
    series = source.setting("use_cayley_neumann", bool)
    terms = None if series is False else source.setting("num_cayley_neumann_terms", int, 5)
    notes = []
    if series is None:
        notes.append(
            "nothing says whether OFT uses Cayley's transform or its Neumann series; the series is PEFT's default"
        )
    if terms is not None and _version(source.setting("peft_version", str, "0")) < (0, 18):
        notes.append(
            "PEFT changed OFT's Neumann series in 0.18.0 and this file is older: the numbers are the new one's"
        )
    loaders = {}
    for module, parts in found.items():
        ((part, key),) = parts.items()
        source.check_factor(key)
        base = _base(source, "OFT", module, key)
        shape = source.tensors.shape(key)
        source.expect(len(shape) == 2, key, "(n/b, b(b−1)/2)")
        b = (1 + int(np.sqrt(1 + 8 * shape[1]) + 0.5)) // 2
        shared = source.setting("block_share", bool, False)
        n = base.shape[1]
        fits = b * (b - 1) // 2 == shape[1] and n % b == 0 and shape[0] == (1 if shared else n // b)
        source.expect(fits, key, f"(n/b, b(b−1)/2) with n = {n} ({base.key})")
        bound = source.setting("eps", float, 6e-5) if source.setting("coft", bool, False) else None
        embedding = part == "oft_embedding_R"
        build = partial(_oft, source=source, key=key, base=base, b=b, terms=terms, bound=bound, embedding=embedding)
        loaders[module] = source.loader({"R": key}, build)
    return Found("oft", loaders, others(source, rest), notes, scaled=False)


def _oft(
    R: Array,
    *,
    source: Source,
    key: str,
    base: BaseMatrix,
    b: int,
    terms: int | None,
    bound: float | None,
    embedding: bool,
    dtype: str,
) -> Update:
    S = np.zeros((len(R), b, b))
    rows, columns = np.triu_indices(b, 1)
    S[:, rows, columns] = R
    S -= S.transpose(0, 2, 1)
    if bound is not None:  # constrained OFT keeps each block near zero
        norms = np.linalg.norm(S, axis=(1, 2), keepdims=True)
        limit = bound / np.sqrt(len(R))
        S = np.where(norms <= limit, S, limit * S / np.maximum(norms, np.finfo(float).tiny))
    m, n = base.shape
    rotation = np.broadcast_to(_cayley(S) if terms is None else _neumann(S, terms), (n // b, b, b))
    if embedding:  # there PEFT multiplies by R, and not by Rᵀ
        rotation = rotation.transpose(0, 2, 1)
    # R − I = S · (…), and a skew-symmetric S of odd size is singular.
    rank = min(m, n // b * (b - b % 2))
    shown = (n, m) if embedding else (m, n)  # an embedding's ΔW is (d, V) here
    facts = Facts("oft", *shown, b, n // b, 1.0, R.size, n * b, rank, dtype)

    def make() -> Array:
        W = base.read().astype(np.float64)
        change = _rotated(W, rotation - np.eye(b))
        return change.T if embedding else change

    return _dense(source, key, facts, make)


def read_boft(source: Source) -> Found | None:
    """BOFT: a product of block-diagonal rotations with butterfly permutations between them, and a scale per output."""
    found, rest = collect(source, "boft_R|boft_s")
    if not found:
        return None
    loaders = {}
    for module, parts in found.items():
        R, s = need(source, parts, "boft_R", "boft_s")
        source.check_factor(R)
        source.check_factor(s)
        base = _base(source, "BOFT", module, R)
        m, n = base.shape
        shape = source.tensors.shape(R)
        fits = len(shape) == 4 and shape[2] == shape[3] and shape[1] * shape[2] == n
        fits = fits and (shape[0] == 1 or (shape[2] % 2 == 0 and shape[1] % 2 ** (shape[0] - 1) == 0))
        source.expect(fits, R, f"(N, n/b, b, b) with n = {n} ({base.key})")
        source.expect(np.prod(source.tensors.shape(s)) == m, s, f"{m} numbers ({base.key})")
        loaders[module] = source.loader({"R": R, "s": s}, partial(_boft, source=source, key=R, base=base))
    return Found("boft", loaders, others(source, rest), [], scaled=False)


def _boft(R: Array, s: Array, *, source: Source, key: str, base: BaseMatrix, dtype: str) -> Update:
    m, n = base.shape
    N, blocks, b, _ = R.shape
    D = R.astype(np.float64)
    rotations = _cayley(0.5 * (D - D.swapaxes(-1, -2)))
    facts = Facts("boft", m, n, b, blocks, 1.0, R.size + m, N * n * b + m, min(m, n), dtype)

    def make() -> Array:
        W = base.read()
        out = W.astype(np.float64)
        for level in range(N):
            order = _butterfly(n, b, level)
            out = _rotated(out[:, np.argsort(order)], rotations[level])[:, order]
        out *= s.reshape(m, 1)
        out -= W
        return out

    return _dense(source, key, facts, make)


def _butterfly(n: int, b: int, level: int) -> Array:
    """PEFT's ``block_butterfly_perm``: blocks of b·2^level, cut into halves of b: the even ones, then the odd ones."""
    if level == 0:
        return np.arange(n)
    units = 2 ** (level + 1)
    order = np.r_[0:units:2, 1:units:2]
    return np.arange(n).reshape(-1, units, b // 2)[:, order].ravel()


def _rotated(W: Array, blocks: Array) -> Array:
    """W blkdiag(blocks)ᵀ for blocks (k, b, b)."""
    k, b, _ = blocks.shape
    cut = W.reshape(len(W), k, b).transpose(1, 0, 2)
    return (cut @ blocks.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(W.shape)


def _cayley(S: Array) -> Array:
    """(I − S)(I + S)⁻¹: orthogonal for a skew-symmetric S."""
    identity = np.eye(S.shape[-1])
    return np.linalg.solve((identity + S).swapaxes(-1, -2), (identity - S).swapaxes(-1, -2)).swapaxes(-1, -2)


def _neumann(S: Array, terms: int) -> Array:
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


# --- IA³, MiSS ------------------------------------------------------------------------------------------------------


def read_ia3(source: Source) -> Found | None:
    """IA³: a factor per output, or per input where the configuration counts a module to the feed-forward part."""
    found, rest = collect(source, "ia3_l")
    if not found:
        return None
    loaders = {}
    for module, parts in found.items():
        key = parts["ia3_l"]
        source.check_factor(key)
        base = _base(source, "IA³", module, key)
        shape, stored = source.tensors.shape(key), base.stored
        m, n = base.shape
        if len(stored) > 2:
            inputs = _is_feedforward(source, module)
            fits = int(np.prod(shape)) % stored[1] == 0 if inputs else int(np.prod(shape)) == m
            source.expect(fits, key, f"a number per {'input' if inputs else 'output'} channel of {base.key} {stored}")
        else:
            inputs = shape != (m, 1)
            source.expect(shape == ((1, n) if inputs else (m, 1)), key, f"({m}, 1) or (1, {n}) from {base.key}")
        build = partial(_ia3, source=source, key=key, base=base, inputs=inputs)
        loaders[module] = source.loader({"l": key}, build)
    return Found("ia3", loaders, others(source, rest), [], scaled=False)


def _is_feedforward(source: Source, module: str) -> bool:
    """PEFT's rule (``tuners/ia3/model.py``): a string is a regular expression, a list holds endings."""
    named: Any = (source.config or {}).get("feedforward_modules") or []
    if isinstance(named, str):
        return bool(re.fullmatch(named, module))
    return any(module.endswith(ending) for ending in named)


def _ia3(l: Array, *, source: Source, key: str, base: BaseMatrix, inputs: bool, dtype: str) -> Update:  # noqa: E741
    m, n = base.shape
    change = l.astype(np.float64).ravel() - 1.0
    if inputs and len(base.stored) > 2:  # output group g of a convolution sees channels g
        change = change.reshape(-1, base.stored[1])
        change = np.repeat(np.repeat(change, m // len(change), axis=0), n // base.stored[1], axis=1)
    elif not inputs:
        change = change[:, None]
    facts = Facts("ia3", m, n, 1, 1, 1.0, l.size, l.size, min(m, n), dtype)
    return _dense(source, key, facts, lambda: base.read() * change)


def read_miss_bat(source: Source) -> Found | None:
    """MiSS with ``init_weights="bat"``; its other forms need no base model."""
    if (source.config or {}).get("init_weights") != "bat":
        return None
    found, rest = collect(source, "miss_block")
    if not found:
        return None
    loaders = {}
    for module, parts in found.items():
        key = parts["miss_block"]
        source.check_factor(key)
        base = _base(source, "MiSS (bat)", module, key)
        m, n = base.shape
        shape = source.tensors.shape(key)
        fits = len(shape) == 3 and shape[1] == shape[2] and shape[0] * shape[1] == m and n % shape[1] == 0
        source.expect(fits, key, f"(m/r, r, r) with m = {m}, and r dividing n = {n} ({base.key})")
        loaders[module] = source.loader({"M": key}, partial(_miss_bat, source=source, key=key, base=base))
    return Found("miss", loaders, others(source, rest), [], scaled=False)


def _miss_bat(M: Array, *, source: Source, key: str, base: BaseMatrix, dtype: str) -> Update:
    m, n = base.shape
    count, r, _ = M.shape
    M = M.astype(np.float64)
    facts = Facts("miss", m, n, r, 1, 1.0, M.size, M.size * (n // r), min(m, n), dtype)

    def make() -> Array:
        W = base.read().astype(np.float64).reshape(count, r * (n // r), r)
        product = (W @ M).reshape(count, r, n // r, r)
        product += M[:, :, None, :]
        return product.reshape(m, n)

    return _dense(source, key, facts, make)


# --- shared ---------------------------------------------------------------------------------------------------------


def _base(source: Source, method: str, module: str, key: str, *, embedding: bool = False) -> BaseMatrix:
    """W0 of a module; refused without the base model."""
    if source.base is None:
        raise AdapterError(f"{source.path}: {method} needs the base model: --base DIR_OR_HUB_ID (base=) (key {key})")
    flag = bool((source.config or {}).get("fan_in_fan_out"))
    return source.base.matrix(module, fan_in_fan_out=flag, embedding=embedding)


def _dense(source: Source, key: str, facts: Facts, make: Callable[[], Array]) -> Dense:
    """The update that ``make`` computes; its errors name file and key."""

    def checked() -> Array:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            matrix = make()
        if not delta.is_finite(matrix):
            raise AdapterError(f"{source.path}: {key}: ΔW holds NaN or Inf; the factors or the base model are broken")
        return matrix

    return Dense(facts, checked)
