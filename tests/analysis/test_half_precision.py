"""The rank of factors in few bits: that of the numbers which are stored, against elimination in fractions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  bfloat16 and float8, by name
import numpy as np
import pytest
from cases import exact_rank

from bora_analysis import Adapter, bora, factor_ranks, layer_metrics, lora, read_adapter, similarity
from bora_analysis.linalg import normalised

DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
ROOT = Path(__file__).parents[2]


def stored(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(dtype).astype(np.float64)


def whole(array: np.ndarray) -> Any:
    """Exact whole numbers, a power of two times the array."""
    return np.vectorize(lambda x: int(x * 2.0**160), otypes=[object])(array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_rank_is_that_of_the_stored_numbers(dtype):
    rng = np.random.default_rng(0)
    for case in range(12):
        b, r = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        m, n = b * int(rng.integers(2, 5)), b * int(rng.integers(2, 5))
        B, A, sigma = (stored(rng.standard_normal(shape), dtype) for shape in ((m, r), (r, n), (b, b, r)))
        if case % 3 == 1:  # directions that are missing, and one that is small
            B[:, -1] = B[:, 0]
            A[0] = stored(A[0] / 64, dtype)
        if case % 3 == 2:
            sigma[:, -1] = 2 * sigma[:, 0]
        update = bora(B, A, sigma, activation="identity", dtype=dtype)
        parts = [whole(part) for part in update.expanded()]
        ranks = factor_ranks(update)
        assert [ranks.B, ranks.sigma, ranks.A] == [exact_rank(part) for part in parts]
        row = layer_metrics(Adapter.from_updates("a", {"q": update})).iloc[0]
        assert row["numerical_rank"] == exact_rank(parts[0] @ parts[1] @ parts[2])
        assert np.isnan(row["condition"]) == (row["numerical_rank"] == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rounded_copy_of_a_trained_adapter_keeps_its_rank(dtype):
    adapter = read_adapter(ROOT / "data/trained-bora-r8-b16")
    assert isinstance(adapter, Adapter)
    copies = {}
    for module in list(adapter)[:4]:
        update: Any = adapter[module]
        # float8 ends at 448, and begins at 2^-9 and 2^-16.
        B, sigma, A = (stored(256 * normalised(part)[0], dtype) for part in (update.B, update.sigma, update.A))
        full = bora(
            B.reshape(-1, B.shape[2]),
            A.transpose(1, 0, 2).reshape(A.shape[1], -1),
            sigma, activation="identity", dtype=dtype,
        )  # fmt: skip
        copies[module] = full
        ranks = factor_ranks(full)
        assert (ranks.B, ranks.sigma, ranks.A) == (128, 128, 128)
        assert ranks.limiting == ("B'", "Σ'", "A'")
    copy = Adapter.from_updates("copy", copies)
    assert layer_metrics(copy)["numerical_rank"].tolist() == [128] * 4
    assert similarity(copy, copy, i=128, j=128).table["i"].tolist() == [128] * 4


def test_gram_leaves_the_rank_to_the_svd_where_it_cannot_tell():
    """A core of 520 × 520 in bfloat16 whose rank is 500."""
    rng = np.random.default_rng(0)
    B, A = (stored(rng.standard_normal(shape), "bfloat16") for shape in ((540, 520), (520, 530)))
    B[:, 500:] = B[:, :20]
    row = layer_metrics(Adapter.from_updates("a", {"q": lora(B, A, dtype="bfloat16")})).iloc[0]
    assert row["numerical_rank"] == 500
    forced = layer_metrics(Adapter.from_updates("a", {"q": lora(B, A, dtype="bfloat16")}), solver="gram").iloc[0]
    assert forced["numerical_rank"] == 500
