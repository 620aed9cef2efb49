"""The rows of a sweep: those that are there and still hold, those that come, and how they are kept.

A part's name tells the adapter, its content and the options. So a part never changes, a row always fits the parts that
it names, and a sweep that is killed leaves at most parts without a row, which the next one makes again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from operator import itemgetter

from .results import ADAPTERS, LAYER_METRICS, PARTS, RANGES, SKETCHES, SPECTRA, rows_of, schema
from .storage import Storage
from .tasks import Item, Job, Outcome, Task

#: Rows are written after so many, and after so many seconds.
_ROWS, _SECONDS = 500, 5.0


class Book:
    """What is known of a sweep's adapters.

    Attributes
    ----------
    kept : how many items are as they were.
    """

    def __init__(self, storage: Storage, job: Job, items: Mapping[str, Item], *, keep_errors: bool, verify: bool):
        self.storage, self.items = storage, items
        self._waiting: list[Outcome] = []
        self._written = time.monotonic()
        self._known: dict[str, dict[str, str]] = defaultdict(dict)  # item → id → hash, of the rows that hold
        tables = [LAYER_METRICS, *[SPECTRA] * job.spectra, *[SKETCHES] * bool(job.sketch)]
        there = [set(storage.names(name)) for name in tables]
        names = ("id", "part", "error_kind", "content_hash", "stamp", "options")
        columns = rows_of(storage).select(list(names)).to_pydict()
        moved: set[str] = set()  # items that take a look at their files
        for id, part, kind, content, stamp, options in zip(*(columns[name] for name in names), strict=True):
            item = self._item_of(id)
            if item is None:
                continue
            holds = options == job.options and (keep_errors if kind else all(part in each for each in there))
            if holds:
                self._known[item.id][id] = content or ""
            if not holds or verify or not stamp or stamp != item.stamp:
                moved.add(item.id)
        self._still = self._known.keys() - moved
        self.kept = len(self._still)

    def _item_of(self, id: str) -> Item | None:
        """The item of a row; of a Hub id all checkpoints are of one."""
        return self.items.get(id) or self.items.get(id.rpartition("/")[0])

    def tasks(self) -> list[Task]:
        """What is left to be done."""
        left = [item for id, item in self.items.items() if id not in self._still]
        return [Task(item, known=self._known.get(item.id, {})) for item in left]

    def enter(self, outcome: Outcome) -> None:
        """Keep a row, or that an adapter is as it was."""
        self.kept += "same" in outcome
        self._waiting.append(outcome)
        if len(self._waiting) >= _ROWS or time.monotonic() - self._written > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write what came since the last time, as a file of its own that is later than all others."""
        import pyarrow as pa

        rows = [outcome["row"] for outcome in self._waiting if "row" in outcome]
        same = {outcome["same"]: outcome["stamp"] for outcome in self._waiting if "same" in outcome}
        if same:
            table = rows_of(self.storage)
            earlier = table.filter(pa.array([id in same for id in table["id"].to_pylist()], pa.bool_()))
            rows = [row | {"stamp": same[row["id"]]} for row in earlier.to_pylist()] + rows
        if rows:
            rows.sort(key=itemgetter("id"))  # as rows_of wants them
            self._add(pa.Table.from_pylist(rows, schema(ADAPTERS)))
        self._waiting, self._written = [], time.monotonic()

    def _add(self, table: object) -> None:
        """Under a name that is later than all others, whatever the clock says: coarse ones tell two files one time."""
        numbers = [int(stem) for name in self.storage.names(ADAPTERS) if (stem := name.partition(".")[0]).isdecimal()]
        self.storage.write_table(f"{ADAPTERS}/{max(time.time_ns(), *(n + 1 for n in numbers), 0):020d}.parquet", table)

    def close(self, *, prune: bool, failed: bool) -> None:
        """Leave one file of rows, and no file that nobody needs."""
        import pyarrow as pa

        files = self.storage.names(ADAPTERS)
        table = rows_of(self.storage)
        if prune:
            found = [self._item_of(id) is not None for id in table["id"].to_pylist()]
            table = table.filter(pa.array(found, pa.bool_()))
        if len(files) > 1 or prune:
            self._add(table)
            self.storage.remove([f"{ADAPTERS}/{name}" for name in files])
        named = set(table["part"].to_pylist())
        for name in (ADAPTERS, *PARTS, RANGES):
            lost = self.storage.unfinished(name)
            if name in PARTS or (name == RANGES and not failed):  # ranges of one that failed are half of its work
                lost += [part for part in self.storage.names(name) if part not in named]
            self.storage.remove([f"{name}/{part}" for part in lost])
