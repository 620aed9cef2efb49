"""Factors that are finite and a ΔW that is not: one line with file and module, in every command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from cases import STRUCTURES, updates
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bora_analysis import (
    Adapter,
    AdapterError,
    analyse,
    base_metrics,
    bora,
    convert,
    dense,
    layer_metrics,
    lora,
    read_adapter,
    similarity,
    singular_values,
    singular_vectors,
    synthetic_adapter,
    write_adapter,
)
from bora_analysis.analysis.conversion import truncated
from bora_analysis.cli import main
from bora_analysis.linalg import NotFiniteError
from bora_analysis.linalg.inertia import count, spectral_norm
from bora_analysis.metrics import rounding_tolerance
from bora_analysis.updates.blocks import DirectSum, activate
from bora_analysis.updates.contract import FactorError

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


def test_every_command_and_sum(tmp_path):
    rng = np.random.default_rng(0)
    B, A, sigma = rng.standard_normal((8, 2)), rng.standard_normal((2, 6)), np.full((2, 2, 2), 700.0)
    bad = write_adapter(
        tmp_path / "bad", "bora", {MODULE: {"B": B, "A": A, "sigma": sigma}}, alpha=1e10, activation="no-norm"
    )
    picture = ["figure", "spectra", "-o", str(tmp_path / "s.svg")]
    for words in (["analyze"], ["factors"], ["recommend"], ["convert", "-o", str(tmp_path / "out")], picture):
        result = CliRunner().invoke(main, [*words, str(bad)])
        assert (result.exit_code, "Traceback" in result.output) == (1, False), result.output
        assert "bad/adapter_model.safetensors: " in result.stderr
        assert "sigma with the scaling in it is beyond the range of float64" in result.stderr
    for size, said in ((1e150, f"{MODULE}: ΔW or its energy"), (1e200, f"merge: {MODULE}: the sum of large")):
        factors = {MODULE: {"B": size * B, "A": size * A}}
        large = write_adapter(tmp_path / str(size) / "large", "lora", factors, alpha=2)
        result = CliRunner().invoke(main, ["merge", f"{large}@1e100", "-o", str(tmp_path / "out")])
        assert (result.exit_code, "Traceback" in result.output) == (1, False), result.output
        assert said in result.stderr
    assert not list(tmp_path.glob("out/*"))
    with pytest.raises(FactorError, match="check α"):
        bora(B, A, sigma, activation="no-norm", scaling=1e10)


def test_an_update_by_itself_is_refused_too():
    update = lora(np.full((4, 1), 1e200), np.full((1, 3), 1e200))
    for find in (singular_values, singular_vectors):
        with pytest.raises(NotFiniteError, match="beyond the range of float64"):
            find(update)


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=50)
@given(data=st.data())
def test_powers_of_two_in_the_factors_change_no_bit(structure, data):
    """B 2^k and A 2^-k make the same ΔW; B 2^k alone makes 2^k ΔW. Its own oracle has the unscaled one."""
    update, _ = data.draw(updates(structure))
    power = data.draw(st.integers(-700, 700), label="power")
    plain, rank = singular_values(update), truncated(update)[2].rank_before
    for other, exponent in ((0 - power, 0), (0, data.draw(st.integers(-350, 350), label="alone"))):
        scaled = scale(update, power if other else exponent, other)
        found = singular_values(scaled)
        exact = np.ldexp(plain.values, exponent)
        noise = np.ldexp(rounding_tolerance(plain), exponent)
        np.testing.assert_array_equal(found.values[exact > noise], exact[exact > noise])
        assert (found.values[exact <= noise] <= noise).all()
        assert rounding_tolerance(found) == noise
        vectors = singular_vectors(scaled)
        real = vectors.values > vectors.rounding
        assert real.sum() == rank == truncated(scaled)[2].rank_before
        expected = np.ldexp(singular_vectors(update).values, exponent)
        np.testing.assert_array_equal(vectors.values[real], expected[real])
        np.testing.assert_allclose(scaled.to_dense(), np.ldexp(update.to_dense(), exponent), rtol=0, atol=noise)
        left, right = scaled.factors()
        np.testing.assert_allclose(left @ right, np.ldexp(update.to_dense(), exponent), rtol=1e-13, atol=noise)


def scale(update: Any, left: int, right: int) -> Any:
    """B 2^left and A 2^right in every block."""
    if isinstance(update, DirectSum):
        return replace(update, parts=tuple(scale(part, left, right) for part in update.parts))
    return replace(update, B=np.ldexp(update.B, left), A=np.ldexp(update.A, right))


@pytest.mark.parametrize("size", [1e-90, 1e90, 1e-170, 1e-300])
def test_large_and_small_factors_with_an_ordinary_product_are_right(size, tmp_path):
    rng = np.random.default_rng(0)
    B, A, sigma = rng.standard_normal((8, 2)), rng.standard_normal((2, 6)), rng.standard_normal((2, 2, 2))
    exact = scipy.linalg.svdvals(B @ A)[:2]
    update = lora(size * B, A / size)
    np.testing.assert_allclose(singular_values(update).values, exact, rtol=1e-13)
    np.testing.assert_allclose(singular_vectors(update).values, exact, rtol=1e-13)
    # Three sizes: a product of two of them is out of range.
    three = bora(size * B, A, sigma, scaling=1 / size, activation="identity")
    np.testing.assert_allclose(
        singular_values(three).values, singular_values(bora(B, A, sigma, activation="identity")).values, rtol=1e-13
    )
    done = convert(Adapter.from_updates("a", {"q": update}), tmp_path / "out", dtype="float64")
    np.testing.assert_allclose(read_adapter(done.folder)["q"].to_dense(), B @ A, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose((update - lora(B, A)).to_dense(), 0, atol=1e-14)


@pytest.mark.parametrize("size", [1e-100, 1e-170, 1e-290, 1e100])
def test_sizes_whose_squares_are_out_of_range(size):
    rng = np.random.default_rng(0)
    s, matrix = np.geomspace(1, 1e-3, 4), np.zeros((6, 5))
    matrix[:4, :4] = np.diag(s)
    matrix = np.linalg.qr(rng.standard_normal((6, 6))).Q @ matrix
    row = layer_metrics(
        Adapter.from_updates("a", {"q": dense(size * matrix), "v": lora(size * matrix[:, :4], np.eye(4, 5))})
    )
    np.testing.assert_allclose(row["frobenius_norm"], size * np.linalg.norm(s), rtol=1e-13)
    np.testing.assert_allclose(row["spectral_norm"], size, rtol=1e-13)
    np.testing.assert_allclose(row["energy"], size**2 * (s @ s), rtol=1e-13)  # 0 where that is below 5e-324
    for name, expected in (
        ("stable_rank", s @ s),
        ("participation_ratio", (s @ s) ** 2 / np.sum(s**4)),
        ("numerical_rank", 4),
        ("condition", 1e3),
    ):
        np.testing.assert_allclose(row[name], expected, rtol=1e-10, err_msg=name)
    gram = singular_values(dense(size * matrix), solver="gram").values
    np.testing.assert_allclose(gram[:4], size * s, rtol=1e-7)
    assert spectral_norm(size * matrix) == pytest.approx(size, rel=1e-9)
    counted = count(size * matrix, 0.1 * size)
    assert counted is None or counted.above == 2


def test_a_sigma_whose_sum_overflows_is_normalised_all_the_same():
    sigma = np.array([[[1.0], [2.0]], [[3.0], [-2.0]]])
    for size in (2.0**1022 / 2, 2.0**-1060):
        np.testing.assert_allclose(activate(sigma * size), activate(sigma), rtol=1e-12)


def test_the_base_models_table_names_file_and_module(tmp_path):
    save_file({"q.weight": np.eye(8, 6)}, tmp_path / "model.safetensors")
    adapter = Adapter.from_updates("bad", {"q": lora(np.full((8, 1), 1e200), np.ones((1, 6)))})
    with pytest.raises(AdapterError, match="bad: q: ΔW or its energy"):
        base_metrics(adapter, tmp_path)


@pytest.mark.parametrize("figure", ["figure1", "spectra", "pareto"])
def test_figures_of_what_overflows_end_with_one_line(folder, figure, tmp_path):
    result = CliRunner().invoke(main, ["figure", figure, str(folder), "-o", str(tmp_path / "f.svg")])
    assert result.exit_code in (1, 2)
    assert "ΔW or its energy Σσ² is beyond the range of float64" in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "f.svg").exists()


@pytest.mark.parametrize("activation", ["exp-norm", "no-norm"])
def test_an_exponential_that_overflows_says_what_to_check(activation):
    sigma = np.full((4, 4, 50), 1e-9)
    sigma[0, 0, 0] = 800  # 800 times the mean of all
    with pytest.raises(FactorError, match=r"exp\(800\) is beyond the range of float64; check σ, or the activation"):
        activate(sigma, activation)
