"""How the dashboard's process starts: its arguments, its settings, the base model that its operator named."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dashboard_cases import APP
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

from app import sources
from bora_analysis import analyse, read_adapter
from bora_analysis.adapters import AdapterError


@pytest.fixture
def dora(tmp_path):
    """A DoRA adapter of one matrix, and its base model."""
    rng = np.random.default_rng(0)
    path = "model.layers.0.self_attn.q_proj"
    W = rng.standard_normal((12, 16)).astype(np.float32)
    factors = {"lora_A.weight": (2, 16), "lora_B.weight": (12, 2)}
    tensors = {f"base_model.model.{path}.{name}": rng.standard_normal(size) for name, size in factors.items()}
    tensors[f"base_model.model.{path}.lora_magnitude_vector"] = np.linalg.norm(W, axis=1) * 1.1
    for folder in ("base", "dora"):
        (tmp_path / folder).mkdir()
    save_file({f"{path}.weight": W}, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text("{}")
    save_file({k: v.astype(np.float32) for k, v in tensors.items()}, tmp_path / "dora/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": True}
    (tmp_path / "dora/adapter_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_the_base_model_reaches_the_readers(dora, monkeypatch):
    words = [f"--root={dora}", f"--base={dora / 'base'}", "--", str(dora / "dora")]
    monkeypatch.setattr(sys, "argv", [str(APP / "streamlit_app.py"), *words])
    sources.arguments.cache_clear()
    try:
        app = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=180).run()
        assert not app.exception, [error.value for error in app.exception]
        assert not app.error
        frame = app.session_state["_context"].layer_metrics
        found = frame[frame["adapter"] == "dora"]
        expected = analyse(read_adapter(dora / "dora", base=dora / "base")).layer_metrics
        np.testing.assert_allclose(found["energy"], expected["energy"])
        assert list(found["method"]) == ["dora"]
    finally:
        sources.arguments.cache_clear()


def test_an_adapter_asks_for_its_base_model_in_a_field(dora, monkeypatch):
    """On the page where it is added, and in the sidebar where it is chosen; none outside of the roots."""
    inside = dora / "inside"
    for name in ("base", "dora"):
        shutil.copytree(dora / name, inside / name)
    (inside / "sly").symlink_to(dora / "base")
    words = [str(APP / "streamlit_app.py"), f"--root={inside}"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sources, "BASES", {})
    sources.arguments.cache_clear()
    try:
        app = AppTest.from_file(words[0], default_timeout=180)
        app.switch_page("app_pages/start.py").run()
        app.text_area(key="_lines").set_value("dora")
        next(button for button in app.button if button.label == "Check").click().run()
        field = app.text_input(key="base:path:dora")
        for wrong, line in (("../base", "lies outside"), ("sly", "lies outside"), ("dora", "is no base model")):
            field.set_value(wrong).run()
            assert any(line in each.value.replace("\\", "") for each in app.caption), wrong
            assert not [button for button in app.button if button.key == "show_added"]
        field.set_value("base").run()
        next(button for button in app.button if button.key == "show_added").click().run()
        assert not app.exception
        expected = analyse(read_adapter(dora / "dora", base=dora / "base")).layer_metrics
        np.testing.assert_allclose(app.session_state["_context"].layer_metrics["energy"], expected["energy"])
        sources.BASES.clear()
        linked = AppTest.from_file(words[0], default_timeout=180)
        linked.query_params["path"] = "dora"
        linked.run()
        assert "needs the base model" in linked.sidebar.error[0].value
        linked.text_input(key="base:path:dora").set_value("base").run()
        assert not linked.error
        np.testing.assert_allclose(linked.session_state["_context"].layer_metrics["energy"], expected["energy"])
    finally:
        sources.arguments.cache_clear()


def test_without_it_they_are_refused_with_that_word(dora, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(APP / "streamlit_app.py"), f"--root={dora}"])
    sources.arguments.cache_clear()
    try:
        with pytest.raises(AdapterError, match="needs the base model"):
            sources.read(dora / "dora")
    finally:
        sources.arguments.cache_clear()


@pytest.mark.parametrize("program", ["streamlit_app.py", "server.py"])
def test_the_arguments_are_the_same_before_streamlit_runs_and_after(program, tmp_path, monkeypatch):
    """The server warms up before the page runs, and what it has parsed then is what counts."""
    words = [f"--root={tmp_path}", "--base=org/model", "--", "one", "--two"]
    before = ["--server.port=1", str(APP / "streamlit_app.py"), "--"] if program == "server.py" else []
    monkeypatch.setattr(sys, "argv", [str(APP / program), *before, *words])
    sources.arguments.cache_clear()
    try:
        told = sources.arguments()
        assert (told.root, told.base, [str(path) for path in told.paths]) == ([tmp_path], "org/model", ["one", "--two"])
    finally:
        sources.arguments.cache_clear()


def test_the_process_is_set_for_good():
    """One BLAS thread until it ends, also when what set it has been collected; what is loaded is not collected."""
    code = """if True:
        import gc, threadpoolctl
        from app.server_settings import settle
        settle()
        gc.collect()
        blas = [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
        print(set(blas), gc.get_freeze_count() > 10_000)
    """
    surroundings = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": str(APP.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{1} True"


def imported(file: Path) -> Iterator[str]:
    """The first names of all modules that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.partition(".")[0] for name in names)


def test_no_module_of_the_dashboard_is_imported_by_its_bare_name():
    ours = {file.stem for file in APP.glob("*.py")}
    for folder in ("app", "tests", "benchmarks"):
        for file in (APP.parent / folder).rglob("*.py"):
            assert not ours & set(imported(file)), f"{file}: expected `from app import …`"


def test_modules_of_the_same_names_are_not_picked_up(tmp_path):
    """In the working directory, beside the dashboard's folder as in a wheel, and already loaded as ``app``."""
    package, here = tmp_path / "bora_analysis" / "app", tmp_path / "here"
    shutil.copytree(APP, package, ignore=shutil.ignore_patterns("__pycache__"))
    here.mkdir()
    for folder in (here, package.parent):
        for name in (*(file.stem for file in APP.glob("*.py")), "metrics"):
            (folder / f"{name}.py").write_text("decoy = True")
    (here / "app").mkdir()
    for name in ("__init__", "charts"):
        (here / "app" / f"{name}.py").write_text("decoy = True")
    code = """if True:
        import sys, app.charts
        assert app.charts.decoy
        from pathlib import Path
        from streamlit.testing.v1 import AppTest
        script = Path(sys.argv[1])
        sys.path.insert(0, str(script.parent))  # as Streamlit does
        run = AppTest.from_file(str(script), default_timeout=180)
        for page in ("spectra", "lab"):
            run.switch_page(f"app_pages/{page}.py").run()
            assert not run.exception, [error.value for error in run.exception]
        used = [name for name, module in sys.modules.items() if hasattr(module, "decoy")]
        assert not used, used
        files = [Path(module.__file__) for name, module in sys.modules.items() if name.partition(".")[0] == "app"]
        assert len(files) > 10 and all(file.parent == script.parent for file in files), files
        assert not {str(script.parent), str(script.parent.parent)} & set(sys.path), sys.path
        import charts, metrics
        assert charts.decoy and Path(charts.__file__).parent == Path.cwd()
    """
    command = [sys.executable, "-c", code, str(package / "streamlit_app.py")]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
