"""The process that does the work: it reads tasks from a pipe and answers, until the pipe ends.

Its keeper, :mod:`.keeper`, ends it where it takes too long. It ends itself where nobody keeps it any more: when the
pipe closes, when nothing came for ``IDLE`` seconds, and, by an alarm that no computation can hold up, some time after
its limit.
"""

from __future__ import annotations

import importlib
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..pipes import keep_freed_memory, receive, send

#: What it says first, when all is loaded.
READY = b"ready"
IDLE = 30.0
_LATE = 30.0  # seconds after its limit


def main(memory: int, bare: bool = False) -> None:
    """Work until the pipe on stdin ends. What is printed goes to stderr: stdout carries the answers.

    Parameters
    ----------
    memory : bytes that may be allocated, 0 for no bound. bare : without pandas, for no sketch that others wrote.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _bound(memory)
    keep_freed_memory()
    if bare:
        sys.meta_path.insert(0, _Without())
    from ..linalg.threads import one_blas_thread
    from .measuring import outcomes

    importlib.import_module("pyarrow.parquet")  # now: a task has a limit of time
    importlib.import_module("pyarrow").array([0.0])
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, waiting), daemon=True).start()
    send(answers, READY)
    with one_blas_thread():
        while True:
            try:
                task, job = pickle.loads(waiting.get(timeout=IDLE))
            except queue.Empty:
                os._exit(0)
            _alarm(job.timeout + _LATE)
            found = outcomes(task, job)
            _alarm(0)
            send(answers, pickle.dumps(found))
            if memory and _resident() > memory / 2:  # what is left over would be lacking for the next one
                os._exit(0)


class _Without:
    """Keeps pyarrow from importing pandas, of which nothing here has a use: half of the time until READY."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("a sweep's process does without pandas", name=name)


@contextmanager
def without_pandas() -> Iterator[None]:
    """The same for the process that leads a sweep, as long as the sweep goes on."""
    finder = _Without()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _listen(pipe: Any, waiting: queue.SimpleQueue[bytes]) -> None:
    while message := receive(pipe):
        waiting.put(message)
    os._exit(0)


def _bound(memory: int) -> None:
    """Let allocations fail above this many bytes, where the system can (Linux)."""
    if memory and sys.platform == "linux" and not os.environ.get("CUDA_VISIBLE_DEVICES"):  # CUDA reserves far more
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _resident() -> int:
    """Bytes in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as handle:  # noqa: PTH123
            return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
