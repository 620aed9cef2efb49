"""Experiments: the runs of a plan, several at a time, on this machine or a cluster, and what they reached.

A folder holds ``runs/…/seed-N`` as :func:`bora_analysis.training.train` writes them, ``runs.csv`` (one row per run) and
``table.csv`` (one row per variant: mean, standard deviation, difference to the reference).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import AdapterError
from ..analysis.runs import RECORD, run_table
from ..atomic import replacing
from ..extras import require
from ..fleet import engines
from .errors import TrainingError
from .plan import Plan, Run
from .run import train

if TYPE_CHECKING:
    import pandas as pd

#: Of the ranks and costs of a run's adapter, the columns of the table of variants: means over the seeds.
MEASURED = ("parameters", "rank_bound", "effective_rank", "energy_rank_99", "stable_rank")
_CONFIDENCE = 0.95


def experiment(
    plan: Plan,
    output: str | Path,
    *,
    engine: str = "loky",
    address: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    on_run: Callable[[Run, str | None, int], object] | None = None,
) -> pd.DataFrame:
    """Train the runs of a plan that are not finished, and compare the variants.

    Parameters
    ----------
    plan : of :func:`bora_analysis.training.plan.read_plan`.
    output : a folder; finished runs in it are kept, others go on where they were stopped.
    engine, address, workers : as for :func:`bora_analysis.sweep`: joblib's processes on this machine, one per core, or
        those of a cluster, which must reach ``output`` by the same path. Each has one thread, so that the result does
        not depend on their number.
    device : ``"auto"``, ``"cpu"`` or ``"cuda"``. On a GPU ``workers`` is 1 unless it is given.
    on_run : receives each run that ends, its error or None, and how many are left.

    Returns
    -------
    DataFrame
        See :func:`variants_of`, over the runs that were finished.

    Raises
    ------
    TrainingError
        Before anything is trained: a run in ``output`` has other settings. Afterwards: no run has finished.
    ImportError
        The extra ``train`` is not installed.
    """
    require("train", "an experiment", "torch", "transformers", "peft", "sklearn")
    folder = Path(output)
    waiting = [run for run in plan.runs if not finished(folder, run)]
    folder.mkdir(parents=True, exist_ok=True)
    batches = [(run, str(folder / run.folder), device) for run in waiting]
    left = len(waiting)
    if waiting:
        for place, error in engines.run(
            _performed, batches, engine=engine, address=address, workers=workers or _workers(device)
        ):
            left -= 1
            if on_run is not None:
                on_run(waiting[place], error, left)
    runs = runs_of(plan, folder)
    if runs.empty:
        raise TrainingError(f"{folder}: no run of the experiment has finished")
    table = variants_of(runs, plan.axes, plan.reference)
    for name, frame in (("runs.csv", runs), ("table.csv", table)):
        with replacing(folder / name) as path:
            frame.to_csv(path, index=False)
    return table


def finished(folder: Path, run: Run) -> bool:
    """Whether the run has ended; TrainingError where its folder holds a run with other settings."""
    record = folder / run.folder / RECORD
    if not record.exists():
        return False
    try:
        told = json.loads(record.read_text(encoding="utf-8"))
        earlier, status = dict(told["settings"]), told["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{record}: not a record of a run ({type(error).__name__}); remove it") from None
    wanted = json.loads(json.dumps(run.settings.as_record()))
    for key in sorted(wanted.keys() | earlier.keys()):
        if wanted.get(key) != earlier.get(key):
            raise TrainingError(
                f"{record.parent}: holds a run with {key} {earlier.get(key)!r}, and the experiment has "
                f"{wanted.get(key)!r}; choose another folder for the experiment, or remove this one"
            )
    return status == "finished"


def _performed(place: int, run: Run, folder: str, device: str) -> tuple[int, tuple[int, str | None]]:
    """What a worker does: it raises nothing, as the engines ask for."""
    try:
        import torch

        torch.set_num_threads(1)
        train(run.settings, folder, resume=(Path(folder) / RECORD).exists(), device=device)
    except Exception as error:  # of any library below
        told = " ".join(str(error).split()) or type(error).__name__
        return place, (place, told if isinstance(error, TrainingError) else f"{type(error).__name__}: {told}")
    return place, (place, None)


def _workers(device: str) -> int | None:
    import torch

    return 1 if device != "cpu" and torch.cuda.is_available() else None


def runs_of(plan: Plan, folder: str | Path) -> pd.DataFrame:
    """One row per finished run of a plan.

    Returns
    -------
    DataFrame
        variant, the axes of the grid, seed, run (its folder), metric (its name), value, seconds, and the columns of
        :func:`bora_analysis.summary` for all modules; empty ranks where the adapter cannot be read.
    """
    import pandas as pd

    return pd.DataFrame(list(_rows(plan, Path(folder))))


def _rows(plan: Plan, folder: Path) -> Iterator[dict[str, Any]]:
    for run in plan.runs:
        if not finished(folder, run):
            continue
        told = json.loads((folder / run.folder / RECORD).read_text(encoding="utf-8"))
        ((metric, value),) = told["metric"].items()
        row = {"variant": run.variant, **run.point, "seed": run.settings.seed, "run": run.folder}
        row |= {"metric": metric, "value": value, "seconds": told["seconds"]}
        try:
            (measured,) = run_table([folder / run.folder]).to_dict("records")
        except AdapterError:  # DoRA, where the base model is elsewhere
            measured = {"method": run.settings.method}
        yield row | {str(key): value for key, value in measured.items() if key not in _OWN}


#: Columns of run_table that runs_of has of its own, or has no use for.
_OWN = ("adapter", "group", "seed", "outcome", "value", "step", "projection")


def variants_of(runs: pd.DataFrame, axes: tuple[str, ...] = (), reference: str | None = None) -> pd.DataFrame:
    """One row per variant and point of the grid.

    Parameters
    ----------
    runs : of :func:`runs_of`. axes : columns of the grid, without the seed. reference : a variant.

    Returns
    -------
    DataFrame
        variant, the axes, metric, n (runs), mean, sd (over the seeds), difference (to the reference at the same
        point, mean over the seeds that both have), low, high (Student's interval of 95 % of that mean), p (two-sided
        paired t-test), pairs (how many seeds), then the means of ``MEASURED`` and seconds. NaN where a number needs
        more runs than there are.

    Notes
    -----
    The test speaks of seeds, not of other examples or tasks, and each line is tested alone. With three seeds the
    interval is 4.3 standard errors wide on either side.

    Examples
    --------
    >>> import pandas as pd
    >>> runs = pd.DataFrame({"variant": ["a", "b"] * 3, "seed": [0, 0, 1, 1, 2, 2], "metric": "accuracy",
    ...                      "value": [0.8, 0.83, 0.7, 0.72, 0.9, 0.91]})
    >>> variants_of(runs, reference="a")[["variant", "mean", "difference", "p"]].round(3).values.tolist()
    [['a', 0.8, nan, nan], ['b', 0.82, 0.02, 0.074]]
    """
    import pandas as pd

    keys = ["variant", *axes, "metric"]
    measured = [name for name in (*MEASURED, "seconds") if name in runs]
    rows = []
    for key, part in runs.groupby(keys, sort=False, dropna=False):
        point = dict(zip(keys, key, strict=True))
        row: dict[str, Any] = {**point, "n": len(part), "mean": part["value"].mean(), "sd": part["value"].std()}
        others = runs[runs["variant"] == reference]
        for name in (*axes, "metric"):
            others = others[others[name] == point[name]]
        both = part.merge(others, on="seed", suffixes=("", "_reference"))
        apart = (both["value"] - both["value_reference"]).tolist() if point["variant"] != reference else []
        row |= dict(zip(("difference", "low", "high", "p"), paired(apart), strict=True))
        rows.append({**row, "pairs": len(apart), **part[measured].mean(numeric_only=True).to_dict()})
    return pd.DataFrame(rows)


def paired(differences: list[float]) -> tuple[float, float, float, float]:
    """Mean, Student's interval of 95 %, and p of the two-sided t-test, of differences between pairs.

    NaN where there are too few, or where all are alike and have no spread to judge by.

    Examples
    --------
    >>> [round(number, 3) for number in paired([0.03, 0.02, 0.01])]
    [0.02, -0.005, 0.045, 0.074]
    """
    from statistics import fmean, stdev

    from scipy.stats import t

    nan = float("nan")
    n = len(differences)
    mean = fmean(differences) if n else nan
    error = stdev(differences) / n**0.5 if n > 1 else nan
    if not error > 0:
        return mean, nan, nan, nan
    half = float(t.ppf((1 + _CONFIDENCE) / 2, n - 1)) * error
    return mean, mean - half, mean + half, 2 * float(t.sf(abs(mean) / error, n - 1))
