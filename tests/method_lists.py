"""Lists of methods, derived from the catalogue, that several tests go through."""

from __future__ import annotations

from bora_analysis import catalogue

METHODS = catalogue.costed()
ALSO = tuple(name for name in catalogue.costed(every=True) if name not in METHODS)
BLOCK_METHODS = catalogue.names(lambda row: row.cost and row.cut)
EXPERT_METHODS = catalogue.names(lambda row: row.cost and row.experts)
SPLIT = catalogue.names(lambda row: row.cost and row.splits)
NO_RANK = catalogue.names(lambda row: row.cost and not row.ranked)
MADE = catalogue.made()
ON_BASE = catalogue.names(lambda row: row.made and row.needs_base)
#: Made with a start of their own.
STARTED = catalogue.names(lambda row: row.made and row.initialises)
#: Made with nothing beside it.
ALONE = catalogue.names(lambda row: row.made and not row.accompanied)
