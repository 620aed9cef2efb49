"""HydraLoRA and MoELoRA: several updates of one layer, mixed by a router.

HydraLoRA (arXiv 2404.19245), y += s Σ_k softmax(route x)_k B_k A x. Ours: ``<module>.hydralora_A`` (r, n),
``.hydralora_B`` (K, m, r), ``.hydralora_route`` (K, n). Its authors': ``.lora_A.weight`` (r, n), ``.lora_B0.weight`` …
(m, r), ``.lora_route.weight`` (K, n).

MoELoRA (arXiv 2310.18339), y += s Σ_k gate_k(task) B_k A_k x. Its authors': ``.lora_A.loraA.{k}.mlp.weight`` (r/K, n)
and the same tensor again without ``.mlp``, ``.lora_B.loraB.{k}…`` (m, r/K), ``.lora_task_embedding.weight`` (tasks, d),
``.lora_gate.GateL.weight`` (K, d). s = α/r with the r of all experts together.

There is no single ΔW: it depends on the router. What is read instead is said by ``experts``, see
:func:`bora_analysis.experts.mixed`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ..delta import FactorError, Update
from ..experts import CHOICES, mixed, routing
from .errors import AdapterError
from .source import Found, Loader, Source, module_path
from .tensors import Array

_NAME = r"(\.(?P<name>[^.]+?))??"
_OURS = re.compile(rf"(?P<module>.+)\.hydralora_(?P<part>A|B|route){_NAME}(\.weight)?")
_HYDRA = re.compile(rf"(?P<module>.+)\.lora_(?P<part>A|B\d+|route){_NAME}(\.weight)?")
_MOE = re.compile(
    r"(?P<module>.+)\.lora_([AB])(\.(?P<name>[^.]+?))??\.lora(?P<part>[AB]\.\d+)(\.mlp)?\.weight"
    r"|(?P<router>.*?)\.?lora_(?P<gate>task_embedding|gate)(\.[^.]+?)??(\.GateL)?\.weight"
)


def read_hydralora(source: Source) -> Found | None:
    """HydraLoRA, in our layout and its authors'."""
    keys = source.tensors.keys()
    if any(_OURS.fullmatch(module_path(key)) for key in keys):
        pattern = _OURS
    elif any(re.search(r"\.lora_B\d+(\.|$)", key) for key in keys):
        pattern = _HYDRA
    else:
        return None
    found: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    for key in keys:
        hit = pattern.fullmatch(module_path(key))
        if not hit:
            rest.append(key)
        elif hit["part"] in found[hit["module"]]:
            raise AdapterError(f"{source.path}: {key}: several adapters in one file; save one at a time")
        else:
            found[hit["module"]][hit["part"]] = key
    loaders: dict[str, Loader] = {}
    for module, parts in found.items():
        loaders |= _hydra(source, module, parts)
    return Found("hydralora", loaders, rest, [_note(source, "HydraLoRA")])


def _hydra(source: Source, module: str, parts: Mapping[str, str]) -> dict[str, Loader]:
    numbered = [f"B{k}" for k in range(sum(name[0] == "B" and name != "B" for name in parts))]
    names = numbered or ["B"]
    missing = [name for name in ("A", *names, "route") if name not in parts]
    if missing:
        key = next(iter(parts.values()))
        raise AdapterError(f"{source.path}: {key} has no {missing[0]} beside it; the file is incomplete")
    A, route, B = parts["A"], parts["route"], [parts[name] for name in names]
    for key in (A, route, *B):
        source.check_factor(key)
    shape = source.tensors.shape(A)
    source.expect(len(shape) == 2, A, "(r, n)")
    r, n = shape
    shapes = [source.tensors.shape(key) for key in B]
    if names == ["B"]:
        source.expect(len(shapes[0]) == 3 and shapes[0][2] == r, B[0], f"(K, m, {r}) from A {shape}")
        count = shapes[0][0]
    else:
        for key, own in zip(B, shapes, strict=True):
            source.expect(own == (shapes[0][0], r), key, f"({shapes[0][0]}, {r}) from A {shape} and the first B")
        count = len(B)
    source.expect(source.tensors.shape(route) == (count, n), route, f"({count}, {n}): {count} experts")
    source.check_rank(module, A, r)
    keys = {"A": [A], "B": B, "route": route}
    return _loaders(source, module, keys, count, "hydralora", source.scaling(module, r))


def read_moelora(source: Source) -> Found | None:
    """MoELoRA as its authors save it."""
    keys = source.tensors.keys()
    if not any(re.search(r"\.lora[AB]\.\d+\.", key) for key in keys):
        return None
    found: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    for key in keys:
        hit = _MOE.fullmatch(module_path(key))
        if not hit:
            rest.append(key)
        elif hit["gate"]:
            found[hit["router"]][hit["gate"]] = key
        else:
            # The same tensor stands under two names.
            found[hit["module"]].setdefault(hit["part"], key)
    loaders: dict[str, Loader] = {}
    for module, parts in found.items():
        if set(parts) <= {"gate", "task_embedding"}:  # a router shared by the layers
            rest += parts.values()
        else:
            loaders |= _moe(source, module, parts)
    return Found("moelora", loaders, rest, [_note(source, "MoELoRA")])


def _moe(source: Source, module: str, parts: Mapping[str, str]) -> dict[str, Loader]:
    count = sum(name.startswith("A.") for name in parts)
    missing = [f"{side}.{k}" for side in "AB" for k in range(count) if f"{side}.{k}" not in parts]
    extra = [name for name in parts if name.startswith("B.") and int(name[2:]) >= count]
    if missing or extra or not count:
        key = next(iter(parts.values()))
        lacking = (missing or extra or ["A.0"])[0]
        raise AdapterError(f"{source.path}: {key} has no lora{lacking} beside it; the file is incomplete")
    A, B = ([parts[f"{side}.{k}"] for k in range(count)] for side in "AB")
    for key in (*A, *B):
        source.check_factor(key)
    first, last = source.tensors.shape(A[0]), source.tensors.shape(B[0])
    source.expect(len(first) == 2, A[0], "(r/K, n)")
    for a, b in zip(A, B, strict=True):
        source.expect(source.tensors.shape(a) == first, a, f"{first}, the shape of expert 0")
        source.expect(source.tensors.shape(b) == (last[0], first[0]), b, f"({last[0]}, {first[0]}) from loraA {first}")
    r = count * first[0]
    source.check_rank(module, A[0], r)
    keys: dict[str, Any] = {"A": A, "B": B}
    if "gate" in parts:
        source.check_factor(parts["gate"])
        keys["route"] = parts["gate"]
    extra_count = sum(int(np.prod(source.tensors.shape(parts[k]))) for k in ("gate", "task_embedding") if k in parts)
    return _loaders(source, module, keys, count, "moelora", source.scaling(module, r), extra_count)


def _note(source: Source, label: str) -> str:
    if isinstance(source.experts, str):
        what = {
            "mean": "the uniform mean of the experts",
            "each": "each expert by itself",
            "stacked": "the experts on top of each other, whose singular values bound those of every mixture",
        }[source.experts]
    else:
        what = "the mean over the given inputs of the router"
    return f"{label}'s update depends on its router; shown is {what} (--experts {'|'.join(CHOICES)})"


def _loaders(
    source: Source, module: str, keys: Mapping[str, Any], count: int, method: str, scaling: float, router: int = 0
) -> dict[str, Loader]:
    if isinstance(source.experts, str):
        choices: dict[str, Any] = {module: source.experts}
        if source.experts == "each":
            choices = {f"{module}.{k}": k for k in range(count)}
    elif module not in source.experts:
        raise AdapterError(f"{source.path}: experts holds no inputs for {module}; expected (T, n) for every module")
    else:
        choices = {module: np.asarray(source.experts[module])}
    return {
        name: source.loader(keys, partial(_build, choice=choice, method=method, scaling=scaling, router=router))
        for name, choice in choices.items()
    }


def _build(
    A: list[Array],
    B: list[Array],
    route: Array | None = None,
    *,
    choice: Any,
    method: str,
    scaling: float,
    router: int,
    dtype: str,
) -> Update:
    matrices = list(B[0]) if len(B) == 1 and B[0].ndim == 3 else B
    if isinstance(choice, np.ndarray):
        if route is None:
            raise FactorError("A", "has no router beside it, so inputs cannot be routed; expected experts as a word")
        choice = routing(route, choice)
    trained = router or (route.size if route is not None else 0)
    return mixed(matrices, A, choice, method=method, scaling=scaling, router=trained, dtype=dtype)
