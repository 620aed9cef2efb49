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

from app import capturing, context, jobs, sources
from app.sources import Source, TableStore
from bora_analysis.analysis.tables import Tables

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


@pytest.fixture
def begun(monkeypatch, gate) -> list[str]:
    """The adapters whose analysis has begun; that of ``two`` waits after its first module until the gate opens."""
    labels: list[str] = []
    real = sources._analyse

    def analyse(source: Source, on_module: jobs.Told) -> Tables:
        labels.append(source.label)
        while source.label == "two" and not gate.wait(0.01):
            on_module(1, 4)
        return real(source, on_module)

    monkeypatch.setattr(sources, "_analyse", analyse)
    return labels


@pytest.fixture
def pair(monkeypatch, tmp_path) -> Iterator[AppTest]:
    """The page Spectra with two adapters on the command line."""
    for seed, name in enumerate(("one", "two")):
        adapter(tmp_path / name, seed=seed)
    words = [str(APP / "streamlit_app.py"), f"--root={tmp_path}", "--", str(tmp_path / "one"), str(tmp_path / "two")]
    monkeypatch.setattr(sys, "argv", words)
    sources.arguments.cache_clear()
    yield AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=180)
    sources.arguments.cache_clear()


def names(app: AppTest) -> list[str]:
    assert not app.exception, [error.value for error in app.exception]
    return [source.label for source in app.session_state["_context"].sources]


def test_an_analysis_is_stopped_and_taken_up_again_while_the_others_are_shown(pair, begun, gate, monkeypatch):
    monkeypatch.setattr(context, "PATIENCE", 0.3)
    until(lambda: pair.run() and begun == ["one", "two"])
    assert names(pair.run()) == ["one"]
    assert charts(pair) == 3, "the page shows what is there"
    assert [source.label for source in pair.session_state["_context"].waiting] == ["two"]
    pair.selectbox(key="counting").set_value("a share of σ₁").run()
    assert begun == ["one", "two"], "what else is done on the page begins nothing anew"
    button(pair, "Stop").click().run()
    assert any(block.value == "Stopped after 1 of 4 modules." for block in pair.markdown)
    assert names(pair) == ["one"]
    gate.set()
    button(pair, "Go on").click().run()
    until(lambda: names(pair.run()) == ["one", "two"])
    assert begun == ["one", "two", "two"]
    assert "analysis" not in pair.session_state["_jobs"], "what it gave is kept once"


def test_a_page_whose_analysis_was_stopped_blames_no_adapter(pair, begun, monkeypatch):
    monkeypatch.setattr(context, "PATIENCE", 0.3)
    pair.query_params["adapters"] = "two"
    for page in ("spectra", "layers", "training", "fleet", "compare", "budget"):
        if page != "spectra":
            pair.switch_page(f"app_pages/{page}.py")
        pair.run()
        assert button(pair, "Stop")
        assert not pair.info
        assert not pair.error


def test_adapters_whose_tables_have_no_room_together_are_analysed_once(pair, begun, gate, monkeypatch):
    gate.set()
    store = TableStore(limit=1)
    monkeypatch.setattr(sources, "table_store", lambda: store)
    for _ in range(3):
        assert names(pair.run()) == ["one", "two"]
    assert begun == ["one", "two"]
