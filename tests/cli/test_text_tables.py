"""Tables on narrow terminals: no line is wider, names stay apart; sorting, choosing, Markdown and LaTeX."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from fleet_cases import adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.mathtext import MathTextParser
from results_cases import store
from screens import on_screen

from bora_analysis import layer_metrics, read_adapter, sweep, synthetic_adapter, write_adapter
from bora_analysis.cli import main
from bora_analysis.cli.fleet import VIEWS
from bora_analysis.cli.grid import Block, Column, Page, View, as_text
from bora_analysis.cli.latex import escaped
from bora_analysis.cli.plain_text import cells_wide
from bora_analysis.cli.short_names import cut_to, shorter
from bora_analysis.fleet.sketches import sketch

DATA = Path(__file__).parents[2] / "data"
LORA, MELORA, BORA = (str(DATA / f"trained-{name}") for name in ("lora-r8", "melora-r8-n4", "bora-r8-b8"))
SYNTHETIC = [str(DATA / f"synthetic-{name}") for name in ("bora-r8-b8", "lora-r8")]
WAYS = [(80, "utf-8"), (60, "ascii"), (80, "ascii"), (60, "utf-8")]  # the last two for part of the commands
PART = ("analyze", "long", "one-long", "no-dots", "mixed", "compare", "recommend", "similarity", "check", "cost")
MIDDLE = "the_very_long_middle_part_that_every_module_of_this_unusual_model_has_in_common_with_all_the_others"


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Adapters whose modules have names that are hard to shorten, by what is hard."""
    home, rng = tmp_path_factory.mktemp("adapters"), np.random.default_rng(0)
    names = {
        "one": ["model.layers.0.self_attn.q_proj"],
        "long": [f"model.block{k}.{MIDDLE}.{name}" for k in range(3) for name in ("query", "value")],
        "one-long": [f"model.{MIDDLE}.query"],
        "no-dots": [f"a{k}{MIDDLE.replace('_', '')}b" for k in range(12)],
        "mixed": ["lm_head", "vision.tower.0.q_proj", *(f"model.language_model.layers.{k}.mlp.up" for k in range(3))],
        "many": [f"model.layers.{k}.{part}" for k in range(125) for part in ("q_proj", "k_proj", "mlp.up", "mlp.down")],
    }
    for name, modules in names.items():
        factors = {m: {"B": rng.standard_normal((6, 2)), "A": rng.standard_normal((2, 4))} for m in modules}
        write_adapter(home / f"an-adapter-with-a-name-that-is-rather-long-{name}", "lora", factors, alpha=2)
    return {"": home} | {name: next(home.glob(f"*-{name}")).name for name in names}


@pytest.fixture(scope="module")
def results(folders):
    """What a sweep left of adapters with such names, and of one that was read and can be read again."""
    shapes = {f"model.layers.{k}.self_attn.{name}_proj_with_a_long_name": (24, 16) for k in range(9) for name in "qv"}
    made = {}
    for k, r in enumerate((2, 4, 8, 2, 4, 8)):
        name = f"an-adapter-with-a-name-that-is-rather-long-{k}"
        made[name] = replace(synthetic_adapter("lora", shapes, r=r, seed=k // 2, kind="decay"), name=name)
    store(folders[""] / "results", made, base_model=f"an-organisation/{MIDDLE}", sketch=sketch)
    home = folders[""] / "in"
    for k in range(2):
        adapter(home / f"an-adapter-{k}", seed=k)
    sweep(home, folders[""] / "swept", workers=1)
    return "results"


@pytest.mark.parametrize(("width", "encoding"), WAYS[:2])
def test_no_line_of_sweeps_fleets_checks_and_reports_is_wider_than_the_terminal(
    folders, results, monkeypatch, width, encoding
):
    monkeypatch.chdir(folders[""])
    names = [f"an-adapter-{k}" for k in range(2)]
    (folders[""] / "torn-with-a-name-that-is-rather-long.safetensors").write_bytes(b"torn")
    commands = {
        "sweep": (["sweep", "in", "-o", "swept", "-j", 1], 0, 0),
        "sweep with errors": (["sweep", "in", "*.safetensors", "nothing*", "-o", "swept-2", "-j", 1], 1, 0),
        **{view: (["fleet", results, "--show", view], 0, 0) for view in VIEWS if view != "basis"},
        "basis": (["fleet", "swept", "--show", "basis"], 0, 0),
        "pairs": (["fleet", "swept", "--pairs", *names], 0, 1),
        "check": (["check", folders["one"], folders["mixed"], "nothing", "--fail-on", "note"], 1, 0),
        "report": (["report", folders["one"], "-o", "report.html"], 0, 0),
        "reference": (["analyze", folders["one"], "--reference", results, "--base", "no"], 1, 0),
    }
    for name, (arguments, expected, rows) in commands.items():
        code, out, err = on_screen(*arguments, width=width, encoding=encoding)
        assert code == expected, (name, err)
        wide = [line for line in (out + err).splitlines() if cells_wide(line) > width]
        assert not wide, (name, wide[0])
        assert (out + err).strip(), name
        if rows:
            assert rows_apart(out) >= rows, (name, out)


def commands(folders):
    """Each command that prints a table: arguments, and the number of rows whose names must differ."""
    return {
        "analyze": (["analyze", LORA, "--modules", "layer.[0-3]"], 8),
        "analyze bf16": (["analyze", LORA, "--threshold", "1e-9", "--modules", "query"], 6),
        "one": (["analyze", folders["one"]], 1),
        "long": (["analyze", folders["long"]], 6),
        "one-long": (["analyze", folders["one-long"]], 1),
        "no-dots": (["analyze", folders["no-dots"]], 12),
        "mixed": (["analyze", folders["mixed"]], 5),
        "many": (["analyze", folders["many"]], 500),
        "compare": (["compare", LORA, MELORA, BORA], 3),
        "compare long": (["compare", folders["one"], folders["long"], folders["mixed"]], 3),
        "compare one": (["compare", folders["one"]], 1),
        "every column": (["compare", LORA, MELORA, "--columns", "budget,used,entropy,stable,99 %,energy,modules"], 2),
        "factors": (["factors", LORA, BORA, folders["long"]], 3),
        "recommend": (["recommend", SYNTHETIC[0]], 2),
        "capture": (["capture", folders["long"], "--method", "lora", "-r", 1, "--method", "lora", "-r", 2], 2),
        "similarity": (["similarity", *SYNTHETIC, "--modules", "layer.[0-2]"], 6),
        "convert": (["convert", folders["long"], "-o", "out", "--force"], 6),
        "convert --to": (["convert", folders["long"], "-o", "to", "--to", "lora", "-r", 1, "--force"], 6),
        "merge": (["merge", folders["one"], f"{folders['one']}@2", "-o", "sum", "--force"], 1),
        "relative": (["relative", folders["one"], "--base", "base"], 1),
        "cost": (["cost"], 3),
        "cost all": (["cost", "--method", "all"], 20),
        "budget": (["cost", "--budget", "1M"], 0),
        "optimal blocks": (["cost", "--optimal-blocks"], 3),
        "paper": (["paper"], 9),
        **{f"table {k}": (["paper", "--table", k], 0) for k in range(1, 10)},
        "check": (["paper", "--check"], 0),
        "claims": (["paper", "--claims", "--columns", "id,verdict", "--top", 3], 3),
    }


@pytest.mark.parametrize(("width", "encoding"), WAYS)
def test_no_line_is_wider_than_the_terminal_and_names_stay_apart(folders, monkeypatch, width, encoding):
    from safetensors.numpy import save_file

    monkeypatch.chdir(folders[""])
    base = folders[""] / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text("{}")
    weights = {"model.layers.0.self_attn.q_proj.weight": np.eye(6, 4, dtype=np.float32)}
    save_file(weights, base / "model.safetensors")
    for name, (arguments, rows) in commands(folders).items():
        if (width, encoding) in WAYS[2:] and name not in PART:
            continue
        code, out, err = on_screen(*arguments, width=width, encoding=encoding)
        assert code == 0, (name, err)
        wide = [line for line in (out + err).splitlines() if cells_wide(line) > width]
        assert not wide, (name, wide[0])
        if rows:
            assert rows_apart(out) >= rows, (name, out)


def rows_apart(text):
    """Over the tables in a text, the largest number of rows of one; in each the rows begin with different names."""
    head = r"(module|adapter|nearest|projection|method|table|id)\b .*"
    counts = []
    for block in text.split("\n\n"):
        lines = block.splitlines()
        starts = [k for k, line in enumerate(lines) if re.fullmatch(head, line) and " = " not in line]
        if starts:  # behind the verdict and titles
            body = [line for line in lines[starts[-1] + 1 :] if not line.startswith((" ", "mean of", "total"))]
            names = [re.split(r"  +", line)[0] for line in body if re.search(r"\S  +\S", line)]
            assert len(set(names)) == len(names), names
            counts.append(len(names))
    return max(counts)


def test_what_was_dropped_is_said_and_comes_back(folders):
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


def test_columns_that_do_not_fit_stand_in_a_second_table(folders):
    columns = "bound,σ>0.005,used,entropy,stable,99 %,energy,modules,macs_per_token"
    _, out, _ = on_screen("compare", LORA, BORA, "--columns", columns, width=60)
    table = out[out.index("All modules") : out.index("Projection q")].strip().split("\n\n")
    heads = [part.splitlines()[1 if k == 0 else 0].split() for k, part in enumerate(table)]
    assert len(table) > 1
    assert all(own[0] == "adapter" for own in heads)
    names = [name for own in heads for name in own[1:]]
    assert names == ["bound", "σ>0.005", "used", "entropy", "stable", "99", "%", "Σσ²", "modules", "macs_per_token"]


def test_sort_top_and_columns_mean_the_same_everywhere(folders, tmp_path):
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


def test_markdown_is_a_table_of_github(folders):
    text = run("analyze", folders[""] / folders["mixed"], "--format", "markdown").stdout
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


def test_every_head_of_a_table_is_its_own(folders, monkeypatch):
    monkeypatch.chdir(folders[""])
    for name, (arguments, _) in commands(folders).items():
        if name not in ("relative", "many", "check") and not name.startswith("table"):
            text = run(*arguments, "--format", "markdown").stdout
            lines = text.splitlines()
            heads = [lines[k - 1].split(" | ") for k, line in enumerate(lines) if line.startswith("|---")]
            assert heads or name == "claims", name
            for head in heads:
                assert len(set(head)) == len(head), (name, head)
                assert "→" not in head


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


@pytest.mark.parametrize(("width", "encoding"), [(60, "utf-8"), (80, "utf-8"), (80, "ascii")])
@pytest.mark.parametrize("name", ["", *main.commands])
def test_help_is_within_the_terminal(name, width, encoding):
    code, out, _ = on_screen(*filter(None, [name]), "--help", width=width, encoding=encoding)
    assert code == 0
    assert [line for line in out.splitlines() if len(line) > width] == []


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
