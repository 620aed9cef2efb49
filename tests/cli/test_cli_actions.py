"""convert, merge, recommend and similarity as their users meet them."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bora_analysis import analyse, recommend
from bora_analysis import read_adapter as read_any
from bora_analysis.analysis.subspaces import GRID_COLUMNS
from bora_analysis.cli import main


def read_adapter(path) -> Any:
    """An adapter, not a trajectory."""
    return read_any(path)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("adapters")
    for name, options in {
        "lora": ("--method", "lora", "-r", 4),
        "bora": ("--method", "bora", "-r", 4, "--blocks", 8),
        "fresh": ("--method", "lora", "-r", 4, "--kind", "init"),
        "run/checkpoint-9": ("--method", "lora", "-r", 4, "--seed", 1),
        "run/checkpoint-10": ("--method", "lora", "-r", 4, "--decay", 3),
        "few": ("--method", "lora", "-r", 2, "--target", "q"),
        "elsewhere": ("--shape", "8x4", "--method", "lora", "-r", 2),
    }.items():
        extra = () if "--shape" in options else ("--layers", 2)
        assert run("synth", *options, *extra, "-o", home / name).exit_code == 0
    return home


def test_convert_writes_a_lora_and_says_what_is_lost(folders, tmp_path):
    result = run("convert", folders / "bora", "-o", tmp_path / "lora", "--energy", 0.9)
    assert result.exit_code == 0, result.stderr
    assert "BoRA of 13" in result.stdout.replace("BoRA of 25", "BoRA of 13")
    assert "σ_{k+1}" in result.stdout
    assert "wrote" in result.stderr
    assert sorted(path.name for path in (tmp_path / "lora").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    records = json.loads(
        run("convert", folders / "bora", "-o", tmp_path / "again", "--energy", 0.9, "--format", "json").stdout
    )
    before, after = read_adapter(folders / "bora"), read_adapter(tmp_path / "lora")
    assert [record["module"] for record in records] == list(after)
    for record in records:
        lost = before[record["module"]].to_dense() - after[record["module"]].to_dense()
        assert np.linalg.norm(lost) == pytest.approx(record["error_frobenius"], rel=1e-5)
        assert np.linalg.norm(lost, 2) == pytest.approx(record["error_spectral"], rel=1e-5)
        assert record["energy_kept"] >= 0.9
        assert after[record["module"]].facts.r == record["rank"] < record["rank_before"] == 32


def test_convert_whole_modules_dtype_and_zero(folders, tmp_path):
    result = run("convert", folders / "lora", "-o", tmp_path / "a", "--modules", "query", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    read = read_adapter(tmp_path / "a")
    assert len(read) == 2
    assert read[next(iter(read))].facts.dtype == "bfloat16"
    zero = run("convert", folders / "fresh", "-o", tmp_path / "b")
    assert zero.exit_code == 0
    assert "4 modules have rank 0" in zero.stderr
    assert "100.00%" in zero.stdout


def test_convert_of_files_that_cannot_be(folders, tmp_path):
    for path, part in ((folders / "run", "2 checkpoints; name one"), (folders / "nowhere", "nowhere")):
        result = run("convert", path, "-o", tmp_path / "x")
        assert (result.exit_code, result.stdout) == (1, "")
        assert part in result.stderr
    own = run("convert", folders / "lora", "-o", folders / "lora")
    assert own.exit_code == 1
    assert "itself; give another one" in own.stderr
    assert not (tmp_path / "x").exists()


def test_merge_adds_with_weights(folders, tmp_path):
    result = run("merge", f"{folders / 'bora'}@-0.5", folders / "lora", f"{folders / 'few'}@2", "-o", tmp_path / "sum")
    assert result.exit_code == 0, result.stderr
    assert "few lacks 2 of 4 modules; its update there is zero" in result.stderr
    total, parts = read_adapter(tmp_path / "sum"), {n: read_adapter(folders / n) for n in ("bora", "lora", "few")}
    for module in total:
        expected = -0.5 * parts["bora"][module].to_dense() + parts["lora"][module].to_dense()
        expected += 2 * parts["few"][module].to_dense() if module in parts["few"] else 0
        np.testing.assert_allclose(total[module].to_dense(), expected, atol=1e-6 * np.abs(expected).max())
        assert total[module].facts.r == 32 + 4 + (2 if module in parts["few"] else 0)
    same = run("merge", folders / "lora", f"{folders / 'lora'}@-1", "-o", tmp_path / "zero", "--rank", 2)
    assert same.exit_code == 0
    assert "modules have rank 0" in same.stderr


def test_a_path_with_an_at_sign_is_a_path(folders, tmp_path):
    (tmp_path / "a@2").mkdir()
    for file in (folders / "lora").iterdir():
        (tmp_path / "a@2" / file.name).write_bytes(file.read_bytes())
    result = run("merge", tmp_path / "a@2", f"{tmp_path / 'a@2'}@3", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    one, four = read_adapter(folders / "lora"), read_adapter(tmp_path / "out")
    for module in one:
        np.testing.assert_allclose(four[module].to_dense(), 4 * one[module].to_dense(), atol=1e-6)


def test_merge_of_adapters_that_do_not_fit(folders, tmp_path):
    (tmp_path / "other").mkdir()
    for file in (folders / "lora").iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    for name in ("one", "two"):
        (tmp_path / "other" / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": f"org/{name}"})
        )
        (tmp_path / name).mkdir()
        for file in (tmp_path / "other").iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    result = run("merge", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "expected adapters of one base model" in result.stderr
    assert not (tmp_path / "out").exists()


def test_recommend_shows_table_settings_and_limits(folders):
    result = run("recommend", folders / "lora", folders / "bora")
    assert result.exit_code == 0, result.stderr
    assert "lora: LoRA, the rank that keeps 0.99 of Σσ²" in result.stdout
    assert "Energy is not accuracy" in " ".join(result.stdout.split())
    advice = recommend(analyse(read_adapter(folders / "lora")))
    assert json.dumps(advice.config) in result.stdout.splitlines()
    assert "cheapest r, b" in result.stdout  # of the BoRA
    pattern = run("recommend", folders / "lora", "--pattern")
    assert json.loads(pattern.stdout) == advice.config


def test_recommend_in_every_format(folders, tmp_path):
    expected = recommend(analyse(read_adapter(folders / "bora")), energy=0.9).table
    options = ("--energy", 0.9, "--format")
    csv = pd.read_csv(StringIO(run("recommend", folders / "bora", *options, "csv").stdout))
    assert csv["rank"].tolist() == expected["rank"].tolist()
    assert list(csv.columns) == list(expected.columns)
    records = json.loads(run("recommend", folders / "bora", *options, "json").stdout)
    assert [record["kept"] for record in records] == expected["kept"].tolist()
    result = run("recommend", folders / "bora", *options, "parquet", "-o", tmp_path / "a.parquet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert pd.read_parquet(tmp_path / "a.parquet")["rank"].tolist() == expected["rank"].tolist()


def test_recommend_says_nothing_about_nothing_and_goes_on(folders):
    result = run("recommend", folders / "fresh")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "ΔW = 0 in every module" in result.stderr
    both = run("recommend", folders / "fresh", folders / "run")
    assert both.exit_code == 1
    assert "run step 10: LoRA" in both.stdout


def test_similarity_table_and_grid(folders, tmp_path):
    result = run("similarity", folders / "lora", folders / "bora", "-i", 2, "-j", 3)
    assert result.exit_code == 0, result.stderr
    assert "lora (i) and bora (j)" in result.stdout
    assert "max(i, j)/d" in result.stdout
    csv = pd.read_csv(StringIO(run("similarity", folders / "lora", folders / "lora", "--format", "csv").stdout))
    assert tuple(csv.columns) == GRID_COLUMNS
    np.testing.assert_allclose(csv["phi"], 1.0, atol=1e-6)
    steps = [folders / "run" / f"checkpoint-{step}" for step in (9, 10)]
    written = run("similarity", *steps, "--format", "parquet", "-o", tmp_path / "grid.parquet")
    assert written.exit_code == 0
    grid = pd.read_parquet(tmp_path / "grid.parquet")
    assert (grid["adapter_a"][0], grid["adapter_b"][0]) == ("run step 9", "run step 10")
    assert grid[["i", "j"]].max().tolist() == [4, 4]
    partly = run("similarity", folders / "lora", folders / "few")
    assert "2 modules are in lora alone" in partly.stderr


def test_similarity_figure(folders, tmp_path):
    for name in ("a", "b"):
        result = run("figure", "similarity", folders / "lora", folders / "bora", "-o", tmp_path / f"{name}.pdf")
        assert result.exit_code == 0, result.stderr
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    nothing = run("figure", "similarity", folders / "lora", folders / "fresh", "-o", tmp_path / "c.pdf")
    assert nothing.exit_code == 2
    assert "zero in every module" in nothing.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["convert", "{}/lora"], "--output"),
        (["convert", "{}/lora", "{}/bora", "-o", "x"], "unexpected"),
        (["convert", "{}/lora", "-o", "x", "--rank", "2", "--energy", "0.9"], "rank and energy"),
        (["convert", "{}/lora", "-o", "x", "--energy", "1.5"], "1.5"),
        (["convert", "{}/lora", "-o", "x", "--modules", "("], "regular expression"),
        (["merge", "{}/lora@two", "-o", "x"], "'two' is not a weight"),
        (["merge", "-o", "x"], "PATH"),
        (["recommend", "{}/lora", "--energy", "1"], "1"),
        (["recommend", "{}/lora", "--format", "parquet"], "-o FILE"),
        (["similarity", "{}/lora"], "2 values"),
        (["similarity", "{}/lora", "{}/bora", "-i", "0"], "0"),
        (["similarity", "{}/lora", "{}/bora", "--format", "parquet"], "-o FILE"),
        (["figure", "similarity", "{}/lora", "-o", "x.pdf"], "PATH PATH"),
        (["figure", "similarity", "{}/lora", "{}/bora", "-o", "x.pdf", "--projection", "gate"], "q, v"),
    ],
)
def test_wrong_usage_is_exit_2_and_writes_nothing(folders, arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*(argument.format(folders) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert part in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_adapters_without_a_module_in_common(folders):
    result = run("similarity", folders / "lora", folders / "elsewhere")
    assert result.exit_code == 1
    assert "no module in common" in result.stderr


def test_conversion_of_safetensors_never_imports_torch(folders, tmp_path):
    code = (
        "import sys; from bora_analysis.cli import main; "
        f"main(['convert', {str(folders / 'bora')!r}, '-o', {str(tmp_path / 'o')!r}], standalone_mode=False); "
        "sys.exit(', '.join({'torch', 'peft', 'matplotlib'} & set(sys.modules)) or None)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
