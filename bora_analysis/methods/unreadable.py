"""Methods that cannot be read, refused by name.

ΔW of these methods is not a product of the stored factors, or needs the base model. An error is better than the
spectrum of something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..catalogue import METHODS, labels
from ..files.adapter_file import peft_type
from ..files.errors import AdapterError

# Pattern of a key → the method whose files have it. The first hit counts.
_EVIDENCE = [
    (r"\.lora_diag(\.|$)", "KaSA"),
    (r"\.lora_lambda\..*rms_norm", "TopLoRA"),
    (r"unilora_theta_d", "Uni-LoRA"),
    # Its versions share the key: √(b(b−1)/2) in pull request 1315 and ComfyUI-OFTv2, 2√(b−1) in later ones.
    (r"\.scaled_oft(\.|$)", "scaled OFT (OneTrainer), whose divisor, 2√(b−1) or √(b(b−1)/2), the file does not say,"),
    (r"\.oft_diag(\.|$)", "OFT of the old LyCORIS (oft_diag)"),
    (r"\.oft_(r|blocks)(\.|$)", "OFT of PEFT before 0.14, or of LyCORIS,"),
    (r"\.bone_", "Bone"),
    (r"waveft_spectrum", "WaveFT"),
    (r"randlora_", "RandLoRA"),
    (r"\.road_(theta|alpha)", "RoAd"),
    (r"tinylora_", "TinyLoRA"),
    (r"\.psoft_", "PSOFT"),
    (r"\.glora_", "GLoRA"),
    (r"\.deft_[PR]", "DEFT"),
    (r"frod_", "FRoD"),
    (r"osf_svd_params", "OSF"),
    (r"\.peanut_", "PEANuT"),
    (r"\.adamss_", "AdaMSS"),
    (r"\.lily_", "Lily"),
    (r"\.poly_lora_", "Poly"),
    (r"\.beft_bias", "BEFT (biases only)"),
    (r"prompt_embeddings", "a trained prompt (prompt tuning, prefix tuning, P-tuning)"),
    (r"adaption_(prompt|gate)", "LLaMA-Adapter"),
    (r"\.(lora_)?proj_(down|up)$|\.lora_(down|up)$", "SVDQuant's low-rank branch (packed for its kernels)"),
    (r"\.(a1|a2|b1|b2|bm)\.weight$", "GLoRA (LyCORIS)"),
    (r"\.on_input$", "IA³ (LyCORIS)"),
    (r"^lora_controlnet$", "Control-LoRA"),
]

# Their files have the same keys.
_PROMPTS = {"PREFIX_TUNING": "prefix tuning", "P_TUNING": "P-tuning", "PROMPT_TUNING": "prompt tuning"}

# Entry of adapter_config.json that is set → why B·A is then not the update.
_FLAGS = {
    "use_qalora": "QALoRA pools the input, so B·A is not its update; not readable yet",
    "arrow_config": "Arrow routes each token to other adapters, so there is no single update; not readable",
    "kasa_config": "KaSA truncates the base model and adds a diagonal; not readable yet",
}


def refuse_unreadable(path: Path, config: Mapping[str, Any] | None, keys: Iterable[str]) -> None:
    """Raise :class:`AdapterError` with the method's name if no reader takes the file."""
    types = sorted({kind for row in METHODS.values() if row.module for kind in row.peft_types})
    found = _evidence(list(keys))
    kind = peft_type(config)
    if kind not in types:
        called = f" ({_PROMPTS.get(kind) or found[0]})" if found else ""
        raise AdapterError(f"{path}: peft_type {kind}{called} is not readable; readable: {', '.join(types)}")
    for flag, reason in _FLAGS.items():
        if (config or {}).get(flag):
            raise AdapterError(f"{path}: adapter_config.json sets {flag}: {reason}")
    if found:
        name, key = found
        raise AdapterError(f"{path}: {name} is not readable; readable are {labels(lambda row: row.module)} (key {key})")


def _evidence(keys: list[str]) -> tuple[str, str] | None:
    """A method that cannot be read, and the key that says so."""
    # One search in all keys at once is much faster than one in each.
    text = "\n".join(key.replace("\n", " ") for key in keys)
    for pattern, name in _EVIDENCE:
        hit = re.search(pattern, text, re.MULTILINE)
        if hit:
            return name, keys[text.count("\n", 0, hit.start())]
    return None
