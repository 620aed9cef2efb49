"""A public instance: it opens no paths, it keeps to its limits, and its page About names them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from dashboard_cases import APP, Named, adapter, contents, zipped
from streamlit.testing.v1 import AppTest

from app import adding, limits, sources, uploads
from bora_analysis.adapters import AdapterError

ROOT = APP.parent
DOCKERFILE = (ROOT / "docs" / "hosting" / "Dockerfile").read_text(encoding="utf-8")


@pytest.fixture
def public(monkeypatch):
    """The arguments of a public instance."""
    monkeypatch.setattr(sys, "argv", [str(APP / "streamlit_app.py"), "--public"])
    sources.arguments.cache_clear()
    yield
    sources.arguments.cache_clear()


@pytest.fixture
def store():
    made = uploads.UploadStore()
    yield made
    made.home.cleanup()


def limited(monkeypatch, **changes) -> None:
    monkeypatch.setattr(limits, "PUBLIC", replace(limits.PUBLIC, **changes))


def page(name: str) -> AppTest:
    app = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=180)
    app.switch_page(f"app_pages/{name}.py").run()
    assert not app.exception, [error.value for error in app.exception]
    return app


def test_it_opens_no_path_and_nothing_of_the_hub(public, tmp_path):
    place = adapter(tmp_path / "mine")
    for word in (str(place), ".", "", "/etc/passwd"):
        with pytest.raises(AdapterError, match="opens no paths"):
            sources.within_roots(word)
    with pytest.raises(AdapterError, match="nothing from the Hub"):
        adding.found("org/name")
    with pytest.raises(AdapterError, match="opens no paths"):
        adding.set_base(sources.Source("upload:x", "x", place, "upload"), str(place))
    app = page("start")
    assert not app.text_area, "no box of paths"
    assert len(app.file_uploader) == 2


def test_the_page_about_names_the_limits(public):
    words = " ".join(each.value for each in page("about").markdown)
    for told in (
        "60 minutes",
        "100 MB",
        "256 MB",
        "30 an hour",
        "60 s",
        "4 GB",
        "the last 20",
        "paths on the server | none",
    ):
        assert told in words, told


def test_on_ones_own_machine_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(APP / "streamlit_app.py"), f"--root={tmp_path}"])
    sources.arguments.cache_clear()
    try:
        words = " ".join(each.value for each in page("about").markdown)
    finally:
        sources.arguments.cache_clear()
    assert "until the server stops" in words
    assert "500 MB" in words
    assert "in 1 folder |" in words


def test_an_upload_is_gone_when_its_time_is_over(public, store, monkeypatch, tmp_path):
    limited(monkeypatch, minutes=0.2 / 60)
    (source,) = store.add([Named("x.zip", zipped(contents(adapter(tmp_path / "x"))))])
    assert store.find(source.word) == source
    time.sleep(0.25)
    with pytest.raises(AdapterError, match="no longer kept"):
        store.find(source.word)
    assert not source.path.exists()


def test_an_upload_is_gone_without_another_visitor(public, store, monkeypatch, tmp_path):
    limited(monkeypatch, minutes=0.1 / 60)
    (source,) = store.add([Named("x.zip", zipped(contents(adapter(tmp_path / "x"))))])
    for _ in range(100):
        if not source.path.exists():
            break
        time.sleep(0.1)
    assert not source.path.exists()
    assert not store.uploads


def test_uploads_of_one_address_are_counted(public, store, monkeypatch, tmp_path):
    limited(monkeypatch, hourly=2)
    packed = zipped(contents(adapter(tmp_path / "x")))
    for _ in range(2):
        store.add([Named("x.zip", packed)], "1.2.3.4")
    with pytest.raises(AdapterError, match="2 uploads within an hour"):
        store.add([Named("x.zip", packed)], "1.2.3.4")
    store.add([Named("x.zip", packed)], "5.6.7.8")
    now = time.monotonic()
    monkeypatch.setattr(limits.time, "monotonic", lambda: now + 3601)
    store.add([Named("x.zip", packed)], "1.2.3.4")


def test_a_file_that_is_too_large_is_not_unpacked(public, store, monkeypatch):
    limited(monkeypatch, upload_mb=1)
    with pytest.raises(AdapterError, match="larger than 1 MB"):
        store.add([Named("x.zip", bytes((1 << 20) + 1))])
    limited(monkeypatch, unpacked=1000)
    with pytest.raises(AdapterError, match="at most 1,000 are read"):
        store.add([Named("x.zip", zipped({"adapter_model.safetensors": bytes(2000)}))])
    assert list(Path(store.home.name).iterdir()) == []


def test_an_analysis_ends_when_its_time_is_over(public, monkeypatch, tmp_path):
    source = sources.Source("upload:x", "x", adapter(tmp_path / "x"), "upload")
    assert len(sources.TableStore().get(source).layer_metrics) == 4
    limited(monkeypatch, seconds=0.0)
    with pytest.raises(AdapterError, match="of 4 modules were done"):
        sources.TableStore().get(source)


def test_an_analysis_beyond_the_memory_is_one_line(monkeypatch, tmp_path):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(sources, "_analyse", full)
    with pytest.raises(AdapterError, match="more memory than"):
        sources.TableStore().get(sources.Source("upload:x", "x", adapter(tmp_path / "x"), "upload"))


# The image


def test_the_image_is_run_by_nobody_in_particular():
    steps = dict(re.findall(r"^([A-Z]+) (.*)$", DOCKERFILE, re.MULTILINE))
    assert steps["USER"] == "visitor"
    assert "constraints.txt" in steps["RUN"]
    assert "[dashboard]" in steps["RUN"]
    command = json.loads(steps["CMD"])
    assert command[:3] == ["bora-analysis", "dashboard", "--public"]
    assert steps["EXPOSE"] == command[command.index("--port") + 1]
    health = json.loads(steps["HEALTHCHECK"].removeprefix("CMD "))
    compile(health[2], "HEALTHCHECK", "exec")
    assert f"localhost:{steps['EXPOSE']}/_stcore/health" in health[2]
    assert not (ROOT / "Dockerfile").exists()


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits of a process are read from /proc")
def test_the_command_of_the_image_starts_a_server_within_its_memory(tmp_path):
    command = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[-1])
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    words = [{"0.0.0.0": "localhost", command[-1]: port}.get(word, word) for word in command[1:]]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command, quiet = [sys.executable, "-m", "bora_analysis", *words], subprocess.DEVNULL
    started = subprocess.Popen(command, cwd=tmp_path, env=surroundings, stdout=quiet, stderr=quiet)
    try:
        for _ in range(900):
            try:
                with urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert started.poll() is None, "the server has ended"
                time.sleep(0.2)
        held = Path(f"/proc/{started.pid}/limits").read_text(encoding="utf-8")
        (data,) = re.findall(r"^Max data size\s+(\d+)", held, re.MULTILINE)
        assert int(data) <= (limits.PUBLIC.memory or 0)
    finally:
        started.terminate()
        started.wait(timeout=60)
