"""Train the paper's experiments at their small size, and keep what they reached.

    python data/prepare.py
    python data/make_experiments.py            # → out/training/experiments/NAME, then data/experiments.csv, gain.csv

Figure 3 (a), table 8 with figure 3 (c), and table 9 with figure 3 (b), on the product reviews, and beside them BoRA at
the gain of LoRA (gain.toml). Table 1 at this size is what make_adapters.py trains. What is finished is not trained
again; ``--collect`` trains nothing, and ``--list`` prints the commands.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from make_adapters import MODEL_NAME, WORK

DATA = Path(__file__).parent
HOME = WORK / "experiments"
#: Name → plan. A later one takes the runs that an earlier one has too.
PLANS = {name: f"{name}-small" for name in ("figure3a", "table8", "table9")} | {"gain": "data/gain.toml"}
NAMES = tuple(PLANS)
#: Name → its table; those of the paper have one, of which ``figure figure3`` draws the panels.
TABLES = {name: DATA / ("gain.csv" if name == "gain" else "experiments.csv") for name in NAMES}
#: What the presets leave open.
GIVEN = {
    "model": f"{WORK}/all-MiniLM-L6-v2",
    "data": f"{WORK}/products.csv",
    "task": "regression",
    "model_name": MODEL_NAME,
}
#: Of runs.csv, the columns that do not depend on how busy the machine was.
KEPT = (
    "variant", "seed", "model", "method", "r", "blocks", "target", "metric", "value", "parameters", "rank_bound",
    "effective_rank", "energy_rank_99", "stable_rank",
)  # fmt: skip
PACKAGES = ("bora_analysis", "peft", "transformers", "torch", "numpy")


def command(name: str) -> list[str]:
    """What follows ``bora-analysis``."""
    words = ["experiment", PLANS[name], "--model", GIVEN["model"], "--data", GIVEN["data"]]
    for key in ("task", "model_name"):
        words += ["--set", f"{key}={GIVEN[key]}"]
    for earlier in NAMES[: NAMES.index(name)]:
        words += ["--reuse", f"{HOME}/{earlier}"]
    return [*words, "-o", f"{HOME}/{name}"]


def main() -> None:
    """Train, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the commands and exit")
    parser.add_argument("--collect", action="store_true", help="keep what is finished; train nothing")
    given = parser.parse_args()
    for name in NAMES:
        if given.list:
            print("bora-analysis", shlex.join(command(name)))
        elif not given.collect:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, "-m", "bora_analysis", *command(name)], check=True, env=environment)
    if not given.list:
        collect()


def plan_of(name: str) -> Any:
    """The plan with what it leaves open."""
    from bora_analysis.training import read_plan

    plan = PLANS[name]
    return read_plan(DATA / Path(plan).name if plan.endswith(".toml") else plan, GIVEN)


def collect() -> None:
    """The tables of the finished runs."""
    import pandas as pd

    for path in dict.fromkeys(TABLES.values()):
        rows = [row for name in NAMES if TABLES[name] == path for row in _rows(name)]
        pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6f", lineterminator="\n")
        print(f"wrote {path}: {len(rows)} runs")


def _rows(name: str) -> Iterator[dict[str, object]]:
    from bora_analysis.training.experiment import runs_of

    if (HOME / name).exists():
        for row in runs_of(plan_of(name), HOME / name).to_dict("records"):
            record = json.loads((HOME / name / str(row["run"]) / "run.json").read_text(encoding="utf-8"))
            versions = record["versions"]
            told = ", ".join(f"{package} {versions[package].partition('+')[0]}" for package in PACKAGES)
            yield {"experiment": name, **{key: row[key] for key in KEPT}, "steps": record["steps"], "versions": told}


if __name__ == "__main__":
    main()
