"""Jobs beside a page: their progress, who ends them, how many there are at a time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dashboard_cases import APP, adapter
from streamlit.testing.v1 import AppTest

from app import capturing, jobs, sources

SOON = 20  # seconds; machines are shared


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opens what a test holds back; at its end in any case."""
    made = threading.Event()
    yield made
    made.set()


def steps(gate: threading.Event, count: int = 3) -> Callable[[jobs.Told], str]:
    """Work of that many steps, each after the gate has opened."""

    def work(told: jobs.Told) -> str:
        for done in range(count):
            told(done, count)
            while not gate.wait(0.01):
                told(done, count)
        return "found"

    return work


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def test_a_job_gives_its_result_or_its_error(gate):
    gate.set()
    job = jobs.Job("key", steps(gate))
    assert job.left.wait(SOON)
    assert (job.result, job.error, job.stopped, job.done, job.total) == ("found", None, False, 2, 3)

    def fails(told: jobs.Told) -> None:
        raise ValueError("no")

    job = jobs.Job("key", fails)
    assert job.left.wait(SOON)
    assert (job.result, str(job.error)) == (None, "no")


def test_a_job_that_is_stopped_ends_at_its_next_step(gate):
    job = jobs.Job("key", steps(gate))
    until(lambda: job.total)
    assert not job.ended.is_set()
    job.stop()
    assert job.ended.is_set(), "nobody has to wait for it"
    assert job.left.wait(SOON)
    assert job.stopped
    assert job.result is None


def test_a_visitor_who_is_gone_stops_his_job_and_one_who_returns_at_once_does_not(gate, monkeypatch):
    there = {"mine": True}
    monkeypatch.setattr(jobs, "connected", lambda session: there[session])
    monkeypatch.setattr(jobs, "GONE", 0.3)
    job = jobs.Job("key", steps(gate), session="mine")
    until(lambda: job.total)
    for back in (False, True):  # the page is loaded anew
        there["mine"] = back
        time.sleep(0.05)
    time.sleep(0.4)
    assert not job.left.is_set()
    there["mine"] = False
    assert job.left.wait(SOON)
    assert job.stopped


def test_a_session_has_one_job_at_work_and_the_process_two(gate):
    mine = threading.Lock()
    made = [jobs.Job(k, steps(gate), turn=mine) for k in range(2)]
    made += [jobs.Job(k, steps(gate)) for k in range(2, 5)]
    until(lambda: sum(job.total > 0 for job in made) == jobs.AT_ONCE)
    time.sleep(0.5)  # longer than one of them waits for its turn before it looks again
    assert sum(job.total > 0 for job in made) == jobs.AT_ONCE
    assert sum(job.total > 0 for job in made[:2]) <= 1
    waiting = [job for job in made if not job.total]
    waiting[0].stop()  # one that has not begun ends too
    assert waiting[0].left.wait(SOON)
    gate.set()
    for job in made:
        assert job.left.wait(SOON)
    assert [job.result for job in made if job is not waiting[0]] == ["found"] * 4


@pytest.fixture
def page(monkeypatch, tmp_path) -> Iterator[AppTest]:
    """The page Capture, whose work waits."""
    adapter(tmp_path / "mine")
    monkeypatch.setattr(
        sys, "argv", [str(APP / "streamlit_app.py"), f"--root={tmp_path}", "--", str(tmp_path / "mine")]
    )
    sources.arguments.cache_clear()
    monkeypatch.setattr(jobs, "PATIENCE", 0.1)
    app = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=180)
    app.query_params["adapter"] = "mine"
    app.query_params["adapters"] = ["mine", sources.usual()[0].label]
    app.switch_page("app_pages/capture.py")
    yield app
    sources.arguments.cache_clear()


def button(app: AppTest, label: str) -> Any:
    assert not app.exception, [error.value for error in app.exception]
    (found,) = [each for each in app.button if each.label == label]
    return found


def charts(app: AppTest) -> int:
    return len(app.get("vega_lite_chart"))


def test_a_page_goes_on_beside_its_job_which_can_be_stopped_and_taken_up_again(page, gate, monkeypatch):
    """Three of the four modules are found when it is stopped: these are not looked for again."""
    real, asked = capturing.of_module, []

    def slow(one, module, *more):
        asked.append(module)
        if len(asked) == 4:
            assert gate.wait(SOON)
        return real(one, module, *more)

    monkeypatch.setattr(capturing, "of_module", slow)
    page.run()
    until(lambda: len(asked) == 4)
    page.run()
    assert charts(page) == 0
    assert any("What am I looking at?" in box.label for box in page.expander), "the page goes on without it"
    button(page, "Stop").click().run()
    assert any(block.value == "Stopped after 3 of 4 modules." for block in page.markdown)
    gate.set()
    button(page, "Go on").click().run()
    until(lambda: page.run() and charts(page) == 1)
    assert len(asked) <= 5
    assert len(set(asked)) == 4


def test_another_wish_takes_the_place_of_a_job(page, gate, monkeypatch):
    monkeypatch.setattr(capturing, "of_module", lambda *_: gate.wait(SOON) and [])
    page.run()
    first = page.session_state["_jobs"]["capture"]
    page.toggle[0].set_value(True).run()
    assert page.session_state["_jobs"]["capture"] is first, "the same modules: the same job"
    page.selectbox(key="adapter").set_value(sources.usual()[0].label).run()
    second = page.session_state["_jobs"]["capture"]
    assert second is not first
    assert first.stopped
    second.stop()
