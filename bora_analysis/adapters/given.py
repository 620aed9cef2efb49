"""From whatever stands for adapters to a list of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, ValuesView
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from ..files.errors import AdapterError
from .adapter import Adapter, Trajectory, checkpoints
from .read import TAKEN, read_adapter
from .reading import Options, Reading


def adapters_of(given: Any, **reading: Unpack[Options]) -> list[Adapter]:
    """The adapters in it, one per checkpoint.

    Parameters
    ----------
    given : what :func:`bora_analysis.read_adapter` takes, or a list of these. Adapters of one name are named apart.
    reading : its options.

    Raises
    ------
    TypeError
        Something that stands for no adapter, an empty list, an unknown option.
    """
    items = items_of(given)
    # What has been read already has no use for the options, which the other items may need.
    read = [isinstance(item, Adapter | Trajectory) for item in items]
    if all(read):
        Reading.of(reading).check_read(items[0])
    only: Options = {"modules": reading.get("modules")}
    return named_apart([
        adapter
        for item, done in zip(items, read, strict=True)
        for adapter in checkpoints(read_adapter(item, **(only if done else reading)))
    ])  # fmt: skip


def items_of(given: Any) -> list[Any]:
    """The members of a list, or of what else holds several; anything else alone. TypeError where there are none."""
    if not isinstance(given, Sequence | Iterator | ValuesView) or isinstance(given, str | bytes | Trajectory):
        return [given]
    items = list(given)
    if not items:
        raise TypeError(f"got no adapters, an empty {type(given).__name__}; expected {TAKEN}")
    return items


def one_of(given: Any, **reading: Unpack[Options]) -> Adapter:
    """The one adapter in it; AdapterError where there are several."""
    found = adapters_of(given, **reading)
    if len(found) != 1:
        what = given if isinstance(given, str | Path) else f"a {type(given).__name__}"
        kind = "adapters" if len({each.name for each in found}) > 1 else "checkpoints"
        such = f", such as {found[-1].path}" if found and found[-1].path else ""
        raise AdapterError(f"{what}: holds {len(found)} {kind}; name one{such}")
    return found[0]


def named_apart(adapters: list[Adapter]) -> list[Adapter]:
    """Adapters of one name get longer ones: by as much of their paths as needed, or else by a number."""
    alike, seen = defaultdict[str, list[Adapter]](list), Counter[tuple[str, int | None]]()
    for adapter in adapters:
        alike[adapter.name].append(adapter)
    longer: dict[tuple[str, Path | None], str] = {}
    for name, group in alike.items():
        homes = {_home(adapter) for adapter in group} if len(group) > 1 else set()
        places = [home for home in homes if home is not None]  # None: one in memory
        if len(homes) > 1:
            depth = next(k for k in range(1, 99) if len({home.parts[-k:] for home in places}) == len(places))
            longer |= {(name, home): "/".join(home.parts[-depth:]) for home in places}
    out = []
    for adapter in adapters:
        name = adapter.name
        if len(alike[name]) > 1:
            name = longer.get((name, _home(adapter)), name)
        seen[name, adapter.step] += 1
        name += f" ({seen[name, adapter.step]})" if seen[name, adapter.step] > 1 else ""
        out.append(replace(adapter, name=name))
    return out


def _home(adapter: Adapter) -> Path | None:
    """The folder (or single file) that gives an adapter its name."""
    if adapter.path is None:
        return None
    path = Path(adapter.path).resolve()
    own = path if adapter.step is None else path.parent.parent
    return next((part for part in (path, *path.parents) if adapter.name in (part.name, part.stem)), own)
