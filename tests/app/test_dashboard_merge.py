"""The page Merge: its spectrum is a dense sum's, its file the command line's; adapters that do not go together."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from dashboard_cases import adapter
from page_cases import healthy, made, press, starter, unpacked

from app import merging
from bora_analysis import read_adapter
from bora_analysis.cli import main

start = starter("merge")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three adapters; the first is a run, of which the last step counts."""
    for step in (10, 20):
        adapter(tmp_path / "one" / f"checkpoint-{step}", seed=step, rank=2)
    for seed, name in enumerate(("two", "three")):
        adapter(tmp_path / name, seed=seed, rank=3)
    return tmp_path


@pytest.mark.parametrize(
    ("query", "weights"),
    [
        ({}, (0.5, 0.5)),
        ({"merge_weights": "difference"}, (1.0, -1.0)),
        ({"merge_weights": "own", "merge_weight:one": "0.25", "merge_weight:two": "-2"}, (0.25, -2.0)),
        ({"merge": ["one", "two", "three"], "merge_weights": "sum"}, (1.0, 1.0, 1.0)),
    ],
)
def test_the_spectrum_of_the_sum(start, three, query, weights):
    names = ["one", "two", "three"][: len(weights)]
    app = start(path=["one", "two", "three"], adapters=["one", "two", "three"], **query)
    found = made(app, "merge_tables").spectra
    places = [three / "one/checkpoint-20", three / "two", three / "three"]
    for module, part in found.groupby("module"):
        parts = [read_adapter(place)[module].to_dense() for place in places[: len(names)]]
        dense = sum(weight * delta for weight, delta in zip(weights, parts, strict=True))
        expected = np.linalg.svd(dense, compute_uv=False)[: len(part)]
        np.testing.assert_allclose(part["singular_value"], expected, atol=1e-12 * expected[0])
    assert [error.value for error in app.error] == []


@pytest.mark.parametrize("energy", ["100%", "90%"])
def test_what_is_written_is_what_the_command_line_writes(start, three, energy):
    query = {"merge": ["one", "two"], "merge_weights": "own", "merge_weight:one": "0.7", "merge_weight:two": "0.1"}
    app = start(path=["one", "two"], adapters=["one", "two"], merge_energy=energy, merge_dtype="bfloat16", **query)
    made(app, "merge_tables")
    app = press(healthy(app.run()), "Write it")
    result = made(app, "merge")
    command = app.code[0].value.split()
    assert command[:5] == ["bora-analysis", "merge", "one@0.69999999999999996", "two@0.10000000000000001", "-o"]
    words = [f"{three}/one/checkpoint-20@0.7", f"{three}/two@0.1", "-o", str(three / "cli"), *command[6:]]
    done = CliRunner().invoke(main, ["merge", *words])
    assert done.exit_code == 0, done.output
    assert unpacked(result.place) == {file.name: file.read_bytes() for file in (three / "cli").iterdir()}
    assert ("--energy" in command) == (energy != "100%")
    assert "bfloat16" in command


def test_adapters_of_two_base_models_only_when_wanted(start, three):
    for name in ("two", "three"):
        file = three / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": f"org/{name}"}))
    app = start(path=["two", "three"], adapters=["two", "three"])
    (line,) = [error.value for error in app.error]
    assert "2 base models" in line.replace("\\", "")
    app.toggle(key="merge_force").set_value(True)
    healthy(app.run())
    made(app, "merge_tables")
    healthy(app.run())
    assert not app.error
    assert "2 base models" in app.warning[0].value.replace("\\", "")
    result = made(press(app, "Write it"), "merge")
    assert app.code[0].value.endswith("--force")
    words = [f"{three}/two@0.5", f"{three}/three@0.5", "-o", str(three / "cli"), "--force"]
    assert CliRunner().invoke(main, ["merge", *words]).exit_code == 0
    assert unpacked(result.place) == {file.name: file.read_bytes() for file in (three / "cli").iterdir()}


def test_other_shapes_are_one_line_without_the_place(start, three):
    from bora_analysis import write_adapter

    factors = {f"model.layers.0.self_attn.{name}_proj": {"B": np.ones((5, 1)), "A": np.ones((1, 6))} for name in "qv"}
    write_adapter(three / "odd", "lora", factors, alpha=1)
    app = start(path=["two", "odd"], adapters=["two", "odd"])
    while not app.error:
        healthy(app.run())
    (line,) = [error.value for error in app.error]
    assert "shape" in line
    assert str(three) not in line.replace("\\", "")


def test_one_adapter_is_no_sum(start, three):
    app = start(path="two", adapters="two")
    assert [info.value for info in app.info] == ["Choose two adapters or more."]


def test_examples_in_the_documentation():
    assert doctest.testmod(merging).failed == 0
