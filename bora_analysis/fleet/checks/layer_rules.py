"""Rules about the numbers of ΔW over the layers of an adapter."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from ...analysis.verdict import underflows
from ...catalogue.dtypes import SMALLEST
from ...catalogue.module_names import layer, projection
from ...files.errors import counted
from ..robust import family, standing
from .examined import Examined
from .findings import Found

Limits = Mapping[str, float]


def nothing_trained(x: Examined, limits: Limits) -> Iterator[Found]:
    """ΔW = 0 in every module, as before the first step."""
    rows = x.rows()
    still = [row for row in rows if _is_still(row)]
    if rows and len(still) == len(rows) and _is_trained(x) and any(row.scaling != 0 for row in rows):
        yield Found("", f"ΔW = 0 in all of {counted(len(rows), 'module')}: B was never changed", 0, 0)


def underflow(x: Examined, limits: Limits) -> Iterator[Found]:
    """Modules that moved, and whose ΔW is 0 in the dtype that they are stored in."""
    stored = {x.tensors.dtype(key) for key in x.tensors.keys()} if x.tensors is not None else {*SMALLEST}  # noqa: SIM118
    most = max((SMALLEST.get(dtype, 0.0) for dtype in stored), default=0.0) / 2
    for row in x.rows():
        if x.adapter is None or not (underflows(row.spectral_norm, row.energy_rank_99) or 0 < row.spectral_norm < most):
            continue
        dtype = x.adapter[row.module].facts.dtype  # a mixture may have wider ones
        least = SMALLEST.get(dtype, 0.0)
        if row.spectral_norm == 0 or row.spectral_norm < least / 2:
            told = f"it was trained, but its σ₁ is {row.spectral_norm:.2g}, and {dtype} has no number below {least:.2g}"
            yield Found(row.module, told, row.spectral_norm, least / 2)


def dead_module(x: Examined, limits: Limits) -> Iterator[Found]:
    """Modules whose ΔW is zero, or tiny beside the others of their projection."""
    if not _is_trained(x) or all(row.spectral_norm == 0 for row in x.rows()):
        return
    for rows in _families(x).values():
        middle = median(row.frobenius_norm for row in rows)
        for row in rows:
            if row.rank_bound == 0 or row.scaling == 0:  # pruned by the method (AdaLoRA), or said by alpha-sign
                continue
            if _is_still(row):
                yield Found(row.module, "its ΔW is 0, those of other modules are not", 0.0, 0)
            elif 0 < row.frobenius_norm < limits["ratio"] * middle:
                share = row.frobenius_norm / middle
                told = f"its ‖ΔW‖_F is {share:.2g} of the median of {row.projection} over the layers"
                yield Found(row.module, told, share, limits["ratio"])


def exhausted(x: Examined, limits: Limits) -> Iterator[Found]:
    """Modules that use their whole rank to the end: a larger one might hold more. Of rank 1 nothing can be said."""
    for row in x.rows():
        full = min(row.out_features, row.in_features)
        least = row.spectral_norm / row.condition if row.numerical_rank == row.rank_bound else 0.0
        if 1 < row.rank_bound < full and row.spectral_norm > 0 and least >= limits["tail"] * row.spectral_norm:
            share = least / row.spectral_norm
            told = f"the last of its {row.rank_bound:.0f} singular values is {share:.2g} of the first"
            yield Found(row.module, told, share, limits["tail"])


def sigma_spike(x: Examined, limits: Limits) -> Iterator[Found]:
    """σ₁ far above that of the same projection in the other layers."""
    for rows in _families(x).values():
        rows = [row for row in rows if row.spectral_norm > 0]
        if len(rows) < limits["modules"]:
            continue
        found = standing(np.log([row.spectral_norm for row in rows]))
        for row, expected, z in zip(rows, np.exp(found.expected), found.z, strict=True):
            times = row.spectral_norm / expected
            if z > limits["z"] and times > limits["times"]:
                told = (
                    f"its σ₁ is {row.spectral_norm:.4g}, {times:.1f} times what the {row.projection} of the other "
                    f"layers lead to expect ({expected:.3g}; robust z {_z(z)})"
                )
                yield Found(row.module, told, times, limits["times"])


def missing_layer(x: Examined, limits: Limits) -> Iterator[Found]:
    """A projection that a few of the layers lack."""
    if x.adapter is None:
        return
    for stack in _stacks(x.adapter).values():
        chosen = (x.config or {}).get("layers_to_transform")
        chosen = {k for k in chosen if type(k) is int} if isinstance(chosen, list) else set()
        layers = chosen or set(range(min(stack.layers), max(stack.layers) + 1))
        most = max(1.0, limits["share"] * len(layers))
        for template, own in stack.templates.items():
            absent = sorted(layers - own)
            if len(layers) < limits["layers"] or not 0 < len(absent) <= most:
                continue
            absent = [k for k in absent if not stack.replaced(template, k) and _targeted(x, template.format(k))]
            if absent:
                module = template.format(absent[0])
                there = f"{projection(module)} is present in {len(own)} of {len(layers)} layers"
                told = f"{there}; missing in {_listed(absent)}"
                yield Found(module, told, len(own), len(layers))


def doubled_layer(x: Examined, limits: Limits) -> Iterator[Found]:
    """Two modules with the same ΔW, number by number."""
    if x.adapter is None:
        return
    groups: dict[tuple[float, ...], list[Any]] = defaultdict(list)
    for row in x.rows():
        if row.energy > 0:  # the sums agree where the singular values do
            sums = (row.energy, row.nuclear_norm, row.spectral_norm, row.condition)
            groups[row.out_features, row.in_features, *(float(f"{value:.9g}") for value in sums)].append(row)
    for rows in groups.values():
        for one, other in pairwise(rows):
            gap = (x.adapter[one.module] - x.adapter[other.module]).measured()[0]
            size = max((float(np.abs(core).max(initial=0.0)) for core in gap), default=0.0)
            if size <= 1e-9 * one.spectral_norm:
                yield Found(other.module, f"its ΔW is that of {one.module}, number by number", one.module)


def _z(z: float) -> str:
    return f"{z:.0f}" if np.isfinite(z) else "∞"


def _is_still(row: Any) -> bool:
    """Whether ΔW is 0, and not only too small for a number."""
    return row.spectral_norm == 0 and not underflows(row.spectral_norm, row.energy_rank_99)


def _is_trained(x: Examined) -> bool:
    """Whether a module without change is worth a word: not at step 0, nor where a whole model was tuned in part."""
    return x.adapter is not None and x.adapter.step != 0 and x.adapter.method != "full"


def _families(x: Examined) -> dict[str, list[Any]]:
    """Family → its rows, in the order of depth."""
    found: dict[str, list[Any]] = defaultdict(list)
    for row in x.rows():
        found[family(row.module)].append(row)
    return found


@dataclass(frozen=True)
class _Stack:
    """Layers under one path: template of a module's path, with {} for the layer's number → its layers."""

    templates: dict[str, set[int]]

    @property
    def layers(self) -> set[int]:
        return set().union(*self.templates.values())

    def replaced(self, template: str, number: int) -> bool:
        """Whether the layer has a module of the same last name that most layers lack: a dense layer among mixtures."""
        last = template.rpartition(".")[2]
        rare = len(self.layers) / 2
        return any(
            number in own and len(own) < rare
            for other, own in self.templates.items()
            if other != template and other.rpartition(".")[2] == last
        )


def _stacks(modules: Any) -> dict[str, _Stack]:
    """Path in front of the layers' numbers → the stack there. Only paths with dots tell which number is the layer's."""
    found: dict[str, _Stack] = {}
    for module in modules:
        hit = re.match(r"(?P<stem>(?:[^.\d][^.]*\.)*)(?P<number>\d+)\.(?P<rest>.+)", module)
        if hit and layer(module) == int(hit["number"]):
            stack = found.setdefault(hit["stem"], _Stack(defaultdict(set)))
            template = "".join(each.replace("{", "{{").replace("}", "}}") for each in (hit["stem"], "\0", hit["rest"]))
            stack.templates[template.replace("\0", "{}.")].add(int(hit["number"]))
    return found


def _targeted(x: Examined, module: str) -> bool:
    """Whether the configuration means this module too; yes where it does not say."""
    targets, excluded = ((x.config or {}).get(name) for name in ("target_modules", "exclude_modules"))
    return (not targets or _names(targets, module)) and not (excluded and _names(excluded, module))


def _names(given: Any, module: str) -> bool:
    """By PEFT's rule: a list names ends of paths, a text is a regular expression for the whole."""
    if isinstance(given, str):
        try:
            return given == "all-linear" or re.fullmatch(given, module) is not None
        except re.error:
            return True
    return not isinstance(given, list) or any(module == each or module.endswith(f".{each}") for each in given)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (" …" if len(numbers) > 6 else "")
