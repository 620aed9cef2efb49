"""The command that shows what many adapters have in common, from the results of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .common import command, note, usage
from .output import Output, output

if TYPE_CHECKING:
    import pandas as pd

    from ..fleet.numbers import Fleet
    from .grid import Page

#: What --show may name.
VIEWS = ("distributions", "growth", "outliers", "ranks", "similarity", "duplicates", "clusters")


@command("fleet results", "fleet results --show outliers --top 20", "fleet results --show ranks --share 0.95")
@click.argument("results", metavar="RESULTS")
@click.option("--show", type=click.Choice(VIEWS), default=VIEWS[0], help="What to look at; see below.")
@click.option("--base-model", metavar="NAME", help="Only adapters of this base model, as their configurations name it.")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.99, help="Of Σσ², for ranks.")
@click.option("--metric", metavar="COLUMN", help="For growth (stable_rank) and outliers (spectral_norm).")
@click.option("--figure", metavar="FILE", help="Draw growth, or similarity with its dendrogram: .pdf, .svg or .png.")
@output()
def fleet(
    results: str,
    show: str,
    base_model: str | None,
    share: float,
    metric: str | None,
    figure: str | None,
    out: Output,
) -> None:
    """What the adapters of a sweep show together. RESULTS is a folder or URL of `sweep -o`.

    distributions: stable rank, energy rank and σ₁'s share by base model, method, projection and r. growth: the
    exponent with which a metric grows with r, with its interval. outliers: modules that stand out of their projection.
    ranks: the smallest rank that serves each adapter, and so all of them. similarity, duplicates, clusters: every pair
    of one base model, where the sweep stored sketches (`--sketch bora_analysis.fleet.sketches:sketch`).
    """
    from ..files.errors import counted
    from ..fleet.numbers import read_fleet

    if figure is not None and show not in _FIGURES:
        raise click.UsageError(f"--figure goes with --show {' or '.join(_FIGURES)}; got {show}")
    with usage():
        whole = read_fleet(results)
        if base_model is not None:
            whole = whole.of_base(base_model)
        frame, page = _VIEWS[show](whole, share, metric)
        if figure is not None:
            from ..figures import save

            click.echo(f"wrote {save(_FIGURES[show](whole, metric), figure)}", err=True)
    failed = 0 if whole.results is None else int(whole.results.adapters()["error"].notna().sum())
    if failed:
        note(f"{counted(failed, 'adapter')} of the sweep could not be analysed, and left out")
    out.deliver(frame, page)


def _distributions(fleet: Fleet, share: float, metric: str | None) -> tuple[pd.DataFrame, Callable[[], Page]]:
    from ..fleet.numbers import distributions
    from .grid import Column

    frame = distributions(fleet)

    def spread(name: str) -> list[str]:
        from .cells import number

        ends = zip(*(frame[f"{name}_{percent}"] for percent in (50, 5, 95)), strict=True)
        return [f"{number(middle)} ({number(low)}–{number(high)})" for middle, low, high in ends]

    def page() -> Page:
        columns = [
            *_bases(frame), _text(frame, "method", spare=3), _text(frame, "projection"),
            _column(frame, "r"), _column(frame, "adapters", spare=1), _column(frame, "modules", spare=4),
            Column("stable", spread("stable_rank"), "stable_rank_50", [*frame["stable_rank_50"]],
                   meaning="‖ΔW‖_F²/σ₁², median and 5–95 % of the modules"),
            Column("99 %", spread("energy_rank_99"), "energy_rank_99_50", [*frame["energy_rank_99_50"]],
                   meaning="directions that hold 99 % of Σσ²"),
            Column("σ₁²/Σσ²", spread("top_share"), "top_share_50", [*frame["top_share_50"]], spare=2),
        ]  # fmt: skip
        return _page(f"{repr(fleet)[1:-1]}{_of(fleet)}", columns, frame)

    return frame, page


def _growth(fleet: Fleet, share: float, metric: str | None) -> tuple[pd.DataFrame, Callable[[], Page]]:
    from ..fleet.numbers import growth
    from .cells import number
    from .grid import Column

    name = metric or "stable_rank"
    frame = growth(_known(fleet, name), name)

    def page() -> Page:
        ends = zip(frame["low"], frame["high"], strict=True)
        columns = [
            *_bases(frame), _text(frame, "method", spare=2), _text(frame, "projection"),
            _column(frame, "adapters"),
            Column("r", [f"{low}–{high}" for low, high in zip(frame["r_min"], frame["r_max"], strict=True)], "r_max"),
            Column("β", [f"{value:.3f}" for value in frame["exponent"]], "exponent", [*frame["exponent"]]),
            Column("95 %", ["–" if low != low else f"{low:.3f} to {high:.3f}" for low, high in ends], "low"),
            Column("c", [number(value) for value in frame["factor"]], "factor", spare=1),
        ]  # fmt: skip
        told = (
            f"{name} = c · r^β: least squares through the logarithms, a point per adapter, its geometric mean "
            "over the modules; 95 %: Student's interval with HC3, – where an r has one adapter that decides alone. "
            "Groups of fewer than three adapters, or of one r, have no line."
        )
        return _page(f"How {name} grows with r{_of(fleet)}", columns, frame, told)

    return frame, page


def _outliers(fleet: Fleet, share: float, metric: str | None) -> tuple[pd.DataFrame, Callable[[], Page]]:
    from ..fleet.numbers import outliers
    from .grid import Column

    name = metric or "spectral_norm"
    frame = outliers(_known(fleet, name), name)

    def page() -> Page:
        columns = [
            _text(frame, "adapter"), Column("module", [*frame["module"]], "module", key=True),
            _column(frame, "value", name), _column(frame, "expected", spare=1), _column(frame, "times"),
            _column(frame, "z"), _column(frame, "peers", spare=2),
        ]  # fmt: skip
        told = (
            "expected: the median of the same layer over the adapters of one base model, or the trend over depth, at "
            "the adapter's own level; z: robust, of the logarithm, by median and MAD of the peers. Shown are |z| > 6 "
            "and 3 times as much or as little."
        )
        return _page(f"{len(frame)} modules stand out by {name}", columns, frame, told)

    return frame, page


def _ranks(fleet: Fleet, share: float, metric: str | None) -> tuple[pd.DataFrame, Callable[[], Page]]:
    from ..fleet.numbers import rank_for_all, serving_ranks

    frame = serving_ranks(fleet, share)

    def page() -> Page:
        whole = rank_for_all(frame)
        within = "; ".join(f"{rank}: {part:.0%}" for rank, part in whole["within"].items())
        columns = [
            _text(frame, "name", "adapter"), *_bases(frame, spare=2),
            _column(frame, "rank_now", "now"), _column(frame, "rank"),
            _size(frame, "bytes_now", "memory now", 1), _size(frame, "bytes", "memory", 1),
        ]  # fmt: skip
        title = (
            f"Every module of every adapter keeps {share:.4g} of Σσ² at rank {whole['rank']}; "
            f"now {whole['rank_now']}: {whole['saved']:.0%} of a server's memory for adapters saved"
        )
        told = (
            "now: the largest rank that the method allows ΔW; rank: the largest that a module needs for the share; "
            f"memory: of A and B at that rank, 2 bytes a number. Share of adapters that a rank serves: {within}. A "
            "server gives all adapters the same rank. Energy is not accuracy: check with a run on held-out data."
        )
        return _page(title, columns, frame, told)

    return frame, page


def _similarity(fleet: Fleet, share: float, metric: str | None) -> tuple[pd.DataFrame, Callable[[], Page]]:
    from ..fleet.pairs import compare_all

    pairs = compare_all(fleet, phi=True)
    frame = pairs.table()

    def page() -> Page:
        columns = [
            _text(frame, "name_a", "adapter"), _text(frame, "name_b", "other"), _decimals(frame, "cosine"),
            _decimals(frame, "deviation", "±", 1), _decimals(frame, "phi_left", "φ left", 2),
            _decimals(frame, "phi_right", "φ right", 2),
        ]  # fmt: skip
        columns[1] = replace(columns[1], key=True)
        told = (
            "From sketches. cosine: tr(ΔWᵀΔW') / (‖ΔW‖ ‖ΔW'‖) over all modules; ±: the bound on its standard "
            "deviation; φ: overlap of the top 4 directions above chance, the mean over the modules that both have. "
            "similarity PATH PATH has the exact φ of a pair."
        )
        return _page(f"{len(frame):,} pairs{_of(fleet)}, the most similar first", columns, frame, told)

    return frame, page


def _duplicates(fleet: Fleet, share: float, metric: str | None) -> tuple[pd.DataFrame, Callable[[], Page]]:
    from ..fleet.pairs import compare_all

    frame = compare_all(fleet).duplicates()

    def page() -> Page:
        from .grid import Column

        same = ["yes" if value else "no" for value in frame["same_file"]]
        columns = [
            _text(frame, "name_a", "adapter"), replace(_text(frame, "name_b", "other"), key=True),
            _decimals(frame, "factor"), Column("same file", same, "same_file"),
        ]  # fmt: skip
        told = "factor: ‖ΔW'‖ / ‖ΔW‖, with the sign; same file: all files have the same content."
        return _page(f"{len(frame)} pairs have one ΔW, but for a factor", columns, frame, told)

    return frame, page


def _clusters(fleet: Fleet, share: float, metric: str | None) -> tuple[pd.DataFrame, Callable[[], Page]]:
    from ..fleet.pairs import compare_all

    frame = compare_all(fleet).clusters()

    def page() -> Page:
        columns = [_text(frame, "name", "adapter"), _column(frame, "cluster"), _column(frame, "size")]
        told = "Average linkage of the distance 1 − cosine, cut where the mean cosine falls below 0.5."
        return _page(f"{frame['cluster'].nunique()} clusters of {len(frame)} adapters", columns, frame, told)

    return frame, page


_VIEWS: dict[str, Callable[[Fleet, float, str | None], tuple[pd.DataFrame, Callable[[], Page]]]] = dict(
    zip(VIEWS, (_distributions, _growth, _outliers, _ranks, _similarity, _duplicates, _clusters), strict=True)
)


def _draw_growth(fleet: Fleet, metric: str | None) -> Any:
    from ..figures.fleet import fleet_growth
    from ..fleet.numbers import growth, growth_points

    name = metric or "stable_rank"
    own = fleet.of_base(str(fleet.bases().index[0]))
    return fleet_growth(growth_points(own, name), growth(own, name), metric=name)


def _draw_map(fleet: Fleet, metric: str | None) -> Any:
    from ..figures.fleet import fleet_map
    from ..fleet.pairs import compare_all

    pairs = compare_all(fleet)
    if len(pairs.adapters) < 2:
        raise ValueError(f"{pairs.base_model} has one adapter; expected two or more")
    return fleet_map(pairs.cosine, pairs.linkage(), pairs.adapters["name"].tolist())


_FIGURES: dict[str, Callable[[Fleet, str | None], Any]] = {
    "growth": _draw_growth,
    "similarity": _draw_map,
    "clusters": _draw_map,
}


def _known(fleet: Fleet, metric: str) -> Fleet:
    """The fleet, if its modules have the metric; ValueError otherwise."""
    from ..metrics import METRICS
    from .grid import no_column

    if metric not in METRICS:
        raise ValueError(no_column(metric, METRICS))
    return fleet


def _of(fleet: Fleet) -> str:
    """Their base model, where it is one."""
    bases = fleet.bases().index
    return f", {bases[0]}" if len(bases) == 1 else ""


def _bases(frame: pd.DataFrame, spare: int = 0) -> list[Any]:
    """The column of the base model, where there are several."""
    return [_text(frame, "base_model", "base model", spare)] if frame["base_model"].nunique() > 1 else []


def _page(title: str, columns: list[Any], frame: pd.DataFrame, *notes: str) -> Page:
    from .grid import Block, Page

    return Page([Block(title, columns, frame)], notes)


def _text(frame: pd.DataFrame, name: str, head: str = "", spare: int = 0) -> Any:
    from .grid import Column

    return Column(head or name, [str(value) for value in frame[name]], name, spare=spare)


def _column(frame: pd.DataFrame, name: str, head: str = "", spare: int = 0) -> Any:
    from .cells import numbers
    from .grid import Column

    return Column(head or name, numbers(frame[name].astype(float)), name, [*frame[name]], spare=spare)


def _decimals(frame: pd.DataFrame, name: str, head: str = "", spare: int = 0) -> Any:
    from .grid import Column

    cells = ["–" if value != value else f"{value:.3f}" for value in frame[name].astype(float)]
    return Column(head or name, cells, name, [*frame[name]], spare=spare)


def _size(frame: pd.DataFrame, name: str, head: str, spare: int) -> Any:
    from .cells import short
    from .grid import Column

    return Column(head, [f"{short(value, ' ')}B" for value in frame[name]], name, [*frame[name]], spare=spare)
