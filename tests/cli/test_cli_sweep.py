"""The command sweep: what it prints where, its exit codes, its progress."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fleet_cases import adapter, adapters

from bora_analysis.cli import main
from bora_analysis.cli.sweep import describe, sweep
from bora_analysis.fleet import keeper
from bora_analysis.fleet.engines import ENGINES
from bora_analysis.fleet.results import Results
from bora_analysis.fleet.sweep import Progress


def run(*arguments: object):
    return CliRunner().invoke(main, ["sweep", "--workers", "1", *map(str, arguments)])


def test_a_sweep_says_one_line_and_a_second_one_goes_on(tmp_path: Path):
    home, out = adapters(tmp_path / "in", 2), tmp_path / "out"
    result = run(home, "-o", out)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{out}: 2 adapters, 2 analysed, 0 as before, 0 failed\n"
    assert run(home, "-o", out).stdout == f"{out}: 2 adapters, 0 analysed, 2 as before, 0 failed\n"
    assert len(Results(out).adapters()) == 2


def test_processes_start_ahead_where_there_is_work_and_no_more_than_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keeper.end_all()
    started: list[object] = []
    start = keeper.Child.__init__

    def counted(self: keeper.Child, wanted: keeper.Wanted) -> None:
        started.append("in time" if "bora_analysis.fleet.sweep" in called_from() else "ahead")
        start(self, wanted)

    monkeypatch.setattr(keeper.Child, "__init__", counted)
    home, out = adapters(tmp_path / "in", 3), tmp_path / "out"
    assert run(home, "-o", out, "--workers", "2").exit_code == 0
    assert started == ["ahead", "ahead"]
    assert run(home, "-o", out, "--workers", "2").exit_code == 0
    assert run(home, "-o", f"memory://{tmp_path}/ahead", "--workers", "2").exit_code == 0  # those that wait do it
    assert started == ["ahead", "ahead"]
    keeper.end_all()


def called_from() -> set[str]:
    """The modules above."""
    frame, found = sys._getframe(), set()
    while frame := frame.f_back:
        found.add(frame.f_globals.get("__name__", ""))
    return found


def test_errors_are_named_and_the_rest_is_done(tmp_path: Path):
    adapter(tmp_path / "in/good")
    adapter(tmp_path / "in/torn").joinpath("adapter_model.safetensors").write_bytes(b"")
    result = run(tmp_path / "in", "no-such-place", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stdout.endswith("2 adapters, 1 analysed, 0 as before, 1 failed\n")
    assert [line[:7] for line in result.stderr.splitlines()] == ["error: "] * 2
    assert "no-such-place: no such file or folder" in result.stderr
    assert "adapter_model.safetensors: is empty" in result.stderr


def test_nothing_found_and_wrong_usage(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    result = run(tmp_path / "empty", "-o", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {tmp_path}/empty: holds no adapter")
    assert not (tmp_path / "out").exists()
    home = adapter(tmp_path / "in")
    for wrong in (("--modules", "("), ("--engine", "slurm"), ("--sketch", "no.such:name")):
        assert run(home, "-o", tmp_path / "out", *wrong).exit_code == 2
    assert run(home).exit_code == 2  # without -o
    assert run(home, "-o", tmp_path / "out", "--address", "tcp://here:1").exit_code == 1
    long = run(home, "-o", tmp_path / ("x" * 300))
    assert (long.exit_code, long.stderr.count("\n")) == (1, 1)
    assert long.stderr.endswith("cannot be written: File name too long\n")


def test_progress_is_shown_where_it_is_asked_for(tmp_path: Path):
    result = run(adapter(tmp_path / "in"), "-o", tmp_path / "out", "--progress")
    assert result.stderr.startswith("0 of 1 adapters\n1 of 1 adapters, ")
    assert "0:00 left" in result.stderr


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress(10_000, 0, 0, 0, 0.0), "0 of 10,000 adapters"),
        (Progress(10_000, 400, 610, 3, 10.0), "1,010 of 10,000 adapters, 3 failed, 61/s, 2:27 left"),
        (Progress(100, 0, 3, 0, 1.0), "3 of 100 adapters, 3.0/s, 0:32 left"),
        (Progress(100, 0, 1, 0, 600.0), "1 of 100 adapters, 0.1/min, 16:30:00 left"),
    ],
)
def test_the_line_of_progress(progress: Progress, line: str):
    assert describe(progress) == line
    assert len(line) < 80


def test_the_engines_are_those_of_the_library():
    (option,) = [each for each in sweep.params if each.name == "engine"]
    assert list(getattr(option.type, "choices", ())) == [*ENGINES]
