"""What the page Capture shows, module by module: found once, and kept for all sessions as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from app.bounded import bounded
from app.sources import Source, stamp
from bora_analysis.adapters import Adapter
from bora_analysis.analysis.capture import of_module, room_of, sampled, table_of
from bora_analysis.analysis.members import Member, capturing, member_of, same_set, sized
from bora_analysis.linalg.threads import one_blas_thread
from bora_analysis.projections import Wish

#: Rows beyond this are dropped, the least recently used first.
CAPTURE_BYTES = 16 << 20
#: Modules that are tried at first: the page is there after a second or two.
FEW = 4


def methods() -> list[str]:
    """One method for each set of updates."""
    return [method for method in capturing() if same_set(method)[0] == method]


def modules_of(adapter: Adapter, projection: str | None, whole: bool) -> list[str]:
    """Some or all modules of a projection, None for every one."""
    from bora_analysis.catalogue.module_names import projection as projection_of

    found = sampled(adapter, None if whole else FEW) if projection is None else list(adapter)
    own = [module for module in found if projection in (None, projection_of(module))]
    if whole or len(own) <= FEW:
        return own
    return [own[round(k * (len(own) - 1) / (FEW - 1))] for k in range(FEW)]


def captured(
    source: Source,
    adapter: Adapter,
    chosen: Sequence[str],
    modules: Sequence[str],
    on_module: Callable[[int, int], None],
) -> pd.DataFrame:
    """The table of ``capture`` for these modules; where ``on_module`` ends the work, what is found stays."""
    members = tuple(sized(adapter, [member_of(method) for method in chosen], None))
    rows, room = [], room_of(adapter)
    for done, module in enumerate(modules):
        on_module(done, len(modules))
        rows += _rows(source, adapter, module, members, room)
    on_module(len(modules), len(modules))
    return table_of(rows)


def _key(source: Source, adapter: Adapter, module: str, members: tuple[Member, ...], room: tuple[int, int]) -> object:
    return str(source.path), stamp(source.path), source.label, adapter.step, module, members, room


@bounded(CAPTURE_BYTES, lambda rows: 1000 * len(rows), _key)
def _rows(
    source: Source, adapter: Adapter, module: str, members: tuple[Member, ...], room: tuple[int, int]
) -> list[tuple[object, ...]]:
    with one_blas_thread():
        found = of_module(adapter, module, members, Wish(1, room=room), 1, {})
    return [(source.label, *row[1:]) for row in found]
