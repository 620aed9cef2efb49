"""Work that copies of a process share: in processes of their own, because pytest's has more than one thread."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bora_analysis import write_adapter

CODE = """
import json, os, sys, time
from bora_analysis.pipes import CopyEnded, can_copy, shared

def found(work, parts=40):
    try:
        return sorted(shared(work, parts, 2))
    except Exception as error:
        return f"{type(error).__name__}: {error}"

PARENT = os.getpid()

def work(part):
    time.sleep(0.005)  # long enough for the other one to begin
    return part, os.getpid()

def fails(part):
    if part in (5, 6, 30):
        time.sleep(0.3 if part == 5 else 0)  # the later one is told first
        raise ValueError(f"part {part}")

def cannot_be_sent(part):
    class Own(Exception):
        pass
    time.sleep(0.005)
    if os.getpid() != PARENT:
        raise Own("its own")

def killed(part):
    time.sleep(0.005)
    if os.getpid() != PARENT:
        os.kill(os.getpid(), 9)

def children():
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None

many = found(work)
early = shared(lambda part: b"x" * 100_000, 40, 2)
next(early)
early.close()
told = {
    "can": can_copy(), "parts": [part for part, _ in many] == [mine for _, (mine, _) in many] == list(range(40)),
    "processes": len({pid for _, (_, pid) in many}),
    "large": sum(len(each) for _, each in shared(lambda part: b"x" * 300_000, 9, 2)), "fails": found(fails),
    "sent": found(cannot_be_sent), "killed": found(killed), "children": children(),
    "open": len(os.listdir("/proc/self/fd")),
}
print(json.dumps(told))
"""
psutil = pytest.importorskip("psutil")
linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")


def run(*command: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **settings}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)


@linux
def test_what_copies_do_and_how_they_end():
    done = run("-c", CODE)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["can"]
    assert told["parts"]
    assert told["processes"] == 2
    assert told["large"] == 9 * 300_000
    assert told["fails"] == "ValueError: part 5"
    assert told["sent"] == "RuntimeError: Own: its own"
    assert told["killed"].startswith("CopyEnded: ")
    assert told["children"] is None
    assert told["open"] <= 5  # stdin, stdout, stderr, and that of the listing


def many_modules(folder: Path, broken: tuple[int, ...] = ()) -> Path:
    rng = np.random.default_rng(0)
    tensors = {}
    for k in range(200):
        B, A = rng.standard_normal((24, 3)), rng.standard_normal((3, 40))
        tensors[f"layers.{k}.q_proj"] = {"B": B.astype(np.float32), "A": A.astype(np.float32)}
    write_adapter(folder, "lora", tensors, alpha=6)
    weights = folder / "adapter_model.safetensors"
    content = load_file(weights)
    for k in broken:
        content[f"base_model.model.layers.{k}.q_proj.lora_A.weight"][1, 2] = np.nan
    save_file(content, weights)
    return folder


ANALYSIS = """
import pickle, sys
from bora_analysis import analyse, read_adapter
import bora_analysis.analysis.tables as tables
adapter, ticks = read_adapter(sys.argv[1]), []
shared, calls = tables.shared, []
tables.shared = lambda *each: calls.append(1) or shared(*each)
found = analyse(adapter, on_module=lambda: ticks.append(1))
assert len(ticks) == 200 and calls, (len(ticks), calls)
tables.can_copy = lambda: False
again = analyse(adapter)
assert len(calls) == 1
assert found.layer_metrics.equals(again.layer_metrics)
assert found.spectra.equals(again.spectra)
assert found.provenance == again.provenance
"""


@linux
def test_an_analysis_by_copies_is_that_by_threads_to_the_bit(tmp_path: Path):
    done = run("-c", ANALYSIS, str(many_modules(tmp_path / "many")))
    assert done.returncode == 0, done.stderr


@linux
def test_the_command_shares_many_modules_and_names_the_first_that_is_broken(tmp_path: Path):
    home = many_modules(tmp_path / "many")
    done = run("-m", "bora_analysis", "analyze", str(home), "--top", "2")
    assert done.returncode == 0, done.stderr
    broken = many_modules(tmp_path / "broken", (150, 60, 61))
    done = run("-m", "bora_analysis", "analyze", str(broken))
    assert done.returncode == 1
    assert "layers.60.q_proj" in done.stderr
    assert "layers.61" not in done.stderr
    assert "Traceback" not in done.stderr


@linux
def test_a_copy_that_is_killed_is_said_in_a_line(tmp_path: Path):
    code = (
        "import os, time, bora_analysis.analysis.spectrum as s; own, solved = os.getpid(), s._solved\n"
        "def slow(*each): time.sleep(0.02); return solved(*each)\n"
        "s._solved = lambda *each: slow(*each) if os.getpid() == own else os.kill(os.getpid(), 9)\n"
        "from bora_analysis.cli import main; main()"
    )
    done = run("-c", code, "analyze", str(many_modules(tmp_path / "many")))
    assert done.returncode == 1
    assert "was ended; was there too little memory?" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@linux
def test_no_copy_outlives_a_process_that_is_killed():
    code = (
        "import os, time; from bora_analysis.pipes import shared\n"
        "def work(part): os.write(1, b'%d\\n' % os.getpid()); time.sleep(0.05); return b'x' * 100_000\n"
        "for _ in shared(work, 2000, 3): pass"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = {int(process.stdout.readline()) for _ in range(30)}
        process.kill()
        copies = [psutil.Process(pid) for pid in found - {process.pid}]
        assert len(copies) == 2
        assert not psutil.wait_procs(copies, timeout=20)[1]


@linux
def test_freed_memory_stays_with_a_process_that_asks_for_it():
    """Or the system clears each page of it again, which took as long as the analysis."""
    code = (
        "import resource, sys; import numpy as np; from bora_analysis.pipes import keep_freed_memory\n"
        "if sys.argv[1:]: keep_freed_memory()\n"
        "def taken(): [np.ones(1 << 19) for _ in range(3)]; return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before = taken(); [taken() for _ in range(20)]; print(taken() - before)"
    )
    usual, kept = (int(run("-c", code, *asked).stdout) for asked in ([], ["keep"]))
    if usual < 10_000:
        pytest.skip("this library of C keeps it by itself")
    assert kept < usual / 5
