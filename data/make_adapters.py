"""Train the bundled adapters anew and write the table of what they reach.

    python data/prepare.py
    python data/make_adapters.py            # → out/training/runs, then data/results.csv, data/trained-*, data/runs

Twelve adapters, two tasks, three seeds: 72 runs of 400 steps, every one of them with the same data, steps, batches and
learning rate. A run that is finished is left alone and one that was interrupted goes on, so that the command can be
stopped and called again. ``--list`` prints the commands. On two cores the whole takes some hours.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

WORK = Path("out/training")
DATA = Path(__file__).parent
MODEL_NAME = "sentence-transformers/all-MiniLM-L6-v2"
#: Name → what tells the method from the others.
ADAPTERS = {
    "lora-r8": "--method lora -r 8",
    "lora-r16": "--method lora -r 16",
    "lora-r32": "--method lora -r 32",
    "dora-r8": "--method dora -r 8",
    "melora-r8-n4": "--method melora -r 8 --blocks 4",
    "hydralora-r4": "--method hydralora -r 4 --experts 3",
    "sbora-fa-r8": "--method sbora-fa -r 8",
    "sbora-fb-r8": "--method sbora-fb -r 8",
    "bora-r8-b8": "--method bora -r 8 --blocks 8",
    "bora-r8-b16": "--method bora -r 8 --blocks 16",
    "bora-r8-b8-no-exp": "--method bora -r 8 --blocks 8 --activation no-exp",
    "bora-r8-b8-no-norm": "--method bora -r 8 --blocks 8 --activation no-norm",
}
#: Task → its data, and the prefix of the bundled adapters' names.
TASKS = {
    "movies": ("--task classification --data out/training/movies.csv", "trained-"),
    "products": ("--task regression --data out/training/products.csv", "trained-rating-"),
}
BUDGET = "--steps 400 --batch-size 8 --learning-rate 1e-3 --max-length 48 --group-by-length"
SEEDS = (0, 1, 2)
#: Whose checkpoints are bundled, of the first task and seed.
TRAJECTORIES = ("lora-r8", "melora-r8-n4", "bora-r8-b8", "bora-r8-b16")


def runs() -> Iterator[tuple[str, str, int]]:
    """Task, adapter and seed of every run, the bundled seed first."""
    for seed in SEEDS:
        for task in TASKS:
            for name in ADAPTERS:
                yield task, name, seed


def command(task: str, name: str, seed: int) -> list[str]:
    """The command of a run, without the program."""
    model = f"--model {WORK / 'all-MiniLM-L6-v2'} --model-name {MODEL_NAME}"
    words = f"train {model} {TASKS[task][0]} {ADAPTERS[name]} {BUDGET} --seed {seed} -o {folder(task, name, seed)}"
    return shlex.split(words)


def folder(task: str, name: str, seed: int) -> Path:
    return WORK / "runs" / task / name / f"seed-{seed}"


def finished(place: Path) -> bool:
    record = place / "run.json"
    return record.exists() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"


def run(task: str, name: str, seed: int) -> None:
    """Train one, with one thread: several at a time are faster than one with several threads."""
    place = folder(task, name, seed)
    if finished(place):
        return
    words = [*command(task, name, seed), *(["--resume"] if place.exists() else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bora_analysis", *words], env=environment, capture_output=True, text=True
    )
    print(f"{task} {name} seed {seed}: {(done.stdout or done.stderr).strip().splitlines()[-1]}", flush=True)


def results() -> list[dict[str, object]]:
    """One row per finished run."""
    rows: list[dict[str, object]] = []
    for task, name, seed in runs():
        place = folder(task, name, seed)
        if finished(place):
            record = json.loads((place / "run.json").read_text(encoding="utf-8"))
            ((metric, value),) = record["metric"].items()
            parameters = record["parameters"]["adapter"]
            row = (task, name, seed, parameters, record["steps"], metric, round(value, 6))
            rows.append(
                dict(zip(("task", "adapter", "seed", "parameters", "steps", "metric", "value"), row, strict=True))
            )
    return rows


def bundle() -> None:
    """Copy the first seed's adapters, the trajectories and the table into this folder."""
    for task, (_, prefix) in TASKS.items():
        for name in ADAPTERS:
            _copy(folder(task, name, SEEDS[0]), DATA / f"{prefix}{name}", ("run.json",))
    for name in TRAJECTORIES:
        source = folder("movies", name, SEEDS[0])
        for checkpoint in source.glob("checkpoint-*"):
            _copy(checkpoint, DATA / "runs" / name / checkpoint.name)
    with (DATA / "results.csv").open("w", encoding="utf-8", newline="") as handle:
        rows = results()
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def table() -> str:
    """The results as Markdown, in the shape of the paper's table 1: mean ± standard deviation over the seeds."""
    with (DATA / "results.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    lines = ["| adapter | parameters | movies, accuracy | products, Pearson |", "|---|--:|--:|--:|"]
    for name in ADAPTERS:
        cells = []
        for task in TASKS:
            values = [100 * float(row["value"]) for row in rows if (row["task"], row["adapter"]) == (task, name)]
            cells.append(f"{mean(values):.2f} ± {stdev(values):.2f}")
        parameters = next(int(row["parameters"]) for row in rows if row["adapter"] == name)
        lines.append(f"| {name} | {parameters:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _copy(source: Path, target: Path, beside: tuple[str, ...] = ()) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", *beside):
        shutil.copyfile(source / name, target / name)


def main() -> None:
    """Train what is missing, then bundle it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the commands and exit")
    parser.add_argument("--table", action="store_true", help="print the table of results.csv and exit")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    arguments = parser.parse_args()
    if arguments.list:
        for task, name, seed in runs():
            print("bora-analysis", shlex.join(command(task, name, seed)))
        return
    if arguments.table:
        print(table())
        return
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda each: run(*each), runs()))
    missing = [place for each in runs() if not finished(place := folder(*each))]
    if missing:
        sys.exit(f"{len(missing)} runs did not finish, {missing[0]} the first; nothing was bundled")
    bundle()


if __name__ == "__main__":
    main()
