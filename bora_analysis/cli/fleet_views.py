"""The tables of the command fleet: a function per view, of which only one is needed at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from ..fleet.numbers import Fleet
    from ..fleet.pairs import Pairs
    from .grid import Page


class Shown(NamedTuple):
    """What a view gives: its table, its page, and its figure where it has one."""

    frame: pd.DataFrame
    page: Callable[[], Page]
    draw: Callable[[], Figure] | None = None


def distributions(fleet: Fleet, share: float, metric: str | None) -> Shown:
    from ..fleet import numbers
    from .grid import Column

    frame = numbers.distributions(fleet)

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

    return Shown(frame, page)


def growth(fleet: Fleet, share: float, metric: str | None) -> Shown:
    from ..fleet import numbers
    from .cells import number
    from .grid import Column

    name = metric or "stable_rank"
    frame = numbers.growth(_known(fleet, name), name)

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

    def draw() -> Figure:
        from ..figures.fleet import fleet_growth

        own = fleet.of_base(str(fleet.bases().index[0]))
        return fleet_growth(numbers.growth_points(own, name), numbers.growth(own, name), metric=name)

    return Shown(frame, page, draw)


def outliers(fleet: Fleet, share: float, metric: str | None) -> Shown:
    from ..fleet import numbers
    from .grid import Column

    name = metric or "spectral_norm"
    frame = numbers.outliers(_known(fleet, name), name)

    def page() -> Page:
        columns = [
            _names(fleet, frame, "id", "adapter"),
            Column("module", [*frame["module"]], "module", key=True, names="module"),
            _column(frame, "value", name), _column(frame, "expected", spare=1), _column(frame, "times"),
            _column(frame, "z"), _column(frame, "peers", spare=2),
        ]  # fmt: skip
        told = (
            "expected: the median of the same layer over the adapters of one base model, or the trend over depth, at "
            "the adapter's own level; z: robust, of the logarithm, by median and MAD of the peers. Shown are |z| > 6 "
            "and 3 times as much or as little."
        )
        return _page(
            f"{_many(len(frame), 'module')} stand{'s' if len(frame) == 1 else ''} out by {name}", columns, frame, told
        )

    return Shown(frame, page)


def ranks(fleet: Fleet, share: float, metric: str | None) -> Shown:
    from ..fleet.numbers import rank_for_all, serving_ranks

    frame = serving_ranks(fleet, share)

    def page() -> Page:
        whole = rank_for_all(frame)
        within = "; ".join(f"{rank}: {part:.0%}" for rank, part in whole["within"].items())
        columns = [
            _names(fleet, frame, "id", "name", "adapter"), *_bases(frame, spare=2),
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

    return Shown(frame, page)


def similarity(fleet: Fleet, share: float, metric: str | None) -> Shown:
    from ..fleet.pairs import compare_all

    pairs = compare_all(fleet, phi=True)
    frame = pairs.table()

    def page() -> Page:
        columns = [
            _names(fleet, frame, "a", "name_a", "adapter"), _names(fleet, frame, "b", "name_b", "other"),
            _decimals(frame, "cosine"), _decimals(frame, "deviation", "±", 1),
            _decimals(frame, "phi_left", "φ left", 2), _decimals(frame, "phi_right", "φ right", 2),
        ]  # fmt: skip
        told = (
            "From sketches. cosine: tr(ΔWᵀΔW') / (‖ΔW‖ ‖ΔW'‖) over all modules; ±: the bound on its standard "
            "deviation; φ: overlap of the top 4 directions above chance, the mean over the modules that both have. "
            "--pairs A B has both exactly."
        )
        return _page(f"{_many(len(frame), 'pair')}{_of(fleet)}, the most similar first", columns, frame, told)

    return Shown(frame, page, lambda: _map(pairs))


def duplicates(fleet: Fleet, share: float, metric: str | None) -> Shown:
    from ..fleet.pairs import compare_all

    frame = compare_all(fleet).duplicates()

    def page() -> Page:
        from .grid import Column

        same = ["yes" if value else "no" for value in frame["same_file"]]
        columns = [
            _names(fleet, frame, "a", "name_a", "adapter"), _names(fleet, frame, "b", "name_b", "other"),
            _decimals(frame, "factor"), Column("same file", same, "same_file"),
        ]  # fmt: skip
        told = "factor: ‖ΔW'‖ / ‖ΔW‖, with the sign; same file: all files have the same content."
        return _page(f"{_many(len(frame), 'pair')} with one ΔW, but for a factor", columns, frame, told)

    return Shown(frame, page)


def clusters(fleet: Fleet, share: float, metric: str | None) -> Shown:
    from ..fleet.pairs import compare_all

    pairs = compare_all(fleet)
    frame = pairs.clusters()

    def page() -> Page:
        columns = [_names(fleet, frame, "id", "name", "adapter"), _column(frame, "cluster"), _column(frame, "size")]
        told = "Average linkage of the distance 1 − cosine, cut where the mean cosine falls below 0.5."
        return _page(
            f"{_many(frame['cluster'].nunique(), 'cluster')} of {_many(len(frame), 'adapter')}", columns, frame, told
        )

    return Shown(frame, page, lambda: _map(pairs))


def basis(fleet: Fleet, share: float, metric: str | None) -> Shown:
    from ..fleet.basis import shared_basis
    from .common import progress

    own = fleet.of_base(str(fleet.bases().index[0]))
    with progress(own.layers["module"].nunique()) as step:
        found = shared_basis(own, on_module=step)
    frame = found.table()

    def page() -> Page:
        rank = found.rank_for(share)
        enough = (
            f"rank {rank} keeps {share:.4g} of every adapter" if rank else f"no rank shown keeps {share:.4g} of all"
        )
        columns = [
            _column(frame, "rank"), _percent(frame, "kept_min", "least"), _percent(frame, "kept_5", "5 %", 2),
            _percent(frame, "kept_50", "median"), _percent(frame, "kept_95", "95 %", 2), _percent(frame, "memory"),
        ]  # fmt: skip
        told = (
            "One U and V per module for all adapters, and a core UᵀΔWV for each: the truncated higher-order SVD, every "
            "adapter counted alike. Shown is the share of Σσ² that it keeps of them. memory: of U, V and all cores, "
            "beside A and B of each at the rank that its method allows. Energy is not accuracy: check with a run."
        )
        return _page(
            f"A basis for {_many(frame['adapters'].iloc[0], 'adapter')}{_of(own)}: {enough}", columns, frame, told
        )

    def draw() -> Figure:
        from ..figures.fleet import fleet_basis

        return fleet_basis(found.kept)

    return Shown(frame, page, draw)


def exact(fleet: Fleet, pairs: Sequence[tuple[str, str]]) -> Shown:
    """Of ``--pairs``."""
    from ..fleet.pairs import exact_pairs

    frame = exact_pairs(pairs, fleet=fleet)

    def page() -> Page:
        columns = [
            _names(fleet, frame, "a", "name_a", "adapter"), _names(fleet, frame, "b", "name_b", "other"),
            _decimals(frame, "cosine"), _decimals(frame, "phi_left", "φ left", 2),
            _decimals(frame, "phi_right", "φ right", 2),
        ]  # fmt: skip
        told = (
            "Exact, from the factors. cosine: tr(ΔWᵀΔW') / (‖ΔW‖ ‖ΔW'‖) over all modules; φ: overlap of the top 4 "
            "directions (1: the same, chance: 4 of the edge), the mean over the modules that both have."
        )
        return _page(f"{_many(len(frame), 'pair')}, read again", columns, frame, told)

    return Shown(frame, page)


VIEWS: dict[str, Callable[[Fleet, float, str | None], Shown]] = {
    view.__name__: view for view in (distributions, growth, outliers, ranks, basis, similarity, duplicates, clusters)
}


def _map(pairs: Pairs) -> Figure:
    from ..figures.fleet import fleet_map

    if len(pairs.adapters) < 2:
        raise ValueError(f"{pairs.base_model} has one adapter; expected two or more")
    return fleet_map(pairs.cosine, pairs.linkage(), pairs.adapters["name"].tolist())


def _known(fleet: Fleet, metric: str) -> Fleet:
    """The fleet, if its modules have the metric; ValueError otherwise."""
    from ..metrics import METRICS
    from .grid import no_column

    if metric not in METRICS:
        raise ValueError(no_column(metric, METRICS))
    return fleet


def _many(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def _of(fleet: Fleet) -> str:
    """Their base model, where it is one."""
    bases = fleet.bases().index
    return f", {bases[0]}" if len(bases) == 1 else ""


def _bases(frame: pd.DataFrame, spare: int = 0) -> list[Any]:
    """The column of the base model, where there are several."""
    column = replace(_text(frame, "base_model", "base model", spare), names="base model")
    return [column] if frame["base_model"].nunique() > 1 else []


def _page(title: str, columns: list[Any], frame: pd.DataFrame, *notes: str) -> Page:
    from .grid import Block, Page

    return Page([Block(title, columns, frame)], notes)


def _names(fleet: Fleet, frame: pd.DataFrame, ids: str, name: str, head: str = "") -> Any:
    """The column of adapters: their names, with the step, or where two are the same still, their ids."""
    from .text_tables import step_of

    known = fleet.adapters
    steps = known["step"] if "step" in known else [None] * len(known)
    called = {each: f"{own}{step_of(step)}" for each, own, step in zip(known["id"], known["name"], steps, strict=True)}
    of_label = Counter(called.values())
    labels = [called.get(each, str(own)) for each, own in zip(frame[ids], frame[name], strict=True)]
    labels = [str(each) if of_label[label] > 1 else label for each, label in zip(frame[ids], labels, strict=True)]
    return replace(_text(frame, name, head), cells=labels, key=True, names="adapter")


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


def _percent(frame: pd.DataFrame, name: str, head: str = "", spare: int = 0) -> Any:
    from .grid import Column

    cells = [f"{100 * value:.3g}%" for value in frame[name]]
    return Column(head or name, cells, name, [*frame[name]], spare=spare)


def _size(frame: pd.DataFrame, name: str, head: str, spare: int) -> Any:
    from .cells import short
    from .grid import Column

    return Column(head, [f"{short(value, ' ')}B" for value in frame[name]], name, [*frame[name]], spare=spare)
