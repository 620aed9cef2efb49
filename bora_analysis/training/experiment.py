"""Experiments: the runs of a plan, several at a time, on this machine or a cluster, and what they reached.

A folder holds ``runs/…/seed-N`` as :func:`bora_analysis.training.train` writes them, ``experiment.json`` (what was
planned, and the errors of what failed), ``runs.csv`` (one row per run) and ``table.csv`` (one row per variant: mean,
standard deviation, difference to the reference).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..adapters import AdapterError
from ..analysis.runs import EXPERIMENT, RECORD, experiment_record, finished_runs, run_table, setting_of
from ..atomic import replacing
from ..extras import require
from ..fleet import engines
from .errors import TrainingError
from .plan import Plan, Run, settings_of
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
    reuse: Iterable[str | Path] = (),
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
    reuse : folders, such as those of other experiments; a finished run in them with the same settings is copied, not
        trained again.
    on_run : receives each run that ends, its error or None, and how many are left.

    Returns
    -------
    DataFrame
        See :func:`table_of`.

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
    waiting = _without_copied(waiting, folder, reuse)
    batches = [(run, str(folder / run.folder), device) for run in waiting]
    left = len(waiting)
    errors = _errors(folder, waiting)
    _write_plan(plan, folder, errors)
    if waiting:
        for place, error in engines.run(
            _performed, batches, engine=engine, address=address, workers=workers or _workers(device)
        ):
            left -= 1
            errors.pop(waiting[place].folder, None)
            if error is not None:
                errors[waiting[place].folder] = error
            _write_plan(plan, folder, errors)
            if on_run is not None:
                on_run(waiting[place], error, left)
    runs = runs_of(plan, folder)
    if runs.empty:
        raise TrainingError(f"{folder}: no run of the experiment has finished")
    table = table_of(plan, runs)
    for name, frame in (("runs.csv", runs), ("table.csv", table)):
        with replacing(folder / name) as path:
            frame.to_csv(path, index=False)
    return table


def _without_copied(waiting: list[Run], folder: Path, reuse: Iterable[str | Path]) -> list[Run]:
    """Copy the runs that lie in ``reuse`` with the same settings; the others are returned.

    A run that was begun here goes on where it is.
    """
    found = {_key(record["settings"]): place for place, record in finished_runs(reuse)}
    left = []
    for run in waiting:
        own = folder / run.folder
        source = found.get(_key(run.settings.as_record()))
        if source is None or own.exists():
            left.append(run)
            continue
        own.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=own.parent) as temporary:  # the run appears whole or not at all
            shutil.copytree(source, Path(temporary) / own.name).rename(own)
    return left


def _key(settings: Any) -> str:
    return json.dumps(settings, sort_keys=True)


def _errors(folder: Path, waiting: list[Run]) -> dict[str, str]:
    """Run → what it failed with at an earlier start."""
    told = experiment_record(folder)["errors"] if (folder / EXPERIMENT).exists() else {}
    return {run.folder: told[run.folder] for run in waiting if run.folder in told}


def _write_plan(plan: Plan, folder: Path, errors: dict[str, str]) -> None:
    runs = [
        {"folder": run.folder, "variant": run.variant, "point": dict(run.point), "settings": run.settings.as_record()}
        for run in plan.runs
    ]
    told = {"reference": plan.reference, "paper": plan.paper, "runs": runs, "errors": errors}
    with replacing(folder / EXPERIMENT) as path:
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_experiment(folder: str | Path) -> Plan:
    """The plan of an experiment that was begun, from its folder.

    Raises
    ------
    AdapterError
        No experiment there, or a record that is none.
    TrainingError
        Its record has settings that this version does not know.
    """
    told = experiment_record(Path(folder))
    where = str(Path(folder) / EXPERIMENT)
    runs = [
        Run(each["variant"], each["point"], settings_of(each["settings"], where), each["folder"])
        for each in told["runs"]
    ]
    if not runs:
        raise TrainingError(f"{where}: has no runs; start the experiment again")
    return Plan(tuple(runs), told.get("reference"), told.get("paper"))


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
        variant, the axes of the grid, seed, run (its folder), model, method (``bora-no-exp`` and ``bora-no-norm`` are
        BoRA's ablations), r, blocks, target, metric (its name), value, seconds, and the columns of
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
        row |= {**setting_of(told["settings"]), "metric": metric, "value": value, "seconds": told["seconds"]}
        try:
            (measured,) = run_table([folder / run.folder]).to_dict("records")
        except AdapterError:  # DoRA, where the base model is elsewhere
            measured = {}
        yield row | {str(key): value for key, value in measured.items() if key not in _OWN}


#: Columns of run_table that runs_of has of its own, or has no use for.
_OWN = ("adapter", "group", "seed", "outcome", "value", "step", "projection", "method", "equal_budget")


def table_of(plan: Plan, runs: pd.DataFrame) -> pd.DataFrame:
    """:func:`variants_of`, with every row that was planned.

    Parameters
    ----------
    runs : of :func:`runs_of`, also none.

    Returns
    -------
    DataFrame
        One more column, missing: how many planned runs are not among ``runs``. A row that has no run at all has n = 0
        and empty numbers.
    """
    import pandas as pd

    keys = ["variant", *plan.axes, "metric"]
    planned = Counter((run.variant, *run.point.values(), run.settings.scored_by) for run in plan.runs)
    found: list[Any] = variants_of(runs, plan.axes, plan.reference).to_dict("records") if len(runs) else []
    by_key = {tuple(row[key] for key in keys): row for row in found}
    rows = []
    for key, count in planned.items():
        row: dict[str, Any] = {**dict.fromkeys(_NUMBERS, float("nan")), "n": 0, "pairs": 0} | by_key.get(key, {})
        head = {**dict(zip(keys, key, strict=True)), "n": row["n"], "missing": count - row["n"]}
        rows.append({**head, **{name: value for name, value in row.items() if name not in head}})
    return pd.DataFrame(rows)


_NUMBERS = ("mean", "sd", "difference", "low", "high", "p")


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
