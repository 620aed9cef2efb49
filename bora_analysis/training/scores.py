"""Held-out examples through a model, batch by batch, and what comes out for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .answers import generated, is_right
from .applying import AdaptedModel
from .data import Data, load_data
from .errors import TrainingError
from .intervals import LOSS
from .models import base_model, collator, encoded_example, quiet, tokenizer_of
from .scoring import token_losses
from .settings import Settings

Array = NDArray[Any]
_BATCH, _BATCH_OF_TEXTS = 64, 8


class Scored(NamedTuple):
    """What a model made of the held-out examples.

    Attributes
    ----------
    outputs : name → a number per example, in the order of the examples: label and predicted (class or number), loss
        and weight (of an example, or of its tokens), correct (of generated answers).
    texts : name → a text per example: expected and generated answers.
    metrics : that the outputs are for, the task's first.
    """

    outputs: dict[str, Array]
    texts: dict[str, list[str]]
    metrics: tuple[str, ...]

    @property
    def examples(self) -> int:
        return len(next(iter(self.outputs.values())))


class Scorer:
    """Models and examples, loaded when they are needed first. One model is in memory at a time."""

    def __init__(self, answers: bool, most_tokens: int, batch_size: int | None, device: str):
        self.answers, self.most_tokens, self.batch_size = answers, most_tokens, batch_size
        self.device = device
        self._data: dict[tuple[Any, ...], Data] = {}
        self._model: tuple[tuple[Any, ...], Any, AdaptedModel] | None = None

    def bench(
        self, settings: Settings, record: Mapping[str, Any] | None, note: Callable[[str], object] = lambda line: None
    ) -> Bench:
        """Model and held-out examples of these settings.

        Raises
        ------
        TrainingError
            As for :func:`bora_analysis.training.train`; other classes than the record of the run says.
        """
        same = replace(settings, model="", dtype="float32", max_length=1)
        key = astuple(same)
        if key not in self._data:
            self._data[key] = load_data(settings)
        data = self._data[key]
        _check_record(data, settings, record, note)
        with quiet():
            tokenizer, model = self._loaded(settings, len(data.classes))
            return Bench(self, settings, data, tokenizer, model)

    def _loaded(self, settings: Settings, classes: int) -> tuple[Any, AdaptedModel]:
        key = settings.model, settings.task, settings.dtype, classes
        if self._model is None or self._model[0] != key:
            self._model = None  # before the next one is read
            tokenizer = tokenizer_of(settings)
            model, missing = base_model(settings, classes, tokenizer)
            self._model = key, tokenizer, AdaptedModel(model.to(_device(self.device)).eval(), missing)
        return self._model[1:]


class Bench:
    """A model and encoded examples."""

    def __init__(self, scorer: Scorer, settings: Settings, data: Data, tokenizer: Any, model: AdaptedModel):
        self.settings, self.scorer, self.model, self.tokenizer = settings, scorer, model, tokenizer
        self.examples = data.held_out
        self.causal = settings.task == "causal-lm"
        self.size = scorer.batch_size or (_BATCH_OF_TEXTS if self.causal else _BATCH)
        encoded = [encoded_example(example, tokenizer, settings) for example in self.examples]
        # Batches of similar length have little padding; the longest comes first, so that memory fails at once.
        self.order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
        put = collator(tokenizer, self.causal)
        self.batches = [
            put([encoded[i] for i in self.order[begin : begin + self.size]])
            for begin in range(0, len(encoded), self.size)
        ]

    def score(self) -> Scored:
        """What the model makes of the examples as it is now."""
        import torch

        model = self.model.model
        parts: list[dict[str, Array]] = []
        try:
            with torch.inference_mode():
                for batch in self.batches:
                    inputs = {name: value.to(model.device) for name, value in batch.items()}
                    labels = inputs.pop("labels")
                    logits = model(**inputs).logits
                    parts.append(self._outputs(logits, labels))
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            raise TrainingError(
                f"{self.settings.model}: out of memory with batches of {self.size}; expected a smaller --batch-size"
            ) from None
        place = np.empty(len(self.order), dtype=int)
        place[self.order] = np.arange(len(self.order))
        outputs = {name: np.concatenate([part[name] for part in parts])[place] for name in parts[0]}
        metrics = (self.settings.scored_by, LOSS)
        if not self.scorer.answers:
            return Scored(outputs, {}, metrics)
        if any(example.prompt is None for example in self.examples):
            raise TrainingError(
                f"{self.settings.data}: has no columns instruction and output, so there is nothing to answer; "
                "leave out answers (--answers)"
            )
        asked = [(example.prompt, example.answer) for example in self.examples]
        prompts, expected = ([str(side) for side in sides] for sides in zip(*asked, strict=True))
        with quiet():
            texts = generated(model, self.tokenizer, prompts, most=self.scorer.most_tokens, batch_size=self.size)
        right = [is_right(text, answer) for text, answer in zip(texts, expected, strict=True)]
        outputs["correct"] = np.array(right, dtype=float)
        return Scored(outputs, {"expected": expected, "generated": texts}, ("exact_match", *metrics))

    def _outputs(self, logits: Any, labels: Any) -> dict[str, Array]:
        from torch.nn import functional

        if self.causal:
            loss, weight = token_losses(logits, labels).double().cpu().numpy().T
            return {"loss": loss, "weight": weight}
        if self.settings.task == "regression":
            label, predicted = labels.double().reshape(-1), logits.double().reshape(-1)
            loss = (predicted - label) ** 2
        else:
            label, predicted = labels, logits.argmax(dim=-1)
            loss = functional.cross_entropy(logits.double(), labels, reduction="none")
        found = {"label": label, "predicted": predicted, "loss": loss}
        arrays = {name: value.cpu().numpy() for name, value in found.items()}
        return arrays | {"weight": np.ones(len(arrays["loss"]))}


def _check_record(
    data: Data, settings: Settings, record: Mapping[str, Any] | None, note: Callable[[str], object]
) -> None:
    """Whether the examples are those that the run held out."""
    told = record or {}
    if settings.task == "classification" and told.get("classes") not in (None, list(data.classes)):
        raise TrainingError(
            f"{settings.data}: has classes {', '.join(data.classes)}, and the run had {', '.join(told['classes'])}; "
            "expected data with the run's classes"
        )
    now, then = {"train": len(data.train), "held_out": len(data.held_out)}, told.get("examples")
    if then is not None and settings.validation is None and now != then:
        note(
            f"{settings.data}: {now['held_out']:,} of {now['train'] + now['held_out']:,} examples are held out, the "
            f"run held out {then['held_out']:,} of {then['train'] + then['held_out']:,}: it may have been trained on "
            "some that are measured"
        )


def _device(wanted: str) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device is cuda, but torch sees no CUDA device; expected auto or cpu")
    return "cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu")
