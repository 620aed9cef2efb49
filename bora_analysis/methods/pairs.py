"""Pairs of LoRA factors in a file, which several methods have: found, and checked.

PEFT: ``base_model.model.<module>.lora_A.weight`` (r, n) and ``.lora_B.weight`` (m, r), with an adapter's name before
``.weight`` in some files. loralib: the same without ``.weight``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..files.adapter_file import Source
from ..files.errors import AdapterError
from ..files.keys import ancestors, module_path, natural
from ..files.parts import incomplete
from ..patterns import late

_FACTOR = late(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.(?P<name>[^.]+?))??(\.weight)?")
# lora_* entries that do not enter ΔW: VeLoRA's gradient projection, MonteCLoRA's sampler, lora_bias.
_HARMLESS = late(r"\.lora_(velora_|monteclora_)|\.lora_(embedding_)?B(\.[^.]+)?\.bias$")

# A converter's slip: an underscore for the dot.
_SLIP = late(r"_(lora_(down|up|mid)\.weight)$")


class Pair(NamedTuple):
    A: str
    B: str
    embedding: bool


@dataclass
class Parts:
    """The keys of a file, sorted by what they are."""

    pairs: dict[str, dict[str, Pair]] = field(default_factory=dict)  # module → adapter name or mini → keys
    sigmas: dict[str, str] = field(default_factory=dict)  # module → key of a 3-D tensor beside its pair
    passed_over: list[str] = field(default_factory=list)


def sort_keys(source: Source, keys: Iterable[str]) -> Parts:
    """Find the pairs, and a σ beside them; refuse half a pair and a ``lora_`` entry that is not understood."""
    halves: dict[tuple[str, str], dict[str, tuple[str, bool]]] = defaultdict(dict)
    rest = []
    for key in keys:
        hit = _FACTOR.fullmatch(module_path(key))
        if hit and not _HARMLESS.search(key):
            sides = halves[hit["module"], hit["name"] or ""]
            if hit["side"] in sides:
                raise AdapterError(f"{source.path}: {key} and {sides[hit['side']][0]}: two factors for one module")
            sides[hit["side"]] = (key, bool(hit["embedding"]))
        else:
            rest.append(key)
    parts = Parts()
    for (module, name), sides in halves.items():
        for side, other in ("AB", "BA"):
            if side not in sides:
                key = sides[other][0]
                raise incomplete(source, key, f"lora_{side}")
        parts.pairs.setdefault(module, {})[name] = Pair(sides["A"][0], sides["B"][0], sides["A"][1])
    for key in rest:
        module = next((m for m in ancestors(module_path(key)) if m in parts.pairs), None)
        shape = source.tensors.shape(key)
        if module and len(shape) == 3 and _may_be_sigma(source, parts, module, key):
            if module in parts.sigmas:
                raise AdapterError(f"{source.path}: {key} and {parts.sigmas[module]}: two σ for one module")
            parts.sigmas[module] = key
        elif slip := _SLIP.search(key):
            raise AdapterError(
                f"{source.path}: {key} is no key of kohya's, whose keys end in .{slip[1]}, with a dot; rename it"
            )
        elif ".lora_" in f".{module_path(key)}" and not _HARMLESS.search(key):
            raise AdapterError(
                f"{source.path}: {key} {shape} is no known part of LoRA, so B·A may not be the update; expected "
                "lora_A and lora_B alone"
            )
        else:
            parts.passed_over.append(key)
    return parts


def single(source: Source, parts: Parts) -> dict[str, Pair]:
    """Module → its pair, in a file that must hold one adapter."""
    names = sorted({name for pairs in parts.pairs.values() for name in pairs}, key=natural)
    if len(names) > 1:
        shown = ", ".join(name or "(unnamed)" for name in names)
        raise AdapterError(f"{source.path}: holds {len(names)} adapters: {shown}; save one at a time")
    return {module: next(iter(pairs.values())) for module, pairs in parts.pairs.items()}


def _may_be_sigma(source: Source, parts: Parts, module: str, key: str) -> bool:
    if ".lora_" in key:
        return not _HARMLESS.search(key)
    b, also_b, r = source.tensors.shape(key)
    ranks = {source.tensors.shape(pair.A)[:1] for pair in parts.pairs[module].values()}
    return b == also_b and (r,) in ranks and ".base_layer." not in key


def check_pair(source: Source, module: str, pair: Pair, told: bool = True) -> tuple[int, int]:
    """Check dtypes and shapes of a pair; return its r and the groups of its convolution (1 otherwise)."""
    for key in (pair.A, pair.B):
        source.check_factor(key)
    A, B = source.tensors.shape(pair.A), source.tensors.shape(pair.B)
    r, groups = A[0], 1
    usual = len(A) == len(B) == 2 and B[1] == r and (not told or module not in source.ranks)
    if usual and r == source.rank(module):  # the texts of errors take longer than the checks
        return r, groups
    source.expect(len(A) >= 2, pair.A, "(r, n), or (r, channels, kernel…) for a convolution")
    if len(A) == len(B) == 3 and B[2] != 1 and (B[0], B[2]) in ((A[0], A[1]), (B[0], A[0])):
        raise AdapterError(
            f"{source.path}: {pair.A} {A} and {pair.B} {B} are stacks of the factors of {A[0]} experts; "
            "expected a pair of matrices for each expert; save them apart"
        )
    if len(A) > 2:
        fits = len(B) == len(A) and set(B[2:]) == {1} and r % B[1] == 0
        source.expect(fits, pair.B, f"(m, {r}, 1…): lora_A is a convolution of shape {A}")
        groups = r // B[1]
        source.expect(B[0] % groups == 0, pair.B, f"rows in {groups} equal groups")
    else:
        hint = "; they may be swapped or transposed" if B[0] == r or A[1:] == B[1:] else ""
        source.expect(len(B) == 2 and B[1] == r, pair.B, f"(m, {r}) from lora_A {A}{hint}")
    if told:
        source.check_rank(module, pair.A, r)
    if source.rank(module) is None and r > max(B[0], int(np.prod(A[1:]))):
        source.expect(False, pair.B, f"r = {r} not above both m and n: the factors may be swapped")
    return r, groups
