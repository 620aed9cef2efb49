"""Training runs in a folder: what each reached, and what rank its ΔW has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters import Adapter, AdapterError, read_adapter
from ..adapters.given import named_apart
from ..catalogue import METHODS
from .groups import without_seed
from .progress import progress
from .summary import summary
from .tables import layer_metrics

if TYPE_CHECKING:
    import pandas as pd

RECORD = "run.json"
#: What an experiment is, in its folder: the variants, the runs that were planned, and the errors of those that failed.
EXPERIMENT = "experiment.json"
# What may differ between runs of one group.
_APART = ("seed",)


def run_table(
    places: Any, *, failed: Callable[[Exception], object] | None = None, on_module: Callable[[], object] | None = None
) -> pd.DataFrame:
    """One row per finished run: what it reached, and the means of the metrics over its modules.

    Parameters
    ----------
    places : folders; every ``run.json`` in them and below, beside its adapter, is a run, and a copy of it the same run.
        A method that needs the base model takes the one of its run, if that folder is here.
    failed : is called with the error of a run that cannot be read; without it the error is raised.
    on_module : called after each module, for progress.

    Returns
    -------
    DataFrame
        adapter, group (name of the runs that differ in their seed alone), seed, outcome (the metric's name), value, and
        the columns of :func:`bora_analysis.summary` for all modules.

    Raises
    ------
    AdapterError
        No finished run there; a record or adapter that cannot be read.
    """
    import pandas as pd

    found: list[tuple[Adapter, dict[str, Any], Path]] = []
    seen: set[str] = set()
    for record in _records(places):
        try:
            told = _told(record, seen)
            if told is not None:
                base = told["settings"].get("model")
                base = base if base and Path(base).is_dir() else None
                adapter: Any = read_adapter(record.parent, base=base)
                found.append((adapter, told, record.parent))
        except AdapterError as error:
            _pass_on(error, failed)
    if not found:
        raise AdapterError(
            f"{places}: no finished run; expected folders with {RECORD}, as `bora-analysis train` writes"
        )
    named = named_apart([adapter for adapter, _, _ in found])
    groups = _groups([told for _, told, _ in found], [place for _, _, place in found])
    rows = []
    with progress(sum(map(len, named)), on_module) as step:
        for adapter, (_, told, _), group in zip(named, found, groups, strict=True):
            try:
                table = summary(layer_metrics(adapter, on_module=step))
            except AdapterError as error:
                _pass_on(error, failed)
                continue
            ((outcome, value),) = told["metric"].items()
            row = table[table["projection"] == "all"].iloc[0].to_dict()
            mine = {"group": group, "seed": told["settings"].get("seed"), "outcome": outcome, "value": value}
            rows.append({"adapter": row.pop("adapter"), **mine, **row})
    return pd.DataFrame(rows)


def records(places: Any) -> pd.DataFrame:
    """One row per finished run, of what it was told and what it reached; its adapter is not read.

    Returns
    -------
    DataFrame
        adapter (its folder), outcome, value, and the settings; the method of BoRA has its activation, as in
        ``bora-no-exp``, and ``blocks`` is 1 for methods without. Settings that say where things lie are left out.
    """
    import pandas as pd

    rows = []
    for place, told in finished_runs(places):
        settings = {
            key: str(value) if isinstance(value, list | dict) else value for key, value in told["settings"].items()
        }
        ((outcome, value),) = told["metric"].items()
        settings |= setting_of(settings)
        settings.pop("model_name", None)
        for name in ("activation", "data", "checkpoints", "log_every", "evaluate_every", "resume_every", "experts"):
            settings.pop(name, None)
        rows.append({"adapter": place.name, "outcome": outcome, "value": float(value), **settings})
    if not rows:
        raise AdapterError(
            f"{places}: no finished run; expected folders with {RECORD}, as `bora-analysis train` writes"
        )
    return pd.DataFrame(rows)


def finished_runs(places: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and record of each finished run in these folders and below, of copies the first.

    Raises
    ------
    AdapterError
        No folder, or a record that is none.
    """
    seen: set[str] = set()
    for record in _records(places):
        told = _told(record, seen)
        if told is not None:
            yield record.parent, told


def missing(places: Any) -> dict[str, str]:
    """The runs that the experiments in these folders, and below, have planned and not finished: path → reason."""
    found: dict[str, str] = {}
    for place in [places] if isinstance(places, str | Path) else places:
        for record in sorted(Path(place).rglob(EXPERIMENT)):
            found |= {str(record.parent / run): reason for run, reason in unfinished(record.parent).items()}
    return found


def unfinished(experiment: str | Path) -> dict[str, str]:
    """The runs that an experiment has planned and not finished: folder in that of the experiment → reason.

    Raises
    ------
    AdapterError
        No experiment, or a record that cannot be read.
    """
    folder = Path(experiment)
    told = experiment_record(folder)
    reasons = {
        run["folder"]: _reason(folder / run["folder"], told["errors"].get(run["folder"])) for run in told["runs"]
    }
    return {run: reason for run, reason in reasons.items() if reason is not None}


def experiment_record(folder: Path) -> dict[str, Any]:
    """The content of an experiment's record; AdapterError where it is none."""
    path = folder / EXPERIMENT
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        dict(told["errors"])
        [(run["folder"], run["variant"], dict(run["point"]), dict(run["settings"])) for run in told["runs"]]
    except FileNotFoundError:
        raise AdapterError(
            f"{folder}: has no {EXPERIMENT}; expected the folder of `bora-analysis experiment PLAN -o DIR`, which, "
            "started again, trains nothing that is finished"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}: not a record of an experiment ({type(error).__name__})") from None
    return told


def _reason(folder: Path, error: str | None) -> str | None:
    """Why a run has no result; None where it has one."""
    path = folder / RECORD
    if path.exists() and _told(path) is not None:
        return None
    if error is not None:
        return f"failed: {error}"
    if not path.exists():
        return "not begun"
    told = json.loads(path.read_text(encoding="utf-8"))
    last = max((entry.get("step", 0) for entry in told.get("history", [])), default=0)
    return f"not finished: at step {last} of {told.get('steps', '?')}"


def setting_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """model, method, r, blocks and target of a run, as in the paper's tables: its ablations are methods of their own.

    Examples
    --------
    >>> setting_of({"model": "org/base", "method": "bora", "r": 8, "activation": "no-exp", "target": "QV"})
    {'model': 'base', 'method': 'bora-no-exp', 'r': 8, 'blocks': 16, 'target': 'QV'}
    """
    method, activation = str(settings["method"]), settings.get("activation", "exp-norm")
    named = f"bora-{activation}" if method == "bora" and activation != "exp-norm" else method
    row = METHODS.get(method)
    usual = (row.blocks.trained or row.blocks.default) if row is not None and row.cut and row.blocks else 1
    return {
        "model": settings.get("model_name") or Path(settings.get("model") or "").name,
        "method": named,
        "r": settings.get("r"),
        "blocks": settings.get("blocks") or usual,
        "target": settings.get("target"),
    }


def _records(places: Any) -> Iterator[Path]:
    for place in [places] if isinstance(places, str | Path) else places:
        folder = Path(place)
        if not folder.is_dir():
            raise AdapterError(f"{place}: no such folder; expected one with runs, as `bora-analysis train` writes them")
        yield from sorted(folder.rglob(RECORD))


def _told(path: Path, seen: set[str] | None = None) -> dict[str, Any] | None:
    """A run's record; None for a run that is not finished, or whose very record is among those seen."""
    try:
        text = path.read_text(encoding="utf-8")
        if seen is not None:
            if text in seen:
                return None
            seen.add(text)
        record = json.loads(text)
        if record.get("status") != "finished":
            return None
        dict(record["settings"])
        ((_, value),) = record["metric"].items()
        float(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path}: not a record of a run ({type(error).__name__})") from None
    return record


def _groups(records: Iterable[dict[str, Any]], places: Iterable[Path]) -> list[str]:
    """The name of each run's group, that of the folder of its first run without the seed."""
    names: dict[str, str] = {}
    found = []
    for record, place in zip(records, places, strict=True):
        own = {key: value for key, value in record["settings"].items() if key not in _APART}
        key = json.dumps(own, sort_keys=True)
        if key not in names:
            name = without_seed(place.name)
            name = place.parent.name if name == place.name and without_seed(f"x/{name}") == "x" else name
            taken = set(names.values())
            names[key] = name if name not in taken else f"{place.parent.name}/{place.name}"
        found.append(names[key])
    return found


def _pass_on(error: AdapterError, failed: Callable[[Exception], object] | None) -> None:
    if failed is None:
        raise error
    failed(error)
