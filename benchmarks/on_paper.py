"""How long a sweep over many adapters of the Hub takes, on paper: `python benchmarks/on_paper.py`.

A worker asks for an adapter, fetches it, and computes, one after the other. So N adapters take

    N · max((l + s/b + c) / w,  s / B,  q / Q)    seconds

with w workers, l seconds until the first byte, s MB of an adapter, b MB/s of one connection, c seconds of a processor,
B MB/s of all connections together, q requests for an adapter and Q requests per second that the Hub answers.

c was measured (`outcomes` in one process, with hash and Parquet; `benchmarks/sweep.py` has the first of them); what the
network gives was not, and stands in ``NETWORKS``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

COUNT = 20_000
WORKERS = (1, 8, 64)


@dataclass(frozen=True)
class Kind:
    """Adapters of one kind: MB, and seconds of a processor for one."""

    name: str
    size: float
    processor: float


@dataclass(frozen=True)
class Network:
    """Seconds until the first byte, MB/s of one connection and of all, requests for an adapter and those per second."""

    name: str
    latency: float
    connection: float
    link: float
    requests: float = 0.0
    allowed: float = math.inf


KINDS = (
    Kind("384², 12 modules, r = 8", 0.3, 0.006),
    Kind("8B, q and v, r = 8", 13.7, 0.033),
    Kind("8B, all projections, r = 16", 168, 0.30),
)
NETWORKS = (
    Network("Hub, 1 Gbit/s", 0.5, 40, 120, requests=5, allowed=40),
    Network("a disk, 2 GB/s", 0.0005, 2000, 2000),
)


def seconds(count: int, workers: int, kind: Kind, network: Network) -> tuple[float, str]:
    """How long it takes, and what is the limit: ``"processor"``, ``"waiting"``, ``"reading"`` or ``"requests"``.

    Waiting is that of a worker for its own connection: more workers help. Reading is that of all for the link.
    """
    fetch = network.latency + kind.size / network.connection
    each = {
        "processor" if kind.processor >= fetch else "waiting": (fetch + kind.processor) / workers,
        "reading": kind.size / network.link,
        "requests": network.requests / network.allowed,
    }
    limit = max(each, key=lambda name: each[name])
    return count * each[limit], limit


def enough(kind: Kind, network: Network) -> int:
    """The number of workers from which on more of them do not help."""
    least = max(kind.size / network.link, network.requests / network.allowed)
    return math.ceil((network.latency + kind.size / network.connection + kind.processor) / least)


def text(value: float) -> str:
    """
    >>> text(40), text(1500), text(9000)
    ('40 s', '25 min', '2.5 h')
    """
    return f"{value:.0f} s" if value < 100 else f"{value / 60:.0f} min" if value < 6000 else f"{value / 3600:.1f} h"


def table() -> str:
    """Markdown."""
    heads = [f"{workers} worker{'s' * (workers > 1)}" for workers in WORKERS]
    lines = [f"| adapters | from | {' | '.join(heads)} | more do not help from |", "|---" * (len(WORKERS) + 3) + "|"]
    for network in NETWORKS:
        for kind in KINDS:
            found = [seconds(COUNT, workers, kind, network) for workers in WORKERS]
            cells = [f"{text(value)} ({limit})" for value, limit in found]
            ends = f"{enough(kind, network)} workers"
            lines.append(f"| {kind.name}: {kind.size:g} MB | {network.name} | {' | '.join(cells)} | {ends} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
