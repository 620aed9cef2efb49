"""The performance targets, in one run: `make bench`, or `python benchmarks/run.py [--gradience G] [--adaptersentry A]`.

Machines are shared and noisy: what counts are medians and the ratios of figures taken in turn. Files are warm, in the
system's memory; processes have one BLAS thread, the peers' too. Writes a Markdown table on stdout and exits with 1 if a
target is missed.

The file: LoRA r = 16 on all 7 projections of LLaMA-3-8B's 32 layers, float32, 168 MB. Peers, which read LoRA pairs
only: `gradience audit` 0.11.0 (PyPI), singular values from a float64 Gram matrix; `adaptersentry scan` 2.0.2 (PyPI),
from a float32 QR. And ten lines of torch.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bora_analysis import analyse, read_adapter, singular_values, synthetic_adapter, write_adapter
from bora_analysis.adapters import checkpoints
from bora_analysis.analysis.tables import measure
from bora_analysis.linalg.solvers import solve
from bora_analysis.linalg.threads import available_cores, one_blas_thread
from bora_analysis.pipes import can_copy
from bora_analysis.updates.blocks import BlockProduct

RUNS = 7


@dataclass
class Row:
    what: str
    measured: str
    target: str
    met: bool | None = None


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(work: Callable[[], object], runs: int = RUNS) -> float:
    work()
    return statistics.median(seconds(work) for _ in range(runs))


def process(*command: str) -> tuple[float, float]:
    """Wall seconds and peak memory (MB) of a whole process."""
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-S", "-c", code, *command], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, int(done.stdout) / 1024


@contextmanager
def spinning(count: int):
    """Run a number of other processes that use one core each."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def synth(folder: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "bora_analysis", "synth", "--model", "llama-3-8b", *options, "-o", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def dense_seconds(folder: Path, modules: list[str]) -> dict[str, float]:
    """Seconds of ``torch.linalg.svdvals(B @ A)`` for a module, float32, on all cores."""
    import torch

    (adapter,) = checkpoints(read_adapter(folder))
    out = {}
    for module in modules:
        update = adapter[module]
        assert isinstance(update, BlockProduct)
        B, A = (torch.from_numpy(factor[0].copy()) for factor in (update.B, update.A))
        out[module] = seconds(lambda B=B, A=A: torch.linalg.svdvals(B @ A))
    return out


def ten_lines(path: Path) -> list[object]:
    """σ of each pair from the Cholesky factor of one Gram matrix and the other one, float64."""
    import torch
    from safetensors import safe_open

    found: list[object] = []
    with safe_open(path, framework="pt") as file:
        for key in sorted(key for key in file.keys() if "lora_A" in key):  # noqa: SIM118  no dictionary
            A, B = file.get_tensor(key).double(), file.get_tensor(key.replace("lora_A", "lora_B")).double()
            L = torch.linalg.cholesky(B.mT @ B)
            found.append(torch.linalg.eigvalsh(L.mT @ (A @ A.mT) @ L).sqrt())
    return found


def alone(code: str, *arguments: object) -> float:
    """What ``run.median`` or another of these functions gives in a process of its own, as on the command line."""
    whole = f"import sys, run; from pathlib import Path; print({code})"
    command = [sys.executable, "-c", whole, *map(str, arguments)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return float(done.stdout)


def analysis_of(folder: str) -> float:
    return median(lambda: analyse(read_adapter(folder)))


def torch_of(weights: str, threads: str) -> float:
    import torch

    torch.set_num_threads(int(threads))
    return median(lambda: ten_lines(Path(weights)))


def against_torch(lora: Path, rows: list[Row]) -> None:
    """The analysis of a file and ten lines of torch in turn, with one thread and one a core: the faster counts."""
    (weights,) = lora.glob("*.safetensors")
    taken: dict[str, list[float]] = {"idle": [], "1": [], str(available_cores()): []}
    for _ in range(5):
        taken["idle"].append(alone("run.analysis_of(*sys.argv[1:])", lora))
        for threads in list(taken)[1:]:
            taken[threads].append(alone("run.torch_of(*sys.argv[1:])", weights, threads))
    idle, *torchs = (statistics.median(each) for each in taken.values())
    size = weights.stat().st_size / 1e6
    rows.append(Row(f"analysis, LoRA r=16, 224 modules, {size:.0f} MB", f"{idle:.3f} s", "≤ 0.12 s", idle <= 0.12))
    shown = ", ".join(f"{each:.3f} s" for each in torchs)
    text = f"{min(torchs) / idle:.2f}× (torch with {' and '.join(list(taken)[1:])} threads: {shown})"
    rows.append(Row("… against ten lines of torch", text, "≥ 1×", idle <= min(torchs)))


def against_peers(lora: Path, peers: dict[str, str], rows: list[Row]) -> None:
    """Whole processes in turn, by the clock and by memory."""
    weights = str(lora / "adapter_model.safetensors")
    commands = {
        "analyze": (sys.executable, "-m", "bora_analysis", "analyze", str(lora)),
        "gradience audit": (peers.get("gradience"), "audit", "--peft-dir", str(lora), "--no-udr"),
        "adaptersentry scan": (peers.get("adaptersentry"), "scan", weights),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name, (program, *_) in commands.items() if program}
    for name in [*taken, *(RUNS * list(taken))]:  # the first of each warms the file and the bytecode
        taken[name].append(process(*commands[name]))
    walls = {name: [wall for wall, _ in each[1:]] for name, each in taken.items()}
    mine, memory = statistics.median(walls["analyze"]), max(peak for _, peak in taken["analyze"])
    rows.append(Row("whole process, a table of 224 modules", f"{mine:.2f} s", "≤ 0.42 s", mine <= 0.42))
    rows.append(Row("… its peak memory", f"{memory:.0f} MB", "≤ 90 MB", memory <= 90))
    for name, least in (("gradience audit", 4.7), ("adaptersentry scan", 4.3)):
        if name in taken:
            ratios = sorted(theirs / own for theirs, own in zip(walls[name], walls["analyze"], strict=True))
            ratio, theirs = statistics.median(ratios), statistics.median(walls[name])
            peak = statistics.median(peak for _, peak in taken[name])
            text = f"{theirs:.2f} s: {ratio:.1f}× ({ratios[1]:.1f}–{ratios[-2]:.1f}), {peak:.0f} MB"
            rows.append(Row(f"… `{name}` of the same file", text, f"≥ {least}×", ratio >= least))


def gain_of(folder: str) -> float:
    """One worker's time over that of all, medians of five."""
    (adapter,) = checkpoints(read_adapter(folder))
    measure(adapter)  # from now on the file is in the system's memory
    assert can_copy()
    with one_blas_thread():
        pairs = [(seconds(lambda: measure(adapter, workers=1)), seconds(lambda: measure(adapter))) for _ in range(5)]
    return statistics.median(one / all for one, all in pairs)


def many_modules(home: Path, rows: list[Row]) -> None:
    """14,000 modules of 1024², 0.9 GB, and 300 adapters of 12 modules."""
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((1024, 8)).astype(np.float32) / 100, rng.standard_normal((8, 1024)).astype(np.float32)
    modules = {f"layers.{k // 140}.m{k % 140}_proj": {"B": B, "A": A} for k in range(14_000)}
    big = write_adapter(home / "big", "lora", modules, alpha=16)
    gain = alone("run.gain_of(*sys.argv[1:])", big)
    text = f"14,000 modules of 1024², {available_cores()} workers against one"
    rows.append(Row(text, f"{gain:.2f}×", "≥ 1.6×", gain >= 1.6))
    runs = [process(sys.executable, "-m", "bora_analysis", "analyze", str(big), "--top", "3") for _ in range(3)]
    wall, peak = statistics.median(wall for wall, _ in runs), max(peak for _, peak in runs)
    met = wall <= 5 and peak <= 200
    rows.append(Row("… the whole process", f"{wall:.1f} s, {peak:.0f} MB", "≤ 5 s, ≤ 200 MB", met))
    small = []
    for k in range(300):
        factors = {f"layers.{k % 6}.{'qv'[k // 6]}_proj": rng.standard_normal((384, 8)) for k in range(12)}
        pair = {name: {"B": B.astype(np.float32), "A": B.T.astype(np.float32)} for name, B in factors.items()}
        small.append(str(write_adapter(home / f"small-{k:03d}", "lora", pair, alpha=16)))
    wall = statistics.median(process(sys.executable, "-m", "bora_analysis", "compare", *small)[0] for _ in range(3))
    rows.append(Row("`compare` of 300 adapters of 12 modules", f"{wall:.1f} s", "≤ 4 s", wall <= 4))


def large_cores(rows: list[Row]) -> None:
    """One thread each."""
    rng = np.random.default_rng(0)
    core = rng.standard_normal((1, 4096, 4096))
    with one_blas_thread():
        wall = seconds(lambda: solve(core, "float32", "auto", "cpu"))
    rows.append(Row("a Gaussian core of 4096², one thread", f"{wall:.1f} s", "≤ 10 s", wall <= 10))
    for method, blocks in (("loha", 1), ("bora", 64)):
        update = synthetic_adapter(method, {"q": (4096, 4096)}, r=64, blocks=blocks)["q"]
        wall = seconds(lambda update=update: singular_values(update))
        name = f"{method}, r = 64" + (f", b = {blocks}" if blocks > 1 else "")
        rows.append(Row(f"{name}, 4096², a core of 4096²", f"{wall:.1f} s", "≤ 10 s", wall <= 10))


def main() -> int:
    parser = argparse.ArgumentParser(description="The performance targets, in one run.")
    parser.add_argument("--gradience", help="its executable, to compare with")
    parser.add_argument("--adaptersentry", help="its executable, to compare with")
    options = parser.parse_args()
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if not one_thread.items() <= os.environ.items():  # BLAS has started its threads
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **one_thread})
    load = os.getloadavg()[0]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        lora = synth(home / "lora", "--method", "lora", "-r", "16", "--target", "all", "--kind", "gaussian")
        wide = synth(home / "wide", "--method", "lora", "-r", "128", "--target", "all", "--kind", "gaussian")
        bora = synth(home / "bora", "--method", "bora", "-r", "8", "--blocks", "16", "--target", "qkv")

        against_peers(lora, {name: value for name, value in vars(options).items() if value}, rows)
        against_torch(lora, rows)
        idle = median(lambda: analyse(read_adapter(lora)))
        large = median(lambda: analyse(read_adapter(wide)), 3)
        rows.append(Row("analysis, LoRA r=128, 224 modules", f"{large:.2f} s", "≤ 1.7 s", large <= 1.7))
        blocks = median(lambda: analyse(read_adapter(bora)))
        rows.append(Row("analysis, BoRA r=8 b=16, 96 modules", f"{blocks:.2f} s", "≤ 0.3 s", blocks <= 0.3))

        cores = available_cores()
        with spinning(cores):
            busy = median(lambda: analyse(read_adapter(lora)))
        # With as many busy processes as cores we get half of each core: a factor of 2 is lost.
        text = f"{busy / idle:.1f}× idle"
        rows.append(Row(f"LoRA r=16 beside {cores} spinning processes", text, "≤ 6×", busy <= 6 * idle))

        # A dense SVD takes seconds per matrix, so one module of middle size is compared: medians on both sides.
        module = "model.layers.0.self_attn.q_proj"
        dense = statistics.median(dense_seconds(lora, [module])[module] for _ in range(3))
        ratio = dense / (idle / 224)
        rows.append(Row("per module against dense svdvals (4096², torch)", f"{ratio:,.0f}×", "≥ 1,000×", ratio >= 1000))

        many_modules(home, rows)
        large_cores(rows)
        program = str(Path(sys.executable).parent / "bora-analysis")
        start = statistics.median(process(program, "--help")[0] for _ in range(RUNS))
        rows.append(Row("`bora-analysis --help`", f"{start:.2f} s", "≤ 0.3 s", start <= 0.3))

    system = f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"
    print(f"{system}, load {load:.1f}; medians of {RUNS}\n\n| what | measured | target | |\n|---|---|---|---|")
    for row in rows:
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        print(f"| {row.what} | {row.measured} | {row.target} | {verdict} |")
    return int(any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
