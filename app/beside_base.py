"""What the page Relative shows: updates beside the base model's weights, found module by module and kept as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from app import sources
from app.bounded import bounded
from app.jobs import Told
from app.sources import Source
from bora_analysis.adapters import Adapter, AdapterError
from bora_analysis.analysis.relative import base_metrics
from bora_analysis.files.base_model import BaseWeights, model_paths, open_base

#: Rows beyond this are dropped, the least recently used first.
RELATIVE_BYTES = 8 << 20


@dataclass(frozen=True)
class Base:
    """A base model: where it lies, and whether a visitor named it, who is not told where that is."""

    place: str
    visitors: bool

    @property
    def key(self) -> tuple[str, int]:
        """Changes when its files do."""
        return self.place, hash(tuple(map(_mark, model_paths(Path(self.place))))) if Path(self.place).exists() else 0

    def open(self) -> BaseWeights:
        """The model, its files within the roots where a visitor named it; AdapterError otherwise."""
        try:
            if self.visitors:
                sources.within(model_paths(Path(self.place)), Path(self.place).name)
            return open_base(self.place)
        except (AdapterError, OSError) as error:
            raise AdapterError(self.told(error)) from None

    def told(self, error: Exception) -> str:
        """An error's line."""
        place = Path(self.place)
        return str(error).replace(str(place), place.name) if self.visitors else str(error)


def base_of(text: str) -> Base | None:
    """The base model that a visitor names by its path within the roots, or the operator's; None without."""
    if text.strip():
        return Base(str(sources.place_within_roots(text)[0]), True)
    given = sources.arguments().base
    return None if given is None else Base(str(given), False)


def relative(
    base: Base, source: Source, adapter: Adapter, k: int, epsilon: float, subspace: int, told: Told
) -> pd.DataFrame:
    """The table of `bora-analysis relative`; where ``told`` ends the work, what is found stays."""
    weights, key = base.open(), base.key
    rows: list[pd.DataFrame] = []
    for done, module in enumerate(adapter):
        told(done, len(adapter))
        rows.append(_row(key, source, adapter, module, weights, (k, epsilon, subspace)))
    told(len(adapter), len(adapter))
    return pd.concat(rows, ignore_index=True)


def _mark(path: Path) -> tuple[str, int, int]:
    about = path.stat()
    return str(path), about.st_mtime_ns, about.st_size


def _key(
    key: tuple[str, int], source: Source, adapter: Adapter, module: str, _: BaseWeights, options: Sequence[float]
) -> object:
    return key, str(source.path), sources.stamp(source.path), source.label, adapter.step, module, tuple(options)


@bounded(RELATIVE_BYTES, lambda row: 2000, _key)
def _row(
    key: tuple[str, int],
    source: Source,
    adapter: Adapter,
    module: str,
    weights: BaseWeights,
    options: tuple[int, float, int],
) -> pd.DataFrame:
    k, epsilon, subspace = options
    alone = replace(adapter, name=source.label, loaders={module: adapter.loaders[module]})
    return base_metrics(alone, weights, k=k, epsilon=epsilon, subspace=subspace)
