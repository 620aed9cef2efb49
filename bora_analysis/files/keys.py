"""Names of tensors: from a key to the module's path and the part of the method."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from natsort import natsort_keygen

from .errors import AdapterError

if TYPE_CHECKING:
    from .adapter_file import Source
#: Sort key that orders numbers by their value.
natural: Callable[[str], Any] = natsort_keygen()
# What torch.compile, FSDP, activation checkpointing and PEFT put into a path, and DDP in front of it. A name "module"
# inside a path may be the model's own, but beside one of the others it is DDP's. A list's "module.0" is not.
_WRAPPER = r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_model\.model)\."
_DDP = r"module\.(?!\d)"
_WRAPPERS = re.compile(rf"^({_DDP}|{_WRAPPER})+|(?<=\.)({_DDP})*({_WRAPPER}({_DDP})*)+")

_IN_PATTERN = _WRAPPER.replace(r"\.", r"\\?\.")  # the dot may be escaped
_IN_PATTERNS = re.compile(rf"(?<![\w.])(module\\?\.(?!\\?d|\d)|{_IN_PATTERN})+|(?<!\w)({_IN_PATTERN})+")


def module_path(key: str) -> str:
    """The key without what PEFT and the wrappers of a training put around a module's own path, in any order."""
    path = key.removeprefix("base_model.model.")
    if "module." in path or "_orig_mod." in path or "base_model." in path:  # much faster than the search
        path = _WRAPPERS.sub("", path)
    return path


@lru_cache(maxsize=4096)
def module_pattern(pattern: str) -> str:
    """A regular expression for modules without the same wrappers."""
    return _IN_PATTERNS.sub("", pattern)


def ancestors(path: str) -> Iterator[str]:
    """The paths above a path, from the nearest on."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


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
        raise AdapterError(f"{source.path}: {key} has no {missing[0]} beside it; the file is incomplete")
    return [parts[name] for name in names]


def others(source: Source, keys: Iterable[str]) -> list[str]:
    """Keys that may be passed over; a factor of LoRA among them would be part of another update."""
    keys = list(keys)
    stray = [key for key in keys if re.search(r"\.lora_(embedding_)?[AB](\.|$)", key)]
    if stray:
        raise AdapterError(f"{source.path}: {stray[0]} is a LoRA factor in a file of another method; save them apart")
    return keys
