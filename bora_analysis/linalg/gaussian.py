"""Gaussian matrices by what is left of them after QR or a reduction to two diagonals: their laws are known.

An m×k matrix of independent standard normal numbers is Q R. Q and R are independent; R's numbers are too: √χ²_{m−i+1}
in row i of the diagonal, standard normal above it (Bartlett 1933; Muirhead, *Aspects of Multivariate Statistical
Theory*, theorem 3.2.14, for RᵀR). So a product of such matrices has the singular values of the product of two small
triangles, whatever m is. Reflections from both sides leave two diagonals, again of independent χ (Golub & Kahan 1965;
Dumitriu & Edelman, J. Math. Phys. 43, 2002).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import Array


def gaussian_triangle(rng: np.random.Generator, rows: int, columns: int, *stack: int) -> Array:
    """R (*stack, min(rows, columns), columns) of the QR of Gaussian matrices of rows × columns, without these.

    Cost: O(columns²) for each, whatever their rows.

    Examples
    --------
    >>> R = gaussian_triangle(np.random.default_rng(0), 1000, 2)
    >>> R.shape, bool(R[1, 0] == 0), np.abs(R / np.sqrt(1000)).round(1).tolist()
    ((2, 2), True, [[1.0, 0.0], [0.0, 1.0]])
    """
    k = min(rows, columns)
    R = np.triu(rng.standard_normal((*stack, k, columns)))
    place = np.arange(k)
    R[..., place, place] = np.sqrt(rng.chisquare(rows - place, (*stack, k)))
    return R


def gaussian_values(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Singular values of a Gaussian matrix, descending, without it. Cost: O(k²), k the smaller side.

    Examples
    --------
    >>> values = gaussian_values(np.random.default_rng(0), 400, 100)
    >>> values.shape, (values[[0, -1]] / 20).round(1).tolist()  # 1 ± √(100/400) in the limit
    ((100,), [1.5, 0.5])
    """
    from scipy.linalg import eigvalsh_tridiagonal  # here: importing it takes longer than --help may

    m, k = max(rows, columns), min(rows, columns)
    diagonal = np.sqrt(rng.chisquare(m - np.arange(k)))
    beside = np.sqrt(rng.chisquare(np.arange(k - 1, 0, -1))) if k > 1 else np.zeros(0)
    # Eigenvalues ±σ of [[0, B], [Bᵀ, 0]], its rows and columns in turn (Golub & Kahan): accurate for small σ too.
    mixed = np.zeros(2 * k - 1)
    mixed[::2], mixed[1::2] = diagonal, beside
    values: Any = eigvalsh_tridiagonal(np.zeros(2 * k), mixed)
    return values[: k - 1 : -1].clip(0.0)
