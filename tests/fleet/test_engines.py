"""Engines of clusters, tested on clusters that the tests start on this machine, over TCP."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_cases import adapters, same, tables
from test_faults import TESTS, parts, started, until

from bora_analysis import AdapterError, sweep
from bora_analysis.fleet import engines
from bora_analysis.fleet.engines import run

pytest.importorskip("distributed")


@contextlib.contextmanager
def cluster(workers: int = 2) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and workers of Dask, each a process: their address, and the processes, the scheduler first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}

    def start(*command: str) -> subprocess.Popen[bytes]:
        whole = [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]]
        return subprocess.Popen(
            whole, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    port = address.rpartition(":")[2]
    processes = [start("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")]
    worker = ("worker", address, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1", "--no-nanny")
    processes += [start(*worker) for _ in range(workers)]
    try:
        yield address, processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters(tmp_path_factory.mktemp("fleet"), 24, modules=2)


@pytest.fixture(scope="module")
def alone(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("alone")
    sweep(fleet, out, workers=1, sketch="fleet_cases:slow")
    return tables(out)


def test_dask_gives_the_same_to_the_bit_and_its_parts_can_be_killed(fleet: Path, tmp_path: Path, alone: Any):
    """One cluster for all, because it takes seconds to start."""
    with cluster(3) as (address, processes):
        done = sweep(fleet, tmp_path / "whole", engine="dask", address=address, sketch="fleet_cases:slow", split_from=1)
        assert (done.analysed, done.failed) == (24, 0)
        same(tables(tmp_path / "whole"), alone)

        driver = started(fleet, tmp_path / "worker", "--engine", "dask", "--address", address)
        until(lambda: parts(tmp_path / "worker") >= 1)
        processes[3].send_signal(signal.SIGKILL)
        _, said = driver.communicate(timeout=200)
        assert (driver.returncode, said) == (0, b"")
        same(tables(tmp_path / "worker"), alone)

        driver = started(fleet, tmp_path / "scheduler", "--engine", "dask", "--address", address)
        until(lambda: parts(tmp_path / "scheduler") >= 1)
        processes[0].send_signal(signal.SIGKILL)
        _, said = driver.communicate(timeout=200)
        assert driver.returncode == 1
        assert said.startswith(b"error: engine dask")
        assert said.count(b"\n") == 1
    assert sweep(fleet, tmp_path / "scheduler", workers=1, sketch="fleet_cases:slow").failed == 0
    same(tables(tmp_path / "scheduler"), alone)


def test_an_engine_that_cannot_be_reached_is_one_line(fleet: Path, tmp_path: Path):
    with pytest.raises(AdapterError, match=r"engine dask: tcp://127.0.0.1:1 cannot be reached: "):
        sweep(fleet, tmp_path, engine="dask", address="tcp://127.0.0.1:1")


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        AdapterError, match=r'ray is not installed; expected the extra ray: pip install "bora_analysis\[ray\]"'
    ):
        list(run(print, [(1,)], engine="ray"))  # pyright: ignore[reportArgumentType]


def test_ray_gives_the_same_to_the_bit(fleet: Path, tmp_path: Path, alone: Any):
    pytest.importorskip("ray")
    done = sweep(fleet, tmp_path, engine="ray", workers=2, sketch="fleet_cases:slow")
    assert (done.analysed, done.failed) == (24, 0)
    same(tables(tmp_path), alone)


def test_workers_that_always_end_are_given_up(monkeypatch: pytest.MonkeyPatch):
    tried = []

    def lose(address: str | None, workers: int) -> Any:
        tried.append(workers)
        raise engines.EngineBroke("a worker was lost")

    monkeypatch.setattr(engines, "_loky", lose)
    with pytest.raises(AdapterError, match="engine loky: lost its workers 3 times without a result: a worker was lost"):
        list(run(print, [(1,), (2,)], workers=2, engine="loky"))  # pyright: ignore[reportArgumentType]
    assert tried == [2, 2, 2]
