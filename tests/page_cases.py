"""Pages of the dashboard that are run without a browser, and what they write."""

from __future__ import annotations

import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboard_cases import APP
from streamlit.testing.v1 import AppTest

from app import sources


def starter(page: str) -> Any:
    """The fixture that opens a page with the test's folder as its root: start(*words, **query parameters)."""

    @pytest.fixture
    def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., AppTest]]:
        def started(*words: str, **query: Any) -> AppTest:
            monkeypatch.setattr(sys, "argv", [str(APP / "streamlit_app.py"), f"--root={tmp_path}", *words])
            sources.arguments.cache_clear()
            app = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=180)
            for name, value in query.items():
                app.query_params[name] = value
            app.switch_page(f"app_pages/{page}.py")
            return healthy(app.run())

        yield started
        sources.arguments.cache_clear()

    return start


def healthy(app: AppTest) -> AppTest:
    assert not app.exception, [error.value for error in app.exception]
    return app


def press(app: AppTest, label: str) -> AppTest:
    (button,) = [each for each in app.button if each.label == label]
    return healthy(button.click().run())


def made(app: AppTest, job: str) -> Any:
    """What a job of a page gives, when it is there."""
    end = time.monotonic() + 60
    while app.session_state["_jobs"][job].result is None:
        assert time.monotonic() < end, [error.value for error in app.error]
        healthy(app.run())
    return app.session_state["_jobs"][job].result


def unpacked(place: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(place) as archive:
        assert archive.testzip() is None
        return {Path(name).name: archive.read(name) for name in archive.namelist()}
