"""Layers merged into one, each part with a pair of its own: loralib's ``MergedLinear`` and LitGPT's ``qkv``.

``<module>.lora_A`` (r·k, n) and ``.lora_B`` (rows of the k parts, r): part g is rows g of B times rows g of A. α is
divided by r, not r·k. Parts that were not adapted have no rows in the file, and zeros in ΔW.

loralib (``loralib/layers.py``): B is a convolution with k groups, so that the parts have equally many rows. The file
does not say which parts of the layer are in it (``enable_lora``), so their rows alone are ΔW here. LLM-Adapters has it
as ``.lora_A.weight`` and ``.lora_B.weight`` (m, r, 1), with ``enable_lora`` in the configuration. loralib's other
layers have PEFT's names without ``.weight`` and need no translation; of its convolutions the file does not say the
kernel, so their ΔW is (m·k, n·k), as B A stores it.

LitGPT (``litgpt/lora.py``): query, key and value have n_head, n_query_groups and n_query_groups heads, as
``model_config.yaml`` says; ``hyperparameters.yaml`` says which of them are adapted, and α. In its older versions the
layer is ``attn.attn`` and its rows are interleaved by groups, but not in a ΔW of all three.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..configuration import LITGPT
from ..errors import AdapterError
from ..keys import module_path
from ..tensors import Array, Tensors
from .view import Derived, Translation, View

_LITGPT_LAYERS = (".attn.qkv", ".attn.attn")
_FLAGS = ("lora_query", "lora_key", "lora_value")


def translate(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view with each part's rows apart, or None where no layer is merged."""
    litgpt, enabled = (config or {}).get(LITGPT), (config or {}).get("enable_lora")
    if config is not None and not litgpt and not enabled:
        return None
    suffix = ".weight" if enabled else ""
    keys = tensors.keys()
    known = set(keys)
    entries: dict[str, str | Derived] = {key: key for key in keys}
    ranks: dict[str, int] = {}
    parameters: dict[str, int] = {}
    modules = []
    notes: tuple[str, ...] = ()
    for A in keys:
        if not A.endswith(f".lora_A{suffix}"):
            continue
        stem = A.removesuffix(f".lora_A{suffix}")
        B = f"{stem}.lora_B{suffix}"
        module = module_path(stem)
        modules.append(module)
        if B not in known or not _fit(tensors.shape(A), tensors.shape(B)):
            continue
        a, b = tensors.shape(A), tensors.shape(B)
        alone = module.endswith(_LITGPT_LAYERS) if litgpt else bool(enabled) and len(b) == 3
        if a[0] == b[1] and not alone:  # one part, and nothing says that it is a part
            continue
        r, count = b[1], a[0] // b[1]
        ranks[module], parameters[module] = r, prod(a) + prod(b)
        if litgpt or enabled:
            places, m = _heads(tensors, litgpt, module, B, count) if litgpt else _enabled(tensors, enabled, B, count)
            entries[B] = Derived((B,), (m, r * count), partial(_spread, places=places, m=m))
        elif b[0] == count * a[1] and not module.endswith(_LITGPT_LAYERS):  # square parts, which are equal
            places = np.split(np.arange(b[0]), count)
            entries[B] = Derived((B,), (b[0], r * count), partial(_spread, places=places, m=b[0]))
            notes = ("merged layers (loralib's MergedLinear): rows of parts that were not adapted are left out of ΔW",)
        else:
            raise AdapterError(
                f"{tensors.path}: {A} {a} and {B} {b} are {count} layers in one (loralib's MergedLinear, LitGPT's "
                f"qkv), and nothing says how many of the {b[0]} rows each has: with grouped-query attention they "
                "differ; put LitGPT's model_config.yaml beside the file, or enable_lora into adapter_config.json"
            )
    alphas = _alphas(tensors, litgpt, modules)
    if not ranks and not alphas:
        return None
    left = None if litgpt else config
    return Translation(View(tensors, entries), left, ranks=ranks, parameters=parameters, alphas=alphas, notes=notes)


def _fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == 2 and len(b) in (2, 3) and b[1] > 0 and a[0] % b[1] == 0 and prod(b[2:]) == 1


def _enabled(tensors: Tensors, enabled: Any, B: str, count: int) -> tuple[list[Array], int]:
    """The rows of each adapted part by ``enable_lora``, as many for each; and of all parts."""
    if not isinstance(enabled, list) or sum(map(bool, enabled)) != count or tensors.shape(B)[0] % count:
        raise AdapterError(
            f"{tensors.path}: {B} has shape {tensors.shape(B)} for {count} adapted parts; enable_lora is {enabled!r}; "
            f"expected a list with {count} true entries, and as many rows for each"
        )
    height = tensors.shape(B)[0] // count
    places = [np.arange(k * height, (k + 1) * height) for k, told in enumerate(enabled) if told]
    return places, height * len(enabled)


def _heads(tensors: Tensors, settings: Mapping[str, Any], module: str, B: str, count: int) -> tuple[list[Array], int]:
    """The rows of each adapted one of query, key and value, by LitGPT's numbers of heads; and of all three."""
    folder = tensors.path.parent
    heads, groups, size = _sizes(settings)
    if not (heads and groups and size):
        raise AdapterError(
            f"{folder}: model_config.yaml does not say how the rows of {B} are split; expected n_head, n_query_groups "
            "and head_size"
        )
    flags = [settings.get(name) for name in _FLAGS]
    if flags == [None, None, None] and count == len(_FLAGS):
        flags = [True] * len(_FLAGS)
    if not all(isinstance(flag, bool) for flag in flags):
        raise AdapterError(
            f"{tensors.path}: {B} holds {count} of query, key and value; put LitGPT's hyperparameters.yaml, which says "
            f"which ({', '.join(_FLAGS)}), beside the file"
        )
    owner = np.repeat(range(3), [heads * size, groups * size, groups * size])
    if module.endswith(".attn.attn") and not all(flags):
        owner = np.tile(np.repeat(range(3), [heads // groups * size, size, size]), groups)
    places = [np.flatnonzero(owner == part) for part, flag in enumerate(flags) if flag]
    if len(places) != count or sum(map(len, places)) != tensors.shape(B)[0]:
        raise AdapterError(
            f"{tensors.path}: {B} has shape {tensors.shape(B)} for {count} adapted parts; the files beside it say "
            f"{len(places)} with {' + '.join(str(len(rows)) for rows in places)} rows; are they this run's?"
        )
    return places, len(owner)


def _sizes(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    """Heads of the query, heads of key and value, rows of a head; 0 where nothing says so."""

    def number(name: str, default: int = 0) -> int:
        value = settings.get(name)
        return value if isinstance(value, int) and value > 0 else default

    heads = number("n_head")
    return heads, number("n_query_groups", heads), number("head_size", number("n_embd") // heads if heads else 0)


def _alphas(tensors: Tensors, settings: Mapping[str, Any] | None, modules: Sequence[str]) -> dict[str, float]:
    """α of LitGPT's run, for every module; none where hyperparameters.yaml is missing."""
    alpha = (settings or {}).get("lora_alpha")
    if alpha is None:
        return {}
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise AdapterError(
            f"{tensors.path.parent}: hyperparameters.yaml says lora_alpha = {alpha!r}; expected a number"
        )
    return dict.fromkeys(modules, float(alpha))


def _spread(B: Array, *, places: Sequence[Array], m: int) -> Array:
    """(m, r·k): the rows of part g in its columns of A's rows g."""
    r = B.shape[1]
    out = np.zeros((m, r * len(places)), dtype=B.dtype)
    start = 0
    for part, rows in enumerate(places):
        out[rows, part * r : (part + 1) * r] = B[start : start + len(rows)].reshape(len(rows), r)
        start += len(rows)
    return out
