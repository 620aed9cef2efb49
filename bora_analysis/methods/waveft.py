"""WaveFT (arXiv 2505.12532): few trained coefficients of a wavelet transform of ΔW.

PEFT: ``<module>.waveft_spectrum`` (k,), at places that are drawn as FourierFT's are. One level of the inverse transform
makes ΔW = s G_m S G_nᵀ (``waveft/layer.py``, ``waverec2d.py``); without ``use_idwt`` ΔW = s S. For Haar's wavelet and
even m and n the G are orthogonal, so that σ(ΔW) = s σ(S). The files do not store the sizes of the layers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..catalogue.formulas import COEFFICIENTS
from ..extras import require
from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..linalg import Array
from ..updates.contract import FactorError, Update
from ..updates.dense import Dense
from ..updates.sparse import shira
from .file_form import Arrays, Form, patterned
from .fourierft import SEED, places
from .random_factors import Parts, Recipe, Spec, slots

_HAAR = "db1"
#: WaveFT's default in PEFT.
SCALING = 25.0


def read(source: Source) -> Found | None:
    """WaveFT as PEFT saves it."""
    return read_parts(source, "waveft_spectrum", "waveft", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys, sizes = fitted(source, parts, spectrum="waveft_spectrum (k,)")
    m, n = size = source.shape_of(module, keys["spectrum"])
    source.expect(sizes["k"] <= m * n, keys["spectrum"], f"one dimension, up to {m * n}")
    family = source.setting("wavelet_family", str, _HAAR) if source.setting("use_idwt", bool, True) else ""
    seed = source.setting("random_loc_seed", int, SEED)
    scaling = float(source.setting("scaling", (int, float), SCALING))
    build = partial(_build, size=size, family=family, seed=seed, scaling=scaling)
    return source.loader(keys, build)


def _build(spectrum: Array, *, size: tuple[int, int], family: str, seed: int, scaling: float, dtype: str) -> Update:
    (m, n), at = size, places(*size, seed, len(spectrum))
    sides, padded = [], size
    if family:
        sides = [_side(length, family) for length in size]
        padded = tuple(side.shape[1] for side in sides)
        i, j = ((own + (inner - length) // 2) for own, inner, length in zip(at, padded, size, strict=True))
        # PEFT puts details of the rows where those of the columns are expected, and the other way round.
        (half, h), (width, w) = ((inner // 2, own >= inner // 2) for own, inner in zip((i, j), padded, strict=True))
        turned = h != w
        at = np.where(turned, (i + half) % padded[0], i), np.where(turned, (j + width) % padded[1], j)
    entries = shira(spectrum.astype(np.float64) * scaling, *at, padded, method="waveft", dtype=dtype)
    facts = replace(
        entries.facts, out_features=m, in_features=n, r=len(spectrum), scaling=scaling, macs_per_token=m * n,
        rank_bound=min(m, n, entries.facts.rank_bound),
    )  # fmt: skip
    if not sides:
        return replace(entries, facts=facts, unit=scaling)
    facts = replace(facts, support_rows=None, support_columns=None)
    back = partial(_back, *sides)
    if family == _HAAR and padded == size:
        return replace(entries, facts=facts, transform=back, unit=scaling)
    return Dense(facts, lambda: back(entries.to_dense()))


def _back(left: Any, right: Any, S: Array) -> Array:
    return right.dot(left.dot(S).T).T


@lru_cache(maxsize=16)
def _side(length: int, family: str) -> Any:
    """G: the first half of its columns are the low-pass filter at every second place, the others the high-pass one."""
    from scipy.sparse import csr_array

    low, high, spare = _filters(family)
    inner = length + spare + (length + spare) % 2
    taps, half = len(low), inner // 2
    cut = (2 * taps - 3) // 2
    made = inner + taps - 2 - 2 * cut
    if made < length:
        raise FactorError("spectrum", f"is of the wavelet {family}, which makes {made} numbers; expected {length}")
    row = 2 * np.arange(half)[:, None] + np.arange(taps) - cut - (made - length) // 2
    row, column = np.tile(row.ravel(), 2), np.repeat(np.arange(inner), taps)
    inside = (row >= 0) & (row < length)
    values = np.concatenate([np.tile(low, half), np.tile(high, half)])
    return csr_array((values[inside], (row[inside], column[inside])), shape=(length, inner))


def _filters(family: str) -> tuple[Array, Array, int]:
    """The two filters of the inverse transform, and by how much PEFT pads the matrix."""
    if family == _HAAR:
        return np.full(2, np.sqrt(0.5)), np.array([1.0, -1.0]) * np.sqrt(0.5), 0
    told = f"is of the wavelet {family}, whose filters PEFT knows"
    require("train", told, "peft", error=partial(FactorError, "spectrum"))
    from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
    from peft.tuners.waveft.wavelet import Wavelet

    try:
        wavelet = Wavelet(family)
        return np.array(wavelet.rec_lo), np.array(wavelet.rec_hi), WAVELET_REDUCTIONS[family][0]
    except (KeyError, ValueError):
        raise FactorError("spectrum", f"is of the wavelet {family!r}, which PEFT does not know") from None


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """One coefficient c makes a singular value s c, s = 25; many of them share the m × n. PEFT begins with zeros."""
    count = min(COEFFICIENTS, m * n)
    spectrum = rng.standard_normal(count)
    if spec.kind == "decay":
        spectrum = np.sign(spectrum) * slots(spec, count)
    share = min(1.0, np.sqrt(min(m, n) / count)) if spec.kind == "gaussian" else float(spec.kind != "init")
    return {"spectrum": (spec.scale / SCALING * share * spectrum).astype(np.float32), "shape": np.array([m, n])}


def from_parts(a: Arrays, _: float, __: str) -> Update:
    m, n = a["shape"].tolist()
    spectrum = a["spectrum"]
    return _build(spectrum, size=(m, n), family=_HAAR, seed=SEED, scaling=SCALING, dtype=spectrum.dtype.name)


FORMS = {
    "waveft": Form(
        {"spectrum": "waveft_spectrum"},
        from_parts,
        None,
        lambda a: {"n_frequency": len(a["spectrum"]), "scaling": SCALING, "random_loc_seed": SEED},
        alpha=None,
        config=patterned("n_frequency"),
        told=("shape",),
    )
}
RECIPES = {"waveft": Recipe(random)}
