"""The settings of a training run: everything that changes its result. They are saved in ``run.json``."""

from __future__ import annotations

import json
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
#: How a frozen base model is quantised → the package that does it.
QUANTIZED = {"int8": "torchao", "nf4": "bitsandbytes"}
#: The options of methods, which not every method has → what they are where they are not given; None: it depends.
OPTIONS: dict[str, Any] = {
    "r": 8, "alpha": None, "rslora": False, "dropout": 0.05, "blocks": None, "experts": 3, "activation": "exp-norm",
    "rank_pattern": None, "alpha_pattern": None, "b_learning_rate_ratio": None,
}  # fmt: skip
B_LEARNING_RATE_RATIO = 16.0

# Shares of the run at which the adapter is kept: dense while the rank grows, sparse later.
_KEPT = (0, 1 / 40, 1 / 20, 1 / 10, 1 / 5, 3 / 10, 2 / 5, 3 / 5, 4 / 5, 1)


@dataclass(frozen=True)
class Settings:
    """A training run. The defaults are the paper's for RoBERTa-Base (BoRA, arXiv 2508.06953, §4.1 and Appendix B).

    Attributes
    ----------
    model, data : a folder or file, or a Hub id; data also ``org/name:config`` and an https address.
    task : one of ``TASKS``. method : one of :func:`bora_analysis.catalogue.trained`.
    r, alpha, rslora, dropout : rank (default 8), α (default 2r), α/√r, probability of dropping an input of the adapter
        (default 0.05). Methods that are no relatives of LoRA have the defaults of their configuration in PEFT.
    blocks : b of BoRA (default 16), minis of MELoRA (4), blocks of GraLoRA and BD-LoRA (2), stages of ReLoRA (4).
    experts : matrices B of HydraLoRA and Lily, pairs of MoELoRA (default 3).
    rank_pattern, alpha_pattern : pattern of module paths → another r or α, as in PEFT's ``LoraConfig``.
    activation : for BoRA (default ``"exp-norm"``), see :func:`bora_analysis.updates.blocks.activate`.
    b_learning_rate_ratio : of LoRA+, the rate of B over that of A (default 16).
    quantize : the frozen base model in ``"int8"`` (torchao, a scale for each row) or ``"nf4"`` (bitsandbytes, QLoRA).
    peft : further settings of the method's configuration in PEFT, by its own names.
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
    r: int | None = None
    blocks: int | None = None
    experts: int | None = None
    alpha: float | None = None
    rslora: bool | None = None
    activation: str | None = None
    dropout: float | None = None
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
    b_learning_rate_ratio: float | None = None
    peft: Mapping[str, Any] | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        row = CATALOGUE.get(self.method)
        if row is not None and row.untrained:
            raise TrainingError(f"method is {self.method!r}, which is not trained here: {row.untrained}")
        choices = {"task": TASKS, "method": trained(), "dtype": DTYPES}
        choices["quantize"] = (None, *QUANTIZED)
        choices["metric"] = (None, *METRICS.get(self.task, ()))
        for name, allowed in choices.items():
            value = getattr(self, name)
            _expect(value in allowed, name, value, f"one of {', '.join(str(a) for a in allowed if a)}")
        self._fill()
        for name in ("batch_size", "accumulate", "max_length", "resume_every"):
            _expect(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("r", "experts", "blocks", "steps", "limit", "evaluate_every", "log_every"):
            value = getattr(self, name)
            _expect(value is None or value >= 1, name, value, "at least 1")
        _expect(0 < self.epochs < math.inf, "epochs", self.epochs, "a positive number")
        _expect(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a positive number")
        ratio = self.b_learning_rate_ratio
        _expect(ratio is None or 0 < ratio < math.inf, "b_learning_rate_ratio", ratio, "a positive number")
        _expect(0 <= self.warmup < math.inf, "warmup", self.warmup, "a share below 1, or a number of steps")
        _expect(self.dropout is None or 0 <= self.dropout < 1, "dropout", self.dropout, "a probability below 1")
        _expect(0 < self.validation_share < 1, "validation_share", self.validation_share, "a share between 0 and 1")
        _expect(all(step >= 0 for step in self.checkpoints or ()), "checkpoints", self.checkpoints, "steps from 0 on")
        for pattern, r in (self.rank_pattern or {}).items():
            _expect(type(r) is int and r >= 1, f"rank_pattern of {pattern}", r, "a whole number from 1 on")

    def _fill(self) -> None:
        """Refuse what the method does not have, and give a relative of LoRA the defaults of ``train``."""
        training = CATALOGUE[self.method].training
        assert training is not None
        has = options_of(self.method)
        for name, default in OPTIONS.items():
            value = getattr(self, name)
            # A record has the defaults too.
            if value is None or name in has or (not training.own and value == default):
                continue
            raise TrainingError(f"{name} is {value}, but {self.method} has no {name}; leave it out{_instead(self)}")
        if not training.own:
            defaults = {name: value for name, value in OPTIONS.items() if value is not None}
            defaults |= {"b_learning_rate_ratio": B_LEARNING_RATE_RATIO} if "b_learning_rate_ratio" in has else {}
            for name, value in defaults.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)  # as a record has it
        if self.quantize is not None and not training.config:
            raise TrainingError(f"quantize is {self.quantize}, but {self.method} trains the matrices themselves")
        if self.peft is not None:
            if not training.config:
                raise TrainingError(f"peft is {self.peft}, but {self.method} is no method of PEFT; leave it out")
            try:
                object.__setattr__(self, "peft", json.loads(json.dumps(self.peft)) or None)
            except (TypeError, ValueError) as error:
                raise TrainingError(f"peft is {self.peft!r}; expected values that JSON has ({error})") from None
            _expect(isinstance(self.peft, dict | None), "peft", self.peft, "a table of settings")

    @property
    def scored_by(self) -> str:
        """The metric of the held-out examples."""
        return self.metric or METRICS[self.task][0]

    @property
    def lora_alpha(self) -> float | None:
        """α; None: that of the method's configuration."""
        row = CATALOGUE[self.method].training
        if self.alpha is not None or self.r is None or row is None or row.own:
            return self.alpha
        return 2.0 * self.r

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


def blocks_of(settings: Settings) -> int | None:
    """The number of blocks, minis or stages, given or by default."""
    blocks = CATALOGUE[settings.method].blocks
    return settings.blocks or (blocks and (blocks.trained or blocks.default))


def options_of(method: str) -> frozenset[str]:
    """Those of :data:`OPTIONS` that a method has.

    >>> sorted(options_of("hira"))
    ['dropout', 'r', 'rank_pattern']
    """
    row = CATALOGUE[method].training
    return frozenset() if row is None else frozenset({*row.passed.values(), *row.options} & OPTIONS.keys())


def _instead(settings: Settings) -> str:
    """What the method has, for a message: its options, and its own settings in PEFT, as far as that is installed."""
    has = ", ".join(name for name in OPTIONS if name in options_of(settings.method))
    told = [f"it has {has}"] if has else []
    try:
        from .peft_configs import own_settings  # here: PEFT costs seconds

        own = ", ".join(own_settings(settings.method))
        told += [f"its settings in PEFT are {own} (--set, peft)"] if own else []
    except ImportError:
        pass
    return "".join(f"; {part}" for part in told)


def _expect(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise TrainingError(f"{name} is {value!r}; expected {expected}")
