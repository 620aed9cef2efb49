"""The keys of a file, sorted by module and by part of the method."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from .adapter_file import Source
from .errors import AdapterError
from .keys import module_path


def collect(source: Source, parts: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module → part → key for keys ``<module>.<part>``, with or without an adapter's name and ``.weight``; the others.

    Parameters
    ----------
    parts : regular expression of the names of the parts.
    """
    pattern = re.compile(rf"(?P<module>.+)\.(?P<part>{parts})(\.(?!bias$)[^.]+?)??(\.weight)?")
    found: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    keys = source.tensors.keys()
    if not re.search(rf"\.({parts})([.\n]|\Z)", "\n".join(keys)):  # most readers find nothing, and this is fast
        return {}, keys
    for key in keys:
        hit = pattern.fullmatch(module_path(key))
        if not hit:
            rest.append(key)
        elif hit["part"] in found[hit["module"]]:
            other = found[hit["module"]][hit["part"]]
            raise AdapterError(f"{source.path}: {key} and {other}: several adapters in one file; save one at a time")
        else:
            found[hit["module"]][hit["part"]] = key
    return dict(found), rest


def need(source: Source, parts: Mapping[str, str], *names: str) -> list[str]:
    """The keys of the named parts; AdapterError if one is missing."""
    missing = [name for name in names if name not in parts]
    if missing:
        key = next(iter(parts.values()))
        raise incomplete(source, key, missing[0])
    return [parts[name] for name in names]


def incomplete(source: Source, key: str, missing: str) -> AdapterError:
    """The error for a tensor without its counterpart, which is named where the file has PEFT's names itself."""
    named = type(key) is str  # and no name that was translated
    what = f"has no {missing} beside it" if named else "stands alone: another factor of its module is missing"
    return AdapterError(f"{source.path}: {key} {what}; the file is incomplete")


def others(source: Source, keys: Iterable[str]) -> list[str]:
    """Keys that may be passed over; a factor of LoRA among them would be part of another update."""
    keys = list(keys)
    stray = [key for key in keys if re.search(r"\.lora_(embedding_)?[AB](\.|$)", key)]
    if stray:
        raise AdapterError(f"{source.path}: {stray[0]} is a LoRA factor in a file of another method; save them apart")
    return keys
