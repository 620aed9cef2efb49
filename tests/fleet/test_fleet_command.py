"""``fleet`` and ``analyze --reference`` on results of a sweep."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from fleet_cases import adapter
from results_cases import store

from bora_analysis import AdapterError, sweep, synthetic_adapter, write_adapter
from bora_analysis.cli import main
from bora_analysis.cli.fleet import VIEWS
from bora_analysis.fleet import numbers
from bora_analysis.fleet.numbers import read_fleet
from bora_analysis.fleet.sketches import sketch

SHAPES = {f"model.layers.{k}.self_attn.{name}": (40, 24) for k in range(9) for name in ("q_proj", "v_proj")}


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapters = {
        f"r{r}-{k}": synthetic_adapter("lora", SHAPES, r=r, seed=10 * r + k, kind="decay", decay=0.3 + 0.1 * k)
        for r in (2, 4, 8)
        for k in range(3)
    }
    return store(tmp_path_factory.mktemp("fleet") / "results", adapters)


def test_every_view_has_its_table(results: Path) -> None:
    fleet = read_fleet(results)
    assert repr(fleet) == "<Fleet of 9 adapters, 162 modules, 1 base model>"
    for view, function in zip(
        VIEWS[:4], (numbers.distributions, numbers.growth, numbers.outliers, numbers.serving_ranks), strict=True
    ):
        shown = run("fleet", results, "--show", view)
        assert shown.exit_code == 0, shown.output
        assert shown.stderr == "note: 1 adapter of the sweep could not be analysed, and left out\n"
        assert max(map(len, shown.stdout.splitlines())) <= 112
        found = run("fleet", results, "--show", view, "--format", "csv", "-q")
        pd.testing.assert_frame_equal(
            pd.read_csv(StringIO(found.stdout)), function(fleet).reset_index(drop=True), check_dtype=False
        )
    assert "Fleet of 9 adapters" in run("fleet", results).stdout
    assert "keeps 0.9 of Σσ² at rank" in run("fleet", results, "--show", "ranks", "--share", "0.9").stdout


def test_wrong_words(results: Path, tmp_path: Path) -> None:
    assert "holds no results of a sweep" in run("fleet", tmp_path).stderr
    for arguments, code, told in (
        (("--base-model", "other"), 1, "no adapter of other; there are those of org/base (9)"),
        (("--show", "growth", "--metric", "stabel_rank"), 2, "did you mean stable_rank?"),
        (("--show", "ranks", "--share", "0"), 2, "--share"),
    ):
        result = run("fleet", results, *arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert told in " ".join(result.stderr.split())
    assert run("fleet", results, "--base-model", "org/base").exit_code == 0


def test_any_share_with_spectra(results: Path) -> None:
    fleet = read_fleet(results)
    for share in (0.5, 0.99):
        frame = numbers.serving_ranks(fleet, share)
        ranks = dict(zip(frame["id"], frame["rank"], strict=True))
        spectra = fleet.results.spectra() if fleet.results else pd.DataFrame()
        for name, part in spectra.groupby("id"):
            needed = part.groupby("module")["singular_value"].agg(
                lambda s, share=share: numbers.energy_rank(s.to_numpy(), share)
            )
            assert ranks[str(name)] == needed.max()


def test_results_without_one_good_adapter(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter of the sweep could be analysed; see the column error"):
        read_fleet(store(tmp_path, {}))


def test_the_place_of_an_adapter(results: Path, tmp_path: Path) -> None:
    made = synthetic_adapter("lora", SHAPES, r=4, kind="decay", decay=0.1, seed=5)
    factors = {module: dict(zip("BA", made[module].factors(), strict=True)) for module in made}
    folder = write_adapter(tmp_path / "mine", "lora", factors, alpha=4, base_model="org/base", dtype="float32")
    result = run("analyze", folder, "--reference", results)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "mine: among the 9 adapters with the base org/base, percentiles: mean stable rank" in text
    stable = numbers.of_adapters(read_fleet(results).layers)["stable_rank"]
    from bora_analysis import layer_metrics

    own = layer_metrics(folder)["stable_rank"].mean()
    assert f"mean stable rank {own:.3g} at the {round(100 * (stable < own).mean())}th" in text
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    other = run("analyze", folder, "--reference", results)
    assert other.exit_code == 1
    assert "the reference has no adapter of org/other" in " ".join(other.stderr.split())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    assert "of all base models" in run("analyze", folder, "--reference", results).stdout


def test_pairs_and_clusters(tmp_path: Path) -> None:
    made = [synthetic_adapter("lora", SHAPES, r=2, seed=seed) for seed in (1, 2, 1)]
    adapters = {f"a{k}": replace(adapter, name=f"a{k}") for k, adapter in enumerate(made)}
    results = store(tmp_path / "results", adapters, sketch=sketch)
    table = pd.read_csv(StringIO(run("fleet", results, "--show", "similarity", "--format", "csv", "-q").stdout))
    assert [table[name].tolist()[0] for name in ("name_a", "name_b")] == ["a0", "a2"]
    assert table["cosine"].tolist()[0] == pytest.approx(1, abs=1e-6)
    assert max(map(abs, table["cosine"].tolist()[1:])) < 0.1
    double = run("fleet", results, "--show", "duplicates").stdout
    assert double.startswith("1 pair with one ΔW, but for a factor\nadapter  other  factor  same file\n")
    assert "2 clusters of 3 adapters" in run("fleet", results, "--show", "clusters").stdout
    shown = run("fleet", results, "--show", "similarity").stdout
    assert "3 pairs, org/base, the most similar first" in shown
    for view in ("similarity", "clusters", "growth"):
        drawn = run("fleet", results, "--show", view, "--figure", tmp_path / f"{view}.svg", "-q")
        assert drawn.stderr.startswith("wrote "), drawn.output
        assert (drawn.exit_code, (tmp_path / f"{view}.svg").read_bytes()[:5]) == (0, b"<?xml"), drawn.output
    wrong = run("fleet", results, "--figure", tmp_path / "x.svg")
    assert (
        wrong.exit_code,
        "--figure goes with --show growth, basis, similarity or clusters" in " ".join(wrong.stderr.split()),
    ) == (2, True)
    none = run("fleet", store(tmp_path / "none", {"a": made[0]}), "--show", "clusters")
    assert (none.exit_code, none.stdout) == (1, "")
    assert "no such file" in none.stderr


def test_exact_pairs_and_a_shared_basis(tmp_path: Path) -> None:
    from bora_analysis.fleet.basis import shared_basis
    from bora_analysis.fleet.pairs import exact_pairs

    made = [adapter(tmp_path / "in" / name, seed=seed) for name, seed in (("a", 1), ("b", 2), ("more/b", 1))]
    out = sweep(tmp_path / "in", tmp_path / "out", workers=1).results.storage.place
    found = run("fleet", out, "--pairs", "a", made[1], "--pairs", made[0], made[2], "--format", "csv", "-q")
    table = pd.read_csv(StringIO(found.stdout))
    pd.testing.assert_frame_equal(table, exact_pairs([(made[0], made[1]), (made[0], made[2])]), check_dtype=False)
    assert table["cosine"].tolist()[1] == pytest.approx(1)
    assert "2 pairs, read again" in run("fleet", out, "--pairs", "a", made[1], "--pairs", made[0], made[2]).stdout
    shown = run("fleet", out, "--show", "basis", "--share", "0.9", "--figure", tmp_path / "basis.svg")
    assert (shown.exit_code, (tmp_path / "basis.svg").read_bytes()[:5]) == (0, b"<?xml"), shown.output
    basis = shared_basis(out)
    assert f"A basis for 3 adapters, org/base: rank {basis.rank_for(0.9)} keeps 0.9 of every adapter" in shown.stdout
    found = run("fleet", out, "--show", "basis", "--format", "csv", "-q")
    pd.testing.assert_frame_equal(pd.read_csv(StringIO(found.stdout)), basis.table(), check_dtype=False)
    for arguments, code, told in (
        (("--pairs", "a", "b"), 1, "b: 2 adapters have this name; name one by its id, such as"),
        (("--pairs", "a", "nothing"), 1, "nothing: no such file or folder"),
        (("--pairs", "a", "a", "--show", "growth"), 2, "--pairs has a table of its own"),
        (("--pairs", "a", "a", "--figure", "x.png"), 2, "got --pairs"),
    ):
        result = run("fleet", out, *arguments)
        assert (result.exit_code, result.stdout) == (code, "")
        assert told in " ".join(result.stderr.split())


def test_adapters_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints by their step, other namesakes by where they are."""
    monkeypatch.chdir(tmp_path)
    for k, place in enumerate(("run/checkpoint-1", "run/checkpoint-2", "a/final", "b/final", "alone")):
        adapter(tmp_path / "in" / place, seed=k)
    sweep(tmp_path / "in", tmp_path / "out", workers=1, sketch="bora_analysis.fleet.sketches:sketch")
    for view, columns in (("ranks", 1), ("clusters", 1), ("similarity", 2)):
        shown = run("fleet", "out", "--show", view, "-q").stdout.splitlines()
        body = [re.split("  +", line)[:columns] for line in shown[2:] if "  " in line]
        names = {name for row in body for name in row}
        ends = sorted(name.rpartition("in/")[2] for name in names)
        assert ends == ["a/final", "alone", "b/final", "run step 1", "run step 2"], (view, shown)
