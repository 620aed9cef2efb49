"""What a visitor may use of the server, and how long an upload is kept: on one's own machine, and in public."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from bora_analysis.adapters import AdapterError


@dataclass(frozen=True)
class Limits:
    """None stands for no limit.

    Attributes
    ----------
    upload_mb : of one file. unpacked : bytes of all that one upload unpacks to.
    kept : uploads of all visitors; the oldest goes when another comes. minutes : how long each is kept.
    hourly : uploads from one address in an hour. seconds : of one analysis. memory : bytes of the whole process.
    """

    upload_mb: int
    unpacked: int
    kept: int
    minutes: float | None = None
    hourly: int | None = None
    seconds: float | None = None
    memory: int | None = None


OWN = Limits(upload_mb=500, unpacked=1 << 30, kept=8)
PUBLIC = Limits(upload_mb=100, unpacked=256 << 20, kept=20, minutes=60, hourly=30, seconds=60, memory=4 << 30)


def limits() -> Limits:
    """Those of this server."""
    from app.sources import arguments

    return PUBLIC if getattr(arguments(), "public", False) else OWN


def timed(label: str, on_module: Callable[[int, int], None] | None) -> Callable[[int, int], None] | None:
    """The progress of an analysis, which ends it with an AdapterError when its time is over."""
    seconds = limits().seconds
    if seconds is None:
        return on_module
    end = time.monotonic() + seconds

    def told(done: int, total: int) -> None:
        if time.monotonic() > end and done < total:
            raise AdapterError(
                f"{label}: after {seconds:g} s {done} of {total} modules were done; this server gives no more time; "
                "install bora_analysis and read it on your own machine"
            )
        if on_module is not None:
            on_module(done, total)

    return told


@dataclass
class Rate:
    """How often each address has uploaded within the last hour."""

    times: dict[str, deque[float]] = field(default_factory=dict)
    guard: Lock = field(default_factory=Lock)

    def count(self, address: str) -> None:
        """One more; AdapterError where it is one too many."""
        hourly, now = limits().hourly, time.monotonic()
        if hourly is None:
            return
        with self.guard:
            for name in [name for name, each in self.times.items() if each[-1] < now - 3600]:
                del self.times[name]
            own = self.times.setdefault(address, deque(maxlen=hourly))
            if len(own) == hourly and own[0] > now - 3600:
                raise AdapterError(
                    f"{hourly} uploads within an hour are the most that this server takes; come back later"
                )
            own.append(now)


def limit_memory() -> None:
    """Hold this process to its share: an analysis beyond it ends with an error, and not the machine with it."""
    memory = limits().memory
    if memory is not None:
        try:
            import resource
        except ImportError:  # not on Windows
            return
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (memory if hard == -1 else min(memory, hard), hard))
