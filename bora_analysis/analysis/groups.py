"""Adapters that are one thing but for their seed: groups, and their mean and standard deviation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ..patterns import late

#: How the adapters are grouped: ``"seed"``, by their names, or adapter → group.
Group = str | Mapping[str, str]

_SEED = late(r"(^|[-_./ ])seed[-_ ]?\d+(?=$|[-_./ ])", re.IGNORECASE)


def without_seed(name: str) -> str:
    """The name without its seed.

    >>> [without_seed(name) for name in ("lora-r8-seed0", "movies/lora-r8/seed_12", "seed1/bora", "proceed1", "seed3")]
    ['lora-r8', 'movies/lora-r8', 'bora', 'proceed1', 'seed3']
    """
    return _SEED.sub("", name).strip("-_./ ") or name


def groups_of(names: Iterable[str], group: Group | None) -> dict[str, str]:
    """Adapter → its group, in their order; without ``group`` each is its own.

    Raises
    ------
    ValueError
        No two of them are in one group; a mapping lacks one.

    Examples
    --------
    >>> groups_of(["lora-seed0", "lora-seed1", "bora"], "seed")
    {'lora-seed0': 'lora', 'lora-seed1': 'lora', 'bora': 'bora'}
    """
    known = list(dict.fromkeys(names))
    if group is None:
        return {name: name for name in known}
    if isinstance(group, Mapping):
        missing = [name for name in known if name not in group]
        if missing:
            raise ValueError(f"group names no group of {', '.join(missing[:3])}; expected one for each adapter")
        return {name: str(group[name]) for name in known}
    if group != "seed":
        raise ValueError(f"unknown group {group!r}; expected 'seed', or in Python a mapping adapter → group")
    found = {name: without_seed(name) for name in known}
    if len(set(found.values())) == len(found):
        raise ValueError(
            f"group seed: no two adapters differ in their seed alone; there are {', '.join(known[:4])}"
            f"{' …' if len(known) > 4 else ''}; expected names such as lora-r8-seed0 and lora-r8-seed1"
        )
    return found


def over_members(frame: Any, groups: Mapping[str, str], keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Means and sample standard deviations over the members of each group.

    Parameters
    ----------
    frame : one row for each adapter and each combination of ``keys``.

    Returns
    -------
    adapter (the group), the keys, the values, each also with ``_sd`` (0 for a lone member), and members.
    """
    rows = frame.assign(adapter=frame["adapter"].map(groups))
    found = rows.groupby(["adapter", *keys], sort=False, dropna=False)[[*values]]
    means = found.mean()
    spread = found.std().fillna(0.0).rename(columns="{}_sd".format)
    return means.join(spread).join(found.size().rename("members")).reset_index()
