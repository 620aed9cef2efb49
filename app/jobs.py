"""Work that may take longer than a visitor waits: beside the page, with its progress, until it is done or stopped.

A job runs in a thread and is asked at each of its steps whether it shall go on. It ends early when its visitor stops
it, wants something else in its place, or is gone (the tab is closed). What it has found by then stays in the caches of
the functions that it called, so that the same job, started again, goes on from there.

A session has one job at work, and the process :data:`AT_ONCE`; others wait for their turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

T = TypeVar("T")
#: What a job calls with what it has done and all that it has to do.
Told = Callable[[int, int], None]

#: Seconds that a page waits for a job before it goes on without it.
PATIENCE = 1.0
#: Seconds between two looks at a job that goes on beside the page.
LOOK = 0.5
#: Jobs of the process at a time.
AT_ONCE = 2
#: Seconds after which a visitor without a connection is gone: a page that is loaded anew is there sooner.
GONE = 5.0

_turns = threading.Semaphore(AT_ONCE)


class Stopped(Exception):
    """Ends the work of a job."""


def connected(session: str | None) -> bool:
    """Whether a browser shows the session; without a server (a test runner) always."""
    return session is None or not runtime.exists() or runtime.get_instance().is_active_session(session)


@dataclass(eq=False)
class Job:
    """Work in a thread of its own, from when it is made.

    Attributes
    ----------
    key : what the work depends on.
    work : called with the function that it tells its progress.
    turn : of the session, which has one job at work.
    done, total : its progress; 0 of 0 before the first step.
    begun : whether its turn has come.
    result, error : what it gave; None before the end, and if it was stopped.
    ended : set when neither the page nor anyone else has to wait for it, also if it was told to stop.
    left : set when its thread has ended.
    """

    key: Hashable
    work: Callable[[Told], Any]
    turn: threading.Lock = field(default_factory=threading.Lock)
    session: str | None = None
    done: int = 0
    total: int = 0
    result: Any = None
    error: Exception | None = None
    begun: bool = False
    stopped: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    _seen: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        threading.Thread(target=self._run, name="job", daemon=True).start()

    def stop(self) -> None:
        """Let it end at its next step."""
        if not self.ended.is_set():
            self.stopped = True
            self.ended.set()

    def _run(self) -> None:
        try:
            with self._turn(self.turn), self._turn(_turns):
                self.begun = True
                self.result = self.work(self._told)
        except Stopped:
            self.stopped = True
        except Exception as error:  # the page raises it
            self.error = error
        finally:
            self.ended.set()
            self.left.set()

    @contextmanager
    def _turn(self, lock: threading.Lock | threading.Semaphore) -> Iterator[None]:
        while not lock.acquire(timeout=0.2):
            self._go_on()
        try:
            self._go_on()
            yield
        finally:
            lock.release()

    def _told(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self._go_on()

    def _go_on(self) -> None:
        """Raise :class:`Stopped` if it shall not."""
        now = time.monotonic()
        if connected(self.session):
            self._seen = now
        if self.stopped or now - self._seen > GONE:
            raise Stopped


def aside(
    name: str,
    key: Hashable,
    work: Callable[[Told], T],
    words: str | Callable[[], str],
    unit: str = "modules",
    patience: float | None = None,
) -> T | None:
    """What the work gives; None while it is not there, and then the page shows how far it is and a button to stop it.

    An exception of the work is raised here.

    Parameters
    ----------
    name : of the job, once in the pages. A session keeps the last job of each name: one of another key takes its place,
        and stops it.
    key : what the work depends on.
    work : called in a thread, with a function of what is done and of all there is to do, which ends it by an exception.
        It may not use Streamlit.
    words : what is being done, in Markdown; a function where that changes.
    unit : what is counted.
    patience : seconds that the page waits for it, by default :data:`PATIENCE`.
    """
    jobs: dict[str, Job | None] = st.session_state.setdefault("_jobs", {})
    job = jobs.get(name)
    if job is None or job.key != key:
        if job is not None:
            job.stop()
        context = get_script_run_ctx()
        turn = st.session_state.setdefault("_job_turn", threading.Lock())
        job = jobs[name] = Job(key, work, turn, None if context is None else context.session_id)
    slot, end = st.empty(), time.monotonic() + (PATIENCE if patience is None else patience)
    while not job.ended.wait(0.05) and time.monotonic() < end:
        slot.progress(*_shown(job, words, unit))
    slot.empty()
    if not job.ended.is_set():
        _watch(job, name, words, unit)
        return None
    if job.stopped:
        # The script has not begun when this runs: it then makes a job anew.
        again = partial(jobs.update, {name: None})
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"Stopped{_count(job, unit)}.", width="content")
            st.button("Go on", key=f"job_again:{name}", on_click=again, icon=":material/replay:")
        return None
    if job.error is not None:
        raise job.error
    return job.result


@st.fragment(run_every=LOOK)
def _watch(job: Job, name: str, words: str | Callable[[], str], unit: str) -> None:
    """The progress of a job that goes on beside the page; at its end the page runs again."""
    if job.ended.is_set():
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(*_shown(job, words, unit))
        st.button("Stop", key=f"job_stop:{name}", on_click=job.stop, icon=":material/stop_circle:")


def _shown(job: Job, words: str | Callable[[], str], unit: str) -> tuple[float, str]:
    waiting = "" if job.begun else ", waiting for its turn"
    told = words if isinstance(words, str) else words()
    return job.done / max(1, job.total), f"{told}{_count(job, unit, ': ')}{waiting}"


def _count(job: Job, unit: str, before: str = " after ") -> str:
    return f"{before}{job.done:,} of {job.total:,} {unit}" if job.total else ""
