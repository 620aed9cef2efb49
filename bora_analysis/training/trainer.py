"""transformers' Trainer with a method's own procedure, and with checkpoints that resume exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from .checkpoints import TRAINED
from .procedures import Procedure


class AdapterTrainer(Trainer):
    """A Trainer that asks a :class:`Procedure`.

    PEFT's file of an adapter need not hold all that is trained: VB-LoRA's keeps the two largest logits, AdaLoRA's no
    pruned direction. So a checkpoint has every trained tensor as it is beside it, and goes on from these.
    """

    def __init__(self, *, procedure: Procedure, **options: Any):
        self.procedure = procedure
        super().__init__(**options)

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = self.procedure.optimizer(kind, options)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None and self.procedure.rate(0) is not None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.procedure.rate)  # pyright: ignore[reportArgumentType]
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        ids = inputs["input_ids"]
        more = {
            key: torch.full((len(ids),), value, device=ids.device) for key, value in self.procedure.inputs().items()
        }
        return super().compute_loss(model, {**inputs, **more}, *arguments, **options)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        trained = {name: value.detach().cpu() for name, value in _trained(self.model).items()}
        kept = {"trained": trained, "procedure": self.procedure.state()}
        torch.save(kept, Path(output_dir or str(self.args.output_dir)) / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        kept = torch.load(Path(resume_from_checkpoint) / TRAINED, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, value in _trained(self.model).items():
                value.copy_(kept["trained"][name])
        self.procedure.load(kept["procedure"])


def _trained(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
