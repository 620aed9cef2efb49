"""Ranks of B', Σ', A' by step: the table, the command, and the checkpoints beside a final adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bora_analysis import Adapter, Trajectory, bora, factor_table, lora, melora, read_adapter
from bora_analysis.adapters import AdapterError, checkpoints
from bora_analysis.analysis.factors import FACTOR_COLUMNS
from bora_analysis.cli import main
from bora_analysis.updates.dense import dense


def rank(matrix):
    return int(np.linalg.matrix_rank(matrix)) if matrix.any() else 0


def test_the_ranks_are_those_of_the_dense_factors():
    rng = np.random.default_rng(0)
    B, A, sigma = rng.normal(size=(12, 3)), rng.normal(size=(3, 8)), rng.normal(size=(4, 4, 3))
    poor = B.copy()
    poor[:3] = 0  # the first block of B': its three ranks are lost
    updates = {
        "layers.0.q_proj": bora(B, A, sigma),
        "layers.0.v_proj": bora(poor, A, sigma),
        "layers.1.q_proj": lora(B, A),
        "layers.1.v_proj": melora([B[:6], B[6:]], [A[:, :4], A[:, 4:]]),
    }
    frame = factor_table(Adapter.from_updates("a", updates, step=7))
    assert tuple(frame.columns) == FACTOR_COLUMNS
    assert list(frame["step"]) == [7] * 4
    row: Any
    for row in frame.itertuples():
        parts = updates[str(row.module)].expanded()
        assert (row.rank_B, row.rank_sigma, row.rank_A) == (rank(parts.B), rank(parts.sigma), rank(parts.A))
        assert row.rank_upper == min(row.rank_B, row.rank_sigma, row.rank_A)
        assert row.rank_lower <= rank(updates[str(row.module)].to_dense()) <= row.rank_upper
    limiting = dict(zip(frame["module"], frame["limiting"], strict=True))
    # A' has blocks of two columns, so its rank is 8; B' without its first block has 9.
    assert limiting["layers.0.q_proj"] == limiting["layers.0.v_proj"] == "A'"
    assert limiting["layers.1.q_proj"] == "B', Σ', A'"


def test_a_trajectory_has_its_steps_and_others_no_rows():
    zero = bora(np.zeros((4, 1)), np.ones((1, 4)), np.zeros((2, 2, 1)))
    run = Trajectory("run", tuple(Adapter.from_updates("run", {"q": zero}, step=step) for step in (0, 5)))
    frame = factor_table(run)
    assert list(frame["step"]) == [0, 5]
    assert list(frame["rank_B"]) == [0, 0]
    assert list(frame["limiting"]) == ["B'", "B'"]
    assert factor_table(Adapter.from_updates("full", {"q": dense(np.eye(3), method="full")})).empty


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A final adapter with its checkpoints beside it, as a trainer leaves them."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    synth = ["synth", "--method", "bora", "-r", "2", "--blocks", "4", "--shape", "16x24"]
    for place, kind in {"checkpoint-0": "init", "checkpoint-10": "decay", ".": "decay"}.items():
        result = CliRunner().invoke(main, [*synth, "--kind", kind, "-o", str(folder / place)])
        assert result.exit_code == 0, result.output
    return folder


def test_checkpoints_beside_a_final_adapter(run_folder):
    final = read_adapter(run_folder)
    assert isinstance(final, Adapter)
    assert any("--steps" in line for line in final.warnings)
    assert [adapter.step for adapter in checkpoints(read_adapter(run_folder, steps=True))] == [0, 10]
    with pytest.raises(AdapterError, match="no such file or folder"):
        read_adapter(run_folder / "none", steps=True)


def test_the_command(run_folder, tmp_path):
    shown = CliRunner().invoke(main, ["factors", str(run_folder), "--steps"])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[1].split()[:7] == ["mine", "step", "0", "0", "8", "8", "8"]
    assert lines[1].endswith("B' in 1 of 1")
    assert max(map(len, lines)) <= 120
    table = tmp_path / "factors.csv"
    written = CliRunner().invoke(main, ["factors", str(run_folder), "-o", str(table)])
    assert written.exit_code == 0
    assert list(pd.read_csv(table)["rank_sigma"]) == [8]
    missing = CliRunner().invoke(main, ["factors", str(run_folder), "nowhere"])
    assert missing.exit_code == 1
    assert "rank B'" in missing.stdout
    assert CliRunner().invoke(main, ["factors", str(run_folder), "--format", "parquet"]).exit_code == 2


def test_the_trajectory_figure_takes_the_steps(run_folder, tmp_path):
    path = tmp_path / "t.svg"
    drawn = CliRunner().invoke(main, ["figure", "trajectory", str(run_folder), "-o", str(path)])
    assert drawn.exit_code == 0, drawn.output
    assert path.stat().st_size > 1000
