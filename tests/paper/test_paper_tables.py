"""The paper's tables as data: complete, consistent with each other, and with what the architectures give."""

from __future__ import annotations

import json
from fractions import Fraction
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from bora_analysis.catalogue.architectures import ARCHITECTURES
from bora_analysis.cli import main
from bora_analysis.paper import tables as paper

FOLDER = Path(__file__).parents[2] / "data" / "paper"
HEADER = "table,model,method,r,blocks,target,params,task,value,std"
ACCURACY = [1, 2, 3, 7, 8, 9]


def run(*arguments):
    return CliRunner().invoke(main, ["paper", *map(str, arguments)])


def average(k, model, method, r, blocks, target="QKV"):
    frame = paper.table(k)
    key = pd.Series({"model": model, "method": method, "r": r, "blocks": blocks, "target": target, "task": "Avg"})
    (row,) = frame[(frame[list(key.index)] == key).all(axis=1)].to_dict("records")
    return row["value"], row["std"]


# --- The files


def test_one_file_per_table_with_exactly_the_columns():
    files = sorted(FOLDER.glob("*.csv"))
    assert [file.name for file in files] == [f"table{k}.csv" for k in range(1, 10)]
    for k, file in enumerate(files, 1):
        text = file.read_text(encoding="utf-8")
        assert text.splitlines()[0] == HEADER
        assert all(line.startswith(f"{k},") for line in text.splitlines()[1:])
        assert "\r" not in text


def test_every_table_is_complete():
    frame = paper.tables()
    runs = frame.drop_duplicates(["table", *paper.SETTING]).groupby("table").size()
    assert runs.to_dict() == {1: 16, 2: 24, 3: 24, 4: 5, 5: 16, 6: 24, 7: 9, 8: 10, 9: 42}
    tasks = frame.groupby("table")["task"].nunique()
    assert tasks.to_dict() == {1: 9, 2: 7, 3: 9, 4: 2, 5: 8, 6: 2, 7: 7, 8: 7, 9: 7}
    assert frame.groupby("table").size().to_dict() == (runs * tasks).to_dict()  # every run has every task
    assert not frame.duplicated(["table", *paper.SETTING, "task"]).any()
    assert frame["value"].notna().all()
    assert frame[frame["table"].isin(ACCURACY)]["value"].between(20, 100).all()
    assert list(frame.columns) == paper.COLUMNS


def test_names_are_those_that_were_agreed():
    frame = paper.tables()
    assert set(frame["model"]) == set(ARCHITECTURES) - {"all-minilm-l6-v2"}
    assert set(frame["method"]) == {"lora", "dora", "melora", "hydralora", "bora", "bora-no-exp", "bora-no-norm"}
    blocks = {method: set(part["blocks"]) for method, part in frame.groupby("method")}
    assert [blocks[method] for method in ("lora", "dora", "hydralora", "melora")] == [{1}, {1}, {1}, {4}]
    targets = {k: set(part["target"]) for k, part in frame.groupby("table")}
    assert targets.pop(8) == {"Q", "QV", "QKV", "QKVUD", "QKVOGUD"}
    assert {k for k, found in targets.items() if found == {"QV"}} == {1, 5}
    assert {k for k, found in targets.items() if found == {"QKV"}} == {2, 3, 4, 6, 7, 9}


def test_standard_deviations_are_those_of_tables_5_and_6():
    frame = paper.tables()
    std = frame["std"].notna()
    expected = ((frame["table"] == 1) & (frame["task"] != "Avg")) | (
        frame["table"].isin([2, 3]) & (frame["task"] == "Avg")
    )
    assert (std == expected).all()
    keys = [*paper.SETTING, "task"]
    for k, home, rename in (
        (1, 5, {}),
        (2, 6, {"Avg": "math_avg"}),
        (3, 6, {"Avg": "commonsense_avg"}),
    ):
        carried = paper.table(k).dropna(subset="std").replace({"task": rename}).set_index(keys)["std"]
        printed = paper.table(home).set_index(keys)["value"]
        assert (printed.loc[carried.index] == carried).all()


@pytest.mark.parametrize(
    ("key", "value", "std"),
    [
        ((1, "roberta-base", "bora", 8, 16, "QV"), 83.78, None),  # the row that bore RoBERTa-Large's label
        ((1, "roberta-large", "bora", 8, 8, "QV"), 85.83, None),  # the row that had slipped a cell
        ((1, "roberta-large", "lora", 8, 1, "QV"), 84.38, None),
        ((2, "gemma-7b", "bora", 8, 16), 73.10, 0.44),
        ((2, "llama-3-8b", "lora", 8, 1), 68.19, 0.88),
        ((2, "llama-3-8b", "bora", 8, 16), 72.24, 0.38),
        ((2, "qwen2.5-14b", "bora", 8, 16), 80.60, 0.32),
        ((3, "qwen2.5-14b", "bora", 8, 16), 91.82, 0.01),
        ((7, "llama-3-8b", "bora-no-norm", 8, 16), 68.48, None),
        ((8, "llama-3-8b", "lora", 8, 1, "QKVOGUD"), 72.23, None),
        ((9, "llama-3-8b", "bora", 64, 64), 73.91, None),
    ],
)
def test_single_values(key, value, std):
    found, deviation = average(*key)
    assert found == value
    assert deviation == std if std else pd.isna(deviation)


# --- The checks


def test_every_params_entry_is_what_the_architecture_gives():
    frame = paper.check()
    assert frame.groupby("table").size().to_dict() == {1: 16, 2: 24, 3: 24, 4: 5, 8: 10, 9: 42}
    wrong = frame[frame["paper"] != frame["computed"]]
    assert wrong.empty, wrong.to_string()
    assert frame["ok"].all()


def test_the_architecture_tells_the_models_of_a_table_apart():
    """So a label on the wrong row cannot pass the check: the digits of another model would differ."""
    frame = paper.check()
    for _, part in frame[frame["table"] <= 3].groupby("table"):
        for row in part.to_dict("records"):
            setting = row["method"], row["r"], row["blocks"], row["target"]
            fits = [
                model
                for model in part["model"].unique()
                if paper.as_printed(paper.parameters(model, *setting), row["paper"]) == row["paper"]
            ]
            assert fits == [row["model"]]


def test_the_check_computes(monkeypatch):
    """Another architecture gives other numbers, and the check says so."""
    monkeypatch.setitem(ARCHITECTURES, "gemma-7b", ARCHITECTURES["llama-3-8b"])
    frame = paper.check()
    assert set(frame[~frame["ok"]]["model"]) == {"gemma-7b"}
    result = run("--check")
    assert result.exit_code == 1
    assert result.stderr == "error: 16 of 121 #Params entries differ from the architecture's count\n"
    assert result.stdout.count("  NO\n") == 16


@pytest.mark.parametrize(
    ("count", "printed", "expected"),
    [
        (4_816_896, "4.82M", "4.82M"),
        (589_824, "0.59M", "0.59M"),  # rounded, not cut: 0.5898
        (14_155_776, "14.2M", "14.2M"),
        (22_020_096, "22.0M", "22.0M"),
        (2_500_000, "7M", "3M"),
        (4_000_000, "4.82M", "4.00M"),
    ],
)
def test_digits_as_printed(count, printed, expected):
    assert paper.as_printed(count, printed) == expected


@pytest.mark.parametrize("printed", ["", "4.82", "4,82M", "4.82MB", "M"])
def test_what_is_no_number_of_millions_is_refused(printed):
    with pytest.raises(ValueError, match=r"4\.82M"):
        paper.as_printed(1, printed)


def test_averages_are_means_of_their_sub_tasks_but_for_three():
    frame = paper.averages()
    assert len(frame) == 16 + 9 + 10 + 42
    off = frame[~frame["ok"]]
    assert list(zip(off["table"], off["r"], off["blocks"], off["target"], off["avg"], strict=True)) == [
        (8, 8, 16, "QKVUD", 73.40),
        (9, 2, 4, "QKV", 67.65),
        (9, 2, 64, "QKV", 68.53),
    ]
    assert frame["explained"].all()


def test_rebuilt_averages_are_the_means_rounded_half_to_even():
    """As the paper does: 72.245, 73.095 and 80.605 stand in table 7 as 72.24, 73.10 and 80.60."""
    halves = 0
    for k in (2, 3):
        rows = paper.wide(k)
        hundredths = (rows.iloc[:, 6:-1] * 100).round().astype(int)
        for total, avg in zip(hundredths.sum(axis=1), rows["Avg"], strict=True):
            mean = Fraction(int(total), hundredths.shape[1])
            halves += mean.denominator == 2
            assert round(mean) == round(avg * 100)
    assert halves == 9


def test_runs_printed_twice_agree():
    frame = paper.repeats()
    assert len(frame) == 7 * 7  # seven runs, six sub-tasks and the average
    assert frame["ok"].all()
    assert set(frame["tables"]) == {"2, 7", "2, 9", "2, 8, 9", "2, 7, 8, 9"}


def test_disagreeing_repeats_are_seen(monkeypatch):
    table = paper.table
    monkeypatch.setattr(paper, "table", lambda k: table(k).assign(value=table(k)["value"] + (0.01 if k == 9 else 0)))
    frame = paper.repeats()
    assert set(frame[~frame["ok"]]["tables"]) == {"2, 9", "2, 8, 9", "2, 7, 8, 9"}


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="1 to 9"):
        paper.table(10)


# --- The command


def test_the_command_lists_the_tables():
    result = run()
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == [str(k) for k in range(1, 10)]
    assert [record["runs"] for record in json.loads(run("--format", "json").stdout)] == [
        16,
        24,
        24,
        5,
        16,
        24,
        9,
        10,
        42,
    ]


def test_the_command_prints_a_table_as_in_the_paper():
    lines = run("--table", 2).stdout.splitlines()
    heads = "model method r b target #Params AddSub MultiArith SingleEq GSM8K AQuA SVAMP Avg"
    assert lines[1].split() == heads.split()
    first = "gemma-7b LoRA 8 1 QKV 4.82M 87.59 90.33 89.76 56.10 29.13 75.70 71.44"
    assert " ".join(lines[2].split()) == first
    assert len(lines) == 2 + 24
    assert "23.57      18.5" in run("--table", 4).stdout
    assert "#Params" not in run("--table", 7).stdout


@pytest.mark.parametrize("k", range(1, 10))
def test_csv_of_a_table_is_the_bundled_file(k, tmp_path):
    text = run("--table", k, "--format", "csv").stdout
    pd.testing.assert_frame_equal(pd.read_csv(StringIO(text)), pd.read_csv(FOLDER / f"table{k}.csv"))
    assert run("--table", k, "-o", tmp_path / "out.csv").exit_code == 0
    assert (tmp_path / "out.csv").read_text(encoding="utf-8") == text


def test_json_and_parquet(tmp_path):
    records = json.loads(run("--check", "--format", "json").stdout)
    assert {(record["paper"], record["parameters"]) for record in records} >= {("4.92M", 4_915_200)}
    result = run("--table", 9, "--format", "parquet", "-o", tmp_path / "nine.parquet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert len(pd.read_parquet(tmp_path / "nine.parquet")) == 294


def test_check_prints_paper_against_computed():
    result = run("--check")
    assert result.exit_code == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "table model method r b target paper computed ok"
    assert "1 roberta-base HydraLoRA 4 1 QV 0.35M 0.35M yes" in lines
    assert "#Params: 121 of 121" in result.stdout
    assert "74 of 77" in result.stdout
    assert "49 of 49" in result.stdout
    assert result.stdout.count("the rounding of the sub-tasks can explain it") == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--table", "10"], "10"),
        (["--table", "1", "--check"], "one of them"),
        (["--check", "--claims"], "one of them"),
        (["--format", "parquet"], "-o FILE"),
    ],
)
def test_wrong_usage_is_exit_2(arguments, part):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert part in result.stderr


def test_unwritable_output_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("--table", 1, "-o", tmp_path / "file" / "out.csv")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
