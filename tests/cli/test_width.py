"""Every command on a narrow terminal, with long names and in ASCII: no line is wider, names stay apart."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fleet_cases import adapter
from results_cases import store
from screens import on_screen, too_wide

from bora_analysis import sweep, synthetic_adapter, write_adapter
from bora_analysis.cli import main
from bora_analysis.cli.fleet import VIEWS
from bora_analysis.cli.grid import Block, Column, Page, View, as_text
from bora_analysis.cli.plain_text import cells_wide
from bora_analysis.fleet.sketches import sketch

TESTS = Path(__file__).parents[1]
DATA = TESTS.parent / "data"
LORA, MELORA, BORA = (str(DATA / f"trained-{name}") for name in ("lora-r8", "melora-r8-n4", "bora-r8-b8"))
SYNTHETIC = [str(DATA / f"synthetic-{name}") for name in ("bora-r8-b8", "lora-r8")]
WAYS = [(80, "utf-8"), (60, "ascii"), (80, "ascii"), (60, "cp1252")]  # the last two for part of the commands
PART = ("analyze", "long", "one-long", "no-dots", "mixed", "compare", "recommend", "similarity", "check", "cost")
DRAWN = ("report", "card")  # they take seconds and say two lines: for the narrower terminal
MIDDLE = "the_very_long_middle_part_that_every_module_of_this_unusual_model_has_in_common_with_all_the_others"
#: Commands that need a trained run, which the tests in these files have; they print on the same narrow terminals.
OF_RUNS = {name: f"training/test_{file}.py" for name, file in (
    ("train", "training"), ("evaluate", "evaluation"), ("experiment", "experiment"), ("table", "experiment"),
    ("bench-training", "benchmark"),
)}  # fmt: skip


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
    """What a sweep left of adapters with such names, and of those that were read and can be read again."""
    shapes = {f"model.layers.{k}.self_attn.{name}_proj_with_a_long_name": (24, 16) for k in range(9) for name in "qv"}
    made = {}
    for k, r in enumerate((2, 4, 8, 2, 4, 8)):
        name = f"an-adapter-with-a-name-that-is-rather-long-{k}"
        made[name] = replace(synthetic_adapter("lora", shapes, r=r, seed=k // 2, kind="decay"), name=name)
    store(folders[""] / "results", made, base_model=f"an-organisation/{MIDDLE}", sketch=sketch)
    home = folders[""] / "in"
    for k in range(3):
        adapter(home / f"another-adapter-whose-name-is-longer-than-half-a-line-{k}", seed=k)
    sweep(home, folders[""] / "swept", workers=1)
    return "results"


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
        "statistics": (["analyze", folders["long"], "--statistics"], 6),
        "compare": (["compare", LORA, MELORA, BORA], 3),
        "compare long": (["compare", folders["one"], folders["long"], folders["mixed"]], 3),
        "compare one": (["compare", folders["one"]], 1),
        "null": (["compare", folders["one"], folders["mixed"], "--null"], 2),
        "every column": (["compare", LORA, MELORA, "--columns", "budget,used,entropy,stable,99 %,energy,modules"], 2),
        "factors": (["factors", LORA, BORA, folders["long"]], 3),
        "recommend": (["recommend", SYNTHETIC[0]], 2),
        "consensus": (["recommend", folders["long"], folders["mixed"]], 2),
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


def of_others(folders, results):
    """Each command that prints words, or tables of many adapters: arguments, and its exit code."""
    pair = [f"another-adapter-whose-name-is-longer-than-half-a-line-{k}" for k in range(2)]
    return {
        "glance": ([folders["one"]], 0),
        "glance long": ([folders["long"], folders["no-dots"]], 0),
        "sweep": (["sweep", "in", "-o", "swept", "-j", 1], 0),
        "sweep with errors": (["sweep", "in", "*.safetensors", "nothing*", "-o", "swept-2", "-j", 1], 1),
        **{view: (["fleet", results, "--show", view], 0) for view in VIEWS if view != "basis"},
        "basis": (["fleet", "swept", "--show", "basis"], 0),
        "pairs": (["fleet", "swept", "--pairs", *pair], 0),
        "check": (["check", folders["one"], folders["mixed"], folders["long"], "nothing", "--fail-on", "note"], 1),
        "rules": (["check", "--rules"], 0),
        "report": (["report", folders["one"], "-o", "report.html"], 0),
        "reference": (["analyze", folders["one"], "--reference", results, "--base", "no"], 1),
        "card": (["card", folders["long"], "-o", "card.md", "--no-null"], 0),
        "figure": (["figure", "heatmap", folders["long"], "-o", "figure.svg"], 0),
        "figures": (["figure", "--list"], 0),
        "no such figure": (["figure", "spectre", folders["long"], "-o", "figure.svg"], 2),
        "no such option of it": (["figure", "spectra", folders["long"], "--lower", "-o", "figure.svg"], 2),
        "no such path": (["analyze", f"{MIDDLE}/" * 3], 1),
        "synth": (["synth", "-o", "synthetic", "--layers", 1], 0),
        "recipes": (["train", "--recipes"], 0),
        "experiments": (["experiment", "--list"], 0),
        "claims": (["paper", "--claims"], 0),
        "dashboard": (["dashboard", folders["one"], "--port", "PORT"], 1),
    }


def test_every_command_is_in_these_tests(folders, results):
    """A new command, or a new view of one, fails here until a line above shows it on a narrow terminal."""
    shown = [arguments for arguments, _ in (*commands(folders).values(), *of_others(folders, results).values())]
    for name, file in OF_RUNS.items():
        assert f'on_screen("{name}"' in (TESTS / file).read_text(encoding="utf-8"), name
    assert {str(arguments[0]) for arguments in shown} | OF_RUNS.keys() >= main.commands.keys()
    assert {arguments[3] for arguments in shown if arguments[::2][:2] == ["fleet", "--show"]} == {*VIEWS}


@pytest.mark.parametrize(("width", "encoding"), WAYS[:2])
def test_no_line_of_words_is_wider_than_the_terminal(folders, results, judged_once, monkeypatch, width, encoding):
    monkeypatch.chdir(folders[""])
    (folders[""] / "torn-with-a-name-that-is-rather-long.safetensors").write_bytes(b"torn")
    with socket.socket() as taken:  # the dashboard's server must not start
        taken.bind(("localhost", 0))
        taken.listen()
        for name, (arguments, expected) in of_others(folders, results).items():
            if width > 60 and name in DRAWN:
                continue
            typed = [taken.getsockname()[1] if each == "PORT" else each for each in arguments]
            code, out, err = on_screen(*typed, width=width, encoding=encoding)
            assert code == expected, (name, err)
            assert too_wide(out + err, 80 if name == "rules" else width) == [], name  # rules are a file
            assert (out + err).strip(), name


@pytest.mark.parametrize(("width", "encoding"), WAYS)
def test_no_line_is_wider_than_the_terminal_and_names_stay_apart(folders, judged_once, monkeypatch, width, encoding):
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
        assert too_wide(out + err, width) == [], name
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


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("alike", [True, False])
def test_two_columns_of_names_get_shorter_together(width, alike):
    """The same adapter is called the same in both, whole names and cut ones do not stand below each other."""
    names = [f"{'' if alike else chr(97 + k) * 9}-an-adapter-whose-name-takes-half-of-the-line-{k}" for k in range(4)]
    pairs = [(one, two) for k, one in enumerate(names) for two in names[k + 1 :]]
    first, second = ([*own] for own in zip(*pairs, strict=True))
    columns = [
        Column("adapter", first),
        Column("other", second, key=True, names="adapter"),
        Column("cosine", ["0.123"] * 6),
        Column("φ left", ["0.456"] * 6, spare=1),
    ]
    text = as_text(Page([Block("", columns)]), View(width=width))
    assert max(map(cells_wide, text.splitlines())) <= width
    rows = [re.split("  +", line) for line in text.splitlines() if line.endswith(("0.123", "0.456"))]
    assert len(rows) == 6
    shown = dict(zip(first, (row[0] for row in rows), strict=True)) | dict(
        zip(second, (row[1] for row in rows), strict=True)
    )
    assert len(set(shown.values())) == 4
    assert [(shown[one], shown[two]) for one, two in pairs] == [(row[0], row[1]) for row in rows]


def test_names_of_adapters_and_of_modules_get_shorter_apart():
    columns = [
        Column("adapter", [f"a-run-with-a-long-name-of-its-own/{k}" for k in "ab"]),
        Column("module", ["model.language_model.layers.0.q_proj"] * 2, key=True, names="module"),
        Column("value", ["1", "2"]),
    ]
    text = as_text(Page([Block("", columns)]), View(width=60))
    assert "adapter = a-run-with-a-long-name-of-its-own/*, of which the * is shown" in " ".join(text.split())
    assert "module = model.language_model.layers.0.*, of which the * is shown" in " ".join(text.split())
    assert [line.split() for line in text.splitlines()[-2:]] == [["a", "q_proj", "1"], ["b", "q_proj", "2"]]


def test_every_head_of_a_table_is_its_own(folders, judged_once, monkeypatch):
    monkeypatch.chdir(folders[""])
    for name, (arguments, _) in commands(folders).items():
        if name not in ("relative", "many", "check") and not name.startswith("table"):
            text = CliRunner().invoke(main, [*map(str, arguments), "--format", "markdown"]).stdout
            lines = text.splitlines()
            heads = [lines[k - 1].split(" | ") for k, line in enumerate(lines) if line.startswith("|---")]
            assert heads or name == "claims", name
            for head in heads:
                assert len(set(head)) == len(head), (name, head)
                assert "→" not in head


@pytest.mark.parametrize(("width", "encoding"), [(60, "utf-8"), (80, "utf-8"), (80, "ascii")])
@pytest.mark.parametrize("name", ["", *main.commands])
def test_help_is_within_the_terminal(name, width, encoding):
    code, out, _ = on_screen(*filter(None, [name]), "--help", width=width, encoding=encoding)
    assert code == 0
    assert too_wide(out, width) == []
