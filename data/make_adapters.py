"""Train the bundled adapters and the experiments beside them, and write the table of what they reach.

    python data/prepare.py
    python data/make_adapters.py            # → out/training/runs, then data/results.csv, data/trained-*, data/runs
    python data/make_adapters.py --only full rates

Four groups of runs, all of 400 steps with the same data:

- ``bundled``: twelve adapters, two tasks, three seeds, one learning rate;
- ``full``: full fine-tuning of query and value, the target of ``capture``;
- ``rates``: a grid of three learning rates, with BoRA also at the gain of LoRA;
- ``advised``: the ranks that ``recommend`` advises for the bundled LoRAs, trained anew.

A run that is finished is left alone and one that was interrupted begins again or goes on, so that the command can be
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
from typing import Any, NamedTuple

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
#: As trained in the paper, and the changes that some adapters are trained with too.
PLAIN, MATCHED, ADVISED = "plain", "matched-gain", "advised"
#: The rate of BUDGET, those tried beside it, and that of full fine-tuning.
RATE, RATES, FULL_RATES = "1e-3", ("3e-4", "1e-3", "3e-3"), ("5e-5", "2e-4")
#: Whose learning rates are compared. At its start BoRA's E[s²] is sinh(4)/4 = 6.8, so that α = 16 / √6.82 gives ΔW the
#: size that LoRA's has with factors of the same size.
RATED = (
    ("lora-r8", PLAIN),
    ("bora-r8-b8", PLAIN),
    ("bora-r8-b8", MATCHED),
    ("melora-r8-n4", PLAIN),
    ("bora-r8-b16", PLAIN),
)
MATCHED_ALPHA = "6.1256"
FULL = "full"
#: Whose advice is tested, and where it lies: what ``recommend --pattern`` prints for the adapter of the first seed.
ADVICE = Path("data/advice")
ASKED = ("lora-r8", "lora-r16", "lora-r32")


class Run(NamedTuple):
    """What tells one training from the others."""

    task: str
    adapter: str
    seed: int
    variant: str = PLAIN
    rate: str = RATE

    @property
    def folder(self) -> Path:
        changes = [self.variant] * (self.variant != PLAIN) + [f"lr{self.rate}"] * (self.rate != RATE)
        return WORK / "runs" / self.task / "-".join([self.adapter, *changes]) / f"seed-{self.seed}"

    @property
    def bundle(self) -> Path:
        """The folder of the adapter in this project."""
        if self.adapter == FULL:
            return DATA / "full" / f"{self.task}-lr{self.rate}-seed{self.seed}"
        return DATA / f"{TASKS[self.task][1]}{self.adapter}"

    @property
    def bundled(self) -> bool:
        """Whether its adapter is in this project. Full fine-tuning's are large: both seeds of the rate that works."""
        if self.adapter == FULL:
            return self.seed == SEEDS[0] or self.rate == FULL_RATES[1]
        return (self.seed, self.variant, self.rate) == (SEEDS[0], PLAIN, RATE)


def runs(*groups: str) -> Iterator[Run]:
    """Every run of the groups once, the bundled seed first."""
    yield from dict.fromkeys(each for group in groups or GROUPS for each in GROUPS[group]())


def _bundled() -> Iterator[Run]:
    for seed in SEEDS:
        for task in TASKS:
            for name in ADAPTERS:
                yield Run(task, name, seed)


def _full() -> Iterator[Run]:
    for seed in SEEDS[:2]:
        for task in TASKS:
            for rate in FULL_RATES:
                yield Run(task, FULL, seed, rate=rate)


def _rates() -> Iterator[Run]:
    for task in TASKS:
        for seed in SEEDS:
            for name, variant in RATED:
                for rate in RATES:
                    if (variant, rate) != (PLAIN, RATE):  # those are bundled
                        yield Run(task, name, seed, variant, rate)


def _advised() -> Iterator[Run]:
    for task in TASKS:
        for seed in SEEDS:
            for name in ASKED:
                yield Run(task, name, seed, ADVISED)


GROUPS = {"bundled": _bundled, "full": _full, "rates": _rates, "advised": _advised}


def command(run: Run) -> list[str]:
    """The command of a run, without the program."""
    model = f"--model {WORK / 'all-MiniLM-L6-v2'} --model-name {MODEL_NAME}"
    budget = BUDGET.replace(f"--learning-rate {RATE}", f"--learning-rate {run.rate}")
    if run.adapter == FULL:
        method, budget = "--method full", budget.replace("--batch-size 8", "--batch-size 16")
    else:
        method = ADAPTERS[run.adapter]
    if run.variant == MATCHED:
        method += f" --alpha {MATCHED_ALPHA}"
    if run.variant == ADVISED:
        method = f"--method lora --ranks {ADVICE / f'{run.task}-{run.adapter}.json'}"
    if (run.variant, run.rate) != (PLAIN, RATE):
        budget += " --checkpoints none"
    return shlex.split(f"train {model} {TASKS[run.task][0]} {method} {budget} --seed {run.seed} -o {run.folder}")


def finished(run: Run) -> bool:
    record = run.folder / "run.json"
    return record.exists() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"


def perform(run: Run) -> None:
    """Train one, with one thread: several at a time are faster than one with several threads."""
    if finished(run):
        return
    words = [*command(run), *(["--resume"] if run.folder.exists() else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bora_analysis", *words], env=environment, capture_output=True, text=True
    )
    said = (done.stdout or done.stderr).strip().splitlines()
    print(f"{' '.join(map(str, run))}: {said[-1] if said else done.returncode}", flush=True)


#: Columns of results.csv.
COLUMNS: tuple[str, ...] = (
    "task", "adapter", "variant", "learning_rate", "batch_size", "seed", "parameters", "steps", "metric", "value",
)  # fmt: skip


def results() -> list[dict[str, Any]]:
    """One row per run: of the finished ones what they reached, of the others what the table has already."""
    known = {run_of(row): row for row in read_results()}
    for run in runs():
        if finished(run):
            record = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
            ((metric, value),) = record["metric"].items()
            row = (
                run.task, run.adapter, run.variant, float(run.rate), record["settings"]["batch_size"], run.seed,
                record["parameters"]["adapter"], record["steps"], metric, round(value, 6),
            )  # fmt: skip
            known[run] = dict(zip(COLUMNS, row, strict=True))
    return [known[run] for run in runs() if run in known]


def read_results() -> list[dict[str, Any]]:
    with (DATA / "results.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def run_of(row: dict[str, Any]) -> Run:
    rates = {float(rate): rate for rate in (*RATES, *FULL_RATES)}
    return Run(row["task"], row["adapter"], int(row["seed"]), row["variant"], rates[float(row["learning_rate"])])


def bundle() -> None:
    """Copy the adapters that are bundled, the trajectories and the table into this folder."""
    for run in filter(finished, runs("bundled", "full")):
        if run.bundled:
            _copy(run.folder, run.bundle, ("run.json",))
    for name in TRAJECTORIES:
        for checkpoint in Run("movies", name, SEEDS[0]).folder.glob("checkpoint-*"):
            _copy(checkpoint, DATA / "runs" / name / checkpoint.name)
    rows = results()
    with (DATA / "results.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _copy(source: Path, target: Path, beside: tuple[str, ...] = ()) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", *beside):
        shutil.copyfile(source / name, target / name)


def main() -> None:
    """Train what is missing, then bundle it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="groups of runs, in their order"
    )
    parser.add_argument("--task", choices=TASKS, help="the runs of this task only")
    parser.add_argument("--list", action="store_true", help="print the commands and exit")
    parser.add_argument("--bundle", action="store_true", help="write what is finished, and train nothing")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time")
    arguments = parser.parse_args()
    chosen = [run for run in runs(*arguments.only) if arguments.task in (None, run.task)]
    if arguments.list:
        for run in chosen:
            print("bora-analysis", shlex.join(command(run)))
        return
    if arguments.bundle:
        bundle()
        return
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(perform, chosen))
    missing = [run for run in chosen if not finished(run)]
    if missing:
        sys.exit(f"{len(missing)} runs did not finish, {missing[0].folder} the first; nothing was bundled")
    bundle()


if __name__ == "__main__":
    main()
