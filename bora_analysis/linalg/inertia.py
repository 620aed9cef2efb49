"""What a large matrix tells without its singular values: how many lie above a threshold, Σσ², Σσ⁴, σ₁.

With G = C Cᵀ (p×p, p the smaller side), the eigenvalues of G are σ². Sylvester's law of inertia: G − τ²I and D of its
factorisation L D Lᵀ (Bunch & Kaufman, Math. Comp. 1977) have the same number of positive eigenvalues, which is
#{σ > τ}. Gram matrix and factorisation are matrix products, where singular values need a reduction that is half
matrix-vector products: that is the gain. Σσ² = ‖C‖_F² and Σσ⁴ = ‖G‖_F² need nothing further, σ₁ a few Lanczos steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..threshold import Threshold
from . import Array, normalised
from .threads import BlasLimit

_UNIT = 2.0**-53
# Relative accuracy of σ₁²: a bound, by the residual; the error itself is about its square.
_TOP_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Counted:
    """The count and the sums of one matrix.

    Attributes
    ----------
    above : #{σ > τ}, exact.
    energy : Σσ². fourth : Σσ⁴. top : σ₁.
    """

    above: int
    energy: float
    fourth: float
    top: float


def count(matrix: Array, threshold: float | str | Threshold, device: str = "cpu") -> Counted | None:
    """Count the singular values above a threshold without finding them; None where rounding could change the count.

    Rounding moves the eigenvalues of G − τ²I by at most e = 4 (p + q) u Σσ², u = 2⁻⁵³: q u ‖C‖_F² in the Gram matrix,
    the rest, generously, in the factorisation. The count is taken at τ² − e and at τ² + e, and holds where both agree:
    no σ² lies between them. Otherwise, and for τ² ≤ e, only singular values can tell. Of a threshold relative to σ₁, e
    is larger by what the Lanczos steps leave open of σ₁², a billionth of it.

    Parameters
    ----------
    matrix : (p, q) float64.
    threshold : see :class:`bora_analysis.Threshold`.
    device : ``"cpu"``, or a torch device.

    Examples
    --------
    >>> import numpy as np
    >>> counted = count(np.diag([3.0, 2.0, 1.0]), 1.5)
    >>> counted.above, counted.energy, counted.fourth, round(counted.top, 6)
    (2, 14.0, 98.0, 3.0)
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    flat = matrix.ravel(order="K")
    energy = float(np.dot(flat, flat))
    if not matrix.any():
        return Counted(0, 0.0, 0.0, 0.0)
    error = 4 * sum(matrix.shape) * _UNIT * energy
    tau = Threshold.of(threshold)
    # Σσ⁴ would leave the range; σ₁ is at most ‖C‖_F
    if not 1e-140 < energy < 1e140 or tau.limit(energy**0.5, energy**0.5) ** 2 <= error:
        return None
    gram, positive, product = _on_cpu(wide) if device == "cpu" else _on_torch(wide, device)
    fourth = float((gram * gram).sum())
    top = _top(product, wide.shape[0])
    square = tau.limit(top, energy**0.5) ** 2
    error += 2 * _TOP_TOLERANCE * square if tau.relative else 0.0
    if square <= error:
        return None
    counts = {positive(square - error), positive(square + error)}
    if len(counts) > 1 or None in counts:
        return None
    return Counted(counts.pop() or 0, energy, fourth, top)


_Tools = tuple[Any, Callable[[float], int | None], Callable[[Array], Array]]


def _on_cpu(wide: Array) -> _Tools:
    from scipy.linalg import get_lapack_funcs  # here: importing it takes longer than --help may

    BlasLimit.reach_scipy()

    dsytrf, workspace = get_lapack_funcs(("sytrf", "sytrf_lwork"), dtype=np.float64)
    gram = wide @ wide.T
    p = len(gram)
    lwork = int(workspace(p, lower=0)[0])

    def positive(shift: float) -> int | None:
        work = gram.copy().T  # symmetric: in LAPACK's order without being turned over
        work[np.diag_indices(p)] -= shift
        factored, pivots, info = dsytrf(work, lower=0, lwork=lwork, overwrite_a=1)  # the upper was 1.25× as fast
        return None if info else _positive(np.diagonal(factored), np.diagonal(factored, 1), pivots)

    return gram, positive, lambda x: gram @ x


def _on_torch(wide: Array, device: str) -> _Tools:
    import torch

    C = torch.from_numpy(np.ascontiguousarray(wide)).to(device)
    gram = C @ C.mT

    def positive(shift: float) -> int | None:
        work = gram.clone()
        work.diagonal().sub_(shift)
        factored, pivots, info = torch.linalg.ldl_factor_ex(work)
        if int(info):
            return None
        return _positive(*(part.cpu().numpy() for part in (factored.diagonal(), factored.diagonal(-1), pivots)))

    return gram, positive, lambda x: (gram @ torch.from_numpy(x).to(device)).cpu().numpy()


def _positive(diagonal: Array, beside: Array, pivots: Array) -> int | None:
    """Positive eigenvalues of D, whose blocks are 1×1, and 2×2 where two pivots are negative."""
    total, k = 0, 0
    while k < len(diagonal):
        if pivots[k] > 0:
            if diagonal[k] == 0:
                return None
            total += int(diagonal[k] > 0)
            k += 1
        else:
            block = np.array([[diagonal[k], beside[k]], [beside[k], diagonal[k + 1]]])
            total += int((np.linalg.eigvalsh(block) > 0).sum())
            k += 2
    return total


def spectral_norm(matrix: Array) -> float:
    """σ₁ by Lanczos steps, relative accuracy 1e-9 or better; the matrix may be float32.

    >>> round(spectral_norm(np.diag([3.0, 2.0, 1.0])), 6)
    3.0
    """
    if not matrix.any():
        return 0.0
    matrix, power = normalised(matrix)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide.astype(np.float64, copy=False)
    return float(np.ldexp(_top(lambda x: wide @ (x @ wide), len(wide)), power.item()))


def _top(product: Callable[[Array], Array], size: int) -> float:
    """√λ₁ of a positive semi-definite operator."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    start = np.random.default_rng(0).standard_normal(size)
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    options: dict[str, Any] = {"v0": start, "tol": _TOP_TOLERANCE, "return_eigenvectors": False}
    if size > 2:  # ARPACK wants k < n − 1
        with suppress(ArpackError):
            return float(np.sqrt(eigsh(operator, k=1, **options)[0]))
    return float(np.sqrt(np.linalg.eigvalsh(np.stack([product(row) for row in np.eye(size)]))[-1]))
