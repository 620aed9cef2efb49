"""The command line as its users meet it: results on stdout, the rest on stderr, exit codes 0, 1 and 2."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bora_analysis import analyse, read_adapter, summary, verdict
from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS
from bora_analysis.cli import main
from bora_analysis.cli.common import tell


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("adapters")
    for name, options in {
        "lora": ("--method", "lora", "-r", 4),
        "melora": ("--method", "melora", "-r", 4, "--blocks", 4),
        "bora": ("--method", "bora", "-r", 4, "--blocks", 8),
        "run/checkpoint-10": ("--method", "lora", "-r", 4, "--scale", 0.01),
        "run/checkpoint-9": ("--method", "lora", "-r", 4, "--scale", 0.001),
        "elsewhere/lora": ("--method", "lora", "-r", 2),
    }.items():
        result = run("synth", *options, "--layers", 2, "-o", home / name)
        assert result.exit_code == 0, result.output
        assert result.stdout == ""
    return home


@pytest.fixture
def broken(folders, tmp_path):
    """A copy of an adapter whose weights stop in the middle."""
    (tmp_path / "broken").mkdir()
    for file in (folders / "lora").iterdir():
        (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "broken" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return tmp_path / "broken"


def test_analyze_json_has_exactly_the_columns(folders):
    result = run("analyze", folders / "bora", folders / "run", "--format", "json")
    assert result.exit_code == 0, result.stderr
    records = json.loads(result.stdout)
    assert all(tuple(record) == LAYER_COLUMNS for record in records)
    assert [record["step"] for record in records] == [None] * 4 + [9] * 4 + [10] * 4
    expected = analyse([read_adapter(folders / "bora"), read_adapter(folders / "run")]).layer_metrics
    for column in LAYER_COLUMNS:
        ours, theirs = [record[column] for record in records], expected[column].astype(object)
        assert ours == theirs.where(theirs.notna(), None).tolist(), column  # unrounded: equal to the last bit


def test_analyze_csv_reads_back_unrounded(folders):
    result = run("analyze", folders / "bora", "--format", "csv")
    frame = pd.read_csv(StringIO(result.stdout))
    expected = analyse(read_adapter(folders / "bora")).layer_metrics
    assert tuple(frame.columns) == LAYER_COLUMNS
    np.testing.assert_array_equal(frame["energy"], expected["energy"])


@pytest.mark.parametrize(
    ("form", "suffix"), [("table", "csv"), ("csv", "csv"), ("json", "json"), ("parquet", "parquet")]
)
def test_analyze_writes_both_tables(folders, tmp_path, form, suffix):
    result = run("analyze", folders / "lora", "--format", form, "-o", tmp_path / "new" / "tables")
    assert result.exit_code == 0, result.stderr
    reader = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[suffix]
    for name, columns in (("layer_metrics", LAYER_COLUMNS), ("spectra", SPECTRA_COLUMNS)):
        assert tuple(reader(tmp_path / "new" / "tables" / f"{name}.{suffix}").columns) == columns
    assert (result.stdout != "") == (form == "table")
    assert len(list((tmp_path / "new" / "tables").iterdir())) == 2  # no temporary file is left


def test_analyze_table_states_threshold_and_bound(folders):
    result = run("analyze", folders / "melora", "--threshold", "0.01")
    assert "σ>0.01" in result.stdout
    assert "MELoRA, r = 4, b = 4, scaling 2; 4 modules, 12,288 parameters" in result.stdout
    assert "encoder.layer.1.attention.self.query" in result.stdout
    assert "float32" in result.stderr  # how the numbers were found


def test_modules_and_threshold_reach_the_analysis(folders):
    result = run("analyze", folders / "lora", "--modules", "query", "--threshold", "1e9", "--format", "json")
    records = json.loads(result.stdout)
    assert {record["projection"] for record in records} == {"q"}
    assert {(record["threshold"], record["effective_rank"]) for record in records} == {(1e9, 0)}


def test_tables_begin_with_the_verdict_and_a_command_that_runs(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders)
    for arguments in (
        ["analyze", "lora"],
        ["compare", "lora"],
        ["analyze", "lora", "bora"],
        ["compare", "run", "bora"],
    ):
        first, _, _ = run(*arguments, "--modules", "query").stdout.partition("\n\n")
        for each in map(read_adapter, arguments[1:]):
            assert verdict(each, modules="query").partition("; next")[0] in first
        _, _, command = first.partition("next: bora-analysis ")
        assert command.endswith(" --modules query")
        assert run(*shlex.split(command), *(("--starts", 1) if "capture" in command else ())).exit_code == 0
    markdown = run("compare", "lora", "--format", "markdown").stdout
    assert markdown.startswith("99 % of the energy in ")
    for form in ("csv", "json"):
        assert "99 % of the energy" not in run("compare", "lora", "--format", form).output
    assert run("analyze", "lora", "-q").stdout.startswith("99 % of the energy in ")


def test_compare_marks_equal_budgets(folders):
    result = run("compare", folders / "lora", folders / "melora", folders / "bora")
    assert result.exit_code == 0
    lines = {line.split()[0]: line.split() for line in result.stdout.partition("All modules")[2].splitlines()[1:5]}
    assert lines["lora"][1] == lines["melora"][1] == "a"
    assert "Projection q" in result.stdout
    as_json = run("compare", folders / "lora", folders / "bora", "--format", "json")
    expected = summary(analyse([read_adapter(folders / name) for name in ("lora", "bora")]).layer_metrics)
    assert [record["entropy_rank"] for record in json.loads(as_json.stdout)] == expected["entropy_rank"].tolist()


def test_what_holds_for_several_adapters_is_said_once(folders):
    result = run("compare", folders / "lora", folders / "melora", folders / "bora")
    (line,) = [line for line in result.stderr.splitlines() if "factors stored in" in line]
    assert line.startswith("note: lora, melora, bora: 4 modules, factors stored in float32")


def test_compare_writes_a_file(folders, tmp_path):
    result = run("compare", folders / "lora", "--format", "parquet", "-o", tmp_path / "summary.parquet")
    assert result.exit_code == 0
    assert pd.read_parquet(tmp_path / "summary.parquet")["projection"].tolist() == ["all", "q", "v"]


def test_adapters_of_one_name_are_told_apart(folders):
    result = run("compare", folders / "lora", folders / "elsewhere" / "lora", "--format", "json")
    names = {record["adapter"] for record in json.loads(result.stdout)}
    assert names == {f"{folders.name}/lora", "elsewhere/lora"}


def test_an_adapter_named_twice_is_one(folders):
    once, twice = (run("compare", *paths) for paths in ([folders / "lora"], [folders / "lora"] * 2))
    assert once.stdout == twice.stdout


def test_checkpoints_named_one_by_one_are_one_run(folders):
    result = run("compare", folders / "run" / "checkpoint-9", folders / "run" / "checkpoint-10", "--format", "json")
    assert {(record["adapter"], record["step"]) for record in json.loads(result.stdout)} == {("run", 9), ("run", 10)}


def test_one_bad_adapter_does_not_stop_the_others(folders, broken):
    result = run("analyze", folders / "lora", broken, folders / "nowhere", "--format", "json")
    assert result.exit_code == 1
    assert {record["adapter"] for record in json.loads(result.stdout)} == {"lora"}
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "adapter_model.safetensors" in errors[0]
    assert "nowhere" in errors[1]


def test_a_file_of_another_kind_is_said_so(folders):
    result = run("analyze", folders / "lora" / "adapter_config.json")
    assert result.exit_code == 1
    assert "no weight file" in result.stderr
    assert ".safetensors" in result.stderr


def test_nothing_readable_is_exit_1_and_no_output(broken):
    result = run("compare", broken)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr


def test_nan_is_found_when_the_module_is_read(folders, tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folders / "lora" / "adapter_model.safetensors")
    key = sorted(tensors)[0]
    tensors[key] = np.full_like(tensors[key], np.nan)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((folders / "lora" / "adapter_config.json").read_text())
    result = run("analyze", tmp_path, folders / "bora", "--format", "json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)) == 4
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert all(part in error for part in ("adapter_model.safetensors", key, "NaN"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["analyze"], "PATH"),
        (["analyze", "{}/lora", "--modules", "("], "regular expression"),
        (["analyze", "{}/lora", "--threshold", "-1"], "-1"),
        (["analyze", "{}/lora", "--device", "tpu"], "tpu"),
        (["analyze", "{}/lora", "--format", "parquet"], "-o DIR"),
        (["compare", "{}/lora", "--format", "parquet"], "-o FILE"),
        (["analyze", "{}/lora", "--format", "xml"], "xml"),
        (["synth", "-o", "x", "--model", "gpt-9"], "llama-3-8b"),
        (["synth", "-o", "x", "--target", "g"], "gate"),
        (["synth", "-o", "x", "--blocks", "5"], "divide"),
        (["synth", "-o", "x", "--shape", "12"], "OUTxIN"),
        (["synth", "-o", "x", "--method", "lora", "--blocks", "4"], "one block"),
        (["synth"], "--output"),
        (["figure"], "figure --list"),
        (["figure", "figure4", "{}/lora"], "-o FILE"),
        (["figure", "figure4", "-o", "x.pdf"], "PATH"),
        (["figure", "figure2", "{}/lora", "-o", "x.pdf"], "without"),
        (
            ["figure", "figure2", "-o", "x.pdf", "--metric", "energy"],
            "figure2 has no --metric; it has --width, --font, --title",
        ),
        (["figure", "optimal_blocks", "-o", "x.pdf", "--model", "gpt-9"], "llama-3-8b"),
        (["figure", "figure1", "{}/lora", "-o", "x.bmp"], ".pdf"),
        (["figure", "figure1", "{}/lora", "-o", "x.pdf", "--modules", "("], "regular expression"),
        (["figure", "figure9", "{}/lora", "-o", "x.pdf"], "figure4"),
        (["figure", "figure4", "{}/lora", "-o", "x.bmp"], ".pdf"),
        (["figure", "heatmap", "{}/lora", "-o", "x.pdf", "--metric", "rank"], "effective_rank"),
        (["figure", "trajectory", "{}/lora", "-o", "x.pdf"], "step"),
        (["figure", "figure4", "{}/lora", "-o", "x.pdf", "--width", "nature"], "icml"),
        (["figure", "figure4", "{}/lora", "-o", "x.pdf", "--projection", "gate"], "q, v"),
    ],
)
def test_wrong_usage_is_exit_2_with_the_choices(folders, arguments, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*(argument.format(folders) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_experts_and_the_initial_adapter_reach_the_reader(folders, tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    A, route = rng.standard_normal((2, 5), dtype=np.float32), rng.standard_normal((3, 5), dtype=np.float32)
    hydra = {"q.hydralora_A": A, "q.hydralora_B": rng.standard_normal((3, 4, 2), dtype=np.float32)}
    save_file(hydra | {"q.hydralora_route": route}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "HYDRALORA", "r": 2, "lora_alpha": 2}')
    for choice, rows in (("mean", 1), ("each", 3), ("stacked", 1)):
        result = run("analyze", str(tmp_path), "--experts", choice, "--format", "json")
        assert result.exit_code == 0
        assert len(json.loads(result.stdout)) == rows
        assert "depends on its router" in result.stderr
    own = folders / "lora"
    result = run("analyze", own, "--initial", own, "--format", "json")
    assert all(record["energy"] < 1e-25 for record in json.loads(result.stdout))
    result = run("analyze", own, "--initial", str(tmp_path / "nowhere"))
    assert result.exit_code == 1
    assert "nowhere: no such file" in result.stderr


def test_no_such_module_is_an_error_of_that_adapter(folders):
    result = run("analyze", folders / "lora", "--modules", "k_proj")
    assert result.exit_code == 1
    assert "k_proj" in result.stderr
    assert "q, v" in result.stderr


def test_unwritable_output_is_one_line(folders, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("analyze", folders / "lora", "-o", tmp_path / "file" / "tables")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_figures_are_written_and_repeat(folders, tmp_path, suffix):
    written = []
    for name in ("one", "two"):
        result = run("figure", "figure4", folders / "lora", folders / "bora", "-o", tmp_path / f"{name}.{suffix}")
        assert result.exit_code == 0, result.stderr
        written.append((tmp_path / f"{name}.{suffix}").read_bytes())
    assert written[0] == written[1]
    assert len(written[0]) > 2000


def test_every_listed_figure_can_be_drawn(folders, tmp_path):
    result = run("figure", "--list")
    lines = [line.split() for line in result.stdout.splitlines()]
    names = (
        "figure1 figure2 figure3 figure4 spectra heatmap threshold_sweep trajectory similarity pareto capture "
        "accuracy_by_rank accuracy_by_measured_rank optimal_blocks"
    )
    assert [line[0] for line in lines] == names.split()
    small = tmp_path / "small"
    run("synth", "--method", "bora", "-r", 4, "--blocks", 8, "--shape", "64x48", "--layers", 2, "-o", small)
    for name, mark, *_ in lines:
        first = "lora" if name == "similarity" else "run"  # two adapters, not a run
        paths = [folders / first, folders / "bora"] if "PATH..." in mark and name != "figure3" else []
        paths = [small] if name == "capture" else paths  # one adapter; its figure goes through matrices
        if name.startswith("accuracy"):
            data = Path(__file__).parents[2] / "data"
            paths = [data / ("accuracy_by_rank.csv" if name == "accuracy_by_rank" else "trained-lora-r8")]
        # The two kinds of files from one figure; tests/figures writes each figure as PDF.
        also = ("-o", tmp_path / "also.pdf") if name == "spectra" else ()
        drawn = run("figure", name, *paths, "-o", tmp_path / f"{name}.png", *also)
        assert drawn.exit_code == 0, drawn.stderr
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "also.pdf").read_bytes().startswith(b"%PDF")
    assert {line[0] for line in lines if line[1] == "[PATH...]"} == {"figure1", "figure3"}


def test_figure1_shows_the_first_module_of_the_last_step(folders, broken, tmp_path):
    output = ("-o", tmp_path / "a.svg")
    drawn = run("figure", "figure1", folders / "run", folders / "bora", "--modules", "value", *output)
    assert drawn.exit_code == 0, drawn.stderr
    assert "run: encoder.layer.0.attention.self.value" in drawn.stderr
    only_last = run("figure", "figure1", folders / "run" / "checkpoint-10", "-o", tmp_path / "b.svg")
    whole = run("figure", "figure1", folders / "run", "-o", tmp_path / "c.svg")
    assert (only_last.exit_code, whole.exit_code) == (0, 0)
    assert (tmp_path / "b.svg").read_bytes() == (tmp_path / "c.svg").read_bytes()
    partly = run("figure", "figure1", broken, folders / "bora", "-o", tmp_path / "d.svg")
    assert partly.exit_code == 1
    assert (tmp_path / "d.svg").exists()
    none = run("figure", "figure1", broken, "-o", tmp_path / "e.svg")
    assert none.exit_code == 1
    assert not (tmp_path / "e.svg").exists()


def test_synth_with_a_base_model_is_analysed_as_it_is(tmp_path):
    arguments = ("--method", "dora", "--shape", "24x16", "-r", 2, "--base-spectrum", "power", "-o", tmp_path / "a")
    written = run("synth", *arguments)
    assert written.exit_code == 0
    assert written.stderr.endswith(f"1 module, and their base model in {tmp_path / 'a' / 'base'} (1.54 kB)\n")
    records = json.loads(run("analyze", tmp_path / "a", "--format", "json").stdout)
    assert [(record["method"], record["rank_bound"]) for record in records] == [("dora", 16)]
    too_large = run("synth", "--method", "ia3", "--model", "llama-3-8b", "-o", tmp_path / "b")
    assert too_large.exit_code == 2
    assert "the base model of 64 layers would be 2.7 GB in float32" in too_large.stderr
    assert "--large-base" in too_large.stderr
    assert not (tmp_path / "b").exists()


def test_synth_shape_and_alpha(tmp_path):
    arguments = ["--shape", "32x16", "--layers", 3, "--method", "lora", "-r", 2, "--alpha", 8, "--dtype", "bfloat16"]
    assert run("synth", *arguments, "-o", tmp_path / "a").exit_code == 0
    adapter = read_adapter(tmp_path / "a")
    facts = adapter["model.layers.2.self_attn.q_proj"].facts
    assert (len(adapter), facts.out_features, facts.in_features, facts.scaling, facts.dtype) == (
        3,
        32,
        16,
        4,
        "bfloat16",
    )


def test_every_command_has_help():
    for name, command in main.commands.items():
        result = run(name, "-h")
        assert result.exit_code == 0
        assert command.help is not None
        assert command.help.splitlines()[0] in " ".join(result.output.split())


def test_every_help_ends_with_examples_that_parse():
    for name, command in main.commands.items():
        shown = run(name, "-h").output
        _, _, last = shown.partition("\nExamples:\n")
        examples = re.sub(r" *\\\n *", " ", last).splitlines()
        assert examples, name
        for example in examples:
            program, called, *arguments = shlex.split(example)
            assert (program, called) == ("bora-analysis", name)
            if "--help" in arguments:  # of one figure
                continue
            with main.make_context("bora-analysis", [name]) as parent:
                command.make_context(name, arguments, parent=parent)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from bora_analysis.cli import main; main(['--help'], standalone_mode=False); "
        "sys.exit(', '.join({'numpy', 'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_analysis_of_safetensors_never_imports_torch_or_matplotlib(folders):
    """torch costs 2 s and 220 MB: more than the whole analysis."""
    code = (
        "import sys; from bora_analysis.cli import main; "
        f"main(['compare', {str(folders / 'bora')!r}], standalone_mode=False); "
        "sys.exit(', '.join({'torch', 'matplotlib', 'streamlit', 'huggingface_hub'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_narrow_terminal(folders):
    """On a terminal of 80 columns no line is longer; names lose what they share, numbers nothing."""
    pytest.importorskip("pty")  # not on Windows
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", "bora_analysis", "analyze", str(folders / "lora")]
    script = f"import pty, sys; sys.exit(pty.spawn({command!r}) >> 8)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert done.returncode == 0
    table = [line for line in done.stdout.decode().splitlines() if "384×384" in line]
    assert len(table) == 4
    assert all(len(line) <= 80 for line in table)
    assert ".attention.self.query" in table[0]


def test_no_color_codes(folders):
    result = CliRunner().invoke(main, ["analyze", str(folders / "lora")], env={"NO_COLOR": "1"}, color=True)
    assert "\x1b[" not in result.output


def test_a_note_of_no_adapter_stands_alone(capsys):
    tell([], ["the file is old"])
    assert capsys.readouterr().err == "note: the file is old\n"
