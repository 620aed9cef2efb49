"""A callback for the transformers ``Trainer`` that records ranks during training."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ..adapters import Adapter, AdapterError
from ..adapters.given import one_of
from ..adapters.in_memory import model_of, open_model
from ..adapters.initialisation import changes_base
from ..analysis.factors import factor_table
from ..analysis.tables import layer_metrics
from ..atomic import replacing
from ..metrics import THRESHOLD
from ..threshold import Threshold
from .in_memory import keep, read_model

if TYPE_CHECKING:
    import pandas as pd

#: Columns whose means go into the run's logs.
LOGGED = ("effective_rank", "entropy_rank", "energy")


def _aside(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook of a monitor that ends no run: after an error it warns once and stands aside."""

    @wraps(hook)
    def guarded(self: RankCallback, *given: Any, **named: Any) -> None:
        if self.failed:
            return
        try:
            hook(self, *given, **named)
        except Exception as error:  # whatever it is, the training matters more
            self.failed = True
            told = str(error) or type(error).__name__
            warnings.warn(
                f"RankCallback stands aside, the training goes on: {told}. {self.path} gets no further rows; mend this "
                "and resume the run, or read its checkpoints with bora-analysis",
                stacklevel=2,
            )

    return guarded


class RankCallback(TrainerCallback):
    """Record effective rank, entropy rank and energy of every module in a Parquet file and the run's logs.

    The file has the columns of :func:`bora_analysis.layer_metrics`, one row per module and step: before the first step,
    at each multiple of ``every``, and after the last step. Each update replaces the file as a whole. A run that resumes
    from a checkpoint drops the rows of later steps, which it trains again; a new run drops all rows.

    PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ change the base model at the start. Their adapter before the first step is
    kept beside the file, in ``<name>-initial``, and subtracted. An error (NaN in a factor, a method without ΔW such as
    prompt tuning, a model without adapter, a full disk) gives one warning and ends the recording, never the training.

    Parameters
    ----------
    path : the Parquet file.
    every : number of steps between two records.
    log : ``trainer.log``. It sends the means over the modules of each projection to every reporter of the run
        (TensorBoard, Weights & Biases …) and to ``log_history``, as ``rank/<projection>/effective_rank`` and so on.
    factors : a second Parquet file, with the ranks of B', Σ' and A' (eq. 6) of each module; BoRA, LoRA and MELoRA.
    name : value of the column ``adapter``; by default the name of the file.
    adapter : name of the model's adapter; by default the active one.
    threshold : of ``effective_rank``, see :class:`bora_analysis.Threshold`.
    budget : largest share of the training time for this callback; it skips steps that would exceed the share. The
        first and the last step are always recorded; with None all steps are.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from bora_analysis.peft_methods import RankCallback
    >>> callback = RankCallback(mkdtemp() + "/ranks.parquet", every=100)
    >>> # trainer = Trainer(model, args, …); trainer.add_callback(RankCallback("ranks.parquet", log=trainer.log))
    """

    def __init__(
        self,
        path: str | Path,
        every: int = 50,
        *,
        log: Callable[[dict[str, float]], None] | None = None,
        factors: str | Path | None = None,
        name: str | None = None,
        adapter: str | None = None,
        threshold: float | str | Threshold = THRESHOLD,
        budget: float | None = 0.05,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every is {every!r}; expected a positive number of steps")
        if budget is not None and not 0 < budget <= 1:
            raise ValueError(f"budget is {budget!r}; expected a share of the time, above 0 and at most 1, or None")
        self.path, self.every, self.log, self.threshold = Path(path), every, log, Threshold.of(threshold)
        self.factors = None if factors is None else Path(factors)
        self.name, self.adapter, self.budget = name or self.path.stem, adapter, budget
        self.last: int | None = None
        self.initial: Adapter | None = None
        self.failed = False
        self.started = self.seconds = self.latest = 0.0

    @_aside
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        step = state.global_step
        for path in filter(None, (self.path, self.factors)):
            frame = _read(path)
            if frame is not None:  # rows of an earlier run, or of steps after the checkpoint
                _write(frame[frame["step"] <= step] if step else frame.iloc[:0], path)
        known = _read(self.path) if step else None
        self.last = step if known is not None and (known["step"] == step).any() else None
        self._subtract(model, step)
        if self.last is None:
            self.record(model, state, control)
        # Timed from here: the first record includes the imports.
        self.started, self.seconds, self.latest = time.perf_counter(), 0.0, 0.0

    @_aside
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every or not state.is_world_process_zero:
            return
        elapsed = time.perf_counter() - self.started
        if self.budget is None or self.seconds + self.latest <= self.budget * elapsed:
            self.record(model, state, control)

    @_aside
    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and state.global_step != self.last:
            self.record(model, state, control)

    def _subtract(self, model: Any, step: int) -> None:
        """Where training begins with a B·A that was taken out of the base model: that of the first step."""
        holder = model_of(model)
        config = None if holder is None else open_model(holder, self.adapter)[1]
        if not isinstance(config, dict) or not changes_base(config):
            return
        folder = self.path.with_name(f"{self.path.stem}-initial")
        if step and not folder.exists():
            raise AdapterError(f"{folder}: is missing, the adapter before the first step, which must be subtracted")
        self.initial = one_of(folder if step else keep(model, folder, self.adapter))

    def record(self, model: Any, state: Any, control: Any) -> None:
        """Add the rows of the current step."""
        start = time.perf_counter()
        with torch.random.fork_rng():  # AdaMSS and PSOFT find their subspaces at random: no dropout may change by it
            rows = self._measure(model, state)
        self.last = state.global_step
        if self.log is not None:
            due = control.should_log  # trainer.log resets it, and the loss of this step would not be logged
            self.log(means(rows))
            control.should_log = due
        self.latest = time.perf_counter() - start
        self.seconds += self.latest

    def _measure(self, model: Any, state: Any) -> pd.DataFrame:
        adapter = read_model(model, adapter=self.adapter, name=self.name, step=state.global_step, initial=self.initial)
        # On the CPU: training uses the GPU, and the cores are small.
        rows = layer_metrics(adapter, threshold=self.threshold, device="cpu", on_module=_no_bar)
        _append(rows, self.path)
        if self.factors is not None:
            _append(factor_table(adapter, on_module=_no_bar), self.factors)
        return rows


def _no_bar() -> None:
    """The Trainer has its own."""


def means(rows: pd.DataFrame) -> dict[str, float]:
    """``rank/<projection>/<metric>`` → mean over the modules."""
    grouped = rows.groupby("projection", sort=False)
    return {f"rank/{place}/{column}": value for column in LOGGED for place, value in grouped[column].mean().items()}


def _append(rows: pd.DataFrame, path: Path) -> None:
    import pandas as pd

    before = _read(path)
    _write(rows if before is None or before.empty else pd.concat([before, rows], ignore_index=True), path)


def _read(path: Path) -> pd.DataFrame | None:
    import pandas as pd

    if not path.exists():
        return None
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow's errors have no common base class
        raise ValueError(
            f"{path}: not a Parquet file of an earlier run ({type(error).__name__}); move it or choose another path"
        ) from None


def _write(frame: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)
