"""The paper's metrics of the held-out examples (Appendix B), as fractions instead of per cent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def matthews(predicted: Array, labels: Array) -> float:
    """Matthews' correlation of predicted and true classes; 0 if one of them is constant.

    >>> round(matthews(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])), 6)
    0.57735
    """
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def pearson(predicted: Array, labels: Array) -> float:
    """Pearson's correlation; 0 if one side is constant.

    >>> round(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.5])), 6)
    0.997949
    """
    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(np.corrcoef(predicted, labels)[0, 1])


def scorer(metric: str) -> Callable[[Any], dict[str, float]]:
    """``compute_metrics`` of a transformers Trainer."""

    def compute(evaluated: Any) -> dict[str, float]:
        predictions = evaluated.predictions
        if isinstance(predictions, tuple):  # some models also return hidden states
            predictions = predictions[0]
        if metric == "perplexity":  # rows of token_losses
            total, tokens = np.asarray(predictions, dtype=np.float64).sum(axis=0)
            # The Trainer's loss also counts the first tokens, which are not predicted.
            return {metric: math.exp(min(total / tokens, 700.0)), "token_loss": total / tokens}  # exp(710) is Inf
        labels = np.asarray(evaluated.label_ids)
        if metric == "pearson":
            values = np.asarray(predictions, dtype=np.float64).reshape(-1)
            return {metric: pearson(values, labels.reshape(-1).astype(np.float64))}
        predicted = np.asarray(predictions).argmax(axis=-1)
        return {metric: matthews(predicted, labels) if metric == "matthews" else float((predicted == labels).mean())}

    return compute


def token_losses(logits: Any, labels: Any) -> Any:
    """(N, 2): each sequence's summed negative log-likelihood and its number of tokens, in place of the logits.

    A mean over batches would give short sequences more weight, and the logits of a held-out set need much memory.
    """
    import torch
    from torch.nn import functional

    logits = logits[0] if isinstance(logits, tuple) else logits
    targets = labels[:, 1:]
    losses = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    return torch.stack([losses.sum(dim=1), (targets != -100).sum(dim=1).to(losses.dtype)], dim=1)
