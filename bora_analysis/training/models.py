"""The base model and its tokenizer, and examples as the model takes them: the same in training and in evaluation."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..patterns import late
from .data import Example
from .errors import TrainingError
from .quantized import quantization
from .settings import Settings

# What PEFT's methods tell their developers: BOFT without CUDA, FRoD's sparse tensors, LoRA-GA's hook.
_PEFTS = (
    "Failed to load the CUDA extension",
    "Setting boft_n_butterfly_factor to 1",
    "Sparse invariant checks are implicitly disabled",
    "Full backward hook is firing",
)
_HUB_ID = late(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def tokenizer_of(settings: Settings) -> Any:
    """The tokenizer of the base model; TrainingError where there is none."""
    import transformers

    return _loaded(settings, transformers.AutoTokenizer)


def is_place(model: str) -> bool:
    """Whether a model's name is a path that exists, or may be a Hub id."""
    return Path(model).exists() or bool(_HUB_ID.fullmatch(model))


def base_model(settings: Settings, classes: int, tokenizer: Any) -> tuple[Any, tuple[str, ...]]:
    """The base model with the task's head, and the names of the parameters that its files lack, such as the head's.

    A tokenizer without padding pads with the end of text.

    Raises
    ------
    TrainingError
        No model there, or not one for the task.
    """
    import torch
    import transformers

    options: dict[str, Any] = {"dtype": getattr(torch, settings.dtype)}
    kind: Any = transformers.AutoModelForCausalLM
    if settings.task != "causal-lm":
        kind = transformers.AutoModelForSequenceClassification
        classify = settings.task == "classification"
        options["num_labels"] = classes if classify else 1
        options["problem_type"] = "single_label_classification" if classify else "regression"
    if settings.quantize is not None:
        options["quantization_config"] = quantization(settings.quantize, settings.dtype)
    model, told = _loaded(settings, kind, output_loading_info=True, **options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model, tuple(sorted(told["missing_keys"]))


def encoded_example(example: Example, tokenizer: Any, settings: Settings) -> dict[str, Any]:
    """Its tokens, and the label; for causal-lm every token is one, the end of text too."""
    if settings.task == "causal-lm":
        ids = tokenizer(example.texts[0], truncation=True, max_length=settings.max_length)["input_ids"]
        end = tokenizer.eos_token_id
        if end is not None and len(ids) < settings.max_length and ids[-1:] != [end]:
            ids = [*ids, end]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}
    encoded = tokenizer(*example.texts, truncation=True, max_length=settings.max_length)
    return {**encoded, "labels": example.label}


def collator(tokenizer: Any, causal: bool) -> Any:
    """What makes a batch of examples, padded to the longest."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

    # DataCollatorForSeq2Seq pads labels with −100, which the loss ignores.
    return DataCollatorForSeq2Seq(tokenizer) if causal else DataCollatorWithPadding(tokenizer)


def _loaded(settings: Settings, kind: Any, **options: Any) -> Any:
    if not is_place(settings.model):
        raise TrainingError(
            f"{settings.model}: no such folder; expected a folder of transformers, or a Hub id org/name"
        )
    try:
        return kind.from_pretrained(settings.model, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"{settings.model}: {kind.__name__} cannot load it: {reason}; expected a folder of transformers with "
            "config.json, weights and tokenizer, or a Hub id"
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' notes on new heads, loaded weights and files on the Hub."""
    import transformers
    from huggingface_hub.utils import logging as hub

    level, hub_level = transformers.logging.get_verbosity(), hub.get_verbosity()
    transformers.logging.set_verbosity_error()
    hub.set_verbosity_error()  # one line per attempt
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not find a config file")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # PEFT uses it
            for message in _PEFTS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        transformers.logging.set_verbosity(level)
        hub.set_verbosity(hub_level)
        transformers.logging.enable_progress_bar()
