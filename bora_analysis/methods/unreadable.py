"""What cannot be read, refused by name and with the reason: an error is better than the spectrum of something else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..catalogue import METHODS, labels
from ..files.adapter_file import peft_type
from ..files.errors import AdapterError

_PROMPT = "it trains a prompt or a cache, so no matrix of the model changes"

#: ``peft_type`` → the method, and why it has no ΔW that its file tells.
REFUSED = {
    "PROMPT_TUNING": ("prompt tuning", _PROMPT),
    "MULTITASK_PROMPT_TUNING": ("multitask prompt tuning", _PROMPT),
    "PREFIX_TUNING": ("prefix tuning", _PROMPT),
    "P_TUNING": ("P-tuning", _PROMPT),
    "CPT": ("CPT", _PROMPT),
    "CARTRIDGE": ("Cartridge", _PROMPT),
    "ADAPTION_PROMPT": ("LLaMA-Adapter", _PROMPT),
    "LN_TUNING": ("LN tuning", "it trains the vectors of norms alone, so no matrix changes"),
    "BEFT": ("BEFT", "it trains biases alone, so no matrix changes"),
    "TRAINABLE_TOKENS": ("trainable tokens", "it trains rows of the embedding as such, with no ΔW of low rank"),
    "SHADOW": ("Shadow", "it trains a second network beside the model, which no matrix of the model stands for"),
    "XLORA": ("X-LoRA", "its file has the router alone; its experts are LoRAs: read each by its path in adapters"),
    "BONE": ("Bone", "PEFT has given it up for MiSS; convert it with PEFT's script and read that"),
}

# Pattern of a key → peft_type, or a method of other programs and the reason. The first hit counts.
_EVIDENCE: list[tuple[str, str | tuple[str, str]]] = [
    (r"\.lora_lambda\..*rms_norm", ("TopLoRA", "its update is another one for every token")),
    # Its versions share the key: √(b(b−1)/2) in pull request 1315 and ComfyUI-OFTv2, 2√(b−1) in later ones.
    (
        r"\.scaled_oft(\.|$)",
        ("scaled OFT (OneTrainer)", "its divisor, 2√(b−1) or √(b(b−1)/2), is not in the file"),
    ),
    (r"\.oft_diag(\.|$)", ("OFT of the old LyCORIS (oft_diag)", "only PEFT's form of it is")),
    (r"\.oft_(r|blocks)(\.|$)", ("OFT of PEFT before 0.14, or of LyCORIS,", "only PEFT's later form of it is")),
    (r"\.bone_", "BONE"),
    (r"\.beft_bias", "BEFT"),
    (r"prompt_embeddings", ("a trained prompt (prompt tuning, prefix tuning, P-tuning)", _PROMPT)),
    (r"adaption_(prompt|gate)", "ADAPTION_PROMPT"),
    (
        r"\.(lora_)?proj_(down|up)$|\.lora_(down|up)$",
        ("SVDQuant's low-rank branch", "its numbers are packed for its kernels"),
    ),
    (r"\.(a1|a2|b1|b2|bm)\.weight$", ("GLoRA (LyCORIS)", "only PEFT's form of it is")),
    (r"\.on_input$", ("IA³ (LyCORIS)", "only PEFT's form of it is")),
    (r"^lora_controlnet$", ("Control-LoRA", "it is a control network")),
]


def refuse_unreadable(path: Path, config: Mapping[str, Any] | None, keys: Iterable[str]) -> None:
    """Raise :class:`AdapterError` with the method's name if no reader takes the file."""
    kind = peft_type(config)
    if kind in REFUSED:
        name, reason = REFUSED[kind]
        raise AdapterError(f"{path}: peft_type {kind} ({name}) is not readable: {reason}")
    found = _evidence(list(keys))
    types = {each for row in METHODS.values() if row.module for each in row.peft_types}
    if kind not in types:
        called = f" ({found[0]})" if found else ""
        raise AdapterError(f"{path}: peft_type {kind}{called} is not readable; readable: {', '.join(sorted(types))}")
    if (config or {}).get("arrow_config"):
        raise AdapterError(
            f"{path}: adapter_config.json sets arrow_config: Arrow routes each token to other adapters, so there is no "
            "single update; not readable"
        )
    if found:
        name, reason, key = found
        readable = labels(lambda row: row.module)
        raise AdapterError(f"{path}: {name} is not readable: {reason} (key {key}); readable are {readable}")


def _evidence(keys: list[str]) -> tuple[str, str, str] | None:
    """A method that cannot be read, why, and the key that says so."""
    # One search in all keys at once is much faster than one in each.
    text = "\n".join(key.replace("\n", " ") for key in keys)
    for pattern, method in _EVIDENCE:
        if hit := re.search(pattern, text, re.MULTILINE):
            name, reason = REFUSED[method] if isinstance(method, str) else method
            return name, reason, keys[text.count("\n", 0, hit.start())]
    return None
