"""What an engine's worker runs: it hands tasks to a process of its own, and outlives whatever happens to that.

An adapter that crashes, hangs or eats up the memory of the process that reads it must not end the worker, and no engine
bounds the time of one task. So each thread of a worker keeps a child (:mod:`.child`), tries a task twice, and says what
went wrong. Standard library only: the worker itself stays small.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..pipes import receive, send
from .child import READY
from .devices import claimed
from .tasks import CRASH, MEMORY, PASSING, TIMEOUT, Job, Outcome, Task

ATTEMPTS = 2
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from bora_analysis.fleet import child; "
    "child.main({memory}, {bare})"
)
_STARTING = 120.0  # seconds until a process can work: imports from a slow disk
_idle: list[Child] = []
_lock = threading.Lock()


class Ended(Exception):
    """A child that answered nothing. ``kind`` is that of an error in the results."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


class Wanted(NamedTuple):
    """What a process is made for.

    Attributes
    ----------
    memory : bytes, 0 for no bound. gpu : whether one may be used. path : where modules are found.
    bare : without pandas.
    """

    memory: int
    gpu: bool
    path: tuple[str, ...] = ()
    bare: bool = True

    @classmethod
    def of(cls, memory: int, device: str | None, path: tuple[str, ...], sketch: str | None) -> Wanted:
        return cls(memory, device in ("auto", "cuda"), path, not sketch)


class Child:
    """A process, its pipes, and a thread that waits for its answers."""

    def __init__(self, wanted: Wanted):
        self.made_for = wanted
        memory, gpu, path, bare = wanted
        self.device = claimed() if gpu else None
        self.started = False
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        threads |= {"VECLIB_MAXIMUM_THREADS": "1"}
        shown = {"CUDA_VISIBLE_DEVICES": self.device.name} if self.device else {}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process
        places = json.dumps(list(dict.fromkeys([*sys.path, *path])))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BOOT.format(memory=memory, bare=bare), places],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env={**os.environ, **threads, **shown},
        )  # fmt: skip
        self.answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while message := receive(self.process.stdout):  # pyright: ignore[reportArgumentType]
            self.answers.put(message)
        self.answers.put(b"")

    def start(self) -> None:
        """Wait until it can work; Ended where it cannot."""
        try:
            answer = self.answers.get(timeout=_STARTING)
        except queue.Empty:
            self.process.kill()
            self.end()
            raise Ended(CRASH, f"a process to read it did not start in {_STARTING:g} s") from None
        if answer != READY:
            raise Ended(CRASH, self.end())
        self.started = True

    def ask(self, task: Task, job: Job) -> list[Outcome]:
        """The outcomes of a task; Ended where there are none, and then the process has ended."""
        try:
            send(self.process.stdin, pickle.dumps((task, job)))  # pyright: ignore[reportArgumentType]
            answer = self.answers.get(timeout=job.timeout)
        except OSError:  # the pipe is closed
            answer = b""
        except queue.Empty:
            self.process.kill()
            self.end()
            raise Ended(TIMEOUT, f"took longer than {job.timeout:g} s; --timeout sets the limit") from None
        if not answer:
            raise Ended(CRASH, self.end())
        return pickle.loads(answer)

    def end(self) -> str:
        """End the process; how it ended by itself, if it did."""
        try:
            code = self.process.wait(0.5)  # a closed pipe comes a little before the end
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # of what was left to write
                pipe.close()  # pyright: ignore[reportOptionalMemberAccess]
        if self.device is not None:
            self.device.free()
        self.errors.seek(0)
        said = [line for line in self.errors.read().decode("utf-8", "replace").splitlines() if line.strip()][-1:]
        self.errors.close()
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return f"the process that read it ended with {how}" + "".join(f": {line.strip()[:200]}" for line in said)

    @property
    def is_ready(self) -> bool:
        return self.process.poll() is None


def work(place: int, tasks: Sequence[Task], job: Job) -> tuple[int, list[tuple[Task, list[Outcome]]]]:
    """Each task with its outcomes. This is what engines call, on any machine; it raises nothing."""
    return place, [(task, _tried(task, job)) for task in tasks]


def _tried(task: Task, job: Job) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for attempt in range(1, ATTEMPTS + 1):
        child = None
        try:
            child = _taken(job)
            outcomes = child.ask(task, job)
        except Ended as ended:
            child = None
            outcomes = [_lost(task, job, ended.kind, f"{task.item.id}: {ended}")]
        except OSError as error:  # no process, no file for its errors
            outcomes = [_lost(task, job, CRASH, f"{task.item.id}: no process could be started: {error.strerror}")]
        if child is not None:
            _put_back(child, [outcome.get("row", {}).get("error_kind") for outcome in outcomes])
        for outcome in outcomes:
            if "row" in outcome:
                outcome["row"]["attempts"] = attempt
        if not any(outcome.get("row", {}).get("error_kind") in PASSING for outcome in outcomes):
            break
    return outcomes


def _lost(task: Task, job: Job, kind: str, reason: str) -> Outcome:
    from datetime import UTC, datetime

    name = Path(task.item.place).name
    said = {"id": task.item.id, "name": name, "error_kind": kind, "error": reason, "stamp": task.item.stamp}
    return {"row": said | {"options": job.options, "finished": datetime.now(UTC)}}


@atexit.register
def end_all() -> None:
    """End the processes that wait for work. Those of a worker that is killed end by themselves."""
    with _lock:
        while _idle:
            child = _idle.pop()
            child.process.kill()
            child.end()


def begin(wanted: Wanted, count: int) -> None:
    """Let that many processes start or wait for work, while this one goes on."""
    with _lock:
        there = sum(child.made_for == wanted for child in _idle)
    with suppress(OSError):  # told with the first task
        for _ in range(count - there):
            child = Child(wanted)
            with _lock:
                _idle.append(child)


def wanted_by(job: Job) -> Wanted:
    return Wanted.of(job.memory, job.measuring.get("device"), job.path, job.sketch)


def _taken(job: Job) -> Child:
    wanted = wanted_by(job)
    while True:
        with _lock:
            fitting = [child for child in _idle if child.made_for == wanted]
            if not fitting:
                break
            _idle.remove(fitting[-1])
        if fitting[-1].is_ready:
            if not fitting[-1].started:
                fitting[-1].start()
            return fitting[-1]
        fitting[-1].end()
    child = Child(wanted)
    child.start()
    return child


def _put_back(child: Child, kinds: Sequence[str | None]) -> None:
    if MEMORY in kinds:  # what it holds is not worth keeping
        child.process.kill()
        child.end()
        return
    with _lock:
        _idle.append(child)
