"""llama.cpp's layout: a GGUF file with ``blk.0.attn_q.weight.lora_a`` (r, n) and ``.lora_b`` (m, r).

The file (ggml, ``docs/gguf.md``) is a header of settings, then the tensors, each with its dimensions in reverse order
and at a multiple of 32 bytes. ``general.type`` is adapter, ``adapter.type`` lora, ``general.architecture`` that of the
model; α is one, ``adapter.lora.alpha``, divided by each tensor's r (``convert_lora_to_gguf.py``), and 0 stands for a
scaling of 1 (``llama-adapter.h``). ``lora_a`` of the embedding is (V, r).

llama.cpp rotates neighbouring rows of a head, transformers rows half a head apart. So it has the rows of query and key
in another order for models of Llama's kind (``convert_hf_to_gguf.py``: ``LlamaModel.permute``).
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from ...atomic import replacing
from ...patterns import late
from ..errors import AdapterError
from ..tensors import Tensors
from ..tensors_out import DTYPES
from .out import Job, Out, Told
from .view import Derived, Translation, View, add, transposed

# transformers' model_type → llama.cpp's architecture, and whether its rows of query and key are in another order.
_MODELS = {
    "llama": ("llama", True), "mistral": ("llama", True), "granite": ("granite", True), "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False), "gemma": ("gemma", False), "gemma2": ("gemma2", False), "gemma3": ("gemma3", False),
    "gemma3_text": ("gemma3", False), "phi3": ("phi3", False),
}  # fmt: skip
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
}  # fmt: skip
_OUTSIDE = {"token_embd": "model.embed_tokens", "output": "lm_head"}
_FACTOR = late(r"(?P<module>.+)\.weight\.lora_(?P<side>[ab])")
_LAYER = late(r"(.*\.)?layers\.(?P<number>\d+)\.(?P<name>.+)")
_TYPES = {"float32": (0, "<f4"), "float16": (1, "<f2"), "bfloat16": (30, "bfloat16"), "float64": (28, "<f8")}
_TEXT, _FLOAT = 8, 6
_STEP = 32
# Texts of a header that stay in the same layout.
_ABOUT = late(r"general\.(name|basename|finetune|author|organization|description|license|url|repo_url|version)")
#: The setting that makes an adapter an aLoRA.
ALORA = "adapter.alora.invocation_tokens"


def translate(tensors: Tensors, _config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where the file is no GGUF."""
    told = tensors.metadata
    if "general.architecture" not in told and not any(map(_FACTOR.fullmatch, tensors.keys())):
        return None
    if told.get("general.type") != "adapter" or told.get("adapter.type") != "lora":
        raise AdapterError(
            f"{tensors.path}: its header says general.type = {told.get('general.type')!r} and adapter.type = "
            f"{told.get('adapter.type')!r}; expected 'adapter' and 'lora': a LoRA of llama.cpp, no model"
        )
    entries: dict[str, str | Derived] = {}
    modules: dict[str, None] = {}
    for key in tensors.keys():  # noqa: SIM118  no mapping
        hit = _FACTOR.fullmatch(key)
        if hit is None:
            entries[key] = key
            continue
        embedding = hit["module"] == "token_embd"
        name = f"{hit['module']}.lora_{'embedding_' if embedding else ''}{hit['side'].upper()}"
        add(entries, tensors, name, key, transposed(tensors, key) if embedding and hit["side"] == "a" else None)
        modules[hit["module"]] = None
    alpha = told.get("adapter.lora.alpha")
    alphas, scalings = {}, {}
    if alpha is not None and float(alpha) == 0:
        scalings = dict.fromkeys(modules, 1.0)
    elif alpha is not None:
        alphas = dict.fromkeys(modules, float(alpha))
    notes = ("aLoRA: the update acts only after the invocation tokens",) if ALORA in told else ()
    return Translation(View(tensors, entries), None, alphas=alphas, scalings=scalings, notes=notes)


def name(_part: str, path: str, _module: str) -> str:
    """The tensor's name in llama.cpp."""
    outside = next((short for short, own in _OUTSIDE.items() if path.endswith(own.rpartition(".")[2])), None)
    if outside:
        return outside
    hit = _LAYER.fullmatch(path)
    if hit is None or hit["name"] not in _NAMES:
        raise AdapterError("is no module whose name in llama.cpp is known; choose others with modules (--modules)")
    return f"blk.{hit['number']}.{_NAMES[hit['name']]}"


def write(job: Job) -> None:
    """One file, ``lora.gguf``."""
    place = job.place if job.place.suffix == ".gguf" and not job.place.is_dir() else job.place / "lora.gguf"
    architecture, order = _architecture(job, place)
    found: dict[str, tuple[tuple[int, ...], int, int]] = {}  # tensor → dimensions, type, offset
    with replacing(place) as path, TemporaryFile(dir=place.parent) as data, path.open("wb") as out:

        def add(key: str, shape: tuple[int, ...], kind: int, content: bytes) -> None:
            if key in found:
                raise AdapterError(f"{place}: {key} would be written twice; rename one of the modules")
            found[key] = shape[::-1], kind, data.tell()
            data.write(content + b"\0" * (-len(content) % _STEP))

        for layer in job.layers:
            job.told[layer.module] = Told(layer.r, layer.scaling)
            kind, stored = _TYPES[job.dtype]
            A = layer.A.T if layer.kind == "embedding" else layer.A
            for side, factor in (("a", A), ("b", layer.B[..., order(layer.module, layer.B.shape[-2]), :])):
                add(f"{layer.module}.weight.lora_{side}", factor.shape, kind, factor.astype(stored).tobytes())
        if not found:
            raise AdapterError(f"{place}: there are no modules to write")
        for key, raw in job.others.items():
            dtype = next((name for name, short in DTYPES.items() if short == raw.dtype), None)
            if dtype is None:
                raise AdapterError(f"{place}: {key} has a type that is not written; convert it to float32")
            add(key, raw.shape, _TYPES[dtype][0], raw.read())
        (told,) = set(job.told.values())
        settings = {
            "general.architecture": architecture, "general.type": "adapter", "adapter.type": "lora",
            "adapter.lora.alpha": float(told.r * told.scaling),
        }  # fmt: skip
        settings |= {key: value for key, value in job.metadata.items() if _ABOUT.fullmatch(key)}
        out.write(b"GGUF" + struct.pack("<IQQ", 3, len(found), len(settings)))
        for key, value in settings.items():
            text = isinstance(value, str)
            out.write(_text(key) + struct.pack("<I", _TEXT if text else _FLOAT))
            out.write(_text(value) if text else struct.pack("<f", value))
        for key, (shape, kind, offset) in found.items():
            out.write(_text(key) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
        out.write(b"\0" * (-out.tell() % _STEP))
        data.seek(0)
        shutil.copyfileobj(data, out, 2**24)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _architecture(job: Job, place: Path) -> tuple[str, Any]:
    """The architecture's name, and a function from a module and its rows to their order."""
    kept = job.metadata.get("general.architecture")
    if kept is not None:
        return kept, lambda _module, rows: slice(rows)
    config = job.base.get("text_config", job.base)
    kind = config.get("model_type")
    if kind not in _MODELS:
        told = f"its config.json says model_type = {kind!r}; known are {', '.join(_MODELS)}" if kind else "give --base"
        raise AdapterError(f"{place}: llama.cpp's file needs to know the base model's architecture: {told}")
    architecture, moved = _MODELS[kind]
    return architecture, lambda module, rows: row_order(config, module, rows) if moved else slice(rows)


def row_order(config: Mapping[str, Any], module: str, rows: int) -> Any:
    """The rows of transformers' query and key in llama.cpp's order; of other modules all as they are."""
    heads = config.get("num_attention_heads")
    if module.endswith(".attn_k"):
        heads = config.get("num_key_value_heads") or heads
    if not module.endswith((".attn_q", ".attn_k")):
        return slice(rows)
    if not heads or rows % (2 * heads):
        raise AdapterError(f"{module} has {rows} rows, and the base model's config.json says {heads} heads")
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def of_transformers(module: str, architecture: str | None, config: Mapping[str, Any]) -> tuple[str, Any]:
    """A module's path in transformers, and a function from its number of rows to llama.cpp's order of them.

    Raises
    ------
    AdapterError
        A name or an architecture that is not known; heads that the base model's configuration does not tell.
    """
    moved = dict(_MODELS.values()).get(architecture or "")
    names = {short: own for own, short in _NAMES.items() if (own == "mlp.gate_up_proj") <= (architecture == "phi3")}
    hit = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    own = names.get(hit[2]) if hit else None
    path = f"model.layers.{hit[1]}.{own}" if hit and own else _OUTSIDE.get(module)
    if moved is None or path is None:
        raise AdapterError(f"{module} of {architecture}: its name in transformers is not known")
    if moved and not config and module.endswith((".attn_q", ".attn_k")):
        raise AdapterError(f"{module} of {architecture}: the order of its rows depends on the heads; give --base")
    told = config.get("text_config", config)
    return path, lambda rows: row_order(told, module, rows) if moved else slice(rows)


def claims(keys: list[str]) -> bool:
    """Whether the file is llama.cpp's."""
    return any(key.endswith(".weight.lora_a") for key in keys)


OUT = {"gguf": Out(write, name, claims, "lora.gguf", ("linear", "embedding"), "stacked", one_rank=True)}
