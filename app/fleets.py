"""The fleet that the page Fleet shows: a sweep's results, which the command line names, or the chosen adapters."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from app import sources
from bora_analysis.fleet.numbers import Fleet, read_fleet
from bora_analysis.fleet.pairs import Pairs, compare_all
from bora_analysis.fleet.results import SKETCHES


def of_sweep() -> Fleet | None:
    """The results after ``--fleet``, None without; AdapterError where there are none."""
    place = getattr(sources.arguments(), "fleet", None)
    return None if place is None else _read(place)


def of_chosen(layers: Any) -> Fleet | None:
    """The chosen adapters, each step one; None where none is chosen or all are still."""
    frames = [part for _, part in layers.groupby(["adapter", "step"], sort=False, dropna=False)]
    found = Fleet.of_metrics(frames) if frames else None
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


@lru_cache(maxsize=2)
def _read(place: str) -> Fleet:
    return read_fleet(place)


@lru_cache(maxsize=2)
def _pairs(place: str, base: str) -> Pairs:
    return compare_all(_read(place), base_model=base)
