"""What a sweep costs, in one run: `make bench`, or `python benchmarks/sweep.py [--peer ADAPTERSENTRY] [--count 10000]`.

Machines are shared, so every figure is processor time of a whole tree of processes, or a ratio of wall times that were
taken in turn; the load of the machine stands beside the table. Writes a Markdown table on stdout and exits with 1 if a
target is missed.

The adapters: LoRA, r = 8, 12 modules, float32. Of 384² they have 0.3 MB, of 1280² 1 MB. The many are hard links to 100
files: a sweep reads and hashes each of them, from memory. Peer: adaptersentry 2.0.2 (PyPI), `batch`, on the same files,
with as many workers of one BLAS thread; its cache and its record of runs are in a folder that is new each time, and the
two begin by turns.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bora_analysis import analyse, read_adapter, write_adapter
from bora_analysis.adapters import checkpoints

LOOP = """
import sys
from pathlib import Path
from bora_analysis import analyse, read_adapter
for path in sorted(Path(sys.argv[1]).iterdir()):
    analyse(read_adapter(path)).layer_metrics
"""


@dataclass
class Row:
    what: str
    measured: str
    target: str = ""
    met: bool = True


@dataclass
class Cost:
    """Of a command: wall seconds, processor seconds of all its processes, MB of the largest of them."""

    wall: float
    processor: float
    memory: float


def cost(*command: str, home: str | None = None) -> Cost:
    """Run it, ``home`` for its files, in a process that inherits whatever it leaves behind, and waits for that."""
    code = (
        "import ctypes, os, resource, subprocess, sys, time\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"  # PR_SET_CHILD_SUBREAPER
        "start = time.perf_counter()\n"
        "done = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "code = os.waitpid(done.pid, 0)[1]; wall = time.perf_counter() - start\n"
        "try:\n    while True: os.wait()\nexcept ChildProcessError: pass\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024); sys.exit(bool(code))"
    )
    told = os.environ | ({"HOME": home} if home else {})
    watched = [sys.executable, "-S", "-c", code, *command]
    done = subprocess.run(watched, capture_output=True, text=True, check=False, env=told)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: failed")
    return Cost(*map(float, done.stdout.split()))


def ours(*arguments: object) -> Cost:
    return cost(sys.executable, "-m", "bora_analysis", *map(str, arguments))


def made(home: Path, count: int, edge: int, distinct: int) -> Path:
    """A folder of adapters; those behind the first ``distinct`` are hard links to them."""
    rng = np.random.default_rng(0)
    modules = [f"layers.{layer}.{name}" for layer in range(6) for name in ("q_proj", "v_proj")]
    decay = 0.5 ** np.arange(8, dtype=np.float32)
    for k in range(min(count, distinct)):
        factors = {
            module: {
                "B": rng.standard_normal((edge, 8)).astype(np.float32) * decay,
                "A": rng.standard_normal((8, edge)).astype(np.float32),
            }
            for module in modules
        }
        write_adapter(home / f"a{k:05d}", "lora", factors, alpha=16, base_model="org/base")
    for k in range(distinct, count):
        folder = home / f"a{k:05d}"
        folder.mkdir()
        for path in (home / f"a{k % distinct:05d}").iterdir():
            os.link(path, folder / path.name)
    return home


def forgotten(home: Path) -> None:
    """Take the files out of the system's memory, those alone."""
    for path in home.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pieces(home: Path) -> Iterator[tuple[str, float]]:
    """Where the time of an adapter goes: milliseconds of a processor, the least of some runs, in this process."""
    from bora_analysis.analysis.tables import measure
    from bora_analysis.analysis.verdict import JUDGED, judged
    from bora_analysis.fleet.measuring import outcomes
    from bora_analysis.fleet.results import LAYER_METRICS
    from bora_analysis.fleet.sources import find
    from bora_analysis.fleet.stamps import content_hash
    from bora_analysis.fleet.storage import Storage
    from bora_analysis.fleet.tasks import Job, Task

    place = home / "a00000"
    files = [path for path in place.iterdir() if path.is_file()]
    (adapter,) = checkpoints(read_adapter(place))
    (item,) = find([place]).items.values()
    with tempfile.TemporaryDirectory() as out:
        job = Job(out, "x", {"threshold": 0.005, "solver": "auto", "device": "auto", "quick": False}, {})
        (row,) = (outcome["row"] for outcome in outcomes(Task(item), job))
        table = Storage.at(out).read_table(f"{LAYER_METRICS}/{row['part']}")
        columns = table.select(list(JUDGED)).to_pydict()
        works: dict[str, Callable[[], object]] = {
            "all": lambda: outcomes(Task(item), job),
            "hash": lambda: content_hash(files, place),
            "read": lambda: read_adapter(place),
            "singular values and metrics": lambda: measure(adapter, workers=1, threshold=0.005),
            "verdict": lambda: judged("x", columns),
            "Parquet": lambda: Storage.at(out).write_table("x.parquet", table),
            "analyze, for comparison": lambda: analyse(read_adapter(place)),
        }
        for name, work in works.items():
            found = []
            for _ in range(7):
                start = time.process_time()
                for _ in range(10):
                    work()
                found.append((time.process_time() - start) * 100)
            yield name, min(found)


def against_a_loop(home: Path, runs: int, rows: list[Row]) -> None:
    """300 small adapters on two workers, against one process that analyses one after the other, and the command."""
    count = len(list(home.iterdir()))
    walls, command, spent, loop = [], [], [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as out:
            sweep = ours("sweep", home, "-o", out, "--workers", 2)
            one = cost(sys.executable, "-c", LOOP, str(home))
            other = ours("analyze", home, "--format", "parquet", "-o", Path(out) / "tables")
        walls.append(one.wall / sweep.wall)
        command.append(other.wall / sweep.wall)
        spent.append(sweep.processor)
        loop.append(one.processor)
    ratio, told = statistics.median(walls), statistics.median(command)
    what = f"{count} adapters, two workers, against "
    rows.append(Row(f"{what}one `analyze` of all in one process, tables written", f"{told:.2f}×"))
    rows.append(Row(f"{what}a loop in Python over `analyse`", f"{ratio:.2f}×", "≥ 1.7×", ratio >= 1.7))
    with tempfile.TemporaryDirectory() as out:
        single = [ours("analyze", home / "a00000", "-o", Path(out) / "one.csv").processor for _ in range(3)]
    alone = statistics.median(single) * count / statistics.median(spent)
    rows.append(Row(f"{what}`analyze` once for each, processor time", f"{alone:.0f}×", "≥ 1.7×", alone >= 1.7))
    least = min(spent) - min(loop)
    text = f"{1e3 * least / count:.1f} ms"
    rows.append(Row("processor time above that loop, an adapter", text, "≤ 15 ms", least / count <= 0.015))


def many(home: Path, count: int, rows: list[Row]) -> None:
    """Linear in N, memory of the driver, and a second run that finds all done."""
    part = made(home / "part", count // 4, 1280, 100)
    whole = made(home / "whole", count, 1280, 100)
    time.sleep(3)  # until the files are at rest
    first = ours("sweep", part, "-o", home / "out-part", "--workers", 2)
    all_ = ours("sweep", whole, "-o", home / "out", "--workers", 2)
    each = [1e3 * used.processor / n for used, n in ((first, count // 4), (all_, count))]
    rows.append(Row(
        f"processor time an adapter of 1 MB, {count // 4:,} and {count:,} of them",
        f"{each[0]:.1f} and {each[1]:.1f} ms", "linear: within 15 %", each[1] <= 1.15 * each[0],
    ))  # fmt: skip
    memory = all_.memory
    rows.append(Row("largest process of it, the driver among them", f"{memory:.0f} MB", "< 500 MB", memory < 500))
    again = min((ours("sweep", whole, "-o", home / "out", "--workers", 2) for _ in range(3)), key=lambda c: c.processor)
    rate = count / again.processor
    text = f"{again.processor:.2f} s: {rate:,.0f}/s"
    rows.append(Row(f"a second run over {count:,}, processor time", text, "≥ 3,000/s", rate >= 3000))


def against_peer(peer: str, home: Path, count: int, rows: list[Row]) -> None:
    """The same files in turn: cold and warm in the system's memory, and a second run."""
    files = list(home.iterdir())
    found: dict[str, list[tuple[Cost, Cost]]] = {"cold": [], "warm": [], "second run": []}
    for turn in range(count):
        for state in found:
            with tempfile.TemporaryDirectory() as out:
                batch = [peer, "batch", "--input-dir", str(home), "--workers", "2", "--output-dir", f"{out}/peer"]
                runs: dict[str, Callable[[], Cost]] = {
                    "theirs": lambda out=out, batch=batch: cost(*batch, "--run-id", str(time.time_ns()), home=out),
                    "ours": lambda out=out: ours("sweep", home, "-o", f"{out}/ours", "--workers", 2),
                }
                order = sorted(runs, reverse=bool(turn % 2))
                if state == "second run":
                    for name in order:
                        runs[name]()
                spent: dict[str, Cost] = {}
                for name in order:
                    if state == "cold":
                        forgotten(home)
                    spent[name] = runs[name]()
                found[state].append((spent["ours"], spent["theirs"]))
    for state, pairs in found.items():
        ratio = statistics.median(theirs.wall / mine.wall for mine, theirs in pairs)
        mine, theirs = (statistics.median(used.processor for used in column) for column in zip(*pairs, strict=True))
        what = f"{len(files)} adapters against `adaptersentry batch`, {state}"
        rows.append(Row(what, f"{ratio:.2f}× by wall; {mine:.2f} s against {theirs:.2f} s", "> 1×", ratio > 1))


def main() -> int:
    parser = argparse.ArgumentParser(description="What a sweep costs, in one run.")
    parser.add_argument("--peer", help="the adaptersentry executable, to compare with")
    parser.add_argument("--count", type=int, default=10_000, help="adapters of 1 MB")
    parser.add_argument("--runs", type=int, default=5, help="of which the medians are shown")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    rows: list[Row] = []
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        small = made(home / "small", 300, 384, 300)
        against_a_loop(small, options.runs, rows)
        text = ", ".join(f"{name} {each:.1f}" for name, each in pieces(small))
        rows.append(Row("milliseconds of an adapter in its process", text))
        if options.peer:
            against_peer(options.peer, small, options.runs, rows)
        many(home, options.count, rows)
        shutil.rmtree(home / "out")
    print("| what | measured | target | |\n|---|---|---|---|")
    for row in rows:
        state = "" if not row.target else "met" if row.met else "missed"
        print(f"| {row.what} | {row.measured} | {row.target} | {state} |")
    print(f"\nLoad of the machine, {os.cpu_count()} cores: {before:.1f} at first, {os.getloadavg()[0]:.1f} at last.")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
