"""A quantised base model under an adapter, and the memory that it takes: QLoRA, and the same for every method."""

from __future__ import annotations

from typing import Any

from ..extras import require
from .settings import QUANTIZED

#: The trained head, and the layer of the tokens, stay as they are.
_HEADS = ["classifier", "score", "lm_head"]


def quantization(kind: str, dtype: str) -> Any:
    """transformers' configuration for ``from_pretrained``.

    Parameters
    ----------
    kind : one of ``QUANTIZED``: ``"int8"``, one scale for each row of a weight, by torchao; ``"nf4"``, NormalFloat in
        blocks of 64 with quantised scales (QLoRA, arXiv 2305.14314), by bitsandbytes.
    dtype : in which a layer computes.

    Raises
    ------
    ImportError
        The package is not installed.
    """
    require("quantize", f"a base model in {kind}", QUANTIZED[kind])
    import torch
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(quant_type=Int8WeightOnlyConfig(version=2), modules_to_not_convert=_HEADS)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=_HEADS,
    )


def memory(model: Any, dtype: str) -> dict[str, int]:
    """Bytes of a model's parameters and buffers as they are, and as they would be without quantisation.

    Parameters
    ----------
    model : of transformers, without adapter. dtype : of what is not quantised.

    Returns
    -------
    dict
        ``base`` and ``base_full``. Both count a tensor that two names share once.
    """
    import torch

    with torch.device("meta"):
        plain = type(model)._from_config(_without_quantization(model.config), dtype=getattr(torch, dtype))
    plain.tie_weights()
    return {"base": _bytes(model), "base_full": _bytes(plain)}


def _without_quantization(config: Any) -> Any:
    from copy import deepcopy

    config = deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _bytes(model: Any) -> int:
    tensors = {id(value): value for value in (*model.parameters(), *model.buffers())}
    return sum(_stored(value) for value in tensors.values())


def _stored(tensor: Any) -> int:
    """Bytes of a tensor with the constants that it is quantised by."""
    if hasattr(tensor, "__tensor_flatten__"):  # torchao's
        inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        return sum(_stored(part) for part in inner if part is not None)
    state = getattr(tensor, "quant_state", None)  # bitsandbytes'
    extra = (
        [] if state is None else [value for value in state.as_dict(packed=True).values() if hasattr(value, "nbytes")]
    )
    return tensor.nbytes + sum(value.nbytes for value in extra)


def peak() -> int | None:
    """The most bytes that this process has held so far: of the GPU if there is one; None where it is unknown."""
    import sys

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
