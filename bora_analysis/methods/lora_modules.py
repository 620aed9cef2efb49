"""From pairs of LoRA factors to the updates of layers, and of expert parameters (PEFT's ``target_parameters``)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..files.adapter_file import Loader, Source
from ..files.errors import AdapterError
from ..files.layouts.peft import REGISTERED
from ..files.tensors import Array
from ..updates.blocks import lora
from ..updates.contract import Update
from .pairs import Pair, check_pair

# ``MultiheadAttention.merge`` of PEFT's tuners/lora/layer.py, which its forward pass calls.
_TWICE = (
    "PEFT (0.21.2) adds the update of out_proj in nn.MultiheadAttention twice, in its forward pass too; here it is "
    "counted once, as α/r B A"
)


def lora_loaders(source: Source, pairs: Mapping[str, Pair], method: str) -> tuple[dict[str, Loader], list[str]]:
    """Module path → loader for LoRA pairs, and warnings. Shapes are checked here, from the file's header."""
    loaders: dict[str, Loader] = {}
    warnings: list[str] = []
    stacks: dict[str, list[str]] = defaultdict(list)
    # An expert's factor is a slice of a stack, so stacks are read through a cache: one for the file, or the caches
    # would add up to the file.
    read = lru_cache(maxsize=4)(source.tensors.read)
    for module in pairs:
        wrapped = module.endswith(".base_layer")
        stacks[re.sub(r"(\.base_layer)+$", "", module) if wrapped else module].append(module)
    for module, levels in stacks.items():
        names = _parameters(source, module)
        if len(levels) == 1 and levels[0] == module and _is_plain(source, module, pairs[module], names):
            shown, configured = _plain_names(module)
            attention = shown != module or f"{module}.base_layer.out_proj" in pairs
            loaders[shown] = _one(source, configured, pairs[module], method, attention=attention)
            warnings += [_TWICE] if shown != module and _TWICE not in warnings else []
        else:
            levels.sort(key=len, reverse=True)  # innermost first
            made, warning = _experts(source, module, [pairs[level] for level in levels], names, method, read)
            loaders.update(made)
            warnings += [warning] if warning and warning not in warnings else []
    return loaders, warnings


def _plain_names(module: str) -> tuple[str, str]:
    # PEFT wraps nn.MultiheadAttention and, inside it, out_proj, with the settings of the attention.
    outer, wrapped, inner = module.partition(".base_layer.")
    return (f"{outer}.{inner}", outer) if wrapped else (module, module)


def _one(source: Source, module: str, pair: Pair, method: str, *, attention: bool = False) -> Loader:
    r, groups = check_pair(source, module, pair)
    scaling = source.scaling(module, r)
    kind = "attention" if attention else "embedding" if pair.embedding else "linear"
    build = partial(_build, scaling=scaling, method=method, kind=kind, groups=groups)
    return source.loader({"B": pair.B, "A": pair.A}, build)


def _build(
    B: Array, A: Array, *, scaling: float, method: str, dtype: str, kind: str = "linear", groups: int = 1
) -> Update:
    """ΔW = scaling · B A with the kernel of a convolution in ΔW's columns.

    An embedding's ΔW is (d, V) here; PEFT's is its transpose, with the same singular values. Its A is looked up, not
    multiplied. In a grouped convolution of PEFT, A sees every channel and output group g sees rows g of A alone.
    """
    left, right = B.reshape(B.shape[0], -1), A.reshape(A.shape[0], -1)
    (m, columns), (r, n) = left.shape, right.shape
    if groups > 1:
        full = np.zeros((groups, m // groups, groups, columns), dtype=left.dtype)
        index = np.arange(groups)
        full[index, :, index, :] = left.reshape(groups, m // groups, columns)
        left = full.reshape(m, r)
    update = lora(left, right, scaling=scaling, method=method, dtype=dtype, any_rank=True)
    facts: dict[str, Any] = {} if kind == "linear" else {"kind": kind}
    if A.ndim > 2:
        facts |= {"kind": "conv", "kernel": A.shape[2:]}
    if kind == "embedding":
        facts["macs_per_token"] = m * r
    if groups > 1:
        size = m * columns + r * n
        facts |= {"kind": "grouped conv", "groups": groups, "parameters": size, "macs_per_token": size}
    return update.with_facts(**facts) if facts else update


def _parameters(source: Source, module: str) -> list[str]:
    """Names of the parameters of a module that the configuration targets, by PEFT's rule."""
    pairs = [(target.rpartition(".")[2], target) for target in _targets(source, module)]
    return sorted({name for name, target in pairs if f".{module}.{name}".endswith(f".{target}")})


def _targets(source: Source, module: str) -> list[str]:
    targets = (source.settings(module) or {}).get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise AdapterError(f"{source.path}: target_parameters is {targets!r}; expected a list of names")
    return targets


def _is_plain(source: Source, module: str, pair: Pair, names: list[str]) -> bool:
    if not names:
        return True
    # A target without a dot, such as "down_proj", fits every module; the rank tells.
    exact = any("." in target and target.rpartition(".")[2] in names for target in _targets(source, module))
    return not exact and source.tensors.shape(pair.A)[0] == source.rank(module)


def _experts(
    source: Source, module: str, levels: list[Pair], names: list[str], method: str, read: Callable[[str], Array]
) -> tuple[dict[str, Loader], str]:
    """Loaders for the experts of a module, one per parameter and expert.

    PEFT wraps one parameter at a time, in the order in which the module registers them, so the innermost pair is the
    first parameter's. The file does not say that order; it is known for one parameter and for transformers' modules.
    """
    warning = ""
    if not names:
        raise AdapterError(
            f"{source.path}: {levels[0].A} belongs to a parameter of a module, and the configuration's "
            f"target_parameters, which should say what they are called, names none for it; correct target_parameters"
        )
    if len(levels) == len(names) and (len(names) == 1 or set(names) <= set(REGISTERED)):
        shown = sorted(names, key=lambda name: REGISTERED.index(name) if name in REGISTERED else 0)
        configured = [[name] for name in shown]
    else:
        shown = [f"parameter_{k}" for k in range(len(levels))]
        configured = [names] * len(levels)
        warning = (
            f"the file does not say which factors belong to which of {', '.join(names)}; they are called parameter_0 … "
            "in the order in which the module registers them"
        )
    loaders: dict[str, Loader] = {}
    for pair, name, candidates in zip(levels, shown, configured, strict=True):
        told = {(source.rank(f"{module}.{c}"), _scaling(source, f"{module}.{c}")) for c in candidates}
        if len(told) != 1:
            raise AdapterError(
                f"{source.path}: {pair.A}: r or α differs between {', '.join(candidates)}, and the file does not say "
                "to which of them the factors belong"
            )
        ((r, scaling),) = told
        rows, _ = check_pair(source, module, pair, told=False)
        if r is None or rows % r:
            source.expect(False, pair.A, f"rows in experts of r = {r} each")
        count = rows // (r or 1)
        for e in range(count):
            build = partial(_expert, expert=e, count=count, scaling=scaling, method=method)
            path = f"{module}.{name}.{e}" if count > 1 else f"{module}.{name}"
            loaders[path] = source.loader({"B": pair.B, "A": pair.A}, build, read=read if count > 1 else None)
    return loaders, warning


def _scaling(source: Source, parameter: str) -> float:
    return source.scaling(parameter, source.rank(parameter) or 1)


def _expert(B: Array, A: Array, *, expert: int, count: int, scaling: float, method: str, dtype: str) -> Update:
    """B (m, r·E) holds the expert in its last index, A (E·r, n) in its first (PEFT's ``ParamWrapper``)."""
    left = B.reshape(B.shape[0], -1, count)[:, :, expert]
    right = A.reshape(count, -1, A.shape[1])[expert]
    update = lora(left.copy(), right.copy(), scaling=scaling, method=method, dtype=dtype, any_rank=True)
    return update.with_facts(kind="parameter")
