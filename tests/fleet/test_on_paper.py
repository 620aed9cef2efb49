"""The simulation on paper against one step by step, and its table in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.on_paper import KINDS, NETWORKS, Kind, Network, enough, seconds, table


def stepped(count: int, workers: int, kind: Kind, network: Network, steps: int = 40_000) -> float:
    """Workers that wait, share the link, and compute, in small steps of time."""
    step = seconds(count, workers, kind, network)[0] / steps
    cycle = network.latency + kind.size / network.connection + kind.processor
    # Not in step with each other, as adapters of several sizes would not be.
    left = [[network.latency + cycle * k / workers, kind.size, kind.processor] for k in range(workers)]
    begun, time = workers, 0.0
    while left:
        fetching = sum(own[0] <= 0 < own[1] for own in left)
        share = min(network.connection, network.link / max(fetching, 1)) * step
        for own in left:
            place = next(k for k in range(3) if own[k] > 0)
            own[place] -= share if place == 1 else step
        done = [own for own in left if own[2] <= 0]
        for own in done:
            left.remove(own)
            if begun < count:
                begun += 1
                left.append([network.latency, kind.size, kind.processor])
        time += step
    return time


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_it_is_what_workers_do_step_by_step(workers: int) -> None:
    limits = set()
    for kind in (Kind("small", 0.5, 0.05), Kind("slow", 0.1, 0.5), Kind("large", 50, 0.1)):
        network = Network("x", 0.1, 40, 100)
        expected, limit = seconds(200, workers, kind, network)
        limits.add(limit)
        # The last ones end with idle workers beside them, and the link is not always full.
        assert expected * 0.98 <= stepped(200, workers, kind, network, 8_000) <= expected * 1.25
    assert limits == {1: {"waiting", "processor"}, 4: {"waiting", "processor", "reading"}}.get(
        workers, {"waiting", "processor", "reading"}
    )


def test_the_limits() -> None:
    kind, network = Kind("x", 10, 1.0), Network("y", 1.0, 10, 20, requests=2, allowed=4)
    assert seconds(10, 1, kind, network) == (30.0, "waiting")
    assert seconds(10, 6, kind, network)[0] == pytest.approx(5)
    assert seconds(10, 60, kind, network)[0] == pytest.approx(5)  # 10 MB of 20 MB/s, 2 requests of 4/s
    assert enough(kind, network) == 6
    assert seconds(10, 60, kind, Network("z", 1.0, 10, 1000, requests=2, allowed=4)) == (5.0, "requests")
    assert seconds(10, 1, Kind("c", 10, 9.0), network)[1] == "processor"


def test_more_workers_than_enough_do_not_help() -> None:
    for kind in KINDS:
        for network in NETWORKS:
            most = enough(kind, network)
            ends = [seconds(1000, workers, kind, network)[0] for workers in (most, 10 * most)]
            assert ends[0] == pytest.approx(ends[1])
            if most > 1:
                assert seconds(1000, most - 1, kind, network)[0] > ends[0]


def test_the_documentation_has_the_table() -> None:
    assert table() in (Path(__file__).parents[2] / "docs/sweeps.md").read_text(encoding="utf-8")
