"""Relative to the base model, against the definitions on dense matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from bora_analysis import Adapter, bora, dense, lora, write_adapter
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis import relative
from bora_analysis.analysis.relative import BASE_COLUMNS, base_metrics, intruder_dimensions
from bora_analysis.cli import main

M, N, R = 60, 50, 3


def parts(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    W0 = rng.standard_normal((M, N)) @ np.diag(0.9 ** np.arange(N))
    return W0, 0.5 * rng.standard_normal((M, R)), 0.5 * rng.standard_normal((R, N))


def by_definition(delta: np.ndarray, W0: np.ndarray, r: int, k: int, epsilon: float) -> dict[str, float]:
    U, s, Vt = np.linalg.svd(delta)
    x, s0, z = np.linalg.svd(W0, full_matrices=False)
    y, _, _ = np.linalg.svd(W0 + delta, full_matrices=False)
    cosines = np.abs(x.T @ y[:, :k]).max(axis=0)
    return {
        "relative_norm": float(np.linalg.norm(delta) / np.linalg.norm(W0)),
        "relative_spectral_norm": float(s[0] / s0[0]),
        "amplification": float(np.linalg.norm(delta) / np.linalg.norm(U[:, :r].T @ W0 @ Vt[:r].T)),
        "intruder_dimensions": int((cosines < epsilon).sum()),
        "share_left": float(np.linalg.norm(x[:, :7].T @ delta) / np.linalg.norm(delta)) ** 2,
        "share_right": float(np.linalg.norm(delta @ z[:7].T) / np.linalg.norm(delta)) ** 2,
        "share_both": float(np.linalg.norm(x[:, :7].T @ delta @ z[:7].T) / np.linalg.norm(delta)) ** 2,
    }


@pytest.mark.parametrize("at_once", [True, False])  # all singular vectors, or a few of them by iteration
@pytest.mark.parametrize("structure", ["lora", "bora", "dense"])
def test_the_definitions_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, structure: str, at_once: bool) -> None:
    if not at_once:
        monkeypatch.setattr(relative, "DENSE_UP_TO", 4)
    W0, B, A = parts()
    save_file({"model.layers.0.q_proj.weight": W0}, tmp_path / "model.safetensors")
    sigma = np.random.default_rng(9).standard_normal((2, 2, R))
    update = {"lora": lora(B, A, scaling=2.0), "bora": bora(B, A, sigma), "dense": dense(B @ A)}[structure]
    adapter = Adapter.from_updates("demo", {"layers.0.q_proj": update})
    frame = base_metrics(adapter, tmp_path, k=5, epsilon=0.5, subspace=7)
    assert tuple(frame.columns) == BASE_COLUMNS
    row = frame.iloc[0]
    assert row["directions"] == R
    expected = by_definition(update.to_dense(), W0, R, 5, 0.5)
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-8), name
    assert (row["intruder_k"], row["intruder_epsilon"], row["subspace_k"]) == (5, 0.5, 7)


def test_a_strong_new_direction_is_an_intruder_and_a_strengthened_old_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    W0, _, _ = parts()
    x, _, vt = np.linalg.svd(W0, full_matrices=False)
    mixed = x[:, :30].sum(axis=1, keepdims=True) / np.sqrt(30)  # cosine 0.18 with each of 30
    new, old = lora(100.0 * mixed, vt[:1]), lora(100.0 * x[:, 4:5], vt[4:5])
    for limit in (512, 4):
        monkeypatch.setattr(relative, "DENSE_UP_TO", limit)
        assert intruder_dimensions(new, W0, k=1) == 1
        assert intruder_dimensions(old, W0, k=1) == 0


def test_a_zero_update_amplifies_nothing(tmp_path: Path) -> None:
    W0, B, A = parts()
    save_file({"q_proj.weight": W0}, tmp_path / "model.safetensors")
    row = base_metrics(Adapter.from_updates("zero", {"q_proj": lora(0 * B, A)}), tmp_path).iloc[0]
    assert row["relative_norm"] == row["relative_spectral_norm"] == row["directions"] == row["intruder_dimensions"] == 0
    assert np.isnan(row["amplification"])


def test_an_embedding_lies_the_other_way(tmp_path: Path) -> None:
    W0, B, A = parts()
    save_file({"embed.weight": W0.T.copy()}, tmp_path / "model.safetensors")
    row = base_metrics(Adapter.from_updates("demo", {"embed": lora(B, A)}), tmp_path).iloc[0]
    assert row["amplification"] == pytest.approx(by_definition(B @ A, W0, R, 1, 0.5)["amplification"])


def test_another_model_is_refused(tmp_path: Path) -> None:
    W0, B, A = parts()
    save_file({"q_proj.weight": W0[:, :-1]}, tmp_path / "model.safetensors")
    with pytest.raises(
        AdapterError, match=r"q_proj is 60×50, but q_proj.weight of the base model has shape \(60, 49\)"
    ):
        base_metrics(Adapter.from_updates("demo", {"q_proj": lora(B, A)}), tmp_path)
    with pytest.raises(ValueError, match="expected k ≥ 1"):
        base_metrics(Adapter.from_updates("demo", {"q_proj": lora(B, A)}), tmp_path, k=0)


def test_on_the_command_line(tmp_path: Path) -> None:
    W0, B, A = parts()
    save_file({"model.layers.0.q_proj.weight": W0}, tmp_path / "model.safetensors")
    adapter = write_adapter(tmp_path / "demo", "lora", {"model.layers.0.q_proj": {"B": B, "A": A}}, alpha=3)
    run = CliRunner()
    shown = run.invoke(main, ["relative", str(adapter), "--base", str(tmp_path), "-k", "5"])
    assert shown.exit_code == 0
    assert "amplification" in shown.stdout
    table = run.invoke(main, ["relative", str(adapter), "--base", str(tmp_path), "--format", "csv"])
    assert table.stdout.splitlines()[0] == ",".join(BASE_COLUMNS)
    assert run.invoke(main, ["relative", str(adapter)]).exit_code == 2
    assert run.invoke(main, ["relative", str(adapter), "--base", str(tmp_path / "none")]).exit_code == 1


def test_a_base_model_that_is_not_finite_is_refused_by_its_key(tmp_path: Path) -> None:
    adapter = Adapter.from_updates("mine", {"q": lora(np.eye(4)[:, :1], np.eye(1, 4))})
    for wrong in (np.nan, np.inf):
        save_file({"q.weight": np.full((4, 4), wrong)}, tmp_path / "model.safetensors")
        with pytest.raises(AdapterError, match=r"q\.weight of the base model holds NaN or Inf"):
            base_metrics(adapter, tmp_path)
