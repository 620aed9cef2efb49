"""y + ΔW x, and ΔW, from the factors, in the cheapest order (BoRA, arXiv 2508.06953, eq. 8).

Shapes: x (T, n) for T tokens, A (b, r, n/b), B (b, m/b, r), Σ (b, b, r), output block first.

Between the factors the tokens come last, (b, r, T). Then every product reads and writes contiguous rows, forwards and
backwards, for any shape. With T in the middle the same products take 5 to 10 times as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def effective_sigma(sigma: Tensor, activation: str, scaling: float) -> Tensor:
    """scaling · Σ from the raw σ (b, b, r), at least in float32: in bfloat16 the exponential is off by percents.

    As in :func:`bora_analysis.updates.blocks.activate`, σ = 0 gives Σ = I; the backward pass has no NaN there.
    """
    values = sigma.to(wide(sigma.dtype))
    if activation in ("exp-norm", "no-exp"):
        mean = values.abs().mean()
        values = values / (mean + (mean == 0))
    if activation in ("exp-norm", "no-norm"):
        values = values.exp()
    return values * scaling


def add_bora(result: Tensor, x: Tensor, B: Tensor, sigma: Tensor, A: Tensor) -> Tensor:
    """result + B' Σ' A' x, with the scaling in Σ. ``result`` is (…, m) and x (…, n), less than padded blocks have."""
    m = result.shape[-1]
    rows, columns = B.shape[0] * B.shape[1] - m, A.shape[0] * A.shape[2] - x.shape[-1]
    result = functional.pad(result, (0, rows)) if rows else result
    x = functional.pad(x, (0, columns)) if columns else x
    # Contiguous slots: with others torch multiplies one slot at a time, and copies each.
    added = _add(result, x, B, sigma.permute(2, 0, 1).contiguous(), A)
    return added[..., :m].contiguous() if rows else added  # a model may view its output otherwise


def add_melora(result: Tensor, x: Tensor, B: Tensor, A: Tensor) -> Tensor:
    """result + blkdiag(B_i A_i) x."""
    return _add(result, x, B, None, A)


def look_up(ids: Tensor, B: Tensor, sigma: Tensor, table: Tensor, padding: int | None) -> Tensor:
    """ΔW's columns for token ids of any shape, (…, m); ``table`` is A' with a row for each token, (n, r).

    Of padded blocks it has all rows; ``table`` ends with the last token.
    """
    tokens = ids.flatten()
    block = tokens // -(-len(table) // len(B))
    hidden = sigma.transpose(0, 1)[block] * functional.embedding(tokens, table, padding)[:, None]  # (T, b, r)
    return _rows(hidden.permute(1, 2, 0).to(B.dtype), B.transpose(1, 2)).reshape(*ids.shape, -1)


def dense_bora(B: Tensor, sigma: Tensor, A: Tensor) -> Tensor:
    """ΔW (m, n), with the scaling in Σ; of padded blocks with their rows and columns."""
    return torch.bmm(B, _middle(sigma, A)).flatten(0, 1)


def dense_melora(B: Tensor, A: Tensor) -> Tensor:
    """ΔW (m, n)."""
    return torch.block_diag(*torch.bmm(B, A))


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def _middle(sigma: Tensor, A: Tensor) -> Tensor:
    """Σ'A' in its row blocks, (b, r, n)."""
    b, r, _ = A.shape
    columns = A.transpose(0, 1)  # (r, b, n/b)
    # Contiguous before the broadcast; otherwise the product inherits its strides and reshape copies it.
    return (sigma.transpose(1, 2).contiguous()[..., None] * columns).reshape(b, r, -1)


def _add(result: Tensor, x: Tensor, B: Tensor, S: Tensor | None, A: Tensor) -> Tensor:
    kind = x.device.type
    # By hand, because autocast acts on the forward pass of a Function alone, and on what is to stay wide in it, too.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else A.dtype
    x = x.reshape(-1, x.shape[-1]).to(dtype)
    y = result.reshape(-1, result.shape[-1])
    if S is not None and not _copies(x):  # else Σ' stays as it is, see _mix
        S = S.to(dtype)
    with torch.autocast(kind, enabled=False):
        out: Any = _BlockProduct.apply(y, x, B.to(dtype), S, A.to(dtype))
    return out.view(result.shape)


class _BlockProduct(torch.autograd.Function):
    """y + B' Σ' A' x for S = (S_k) (r, b, b), the slots of Σ', or None for Σ' = I.

    Autograd's backward pass would put the tokens in the middle. The values between the factors are b times as large as
    LoRA's; instead of keeping them, the backward pass computes them again, cheaply, from x, which LoRA keeps too. It
    uses differentiable operations on the inputs, so it can be differentiated itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor, B: Tensor, S: Tensor | None, A: Tensor) -> Tensor:
        hidden = _mix(S, torch.bmm(A, _blocks(x, A)))
        rows = _rows(hidden, B.transpose(1, 2))
        if _copies(rows):
            return y + rows.flatten(1)
        # Added before flattening: one pass, without a copy.
        return (y.unflatten(1, (len(B), -1)) + rows).flatten(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, B, S, A = ctx.saved_tensors
        _, of_x, of_B, of_S, of_A = ctx.needs_input_grad
        dx = dB = dS = dA = None
        columns, rows = _blocks(x, A), _blocks(gradient.to(x.dtype), B)
        back = torch.bmm(B.transpose(1, 2), rows)
        if of_B or of_S:
            # A x again. back counts nothing, but with it a compiler cannot keep the forward pass's product instead.
            hidden = torch.baddbmm(back, A, columns, beta=0)
            dB = torch.bmm(_mix(S, hidden), rows.transpose(1, 2)).transpose(1, 2)
            dS = torch.bmm(_slots(S, back), _slots(S, hidden).transpose(1, 2)) if of_S else None
        back = _mix(None if S is None else S.transpose(1, 2), back)
        if of_A:
            dA = torch.bmm(back, columns.transpose(1, 2))
        if of_x:
            dx = _rows(back, A).flatten(1)
        return gradient, dx, dB, dS, dA


def _blocks(x: Tensor, factor: Tensor) -> Tensor:
    """x (T, n) in the blocks of a factor (b, …), (b, n/b, T)."""
    return _swapped(x.unflatten(1, (len(factor), -1))).transpose(1, 2)


def _mix(S: Tensor | None, hidden: Tensor) -> Tensor:
    """Σ' hidden for hidden (b, r, T): for each slot k a product with S_k (b, b), in the dtype of S.

    That is float32 where the factors are halves on a CPU: its products take views, halves would be put in order
    before and after, and a processor without products of halves would take fifty times as long.
    """
    if S is None:
        return hidden
    mixed = torch.bmm(S, _slots(S, hidden)).transpose(0, 1)
    return mixed if S.dtype == hidden.dtype else mixed.to(hidden.dtype, memory_format=torch.contiguous_format)


def _slots(S: Tensor, hidden: Tensor) -> Tensor:
    """hidden (b, r, T) with its slots first, (r, b, T), in the dtype of S."""
    return hidden.transpose(0, 1).to(S.dtype)


def _rows(hidden: Tensor, factor: Tensor) -> Tensor:
    """hiddenᵀ · factor, block by block, (T, b, n/b), for hidden (b, r, T) and factor (b, r, n/b)."""
    return torch.bmm(hidden.transpose(1, 2), factor).transpose(0, 1)


def _swapped(value: Tensor) -> Tensor:
    """The first two of three dimensions swapped: a view where torch multiplies views, else a copy."""
    swapped = value.transpose(0, 1)
    return swapped.contiguous() if _copies(value) else swapped


def _copies(value: Tensor) -> bool:
    """Whether a batched product copies a factor whose matrices do not lie one after the other.

    So do the products of half dtypes on a CPU, each anew, and number by number where the view is transposed.
    """
    return value.device.type == "cpu" and value.dtype in (torch.bfloat16, torch.float16)
