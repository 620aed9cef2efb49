"""The command that measures training steps, on toy models: what it measures, not how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from screens import on_screen, too_wide
from training_models import save_decoder

from bora_analysis.cli import main
from bora_analysis.training.benchmark import in_turn, quartiles
from bora_analysis.training.steps import Work, foreseen

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_methods_take_turns_and_are_compared_within_a_round() -> None:
    order: list[str] = []
    factors = {"lora": 1.0, "bora": 2.0}

    def work(name: str) -> list[float]:
        order.append(name)
        return [factors[name] * (1 + len(order) // 2)]  # a machine that becomes slower and slower

    times = in_turn({name: lambda name=name: work(name) for name in factors}, 4)
    assert order == ["bora", "lora", "lora", "bora"] * 3
    assert [len(values) for values in times.values()] == [4, 4]
    low, middle, high = quartiles(times, "bora", 0)
    assert low <= middle <= high
    assert middle == pytest.approx(2, rel=0.25)
    assert quartiles(times, "lora", 0) == [1, 1, 1]


def test_table_4_of_a_toy(tmp_path: Path) -> None:
    model = str(save_decoder(tmp_path / "llama"))
    arguments = ["bench-training", "--model", model, "--methods", "bora,hydralora", "-r", "4", "--blocks", "4"]
    run = CliRunner().invoke(main, [*arguments, "--step", "4x16", "--rounds", "2", "--format", "json"])
    assert run.exit_code == 0, run.output
    lora, bora, hydralora = json.loads(run.stdout)
    assert [row["method"] for row in (lora, bora, hydralora)] == ["lora", "bora", "hydralora"]
    assert (lora["r"], hydralora["r"]) == (4, 2)
    assert (lora["time"], lora["time_low"], lora["memory"]) == (1, 1, 1)
    for row in (lora, bora, hydralora):
        assert row["seconds"] > 0
        expected = foreseen(Work(model, "qv", 4, 16, row["r"], 4), [row["method"]])[0]
        assert row["parameters"] == expected.parameters
        assert row["peak"] == pytest.approx(expected.peak, rel=0.1)
        assert row["memory"] == pytest.approx(row["peak"] / lora["peak"])


def test_its_table_fits_a_narrow_terminal(tmp_path: Path) -> None:
    model = str(save_decoder(tmp_path / "llama-with-a-name-that-is-rather-long-for-a-model"))
    short = ["--methods", "bora,hydralora", "-r", "4", "--blocks", "4", "--step", "2x8", "--rounds", "2"]
    for width, encoding in ((80, "utf-8"), (60, "ascii")):
        code, out, err = on_screen("bench-training", "--model", model, *short, width=width, encoding=encoding)
        assert code == 0, err
        assert too_wide(out, width) == too_wide(err, width) == []


def test_a_step_of_a_slow_machine_is_in_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And BoRA is padded on request."""
    monkeypatch.setattr("bora_analysis.training.benchmark.seconds_of", lambda work, device: work() or 2.841)
    words = ["bench-training", "--model", str(save_decoder(tmp_path / "llama")), "--methods", "bora", "--step", "2x8"]
    run = CliRunner().invoke(main, [*words, "--rounds", "1", "--blocks", "5", "--pad"])
    assert run.exit_code == 0, run.output
    assert run.stdout.count("2.84 s ") == 2
    refused = CliRunner().invoke(main, [*words[:-4], "--methods", "dora", "--pad"])
    assert refused.exit_code == 2
    assert "dora cannot be padded" in " ".join(refused.stderr.split())


def test_wrong_usage() -> None:
    run = CliRunner().invoke(main, ["bench-training", "--methods", "foo"])
    assert run.exit_code == 2
    assert "'foo' is unknown; known: lora" in " ".join(run.stderr.split())
