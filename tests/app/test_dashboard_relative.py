"""The page Relative: the command line's table; base models within the roots, the operator's, and others."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from dashboard_cases import adapter
from page_cases import healthy, made, starter
from safetensors.numpy import save_file

from app import beside_base, sources
from bora_analysis.cli import main

start = starter("relative")


def model(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """The base model of :func:`dashboard_cases.adapter`."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    names = [f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(layers) for name in "qv"]
    save_file({name: rng.standard_normal((12, 16)).astype(np.float32) for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def both(tmp_path: Path) -> Path:
    model(tmp_path / "base")
    for step in (10, 20):
        adapter(tmp_path / "run" / f"checkpoint-{step}", seed=step)
    return tmp_path


@pytest.mark.parametrize("operator", [False, True])
def test_the_table_is_the_command_lines(start, both, operator):
    settings = {"relative_k": "3", "relative_epsilon": "0.7", "relative_subspace": "2", "step": "10"}
    words = [f"--base={both / 'base'}"] if operator else []
    query = {} if operator else {"base": "base"}
    app = start(*words, path="run", adapters="run", **settings, **query)
    found = made(app, "relative").reset_index(drop=True)
    command = ["relative", str(both / "run/checkpoint-10"), "--base", str(both / "base"), "-k", "3", "--epsilon", "0.7"]
    done = CliRunner().invoke(main, [*command, "--subspace", "2", "--format", "csv"])
    assert done.exit_code == 0, done.output
    expected = pd.read_csv(io.StringIO(done.stdout))
    same = [name for name in expected if name not in ("adapter", "step")]
    pd.testing.assert_frame_equal(found[same], expected[same], check_dtype=False, rtol=1e-12)
    app = healthy(app.run())
    shown = {metric.label: metric.value for metric in app.metric}
    assert shown["‖ΔW‖ / ‖W0‖, mean"] == f"{expected['relative_norm'].mean():.3g}"
    assert len(app.get("vega_lite_chart")) == 1


def test_what_was_found_is_not_found_again(start, both, monkeypatch):
    asked = []
    real = beside_base.base_metrics

    def seen(one, *rest, **more):
        asked.extend(one)
        return real(one, *rest, **more)

    monkeypatch.setattr(beside_base, "base_metrics", seen)
    app = start(path="run", adapters="run", base="base")
    made(app, "relative")
    app.session_state["_jobs"]["relative"] = None
    made(healthy(app.run()), "relative")
    assert len(asked) == 4
    # Another base model in its place is another result.
    (both / "base" / "model.safetensors").unlink()
    (both / "base" / "config.json").unlink()
    (both / "base").rmdir()
    model(both / "base", seed=1)
    made(healthy(app.run()), "relative")
    assert len(asked) == 8


def test_without_a_base_model_the_page_says_how(start, both):
    app = start(path="run", adapters="run")
    assert "Name the base model" in app.info[0].value
    assert not app.error


@pytest.mark.parametrize("what", ["outside", "link", "shard", "adapter beside"])
def test_a_base_model_that_leads_out_of_the_roots_is_refused(start, both, tmp_path_factory, what):
    secret = model(tmp_path_factory.mktemp("outside") / "secret")
    place = both / "sly"
    if what == "outside":
        text = str(secret)
    elif what == "link":
        place.symlink_to(secret)
        text = "sly"
    else:
        model(place)
        (place / "model.safetensors").unlink()
        (place / "model.safetensors").symlink_to(secret / "model.safetensors")
        text = "sly"
        if what == "adapter beside":  # a folder that is also an adapter's, whose files are all right
            adapter(place)
    app = start(path="run", adapters="run", base=text)
    lines = [error.value.replace("\\", "") for error in app.error]
    while not lines:
        lines = [error.value.replace("\\", "") for error in healthy(app.run()).error]
    (line,) = lines
    assert "lies outside" in line or "leads out" in line or "no such" in line
    assert what == "outside" or str(secret) not in line
    begun = app.session_state["_jobs"].get("relative") if "_jobs" in app.session_state else None
    assert begun is None or begun.result is None


def test_no_roots_no_base_model(both, monkeypatch):
    from types import SimpleNamespace

    from bora_analysis.adapters import AdapterError

    monkeypatch.setattr(sources, "arguments", lambda: SimpleNamespace(paths=[], root=[], base=None))
    with pytest.raises(AdapterError, match="opens no paths"):
        beside_base.base_of(str(both / "base"))


def test_another_model_is_one_line_without_the_place(start, both):
    save_file({"other.weight": np.ones((2, 2), np.float32)}, model(both / "other") / "model.safetensors")
    app = start(path="run", adapters="run", base="other")
    while not app.error:
        healthy(app.run())
    (line,) = [error.value.replace("\\", "") for error in app.error]
    assert str(both) not in line
