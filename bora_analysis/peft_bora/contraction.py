"""y + ΔW x, and ΔW, from the factors, in the cheapest order for the shape (BoRA, arXiv 2508.06953, eq. 8).

Shapes: x (T, n) for T tokens, A (b, r, n/b), B (b, m/b, r), Σ (b, b, r), output block first. Autograd does the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: Up to this br, Σ'A' is multiplied out to one (br, n) matrix. Measured, forward and backward, 2,048 tokens, two CPU
#: cores, r = 8, against PEFT's LoRA of rank 8, folded and by blocks: 384², b = 16: 1.2, 1.45; 4096², b = 16: 0.98,
#: 1.00; 1024², b = 32: 1.15, 1.2; 2048², b = 64: 1.21, 1.08; 4096², b = 64: 1.11, 1.03. ΔW itself: 2.3 at 4096².
FOLD_UP_TO = 256


def effective_sigma(sigma: Tensor, activation: str, scaling: float) -> Tensor:
    """scaling · Σ from the raw σ (b, b, r), in float32 at least: the exponential of a bfloat16 is off by percents.

    The same as :func:`bora_analysis.delta.activate`: σ = 0, where Mav(σ) = 0, gives Σ = I, and no NaN backwards.
    """
    values = sigma.to(wide(sigma.dtype))
    if activation in ("exp-norm", "no-exp"):
        mean = values.abs().mean()
        values = values / torch.where(mean > 0, mean, torch.ones_like(mean))
    if activation in ("exp-norm", "no-norm"):
        values = values.exp()
    return values * scaling


def add_bora(result: Tensor, x: Tensor, B: Tensor, sigma: Tensor, A: Tensor) -> Tensor:
    """result + B' Σ' A' x, with the scaling in Σ. ``result`` is (…, m) and x (…, n)."""
    b, r, _ = A.shape
    tokens = x.reshape(-1, x.shape[-1])
    sigma = sigma.to(A.dtype)
    if _folds(len(tokens), b * r):
        return _add_folded(result, tokens, B, _middle(sigma, A).flatten(0, 1))
    hidden = _per_block(tokens, A)  # (b, T, r)
    # For each slot k a b×b product, S_k (b, b) · (b, T).
    mixed = torch.bmm(sigma.permute(2, 0, 1), hidden.permute(2, 0, 1)).permute(1, 2, 0)
    return _add_blocks(result, mixed, B)


def add_melora(result: Tensor, x: Tensor, B: Tensor, A: Tensor) -> Tensor:
    """result + blkdiag(B_i A_i) x."""
    b, r, _ = A.shape
    tokens = x.reshape(-1, x.shape[-1])
    if _folds(len(tokens), b * r):
        return _add_folded(result, tokens, B, torch.block_diag(*A))
    return _add_blocks(result, _per_block(tokens, A), B)


def dense_bora(B: Tensor, sigma: Tensor, A: Tensor) -> Tensor:
    """ΔW (m, n), with the scaling in Σ."""
    return torch.bmm(B, _middle(sigma, A)).flatten(0, 1)


def dense_melora(B: Tensor, A: Tensor) -> Tensor:
    """ΔW (m, n)."""
    return torch.block_diag(*torch.bmm(B, A))


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 where that is the dtype."""
    return torch.promote_types(dtype, torch.float32)


def _folds(tokens: int, rank: int) -> bool:
    # With fewer tokens than rows of Σ'A', as when text is generated, forming it costs more than it saves.
    return rank <= min(FOLD_UP_TO, tokens)


def _middle(sigma: Tensor, A: Tensor) -> Tensor:
    """Σ'A' in its row blocks, (b, r, n)."""
    b, r, _ = A.shape
    columns = A.transpose(0, 1)  # (r, b, n/b)
    # Contiguous before it is broadcast, or the product would take its strides and be copied.
    return (sigma.transpose(1, 2).contiguous()[..., None] * columns).reshape(b, r, -1)


def _per_block(tokens: Tensor, A: Tensor) -> Tensor:
    b, _, columns = A.shape
    return torch.bmm(tokens.view(-1, b, columns).transpose(0, 1), A.transpose(1, 2))


def _add_folded(result: Tensor, tokens: Tensor, B: Tensor, middle: Tensor) -> Tensor:
    b, _, r = B.shape
    return _add_blocks(result, functional.linear(tokens, middle).view(-1, b, r).transpose(0, 1), B)


def _add_blocks(result: Tensor, hidden: Tensor, B: Tensor) -> Tensor:
    """result + B' hidden, for hidden (b, T, r)."""
    b, rows, _ = B.shape
    out = torch.bmm(hidden, B.transpose(1, 2)).transpose(0, 1)
    return (result.reshape(-1, b, rows) + out).reshape(result.shape)  # one pass, without a copy of ``out``
