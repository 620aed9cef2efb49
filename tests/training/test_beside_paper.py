"""An experiment's table beside the paper's numbers, and its panels beside figure 3's; no run is trained."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from figure_cases import artist, cut_texts, ydata

from bora_analysis import figures
from bora_analysis.adapters import AdapterError
from bora_analysis.cli import main
from bora_analysis.paper import tables as paper
from bora_analysis.training import TrainingError, read_plan
from bora_analysis.training.beside import beside_paper
from bora_analysis.training.experiment import experiment, read_experiment, table_of

SMALL = ("figure3a", "table1", "table8", "table9")
#: Typed from the PDF: the averages of table 1 (base, large), of table 7 and of tables 8 and 9.
TYPED = {
    "table1": {"lora-r8": (82.55, 84.38), "bora-r8-b16": (83.78, 86.51), "melora-n4-r8": (81.74, 83.70)},
    "figure3a": {"bora": (73.10, 72.24, 80.60), "bora-no-exp": (71.77, 68.51, 79.79)},
    "table8": {("lora-r8", "QKV"): (68.19,), ("bora-r8-b16", "QKV"): (72.24,), ("bora-r8-b16", "Q"): (67.87,)},
    "table9": {("lora", 8): (68.19,), ("bora-b16", 8): (72.24,)},
}


def written(name: str, folder: Path, *, skip: int = 0, **changes) -> dict[str, float]:
    """An experiment whose runs were not trained but written, but for the last ones: run → value."""
    plan = read_plan(f"{name}-small", {"model": "toy", "data": "reviews.csv", **changes})
    rng = np.random.default_rng(len(name))
    values = {}
    told = {run.folder: run for run in plan.runs[: len(plan.runs) - skip]}
    for place, run in told.items():
        # The same settings have the same value, as with training.
        same = json.dumps(run.settings.as_record(), sort_keys=True)
        values[place] = KNOWN.setdefault(same, 0.8 + 0.02 * rng.standard_normal())
        (folder / place).mkdir(parents=True)
        record = {"status": "finished", "settings": run.settings.as_record(), "seconds": 2.0, "steps": 200}
        (folder / place / "run.json").write_text(json.dumps(record | {"metric": {"accuracy": values[place]}}))
    runs = [
        {"folder": run.folder, "variant": run.variant, "point": dict(run.point), "settings": run.settings.as_record()}
        for run in plan.runs
    ]
    told = {"reference": plan.reference, "paper": plan.paper, "runs": runs, "errors": {}}
    (folder / "experiment.json").write_text(json.dumps(told))
    return values


KNOWN: dict[str, float] = {}


def run(*arguments: object):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.parametrize("name", SMALL)
def test_the_paper_s_numbers_are_those_that_were_typed(name):
    plan = read_plan(f"{name}-small", {"model": "toy", "data": "reviews.csv"})
    table = beside_paper(table_of(plan, pd.DataFrame()), plan)
    columns = [head for head in map(str, table) if head.startswith("paper_") and not head.endswith("_difference")]
    keys = ["variant", *plan.axes]
    for key, values in TYPED[name].items():
        wanted = key if isinstance(key, tuple) else (key,)
        row = table[(table[keys] == list(wanted)).all(axis=1)]
        assert tuple(row[columns].iloc[0]) == values
        base = table[(table[keys] == [plan.reference, *wanted[1:]]).all(axis=1)]
        apart = row[[f"{head}_difference" for head in columns]].iloc[0]
        if wanted[0] == plan.reference:
            assert apart.isna().all()
        else:
            np.testing.assert_allclose(apart, row[columns].iloc[0].to_numpy() - base[columns].iloc[0].to_numpy())
    assert table["n"].tolist() == [0] * len(table)
    assert (table["missing"] == 3).all()


def test_a_run_on_the_paper_s_model_has_the_value_of_its_task():
    plan = read_plan("table1")
    table = beside_paper(table_of(plan, pd.DataFrame()), plan)
    bora: Any = table[table["variant"] == "bora-r8-b16"].set_index("recipe")
    assert bora.loc["glue-rte", "paper_roberta-base"] == 76.90
    assert bora.loc["glue-rte", "paper_roberta-base_difference"] == pytest.approx(76.90 - 72.56)
    assert np.isnan(bora.loc["glue-rte", "paper_roberta-large"])
    assert np.isnan(bora.loc["glue-rte-large", "paper_roberta-base"])
    own = paper.table(1)
    for recipe, task in (("glue-stsb-large", "STS-B"), ("glue-sst2-large", "SST-2"), ("glue-mnli-large", "MNLI")):
        hit = (own["model"] == "roberta-large") & (own["task"] == task) & (own["method"] == "bora")
        assert bora.loc[recipe, "paper_roberta-large"] == own.loc[hit & (own["blocks"] == 16), "value"].item()


def test_a_method_that_the_paper_has_not_stays_empty(tmp_path):
    text = 'reference = "a"\npaper = 9\n[settings]\nmodel = "m"\ndata = "d"\nr = 8\n[variants.a]\nmethod = "lora"\n'
    (tmp_path / "plan.toml").write_text(text + '[variants.v]\nmethod = "sbora-fa"\n')
    plan = read_plan(tmp_path / "plan.toml")
    table = beside_paper(table_of(plan, pd.DataFrame()), plan)
    assert table["paper_llama-3-8b"].tolist() == pytest.approx([68.19, float("nan")], nan_ok=True)
    other = beside_paper(table_of(plan, pd.DataFrame()), plan, 1)
    assert other["paper_roberta-base"].tolist() == pytest.approx([82.55, float("nan")], nan_ok=True)
    with pytest.raises(TrainingError, match="table 4 of the paper"):
        beside_paper(table, plan, 4)
    (tmp_path / "plan.toml").write_text(text.replace("paper = 9", "paper = 4"))
    with pytest.raises(TrainingError, match="paper is 4; expected a table of BoRA, 1, 2, 3, 7, 8, 9"):
        read_plan(tmp_path / "plan.toml")


def test_the_table_of_a_folder_that_is_not_finished(tmp_path):
    values = written("table8", tmp_path, skip=4)
    half = tmp_path / "runs/bora-r8-b16-QKV/seed-2/run.json"
    half.parent.mkdir(parents=True)
    settings = read_experiment(tmp_path).runs[-1].settings.as_record()
    half.write_text(json.dumps({"status": "running", "settings": settings, "steps": 200, "history": [{"step": 40}]}))
    record = json.loads((tmp_path / "experiment.json").read_text())
    record["errors"] = {"runs/lora-r8-QKV/seed-2": "OSError: no space"}
    (tmp_path / "experiment.json").write_text(json.dumps(record))
    shown = run("table", "--from", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "4 of 18 runs missing:" in shown.stdout
    assert "runs/lora-r8-QKV/seed-2: failed: OSError: no space" in shown.stdout
    assert "runs/lora-r8-QV/seed-2: not begun" in shown.stdout
    assert "runs/bora-r8-b16-QKV/seed-2: not finished: at step 40 of 200" in shown.stdout
    assert re.search(r"bora-r8-b16 +QKV +2 of 3 .* 72\.24 \(\+4\.05\)", shown.stdout)
    told = pd.read_csv(io.StringIO(run("table", "--from", tmp_path, "--format", "csv").stdout))
    own = [values[f"runs/lora-r8-Q/seed-{seed}"] for seed in (0, 1, 2)]
    assert told["mean"][0] == pytest.approx(np.mean(own))
    assert told["sd"][0] == pytest.approx(np.std(own, ddof=1))
    assert told["missing"].tolist() == [0, 0, 1, 1, 1, 1]
    place = tmp_path / "table.tex"
    assert run("table", "--from", tmp_path, "--format", "latex", "-o", place).exit_code == 0
    latex = place.read_text(encoding="utf-8")
    assert latex.count(r"\begin{tabular}") == 1
    assert r"2 of 3 &" in latex
    assert "% 4 of 18 runs missing:" in latex
    assert "paper" not in run("table", "--from", tmp_path, "--quiet").stdout.partition("paper, llama-3-8b")[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no experiment.json; expected the folder of `bora-analysis experiment PLAN -o DIR`"),
        ("{", "experiment.json: not a record of an experiment"),
        ('{"runs": [{}], "errors": {}}', "experiment.json: not a record of an experiment"),
        ('{"runs": [], "errors": {}}', "has no runs"),
    ],
)
def test_a_folder_that_is_no_experiment(tmp_path, content, message):
    if content is not None:
        (tmp_path / "experiment.json").write_text(content)
    result = run("table", "--from", tmp_path)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    with pytest.raises((AdapterError, TrainingError)):
        read_experiment(tmp_path)


def test_figure3_of_experiments_beside_the_paper(tmp_path):
    """A run that two of the experiments have is counted once, and the projections stand in the paper's order."""
    values = {name: written(name, tmp_path / name, skip=3 if name == "table9" else 0) for name in SMALL[::2]}
    values["table9"] = written("table9", tmp_path / "table9", skip=1)
    own = figures.draw("figure3", [tmp_path])
    both = figures.draw("figure3", [tmp_path], paper=paper.tables(), width="icml")
    mean = {
        name: np.mean([value for place, value in values["figure3a"].items() if place.startswith(f"runs/{name}/")])
        for name in ("bora", "bora-no-exp", "bora-no-norm")
    }
    for name, value in mean.items():
        assert list(artist(own, f"a:{name}").get_xdata()) == pytest.approx([value])
    level = np.mean([values["table8"][f"runs/lora-r8-QV/seed-{seed}"] for seed in range(3)])
    assert ydata(own, "c:lora")[1] == pytest.approx(level)
    assert [label.get_text() for label in own.axes[2].get_xticklabels()] == ["Q", "QV", "QKV"]
    assert "1 of" in own.get_supxlabel()
    assert "runs missing" in own.get_supxlabel()
    heads = [axes.get_title(loc="left") for axes in both.axes]
    assert sorted(heads) == ["(a) ablations", "(a) own runs", "(b) own runs", "(b) rank and blocks", "(c) own runs",
                             "(c) projections"]  # fmt: skip
    above = both.axes[heads.index("(c) projections")]
    lines = {line.get_gid(): np.asarray(line.get_ydata()).tolist() for line in above.get_lines()}
    assert lines["c:bora"] == [67.87, 71.01, 72.24, 73.40, 73.88]
    assert cut_texts(both) == []
    assert cut_texts(own) == []


def test_figure3_of_an_experiment_by_the_command(tmp_path):
    written("table8", tmp_path / "out", skip=1)
    command = ("figure", "figure3", "-o", tmp_path / "a.png")
    drawn = run(*command, "--from", tmp_path / "out", "--paper")
    assert drawn.exit_code == 0, drawn.output
    assert "bora-r8-b16-QKV/seed-2: not begun" in drawn.stderr
    first = (tmp_path / "a.png").read_bytes()
    assert run(*command, tmp_path / "out", "--paper").exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == first
    alone = run(*command, "--paper")
    assert (alone.exit_code, "without PATH figure3 is that of the paper" in alone.stderr) == (2, True)


def test_figure3_of_the_table_of_runs(tmp_path):
    """runs.csv draws what the folder does."""
    values = written("figure3a", tmp_path)
    plan = read_experiment(tmp_path)
    experiment(plan, tmp_path, workers=1)  # all is finished: it writes the tables
    assert len(pd.read_csv(tmp_path / "runs.csv")) == len(values) == 9
    drawn = [figures.draw("figure3", source) for source in ([tmp_path], tmp_path / "runs.csv")]
    first, second = (list(artist(figure, "a:bora-no-exp").get_xdata()) for figure in drawn)
    assert first == pytest.approx(second)
    rows = pd.read_csv(tmp_path / "runs.csv")
    twice = pd.concat([rows, rows.assign(variant="other")])
    assert list(artist(figures.draw("figure3", twice), "a:bora-no-exp").get_xdata()) == pytest.approx(second)
    with pytest.raises(ValueError, match=r"two runs of bora, r = 8, b = 16, seed 0 reached different values"):
        figures.draw("figure3", pd.concat([rows, rows.assign(value=0.5)]))
