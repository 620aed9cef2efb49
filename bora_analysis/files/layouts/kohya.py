"""kohya's, LyCORIS's and diffusers' layouts: ``down`` and ``up`` for A and B, and α as a tensor of each module.

kohya (sd-scripts, ``networks/lora.py``): ``<module>.lora_down.weight`` (r, n), ``.lora_up.weight`` (m, r) and a number
``.alpha``; ΔW = α/r · up down. A module's path has underscores for dots: ``lora_unet_mid_block_attentions_0_proj_in``.
Without an α, programs that load the file take α = r.

LyCORIS (``lycoris/modules``): the same, for convolutions too, where ``.lora_mid.weight`` (r, r, k, k) makes a Tucker
decomposition ΔW[o, i] = Σ_pq up[o, p] mid[p, q] down[q, i] (``functional/general.py:tucker_weight_from_conv``); LoHa
and LoKr with PEFT's names, which come from there. A LoKr with both factors full is not scaled, whatever its α says
(``lokr.py``: "use scale = 1"). ``.diff`` is a whole ΔW; ``diff_b``, ``w_norm`` and ``b_norm`` are changes of biases and
of norms. ``dora_scale`` is DoRA's magnitude, (m, 1, 1…) of the rows or by default (1, n, 1…) of the columns. A preset
may give each kind of layer an algorithm of its own.

diffusers before PEFT (``utils/state_dict_utils.py``): ``.lora.down.weight``, ``.lora_linear_layer.down.weight``, and
``attn1.processor.to_q_lora.down.weight``, where the processor is not part of the module's path. Its PEFT layout,
``unet.<module>.lora_A.weight``, may have ``.alpha`` beside it too. Without one the scaling is 1.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import isfinite, prod
from typing import Any

import numpy as np

from ...patterns import late
from ..errors import AdapterError, counted
from ..keys import module_path
from ..tensors import Array, Tensors
from .names import underscored
from .out import Job, Layer, Out
from .view import Derived, Translation, View, add

_FACTOR = late(
    r"(?P<module>.+?)(\.lora_linear_layer\.|\.lora\.|_lora\.|(?<=_lora\d)\.|\.lora_)(?P<part>down|up|mid)\.weight"
)
_SEPARATOR = late(r"(\.lora_linear_layer|\.lora|_lora)$")
# Changes of biases and norms, and learned tokens.
_NOT_LOW_RANK = late(r".+\.(diff_b|w_norm|b_norm)|bundle_emb\..+")
_WHOLE = ("lokr_w1", "lokr_w2", "diff")  # ΔW or its Kronecker factors, which no α scales
_ALGORITHM = late(r"\.(hada|lokr|diff$)")


def translate(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view under PEFT's names, or None where nothing is in these layouts."""
    entries: dict[str, str | Derived] = {}
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    alpha_keys: dict[str, str] = {}
    whole: dict[str, set[str]] = defaultdict(set)
    passed_over = []
    magnitudes: dict[str, str] = {}
    kinds: dict[str, str] = {}  # module → its algorithm, where that is not LoRA
    keys = tensors.keys()
    for key in keys:
        path = module_path(key)
        hit = _FACTOR.fullmatch(path)
        if hit:
            module = hit["module"].replace(".processor.", ".")
            if hit["part"] in parts[module]:
                raise AdapterError(
                    f"{tensors.path}: {key} and {parts[module][hit['part']]}: two factors for one module"
                )
            parts[module][hit["part"]] = key
        elif path.endswith(".alpha"):
            module = _SEPARATOR.sub("", path.removesuffix(".alpha")).replace(".processor.", ".")
            if module in alpha_keys:
                raise AdapterError(f"{tensors.path}: {key} and {alpha_keys[module]}: two α for one module")
            alpha_keys[module] = key
        elif path.endswith(".dora_scale"):
            magnitudes[path.removesuffix(".dora_scale")] = key
        elif _NOT_LOW_RANK.fullmatch(path):
            passed_over.append(key)
        else:
            module, _, name = path.rpartition(".")
            if name in _WHOLE:
                whole[module].add(name)
            if other := _ALGORITHM.search(path):
                kinds[module] = other[1]
            entries[key] = key
    if not (parts or alpha_keys or passed_over or magnitudes or any(key.endswith(".diff") for key in keys)):
        return None
    for module, key in magnitudes.items():
        if module not in parts and f"{module}.lora_A.weight" not in entries and kinds.get(module, "diff") == "diff":
            raise AdapterError(
                f"{tensors.path}: {key}: DoRA over another update than that of LoRA, LoKr or LoHa is not readable"
            )
        columns = tensors.shape(key)[:1] == (1,) and len(tensors.shape(key)) > 1
        add(entries, tensors, f"{module}.lora_magnitude_{'columns' if columns else 'vector'}", key)
    parameters: dict[str, int] = {}
    for module, found in parts.items():
        right = _tucker(tensors, found) if "mid" in found else None
        if right:
            parameters[module] = sum(prod(tensors.shape(key)) for key in found.values())
        if "down" in found:
            add(entries, tensors, f"{module}.lora_A.weight", found["down"], right)
        if "up" in found:
            add(entries, tensors, f"{module}.lora_B.weight", found["up"])
    alphas = {module: _number(tensors, key) for module, key in alpha_keys.items()}
    algorithms: dict[str, dict[str, str | Derived]] = defaultdict(dict)
    for key, entry in entries.items():
        algorithms[kinds.get(key.removesuffix(".weight").rpartition(".")[0], "lora")][key] = entry
    return Translation(
        View(tensors, entries),
        config,
        parts=tuple(View(tensors, part) for part in algorithms.values()) if len(algorithms) > 1 else (),
        alphas=alphas,
        scalings={module: 1.0 for module, found in whole.items() if found >= {"lokr_w1", "lokr_w2"} or "diff" in found},
        parameters=parameters,
        passed_over=tuple(passed_over),
        alpha_keys=alpha_keys,
        notes=(*_notes(tensors), *_whole_notes(tensors, whole, alphas)),
    )


def _tucker(tensors: Tensors, keys: Mapping[str, str]) -> Derived:
    """``mid`` and ``down`` multiplied to A (r, i, k, k)."""
    if "down" not in keys:
        raise AdapterError(f"{tensors.path}: {keys['mid']} has no lora_down beside it; the file is incomplete")
    mid, down = tensors.shape(keys["mid"]), tensors.shape(keys["down"])
    if len(mid) < 3 or len(down) != len(mid) or mid[1] != down[0] or set(down[2:]) != {1}:
        raise AdapterError(
            f"{tensors.path}: {keys['mid']} has shape {mid}; expected (r, r, kernel…) between lora_up (m, r, 1…) and "
            f"lora_down (r, i, 1…), which has shape {down}"
        )
    return Derived((keys["mid"], keys["down"]), (mid[0], down[1], *mid[2:]), _contract)


def _contract(mid: Array, down: Array) -> Array:
    inner = down.reshape(down.shape[:2]).astype(np.float64)
    return np.einsum("pq...,qi->pi...", mid.astype(np.float64), inner)


def _number(tensors: Tensors, key: str) -> float:
    if prod(tensors.shape(key)) != 1:
        raise AdapterError(f"{tensors.path}: {key} has shape {tensors.shape(key)}; expected a number, α")
    value = float(tensors.read(key).item())
    if not isfinite(value):
        raise AdapterError(f"{tensors.path}: {key} is {value}; expected a finite number, α")
    return value


def _whole_notes(tensors: Tensors, whole: Mapping[str, set[str]], alphas: Mapping[str, float]) -> Iterator[str]:
    """LoKr with two whole factors has no r, so that α/dim is another scaling where α is not the dim of the training."""
    dim = tensors.metadata.get("ss_network_dim", "")
    modules = [module for module, parts in whole.items() if parts >= {"lokr_w1", "lokr_w2"} and module in alphas]
    other = [module for module in modules if dim.isdecimal() and int(dim) > 0 and alphas[module] != int(dim)]
    if other:
        alpha = alphas[other[0]]
        yield (
            f"LoKr with two whole factors in {counted(len(other), 'module')}, such as {other[0]}: the scaling is 1, as "
            f"in LyCORIS; a program that takes α/dim would scale by {alpha:g}/{dim}"
        )


def _notes(tensors: Tensors) -> tuple[str, ...]:
    """LyCORIS's rsLoRA: one of its versions stored α of α/√r, later ones the α that makes α/r the same."""
    try:
        arguments = json.loads(tensors.metadata.get("ss_network_args") or "{}")
    except ValueError:  # metadata of the training run: nothing that ΔW depends on
        return ()
    if not isinstance(arguments, dict) or str(arguments.get("rs_lora")).lower() != "true":
        return ()
    return ("the file was trained with rs_lora; the scaling is α/r with the stored α, as in the programs that load it",)


def name(part: str, path: str, module: str) -> str:
    """The module's name, with underscores for dots; one that has them already stays."""
    if re.match(r"(lora|lycoris)_[^.]+$", module):
        return module
    number = part.removeprefix("text_encoder").removeprefix("_") if part.startswith("text_encoder") else None
    return f"lora_{'unet' if number is None else f'te{number}'}_{underscored(path)}"


def write(job: Job) -> None:
    """One file, ``lora.safetensors``, with r and α in its metadata as sd-scripts' ``resize_lora.py`` has them."""

    def tensors(layer: Layer) -> dict[str, Array]:
        B, A = layer.shaped
        alpha = np.array(layer.scaling * layer.r)
        factors = {f"{layer.module}.lora_down.weight": A, f"{layer.module}.lora_up.weight": B}
        return {**factors, f"{layer.module}.alpha": alpha}

    def metadata() -> dict[str, str]:
        ranks, alphas = {told.r for told in job.told.values()}, {told.r * told.scaling for told in job.told.values()}
        own = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
            "ss_network_alpha": str(*alphas) if len(alphas) == 1 else "Dynamic",
        }
        stale = [key for key in job.metadata if key.startswith("sshash_")]  # of the tensors before
        algorithm = "algo" in job.metadata.get("ss_network_args", "")
        for key in [*stale, *(["ss_network_args"] if algorithm else [])]:
            own[key] = ""
        return own

    job.save("lora.safetensors", tensors, metadata=metadata)


def claims(keys: list[str]) -> bool:
    """Whether the file is kohya's or LyCORIS's."""
    return any(re.match(r"(lora|lycoris)_[^.]+\.", key) or ".lora_down." in key for key in keys)


OUT = {"kohya": Out(write, name, claims, "lora.safetensors")}
