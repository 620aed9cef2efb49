"""The server of the dashboard and a browser, for the tests that have them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_cases import adapter


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What the server may open: an adapter and a run."""
    with tempfile.TemporaryDirectory() as home:
        adapter(Path(home) / "mine", seed=1, layers=6)
        for step in (10, 20, 30):
            adapter(Path(home) / "run" / f"checkpoint-{step}", seed=step, rank=3)
        yield Path(home)


@pytest.fixture(scope="module")
def server(folder) -> Iterator[tuple[str, int]]:
    """Address and process of the server, started as a user does; it ends with the module."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bora_analysis", "dashboard", "--port", str(port), "--root", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    address = f"http://localhost:{port}"
    with tempfile.TemporaryFile() as log:
        started = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=log, stderr=log, env=environment)
        try:
            for _ in range(600):
                try:
                    with urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):
                        break
                except (urllib.error.URLError, OSError):
                    assert started.poll() is None, "the server has ended"
                    time.sleep(0.2)
            yield address, started.pid
        finally:
            started.terminate()
            try:
                started.wait(timeout=15)
            except subprocess.TimeoutExpired:  # a tab may keep it
                started.kill()
                started.wait()
        log.seek(0)
        said = log.read().decode()
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def site(server) -> str:
    """The address of the server."""
    return server[0]


@pytest.fixture(scope="module")
def browser():
    from browser_cases import CHROMIUM, FLAGS, playwright  # here: it skips the tests that need it

    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        try:
            yield made
        finally:
            made.close()
