"""Adapters → two tidy tables. After this nobody sees a tensor.

``spectra`` has one row per singular value, ``layer_metrics`` one row per module. Their columns are the product's
interface: they do not change. `step` and `layer` are nullable integers (``<NA>`` for a lone adapter, and for a module
outside the layers). Rows are ordered by adapter as given, step, and module in natural order.

They are kept as columns and become frames when somebody asks for them: importing pandas takes longer than a small
adapter.
"""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from ..adapters import Adapter
from ..adapters.adapter import is_dense
from ..adapters.given import adapters_of
from ..adapters.reading import Options
from ..cards import card
from ..catalogue.dtypes import SMALLEST
from ..catalogue.module_names import layer, projection
from ..files.errors import AdapterError, counted
from ..linalg import NotFiniteError
from ..linalg.solvers import GPU_FROM
from ..linalg.threads import available_cores, one_blas_thread
from ..metrics import (
    METRICS,
    STATISTICS,
    THRESHOLD,
    Entries,
    effective_ranks,
    frobenius_norm,
    spectral_norm,
    utilisation,
)  # fmt: skip
from ..pipes import MOST_PARTS, CopyEnded, can_copy, shared
from ..threshold import Threshold
from ..updates.contract import Facts, Update
from .columns import Columns
from .progress import progress
from .spectrum import Spectrum, Stack, each_spectrum

if TYPE_CHECKING:
    import pandas as pd

#: Singular values whose metrics are computed at once.
_STACK = 1 << 18
#: Modules from which on copies of this process share them, how many there are for each copy at least, because to make
#: one takes as long as ten, and how many a copy takes at a time.
_SHARED_FROM = 96
_FOR_A_COPY = 32
_PART = 64
IDENTITY = ("adapter", "method", "step", "module", "layer", "projection")
SPECTRA_COLUMNS = (*IDENTITY, "index", "singular_value")
LAYER_COLUMNS = (
    *IDENTITY, "out_features", "in_features", "r", "blocks", "scaling", "parameters", "macs_per_token",
    "threshold", *METRICS, "support_rows", "support_columns", "noise_floor", "activation",
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Tables:
    """Both tables of one analysis, and one line per checkpoint on how its numbers were found.

    Attributes
    ----------
    layers : the columns ``LAYER_COLUMNS``, a row per module.
    values : the singular values of all modules, one module behind the other. lengths : how many each has.
    layer_metrics, spectra : as frames.

    Examples
    --------
    >>> from bora_analysis import analyse, synthetic_adapter
    >>> tables = analyse(synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4))
    >>> tables.layer_metrics["rank_bound"].item(), len(tables.spectra), tables.provenance[0][:17]
    (4, 4, 'lora-r4: 1 module')
    """

    layers: Columns
    values: NDArray[np.float64]
    lengths: NDArray[np.int64]
    provenance: tuple[str, ...]
    base_models: Mapping[str, str] = field(default_factory=dict)  # by adapter, where it is known

    @classmethod
    def of_frames(cls, spectra: pd.DataFrame, layer_metrics: pd.DataFrame) -> Tables:
        """From both frames, as a page that shows a part of them has them."""
        layers, rows, keys = Columns.of(layer_metrics), Columns.of(spectra), ("adapter", "step", "module")
        known, nothing = rows.groups(*keys), np.zeros(0, dtype=np.intp)
        places = [known.get(key, nothing) for key in zip(*(layers[name].tolist() for name in keys), strict=True)]
        values = rows["singular_value"][np.concatenate([nothing, *places])]
        return cls(layers, values, np.array([len(each) for each in places], dtype=np.int64), ())

    def __repr__(self) -> str:
        modules = counted(len(self.layers), "module")
        return f"<Tables of {', '.join(self.adapters)}: {modules}, {counted(self.values.size, 'singular value')}>"

    def _repr_html_(self) -> str:
        return card(self, self._told)

    def _told(self) -> tuple[list[str], Any]:
        from .summary import summary  # which is made of tables
        from .verdict import verdict

        columns = [
            "adapter",
            "step",
            "modules",
            "parameters",
            "rank_bound",
            "effective_rank",
            "energy_rank_99",
            "energy",
        ]
        found = summary(self.layer_metrics)
        found = found.loc[found["projection"] == "all", columns].dropna(axis="columns", how="all")
        return verdict(self.layer_metrics).split("\n")[:8], found

    @property
    def adapters(self) -> list[str]:
        """Their names, in the order of the rows."""
        return list(dict.fromkeys(self.layers["adapter"].tolist()))

    @cached_property
    def layer_metrics(self) -> pd.DataFrame:
        return self.layers.frame()

    @cached_property
    def spectra(self) -> pd.DataFrame:
        return self.spectra_columns().frame()

    def spectra_columns(self) -> Columns:
        """``spectra`` before it is a frame: the columns ``SPECTRA_COLUMNS``."""
        columns = {name: np.repeat(self.layers[name].astype(object), self.lengths) for name in IDENTITY}
        ends = np.cumsum(self.lengths)
        index = np.arange(1, self.values.size + 1) - np.repeat(ends - self.lengths, self.lengths)
        return Columns({**columns, "index": index, "singular_value": self.values})

    def spectrum_of(self, row: int) -> NDArray[np.float64]:
        """The singular values of the module in a row of ``layers``."""
        end = self._ends[row]
        return self.values[end - self.lengths[row] : end]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        return np.cumsum(self.lengths)

    def rows(self, chosen: NDArray[np.bool_]) -> Tables:
        """Of the modules that are chosen."""
        kept = self.values[np.repeat(chosen, self.lengths)]
        return replace(self, layers=self.layers.rows(chosen), values=kept, lengths=self.lengths[chosen])


#: What is said of modules that did not move, and of those that did and of which nothing is left.
STILL = "ΔW = 0 in every module: nothing was trained"
LOST = "trained, but ΔW is below what {} can hold"


class Analysis(Options, total=False):
    """The options of :func:`analyse` as keywords."""

    threshold: float | str | Threshold
    solver: str
    device: str
    quick: bool
    statistics: bool
    on_module: Callable[[], object] | None


def analyse(
    adapters: Any,
    *,
    threshold: float | str | Threshold = THRESHOLD,
    solver: str = "auto",
    device: str = "auto",
    quick: bool = False,
    statistics: bool = False,
    on_module: Callable[[], object] | None = None,
    **reading: Unpack[Options],
) -> Tables:
    """Both frames in one pass over the files.

    Parameters
    ----------
    adapters : what :func:`bora_analysis.read_adapter` takes, or a list of it; a trajectory gives rows for each step.
    threshold : of ``effective_rank`` and ``rank_utilisation``: a number, a share of σ₁ such as ``"1%"``, or a number at
        equal energy such as ``"0.005 at norm 1"``, see :class:`bora_analysis.Threshold`.
    solver, device : see :func:`bora_analysis.singular_values`.
    quick : of updates without structure, which need the base model, and of those with a core from 1024² on, only what
        a count tells (:func:`bora_analysis.linalg.inertia.count`): their other columns are missing, they have no rows
        in ``spectra``.
    statistics : with the columns of :data:`bora_analysis.metrics.STATISTICS`, which need the entries of ΔW: how many
        rows and columns hold its energy, kurtosis; and directions above the bulk of random factors.
    on_module : called after each module, for progress. Without it terminals and notebooks show a bar.
    reading : options of :func:`bora_analysis.read_adapter`, ``modules`` among them.

    Returns
    -------
    Tables

    Raises
    ------
    ValueError
        An invalid regular expression, a threshold that is none, an unknown solver or device.
    AdapterError
        A module that cannot be used (NaN, Inf), with file and tensor; ``modules`` found in none.
    TypeError
        Something that stands for no adapter, an unknown option.

    Examples
    --------
    >>> from bora_analysis import analyse, synthetic_adapter
    >>> analyse(synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4))
    <Tables of lora-r4: 1 module, 4 singular values>
    """
    tau = Threshold.of(threshold)
    flat = adapters_of(adapters, **reading)
    spectra, metrics, provenance = [], [], []
    with one_blas_thread():  # once: to set the limit takes as long as a small adapter
        for adapter in flat:
            with progress(len(adapter), on_module) as step:
                options: Any = {"solver": solver, "device": device, "quick": quick, "statistics": statistics}
                found = measure(adapter, threshold=tau, on_module=step, **options)
            spectra += [spectrum.values for _, spectrum in found]
            metrics += [row for row, _ in found]
            provenance += told_of(adapter, [Origin.of(spectrum, tau) for _, spectrum in found], tau)
    return Tables(
        Columns.of_rows(metrics, [*LAYER_COLUMNS, *(STATISTICS if statistics else ())]),
        np.concatenate([*spectra, np.zeros(0)]),
        np.array([len(values) for values in spectra], dtype=np.int64),
        tuple(provenance),
        {adapter.name: adapter.base_model for adapter in flat if adapter.base_model},
    )


def measure(
    adapter: Adapter,
    *,
    threshold: float | str | Threshold = THRESHOLD,
    solver: str = "auto",
    device: str = "auto",
    quick: bool = False,
    statistics: bool = False,
    workers: int | None = None,
    on_module: Callable[[], object] = lambda: None,
) -> list[tuple[tuple[Any, ...], Spectrum]]:
    """For each module its row of ``layer_metrics``, the values of ``LAYER_COLUMNS``, and its spectrum.

    :func:`analyse` of one adapter without frames, which take longer than a small adapter. Parameters as there, and
    ``workers`` as for :func:`bora_analysis.each_spectrum`. By default copies of this process share the modules of a
    file where they may (:func:`bora_analysis.pipes.can_copy`) and where each takes more Python than arithmetic, which
    threads would do in turn.
    """
    tau = Threshold.of(threshold)
    copies = available_cores() if workers is None and not statistics else 1
    if copies > 1 and device in ("auto", "cpu") and _is_shared(adapter):
        options = {"threshold": tau, "solver": solver, "device": device, "quick": quick}
        return _measured_by_copies(adapter, options, copies, on_module)
    results: dict[str, tuple[Facts, Spectrum]] = {}
    options: dict[str, Any] = {"solver": solver, "device": device, "workers": workers, "quick": tau if quick else None}
    watched = Watched(adapter) if statistics else None
    try:
        for module, facts, spectrum in each_spectrum(watched or adapter, **options):
            results[module] = facts, spectrum
            on_module()
    except NotFiniteError as error:
        raise AdapterError(f"{adapter.path or adapter.name}: {error}") from None
    metrics = _metrics([results[module] for module in adapter], tau)
    rows = []
    for module, values in zip(adapter, metrics, strict=True):
        facts, spectrum = results[module]
        row = (
            *identity(adapter, module, facts), facts.out_features, facts.in_features, facts.r, facts.blocks,
            facts.scaling, facts.parameters, facts.macs_per_token, tau.cell, *values,
            facts.out_features if facts.support_rows is None else facts.support_rows,
            facts.in_features if facts.support_columns is None else facts.support_columns,
            spectrum.noise_floor, facts.activation,
            *(watched.statistics(module, spectrum, facts) if watched else ()),
        )  # fmt: skip
        rows.append((row, spectrum))
    return rows


def _is_shared(adapter: Adapter) -> bool:
    """Whether copies of this process measure an adapter: many modules in a file, with cores that no GPU would take."""
    if len(adapter) < _SHARED_FROM or adapter.path is None or is_dense(adapter) or not can_copy():
        return False
    return adapter[next(iter(adapter))].facts.rank_bound < GPU_FROM


def _measured_by_copies(
    adapter: Adapter, options: dict[str, Any], copies: int, on_module: Callable[[], object]
) -> list[tuple[tuple[Any, ...], Spectrum]]:
    names = list(adapter)
    copies = min(copies, len(names) // _FOR_A_COPY)
    size = max(1, min(_PART, len(names) // (8 * copies)), -(-len(names) // MOST_PARTS))
    starts = range(0, len(names), size)

    def work(part: int) -> list[tuple[tuple[Any, ...], Spectrum]]:
        some = {name: adapter.loaders[name] for name in names[starts[part] : starts[part] + size]}
        return measure(replace(adapter, loaders=some), workers=1, **options)

    found: dict[int, list[tuple[tuple[Any, ...], Spectrum]]] = {}
    with one_blas_thread():  # once, and not in each copy
        try:
            for part, rows in shared(work, len(starts), copies):
                found[part] = rows
                for _ in rows:
                    on_module()
        except CopyEnded as error:
            raise AdapterError(f"{adapter.path}: {error}") from None
    return [row for part in range(len(starts)) for row in found[part]]


class Watched(Mapping[str, Update]):
    """Updates whose entries are summed when they are loaded, in the thread that loads them."""

    def __init__(self, updates: Mapping[str, Update]) -> None:
        self.updates = updates
        self.found: dict[str, Entries] = {}

    def __getitem__(self, module: str) -> Update:
        from .entries import entries  # here: few ask for it

        update = self.updates[module]
        self.found[module] = entries(update)
        return update

    def __iter__(self) -> Iterator[str]:
        return iter(self.updates)

    def __len__(self) -> int:
        return len(self.updates)

    def statistics(self, module: str, spectrum: Spectrum, facts: Facts) -> list[float]:
        """The values of ``STATISTICS``."""
        from .null import sizes_of, unit_edge

        edge = unit_edge(sizes_of(facts)) * frobenius_norm(spectrum)
        return [row.value(self.found[module], spectrum, edge) for row in STATISTICS.values()]


#: The other spelling.
analyze = analyse


def spectra(adapters: Any, **options: Unpack[Analysis]) -> pd.DataFrame:
    """One row per singular value: the columns of ``SPECTRA_COLUMNS``; index 1 is σ₁.

    A module has exactly ``rank_bound`` rows; ΔW's other singular values are zero. Parameters as for :func:`analyse`.

    Returns
    -------
    DataFrame

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import Adapter, lora, spectra
    >>> adapter = Adapter.from_updates("demo", {"layers.0.q_proj": lora(np.eye(3)[:, :2] * [2.0, 1.0], np.eye(2, 3))})
    >>> spectra(adapter)[["projection", "index", "singular_value"]].values.tolist()
    [['q', 1, 2.0], ['q', 2, 1.0]]
    """
    return analyse(adapters, **options).spectra


def layer_metrics(adapters: Any, **options: Unpack[Analysis]) -> pd.DataFrame:
    """One row per module: the columns of ``LAYER_COLUMNS``. Parameters as for :func:`analyse`.

    Returns
    -------
    DataFrame

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import Adapter, lora, layer_metrics
    >>> adapter = Adapter.from_updates("demo", {"layers.0.q_proj": lora(np.eye(3)[:, :2] * [2.0, 1.0], np.eye(2, 3))})
    >>> layer_metrics(adapter)[["effective_rank", "energy", "rank_bound"]].values.tolist()
    [[2.0, 5.0, 2.0]]
    """
    return analyse(adapters, **options).layer_metrics


def recounted(tables: Tables, threshold: float | str | Threshold) -> pd.DataFrame:
    """layer_metrics as :func:`analyse` makes it with another threshold, counted from the spectra and not from factors.

    Only threshold, effective_rank and rank_utilisation depend on it. Where a quick analysis left no spectrum, both are
    missing, unless they were counted with this threshold.

    Raises
    ------
    ValueError
        A threshold that is none.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import Adapter, analyse, lora
    >>> adapter = Adapter.from_updates("demo", {"layers.0.q_proj": lora(np.eye(3)[:, :2] * [2.0, 1.0], np.eye(2, 3))})
    >>> recounted(analyse(adapter), 1.5)[["threshold", "effective_rank", "rank_utilisation"]].values.tolist()
    [[1.5, 1.0, 0.5]]
    """
    tau = Threshold.of(threshold)
    layers = tables.layers
    stale = np.array([cell != tau.cell for cell in layers["threshold"].tolist()], dtype=bool)
    if not stale.any():
        return tables.layer_metrics
    bounds = layers["rank_bound"].astype(np.int64)
    limits = tau.limit(layers["spectral_norm"], layers["frobenius_norm"])
    ranks = effective_ranks(tables.values, tables.lengths, limits)
    fresh = {"effective_rank": ranks, "rank_utilisation": utilisation(ranks, bounds)}
    counted = (tables.lengths == 0) & (bounds > 0)  # a module without directions has none to count
    if counted.any():
        fresh = {
            name: np.where(counted, np.where(stale, np.nan, layers[name].astype(float)), values)
            for name, values in fresh.items()
        }
    return layers.with_columns({"threshold": [tau.cell] * len(layers), **fresh}).frame()


def join(tables: Sequence[Tables]) -> Tables:
    """The rows of several analyses, in their order; where they count differently, all thresholds become texts."""
    layers = [part.layers for part in tables]
    if len({part["threshold"].dtype for part in layers if len(part)}) > 1:
        layers = [
            part.with_columns({"threshold": [str(Threshold.of(x)) for x in part["threshold"].tolist()]})
            for part in layers
        ]
    return Tables(
        Columns.joined(layers),
        np.concatenate([part.values for part in tables]),
        np.concatenate([part.lengths for part in tables]),
        tuple(line for part in tables for line in part.provenance),
        dict(ChainMap(*(dict(part.base_models) for part in tables))),
    )


def _limit(spectrum: Spectrum, tau: Threshold) -> float:
    """The σ above which those of a ΔW count."""
    if tau.absolute:
        return tau.value
    counts = spectrum.counted
    if counts is not None:
        return tau.limit(counts.top, counts.energy**0.5)
    return tau.limit(spectral_norm(spectrum), frobenius_norm(spectrum))


def _metrics(found: Sequence[tuple[Facts, Spectrum]], tau: Threshold) -> list[Sequence[Any]]:
    """For each module the values of ``METRICS``; NaN for those that a count does not tell, or a ΔW that underflows."""
    rows: list[Sequence[Any]] = [()] * len(found)
    alike: dict[int, list[int]] = defaultdict(list)
    for k, (facts, spectrum) in enumerate(found):
        counts = spectrum.counted
        if counts is None:
            alike[len(spectrum)].append(k)
        else:
            told = [metric.counted and metric.counted(counts, facts.rank_bound) for metric in METRICS.values()]
            rows[k] = [float("nan") if value is None else value for value in told]
    for length, places in alike.items():
        step = max(1, _STACK // max(1, length))
        for start in range(0, len(places), step):
            some = places[start : start + step]
            stack = Stack.of([found[k][1] for k in some])
            bounds = np.array([found[k][0].rank_bound for k in some])
            limits = np.broadcast_to(tau.limit(spectral_norm(stack), frobenius_norm(stack)), len(some))
            columns = [metric.value(stack, bounds, limits).tolist() for metric in METRICS.values()]
            for k, row in zip(some, zip(*columns, strict=True), strict=True):
                rows[k] = row
    known = [metric.degree != 0 or name == "rank_bound" for name, metric in METRICS.items()]
    for k, (_, spectrum) in enumerate(found):
        if spectrum.underflows:  # its sizes round to 0, the shape of its spectrum is not known
            rows[k] = [value if told else float("nan") for value, told in zip(rows[k], known, strict=True)]
    return rows


class Origin(NamedTuple):
    """How a module's numbers were found: fields of its :class:`Spectrum`, σ₁ and from where σ count."""

    dtype: str
    solver: str
    device: str
    noise_floor: float
    underflows: bool
    top: float
    limit: float

    @classmethod
    def of(cls, spectrum: Spectrum, tau: Threshold) -> Origin:
        top = spectral_norm(spectrum.values) if spectrum.counted is None else spectrum.counted.top
        own = spectrum.dtype, spectrum.solver, spectrum.device, spectrum.noise_floor, spectrum.underflows
        return cls(*own, top, _limit(spectrum, tau))

    @property
    def lost(self) -> bool:
        """Whether ΔW is not 0 and would be, in the dtype that its factors are stored in."""
        return self.underflows or 0 < self.top < SMALLEST.get(self.dtype, 0.0) / 2


def told_of(adapter: Adapter, found: Sequence[Origin], tau: Threshold) -> list[str]:
    """Lines on how an adapter's numbers were found; from the second on, where they need a caveat."""

    def listed(values: Iterable[str]) -> str:
        return ", ".join(sorted(set(values))) or "none"

    modules = "1 module" if len(found) == 1 else f"{len(found)} modules"
    stored, solvers, devices = (listed(getattr(s, name) for s in found) for name in ("dtype", "solver", "device"))
    lines = [
        f"{adapter.name}: {modules}, factors stored in {stored}, singular values in float64 by {solvers} on {devices}"
    ]
    still = sum(s.top == 0 and not s.underflows for s in found)
    lost = [s for s in found if s.lost]
    if lost:
        top = max(s.top for s in lost)
        most = f" (σ₁ up to {top:.2g})" if top else ""
        lines.append(f"{adapter.name}: {LOST.format(stored)} in {len(lost)} of {modules}{most}")
    if still and still == len(found) and adapter.step != 0:
        lines.append(f"{adapter.name}: {STILL}")
    elif still and adapter.method == "full":
        lines.append(f"{adapter.name}: {still} of {modules} are unchanged: ΔW = 0")
    below = [s.noise_floor for s in found if s.noise_floor > s.limit]
    if below:
        lines.append(
            f"{adapter.name}: the threshold {tau} lies below the noise floor of {len(below)} of {modules} (up "
            f"to {max(below):.2g}), the σ that rounding to {stored} alone can make: there effective_rank may count "
            "rounding; rank_above_rounding does not"
        )
    return lines


def identity(adapter: Adapter, module: str, facts: Facts) -> tuple[Any, ...]:
    """The values of the columns ``IDENTITY``."""
    return adapter.name, facts.method, adapter.step, module, layer(module), projection(module)
