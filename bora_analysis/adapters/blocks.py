"""BoRA and MELoRA: factors that are cut into blocks.

BoRA (arXiv 2508.06953), ours: ``<module>.bora_A`` (r, n), ``.bora_B`` (m, r), ``.bora_sigma`` (b, b, r), σ raw as
trained. The authors' likely layout, a PEFT LoRA pair with one tensor (b, b, r) beside it, is read too.

MELoRA (arXiv 2402.17263), ours: ``<module>.melora_A`` (N, r, n/N), ``.melora_B`` (N, m/N, r). Its authors':
``<module>.lora_A.{i}.weight`` (r_i, n/N), ``.lora_B.{i}.weight`` (m/N, r_i).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from .. import delta
from ..delta import FactorError, Update
from .errors import AdapterError
from .lora import Pair, check_pair
from .source import Found, Loader, Source, match_pattern, module_path
from .tensors import Array

_FACTOR = re.compile(r"(?P<module>.+)\.(?P<kind>bora|melora)_(?P<part>A|B|sigma)(\.(?P<name>[^.]+))?")
_PARTS = {"bora": ("A", "B", "sigma"), "melora": ("A", "B")}


def read_bora(source: Source) -> Found | None:
    """BoRA in our own layout."""
    return _read(source, "bora", bora_loader)


def read_melora(source: Source) -> Found | None:
    """MELoRA in our own layout."""
    return _read(source, "melora", melora_loader)


def _read(source: Source, kind: str, make: Callable[[Source, str, Mapping[str, str]], Loader]) -> Found | None:
    found, rest = sort_block_keys(source, source.tensors.keys(), kind)
    if not found:
        return None
    return Found(kind, {module: make(source, module, parts) for module, parts in found.items()}, rest, [])


def sort_block_keys(source: Source, keys: Iterable[str], kind: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module → factor name → key for our own layout, and the other keys."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    for key in keys:
        hit = _FACTOR.fullmatch(module_path(key))
        if not hit or hit["kind"] != kind:
            rest.append(key)
        elif hit["part"] in found[hit["module"]]:
            raise AdapterError(f"{source.path}: {key}: several adapters in one file; save one at a time")
        else:
            found[hit["module"]][hit["part"]] = key
    for parts in found.values():
        missing = [part for part in _PARTS[kind] if part not in parts]
        if missing:
            key = next(iter(parts.values()))
            raise AdapterError(f"{source.path}: {key} has no {kind}_{missing[0]} beside it; the file is incomplete")
    return found, rest


def bora_loader(source: Source, module: str, keys: Mapping[str, str]) -> Loader:
    """Check the shapes of one BoRA module and return its loader."""
    r, groups = check_pair(source, module, Pair(keys["A"], keys["B"], False))
    A, B, sigma = (source.tensors.shape(keys[part]) for part in ("A", "B", "sigma"))
    source.expect(len(A) == 2 and groups == 1, keys["A"], "(r, n): BoRA is defined on linear layers")
    source.check_factor(keys["sigma"])
    b = sigma[0] if sigma else 0
    source.expect(sigma == (b, b, r), keys["sigma"], f"(b, b, r) with r = {r}")
    try:
        delta.check_blocks(b, B[0], A[1])
    except FactorError as error:
        raise AdapterError(f"{source.path}: {keys['sigma']}: {error.message}") from None
    _check_count(source, module, "num_blocks", keys["sigma"], b)
    build = partial(delta.bora, scaling=source.scaling(module, r), activation=activation(source))
    return source.loader(keys, build)


def activation(source: Source) -> str:
    """How Σ comes from the stored σ: as the caller says, else as the configuration says, else eq. 5."""
    name = source.activation or (source.config or {}).get("activation") or "exp-norm"
    if name not in delta.ACTIVATIONS:
        raise AdapterError(
            f"{source.path}: activation {name!r} is unknown; expected one of {', '.join(delta.ACTIVATIONS)}"
        )
    return name


def melora_loader(source: Source, module: str, keys: Mapping[str, str]) -> Loader:
    """Check the shapes of one MELoRA module in our layout and return its loader."""
    for key in keys.values():
        source.check_factor(key)
    A, B = source.tensors.shape(keys["A"]), source.tensors.shape(keys["B"])
    source.expect(len(A) == 3, keys["A"], "(N, r, n/N)")
    source.expect(len(B) == 3 and B[0] == A[0] and B[2] == A[1], keys["B"], f"({A[0]}, m/N, {A[1]}) from melora_A {A}")
    source.check_rank(module, keys["A"], A[1])
    _check_count(source, module, "num_minis", keys["A"], A[0])
    build = partial(_minis, scaling=source.scaling(module, A[1]))
    return source.loader(keys, build)


def minis_loader(source: Source, module: str, minis: Mapping[str, Pair]) -> Loader:
    """Check the shapes of one MELoRA module in its authors' layout and return its loader."""
    pairs = [minis[name] for name in sorted(minis, key=int)]
    if sorted(map(int, minis)) != list(range(len(minis))):
        raise AdapterError(
            f"{source.path}: {pairs[0].A}: minis {', '.join(sorted(minis, key=int))}; expected 0 … N−1, none missing"
        )
    ranks = [check_pair(source, module, pair)[0] for pair in pairs]
    told = (source.settings(module) or {}).get("r")
    if isinstance(told, list) and told != ranks:
        raise AdapterError(f"{source.path}: {pairs[0].A}: minis have ranks {ranks} but the configuration says {told}")
    scaling = [source.scaling(module, r, i) for i, r in enumerate(ranks)]
    keys = {"B": [pair.B for pair in pairs], "A": [pair.A for pair in pairs]}
    return source.loader(keys, partial(_minis, scaling=scaling))


def _minis(B: Any, A: Any, *, scaling: float | list[float], dtype: str) -> Update:
    return delta.melora(list[Array](B), list[Array](A), scaling=scaling, dtype=dtype)


def _check_count(source: Source, module: str, name: str, key: str, count: int) -> None:
    told: Any = (source.settings(module) or {}).get(name)
    if isinstance(told, Mapping):
        told = match_pattern(source, told, module)
    if isinstance(told, int) and told != count:
        raise AdapterError(
            f"{source.path}: {key} has {count} blocks (shape {source.tensors.shape(key)}) but the configuration says "
            f"{name} = {told} for {module}; correct one of them"
        )
