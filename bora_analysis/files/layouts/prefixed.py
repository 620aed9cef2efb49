"""diffusers' and ComfyUI's layouts: PEFT's factors behind the name of a part of the pipeline.

diffusers (``utils/peft_utils.py``, ``loaders/lora_base.py``): ``unet.<module>.lora_A.weight``, also ``transformer.``
and ``text_encoder.``, with PEFT's settings, each behind the part's name, as JSON in ``lora_adapter_metadata`` of the
header. Without these the scaling is 1.

ComfyUI (``comfy/lora.py``): ``diffusion_model.<module>.lora_A.weight``, with the original model's names, and ``.alpha``
beside them; without it the scaling is 1. Diffusers' names are known under other prefixes: those of the U-Net as kohya's
``lora_unet_…``, those of Flux as ``transformer.…``, those of text encoders as ``text_encoder.…``.

They are read under PEFT's names as they are, ``.alpha`` by :mod:`.kohya`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from ...patterns import late
from ..errors import AdapterError
from ..tensors import Array
from .names import underscored
from .out import Job, Layer, Out, lora_settings

_UNET = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "time_embedding.", "add_embedding.")
_ORIGINAL = ("input_blocks.", "middle_block.", "output_blocks.", "double_blocks.", "single_blocks.", "joint_blocks.")
_DIFFUSERS = late(r"(unet|text_encoder(_\d)?|transformer(?!\.(h|encoder|word_embeddings)))\..*lora")  # no GPT


def _tensors(layer: Layer) -> dict[str, Array]:
    B, A = layer.shaped
    return {f"{layer.module}.lora_A.weight": A, f"{layer.module}.lora_B.weight": B}


def diffusers_name(part: str, path: str, module: str) -> str:
    """The module behind its part's name."""
    if path.startswith(_ORIGINAL):
        raise AdapterError("is a name of the original model, and diffusers has others; choose kohya or comfyui")
    if part in ("", "unet") and not module.startswith("unet."):
        part = "unet" if path.startswith(_UNET) else "transformer"
    return f"{part}.{path}"


def write_diffusers(job: Job) -> None:
    """``pytorch_lora_weights.safetensors``, with PEFT's settings in the header."""

    def metadata() -> Mapping[str, str]:
        try:
            packed = json.loads(job.metadata.get("lora_adapter_metadata", "{}"))
        except ValueError:
            packed = {}
        for part in dict.fromkeys(module.partition(".")[0] for module in job.told):
            front = f"{part}."
            own = {name.removeprefix(front): told for name, told in job.told.items() if name.startswith(front)}
            settings = lora_settings(own) | {"target_modules": list(own)}
            packed |= {f"{part}.{key}": value for key, value in settings.items()}
        return {"lora_adapter_metadata": json.dumps(packed, ensure_ascii=False)}

    job.save("pytorch_lora_weights.safetensors", _tensors, metadata=metadata)


def comfyui_name(part: str, path: str, module: str) -> str:
    """The module behind the prefix under which ComfyUI knows it."""
    if part.startswith("text_encoder"):
        return f"{part}.{path}"
    if path.startswith(_UNET):
        return f"lora_unet_{underscored(path)}"
    flux = part == "transformer" and not module.startswith("diffusion_model.")
    return f"{'transformer' if flux or path.startswith('single_transformer_blocks.') else 'diffusion_model'}.{path}"


def write_comfyui(job: Job) -> None:
    """One file, ``lora.safetensors``."""

    def tensors(layer: Layer) -> dict[str, Array]:
        alpha = {f"{layer.module}.alpha": np.array(layer.scaling * layer.r)} if layer.scaling != 1 else {}
        return _tensors(layer) | alpha

    job.save("lora.safetensors", tensors)


OUT = {
    "comfyui": Out(
        write_comfyui, comfyui_name, lambda keys: any(key.startswith(("diffusion_model.", *_ORIGINAL)) for key in keys),
        "lora.safetensors",
    ),
    "diffusers": Out(
        write_diffusers, diffusers_name, lambda keys: any(map(_DIFFUSERS.match, keys)),
        "pytorch_lora_weights.safetensors",
    ),
}  # fmt: skip
