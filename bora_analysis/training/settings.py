"""The settings of a training run: everything that changes its result. They are saved in ``run.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..catalogue import METHODS as CATALOGUE
from ..catalogue import trained
from .errors import TrainingError

TASKS = ("classification", "regression", "causal-lm")
METRICS = {"classification": ("accuracy", "matthews"), "regression": ("pearson",), "causal-lm": ("perplexity",)}
DTYPES = ("float32", "bfloat16")

# Shares of the run at which the adapter is kept: dense while the rank grows, sparse later.
_KEPT = (0, 1 / 40, 1 / 20, 1 / 10, 1 / 5, 3 / 10, 2 / 5, 3 / 5, 4 / 5, 1)


@dataclass(frozen=True)
class Settings:
    """A training run. The defaults are the paper's for RoBERTa-Base (BoRA, arXiv 2508.06953, §4.1 and Appendix B).

    Attributes
    ----------
    model, data : a folder or file, or a Hub id; data also ``org/name:config`` and an https address.
    task : one of ``TASKS``. method : one of :func:`bora_analysis.catalogue.trained`.
    r, alpha, rslora, dropout : rank, α (default 2r), α/√r, probability of dropping an input of the adapter.
    blocks : b of BoRA (default 16) or minis of MELoRA (default 4). experts : matrices B of HydraLoRA.
    rank_pattern, alpha_pattern : pattern of module paths → another r or α, as in PEFT's ``LoraConfig``.
    activation : for BoRA, see :func:`bora_analysis.updates.blocks.activate`.
    target : letters of QKVOGUD, or names of modules with commas between them.
    text, label : columns; by default those with usual names. metric : by default the task's first in ``METRICS``.
    validation : a second file; otherwise ``validation_share`` of the data is held out, chosen by ``split_seed`` alone,
        so that runs with different seeds are measured on the same examples.
    steps, epochs : length of the run; ``steps`` has precedence.
    batch_size, accumulate : examples per backward pass, passes per step.
    learning_rate, warmup : peak of a rise over ``warmup`` (a share of the steps below 1, else a number of steps) and a
        linear decay to 0. AdamW (0.9, 0.999, 1e-8), no weight decay, gradients clipped to norm 1.
    group_by_length : batches of similar length: less padding, the same examples.
    checkpoints : steps at which the adapter is kept; None: 0, 2.5, 5, 10, 20, 30, 40, 60, 80 and 100 % of the run.
    evaluate_every, log_every, resume_every : in steps; every run is evaluated at its end.
    seed : for everything but the split.
    """

    model: str
    data: str
    task: str = "classification"
    method: str = "bora"
    r: int = 8
    blocks: int | None = None
    experts: int = 3
    alpha: float | None = None
    rslora: bool = False
    activation: str = "exp-norm"
    dropout: float = 0.05
    target: str = "QV"
    text: tuple[str, ...] = ()
    label: str | None = None
    metric: str | None = None
    encoding: str = "utf-8"
    validation: str | None = None
    validation_share: float = 0.1
    split_seed: int = 0
    limit: int | None = None
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 3e-4
    warmup: float = 0.03
    max_length: int = 512
    group_by_length: bool = False
    gradient_checkpointing: bool = False
    dtype: str = "float32"
    checkpoints: tuple[int, ...] | None = None
    evaluate_every: int | None = None
    log_every: int | None = None
    resume_every: int = 500
    seed: int = 0
    model_name: str | None = None
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        choices = {"task": TASKS, "method": trained(), "dtype": DTYPES}
        choices["metric"] = (None, *METRICS.get(self.task, ()))
        for name, allowed in choices.items():
            value = getattr(self, name)
            _expect(value in allowed, name, value, f"one of {', '.join(str(a) for a in allowed if a)}")
        for name in ("r", "experts", "batch_size", "accumulate", "max_length", "resume_every"):
            _expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("blocks", "steps", "limit", "evaluate_every", "log_every"):
            value = getattr(self, name)
            _expect(value is None or value >= 1, name, value, "at least 1")
        _expect(0 < self.epochs < math.inf, "epochs", self.epochs, "a positive number")
        _expect(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a positive number")
        _expect(0 <= self.warmup < math.inf, "warmup", self.warmup, "a share below 1, or a number of steps")
        _expect(0 <= self.dropout < 1, "dropout", self.dropout, "a probability below 1")
        _expect(0 < self.validation_share < 1, "validation_share", self.validation_share, "a share between 0 and 1")
        _expect(all(step >= 0 for step in self.checkpoints or ()), "checkpoints", self.checkpoints, "steps from 0 on")
        for pattern, r in (self.rank_pattern or {}).items():
            _expect(type(r) is int and r >= 1, f"rank_pattern of {pattern}", r, "a whole number from 1 on")
        if self.blocks is not None and not CATALOGUE[self.method].cut:
            raise TrainingError(f"blocks is {self.blocks}, but {self.method} has no blocks; leave it out")

    @property
    def scored_by(self) -> str:
        """The metric of the held-out examples."""
        return self.metric or METRICS[self.task][0]

    @property
    def lora_alpha(self) -> float:
        return 2.0 * self.r if self.alpha is None else self.alpha

    def total_steps(self, examples: int) -> int:
        """Number of optimiser steps for a number of training examples."""
        return self.steps or math.ceil(self.epochs * examples / (self.batch_size * self.accumulate))

    def warmup_steps(self, steps: int) -> int:
        return math.ceil(self.warmup * steps) if self.warmup < 1 else int(self.warmup)

    def kept_steps(self, steps: int) -> tuple[int, ...]:
        """The steps at which the adapter is kept, always with the last step."""
        steps_kept = self.checkpoints if self.checkpoints is not None else [round(share * steps) for share in _KEPT]
        return tuple(sorted({step for step in steps_kept if step <= steps} | {steps}))

    def as_record(self) -> dict[str, Any]:
        """The settings in JSON's types, for ``run.json``."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _expect(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise TrainingError(f"{name} is {value!r}; expected {expected}")
