"""The experiments of the BoRA paper (arXiv 2508.06953, §4.1 and Appendix B) as settings.

α = 2r, dropout 0.05, AdamW without weight decay and a linear decay are defaults of
:class:`~bora_analysis.training.settings.Settings`. Models and data come from the Hugging Face Hub; Math10K and
Commonsense170K from the repository of Hu et al. (2023, arXiv 2304.01933), as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .settings import OPTIONS, options_of

_ROBERTA = {"": ("FacebookAI/roberta-base", 3e-4), "-large": ("FacebookAI/roberta-large", 1e-4)}
# Task → epochs, and settings that differ from a classification scored by accuracy. MNLI: matched and mismatched.
_GLUE: dict[str, tuple[int, dict[str, str]]] = {
    "rte": (10, {}),
    "mrpc": (10, {}),
    "stsb": (5, {"task": "regression"}),
    "cola": (5, {"metric": "matthews"}),
    "sst2": (2, {}),
    "qnli": (2, {}),
    "mnli": (1, {}),
    "qqp": (1, {}),
}
_LANGUAGE_MODELS = {
    "gemma-7b": "google/gemma-7b",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "qwen2.5-14b": "Qwen/Qwen2.5-14B",
}
_INSTRUCTIONS = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main/ft-training_set/"
_SHARED: dict[str, Any] = {"method": "bora", "r": 8, "blocks": 16, "dropout": 0.05}


def _glue(name: str, size: str) -> dict[str, Any]:
    model, rate = _ROBERTA[size]
    epochs, special = _GLUE[name]
    return {
        **_SHARED,
        "model": model,
        "data": f"nyu-mll/glue:{name}",
        "task": "classification",
        "target": "QV",
        "epochs": epochs,
        "batch_size": 32,
        "learning_rate": rate,
        "warmup": 0.03,
        "max_length": 512,
        "dtype": "float32",
        **special,
    }


def _instructions(data: str, model: str) -> dict[str, Any]:
    return {
        **_SHARED,
        "model": _LANGUAGE_MODELS[model],
        "data": f"{_INSTRUCTIONS}{data}.json",
        "task": "causal-lm",
        "target": "QKV",
        "epochs": 1,
        "batch_size": 16,
        "learning_rate": 1e-4,
        "warmup": 100,
        "max_length": 256,
        "dtype": "bfloat16",
        # The paper holds out no part of the training data; its test sets require generated answers.
        "validation_share": 0.02,
    }


#: Name → settings. Settings of the caller override them.
RECIPES: dict[str, dict[str, Any]] = {
    **{f"glue-{name}{size}": _glue(name, size) for size in _ROBERTA for name in _GLUE},
    **{f"math10k-{model}": _instructions("math_10k", model) for model in _LANGUAGE_MODELS},
    **{f"commonsense170k-{model}": _instructions("commonsense_170k", model) for model in _LANGUAGE_MODELS},
}


def without_options(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """A recipe's settings for another method than its own: without options that this one lacks, and without blocks.

    >>> sorted(RECIPES["glue-rte"].keys() - without_options(RECIPES["glue-rte"], "ia3"))
    ['blocks', 'dropout', 'method', 'r']
    """
    lacking = OPTIONS.keys() - options_of(method) | {"blocks", "method"}
    return {key: value for key, value in settings.items() if key not in lacking}
