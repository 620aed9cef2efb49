"""Full fine-tuning: the adapted matrices themselves are trained, and their change is saved.

The result is what LyCORIS's "full" algorithm saves, ``<module>.diff`` (m, n) in float16, so that
:func:`bora_analysis.read_adapter` reads it without the base model. Of a float32 change float16 keeps eleven bits; the
relative error of the whole is recorded. To go on after a kill the exact weights lie in the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..files.configuration import CONFIG_NAME
from ..files.tensors_out import TensorsOut
from .errors import TrainingError

# PEFT's names of heads (``task_type="SEQ_CLS"``), and the beginning of its keys.
_HEADS = ("classifier", "score")
_PREFIX = "base_model.model."


class Whole:
    """The changes of some matrices of a model, of which nothing else is trained but the head.

    Attributes
    ----------
    rounding : ‖ΔW − ΔW as saved‖_F / ‖ΔW‖_F over all matrices, of what was saved last; 0 where ΔW = 0.
    """

    rounding: float = 0.0

    def __init__(self, model: Any, modules: Collection[str], name: str, heads: bool):
        """Freeze the rest of the model. Its ``save_pretrained`` then writes the change.

        ``name`` is that of the base model; ``heads`` says whether the model has a new head, which is trained too.
        """
        import torch

        self.model, self.name = model, name
        model.requires_grad_(False)
        self.layers = {module: model.get_submodule(module) for module in modules}
        self.head = head(model) if heads else {}
        for parameter in trained_whole(model, modules, heads=heads):
            # As PEFT's adapters: a step of 10⁻⁵ is lost in bfloat16.
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
        self.before = {module: layer.weight.detach().cpu().clone() for module, layer in self.layers.items()}
        model.save_pretrained = self.save

    @property
    def parameters(self) -> int:
        """Trained parameters without the head."""
        return sum(weight.numel() for weight in self.before.values())

    def save(self, folder: Any, **_: Any) -> None:
        """Write the change as an adapter."""
        import numpy as np
        from transformers.pytorch_utils import Conv1D

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        error = energy = 0.0
        with replacing(folder / CONFIG_NAME) as config, replacing(folder / "adapter_model.safetensors") as weights:
            with TensorsOut(folder) as out:
                for module, layer in self.layers.items():
                    change = (layer.weight.detach().cpu().double() - self.before[module].double()).numpy()
                    change = change.T if isinstance(layer, Conv1D) else change
                    try:
                        out.add(f"{_PREFIX}{module}.diff", change, "float16")
                    except OverflowError as problem:
                        raise TrainingError(
                            f"{module}: ΔW {problem}; expected a run that does not diverge, lower learning_rate"
                        ) from None
                    error += float(np.square(change - change.astype(np.float16)).sum())
                    energy += float(np.square(change).sum())
                for key, value in self.head.items():
                    out.add(_PREFIX + key, value.detach().cpu().numpy(), "float32")
                out.save(weights, {"format": "pt"})
            # No peft_type: PEFT has no such method.
            told = {"base_model_name_or_path": self.name, "target_modules": list(self.layers)}
            config.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self.rounding = (error / energy) ** 0.5 if energy else 0.0


def head(model: Any) -> dict[str, Any]:
    """The parameters of a new head."""
    return {key: value for key, value in model.named_parameters() if key.partition(".")[0] in _HEADS}


def trained_whole(model: Any, modules: Collection[str], *, heads: bool) -> list[Any]:
    """The parameters that full fine-tuning of these modules trains."""
    return [*(model.get_submodule(module).weight for module in modules), *(head(model).values() if heads else ())]
