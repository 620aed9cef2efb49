"""What a sweep survives: adapters that crash, hang or devour memory, and the loss of any of its processes.

Only processes that a test started are killed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet_cases import adapter, adapters, same, tables

from bora_analysis import AdapterError, sweep
from bora_analysis.fleet import child, keeper
from bora_analysis.fleet.devices import claimed, visible

psutil = pytest.importorskip("psutil")
TESTS = Path(__file__).parents[1]


def with_bad_one(home: Path) -> Path:
    adapter(adapters(home, 3) / "a01", r=7)  # what the sketches look for
    return home


@pytest.mark.parametrize(
    ("sketch", "kind", "message", "attempts", "options"),
    [
        ("crash", "crash", r"a01: the process that read it ended with signal 9 \(SIGKILL\)", 2, {}),
        ("hang", "timeout", r"a01: took longer than 1 s; --timeout sets the limit", 2, {"timeout": 1.0}),
        ("devour", "memory", r"needs more memory than a worker may take; --memory sets it", 2, {"memory": 1 << 30}),
        ("fault", "internal", r"RuntimeError: a fault of the sketch$", 1, {}),
    ],
)
def test_an_adapter_that_breaks_its_process_is_a_row(
    tmp_path: Path, sketch: str, kind: str, message: str, attempts: int, options: dict[str, Any]
):
    if kind == "memory" and sys.platform != "linux":
        pytest.skip("memory is bounded on Linux")
    home = with_bad_one(tmp_path / "in")
    done = sweep(home, tmp_path / "out", workers=1, sketch=f"fleet_cases:{sketch}", **options)
    assert (done.analysed, done.failures) == (2, (str(home / "a01"),))
    row: Any = done.results.adapters().set_index("name").loc["a01"]
    assert row["error_kind"] == kind
    assert row["attempts"] == attempts
    assert re.search(message, row["error"])
    assert done.results.layer_metrics()["adapter"].unique().tolist() == ["a00", "a02"]


def test_a_crash_that_does_not_come_again_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CRASHED_ONCE", str(tmp_path / "mark"))
    keeper.end_all()  # the next process has this environment
    home = with_bad_one(tmp_path / "in")
    done = sweep(home, tmp_path / "out", workers=1, sketch="fleet_cases:crash_once")
    assert done.failed == 0
    assert done.results.adapters().set_index("name")["attempts"].to_dict() == {"a00": 1, "a01": 2, "a02": 1}


def test_results_that_cannot_be_written_end_the_sweep_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/layer_metrics").write_text("a file in the way")
    with pytest.raises(AdapterError, match="what is done is kept, start the sweep again"):
        sweep(adapter(tmp_path / "in"), tmp_path / "out", workers=1)


# --- processes that are killed ---


def started(home: Path, out: Path, *options: str, sketch: str = "slow") -> subprocess.Popen[bytes]:
    """A sweep in a process of its own, slow enough to be caught in the middle."""
    # Ctrl+C is heard even where the tests run behind a shell's &, which has it ignored.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = heard + "import sys; from bora_analysis.cli import main; main(sys.argv[1:])"
    command = ["sweep", str(home), "-o", str(out), "--sketch", f"fleet_cases:{sketch}", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that")


def parts(out: Path) -> int:
    return len([*(out / "layer_metrics").glob("*.parquet")]) if (out / "layer_metrics").is_dir() else 0


def below(process: subprocess.Popen[bytes], words: str) -> list[Any]:
    """The processes that it started, directly or not, by what stands in their command lines."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        try:
            if words in " ".join(each.cmdline()):
                found.append(each)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters(tmp_path_factory.mktemp("fleet"), 16, modules=1)


@pytest.fixture(scope="module")
def undisturbed(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("undisturbed")
    assert sweep(fleet, out, workers=1, sketch="fleet_cases:slow").failed == 0
    return tables(out)


def test_the_driver_is_killed(fleet: Path, tmp_path: Path, undisturbed: Any):
    driver = started(fleet, tmp_path, "--workers", "1")
    until(lambda: parts(tmp_path) >= 3)
    children = below(driver, "fleet import child")
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert 3 <= parts(tmp_path) < 16
    psutil.wait_procs(children, timeout=30)
    assert not any(each.is_running() for each in children)  # nobody is left behind
    again = sweep(fleet, tmp_path, workers=1, sketch="fleet_cases:slow")
    assert again.analysed + again.kept == 16
    same(tables(tmp_path), undisturbed)


@pytest.mark.parametrize("engine", ["local", "loky"])
def test_workers_are_killed_and_the_sweep_goes_on(fleet: Path, tmp_path: Path, undisturbed: Any, engine: str):
    driver = started(fleet, tmp_path, "--workers", "2", "--engine", engine)
    victims = ("fleet import child", "fleet import child" if engine == "local" else "loky")  # who works, who keeps it
    for place, victim in enumerate(victims, 1):
        until(lambda place=place: parts(tmp_path) >= 2 * place)
        found = [each for each in below(driver, victim) if "resource_tracker" not in " ".join(each.cmdline())]
        found[0].send_signal(signal.SIGKILL)
    _, said = driver.communicate(timeout=200)
    assert (driver.returncode, said) == (0, b"")
    same(tables(tmp_path), undisturbed)


def test_ctrl_c_ends_it_at_once_and_leaves_nobody(fleet: Path, tmp_path: Path):
    driver = started(fleet, tmp_path, "--workers", "2", sketch="crawl")
    until(lambda: parts(tmp_path) >= 1)
    children = below(driver, "fleet import child")
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode, (parts(tmp_path), said)
    psutil.wait_procs(children, timeout=30)
    assert children
    assert not any(each.is_running() for each in children)


# --- the process that works ---


def test_a_child_ends_when_its_keeper_does():
    code = (
        "import os, sys; from bora_analysis.fleet.keeper import Child, Wanted\n"
        "child = Child(Wanted(0, False)); child.start(); print(child.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 20)


def test_an_idle_child_ends(monkeypatch: pytest.MonkeyPatch):
    code = "import os; from bora_analysis.fleet import child; child.IDLE = 0.1; child.main(0)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        pipe: Any = process.stdout
        assert child.receive(pipe) == child.READY
        assert process.wait(30) == 0


def test_each_process_takes_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-abc")
    assert visible() == ["2", "GPU-abc"]
    first, second, third = claimed(), claimed(), claimed()
    assert first is not None
    assert second is not None
    assert third is not None
    assert [first.name, second.name] == ["2", "GPU-abc"]
    assert third.name in visible()  # more processes than devices share them
    second.free()
    again = claimed()
    assert again is not None
    assert again.name == "GPU-abc"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert claimed() is None


def test_a_process_that_works_does_without_pandas():
    """Whose import is half of its start; a sketch may use it."""
    code = """if True:
        import sys
        from bora_analysis.fleet.child import _Without
        from bora_analysis.fleet.measuring import outcomes
        from bora_analysis.fleet.sources import find
        from bora_analysis.fleet.tasks import Job, Task
        sys.meta_path.insert(0, _Without())
        data, results = sys.argv[1:]
        job = Job(results, "x", {"threshold": 0.005, "solver": "auto", "device": "auto", "quick": False}, {}, True)
        rows = [outcomes(Task(item), job)[0]["row"] for item in find([data + "/trained-*"]).items.values()]
        assert len(rows) > 15 and {row.get("error_kind") for row in rows} <= {None, "adapter"}, rows
        print([row["name"] for row in rows if "error" in row], "pandas" in sys.modules)
    """
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", code, str(TESTS.parent / "data"), out]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "['trained-dora-r8', 'trained-rating-dora-r8'] False\n", done.stderr


def test_a_sketch_may_use_pandas(tmp_path: Path):
    done = sweep(adapter(tmp_path / "in", r=3), tmp_path / "out", workers=1, sketch="fleet_cases:with_pandas")
    assert done.results.sketches()["rank"].tolist() == [3] * 3
