"""Factors that are finite and a ΔW that is not: one line with file and module, in every command."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from bora_analysis import (
    AdapterError,
    analyse,
    convert,
    lora,
    similarity,
    singular_values,
    singular_vectors,
    synthetic_adapter,
    write_adapter,
)
from bora_analysis.cli import main
from bora_analysis.linalg import NotFiniteError

MODULE = "layers.0.q_proj"


@pytest.fixture(params=["product", "energy", "alpha", "sigma"])
def folder(request, tmp_path):
    """The product overflows, or Σσ² alone, or α does it, or BoRA's exponential."""
    rng = np.random.default_rng(0)
    size = {"product": 1e200, "energy": 1e80}.get(request.param, 1.0)
    factors = {"B": size * rng.standard_normal((8, 2)), "A": size * rng.standard_normal((2, 6))}
    alpha = 1e308 if request.param == "alpha" else 2.0
    if request.param == "sigma":
        factors["sigma"] = np.full((2, 2, 2), 700.0)
        return write_adapter(tmp_path / "bad", "bora", {MODULE: factors}, alpha=alpha, activation="no-norm")
    return write_adapter(tmp_path / "bad", "lora", {MODULE: factors}, alpha=alpha)


def test_file_and_module_are_named(folder, tmp_path):
    said = rf"bad.*: {MODULE}: ΔW or its energy Σσ² is beyond the range of float64"
    with pytest.raises(AdapterError, match=said):
        analyse(folder)
    with pytest.raises(AdapterError, match=said):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out/adapter_model.safetensors").exists()
    good = synthetic_adapter("lora", {MODULE: (8, 6)}, r=2)
    with pytest.raises(AdapterError, match=rf"{MODULE}: ΔW or its energy"):
        similarity(folder, good)


@pytest.mark.parametrize("command", ["analyze", "compare", "recommend", "convert"])
def test_commands_end_with_one_line(folder, tmp_path, command):
    words = [command, str(folder), *(["-o", str(tmp_path / "out")] if command == "convert" else [])]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1, result.output
    assert f"{MODULE}: ΔW or its energy Σσ² is beyond the range of float64" in result.stderr
    assert "Traceback" not in result.output


def test_an_update_by_itself_is_refused_too():
    update = lora(np.full((4, 1), 1e200), np.full((1, 3), 1e200))
    for find in (singular_values, singular_vectors):
        with pytest.raises(NotFiniteError, match="beyond the range of float64"):
            find(update)


def test_large_and_small_factors_with_an_ordinary_product_are_right():
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((8, 2)), rng.standard_normal((2, 6))
    plain, scaled = (singular_values(lora(s * B, A / s)).values for s in (1.0, 2.0**300))
    np.testing.assert_allclose(scaled, plain, rtol=1e-12)
