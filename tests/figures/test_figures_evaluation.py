"""The figures of what the task loses, and of what runs reached against their rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figure_cases import artist, gids

from bora_analysis import AdapterError, figures, layer_metrics, synthetic_adapter, write_adapter
from bora_analysis.analysis.runs import run_table

SHAPES = {f"layers.{k}.q_proj": (24, 16) for k in range(2)}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rows = []
    for name, method, top in (("one", "lora", 4), ("two", "bora", 16)):
        for keep, order, draw, rank in [
            ("all", "largest", 0, top), ("0", "largest", 0, 0), ("1", "largest", 0, 1), ("2", "largest", 0, 2),
            ("90%", "energy", 0, 1.5), *(("1", "random", draw, 1) for draw in range(3)),
        ]:  # fmt: skip
            value = 0.6 + 0.01 * rank + 0.02 * draw
            shared = {"adapter": name, "step": None, "method": method, "keep": keep, "order": order, "draw": draw}
            shared |= {"rank": rank, "n": 100}
            rows.append({**shared, "metric": "accuracy", "value": value, "low": value - 0.03, "high": value + 0.04})
            rows.append({**shared, "metric": "loss", "value": 1 - value, "low": 0.1, "high": 0.9})
    return pd.DataFrame(rows)


def test_a_line_for_each_adapter_from_nothing_to_all(table):
    figure = figures.accuracy_by_rank(table)
    assert {*gids(figure, "line:")} == {"line:one", "line:two"}
    line = artist(figure, "line:two")
    assert line.get_xdata().tolist() == [0, 1, 2, 16]
    assert line.get_ydata() == pytest.approx([0.6, 0.61, 0.62, 0.76])
    (path,) = artist(figure, "band:two").get_paths()
    corners = path.get_extents()
    assert (corners.y0, corners.y1) == pytest.approx((0.57, 0.8))
    assert artist(figure, "line:one").get_xdata()[-1] == 4  # all of it
    assert figure.axes[0].get_ylabel() == "accuracy"


def test_draws_are_one_point_with_their_range(table):
    figure = figures.accuracy_by_rank(table, order="random", labels={"one": "ours"})
    assert artist(figure, "line:one").get_ydata() == pytest.approx([0.6, 0.63, 0.64])
    (path,) = artist(figure, "band:one").get_paths()
    at_one = path.vertices[path.vertices[:, 0] == 1][:, 1]
    assert (at_one.min(), at_one.max()) == pytest.approx((0.61, 0.65))


def test_files_and_metrics(table, tmp_path):
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_json(tmp_path / "t.json", orient="records")
    table.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.json", "t.parquet"):
        line = artist(figures.accuracy_by_rank(str(tmp_path / name), metric="loss"), "line:one")
        assert line.get_ydata() == pytest.approx([0.4, 0.39, 0.38, 0.36])
    (tmp_path / "t.txt").write_text("")
    for wrong, told in [
        (lambda: figures.accuracy_by_rank(table, metric="f1"), "no metric 'f1'; it has accuracy, loss"),
        (lambda: figures.accuracy_by_rank(table, order="smallest"), "no cuts by order 'smallest'; it has largest"),
        (lambda: figures.accuracy_by_rank(table.drop(columns="rank")), "has no column rank"),
        (lambda: figures.accuracy_by_rank(table.iloc[:0]), "nothing to draw"),
        (lambda: figures.accuracy_by_rank(tmp_path / "t.txt"), "is no table; expected a .csv"),
        (lambda: figures.accuracy_by_rank(tmp_path / "no.csv"), "is no table; expected a .csv"),
    ]:
        with pytest.raises(ValueError, match=told):
            wrong()


def a_run(
    folder: Path, method: str, seed: int, value: float, outcome: str = "accuracy", status: str = "finished"
) -> None:
    sizes: Any = {"r": 2, "blocks": 4} if method == "bora" else {"r": 2}
    adapter = synthetic_adapter(method, SHAPES, seed=seed, **sizes)
    factors = {module: _parts(adapter[module], method, seed) for module in adapter}
    write_adapter(folder, method, factors, alpha=2)
    settings = {"method": method, "seed": seed, "r": 2, "metric": outcome}
    record = {"status": status or "finished", "settings": settings, "metric": {outcome: value}}
    (folder / "run.json").write_text(json.dumps(record))


def _parts(update: Any, method: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    m, n = update.shape
    parts = {"B": rng.standard_normal((m, 2)), "A": rng.standard_normal((2, n))}
    return parts | ({"sigma": rng.standard_normal((4, 4, 2))} if method == "bora" else {})


@pytest.fixture
def runs(tmp_path) -> Path:
    for seed in range(3):
        a_run(tmp_path / "runs" / "lora-r2" / f"seed-{seed}", "lora", seed, 0.8 + 0.01 * seed)
        a_run(tmp_path / "runs" / f"bora-seed-{seed}", "bora", seed, 0.7)
    a_run(tmp_path / "runs" / "stopped", "lora", 9, 0.1, status="running")
    return tmp_path / "runs"


def test_runs_that_differ_in_their_seed_are_one_point(runs):
    table = run_table(runs)
    assert sorted(zip(table["group"], table["seed"], strict=True)) == [
        ("bora", 0), ("bora", 1), ("bora", 2), ("lora-r2", 0), ("lora-r2", 1), ("lora-r2", 2),
    ]  # fmt: skip
    own = layer_metrics(runs / "bora-seed-1")["effective_rank"].mean()
    assert table.loc[(table["group"] == "bora") & (table["seed"] == 1), "effective_rank"].item() == own
    figure = figures.accuracy_by_measured_rank(runs)
    assert {*gids(figure, "group:")} == {"group:bora", "group:lora-r2"}
    lora = artist(figure, "group:lora-r2")
    assert (lora.get_xdata()[0], lora.get_ydata()[0]) == pytest.approx((2, 0.81))
    container: Any = figure.axes[0].containers[1]
    bars = container.lines[2][1].get_segments()[0]  # vertical ones: one standard deviation
    assert np.ptp(bars[:, 1]) == pytest.approx(0.02)
    assert artist(figure, "runs:lora-r2").get_ydata().tolist() == pytest.approx([0.8, 0.81, 0.82])
    assert figures.draw("accuracy_by_measured_rank", table, metric="entropy_rank")


def test_several_outcomes_are_named_and_what_cannot_be_read_is_said(runs, tmp_path):
    a_run(runs / "rating", "lora", 0, 0.5, outcome="pearson")
    with pytest.raises(ValueError, match=r"measured by accuracy and pearson; name one as y \(--y\)"):
        figures.accuracy_by_measured_rank(runs)
    assert [*gids(figures.accuracy_by_measured_rank(runs, y="pearson"), "group:")] == ["group:rating"]
    with pytest.raises(ValueError, match="no numbers 'rank'"):
        figures.accuracy_by_measured_rank(runs, y="pearson", metric="rank")
    for content in (
        "{",
        "[]",
        '{"status": "finished"}',
        '{"status": "finished", "settings": {}, "metric": {"a": "x"}}',
    ):
        (runs / "rating" / "run.json").write_text(content)
        with pytest.raises(AdapterError, match=r"run.json: not a record of a run"):
            run_table(runs)
        errors: list[Exception] = []
        assert len(run_table(runs, failed=errors.append)) == 6
        assert len(errors) == 1
    with pytest.raises(AdapterError, match="no such folder"):
        run_table(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"no finished run; expected folders"):
        run_table(tmp_path / "empty")
