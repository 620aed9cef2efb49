"""An update beside the base model's weights W0: how large it is, what it amplifies, whether it brings new directions.

* ‖ΔW‖_F / ‖W0‖_F and σ₁(ΔW) / σ₁(W0).
* Amplification factor (LoRA, arXiv 2106.09685, §7.3): ‖ΔW‖_F / ‖Uᵀ W0 V‖_F with U, V the top r singular directions of
  ΔW: large where ΔW strengthens directions that W0 hardly has.
* Intruder dimensions (Shuttleworth et al., arXiv 2410.21228): of the k largest left singular vectors y_j of W0 + ΔW
  those with max_i |cos(y_j, x_i)| < ε over all left singular vectors x_i of W0.

* Shares of ‖ΔW‖² within W0's k largest directions: ‖U_kᵀ ΔW‖² of its outputs, ‖ΔW V_k‖² of its inputs, and
  ‖U_kᵀ ΔW V_k‖² of both. A random ΔW has k/m, k/n and k²/mn.

Where ΔW is a product of thin factors it is never formed. A full SVD of W0 is taken for small matrices, and where a few
of its largest directions leave an intruder undecided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy.sparse.linalg import ArpackError, LinearOperator, svds

from ..adapters import AdapterError
from ..adapters.given import adapters_of
from ..files.base_model import BaseMatrix, BaseWeights, open_base
from ..linalg import Array, NotFiniteError, check_finite, norm
from ..linalg.inertia import spectral_norm
from ..linalg.solvers import svd_with_vectors
from ..linalg.threads import one_blas_thread
from ..metrics import numerical_rank, rounding_tolerance
from ..updates.checks import is_finite
from ..updates.contract import Update
from ..updates.dense import Dense
from .arranging import of_llama_cpp
from .columns import typed
from .progress import each_module
from .tables import IDENTITY, identity
from .vectors import SingularVectors, singular_vectors

if TYPE_CHECKING:
    import pandas as pd

BASE_COLUMNS = (
    *IDENTITY, "out_features", "in_features", "frobenius_norm", "base_frobenius_norm", "relative_norm",
    "spectral_norm", "base_spectral_norm", "relative_spectral_norm", "directions", "amplification",
    "intruder_dimensions", "intruder_k", "intruder_epsilon",
    "subspace_k", "share_left", "share_right", "share_both",
)  # fmt: skip
#: Up to this smaller side all singular vectors are found at once: an iterative solver would be slower.
DENSE_UP_TO = 512


def base_metrics(
    adapters: Any,
    base: BaseWeights | str | Path,
    *,
    k: int = 10,
    epsilon: float = 0.5,
    subspace: int = 10,
    on_module: Callable[[], object] | None = None,
    **reading: Any,
) -> pd.DataFrame:
    """One row per module: the columns of ``BASE_COLUMNS``.

    Parameters
    ----------
    adapters, on_module, reading : as for :func:`bora_analysis.analyse`.
    base : the base model, as for :func:`bora_analysis.read_adapter`, which reads adapters with it.
    k, epsilon : of the intruder dimensions. k is at most the smaller side of the matrix; the columns say it.
    subspace : how many of W0's largest directions make the subspaces of share_left, share_right and share_both.

    Returns
    -------
    DataFrame

    Notes
    -----
    ``directions`` is the r of the amplification factor: the rank parameter of a method with factors, k for an update
    without structure, and never more than the update's numerical rank. A zero update has amplification NaN.

    Raises
    ------
    ValueError
        k < 1, or ε outside 0 … 1.
    AdapterError
        A module that the base model does not have, or has in another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from safetensors.numpy import save_file
    >>> from bora_analysis import Adapter, base_metrics, lora
    >>> adapter = Adapter.from_updates("mine", {"q": lora(np.eye(4)[:, :1], np.eye(1, 4))})
    >>> with TemporaryDirectory() as folder:
    ...     save_file({"q.weight": 2 * np.eye(4)}, Path(folder) / "model.safetensors")
    ...     base_metrics(adapter, folder)[["relative_norm", "amplification"]].values.tolist()
    [[0.25, 0.5]]
    """
    import pandas as pd

    if k < 1 or subspace < 1 or not 0 <= epsilon <= 1:
        told = "" if subspace >= 1 else f", subspace = {subspace}"
        raise ValueError(f"got k = {k}, ε = {epsilon:g}{told}; expected k ≥ 1, 0 ≤ ε ≤ 1 and subspace ≥ 1")
    weights = base if isinstance(base, BaseWeights) else open_base(base)
    rows = []
    given = adapters_of(adapters, base=weights, **reading)
    given = [of_llama_cpp(each, weights.config) if each.layout == "gguf" else each for each in given]
    for adapter, module in each_module(given, on_module):
        update = adapter[module]
        facts = update.facts
        where = adapter.path or adapter.name
        matrix = counterpart(weights, module, (facts.out_features, facts.in_features), str(where))
        W0 = matrix.read()
        if not is_finite(W0):
            raise AdapterError(f"{weights.path}: {matrix.key} of the base model holds NaN or Inf")
        try:
            with one_blas_thread():
                found = _compare(update, W0, k, epsilon, subspace)
        except NotFiniteError as error:
            raise AdapterError(f"{where}: {module}: {error}") from None
        rows.append((*identity(adapter, module, facts), facts.out_features, facts.in_features, *found))
    return typed(pd.DataFrame(rows, columns=list(BASE_COLUMNS)))


def intruder_dimensions(update: Update, W0: Array, k: int = 10, epsilon: float = 0.5) -> int:
    """Of the k largest left singular vectors of W0 + ΔW, how many have no counterpart among those of W0.

    Parameters
    ----------
    update : ΔW ∈ R^{m×n}. W0 : (m, n).
    k, epsilon : see the top of this module.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora
    >>> W0 = np.diag([3.0, 2.0, 1.0, 0.0])
    >>> new = lora(np.full((4, 1), 5.0), np.eye(4)[3:])  # every component of (1, 1, 1, 1)/2 is 1/2
    >>> intruder_dimensions(new, W0, k=1, epsilon=0.6), intruder_dimensions(new, W0, k=1, epsilon=0.4)
    (1, 0)
    """
    W0 = W0.astype(np.float64, copy=False)
    return _intruders(_tuned(update, W0), W0, k, epsilon)


def counterpart(weights: BaseWeights, module: str, shape: tuple[int, int], where: str) -> BaseMatrix:
    """The base model's matrix in the orientation of ΔW: an embedding's ΔW is (d, V), a Conv1D's (out, in)."""
    matrix = weights.matrix(module)
    if matrix.shape != shape and matrix.shape[::-1] == shape and len(matrix.stored) == 2:
        matrix = replace(matrix, transposed=not matrix.transposed)
    if matrix.shape != shape:
        raise AdapterError(
            f"{where}: the update of {module} is {shape[0]}×{shape[1]}, but {matrix.key} of the base model has shape "
            f"{matrix.stored}; is it the model that was adapted?"
        )
    return matrix


def _compare(update: Update, W0: Array, k: int, epsilon: float, subspace: int) -> tuple[float, ...]:
    W0 = W0.astype(np.float64, copy=False)
    base_norm, base_top = norm(W0), spectral_norm(W0)
    k, subspace, whole = min(k, *W0.shape), min(subspace, *W0.shape), None
    if isinstance(update, Dense):
        whole = check_finite(update.to_dense())
        size, parts, r = norm(whole), _largest(whole, k), k
        update = replace(update, delta=whole)  # made once, for the sum below too
    else:
        parts, r = singular_vectors(update), update.facts.r
        size = norm(parts.values)
    top = float(parts.values.max(initial=0.0))
    r = min(r, numerical_rank(parts.values, parts.rounding))
    amplification = float("nan")
    if r:
        seen = norm(parts.left[:, :r].T @ W0 @ parts.right[:r].T)
        amplification = size / seen if seen else float("inf")
    tuned = _tuned(update, W0, None if isinstance(update, Dense) else parts)
    least = min(W0.shape)
    base = _largest(W0, least if least <= DENSE_UP_TO else min(max(subspace, 4 * k), least))
    intruders = _intruders(tuned, W0, k, epsilon, base)
    shares = _shares(parts if whole is None else whole, base, subspace)
    return (
        size, base_norm, _ratio(size, base_norm), top, base_top, _ratio(top, base_top),
        r, amplification, intruders, k, epsilon, subspace, *shares,
    )  # fmt: skip


def _shares(update: Array | SingularVectors, base: SingularVectors, k: int) -> tuple[float, float, float]:
    """Shares of ‖ΔW‖² within W0's k largest directions: of its outputs, of its inputs, of both."""
    U, V = base.left[:, :k], base.right[:k]
    if isinstance(update, SingularVectors):  # whose vectors are orthonormal
        size, out, into = norm(update.values), (U.T @ update.left) * update.values, update.right @ V.T
        within = out, update.values[:, None] * into, out @ into
    else:
        size, out = norm(update), U.T @ update
        within = out, update @ V.T, out @ V.T
    one, two, both = (_ratio(norm(part), size) ** 2 for part in within)
    return one, two, both


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _tuned(update: Update, W0: Array, parts: SingularVectors | None = None) -> Any:
    """W0 + ΔW, dense where either is small or ΔW has no structure, else as an operator."""
    if min(W0.shape) <= DENSE_UP_TO or isinstance(update, Dense):
        return W0 + update.to_dense()
    left, right = (parts.left * parts.values, parts.right) if parts else update.factors()
    products: dict[str, Any] = {
        "matvec": lambda x: W0 @ x + left @ (right @ x),
        "rmatvec": lambda x: W0.T @ x + right.T @ (left.T @ x),
        "dtype": np.float64,
    }
    return LinearOperator(W0.shape, **products)


def _intruders(tuned: Any, W0: Array, k: int, epsilon: float, base: SingularVectors | None = None) -> int:
    k = min(k, *W0.shape)
    new = _largest(tuned, k).left
    if min(W0.shape) > max(DENSE_UP_TO, 8 * k):
        cosines = np.abs((base or _largest(W0, 4 * k)).left.T @ new)
        # What the largest directions leave of a y bounds its cosine with any of the others.
        rest = np.sqrt(np.maximum(1.0 - (cosines**2).sum(axis=0), 0.0))
        closest = cosines.max(axis=0)
        if ((closest >= epsilon) | (rest < epsilon)).all():
            return int((closest < epsilon).sum())
    old = base.left if base and base.left.shape[1] == min(W0.shape) else svd_with_vectors(W0)[0]
    return int((np.abs(old.T @ new).max(axis=0) < epsilon).sum())


def _largest(matrix: Any, k: int) -> SingularVectors:
    """The k largest singular values of a matrix or operator, with their vectors."""
    if isinstance(matrix, np.ndarray) and (min(matrix.shape) <= max(DENSE_UP_TO, 2 * k) or not matrix.any()):
        left, values, right = svd_with_vectors(matrix)
        return SingularVectors(left[:, :k], values[:k], right[:k], rounding_tolerance(values))
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    options: dict[str, Any] = {"k": k, "v0": start, "tol": 1e-10}
    try:
        left, values, right = cast(tuple[Array, Array, Array], svds(matrix, **options))
    except (ArpackError, np.linalg.LinAlgError):
        left, values, right = svd_with_vectors(matrix @ np.eye(matrix.shape[1]))
        left, values, right = left[:, :k], values[:k], right[:k]
    order = np.argsort(values)[::-1]
    return SingularVectors(left[:, order], values[order], right[order], rounding_tolerance(values))
