"""FourierFT and SHiRA: few trained numbers in fixed places.

FourierFT (arXiv 2405.03003), PEFT: ``<module>.fourierft_spectrum`` (k,), at places of the Fourier transform that are
not stored but drawn from ``random_loc_seed`` and the layer's size (``fourierft/layer.py``), which the file does not
store either.

SHiRA (arXiv 2406.13175), PEFT: ``<module>.shira_weight`` (k,), ``.shira_indices`` (2, k) rows and columns.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from ..delta import FactorError, Update
from ..extras import require
from ..structures import fourierft, shira
from .source import Found, Loader, Source, collect, need, others
from .tensors import Array

#: FourierFT's defaults in PEFT.
SCALING, SEED = 150.0, 777


def read_fourierft(source: Source) -> Found | None:
    """FourierFT as PEFT saves it."""
    found, rest = collect(source, "fourierft_spectrum")
    if not found:
        return None
    seed = source.setting("random_loc_seed", int, SEED)
    scaling = float(source.setting("scaling", (int, float), SCALING))
    loaders = {m: _fourierft(source, m, parts["fourierft_spectrum"], seed, scaling) for m, parts in found.items()}
    return Found("fourierft", loaders, others(source, rest), [], scaled=False)


def _fourierft(source: Source, module: str, key: str, seed: int, scaling: float) -> Loader:
    source.check_factor(key)
    shape, size = source.tensors.shape(key), source.shape_of(module, key)
    source.expect(len(shape) == 1 and shape[0] <= size[0] * size[1], key, f"one dimension, up to {size[0] * size[1]}")

    return source.loader({"spectrum": key}, partial(build_fourierft, size=size, seed=seed, scaling=scaling))


def build_fourierft(spectrum: Array, *, size: tuple[int, int], seed: int, scaling: float, dtype: str) -> Update:
    return fourierft(spectrum, *_places(*size, seed, len(spectrum)), size, scaling=scaling, dtype=dtype)


@lru_cache(maxsize=16)
def _places(m: int, n: int, seed: int, count: int) -> tuple[Array, Array]:
    """The places as PEFT draws them: the first of a random permutation of all m·n."""
    told = "has places that PyTorch's generator must draw"
    require("torch", told, "torch", error=partial(FactorError, "spectrum"))
    import torch  # here: its generator is what drew them

    places = torch.randperm(m * n, generator=torch.Generator().manual_seed(seed))[:count].numpy()
    return places // n, places % n


def read_shira(source: Source) -> Found | None:
    """SHiRA as PEFT saves it."""
    found, rest = collect(source, "shira_(weight|indices)")
    if not found:
        return None
    loaders = {module: _shira(source, module, parts) for module, parts in found.items()}
    notes = []
    if not source.sized:
        notes.append(
            "SHiRA's file does not store the sizes of the layers, so each ΔW ends after its last row and column; the "
            "spectrum is right, out_features and in_features may be too small"
        )
    return Found("shira", loaders, others(source, rest), notes, scaled=False)


def _shira(source: Source, module: str, parts: dict[str, str]) -> Loader:
    weight, indices = need(source, parts, "shira_weight", "shira_indices")
    source.check_factor(weight)
    (count,) = source.tensors.shape(weight)
    source.expect(source.tensors.shape(indices) == (2, count), indices, f"(2, {count}) from shira_weight")
    size = source.shape_of(module, weight) if source.sized else None

    return source.loader({"spectrum": weight, "indices": indices}, partial(_build_shira, size=size))


def _build_shira(spectrum: Array, indices: Array, *, size: tuple[int, int] | None, dtype: str) -> Update:
    rows, columns = indices.astype(np.int64)
    shape = size or (int(rows.max()) + 1, int(columns.max()) + 1)
    return shira(spectrum, rows, columns, shape, dtype=dtype)
