"""FourierFT (arXiv 2405.03003): few trained coefficients of the Fourier transform of ΔW.

PEFT: ``<module>.fourierft_spectrum`` (k,), at places that are not stored but drawn from ``random_loc_seed`` and the
layer's size (``fourierft/layer.py``), which the file does not store either.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np

from ..catalogue.formulas import FREQUENCIES
from ..extras import require
from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..linalg import Array
from ..projections import Projection, Target, Wish
from ..updates.contract import FactorError, Update
from ..updates.sparse import fourierft
from .file_form import Arrays, Form, patterned
from .random_factors import Null, Parts, Recipe, Sizes, Spec, slots

#: FourierFT's defaults in PEFT.
SCALING, SEED = 150.0, 777


def read(source: Source) -> Found | None:
    """FourierFT as PEFT saves it."""
    return read_parts(source, "fourierft_spectrum", "fourierft", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys, sizes = fitted(source, parts, spectrum="fourierft_spectrum (k,)")
    m, n = source.shape_of(module, keys["spectrum"])
    source.expect(sizes["k"] <= m * n, keys["spectrum"], f"one dimension, up to {m * n}")
    seed = source.setting("random_loc_seed", int, SEED)
    scaling = float(source.setting("scaling", (int, float), SCALING))
    return source.loader(keys, partial(build, size=(m, n), seed=seed, scaling=scaling))


def build(spectrum: Array, *, size: tuple[int, int], seed: int, scaling: float, dtype: str) -> Update:
    return fourierft(spectrum, *places(*size, seed, len(spectrum)), size, scaling=scaling, dtype=dtype)


@lru_cache(maxsize=16)
def places(m: int, n: int, seed: int, count: int) -> tuple[Array, Array]:
    """The places as PEFT draws them: the first of a random permutation of all m·n."""
    told = "has places that PyTorch's generator must draw"
    require("torch", told, "torch", error=partial(FactorError, "spectrum"))
    import torch  # here: its generator is what drew them

    places = torch.randperm(m * n, generator=torch.Generator().manual_seed(seed))[:count].numpy()
    return places // n, places % n


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """One coefficient c makes a wave of two singular values s c / 2√(mn), s = 150; many of them share the m × n."""
    count = min(FREQUENCIES, m * n)
    spectrum = rng.standard_normal(count)  # PEFT's beginning
    if spec.kind != "init":
        share = min(1.0, math.sqrt(min(m, n) / (2 * count)))
        size = spec.scale * 2 * math.sqrt(m * n) / SCALING
        spectrum = size * (share * spectrum if spec.kind == "gaussian" else np.sign(spectrum) * slots(spec, count))
    return {"spectrum": spectrum.astype(np.float32), "shape": np.array([m, n])}


def from_parts(a: Arrays, _: float, __: str) -> Update:
    spectrum = a["spectrum"]
    m, n = a["shape"].tolist()
    return build(spectrum, size=(m, n), seed=SEED, scaling=SCALING, dtype=spectrum.dtype.name)


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    """Each place of the spectrum is a wave, cos(2π(iu/m + jv/n)); waves at u, v and at −u, −v are one."""
    m, n = target.shape
    rows, columns = places(m, n, SEED, min(FREQUENCIES, m * n))
    left, right = np.fft.fft(target.left, axis=0), np.fft.fft(target.right, axis=1)
    seen = np.einsum("pk,kp->p", left[rows], right[:, columns]).real  # ⟨T, wave⟩
    real = ((2 * rows) % m == 0) & ((2 * columns) % n == 0)  # its own twin
    _, first, twin, count = np.unique(
        np.minimum(rows * n + columns, (-rows % m) * n + -columns % n),
        return_index=True, return_inverse=True, return_counts=True,
    )  # fmt: skip
    squares = m * n * np.where(real, 1.0, 0.5)  # of the waves' norms
    captured = float((seen**2 / squares)[first].sum())
    return {"spectrum": seen / squares * (m * n / SCALING) / count[twin], "shape": np.array([m, n])}, captured


FORMS = {
    "fourierft": Form(
        {"spectrum": "fourierft_spectrum"},
        from_parts,
        None,
        lambda a: {"n_frequency": len(a["spectrum"]), "scaling": SCALING, "random_loc_seed": SEED},
        alpha=None,
        config=patterned("n_frequency"),
        told=("shape",),
    )
}


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    place = rng.choice(sizes.m * sizes.n, sizes.parameters, replace=False)
    values = rng.standard_normal(sizes.parameters)
    return fourierft(values, place // sizes.n, place % sizes.n, (sizes.m, sizes.n)).cores()


NULLS = {"fourierft": Null(null_cores)}
RECIPES = {"fourierft": Recipe(random)}
NEAREST = {"fourierft": Projection(nearest, scale="spectrum", needs="torch")}
