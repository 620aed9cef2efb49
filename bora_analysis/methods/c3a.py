"""C³A (arXiv 2407.19342): blocks that are circulant.

PEFT: ``<module>.c3a_kernel`` (m/b, n/b, b); ΔW is divided by n (``c3a/layer.py``).
"""

from __future__ import annotations

import math

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..linalg import Array
from ..projections import Projection, Target, Wish
from ..updates.circulant import c3a
from .file_form import Form, patterned
from .random_factors import Null, Parts, Recipe, Sizes, Spec, orthonormal, slots


def read(source: Source) -> Found | None:
    """C³A as PEFT saves it."""
    return read_parts(source, "c3a_kernel", "c3a", _loader)


def _loader(source: Source, _: str, parts: dict[str, str]) -> Loader:
    return source.loader(fitted(source, parts, kernel="c3a_kernel (m/b, n/b, b)")[0], c3a)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """With decay, frequency f of every block is the same matrix times (1+f)^−p; σ(ΔW) are these factors, repeated."""
    s = math.gcd(m, n) // spec.blocks
    shape = m // s, n // s, s
    if spec.kind == "init":  # PEFT's Xavier-uniform
        bound = math.sqrt(6 / (m + n))
        kernel = rng.uniform(-bound, bound, shape)
    elif spec.kind == "gaussian":
        kernel = rng.standard_normal(shape) * (spec.scale * n / math.sqrt(max(m, n)))
    else:
        Q = orthonormal(rng.standard_normal(shape[:2]))
        kernel = spec.scale * n * Q[:, :, None] * np.fft.irfft(slots(spec, s // 2 + 1), s)
    return {"kernel": kernel.astype(np.float32)}


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    """The mean along each wrapped diagonal of each block, a correlation of T's factors."""
    (m, n), k = target.shape, target.right.shape[0]
    s = math.gcd(m, n) // wish.blocks
    left = np.fft.rfft(target.left.reshape(m // s, s, k), axis=1).conj().transpose(1, 0, 2)  # (frequency, m/s, k)
    right = np.fft.rfft(target.right.reshape(k, n // s, s), axis=2).transpose(2, 0, 1)
    mean = np.fft.irfft((left @ right).transpose(1, 2, 0), s) / s  # (m/s, n/s, s)
    return {"kernel": mean * n}, float(s * (mean**2).sum())


FORMS = {
    "c3a": Form(
        {"kernel": "c3a_kernel"},
        lambda a, _, __: c3a(a["kernel"]),
        None,
        lambda a: {"block_size": a["kernel"].shape[2]},
        alpha=None,
        config=patterned("block_size"),
    )
}


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    s = sizes.blocks  # the size of a circulant block
    return c3a(rng.standard_normal((sizes.m // s, sizes.n // s, s))).cores()


NULLS = {"c3a": Null(null_cores)}
RECIPES = {"c3a": Recipe(random)}
NEAREST = {"c3a": Projection(nearest, scale="kernel")}
