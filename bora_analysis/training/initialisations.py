"""Where an adapter begins, for the methods whose start is computed from the data: LoRA-GA and CorDA.

PEFT computes it; here are the examples. They are the first ones of the training's own order, so that a resumed run
begins alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import TrainingError
from .settings import Settings

#: How many examples the start is computed from (LoRA-GA's authors take 64, PEFT's example of CorDA 256).
EXAMPLES = {"lora_ga": 64, "corda": 256}


def prepare(settings: Settings, config: Any, model: Any, examples: Sequence[Any], collate: Any) -> None:
    """Leave in the model what PEFT's initialisation needs, where it needs something.

    Parameters
    ----------
    settings : of the run. config : of PEFT. model : without adapter. examples : encoded, in the order of the training.
    collate : what makes a batch of examples.

    Raises
    ------
    TrainingError
        PEFT refuses the model, such as a quantised one.
    """
    init = str(getattr(config, "init_lora_weights", "")).lower()
    if init not in EXAMPLES:
        return
    import torch
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga

    chosen = examples[: EXAMPLES[init]]
    device = next(model.parameters()).device
    size = settings.batch_size if init == "lora_ga" else 1  # PEFT's hook for CorDA takes one example at a time

    def run() -> None:
        for start in range(0, len(chosen), size):
            batch = collate(chosen[start : start + size])
            loss = model(**{key: value.to(device) for key, value in batch.items()}).loss
            if init == "lora_ga":
                loss.backward()

    try:
        if init == "lora_ga":
            preprocess_loraga(model, config, run)
        else:
            with torch.no_grad():
                preprocess_corda(model, config, run)
    except ValueError as error:
        raise TrainingError(f"{settings.method}: {' '.join(str(error).split())}") from None
