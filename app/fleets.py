"""The fleet that the page Fleet shows: a sweep's results, which the command line names, or the chosen adapters."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from app import sources
from app.context import Context
from app.inspection import adapter_of
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis.columns import missing
from bora_analysis.fleet.numbers import UNKNOWN, Fleet, read_fleet
from bora_analysis.fleet.pairs import Pairs, compare_all
from bora_analysis.fleet.results import SKETCHES


def of_sweep() -> Fleet | None:
    """The results after ``--fleet``, None without; AdapterError where there are none."""
    place = getattr(sources.arguments(), "fleet", None)
    return None if place is None else _read(place)


def of_chosen(context: Context) -> Fleet | None:
    """The chosen adapters, each step one, of the base models in their configurations; None where all are still."""
    layers: Any = context.layer_metrics
    parts: list[Any] = list(layers.groupby(["adapter", "step"], sort=False, dropna=False))
    known = {source.label: source for source in context.sources}
    bases = [_base(known[label], None if missing(step) else int(step)) for (label, step), _ in parts]
    found = Fleet.of_metrics([part for _, part in parts], bases) if parts else None
    return None if found is None or found.layers.empty else found


def names(fleet: Fleet) -> dict[str, str]:
    """Id → name."""
    return dict(zip(fleet.adapters["id"], fleet.adapters["name"], strict=True))


def has_sketches(fleet: Fleet) -> bool:
    return fleet.results is not None and bool(fleet.results.storage.names(SKETCHES))


def pairs(fleet: Fleet, base: str) -> Pairs:
    """The pairs of one base model; the last two stay."""
    return _pairs(str(fleet.results.storage if fleet.results is not None else ""), base)


def growth_figure(points: Any, *, lines: Any, metric: str) -> Any:
    """The points and their lines for a paper."""
    from bora_analysis.figures.fleet import fleet_growth  # here: the page goes without matplotlib

    return fleet_growth(points, lines, metric=metric)


def map_figure(pairs: Pairs, _: object) -> Any:
    """All pairs for a paper."""
    from bora_analysis.figures.fleet import fleet_map

    return fleet_map(pairs.cosine, pairs.linkage(), pairs.adapters["name"].tolist())


def _base(source: sources.Source, step: int | None) -> str:
    try:
        return adapter_of(source, step).base_model or UNKNOWN
    except AdapterError:  # the file has changed since its tables were made
        return UNKNOWN


@lru_cache(maxsize=2)
def _read(place: str) -> Fleet:
    return read_fleet(place)


@lru_cache(maxsize=2)
def _pairs(place: str, base: str) -> Pairs:
    return compare_all(_read(place), base_model=base)
