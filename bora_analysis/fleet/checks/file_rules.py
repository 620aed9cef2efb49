"""Rules about the files of an adapter: its numbers as stored, its configuration, what lies beside it."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from ...adapters.read import NO_ALPHA
from ...catalogue.dtypes import EPSILON
from ...files.adapter_file import match_pattern
from ...files.errors import AdapterError, counted
from ...files.keys import module_pattern
from .examined import Examined, is_base_needed
from .findings import Found

Limits = Mapping[str, float]

_ZIP = b"PK\x03\x04"
_PICKLED = (".pkl", ".pickle")


def unreadable(x: Examined, limits: Limits) -> Iterator[Found]:
    """What the reader refuses, unless another rule says it."""
    broken = {x.module_of(key) for key, scan in x.scans.items() if scan.bad}
    for problem in x.problems:
        if not is_base_needed(problem) and not x.ranks and problem.module not in broken:
            yield Found(problem.module, str(problem.error))


def base_needed(x: Examined, limits: Limits) -> Iterator[Found]:
    """Updates that depend on a base model which was not given."""
    yield from (Found(each.module, str(each.error)) for each in x.problems if is_base_needed(each))


def not_finite(x: Examined, limits: Limits) -> Iterator[Found]:
    """NaN and infinite numbers, in every tensor of the file."""
    for key, scan in x.scans.items():
        if scan.bad > limits["numbers"]:
            where = f", the first at {list(scan.first)}"
            yield Found(
                x.module_of(key), f"{scan.bad:,} of {scan.size:,} numbers of {key} are NaN or infinite{where}",
                scan.bad, limits["numbers"],
            )  # fmt: skip


def rank(x: Examined, limits: Limits) -> Iterator[Found]:
    """Tensors of another rank than the configuration's, with which PEFT cannot load them."""
    for module, (found, told) in x.ranks.items():
        yield Found(module, f"its tensors have rank {found}, the configuration says r = {told}", found, told)


def alpha_sign(x: Examined, limits: Limits) -> Iterator[Found]:
    """α ≤ 0: ΔW is 0, or turned around."""
    for row in x.rows():
        if row.scaling <= 0:
            yield Found(row.module, f"its scaling is {row.scaling:.4g}, so α is not above 0", row.scaling, 0)


def alpha_size(x: Examined, limits: Limits) -> Iterator[Found]:
    """A scaling that no training would choose."""
    for row in x.rows():
        if row.scaling > 0 and not limits["least"] <= row.scaling <= limits["most"]:
            limit = limits["least"] if row.scaling < limits["least"] else limits["most"]
            side = "below" if row.scaling < limits["least"] else "above"
            alpha = f" (r = {row.r})" if row.r else ""
            yield Found(row.module, f"its scaling{alpha} is {row.scaling:.4g}, {side} {limit:g}", row.scaling, limit)


def alpha_missing(x: Examined, limits: Limits) -> Iterator[Found]:
    """A file that does not store α."""
    if x.adapter is not None and NO_ALPHA in x.adapter.warnings:
        yield Found("", "α is stored nowhere; the numbers are those of the scaling 1 (α = r)")


def unused_setting(x: Examined, limits: Limits) -> Iterator[Found]:
    """Entries of the configuration that fit no module: PEFT passes over them without a word."""
    if x.adapter is None or not x.config:
        return
    modules = list(x.adapter)
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = x.config.get(name)
        for pattern in patterns if isinstance(patterns, Mapping) else ():
            if not any(_fits(x, pattern, module) for module in modules):
                yield Found(
                    "", f"{name} has {pattern!r}, which fits none of {counted(len(modules), 'module')}", pattern
                )
    targets = x.config.get("target_modules")
    for target in targets if isinstance(targets, list) else ():
        if not any(_targets(str(target), module) for module in modules):
            yield Found("", f"target_modules has {target!r}, of which the file has no module", str(target))


def precision(x: Examined, limits: Limits) -> Iterator[Found]:
    """Rounding of the stored numbers that is large beside ΔW: of narrow types, of tiny numbers, where terms cancel."""
    for row in x.rows():
        share = row.noise_floor / row.frobenius_norm if row.frobenius_norm > 0 else 0.0
        if share > limits["relative"]:  # not where it is not known, NaN
            told = f"rounding of what is stored may have moved ΔW by {share:.2%} of ‖ΔW‖_F"
            yield Found(row.module, told, share, limits["relative"])


def whole_matrix(x: Examined, limits: Limits) -> Iterator[Found]:
    """Matrices that are stored whole beside ΔW: modules_to_save, embeddings of a resized vocabulary, heads."""
    if x.adapter is None or x.tensors is None:
        return
    keys = x.tensors.keys()
    sizes = {key: prod(x.tensors.shape(key)) for key in keys if x.tensors.dtype(key) in EPSILON}
    whole = sum(sizes.values())
    for key in x.adapter.passed_over:
        shape = x.tensors.shape(key) if key in sizes else ()
        if len(shape) >= 2 and sizes[key] > limits["share"] * whole:
            share = sizes[key] / whole
            told = f"a matrix of {'×'.join(map(str, shape))} is stored whole: {share:.0%} of the numbers in the file"
            yield Found(key, told, share, limits["share"])


def pickle(x: Examined, limits: Limits) -> Iterator[Found]:
    """Files in the format of Python's pickle, whose loading can run code."""
    files = [Path(x.path)] if Path(x.path).is_file() else []
    with suppress(OSError):  # the reader says it
        files += sorted(path for path in x.folder.iterdir() if path.is_file()) if x.folder else []
    for file in dict.fromkeys(files):
        if _is_pickle(file):
            yield Found("", f"{file.name} is a pickle", file.name)


def reader_note(x: Examined, limits: Limits) -> Iterator[Found]:
    """What the reader says about an adapter that it can read."""
    for line in x.adapter.warnings if x.adapter is not None else ():
        if line != NO_ALPHA:
            yield Found("", line)


def _fits(x: Examined, pattern: str, module: str) -> bool:
    source: Any = x  # what match_pattern asks of it is the path
    try:
        return match_pattern(source, {pattern: True}, module, False)
    except AdapterError:  # no regular expression: it fits nothing
        return False


def _targets(target: str, module: str) -> bool:
    """By PEFT's rule; modules of a mixture, such as experts, stand below the one that is named."""
    target = module_pattern(target)
    return re.search(rf"(^|\.|_){re.escape(target)}(\.|_|$)", module) is not None or "all-linear" in target


def _is_pickle(file: Path) -> bool:
    """Whether a file is a pickle, or an archive of torch.save with one in it: by its first bytes, whatever its name."""
    try:
        with file.open("rb") as handle:
            start = handle.read(4)
        if start == _ZIP:
            with zipfile.ZipFile(file) as archive:
                return any(name.endswith(_PICKLED) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    # Protocol 2 to 5 and an opcode. A safetensors file may begin with the same two bytes, but then has a zero.
    if len(start) == 4 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return any(opcode.code == chr(start[2]) for opcode in pickletools.opcodes)
    return file.suffix in _PICKLED
