"""The page Trim: what it shows is what the command line writes, to the byte; where it cannot write, it says why."""

from __future__ import annotations

import doctest
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from dashboard_cases import adapter
from page_cases import healthy, made, press, starter, unpacked

from app import written
from bora_analysis import analyse, convert, read_adapter, synthetic_adapter, write_adapter
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis.trimming import trimmed
from bora_analysis.cli import main
from bora_analysis.figures.over_layers import over_layers

SHAPES = {f"model.layers.{k}.self_attn.{name}": (32, 48) for k in range(3) for name in ("q_proj", "v_proj")}


start = starter("trim")


@pytest.mark.parametrize("method", ["lora", "bora", "loha"])
@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_the_table_is_that_of_the_file(tmp_path, method, energy):
    """Beside the truncated SVD from vectors, which knows nothing of the tables."""
    source = synthetic_adapter(method, SHAPES, r=4, seed=3, kind="gaussian")
    tables = analyse(source)
    found = trimmed(tables.layer_metrics, tables.spectra, energy)
    expected = convert(source, tmp_path / "out", energy=energy, dtype="float64").table
    same = [name for name in found.columns if found[name].dtype.kind != "f"]
    pd.testing.assert_frame_equal(found[same], expected[same])
    for name in ("energy_kept", "error_spectral", "error_frobenius", "error_relative"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-7 * expected["error_spectral"].max() + 1e-12)
    assert energy == 1 or (found["rank"] < found["rank_before"]).any()


def test_a_module_without_an_update_and_a_share_out_of_range():
    source = synthetic_adapter("lora", SHAPES, r=4, kind="init")  # B = 0
    tables = analyse(source)
    found = trimmed(tables.layer_metrics, tables.spectra, 0.9)
    assert set(found["rank"]) == {0}
    assert set(found["energy_kept"]) == {1.0}
    assert (found["parameters"] == 80).all()
    for energy in (0.0, 1.5):
        with pytest.raises(ValueError, match="share of Σσ²"):
            trimmed(tables.layer_metrics, tables.spectra, energy)


@pytest.mark.parametrize(("percent", "dtype"), [("90%", "float32"), ("99.5%", "bfloat16")])
def test_what_is_written_is_what_the_command_line_writes(start, tmp_path, percent, dtype):
    for step in (10, 20):
        adapter(tmp_path / "run" / f"checkpoint-{step}", seed=step, rank=6)
    app = start(path="run", adapters="run", step="10", energy=percent, trim_dtype=dtype)
    words = ["convert", str(tmp_path / "run/checkpoint-10"), "-o", str(tmp_path / "cli"), "--dtype", dtype]
    words += ["--energy", str(float(percent[:-1]) / 100), "--format", "csv"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(io.StringIO(done.stdout))
    shown = {metric.label: metric.value for metric in app.metric}
    assert shown["parameters"] == f"{table['parameters'].sum():,}"
    assert shown["rank, mean"] == f"{table['rank'].mean():.1f}"
    app = press(app, "Write it")
    result = made(app, "trim")
    expected = {file.name: file.read_bytes() for file in (tmp_path / "cli").iterdir()}
    assert unpacked(result.place) == expected
    app.segmented_control(key="trim_config").set_value("of this file")
    assert healthy(app.run()).code[-1].value == expected["adapter_config.json"].decode().strip()
    command = app.code[0].value
    assert f"--energy {float(percent[:-1]) / 100:g}" in command
    assert ("--dtype" in command) == (dtype != "float32")
    # The command is the one that was run above, but for the places.
    again = CliRunner().invoke(main, ["convert", words[1], "-o", str(tmp_path / "again"), *command.split()[5:]])
    assert again.exit_code == 0, again.output
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").iterdir()} == expected


def test_the_slider_moves_everything_and_asks_for_a_new_file(start, tmp_path):
    adapter(tmp_path / "mine", rank=6, layers=3)
    app = start(path="mine", adapters="mine")
    before = {metric.label: metric.value for metric in app.metric}
    first = made(press(app, "Write it"), "trim")
    app.select_slider(key="energy").set_value(70.0)
    healthy(app.run())
    after = {metric.label: metric.value for metric in app.metric}
    assert all(before[name] != after[name] for name in before)
    assert [button.label for button in app.button if button.label == "Write it"]
    second = made(press(app, "Write it"), "trim")
    assert second.place != first.place
    config = json.loads(second.config)
    assert config["r"] == config["lora_alpha"] < 6
    # One that has given room to others is offered to be written again.
    second.place.unlink()
    healthy(app.run())
    assert [button.label for button in app.button if button.label == "Write it"]


def test_the_configuration_of_the_next_run(start, tmp_path):
    from bora_analysis import recommend

    adapter(tmp_path / "mine", rank=6, layers=3)
    app = start(path="mine", adapters="mine", energy="80%")
    assert json.loads(app.code[-1].value) == recommend(tmp_path / "mine", energy=0.8).config


def test_what_cannot_be_written_is_one_line_without_the_place(start, tmp_path):
    huge = {"q_proj": {"B": np.full((4, 1), 1e30), "A": np.full((1, 6), 1e20)}}
    write_adapter(tmp_path / "huge", "lora", huge, alpha=1)
    app = start(path="huge", adapters="huge", trim_dtype="float16")
    press(app, "Write it")
    end = time.monotonic() + 60
    while not app.error:
        assert time.monotonic() < end
        healthy(app.run())
    (line,) = [error.value for error in app.error]
    assert "float16" in line
    assert str(tmp_path) not in line.replace("\\", "")
    assert written.shelf().home.name not in line.replace("\\", "")


def test_more_than_could_be_uploaded_is_not_written(start, tmp_path, monkeypatch):
    monkeypatch.setattr(written, "WRITTEN_BYTES", 100)
    adapter(tmp_path / "mine")
    app = start(path="mine", adapters="mine")
    assert not [button for button in app.button if button.label == "Write it"]
    assert any("The command line has no such limit" in caption.value for caption in app.caption)


def test_the_shelf_keeps_the_last_ones_and_nothing_of_a_failure(tmp_path):
    shelf = written.Shelf(kept=2)
    source = read_adapter(adapter(tmp_path / "mine"))
    kept = [shelf.write("x", lambda folder: convert(source, folder)) for _ in range(3)]
    assert [each.place.exists() for each in kept] == [False, True, True]
    assert unpacked(kept[1].place) == unpacked(kept[2].place)
    assert kept[1].place.read_bytes() == kept[2].place.read_bytes()

    def fails(folder: Path) -> Any:
        folder.mkdir()
        (folder / "part").write_bytes(b"x")
        raise AdapterError(f"{folder}/part: no")

    with pytest.raises(AdapterError, match=r"^x/part: no$"):
        shelf.write("x", fails)
    assert sorted(Path(shelf.home.name).iterdir()) == sorted(each.place for each in kept[1:])
    shelf.home.cleanup()


def test_the_figure_has_a_line_for_each_projection():
    tables = analyse(synthetic_adapter("lora", SHAPES, r=4, seed=1, kind="decay"))
    table = trimmed(tables.layer_metrics, tables.spectra, 0.9)
    figure = over_layers(table, {"rank": "rank kept", "error_relative": "error"}, bounds={"rank": "rank_before"})
    drawn = {line.get_gid(): line for axes in figure.axes for line in axes.lines}
    for name in "qv":
        expected = table[table["projection"] == name].sort_values("layer")["rank"]
        np.testing.assert_array_equal(np.asarray(drawn[f"rank:{name}"].get_ydata(), float), expected)
    with pytest.raises(ValueError, match="no rows"):
        over_layers(table.head(0), {"rank": "rank"})


def test_examples_in_the_documentation():
    assert doctest.testmod(written).failed == 0
