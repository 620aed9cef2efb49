"""Messages through pipes, and work that copies of this process share. Standard library only."""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any, NoReturn

if sys.platform != "win32":
    import fcntl

#: Parts that fit, by their numbers, into a pipe that nobody empties (64 KB).
MOST_PARTS = 1 << 13
_NUMBER = 4
#: glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


class CopyEnded(Exception):
    """A copy of this process that was killed."""


def send(pipe: IO[bytes], message: bytes) -> None:
    """A message with its length before it."""
    pipe.write(len(message).to_bytes(8, "big") + message)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes:
    """The next message; empty where the pipe ended."""
    length = _exactly(pipe, 8)
    return _exactly(pipe, int.from_bytes(length, "big")) if length else b""


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    """So many bytes; none where the pipe ended before. A pipe without a buffer gives what is there."""
    found = pipe.read(size)
    while found and len(found) < size:
        more = pipe.read(size - len(found))
        if not more:
            return b""
        found += more
    return found


def can_copy() -> bool:
    """Whether this process may be copied: Linux, and no thread but this one, whose locks a copy would inherit."""
    if sys.platform != "linux":
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208  what is loaded already
    except OSError:
        return False


def keep_freed_memory() -> None:
    """Let freed memory stay with this process (glibc, which takes arrays up to 32 MB from its heap from then on).

    It gives the end of its heap back after each batch of modules. The next one takes it again, every page cleared by
    the system: 52,000 pages for 168 MB, which took as long as the decompositions.
    """
    if sys.platform != "linux":
        return
    import ctypes  # here: --help does without

    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # not in other libraries of C
    if set_option:
        set_option(_TRIM_THRESHOLD, 128 << 20)
        set_option(_MMAP_THRESHOLD, 32 << 20)


def shared(work: Callable[[int], Any], parts: int, copies: int) -> Iterator[tuple[int, Any]]:
    """``(part, work(part))`` of the parts 0 … parts − 1, in no particular order, by this process and copies of it.

    Each takes the next part when it has finished one. Nothing that a copy changes is seen here but what ``work``
    returns, which is pickled. Threads, where each part is more Python than arithmetic, would take turns.

    Parameters
    ----------
    copies : how many processes work, this one among them.

    Raises
    ------
    Exception
        That of the first part, in the order of the parts, of which ``work`` raised.
    CopyEnded
        A copy ended without a word: something killed it.

    Examples
    --------
    >>> from bora_analysis.pipes import can_copy, shared
    >>> sorted(shared(lambda part: part**2, 4, copies=2)) if can_copy() else [(0, 0), (1, 1), (2, 4), (3, 9)]
    [(0, 0), (1, 1), (2, 4), (3, 9)]
    """
    assert parts <= MOST_PARTS
    keep_freed_memory()
    turns, given = os.pipe()
    os.write(given, b"".join(part.to_bytes(_NUMBER, "big") for part in range(parts)))
    os.close(given)
    running: dict[IO[bytes], int] = {}
    failed: dict[int, BaseException] = {}
    done = 0
    try:
        for _ in range(copies - 1):
            with suppress(OSError):  # no more processes: those that there are do the work
                _begin(work, turns, running)
        waiting, left = list(running), True
        while left or waiting:
            messages = [_worked(work, int.from_bytes(number, "big"))] if (number := os.read(turns, _NUMBER)) else []
            left = bool(number)
            for pipe in select.select(waiting, [], [], 0 if left else None)[0] if waiting else ():
                if message := receive(pipe):
                    messages.append(pickle.loads(message))
                else:
                    waiting.remove(pipe)
            for part, error, found in messages:
                done += 1
                if error is None:
                    yield part, found
                else:  # what others work at is waited for: the first part in their order may fail too
                    failed[part] = error
                    done += len(os.read(turns, _NUMBER * MOST_PARTS)) // _NUMBER
    finally:
        os.close(turns)
        for pipe, pid in running.items():
            pipe.close()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # those that have finished have ended, or are about to
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
    if failed:
        raise failed[min(failed)]
    if done < parts:
        raise CopyEnded("a process that shared the work was ended; was there too little memory?")


def _begin(work: Callable[[int], Any], turns: int, running: dict[IO[bytes], int]) -> None:
    """One more copy."""
    answers, own = os.pipe()
    try:
        # So that it need not wait until what this process works at is finished.
        with suppress(OSError, AttributeError):
            fcntl.fcntl(own, fcntl.F_SETPIPE_SZ, 1 << 18)
        pid = os.fork()
    except OSError:
        os.close(answers)
        os.close(own)
        raise
    if not pid:
        os.close(answers)  # or it would not notice that nobody reads them any more
        for pipe in running:
            pipe.close()
        _copy(work, turns, own)
    os.close(own)
    running[open(answers, "rb", buffering=0)] = pid  # noqa: PTH123, SIM115  a pipe; closed by who reads it


def _worked(work: Callable[[int], Any], part: int) -> tuple[int, Exception | None, Any]:
    try:
        return part, None, work(part)
    except Exception as error:
        return part, error, None


def _copy(work: Callable[[int], Any], turns: int, own: int) -> NoReturn:
    """What a copy does. It leaves nothing behind: no buffers that it inherited are written, no exit handlers run."""
    code = 1
    gc.freeze()  # what it inherited stays shared, in memory: a collection would write to all of it
    try:
        with open(own, "wb") as answers:
            while number := os.read(turns, _NUMBER):
                part, error, found = _worked(work, int.from_bytes(number, "big"))
                send(answers, pickle.dumps((part, error and _as_sent(error), found)))
        code = 0
    finally:
        os._exit(code)


def _as_sent(error: Exception) -> Exception:
    """The error, or one with its text where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
