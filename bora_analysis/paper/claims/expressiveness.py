"""Claims on what BoRA can represent (title, abstract, §3.3, §3.5), under eq. 5 and at equal trained parameters."""

from __future__ import annotations

import numpy as np

from ...bundled import data_folder
from ...linalg import Array
from ...updates import blocks
from .common import Finding, claim, verdict

#: An off-diagonal block is zero below this size, relative to the diagonal ones.
ZERO = 1e-6
SIZES = ((2, 4), (8, 8), (8, 16))
#: r and b of the BoRA whose LoRA of the same budget is asked for, and the number of starts of its search.
R, B, STARTS = 4, 8, 2


@claim("C40", "§3.5, eq. 5", "MELoRA is BoRA with Σ_ij = I for i = j and 0 otherwise, with Σ from eq. 5")
def melora_under_eq_5() -> Finding:
    r"""How small the blocks off the diagonal can be made.

    Factors B_i and A_j can take over a scale for each (i, k) and (j, k), so Σ counts up to log Σ_ijk + a_ik + c_jk, and
    eq. 5 asks that its mean absolute value be 1. Off-diagonal entries of relative size e^−M need
    min over a, c of mean |−M (1 − δ_ij) + a_i + c_j| = M/b ≤ 1: a + c = M leaves M on the diagonal alone, and
    Y = 1 on the diagonal and −1/(b−1) off it, whose rows and columns sum to 0, proves by duality that less is
    impossible.
    """
    reached, proved = {}, []
    for r, b in SIZES:
        sigma = np.broadcast_to(np.eye(b)[:, :, None], (b, b, r))
        found = blocks.activate(sigma, "exp-norm")[:, :, 0]
        reached[r, b] = float((found / found[0, 0])[~np.eye(b, dtype=bool)].max())
        dual = np.where(np.eye(b, dtype=bool), 1.0, -1.0 / (b - 1))
        bound = float((dual * b * np.eye(b)).sum()) / b**2  # of the mean |log|, for M = b
        fits = np.abs(dual).max() <= 1 and np.allclose([dual.sum(0), dual.sum(1)], 0)
        proved.append(bool(fits and np.isclose(bound, 1) and np.isclose(reached[r, b], np.exp(-b))))
    zero = all(size <= ZERO for size in reached.values())
    shown = ", ".join(f"b = {b} {size:.1e}" for (_, b), size in reached.items())
    least = ", which is e^−b, and no σ makes them smaller with the same r" if all(proved) else ""
    return Finding(
        verdict(zero, any(size <= 1e-2 for size in reached.values())),
        f"largest entry off the diagonal, relative to one on it: {shown}{least}; limit {ZERO:g}",
    )


@claim("C41", "title, §3.3", "BoRA is more expressive than LoRA of as many parameters")
def equal_budget() -> Finding:
    found = {"a random 64 × 64 matrix, whose spectrum is flat,": np.random.default_rng(41).standard_normal((64, 64))}
    for task in ("movies", "products"):
        for module in ("layer.0.*query", "layer.5.*value"):
            matrix = fine_tuned(task, module)
            if matrix is not None:
                found[f"full fine-tuning, {task}, {module.replace('.*', ' ')}"] = matrix
    gains = {name: gain_at_equal_budget(matrix) for name, matrix in found.items()}
    if len(gains) == 1:
        return Finding("cannot be told", "the bundled results of full fine-tuning were not installed")
    better = [ours > lora for ours, lora in gains.values()]
    shown = "; ".join(f"{name} {ours:.3f} and {lora:.3f}" for name, (ours, lora) in gains.items())
    return Finding(
        verdict(all(better), any(better)),
        f"share of ‖ΔW‖² that BoRA r = {R}, b = {B} captures (a local search, {STARTS} starts: at least), and LoRA of "
        f"as many parameters: {shown}",
    )


def gain_at_equal_budget(matrix: Array) -> tuple[float, float]:
    """What BoRA captures of a matrix, and what LoRA of the same budget does (between two ranks: interpolated)."""
    from ...analysis.capture import capture
    from ...updates.dense import dense

    (row,) = capture({"q": dense(matrix, dtype="float64")}, [("bora", R, B)], starts=STARTS).to_dict("records")
    return float(row["captured"]), float(row["lora_captured"])


def fine_tuned(task: str, module: str) -> Array | None:
    """ΔW of a module by full fine-tuning, where it is bundled."""
    from ...adapters import Adapter, read_adapter

    folder = data_folder() / "full" / f"{task}-lr2e-4-seed0"
    if not folder.exists():
        return None
    adapter = read_adapter(folder, modules=module)
    assert isinstance(adapter, Adapter)
    (update,) = adapter.values()
    return update.to_dense()
