"""What the BoRA paper reached with the settings of an experiment, beside what the experiment did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..analysis.runs import setting_of
from .errors import TrainingError
from .plan import PAPER, Plan, Run

if TYPE_CHECKING:
    import pandas as pd

#: Begins the columns of the paper's values; ends those of their differences to the reference.
START, APART = "paper_", "_difference"
_SAME = ("method", "r", "blocks")


def beside_paper(table: pd.DataFrame, plan: Plan, number: int | None = None) -> pd.DataFrame:
    """The table of an experiment with the paper's values of the same method, r and b.

    Parameters
    ----------
    table : of :func:`bora_analysis.training.experiment.table_of`. plan : its plan.
    number : of the paper's table; by default the one that the plan names. Without either nothing is added.

    Returns
    -------
    DataFrame
        For each model of the paper's table a column ``paper_MODEL``, in the paper's units (accuracy in %), and
        ``paper_MODEL_difference`` to the reference in points; empty where the paper has no such run. They are the
        averages over the paper's tasks, or the task of a run on GLUE. A run on one of the paper's models has a value
        beside it for that model alone. The target is compared only where the experiment varies it.

    Raises
    ------
    TrainingError
        A number that is no such table.

    Examples
    --------
    >>> from bora_analysis.training import read_plan
    >>> from bora_analysis.training.experiment import table_of
    >>> plan = read_plan("table8-small", {"model": "m", "data": "d"})
    >>> shown = beside_paper(table_of(plan, []), plan)
    >>> shown[["variant", "target", "paper_llama-3-8b", "paper_llama-3-8b_difference"]].values.tolist()[:2]
    [['lora-r8', 'Q', 64.97, nan], ['bora-r8-b16', 'Q', 67.87, 2.9]]
    """
    number = plan.paper if number is None else number
    if number is None:
        return table
    if number not in PAPER:
        raise TrainingError(
            f"table {number} of the paper does not say what methods reach; expected {', '.join(map(str, PAPER))}"
        )
    from ..paper.tables import table as paper_table

    paper = paper_table(number)
    models = list(dict.fromkeys(paper["model"]))
    columns = ["model", "task", "target", *_SAME, "value"]
    value = {row[:-1]: row[-1] for row in paper[columns].itertuples(index=False, name=None)}
    targets = list(dict.fromkeys(paper["target"]))
    varied = len({run.settings.target for run in plan.runs}) > 1
    runs = {(run.variant, *run.point.values()): run for run in plan.runs}

    def of(run: Run, model: str) -> float:
        """NaN where the paper has no such run."""
        told = setting_of(run.settings.as_record())
        own = next((name for name in models if run.settings.model.lower().endswith(name)), None)
        task = _task(run, list(paper["task"])) if own is not None else "Avg"
        if own not in (None, model):
            return float("nan")
        for target in [told["target"]] if varied else [told["target"], *targets]:
            found = value.get((model, task, target, *(told[name] for name in _SAME)))
            if found is not None:
                return found
        return float("nan")

    keys = list(table[["variant", *plan.axes]].itertuples(index=False, name=None))
    added: dict[str, Any] = {}
    for model in models:
        own = [of(runs[key], model) for key in keys]
        base = [of(runs[(plan.reference, *key[1:])], model) if plan.reference else float("nan") for key in keys]
        if all(each != each for each in own):
            continue
        added[START + model] = own
        added[START + model + APART] = [
            float("nan") if key[0] == plan.reference else round(each - other, 2)
            for key, each, other in zip(keys, own, base, strict=True)
        ]
    return table.assign(**added)


def _task(run: Run, tasks: list[str]) -> str:
    """The paper's name of the task of a run on GLUE; "Avg" for others."""
    name = run.settings.data.rpartition(":")[2].lower()
    return next((task for task in tasks if task.lower().replace("-", "") == name), "Avg")
