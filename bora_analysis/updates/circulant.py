"""C³A (arXiv 2407.19342): circulant blocks, with one core per frequency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..catalogue.formulas import circulant_macs
from ..linalg import Array, norm
from .checks import factor
from .contract import Facts
from .sums import Arithmetic


@dataclass(frozen=True, eq=False, repr=False)
class BlockCirculant(Arithmetic):
    """Entry (t, s) of block (i, j) of ΔW is kernel[i, j, (s − t) mod b], C³A (arXiv 2407.19342)."""

    facts: Facts
    kernel: Array  # (m/b, n/b, b) float64, scaling folded in

    def cores(self) -> list[Array]:
        """One (m/b, n/b) matrix per frequency: the DFT makes every block diagonal.

        The matrices of the frequencies f and b − f are conjugates, and the real form [[X, −Y], [Y, X]] of X + iY has
        its singular values twice: exactly those of both.
        """
        b = self.kernel.shape[2]
        spectrum = np.moveaxis(np.fft.rfft(self.kernel, axis=2), 2, 0)  # (b//2 + 1, m/b, n/b)
        alone = [0, b // 2] if b % 2 == 0 and b > 1 else [0]
        paired = spectrum[1 : (b + 1) // 2]
        X, Y = paired.real, paired.imag
        doubled = np.concatenate([np.concatenate([X, -Y], 2), np.concatenate([Y, X], 2)], 1)
        real = np.ascontiguousarray(spectrum[alone].real)
        return [real, doubled] if len(doubled) else [real]

    def rounding(self) -> float:
        return norm(self.kernel) * float(np.sqrt(self.kernel.shape[2]))

    def to_dense(self) -> Array:
        p, q, b = self.kernel.shape
        index = (np.arange(b)[None, :] - np.arange(b)[:, None]) % b  # (t, s)
        return self.kernel[:, :, index].transpose(0, 2, 1, 3).reshape(p * b, q * b)


def c3a(kernel: Any, *, dtype: str | None = None) -> BlockCirculant:
    """ΔW of circulant blocks, divided by in_features as in PEFT (``c3a/layer.py``).

    Parameters
    ----------
    kernel : (m/b, n/b, b).
    dtype : as for :func:`bora_analysis.updates.blocks.lora`.

    Examples
    --------
    >>> c3a([[[2.0, 0.0, 4.0]]]).to_dense().round(3).tolist()
    [[0.667, 0.0, 1.333], [1.333, 0.667, 0.0], [0.0, 1.333, 0.667]]
    """
    array, stored = factor("kernel", kernel, 3, dtype)
    p, q, b = array.shape
    m, n = p * b, q * b
    facts = Facts("c3a", m, n, b, b, 1 / n, array.size, p * q * circulant_macs(b), min(m, n), stored)
    return BlockCirculant(facts, array.astype(np.float64) / n)
