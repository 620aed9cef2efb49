"""The bundled adapters are what data/README.md says they are."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from bora_analysis import Adapter, factor_table, layer_metrics, read_adapter, recommend, singular_values
from bora_analysis.adapters import checkpoints
from bora_analysis.cli import main
from bora_analysis.training import read_plan

DATA = Path(__file__).parents[1] / "data"
README = (DATA / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"`bora-analysis (synth [^`]*-o data/(\S+))`", README)


def maker() -> Any:
    """The script that trained the adapters."""
    return script("make_adapters")


def script(name: str) -> Any:
    """A script of the data folder, which may import its neighbours."""
    sys.path.insert(0, str(DATA))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(DATA))


def tables() -> dict[str, str]:
    return {name: table() for name, table in script("tables").TABLES.items()}


def bundled(name: str) -> Adapter:
    (adapter,) = checkpoints(read_adapter(DATA / name))
    return adapter


def test_every_synthetic_folder_has_its_command():
    assert {name for _, name in COMMANDS} == {folder.name for folder in DATA.glob("synthetic-*")}
    assert {bundled(name).method for _, name in COMMANDS} == {"lora", "melora", "bora"}


@pytest.mark.parametrize(("command", "name"), COMMANDS)
def test_the_command_makes_the_same_adapter(command, name, tmp_path):
    """To float32 rounding: another processor's LAPACK may round a factor's last bit the other way."""
    arguments = shlex.split(command)
    arguments[-1] = str(tmp_path / name)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    made, shipped = (load_file(home / name / "adapter_model.safetensors") for home in (tmp_path, DATA))
    assert made.keys() == shipped.keys()
    for key, tensor in shipped.items():
        np.testing.assert_allclose(made[key], tensor, rtol=1e-5, atol=1e-7)
    config = "adapter_config.json"
    assert (tmp_path / name / config).read_bytes() == (DATA / name / config).read_bytes()


def test_the_spectra_are_the_ones_promised():
    expected = 0.2 * np.arange(1, 9) ** -2.0
    for name, times in (("synthetic-lora-r8", 1), ("synthetic-melora-r8-b4", 4)):
        for update in bundled(name).values():
            np.testing.assert_allclose(singular_values(update).values, np.repeat(expected, times), rtol=1e-5)


def test_the_readme_says_what_was_trained_and_measured():
    made = maker()
    for name, table in tables().items():
        assert table in README, name
    for name, words in made.ADAPTERS.items():
        assert f"| `trained-{name}` | `bora-analysis train MODEL --task classification" in README
        assert f"{words} BUDGET -o" in README
    assert made.BUDGET in README
    rows = {made.run_of(row): row for row in made.read_results()}
    assert set(made.runs("bundled")) <= rows.keys() <= set(made.runs())
    assert {row["steps"] for row in rows.values()} == {"400"}  # equal budgets
    assert {row["batch_size"] for run, row in rows.items() if run.adapter != made.FULL} == {"8"}
    for run, row in rows.items():
        if run.bundled:
            record = json.loads((run.bundle / "run.json").read_text(encoding="utf-8"))
            assert record["metric"][row["metric"]] == pytest.approx(float(row["value"]), abs=1e-6)
            assert record["parameters"]["adapter"] == int(row["parameters"])
            assert record["settings"]["learning_rate"] == float(row["learning_rate"]) == float(run.rate)
            assert record["settings"]["batch_size"] == int(row["batch_size"])
            assert shlex.join(made.command(run)).endswith(f"--seed {record['settings']['seed']} -o {run.folder}")
            for package, version in record["versions"].items():
                assert f"{package} {version.partition('+')[0]}" in README


def test_the_trained_adapters_are_small_enough_to_ship():
    weights = [*DATA.glob("trained-*/*"), *DATA.glob("runs/*/*/*")]
    assert 10e6 < sum(path.stat().st_size for path in weights) <= 25e6


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("lora-r8", 8, 8),
        ("lora-r16", 16, 16),
        ("lora-r32", 32, 32),
        ("bora-r8-b8", 50, 64),
        ("bora-r8-b16", 100, 128),
    ],
)
def test_effective_ranks_of_figure_4(name, low, high):
    """LoRA's is r in every query layer; BoRA's is near br, and its energy well above LoRA's."""
    layers = layer_metrics(bundled(f"trained-{name}"))
    queries = layers[layers["projection"] == "q"]
    assert len(queries) == 6
    assert queries["effective_rank"].between(low, high).all()
    if name.startswith("bora"):
        plain = layer_metrics(bundled("trained-lora-r8"))
        assert queries["energy"].sum() > 2 * plain.loc[plain["projection"] == "q", "energy"].sum()


@pytest.mark.parametrize("name", ["lora-r8", "melora-r8-n4", "bora-r8-b8", "bora-r8-b16"])
def test_trajectories_begin_at_zero_and_end_with_the_adapter(name):
    run = checkpoints(read_adapter(DATA / "runs" / name))
    assert [adapter.step for adapter in run] == [0, 10, 20, 40, 80, 120, 160, 240, 320, 400]
    ranks = layer_metrics([run[0], run[3], run[-1]]).groupby("step")["effective_rank"].mean()
    assert ranks.loc[0] == 0
    assert ranks.loc[0] < ranks.loc[40] <= ranks.loc[400]
    last, shipped = factor_table(run[-1]), factor_table(bundled(f"trained-{name}"))
    assert last["rank_B"].equals(shipped["rank_B"])
    module = next(iter(run[-1]))
    np.testing.assert_array_equal(run[-1][module].to_dense(), bundled(f"trained-{name}")[module].to_dense())
    first = factor_table(run[0])
    assert set(first["limiting"]) == {"B'"}
    assert (first["rank_B"] == 0).all()


TASKS = {"movies": "trained-", "products": "trained-rating-"}


def test_what_the_readme_says_of_ranks_and_energy() -> None:
    told = " ".join(README.split())
    frames = {
        (task, name): layer_metrics(DATA / f"{start}{name}")
        for task, start in TASKS.items()
        for name in ("lora-r8", "bora-r8-b8", "bora-r8-b16", "bora-r8-b8-no-exp")
    }
    rank = {key: f"{each['effective_rank'].min()}–{each['effective_rank'].max()}" for key, each in frames.items()}
    small, large = ("bora-r8-b8", "bora-r8-b16")
    assert f"{rank['movies', small]} of 64 and {rank['movies', large]} of 128 directions on the first task" in told
    assert f"{rank['products', small]} and {rank['products', large]} on the second" in told
    energy = {key: each["energy"].sum() for key, each in frames.items()}
    more = {key: f"{value / energy[key[0], 'lora-r8']:.1f}" for key, value in energy.items()}
    assert f"is {more['movies', small]} (b = 8) and {more['movies', large]} (b = 16) times LoRA's on the first" in told
    assert f"{more['products', small]} and {more['products', large]} on the second, is no sign of learning" in told
    plain = "bora-r8-b8-no-exp"
    assert f"the ratio is {more['movies', plain]} and {more['products', plain]}." in told


def test_the_differences_to_lora_are_those_of_the_results() -> None:
    table = pd.read_csv(DATA / "results.csv")
    table = table[(table["variant"] == "plain") & (table["learning_rate"] == 1e-3)]
    results = table.set_index(["task", "adapter", "seed"]).sort_index()["value"] * 100
    text = README.replace("−", "-")
    for name in set(results.index.get_level_values("adapter")) - {"lora-r8"}:
        apart = [results[task, name] - results[task, "lora-r8"] for task in TASKS]
        cells = [f"{each.min():+.1f} to {each.max():+.1f}" for each in apart]
        assert f"| {name} | {cells[0]} | {cells[1]} |" in text, (name, cells)


def test_the_sizes_of_what_the_experiments_add() -> None:
    weights = [path.stat().st_size for path in DATA.glob("full/*/*.safetensors")]
    assert len(weights) >= 2
    assert max(weights) <= 4e6
    added = sum(path.stat().st_size for folder in ("full", "seeds", "advice") for path in (DATA / folder).rglob("*"))
    assert added <= 25e6


def test_full_fine_tuning_is_read_without_the_base_model_and_captured_as_told() -> None:
    """LoRA's shares against a dense SVD; BoRA's are at least those of its start, LoRA of the same r."""
    table = pd.read_csv(DATA / "capture.csv")
    assert set(table["adapter"]) <= {folder.name for folder in (DATA / "full").iterdir()}
    for name in set(table["adapter"]):
        adapter = bundled(f"full/{name}")
        assert adapter.method == "full"
        record = json.loads((DATA / "full" / name / "run.json").read_text(encoding="utf-8"))
        assert 0 < record["rounding"] < 2.0**-11
        for module in list(adapter)[::5]:
            squares = np.linalg.svd(adapter[module].to_dense(), compute_uv=False) ** 2
            own = table[(table["adapter"] == name) & (table["module"] == module)].set_index(["method", "r", "blocks"])
            for r in (8, 9, 11):
                expected = squares[:r].sum() / squares.sum()
                assert own.loc[("lora", r, 1), "captured"] == pytest.approx(expected, abs=1e-9)
            for b in (8, 16):
                assert own.loc[("bora", 8, b), "captured"] >= own.loc[("lora", 8, 1), "captured"]


def test_the_tables_of_the_seeds_are_those_of_the_adapters() -> None:
    """To float32's rounding, for the runs whose adapters are bundled."""
    made = maker()
    layers = pd.read_parquet(DATA / "seeds/layer_metrics.parquet")
    spectra = pd.read_parquet(DATA / "seeds/spectra.parquet")
    keys = ["task", "adapter", "variant", "learning_rate", "seed"]
    known = pd.read_csv(DATA / "results.csv")[keys].apply(tuple, axis=1)
    compared = 0
    for key, part in layers.groupby(keys):
        assert key in set(known)
        run = made.run_of(dict(zip(keys, key, strict=True)))
        if run.bundled:
            own = layer_metrics(run.bundle)
            for column in ("module", "effective_rank", "rank_bound", "parameters"):
                assert part[column].tolist() == own[column].tolist()
            np.testing.assert_allclose(part["energy"], own["energy"], rtol=1e-5)
            compared += 1
    assert compared >= 3
    sums = (
        spectra.assign(energy=spectra["singular_value"].astype(float) ** 2).groupby([*keys, "module"])["energy"].sum()
    )
    whole = layers.set_index([*keys, "module"])["energy"]
    np.testing.assert_allclose(sums.to_numpy(), whole.loc[sums.index].to_numpy(), rtol=1e-5)


def test_the_advice_is_what_recommend_says_of_the_bundled_adapters() -> None:
    made = maker()
    for run in made.runs("advised"):
        if run.seed == 0:
            told = json.loads((DATA / "advice" / f"{run.task}-{run.adapter}.json").read_text(encoding="utf-8"))
            assert told == json.loads(json.dumps(recommend(run.bundle).config))


def test_a_student_reaches_what_its_method_can_represent(monkeypatch) -> None:
    """LoRA's distilled ΔW against Eckart and Young, and its rank; the table has every run."""
    task = script("rank_task")
    matrix = task.target("1/k", 0)
    assert np.linalg.norm(matrix) == pytest.approx(task.NORM)
    np.testing.assert_allclose(
        np.linalg.svd(matrix, compute_uv=False) * np.arange(1, task.SIZE + 1), np.linalg.norm(matrix, 2), rtol=1e-10
    )
    student = task.STUDENTS["LoRA r = 6"]
    change = task.distil(student, matrix, 1e-2, 0, steps=300)
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    most = squares[:6].sum() / squares.sum()
    assert most - 0.02 < task.captured(matrix, change) < most + 1e-6
    assert np.linalg.matrix_rank(change, tol=1e-4) == 6
    assert task.reachable(student, matrix)[0] == pytest.approx(most, abs=1e-9)
    rows = pd.read_csv(task.TABLE)
    columns = ["spectrum", "student", "learning_rate", "seed"]
    assert [tuple(row) for row in rows[columns].itertuples(index=False)] == list(task.runs())
    exact = rows[rows["student"].str.contains("LoRA")]
    assert (exact["trained"] <= exact["reachable"] + 1e-5).all()
    assert set(rows["parameters"]) == {768}


def test_the_experiments_are_those_of_the_plans() -> None:
    """Each row is a run of its plan, with the parameters that the shapes give; runs of several plans are one run."""
    made = script("make_experiments")
    tables = {name: pd.read_csv(path) for name, path in made.TABLES.items()}
    for name, plan in ((name, made.plan_of(name)) for name in made.NAMES):
        own = tables[name][tables[name]["experiment"] == name]
        keys = ["variant", "r", "target", "seed"]
        planned = {(run.variant, run.settings.r, run.settings.target, run.settings.seed): run for run in plan.runs}
        found = list(own[keys].itertuples(index=False, name=None))
        assert len(set(found)) == len(found) >= 8, name
        assert set(found) <= planned.keys(), name
        assert own.groupby(keys[:3])["seed"].apply(sorted).map(lambda seeds: seeds in ([0, 1], [0, 1, 2])).all(), name
        for key, row in zip(found, own.to_dict("records"), strict=True):
            settings = planned[key].settings
            b = settings.blocks or 0
            assert row["steps"] == settings.steps
            assert row["parameters"] == 6 * len(row["target"]) * row["r"] * (384 + 384 + b * b)
            assert row["effective_rank"] <= row["rank_bound"] == row["r"] * max(b, 1)
            assert 0 < row["value"] < 1
            for package in row["versions"].split(", "):
                assert package in README
    every = pd.concat(tables[name] for name in ("figure3a", "gain")).drop_duplicates()
    plain = every[every["variant"] != "bora-gain-1"]
    assert plain.groupby(["method", "r", "blocks", "target", "seed"])["value"].nunique().eq(1).all()


def test_what_the_readme_says_of_the_experiments() -> None:
    """The claims' differences against scipy; the bundled runs have the settings of the small table 1."""
    from scipy.stats import ttest_rel

    told = (DATA.parent / "docs/paper.md").read_text(encoding="utf-8")
    assert script("tables").claim_table() in told
    runs = pd.read_csv(DATA / "experiments.csv")
    ablations = (
        runs[runs["experiment"] == "figure3a"].pivot_table(index="seed", columns="variant", values="value") * 100
    )
    for name, claim in (("bora-no-exp", "Without Exp"), ("bora-no-norm", "Without Norm")):
        test: Any = ttest_rel(ablations[name], ablations["bora"])
        low, high = test.confidence_interval()
        middle = (ablations[name] - ablations["bora"]).mean()
        cell = f"{middle:+.2f} [{low:+.2f}, {high:+.2f}], {test.pvalue:.2g}".replace("-", "−")
        assert re.search(rf"\| {claim} BoRA .* \| {re.escape(cell)} \| 3 \|", told)
    gain = pd.read_csv(DATA / "gain.csv")
    gain = gain.assign(value=100 * gain["value"])
    means = gain.pivot_table(index="seed", columns="variant", values="value").mean()
    ranks = gain.groupby("variant")["effective_rank"].mean()
    apart = [means[name] - means["lora"] for name in ("bora-no-exp", "bora-no-norm")]
    said = " ".join(README.split())
    assert f"of the same rank, loses {means['bora'] - means['bora-gain-1']:.1f} points with each seed" in said
    by_seed = gain.pivot_table(index="seed", columns="variant", values="value")
    assert (by_seed["bora"] > by_seed["bora-gain-1"]).all()
    assert f"({apart[0]:+.1f} and {apart[1]:+.1f} points)".replace("-", "−") in said
    assert f"the effective rank is {ranks['bora-no-norm']:.0f} of 128 in place of {ranks['bora']:.0f}" in said
    assert (gain["rank_bound"].max(), round(np.sinh(4) / 4, 1), round(4 / 3, 1)) == (128, 6.8, 1.3)
    bundled_runs = script("make_adapters")
    plan = read_plan("table1-small", {"model": "m", "data": "d"})
    rows = {row.variant: row.settings for row in plan.runs}
    for name, variant in script("tables").TABLE_1.items():
        record = json.loads((DATA / f"trained-{name}" / "run.json").read_text(encoding="utf-8"))["settings"]
        wanted = rows[variant].as_record()
        for key in ("method", "r", "steps", "batch_size", "learning_rate", "max_length", "group_by_length", "target"):
            assert record[key] == wanted[key], (name, key)
        assert (record["blocks"] or 0) == (wanted["blocks"] or 0)
    assert bundled_runs.SEEDS == (0, 1, 2)
