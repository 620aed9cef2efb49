"""What some methods do in the training loop besides the optimiser's steps.

The row of a method names one of :data:`PROCEDURES`; the trainer calls it. Each is exact to resume: what it keeps beside
the weights is in :meth:`Procedure.state`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import TrainingError
from .settings import Settings, blocks_of


class Procedure:
    """The plain loop.

    Parameters
    ----------
    settings : of the run. model : with its adapter. steps : of the whole run.
    """

    def __init__(self, settings: Settings, model: Any, steps: int):
        self.settings, self.model, self.steps = settings, model, steps

    def begin(self, step: int) -> None:
        """Before the first step, and before the first one after a restart."""

    def optimizer(self, kind: Any, options: dict[str, Any]) -> Any:
        """The optimiser; None: one rate for all that is trained."""
        return None

    def rate(self, step: int) -> float | None:
        """The share of the highest rate in the step after ``step`` ones; None: the linear decay."""
        return None

    def inputs(self) -> dict[str, Any]:
        """What the model takes besides a batch; tensors of one number an example are made of numbers."""
        return {}

    def stepped(self, step: int, optimizer: Any) -> None:
        """After the optimiser's ``step``, from 1 on, while the gradients are there."""

    def state(self) -> dict[str, Any]:
        """What it keeps, of tensors and JSON's types."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""


class TwoRates(Procedure):
    """LoRA+ (arXiv 2402.12354): B learns faster than A, by PEFT's own groups of parameters."""

    def optimizer(self, kind: Any, options: dict[str, Any]) -> Any:
        from peft.optimizers import create_loraplus_optimizer

        ratio = self.settings.b_learning_rate_ratio
        assert ratio is not None
        options = dict(options)
        return create_loraplus_optimizer(self.model, kind, lr=options.pop("lr"), loraplus_lr_ratio=ratio, **options)


class Allocation(Procedure):
    """AdaLoRA (arXiv 2303.10512) and AdaMSS: after each step the tuner decides what is trained on.

    PEFT's own ``update_and_allocate``, which counts steps from 1 here, so that AdaLoRA's last one leaves the ranks as
    they are saved. Its averages of the gradients lie in an allocator that no checkpoint of PEFT has.
    """

    _AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")

    def __init__(self, settings: Settings, model: Any, steps: int):
        super().__init__(settings, model, steps)
        config = self._config
        final, first = getattr(config, "tfinal", 0), getattr(config, "tinit", 0)
        if settings.method == "adalora":
            if config.target_r >= config.init_r:
                raise TrainingError(
                    f"adalora: target_r is {config.target_r}; expected less than r, {config.init_r}, from which it is "
                    "pruned: give a larger r, or another target_r"
                )
            if first + final + 1 >= steps:
                raise TrainingError(
                    f"adalora: tinit + tfinal is {first + final} and the run has {steps} steps; expected at least two "
                    "more, between which the ranks are allocated"
                )

    @property
    def _config(self) -> Any:
        return self.model.peft_config["default"]

    def stepped(self, step: int, optimizer: Any) -> None:
        self.model.base_model.update_and_allocate(step)

    def state(self) -> dict[str, Any]:
        allocator = getattr(self.model.base_model, "rankallocator", None)
        if allocator is None:
            return {}
        averages = {name: dict(getattr(allocator, name)) for name in self._AVERAGES}
        return averages | {"rank_pattern": dict(self._config.rank_pattern or {})}

    def load(self, state: Mapping[str, Any]) -> None:
        allocator = getattr(self.model.base_model, "rankallocator", None)
        if allocator is None:
            return
        device = next(self.model.parameters()).device
        for name in self._AVERAGES:
            setattr(allocator, name, {key: value.to(device) for key, value in state[name].items()})
        self._config.rank_pattern = dict(state["rank_pattern"])


class Restarts(Procedure):
    """ReLoRA (arXiv 2307.05695): several pairs, one trained after the other.

    The adapter is one LoRA with the ranks of all pairs together, of which each stage trains its own rows of A and
    columns of B. What the authors add to W0 at a restart stays beside it: the same ΔW, with no rounding to the dtype of
    W0, and one file with the whole trajectory. Like there, the optimiser forgets its averages at a restart, and the
    rate rises again over ``warmup``.
    """

    def begin(self, step: int) -> None:
        self.stage = self.stage_of(step)
        for name, parameter in self._factors():
            parameter.register_hook(lambda grad, side=name: self._own(grad, side))

    def _factors(self) -> list[tuple[str, Any]]:
        named = self.model.named_parameters()
        return [(side, parameter) for name, parameter in named for side in ("lora_A", "lora_B") if f".{side}." in name]

    @property
    def stages(self) -> int:
        return blocks_of(self.settings) or 1

    def stage_of(self, step: int) -> int:
        """The stage of the step after ``step`` ones."""
        return min(step * self.stages // self.steps, self.stages - 1)

    def start_of(self, stage: int) -> int:
        """How many steps lie before a stage."""
        return -(-stage * self.steps // self.stages)

    def _own(self, grad: Any, side: str) -> Any:
        import torch

        dim = 0 if side == "lora_A" else 1
        r = grad.shape[dim] // self.stages
        kept = torch.zeros_like(grad)
        part = slice(self.stage * r, (self.stage + 1) * r)
        place = (part,) if dim == 0 else (slice(None), part)
        kept[place] = grad[place]
        return kept

    def rate(self, step: int) -> float | None:
        warmup = self.settings.warmup_steps(self.steps)
        start = self.start_of(self.stage_of(step))
        if not start:
            return min(1.0, step / max(1, warmup)) if step < warmup else self._decay(step, warmup)
        return self._decay(step, warmup) * min(1.0, (step - start + 1) / (warmup + 1))

    def _decay(self, step: int, warmup: int) -> float:
        return max(0.0, (self.steps - step) / max(1, self.steps - warmup))

    def stepped(self, step: int, optimizer: Any) -> None:
        if self.stage_of(step) == self.stage:
            return
        self.stage = self.stage_of(step)
        factors = {id(parameter) for _, parameter in self._factors()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in factors:
                    for value in optimizer.state.get(parameter, {}).values():
                        value.zero_()  # the count of steps too, which corrects the averages


class OneTask(Procedure):
    """Poly (arXiv 2202.13914) mixes its skills for each task, and the data are one."""

    def inputs(self) -> dict[str, Any]:
        return {"task_ids": 0}


PROCEDURES: dict[str, type[Procedure]] = {
    "": Procedure,
    "two rates": TwoRates,
    "allocation": Allocation,
    "restarts": Restarts,
    "one task": OneTask,
}
