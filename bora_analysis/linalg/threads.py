"""One BLAS thread per worker, and workers that keep the order.

Many small decompositions through a multi-threaded BLAS were measured 50× slower when another process used the same
cores.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar


def available_cores() -> int:
    """Processors that this process may use (not those of the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class BlasLimit:
    """The limit in force, and how many callers rely on it.

    The limit is a setting of the whole process, so the last caller to leave, and not the first, must lift it. Where
    that is another thread than the one that set it, threadpoolctl (≥ 3.7) may decline, and BLAS stays at one thread:
    only a process with several threads in here at once, such as a server, can come to that, and one thread each is
    what it wants.
    """

    lock = threading.Lock()
    users = 0
    limiters: ClassVar[list[Any]] = []
    scipy = False  # whether scipy's BLAS was there when the limit was set
    torch_threads: int | None = None  # those before

    @classmethod
    def reach_torch(cls) -> None:
        """Limit torch too, whose BLAS threadpoolctl does not see, where a limit is in force."""
        import torch

        with cls.lock:
            if cls.users and cls.torch_threads is None:
                cls.torch_threads = torch.get_num_threads()
                torch.set_num_threads(1)

    @classmethod
    def reach_scipy(cls) -> None:
        """Limit scipy's BLAS, a library of its own, where ``scipy.linalg`` was imported while a limit is in force."""
        if cls.users and not cls.scipy:
            from threadpoolctl import OpenBLASController

            with cls.lock:
                if cls.users and not cls.scipy:
                    # The caller is a worker, and the thread that set the limit is in control (threadpoolctl ≥ 3.7).
                    getattr(OpenBLASController, "clear_controlling_thread", lambda **_: None)(force=True)
                    cls.limit()

    @classmethod
    def limit(cls) -> None:
        from threadpoolctl import threadpool_limits

        cls.scipy = "scipy.linalg" in sys.modules
        cls.limiters.append(threadpool_limits(1, user_api="blas"))

    @classmethod
    def lift(cls) -> None:
        while cls.limiters:
            cls.limiters.pop().restore_original_limits()
        if cls.torch_threads is not None:
            import torch

            torch.set_num_threads(cls.torch_threads)
            cls.torch_threads = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One BLAS thread in this process while the block runs, torch's too from its first use in there.

    Safe to nest and to enter from several threads. scipy's BLAS is limited if it is loaded; who loads it in the block
    calls :meth:`BlasLimit.reach_scipy`.
    """
    with BlasLimit.lock:
        if BlasLimit.users == 0:
            BlasLimit.limit()
        BlasLimit.users += 1
    try:
        yield
    finally:
        with BlasLimit.lock:
            BlasLimit.users -= 1
            if BlasLimit.users == 0:
                BlasLimit.lift()


K = TypeVar("K")
T = TypeVar("T")


def in_order(work: Callable[[K], T], names: Iterable[K], workers: int | None = None) -> Iterator[tuple[K, T]]:
    """``(name, work(name))`` in the order of the names, a few of them ahead in threads of one BLAS thread each."""
    workers = workers or available_cores()
    waiting: deque[tuple[K, Future[T]]] = deque()
    with one_blas_thread(), ThreadPoolExecutor(workers, thread_name_prefix="vectors") as pool:
        try:
            for name in names:
                waiting.append((name, pool.submit(work, name)))
                if len(waiting) > 2 * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:  # an error, or a caller that stops early: drop what has not begun
            pool.shutdown(wait=True, cancel_futures=True)
