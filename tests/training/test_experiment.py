"""``bora-analysis experiment``: plans, runs that go on, tables, the experiments of the paper."""

from __future__ import annotations

import json
import os
import re
import shutil
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
from screens import on_screen, too_wide
from training_models import reviews, save_encoder

from bora_analysis import layer_metrics, read_adapter
from bora_analysis.analysis.runs import run_table
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


@pytest.mark.parametrize(("width", "encoding"), [(80, "utf-8"), (60, "ascii")])
def test_no_line_is_wider_than_the_terminal(home, done, tmp_path, monkeypatch, width, encoding):
    monkeypatch.chdir(tmp_path)
    name = "a-variant-with-a-name-that-is-rather-long-of-rank"
    plan = PLAN.format(home=home.as_posix()).replace("lora-r2", f"{name}-r2")
    plan = plan.replace("variants.lora", f"variants.{name}")
    (tmp_path / "plan.toml").write_text(plan, encoding="utf-8")
    folder = tmp_path / "done"
    shutil.copytree(home / "done", folder)
    (folder / "runs" / "lora-r2").rename(folder / "runs" / f"{name}-r2")
    for more, rows in (((), 6), (("--runs",), 4)):
        code, out, err = on_screen("experiment", "plan.toml", "-o", "done", *more, width=width, encoding=encoding)
        assert code == 0, err
        assert too_wide(out + err, width) == []
        assert len(out.splitlines()) >= rows
    code, out, err = on_screen("table", "--from", "done", width=width, encoding=encoding)
    assert (code, too_wide(out + err, width)) == (0, []), err


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
    assert re.search(r"bora-b4 +1 +0\.\d{4}", result.stdout)
    assert re.search(r"bora-b5 +0 of 1 +–", result.stdout)
    assert "1 of 3 runs missing:\n  runs/bora-b5/seed-0: failed: blocks is 5" in result.stdout
    assert pd.read_csv(tmp_path / "out" / "table.csv")["missing"].tolist() == [0, 0, 1]
    later = CliRunner().invoke(main, ["table", "--from", str(tmp_path / "out")])
    assert (later.exit_code, later.stdout) == (0, result.stdout)


def test_a_finished_run_with_the_same_settings_is_copied(home, done, tmp_path):
    """A plan with one run more takes the four from the other folder, and trains the fifth."""
    text = PLAN.format(home=home.as_posix()) + "[variants.wide]\nmethod = 'lora'\nr = 4\n"
    plan = written(tmp_path, text)
    command = ["experiment", str(plan), "-o", str(tmp_path / "out"), "-j", "1", "--set", "seed=0"]
    result = CliRunner().invoke(main, [*command, "--reuse", str(home / "done")])
    assert result.exit_code == 0, result.output
    assert result.stderr == "wide/seed-0 finished, 0 left\n"
    for name in ("lora-r2", "bora"):
        own, other = (folder / "runs" / name / "seed-0" for folder in (tmp_path / "out", home / "done"))
        for file in ("run.json", "adapter_model.safetensors"):
            assert (own / file).read_bytes() == (other / file).read_bytes()
    assert not list((tmp_path / "out").rglob("tmp*"))
    both = run_table([home / "done", tmp_path / "out"])
    assert len(both) == 5  # a copy is the same run, and no second one of its seed
    none = CliRunner().invoke(main, [*command[:3], str(tmp_path / "b"), "--reuse", str(tmp_path / "absent")])
    assert none.exit_code == 1
    assert "absent: no such folder" in none.stderr


def test_a_cluster_of_dask_trains_the_same_adapters(home, done, tmp_path):
    """Over the address of a scheduler, whose worker is a thread here, so that torch is loaded once."""
    from dask.distributed import LocalCluster

    settings: Any = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    made: Any = LocalCluster(processes=False, **settings)
    with made as cluster:
        engine = ["--engine", "dask", "--address", cluster.scheduler_address]
        command = ["experiment", str(home / "plan.toml"), "-o", str(tmp_path), *engine]
        first = CliRunner().invoke(main, [*command, "--reuse", str(home / "done"), "--set", "seed=0"])
        result = CliRunner().invoke(main, command)
    assert (first.exit_code, first.stderr) == (0, "")
    assert result.exit_code == 0, result.output
    assert sorted(result.stderr.split()[::4]) == ["bora/seed-1", "lora-r2/seed-1"]
    for path in home.glob("done/runs/*/*/adapter_model.safetensors"):
        assert (tmp_path / path.relative_to(home / "done")).read_bytes() == path.read_bytes()
    lost = CliRunner().invoke(main, [*command[:3], str(tmp_path / "b"), "--engine", "loky", "--address", "tcp://x:1"])
    assert lost.exit_code == 1
    assert "engine loky works on this machine; expected no address" in lost.stderr


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
