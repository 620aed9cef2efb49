"""Tables: what is dropped on narrow terminals, sorting, choosing, Markdown and LaTeX, shorter names."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.mathtext import MathTextParser
from screens import on_screen

from bora_analysis import layer_metrics, read_adapter, write_adapter
from bora_analysis.cli import main
from bora_analysis.cli.grid import Block, Column, Page, View, as_text
from bora_analysis.cli.latex import escaped
from bora_analysis.cli.short_names import cut_to, shorter

DATA = Path(__file__).parents[2] / "data"
LORA, MELORA, BORA = (str(DATA / f"trained-{name}") for name in ("lora-r8", "melora-r8-n4", "bora-r8-b8"))
SYNTHETIC = [str(DATA / f"synthetic-{name}") for name in ("bora-r8-b8", "lora-r8")]


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("method", ["bora", "dora", "frod"])
def test_the_total_of_a_column_that_is_asked_for_is_its_sum(method):
    """Or that it is unknown where a part is, and a dot where parts do not add up; never nothing."""
    asked = ("macs_per_pass", "forward_flops", "backward_flops", "r", "method")
    given = ["cost", "--model", "roberta-base", "--target", "qvo", "--method", method, "--columns", ",".join(asked)]
    frame = pd.read_csv(StringIO(run(*given, "--format", "csv").stdout))
    last = next(line.split() for line in run(*given).stdout.splitlines() if line.startswith("total"))
    summed = [f"{sum(frame[name]):,.0f}" if frame[name].notna().all() else "–" for name in asked[:3]]
    assert last == ["total", *summed, "·", "·"]
    assert frame["forward_flops"].isna().all() == (method == "frod")


def test_what_was_dropped_is_said_and_comes_back():
    _, shown, _ = on_screen("compare", LORA, MELORA, BORA, width=60)
    assert "\nadapter = trained-*, of which the * is shown\n" in shown
    assert "not shown, for want of room: budget; entropy; stable (" in " ".join(shown.split())
    assert "exp H(σ/Σσ)" not in shown  # the legend is that of the columns shown
    _, asked, _ = on_screen("compare", LORA, MELORA, BORA, "--columns", "entropy,stable", width=60)
    assert "not shown" not in asked
    assert re.search(r"\n(trained-)?melora-r8-n4 +17\.83 +2\.91\n", asked)
    _, wide, _ = on_screen("compare", LORA, MELORA, BORA, width=200)
    piped = run("compare", LORA, MELORA, BORA).stdout
    tables = [text[text.index("\n\nAll modules") : text.index("\n\nbudget: ")] for text in (wide, piped)]
    assert tables[0] == tables[1]
    for line in ("trained-melora-r8-n4       a   73.7k     32    31.83   99%    17.83    2.91  18.75  130.11",):
        assert line in piped


def test_columns_that_do_not_fit_stand_in_a_second_table():
    columns = "bound,σ>0.005,used,entropy,stable,99 %,energy,modules,macs_per_token"
    _, out, _ = on_screen("compare", LORA, BORA, "--columns", columns, width=60)
    table = out[out.index("All modules") : out.index("Projection q")].strip().split("\n\n")
    heads = [part.splitlines()[1 if k == 0 else 0].split() for k, part in enumerate(table)]
    assert len(table) > 1
    assert all(own[0] == "adapter" for own in heads)
    names = [name for own in heads for name in own[1:]]
    assert names == ["bound", "σ>0.005", "used", "entropy", "stable", "99", "%", "Σσ²", "modules", "macs_per_token"]


def test_sort_top_and_columns_mean_the_same_everywhere(tmp_path):
    expected = layer_metrics(read_adapter(LORA)).sort_values("stable_rank", ascending=False, kind="stable").head(3)
    options = ("--sort", "-stable", "--top", 3, "--columns", "module,entropy_rank")
    csv = pd.read_csv(StringIO(run("analyze", LORA, *options, "--format", "csv").stdout))
    assert list(csv.columns) == ["module", "entropy_rank"]
    assert csv["module"].tolist() == expected["module"].tolist()
    np.testing.assert_array_equal(csv["entropy_rank"], expected["entropy_rank"])
    records = json.loads(run("analyze", LORA, *options, "--format", "json").stdout)
    assert [record["module"] for record in records] == expected["module"].tolist()
    lines = run("analyze", LORA, *options).stdout.splitlines()
    assert [line.split()[0] for line in lines[4:7]] == expected["module"].tolist()
    assert lines[7].startswith("mean of 12 ")
    assert run("compare", LORA, BORA, "--sort", "-energy", "--top", 1).stdout.count("\ntrained-bora-r8-b8  ") == 3
    assert run("compare", LORA, BORA, "--sort", "adapter", "-o", tmp_path / "a.json").exit_code == 0
    names = [record["adapter"] for record in json.loads((tmp_path / "a.json").read_text())]
    assert names == sorted(names)


def test_numbers_missing_come_last_and_names_in_natural_order():
    page = Page([Block("", [Column("n", ["l10", "l9", "l1"]), Column("x", ["–", "2", "3"], "", [None, 2.0, 3.0])])])
    for sort, order in (("x", "l9 l1 l10"), ("-x", "l1 l9 l10"), ("n", "l1 l9 l10"), ("-n", "l10 l9 l1")):
        lines = as_text(page, View(sort=sort)).splitlines()
        assert [line.split()[0] for line in lines[1:]] == order.split()


@pytest.mark.parametrize("form", ["table", "csv", "markdown"])
def test_an_unknown_column_is_named(form):
    result = run("analyze", LORA, "--sort", "-entropy_rnak", "--format", form)
    assert result.exit_code == 2
    assert "no column 'entropy_rnak'; did you mean entropy_rank?" in result.stderr
    assert result.stdout == ""


def test_quiet_has_the_table_alone():
    loud, quiet = (run("analyze", LORA, *more) for more in ((), ("-q",)))
    assert quiet.stderr == ""
    assert loud.stdout.startswith(quiet.stdout.rstrip("\n"))
    assert "legend" not in quiet.stdout
    assert "effective rank" in loud.stdout
    assert "effective rank" not in quiet.stdout
    assert "error: " in run("analyze", "nowhere", "-q").stderr


def test_markdown_is_a_table_of_github(tmp_path):
    rng = np.random.default_rng(0)
    names = ["lm_head", *(f"model.layers.{k}.mlp.up" for k in range(4))]
    factors = {name: {"B": rng.standard_normal((6, 2)), "A": rng.standard_normal((2, 4))} for name in names}
    write_adapter(tmp_path / "a", "lora", factors, alpha=2)
    text = run("analyze", tmp_path / "a", "--format", "markdown").stdout
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {9}
    assert rows[1] == "|---|---:|---:|---:|---:|---:|---:|---:|"
    assert rows[-1].startswith("| mean of 5 |")


@pytest.mark.parametrize("arguments", [["analyze", LORA], ["compare", LORA, BORA], ["recommend", BORA], ["cost"]])
def test_latex_has_equal_rows_and_formulas_that_parse(arguments, tmp_path):
    text = run(*arguments, "--format", "latex").stdout
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert code.isascii()
    tables = re.findall(r"\\begin\{tabular\}\{(.*?)\}\n(.*?)\\end\{tabular\}", code, re.DOTALL)
    assert tables
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(columns) - 1}
        assert [line for line in body.splitlines() if line not in rows][:2] == [r"\toprule", r"\midrule"]
    parser = MathTextParser("path")
    for formula in re.findall(r"(?<!\\)\$(.*?)(?<!\\)\$", code):
        parser.parse(f"${formula}$")
    if arguments[0] != "analyze":  # whose -o is a folder
        assert run(*arguments, "-q", "-o", tmp_path / "table.tex").exit_code == 0
        assert r"\bottomrule" in (tmp_path / "table.tex").read_text()


def test_latex_has_no_sign_of_its_own():
    assert escaped(r"50% of a_b & {c} #1 $x ^~ \y") == (
        r"50\% of a\_b \& \{c\} \#1 \$x \textasciicircum{}\textasciitilde{} \textbackslash{}y"
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["compare", LORA, "-o", "a.xlsx"], ".xlsx is no format of tables"),
        (["compare", LORA, "-o", "."], "is a folder"),
        (["analyze", LORA, "-o", "file"], "is a file"),
        (["analyze", LORA, "-o", "x", "--format", "latex"], "csv, json, parquet"),
        (["cost", "-o", "a.docx"], ".docx"),
    ],
)
def test_outputs_are_checked_before_the_work(arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr("bora_analysis.adapters.read_adapter", None)  # would fail
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr


@given(st.lists(st.from_regex(r"\A[ab0]{1,3}([./\-_][ab0]{1,3}){0,5}\Z"), min_size=1, max_size=12, unique=True))
@settings(max_examples=100)
def test_shorter_names_are_as_distinct_as_the_names(names):
    ways = list(shorter(names))
    assert ways[0] == ({name: name for name in names}, "")
    for shown, _ in ways:
        assert list(shown) == names
        assert len(set(shown.values())) == len(names)
        assert all(shown.values())
    widths = [max(map(len, shown.values())) for shown, _ in ways]
    assert widths == sorted(widths, reverse=True)


@given(st.lists(st.text("abcdef", min_size=1, max_size=40), min_size=1, max_size=40, unique=True), st.integers(12, 30))
@settings(max_examples=50)
def test_cut_names_are_distinct_and_fit(names, room):
    for gap in ("…", "..."):
        found = cut_to(names, room, gap)
        assert len(set(found.values())) == len(names)
        assert max(map(len, found.values())) <= room
