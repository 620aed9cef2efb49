"""``bora-analysis experiment``: plans, runs that go on, tables, the experiments of the paper."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from scipy.stats import ttest_rel
from training_models import reviews, save_encoder

from bora_analysis import layer_metrics, read_adapter
from bora_analysis.cli import main
from bora_analysis.training import TrainingError
from bora_analysis.training.experiment import paired, variants_of
from bora_analysis.training.plan import presets, read_plan

PLAN = """# Does BoRA's rank help here?
reference = "lora-r2"

[settings]
model = "{home}/encoder"
data = "{home}/reviews.csv"
label = "label"
steps = 4
batch_size = 8
learning_rate = 5e-3
validation_share = 0.3
checkpoints = []

[grid]
seed = [0, 1]

[variants.lora]
method = "lora"
r = [2]

[variants.bora]
method = "bora"
r = 2
blocks = 4
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    save_encoder(folder / "encoder")
    reviews(60).to_csv(folder / "reviews.csv", index=False)
    (folder / "plan.toml").write_text(PLAN.format(home=folder.as_posix()), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(home):
    result = CliRunner().invoke(main, ["experiment", str(home / "plan.toml"), "-o", str(home / "done"), "-j", "1"])
    assert result.exit_code == 0, result.output
    return result


def test_the_table_is_that_of_the_runs(home, done):
    runs, table = (pd.read_csv(home / "done" / name) for name in ("runs.csv", "table.csv"))
    assert runs["variant"].tolist() == ["lora-r2", "bora"] * 2
    assert runs["seed"].tolist() == [0, 0, 1, 1]
    for row in runs.to_dict("records"):
        record = json.loads((home / "done" / row["run"] / "run.json").read_text(encoding="utf-8"))
        assert record["metric"] == {row["metric"]: row["value"]}
        layers = layer_metrics(read_adapter(home / "done" / row["run"]))
        assert row["parameters"] == layers["parameters"].sum() == record["parameters"]["adapter"]
        assert row["effective_rank"] == layers["effective_rank"].mean()
    by_variant = runs.groupby("variant", sort=False)["value"]
    assert table["mean"].tolist() == by_variant.mean().tolist()
    np.testing.assert_allclose(table["sd"], by_variant.std())
    lora, bora = (runs.loc[runs["variant"] == name, "value"].to_numpy() for name in ("lora-r2", "bora"))
    assert table["difference"].tolist()[1] == pytest.approx((bora - lora).mean())
    assert "lora-r2" in done.stdout
    assert "bora/seed-1 finished, 0 left" in done.stderr


def test_a_second_start_trains_nothing(home, done):
    weights = sorted(home.glob("done/**/adapter_model.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    again = CliRunner().invoke(
        main, ["experiment", str(home / "plan.toml"), "-o", str(home / "done"), "--format", "latex"]
    )
    assert again.exit_code == 0, again.output
    assert again.stderr == ""
    assert r"\toprule" in again.stdout
    assert [path.stat().st_mtime_ns for path in weights] == before
    named = CliRunner().invoke(main, ["experiment", str(home / "plan.toml"), "-o", str(home / "done"), "--runs"])
    assert named.stdout.splitlines()[0] == "finished  runs/lora-r2/seed-0"


def test_several_workers_and_a_kill_give_the_same_adapters(home, done, tmp_path):
    """The driver and all that it started are killed as soon as one run has begun."""
    command = [sys.executable, "-m", "bora_analysis", "experiment", str(home / "plan.toml"), "-o", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "-j", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(600):
            if any(tmp_path.glob("runs/*/*/run.json")) or process.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert len(list(tmp_path.glob("runs/**/adapter_model.safetensors"))) < 4
    result = CliRunner().invoke(main, [*command[3:], "-j", "2"])
    assert result.exit_code == 0, result.output
    for path in home.glob("done/runs/*/*/adapter_model.safetensors"):
        own, other = (load_file(place) for place in (path, tmp_path / path.relative_to(home / "done")))
        for key, tensor in own.items():
            np.testing.assert_array_equal(other[key], tensor, err_msg=key)


def test_a_run_with_other_settings_is_not_taken(home, done):
    result = CliRunner().invoke(
        main, ["experiment", str(home / "plan.toml"), "-o", str(home / "done"), "--set", "steps=5"]
    )
    assert result.exit_code == 1
    assert "holds a run with steps 4, and the experiment has 5" in result.stderr


def test_a_run_that_fails_is_told_and_the_others_are_compared(home, tmp_path):
    text = PLAN.format(home=home.as_posix()).replace("blocks = 4", "blocks = [4, 5]").replace("[0, 1]", "[0]")
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    result = CliRunner().invoke(main, ["experiment", str(tmp_path / "plan.toml"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "bora-b5/seed-0: blocks is 5" in result.stderr
    assert "bora-b4" in result.stdout
    assert "bora-b5" not in result.stdout


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


SETTINGS = '[settings]\nmodel = "m"\ndata = "d"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no TOML"),
        (SETTINGS, "has no variants"),
        ("[variants.a]\nr = 2", "settings have no model; give it there, or as --model"),
        (SETTINGS + "[variants.a]\nstep = 2", "variants.a: unknown setting 'step'; did you mean steps?"),
        (SETTINGS + "[varants.a]\nr = 2", "unknown table 'varants'; did you mean variants"),
        (SETTINGS + '[variants.a]\nr = "2"', "a: r is '2'; expected int"),
        (SETTINGS + "[variants.a]\nr = true", "a: r is True; expected int"),
        (SETTINGS + "[variants.a]\nr = 0", "a: r is 0; expected at least 1"),
        (SETTINGS + "[variants]\na = 2", "variants.a is 2; expected a table"),
        (SETTINGS + "[grid]\nr = []\n[variants.a]\n", "r is an empty list"),
        (SETTINGS + "[grid]\nr = [2]\n[variants.a]\nr = 2", "r stands in the grid and in a variant"),
        ('reference = "b"\n' + SETTINGS + "[variants.a]\nr = 2", "reference is 'b'; expected one of a"),
        ('[variants.a]\nrecipe = "none"', "recipe 'none' is unknown"),
        (SETTINGS + '[variants."a/b"]\nr = 2\n[variants."a_b"]\nr = 4', "two runs would be runs/a_b/seed-0"),
    ],
)
def test_a_plan_that_cannot_be(tmp_path, text, message):
    with pytest.raises(TrainingError, match=re.escape(message)):
        read_plan(written(tmp_path, text))


def test_no_file(tmp_path):
    with pytest.raises(TrainingError, match=r"No such file.*expected a TOML file; experiments that come with"):
        read_plan(tmp_path / "absent.toml")
    assert CliRunner().invoke(main, ["experiment"]).exit_code == 2
    assert CliRunner().invoke(main, ["experiment", "x.toml", "-o", "x", "--set", "steps"]).exit_code == 2


def test_a_grid_and_lists(tmp_path):
    text = SETTINGS + (
        "[grid]\nlearning_rate = [1e-3, 3e-4]\nseed = [3, 4]\n[variants.lora]\nmethod = 'lora'\n"
        "[variants.bora]\nr = [2, 4]\nblocks = [4, 8]\n"
    )
    plan = read_plan(written(tmp_path, text))
    assert plan.variants == ("lora", "bora-r2-b4", "bora-r2-b8", "bora-r4-b4", "bora-r4-b8")
    assert plan.axes == ("learning_rate",)
    assert len(plan.runs) == len({run.folder for run in plan.runs}) == 2 * 2 * 5
    first = plan.runs[0]
    assert (first.folder, first.settings.seed, first.settings.learning_rate) == ("runs/lora-lr0.001/seed-3", 3, 1e-3)
    assert {(run.settings.r, run.settings.blocks) for run in plan.runs if run.variant == "bora-r4-b8"} == {(4, 8)}
    assert {run.settings.seed for run in read_plan(written(tmp_path, text), {"seed": 9}).runs} == {9}


@pytest.mark.parametrize("name", presets())
def test_the_experiments_of_the_paper_are_its_tables(name):
    plan = read_plan(name, {"model": "m", "data": "d"} if name.endswith("-small") else None)
    number = {"table1": 1, "figure3a": 7, "figure3b": 9, "figure3c": 8, "table8": 8, "table9": 9}
    paper = pd.read_csv(Path(__file__).parents[2] / f"data/paper/table{number[name.removesuffix('-small')]}.csv")
    columns = ["method", "r", "blocks", "target"]
    wanted = set(paper[columns].itertuples(index=False, name=None))
    own = set()
    for run in plan.runs:
        settings = run.settings
        method = f"bora-{settings.activation}" if settings.activation != "exp-norm" else settings.method
        own.add((method, settings.r, settings.blocks or 1, settings.target))
    if name.endswith("-small"):
        own, wanted = ({row[:3] for row in rows} for rows in (own, wanted))
        assert own <= wanted
        assert len(plan.runs) <= 30
    else:
        assert own == wanted
        assert len({run.settings.model for run in plan.runs}) == paper["model"].nunique()
    assert plan.reference in plan.variants


def test_differences_against_scipy():
    rng = np.random.default_rng(0)
    runs = pd.DataFrame({
        "variant": np.repeat(["a", "b", "c"], 8), "r": np.tile(np.repeat([2, 4], 4), 3), "seed": np.tile(range(4), 6),
        "metric": "accuracy", "value": rng.standard_normal(24),
    })  # fmt: skip
    table = variants_of(runs, ("r",), "a")
    for row in table[table["variant"] != "a"].to_dict("records"):
        own, other = (
            runs.loc[(runs["variant"] == name) & (runs["r"] == row["r"]), "value"] for name in (row["variant"], "a")
        )
        expected: Any = ttest_rel(own, other)
        assert row["p"] == pytest.approx(expected.pvalue)
        assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert table.loc[table["variant"] == "a", "difference"].isna().all()
    assert np.isnan(paired([0.1])[1:]).all()
    assert paired([0.1])[0] == 0.1
    assert np.isnan(paired([0.1, 0.1])[3])
    assert np.isnan(paired([])).all()
