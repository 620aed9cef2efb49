"""C³A (arXiv 2407.19342): blocks that are circulant.

PEFT: ``<module>.c3a_kernel`` (m/b, n/b, b); ΔW is divided by n (``c3a/layer.py``).
"""

from __future__ import annotations

import math

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..updates.circulant import c3a
from .file_form import Form, patterned
from .random_factors import Parts, Recipe, Spec, orthonormal, slots


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
RECIPES = {"c3a": Recipe(random)}
