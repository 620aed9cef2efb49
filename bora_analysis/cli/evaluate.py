"""The command that asks what the task loses when ΔW is cut."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import POSITIVE, command, fail, note, progress, reading, stop, tell, usage
from .output import RECORDS, Output, output

if TYPE_CHECKING:
    import pandas as pd

    from ..adapters import Adapter
    from ..analysis.keeping import Keep
    from ..training.evaluation_tables import Measured
    from ..training.intervals import Bootstrap

# As in training.settings, analysis.keeping and training.evaluation, which are imported when the command runs.
_TASKS = ("classification", "regression", "causal-lm")
_KEEPS = "0,1,2,4,8,16,32,64,all"
_SECONDS = 10.0  # between two writes of what there is so far


@command(
    "evaluate my-run --keep 0,1,2,4,8,all",
    "evaluate runs/* --keep 1,8,90%,all --order largest,random -o accuracy.csv --resume",
    "evaluate adapter --model org/base-model --data reviews.csv --task classification",
    "evaluate first second --keep all --compare",
)
@click.option("--model", metavar="DIR_OR_HUB_ID", help="The base model.  [default: that of run.json]")
@click.option("--data", metavar="FILE_OR_HUB_ID", help="The examples, as for `train`.  [default: those of run.json]")
@click.option("--keep", default=_KEEPS, metavar="K,K,...", help="Directions, shares of Σσ² such as 90%, all.")
@click.option(
    "--order", default="largest", metavar="ORDER,...", help="Which k are kept: largest, smallest, random, or several."
)
@click.option("--draws", type=POSITIVE, default=3, help="Random orders.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the random orders and the resamples.")
@click.option("--resamples", type=POSITIVE, default=2000, help="Of the bootstrap over the held-out examples.")
@click.option("--confidence", type=float, default=0.95, help="Of the intervals.")
@click.option("--compare", is_flag=True, help="Test every adapter against the first; this is then the result.")
@click.option("--answers", is_flag=True, help="Generate the answers to instructions and count the right ones.")
@click.option("--max-new-tokens", type=POSITIVE, default=256, help="Of an answer.")
@click.option("--task", type=click.Choice(_TASKS), help="[default: that of run.json, or classification]")
@click.option("--text", metavar="COLUMN[,COLUMN]", help="Column of the text, or of a pair of texts.")
@click.option("--label", metavar="COLUMN", help="Column of the class or number.")
@click.option("--metric", metavar="NAME", help="accuracy or matthews, for a classification.")
@click.option("--encoding", help="Encoding of csv, tsv and json files.")
@click.option("--validation", metavar="FILE", help="A file of examples to measure instead of the held-out share.")
@click.option("--split-seed", type=int, help="Seed that selects the held-out share.")
@click.option("--max-length", type=POSITIVE, help="Tokens per example.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the base model.")
@click.option("--batch-size", type=POSITIVE, help="[default: 64; 8 for causal-lm]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--predictions", metavar="FILE", help="Store the prediction for every example: .parquet or .csv.")
@click.option("--resume", is_flag=True, help="Keep the rows that the FILE of -o has already.")
@output()
@reading(solving=False, counting=False)
def evaluate(
    paths: tuple[str, ...],
    keep: str,
    order: str,
    draws: int,
    seed: int,
    resamples: int,
    confidence: float,
    compare: bool,
    answers: bool,
    max_new_tokens: int,
    batch_size: int | None,
    device: str,
    predictions: str | None,
    resume: bool,
    out: Output,
    reading: dict[str, Any],
    **settings: Any,
) -> None:
    """What the task loses when every ΔW is cut to its k largest directions (extra `train`).

    Measures the adapter on the examples that its training held out, as the run.json beside it says, with ΔW whole and
    cut. --modules says which ΔW are cut; the others stay whole. Heads and biases of the adapter stay, too, so k = 0 is
    the base model with the trained head. Rows are written to -o as they come.
    """
    try:
        from ..analysis.keeping import keeps_of
        from ..training import TrainingError
        from ..training.evaluation import Wish, candidates, each_measured, routed
        from ..training.evaluation_tables import compared
        from ..training.intervals import Bootstrap
        from .evaluation_text import compared_table, evaluation_table
    except ImportError as error:
        stop(error)
    if resume and out.path is None:
        raise click.UsageError("--resume needs the table so far; add -o FILE")
    if resume and out.file_format not in RECORDS:
        raise click.UsageError(f"--resume reads the FILE of -o; expected one of csv, json or parquet, not {out.path}")
    if resume and compare:
        raise click.UsageError("--compare is made of predictions, and --resume measures only some; leave out one")
    if predictions is not None and Path(predictions).suffix not in (".csv", ".parquet"):
        raise click.UsageError(f"--predictions is {predictions!r}; expected a file .parquet or .csv")
    settings["text"] = tuple(part.strip() for part in (settings["text"] or "").split(",") if part.strip()) or None
    failures: list[Exception] = []

    def failed(error: Exception) -> None:
        failures.append(error)
        fail(error)

    with usage():
        how = Bootstrap(resamples, seed, confidence)
        only, orders = reading.pop("modules"), tuple(part.strip() for part in order.split(","))
        wish = Wish(tuple(keeps_of(keep)), orders, draws, seed, how, answers, max_new_tokens, batch_size, device, only)
        cuts = wish.cuts
        store = _Store(None if compare else out, predictions, resume)
        try:
            found = candidates([*dict.fromkeys(paths)], settings, reading, failed)
        except (TrainingError, ImportError) as error:
            stop(error)
        tell([replace(each.adapter, passed_over=()) for each in found])  # heads and biases are used here
        for each in found:
            if routed(each.adapter):
                note(f"{each.adapter.name}: ΔW depends on the token; the uniform mean of its experts is measured")
        store.expected = [(each.adapter, cut) for each in found for cut in (*cuts[1:], cuts[0])]
        try:
            with progress(len(found) * len(cuts), "cuts") as step:
                for each in each_measured(found, wish, known=store.known, failed=failed, note=note, step=step):
                    store.add(each, how)
        finally:
            store.write()
        frame = store.table()
        if frame.empty:
            raise click.exceptions.Exit(1)
        if compare:
            tested = compared(store.predicted(), how)
            out.deliver(tested, lambda: compared_table(tested, confidence))
        else:
            out.deliver(frame, lambda: evaluation_table(frame, confidence))
    if failures:
        raise click.exceptions.Exit(1)


class _Store:
    """The rows so far, in memory and in the files of -o and --predictions.

    ``known`` are the keys of those that the files had; ``expected`` says in which order rows are written.
    """

    def __init__(self, out: Output | None, predictions: str | None, resume: bool):
        from ..training.evaluation_tables import table_of

        written = out is not None and out.path is not None and out.file_format in RECORDS
        self.out, self.predictions = out if written else None, Path(predictions) if predictions else None
        self.expected: list[tuple[Adapter, Keep]] = []
        self.whole: Measured | None = None
        self.saved = time.monotonic()
        self.old, self.old_predicted = table_of([]), None
        if resume and self.out and Path(str(self.out.path)).exists():
            self.old = _read(Path(str(self.out.path)), self.out.file_format)
            if self.predictions is not None:
                there = self.predictions.exists()
                self.old_predicted = _read(self.predictions, self.predictions.suffix[1:]) if there else self.old[:0]
                predicted = set(_keys(self.old_predicted))
                self.old = self.old[[key in predicted for key in _keys(self.old)]]
        self.known = set(_keys(self.old))
        self.rows: list[dict[str, Any]] = []
        self.parts: list[pd.DataFrame] = []

    def add(self, each: Measured, how: Bootstrap) -> None:
        from ..training.evaluation_tables import predictions_of, rows_of

        self.whole = each if each.keep.whole else self.whole
        assert self.whole is not None  # it comes first
        if each.key not in self.known:
            self.rows += rows_of(each, self.whole, how)
            self.parts.append(predictions_of(each))
        if time.monotonic() - self.saved > _SECONDS:
            self.write()

    def table(self) -> pd.DataFrame:
        import numpy as np
        import pandas as pd

        from ..training.evaluation_tables import key_of, table_of

        new = table_of(self.rows)
        frame = new if self.old.empty else pd.concat([self.old, new], ignore_index=True) if self.rows else self.old
        place = {key_of(*each): k for k, each in enumerate(self.expected)}
        order = np.argsort([place.get(key, -1) for key in _keys(frame)], kind="stable")
        return frame.iloc[order].reset_index(drop=True)

    def predicted(self) -> pd.DataFrame:
        import pandas as pd

        parts = [*([self.old_predicted] if self.old_predicted is not None else []), *self.parts]
        return pd.concat([part for part in parts if not part.empty], ignore_index=True)

    def write(self) -> None:
        """The predictions first: a row whose predictions are missing is measured again."""
        if not self.rows:
            return
        if self.predictions is not None:
            Output(self.predictions.suffix[1:], str(self.predictions)).write(self.predicted(), self.predictions)
        if self.out is not None:
            self.out.write(self.table(), Path(str(self.out.path)))
        self.saved = time.monotonic()


def _keys(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """The key of each row, as :func:`bora_analysis.training.evaluation_tables.key_of` makes it."""
    columns = frame["adapter"], frame["step"].fillna(-1), frame["keep"].astype(str), frame["order"], frame["draw"]
    return [*zip(*(column.tolist() for column in columns), strict=True)]


def _read(path: Path, form: str) -> pd.DataFrame:
    """A table of an earlier call; AdapterError for another file."""
    import pandas as pd

    from ..adapters import AdapterError
    from ..training.evaluation_tables import KEYS

    read: dict[str, Callable[..., pd.DataFrame]] = {
        "csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet,
    }  # fmt: skip
    options = {"dtype": {"keep": str}} if form != "parquet" else {}
    try:
        frame = read[form](path, **options)
    except (ValueError, OSError) as error:
        raise AdapterError(
            f"{path}: cannot be read as {form}: {str(error).splitlines()[0]}; choose another file"
        ) from None
    if missing := [name for name in KEYS if name not in frame]:
        raise AdapterError(f"{path}: has no column {missing[0]}; expected a table of `evaluate`; choose another file")
    return frame.astype({"step": "Int64"})
