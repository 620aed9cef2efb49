"""What the page Layers shows of one module: found from its factors once, kept as small tables and images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from app import pictures
from app.bounded import bounded
from app.pictures import Picture
from app.sources import Source, read, stamp
from bora_analysis import factor_ranks
from bora_analysis.adapters import Adapter, AdapterError, checkpoints
from bora_analysis.analysis.spectrum import FactorRanks
from bora_analysis.linalg.solvers import svd_values
from bora_analysis.updates.contract import Blocked, Facts, Update

#: Inspections beyond this are dropped, the least recently used first.
INSPECTION_BYTES = 48 << 20


@dataclass(frozen=True, eq=False)
class Inspection:
    """One module, without its tensors.

    Attributes
    ----------
    ranks, slots, middle : ranks of B', Σ', A', the singular values of the S_k, and |Σ'|; None for an update that is no
        such product.
    delta : |ΔW|.
    tiles : the |S_k| beside each other; None where they are numbers, or too large.
    """

    facts: Facts
    delta: Picture
    ranks: FactorRanks | None = None
    slots: pd.DataFrame | None = None
    middle: Picture | None = None
    tiles: Picture | None = None


def _key(source: Source, module: str, step: int | None) -> tuple[str, int, str, int | None]:
    return str(source.path), stamp(source.path), module, step


def _bytes(found: Inspection) -> int:
    images = [picture.image.nbytes for picture in (found.delta, found.middle, found.tiles) if picture is not None]
    return sum(images) + (0 if found.slots is None else 8 * found.slots.size)


@bounded(INSPECTION_BYTES, _bytes, _key)
def inspect(source: Source, module: str, step: int | None) -> Inspection:
    """The inspection of a module, ``step`` None for a lone adapter; AdapterError if the file no longer holds it."""
    update = _update(source, module, step)
    delta = pictures.magnitude(update)
    if not isinstance(update, Blocked):
        return Inspection(update.facts, delta)
    ranks, slots = factor_ranks(update), slot_spectra(update)
    return Inspection(update.facts, delta, ranks, slots, pictures.middle(update), pictures.slot_tiles(update))


def slot_spectra(update: Blocked) -> pd.DataFrame:
    """Singular values of each S_k: slot, index, singular_value."""
    values = [svd_values(slot[None])[0][0] for slot in update.slots()]
    rows = [(slot, index, value) for slot, each in enumerate(values, 1) for index, value in enumerate(each, 1)]
    return pd.DataFrame(rows, columns=["slot", "index", "singular_value"])


def _update(source: Source, module: str, step: int | None) -> Update:
    """The factors of the one module, read now and kept by nobody."""
    for checkpoint in opened(source.path, stamp(source.path)):
        if step in (None, checkpoint.step) and module in checkpoint:
            return checkpoint[module]
    raise AdapterError(f"{source.label}: {module} is no longer in the file; reload the page")


@lru_cache(maxsize=8)
def opened(path: Path, _: int) -> tuple[Adapter, ...]:
    """The names in a file of that time stamp, no tensors: for 224 modules they take 45 ms."""
    return checkpoints(read(path))


def adapter_of(source: Source, step: int | None) -> Adapter:
    """The adapter, without its tensors; AdapterError if the file no longer holds it."""
    for one in opened(source.path, stamp(source.path)):
        if step in (None, one.step):
            return one
    raise AdapterError(f"{source.label}: step {step} is no longer in the file; reload the page")
