"""The keys of a file, sorted by module and by part of the method."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from .adapter_file import Found, Loader, Source
from .errors import AdapterError
from .keys import module_path


def collect(source: Source, parts: str) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Module → part → key for keys ``<module>.<part>``, with or without an adapter's name and ``.weight``; the others.

    Parameters
    ----------
    parts : regular expression of the names of the parts.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    keys = source.tensors.keys()
    if not re.search(rf"\.({parts})([.\n]|\Z)", source.text):
        return {}, keys
    pattern = re.compile(rf"(?P<module>.+)\.(?P<part>{parts})(\.(?!bias$)[^.]+?)??(\.weight)?")
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


def read_parts(
    source: Source, parts: str, method: str, make: Callable[[Source, str, dict[str, str]], Loader], scaled: bool = False
) -> Found | None:
    """What :func:`collect` finds, with the loader that ``make`` makes of a module's parts; None where it finds none."""
    found, rest = collect(source, parts)
    if not found:
        return None
    loaders = {module: make(source, module, own) for module, own in found.items()}
    return Found(method, loaders, others(source, rest), [], scaled)


def fitted(
    source: Source,
    parts: Mapping[str, str],
    before: Mapping[str, int] | None = None,
    origin: str = "",
    /,
    **shapes: str,
) -> tuple[dict[str, str], dict[str, int]]:
    """The keys of a module's factors, which must have the given shapes, and the sizes in them.

    Parameters
    ----------
    parts : part → key, as :func:`collect` finds them for the module.
    before, origin : sizes that are known before, and what tells them; otherwise the first factor does.
    shapes : name of a factor → its part and shape, such as ``A="lora_A (r, n)", B="lora_B (m, r)"``. A size with a name
        must be the same wherever the name stands; the last name may end in … and then stands for one size or more.

    Returns
    -------
    name of a factor → key, name of a size → size
    """
    told = {name: text.partition(" ")[::2] for name, text in shapes.items()}
    keys = dict(zip(shapes, need(source, parts, *(part for part, _ in told.values())), strict=True))
    sizes = dict(before or {})
    for name, key in keys.items():
        source.check_factor(key)
        names, shape = told[name][1].strip("(,)").split(", "), source.tensors.shape(key)
        known = [sizes.get(size) or re.sub(r"\w+", lambda hit: str(sizes.get(hit[0], hit[0])), size) for size in names]
        expected = ", ".join(map(str, known)) + ("," if len(known) == 1 else "")
        hint = f" from {origin}" if origin and sizes.keys() & set(names) else ""
        more = names.pop() if names[-1].endswith("…") else None
        fits = len(shape) > len(names) if more else len(shape) == len(names)
        for size, number in zip(names, shape, strict=False):
            fits = fits and number == (int(size) if size.isdecimal() else sizes.setdefault(size, number))
        source.expect(fits, key, f"({expected}){hint}")
        origin = origin or f"{key} {shape}"
    return keys, sizes


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
