"""The commands that train and compare several variants, and that print what they reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import command, engines, fail, print_listed, set_values, stop
from .output import Output, output

if TYPE_CHECKING:
    import pandas as pd

    from ..training.plan import Plan, Run


@command(
    "experiment plan.toml -o out/plan",
    "experiment figure3b-small --model minilm --data reviews.csv -o out/figure3b",
    "experiment plan.toml -o out/plan --format latex",
)
@click.argument("plan", metavar="PLAN", required=False)
@click.option("--list", "listing", is_flag=True, help="List the experiments of the paper and exit.")
@click.option("-o", "--output", "folder", metavar="DIR", help="Where the runs and tables lie; a second start goes on.")
@click.option("--model", metavar="DIR_OR_HUB_ID", help="The base model of every run.")
@click.option("--data", metavar="FILE_OR_HUB_ID", help="The data of every run.")
@click.option(
    "--set", "changes", metavar="KEY=VALUE", multiple=True, callback=set_values, help="A setting of every run."
)
@click.option(
    "--reuse", metavar="DIR", multiple=True, help="Copy finished runs with the same settings from there; repeatable."
)
@click.option("--runs", "naming", is_flag=True, help="Print the runs, and which are finished, and train nothing.")
@engines("Runs at a time.  [default: one per core; 1 on a GPU]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@output(metavar=None)
def experiment(
    plan: str | None,
    listing: bool,
    folder: str | None,
    model: str | None,
    data: str | None,
    changes: dict[str, Any],
    reuse: tuple[str, ...],
    naming: bool,
    engine: str,
    address: str | None,
    workers: int | None,
    device: str,
    out: Output,
) -> None:
    """Train several variants, each with several seeds, and compare them (extra `train`).

    PLAN is a TOML file with settings, variants and a grid, or the name of an experiment of the paper (--list). What is
    finished is not trained again, so the same line prints the table once more. DIR/runs has the runs as `train` writes
    them, DIR/runs.csv a row for each, DIR/table.csv the table.
    """
    try:
        from ..adapters import AdapterError
        from ..training import TrainingError, read_plan
        from ..training import experiment as run
        from ..training.plan import presets, title
    except ImportError as error:
        stop(error)
    if listing:
        print_listed([(name, title(path)) for name, path in presets().items()])
        return
    if plan is None or folder is None:
        raise click.UsageError("expected PLAN -o DIR; `experiment --list` names the experiments of the paper")
    given = {key: value for key, value in (("model", model), ("data", data)) if value is not None}
    failures = 0

    def ended(each: Run, error: str | None, left: int) -> None:
        nonlocal failures
        if error is not None:
            failures += 1
            fail(f"{each.name}: {error}")
        elif not out.quiet:
            click.echo(f"{each.name} finished, {left} left", err=True)

    try:
        told = read_plan(plan, changes | given)
        if naming:
            print_listed(_named(told, folder))
            return
        where = {"engine": engine, "address": address, "workers": workers, "device": device}
        table = run(told, folder, reuse=reuse, on_run=ended, **where)
    except BrokenPipeError:  # an OSError that click knows
        raise
    except (TrainingError, AdapterError, ImportError, OSError) as error:
        stop(error)
    _show(table, told, folder, out)
    if failures:
        raise click.exceptions.Exit(1)


@command(
    "table --from out/table8",
    "table --from out/table8 --format latex -o table8.tex",
    "table --from out/plan --paper 9",
)
@click.option("--from", "folder", metavar="DIR", required=True, help="The folder of `experiment PLAN -o DIR`.")
@click.option("--paper", type=int, metavar="K", help="Table K of the paper beside it.  [default: the plan's]")
@output()
def table(folder: str, paper: int | None, out: Output) -> None:
    """The table of an experiment, also of one that still goes on, beside the paper's numbers.

    Nothing is trained. A run that has no result is named below, with the reason: not begun, not finished, or the error
    that it failed with.
    """
    try:
        from ..adapters import AdapterError
        from ..training import TrainingError
        from ..training.experiment import read_experiment, runs_of, table_of
    except ImportError as error:
        stop(error)
    try:
        plan = read_experiment(folder)
        frame = table_of(plan, runs_of(plan, folder))
        _show(frame, plan, folder, out, paper)
    except BrokenPipeError:
        raise
    except (TrainingError, AdapterError, OSError) as error:
        stop(error)


def _show(table: pd.DataFrame, plan: Plan, folder: str, out: Output, number: int | None = None) -> None:
    from ..analysis.runs import unfinished
    from ..training.beside import beside_paper
    from .experiment_text import experiment_table

    frame = beside_paper(table, plan, number)
    out.deliver(frame, lambda: experiment_table(frame, plan, unfinished(folder)))


def _named(plan: Plan, folder: str) -> list[tuple[str, str]]:
    from pathlib import Path

    from ..training.experiment import finished

    return [("finished" if finished(Path(folder), run) else "waiting", run.folder) for run in plan.runs]
