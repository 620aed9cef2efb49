"""The rank of factors in few bits: that of the numbers which are stored, against elimination in fractions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  bfloat16 and float8, by name
import numpy as np
import pytest
from cases import exact_rank
from click.testing import CliRunner
from method_lists import ALONE
from safetensors.numpy import load_file

from bora_analysis import (
    Adapter,
    analyse,
    bora,
    dense,
    factor_ranks,
    layer_metrics,
    lora,
    melora,
    read_adapter,
    similarity,
    singular_values,
    write_adapter,
)
from bora_analysis.adapters.synthetic import Synthetic, write_synthetic
from bora_analysis.catalogue import METHODS
from bora_analysis.cli import main
from bora_analysis.linalg import normalised
from bora_analysis.metrics import numerical_rank, rank_above_rounding
from bora_analysis.updates.dense import Dense

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


def copies(method: str, kind: str, dtype: str, folder: Path) -> list[Any]:
    """A synthetic adapter as it was made, and with its numbers rounded."""
    size = {"layers.0.q_proj": (48, 32)}
    blocks = 2 if METHODS[method].blocks else 1
    path = write_synthetic(folder, Synthetic(method, size, 2, blocks, None, kind, 3, 1.0, 1.0))
    state = load_file(path / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    rounded = {key: value.astype(dtype) if value.dtype.kind == "f" else value for key, value in state.items()}
    return [read_adapter(each, config=config)["q_proj"] for each in (state, rounded)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [name for name in ALONE if METHODS[name].core != "ΔW"])  # which has no floor
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_no_sigma_moves_by_more_than_the_noise_floor(method, dtype, tmp_path):
    for kind in ("gaussian", "decay"):
        exact, rounded = copies(method, kind, dtype, tmp_path / kind)
        found = singular_values(rounded)
        error = np.linalg.norm(exact.to_dense() - rounded.to_dense(), 2)
        values = singular_values(exact).values
        if dtype != "float32":  # as the file was written
            assert error < found.noise_floor < 10 * error
            assert np.abs(values - found.values).max() < found.noise_floor
        assert rank_above_rounding(found) <= np.sum(values > found.noise_floor - error)
        if dtype in ("float32", "float16"):
            assert rank_above_rounding(found) >= numerical_rank(values, 1e-2 * values[0])


@pytest.mark.parametrize("activation", ["exp-norm", "no-exp", "no-norm", "identity"])
@pytest.mark.parametrize("size", [1.0, 10.0])
def test_the_exponential_makes_errors_of_sigma_larger(activation, size):
    rng = np.random.default_rng(0)
    B, A, sigma = rng.standard_normal((40, 4)), rng.standard_normal((4, 60)), size * rng.standard_normal((4, 4, 4))
    sides: Any = {"activation": activation}
    exact = bora(B, A, sigma, **sides)
    found = bora(*(stored(each, "bfloat16") for each in (B, A, sigma)), dtype="bfloat16", **sides)
    error = np.linalg.norm(exact.to_dense() - found.to_dense(), 2)
    assert error < singular_values(found).noise_floor < 8 * error


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("make", ["lora", "bora", "melora"])
def test_one_direction_that_was_rounded_is_one_direction(make, dtype, tmp_path):
    """Every column of B is a multiple of one, every row of A too; rounding makes r directions of them."""
    rng = np.random.default_rng(1)
    B = stored(np.outer(rng.standard_normal(40), [1, 0.7, 0.3, 1.9]), dtype)
    A = stored(np.outer([0.2, 1.1, 0.6, 0.9], rng.standard_normal(60)), dtype)
    update = {
        "lora": lambda: lora(B, A, dtype=dtype),
        "bora": lambda: bora(B, A, np.zeros((2, 2, 4)), dtype=dtype),
        "melora": lambda: melora([B, B], [A, A], dtype=dtype),
    }[make]()
    alone = 2 if make == "melora" else 1
    tables = analyse(Adapter.from_updates("one", {"q": update}), threshold=1e-7)
    row = tables.layer_metrics.iloc[0]
    assert (row["rank_above_rounding"], row["numerical_rank"]) == (alone, 4 * alone)
    assert row["effective_rank"] > alone
    told = f"the threshold 1e-07 lies below the noise floor of 1 of 1 module (up to {row['noise_floor']:.2g})"
    assert any(told in line and f"rounding to {dtype} alone" in line for line in tables.provenance)
    path = write_adapter(tmp_path, "lora", {"q": {"B": B, "A": A}}, alpha=4, dtype="bfloat16")
    shown = CliRunner().invoke(main, ["analyze", str(path), "--threshold", "1e-7"])
    assert "σ>noise" in shown.stdout
    for command in ("analyze", "compare"):
        said = CliRunner().invoke(main, [command, str(path), "--threshold", "1e-7"]).stderr
        assert "lies below the noise floor" in said


def test_an_update_made_of_numbers_that_are_not_known_has_no_noise_floor():
    update = Dense(dense(np.eye(4), dtype="bfloat16").facts, lambda: np.eye(4))
    row = layer_metrics(Adapter.from_updates("a", {"q": update})).iloc[0]
    assert np.isnan(row["noise_floor"])
    assert np.isnan(row["rank_above_rounding"])
