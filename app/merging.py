"""The weighted sum that the page Merge shows and writes, as the command line makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, count
from pathlib import Path

import pandas as pd

from app import sources
from app.inspection import adapter_of
from app.jobs import Told
from app.sources import Source
from bora_analysis.adapters import Adapter, AdapterError, merge
from bora_analysis.analysis.conversion import Conversion, convert, shared_settings
from bora_analysis.analysis.tables import Tables, analyse

#: What a sum is called in tables and charts; no adapter's label ends so.
SUM = "the sum "
#: The ready-made weights, and those that a visitor sets.
MEAN, TOTAL, DIFFERENCE, OWN = WEIGHTS = ("mean", "sum", "difference", "own")


@dataclass(frozen=True)
class Part:
    """An adapter of the sum: its source, its step, None for a lone one, and its weight."""

    source: Source
    step: int | None
    weight: float

    @property
    def key(self) -> tuple[str, int, int | None, float]:
        """What it depends on."""
        return str(self.source.path), sources.stamp(self.source.path), self.step, self.weight


def alike(layers: pd.DataFrame) -> list[str]:
    """The first two adapters of a table that have a module in common; without such, the first two."""
    modules = {str(name): set(part) for name, part in layers.groupby("adapter", sort=False)["module"]}
    pairs = combinations(modules, 2)
    return list(next((pair for pair in pairs if modules[pair[0]] & modules[pair[1]]), list(modules)[:2]))


def weights_of(kind: str, number: int) -> list[float]:
    """The ready-made weights of that many adapters; the difference is the first less the others.

    >>> weights_of("mean", 4)[0], weights_of("sum", 2), weights_of("difference", 3)
    (0.25, [1.0, 1.0], [1.0, -1.0, -1.0])
    """
    if kind == MEAN:
        return [1 / number] * number
    return [1.0, *([-1.0 if kind == DIFFERENCE else 1.0] * (number - 1))]


def summed(parts: Sequence[Part], force: bool) -> tuple[list[Adapter], Adapter]:
    """The adapters and their sum, module by module when asked for; AdapterError where they do not go together."""
    adapters = []
    for part in parts:
        sources.check(part.source)
        adapter = adapter_of(part.source, part.step)
        adapters.append(replace(adapter, name=part.source.label, warnings=()))
    return adapters, merge(adapters, [part.weight for part in parts], name=SUM, force=force)


def tables(parts: Sequence[Part], force: bool, told: Told) -> Tables:
    """The spectra of the sum."""
    _, total = summed(parts, force)
    done = count(1)
    return analyse(total, on_module=lambda: told(next(done), len(total)))


def write(parts: Sequence[Part], force: bool, energy: float | None, dtype: str, folder: Path, told: Told) -> Conversion:
    """As `bora-analysis merge` does."""
    adapters, total = summed(parts, force)
    done = count(1)
    return convert(
        total,
        folder,
        energy=energy,
        dtype=dtype,
        settings=shared_settings(adapters, force=force),
        on_module=lambda: told(next(done), len(total)),
        base=sources.arguments().base,
    )


def shielded(parts: Sequence[Part], error: Exception) -> str:
    """The line of an error; where visitors' adapters lie is not told."""
    found = error
    for part in parts:
        try:
            sources.shielded(part.source, _raise)(found)
        except AdapterError as said:
            found = said
    return str(found)


def _raise(error: Exception) -> None:
    raise error
