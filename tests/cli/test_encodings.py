"""Consoles and pipes whose encoding lacks Greek letters and signs: Windows code pages, GBK, ASCII."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from screens import in_pipe

from bora_analysis.cli import main
from bora_analysis.cli.plain_text import spelled

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
LORA, BORA = str(DATA / "synthetic-lora-r8"), str(DATA / "synthetic-bora-r8-b8")
ENCODINGS = ("ascii", "cp1252", "cp437", "gbk")
# Name → arguments, exit code, number of the line at which an aligned table begins.
COMMANDS = {
    "analyze": (["analyze", BORA], 0, 3),
    "compare": (["compare", BORA, LORA], 0, 5),
    "factors": (["factors", BORA, LORA], 0, None),
    "recommend": (["recommend", BORA], 0, 1),
    "similarity": (["similarity", BORA, LORA, "--modules", "query"], 0, 1),
    "convert": (["convert", BORA, "-o", "ü-Ω", "--energy", "0.9", "--modules", "query"], 0, 0),
    "merge": (["merge", BORA, f"{LORA}@-1", "-o", "中文", "--modules", "query"], 0, 0),
    "cost": (["cost", "--method", "all"], 0, 1),
    "optimal blocks": (["cost", "--optimal-blocks"], 0, 1),
    "budget": (["cost", "--budget", "1M", "--top", "3"], 0, 1),
    "claims": (["paper", "--claims"], 0, None),
    "check": (["paper", "--check"], 0, 0),
    "figure": (["figure", "optimal_blocks", "-o", "фигура.svg"], 0, None),
    "figures": (["figure", "--list"], 0, None),
    "synth": (["synth", "-o", "αβγ", "--layers", "1"], 0, None),
    "no such path": (["analyze", "σ/中文"], 1, None),
    "no such model": (["cost", "--model", "λ"], 2, None),
    "no such option": (["analyze", "--Σ"], 2, None),
    **{f"help {name}": ([name, "--help"], 0, None) for name in main.commands},
}


def run(encoding, code, *arguments, cwd):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, env=environment, cwd=cwd, check=False)


def outputs(encoding):
    """What each command prints into pipes, in the current folder: its exit code and stdout, and the stderr of all."""
    found = {name: in_pipe(*arguments, encoding=encoding) for name, (arguments, _, _) in COMMANDS.items()}
    return {name: (code, out) for name, (code, out, _) in found.items()}, "".join(err for *_, err in found.values())


@pytest.fixture(scope="module")
def usual(tmp_path_factory, judged):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("utf8"))
        patch.setattr("bora_analysis.paper.claims.claims", judged.copy)
        return outputs("utf-8")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_command_prints_in_every_encoding(usual, judged_once, encoding, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, told = outputs(encoding)
    for name, (_, code, table) in COMMANDS.items():
        assert found[name][0] == code == usual[0][name][0], name
        shown, known = found[name][1], usual[0][name][1]
        assert shown.count("?") == known.count("?"), name
        assert "\\u" not in shown, name
        if table is not None:
            rows = shown.splitlines()[table:]
            rows = rows[: rows.index("") if "" in rows else None]
            rows = [row for row in rows if not row.startswith(("79,872", "{"))]  # of recommend, below its table
            assert len(rows) > 1
            assert len({len(row) for row in rows}) == 1, "\n".join(rows)
    if encoding == "ascii":
        assert "sigma>0.005" in found["compare"][1]
        assert "||Delta W||_F^2/sigma_1^2" in found["compare"][1]
    if encoding == "gbk":
        assert "σ>0.005" in found["compare"][1]  # it has the letter
    assert told.count("?") == usual[1].count("?")
    assert told.count("error: ") == usual[1].count("error: ")
    assert ("σ/中文" if encoding == "gbk" else "/\\u4e2d\\u6587") in told


def test_files_stay_utf_8_and_json_loses_nothing(tmp_path):
    name = "adäpter-中"
    (tmp_path / name).symlink_to(LORA)
    code = "from bora_analysis.cli import main; import sys; main(sys.argv[1:])"
    written = run("ascii", code, "compare", name, "--format", "csv", "-o", "out.csv", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    assert set(pd.read_csv(tmp_path / "out.csv", encoding="utf-8")["adapter"]) == {name}
    printed = run("ascii", code, "compare", name, "--format", "json", cwd=tmp_path)
    assert {record["adapter"] for record in json.loads(printed.stdout)} == {name}
    table = run("ascii", code, "compare", name, cwd=tmp_path)
    assert b"adapter-\\u4e2d" in table.stdout


def test_a_path_that_is_not_text(tmp_path):
    """A file name of bytes that are not UTF-8 reaches Python with surrogates, which UTF-8 cannot write."""
    result = CliRunner().invoke(main, ["analyze", str(tmp_path / "a\udcff")])
    assert result.exit_code == 1
    assert "a\\udcff: no such file" in result.stderr


def test_every_character_of_the_package_has_a_spelling():
    for file in (ROOT / "bora_analysis").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\ufeff" not in node.value:
                for character in set(node.value):
                    assert character == "中" or "\\" not in spelled(character) or character == "\\", (file, character)
