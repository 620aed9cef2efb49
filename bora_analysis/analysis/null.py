"""The null: what spectrum a random update of the same sizes and the same ‖ΔW‖_F has.

Most of a spectrum is there before any training: random factors have the rank of their sizes, and BoRA's Σσ² is
E[Σ²] = sinh(4)/4 = 6.8 times LoRA's for factors of the same size, because σ/Mav(σ) of eq. 5 begins uniform on (−2, 2).
What training made is what differs from this. Each method's file says what its random factors are
(:class:`bora_analysis.methods.random_factors.Null`): what is zero at the start is Gaussian, the rest as at the start.

It needs layer_metrics alone, never the factors. Draws depend on the sizes, the number of draws and the seed; they are
made once for equal modules, scaled to ‖ΔW‖_F, and kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack
from zlib import crc32

import numpy as np

from ..cards import card
from ..files.errors import counted
from ..linalg import Array
from ..linalg.solvers import svd_values
from ..linalg.threads import in_order, one_blas_thread
from ..methods import null as null_of
from ..methods.random_factors import NoNullError, Sizes, bulk_edge
from ..metrics import METRICS
from ..threshold import Threshold
from .columns import Columns
from .given import layers_of
from .tables import IDENTITY, Analysis

if TYPE_CHECKING:
    import pandas as pd

    from ..updates.contract import Facts

DRAWS = 20
_RANGE = ("null_mean", "null_low", "null_high", "draws", "seed")
NULL_SPECTRA_COLUMNS = (*IDENTITY, "index", *_RANGE)
NULL_METRICS_COLUMNS = (*IDENTITY, "metric", "value", *_RANGE, "learned")
#: Metrics that the null has too, beside those that count against a limit.
_SCALED = [name for name, row in METRICS.items() if row.degree is not None and name != "rank_bound"]


@dataclass(frozen=True, eq=False, repr=False)
class Null:
    """Both frames of a null, and which adapters have none.

    Attributes
    ----------
    spectra : a row per singular value: the columns of ``NULL_SPECTRA_COLUMNS``, mean, least and largest over the draws.
    layer_metrics : a row per module and metric: the columns of ``NULL_METRICS_COLUMNS``; ``value`` is the update's own
        and ``learned`` = value − null_mean.
    missing : a line for each adapter with modules that have no null, with the reason.

    Examples
    --------
    >>> from bora_analysis import null, synthetic_adapter
    >>> null(synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4))
    <Null of lora-r4: 1 module, 20 draws>
    """

    spectra: pd.DataFrame
    layer_metrics: pd.DataFrame
    missing: tuple[str, ...] = ()

    def __repr__(self) -> str:
        rows = self.layer_metrics.drop_duplicates(["adapter", "step", "module"])
        names = ", ".join(dict.fromkeys(rows["adapter"])) or "nothing"
        draws = f", {rows['draws'].iloc[0]} draws" if len(rows) else ""
        return f"<Null of {names}: {counted(len(rows), 'module')}{draws}>"

    def _repr_html_(self) -> str:
        def told() -> tuple[list[str], Any]:
            keys = ["adapter", "metric"]
            means = self.layer_metrics.groupby(keys, sort=False)[["value", "null_mean", "learned"]].mean().reset_index()
            return list(self.missing), means

        return card(self, told)


def null(adapters: Any, *, draws: int = DRAWS, seed: int = 0, **options: Unpack[Analysis]) -> Null:
    """Singular values and metrics of random updates of the same sizes and the same ‖ΔW‖_F.

    Parameters
    ----------
    adapters : tables of :func:`bora_analysis.analyse`, their ``layer_metrics``, or what that takes, with its options.
    draws : how many random updates of each size. Their range widens with their number.
    seed : of the draws.

    Returns
    -------
    Null
        Without modules of ΔW = 0, and without those of methods that have no random factors here; ``missing`` says why.

    Raises
    ------
    ValueError
        draws below 1, a negative seed.

    Notes
    -----
    A count against an absolute threshold depends on ‖ΔW‖_F, which is the module's; the other ranks do not.

    Examples
    --------
    >>> from bora_analysis import null, synthetic_adapter
    >>> adapter = synthetic_adapter("lora", {"layers.0.q_proj": (640, 320)}, r=4, kind="decay")
    >>> rows = null(adapter).layer_metrics.set_index("metric").loc["entropy_rank"]
    >>> round(float(rows["value"]), 1), round(float(rows["null_mean"]), 1)
    (3.5, 4.0)
    """
    if draws < 1 or seed < 0:
        raise ValueError(f"got draws = {draws}, seed = {seed}; expected draws ≥ 1 and seed ≥ 0")
    layers = _columns(layers_of(adapters, **options))
    groups: dict[Sizes, list[int]] = {}
    moved = layers["frobenius_norm"] > 0
    for place, row in enumerate(_sizes(layers)):
        if moved[place]:
            groups.setdefault(row, []).append(place)
    spectra, metrics, reasons = [], [], {}
    for sizes, found in in_order(lambda sizes: unit_draws(sizes, draws, seed), list(groups)):
        places = np.array(groups[sizes])
        if isinstance(found, str):
            reasons |= dict.fromkeys(layers["adapter"][places].tolist(), found)
            continue
        rows = layers.rows(places)
        spectra.append(_spectra(rows, places, found))
        metrics.append(_metrics(rows, places, sizes, found))
    parts = (spectra, NULL_SPECTRA_COLUMNS), (metrics, NULL_METRICS_COLUMNS)
    frames = [_frame(found, names, draws, seed) for found, names in parts]
    return Null(frames[0], frames[1], tuple(f"{name}: no null: {reason}" for name, reason in reasons.items()))


def _columns(layers: Any) -> Columns:
    """What the null needs of layer_metrics."""
    sizes = ("out_features", "in_features", "r", "blocks", "parameters", "threshold", "activation")
    measured = (*_SCALED, "effective_rank", "rank_utilisation", "rank_bound", "frobenius_norm")
    return Columns.of(layers[list(dict.fromkeys((*IDENTITY, *sizes, *measured)))])


def _frame(parts: Sequence[Mapping[str, Array]], names: Sequence[str], draws: int, seed: int) -> pd.DataFrame:
    """The rows of all parts by their place, as one frame: a frame for each part took ten times as long."""
    if not parts:
        return Columns({name: [] for name in names}).frame()
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["place"], kind="stable")
    told = {"draws": np.full(len(order), draws), "seed": np.full(len(order), seed)}
    return Columns({name: told[name] if name in told else joined[name][order] for name in names}).frame()


class Draws(NamedTuple):
    """Random updates of one size, each with ‖·‖_F = 1.

    Attributes
    ----------
    spectra : (draws, rank_bound), descending.
    metrics : metric → (draws,), of those that have a degree.
    """

    spectra: Array
    metrics: dict[str, Array]


@lru_cache(maxsize=64)
def unit_draws(sizes: Sizes, draws: int, seed: int) -> Draws | str:
    """The draws, or why there are none."""
    try:
        make = null_of(sizes.method).cores
        rng = np.random.default_rng([seed, crc32(repr(tuple(sizes)).encode())])
        with one_blas_thread():
            made = [make(sizes, rng) for _ in range(draws)]
            spectra = _values(made, sizes.rank_bound)
    except NoNullError as reason:
        return str(reason)
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    return Draws(spectra, {name: METRICS[name].value(spectra, 0, 0.0) for name in _SCALED})


@lru_cache(maxsize=256)
def unit_edge(sizes: Sizes) -> float:
    """The largest σ of the null's bulk at ‖ΔW‖_F = 1; NaN where its law is not known."""
    try:
        law = null_of(sizes.method).bulk
        return bulk_edge(law(sizes)) if law else float("nan")
    except NoNullError:
        return float("nan")


def sizes_of(facts: Facts) -> Sizes:
    """What the null needs to know of an update."""
    names = facts.method, facts.out_features, facts.in_features, facts.r, facts.blocks
    return Sizes(*names, facts.parameters, facts.rank_bound, facts.activation)


def _values(made: list[list[Array]], bound: int) -> Array:
    """(draws, bound) singular values of cores; those of one shape together."""
    if len({tuple(core.shape for core in cores) for cores in made}) > 1:  # random places: each its own components
        return np.concatenate([_values([cores], bound) for cores in made])
    found = []
    for stacks in zip(*made, strict=True):
        stack = np.concatenate(stacks)
        values = np.abs(stack) if stack.shape[1:] == (1, 1) else svd_values(stack)[0]
        found.append(values.reshape(len(made), -1))
    values = np.sort(np.concatenate(found, axis=1), axis=1)[:, ::-1][:, :bound]
    return np.pad(values, ((0, 0), (0, bound - values.shape[1])))


def _sizes(layers: Columns) -> list[Sizes]:
    names = ("method", "out_features", "in_features", "r", "blocks", "parameters", "rank_bound")
    activations = (name or "" for name in layers["activation"].tolist())
    return [Sizes(*row) for row in zip(*(layers[name].tolist() for name in names), activations, strict=True)]


def _spectra(rows: Columns, places: Array, found: Draws) -> dict[str, Array]:
    size, norms = found.spectra.shape[1], rows["frobenius_norm"]
    ends = found.spectra.mean(axis=0), found.spectra.min(axis=0), found.spectra.max(axis=0)
    columns = {name: np.repeat(rows[name].astype(object), size) for name in IDENTITY}
    columns |= {"place": np.repeat(places, size), "index": np.tile(np.arange(1, size + 1), len(rows))}
    return columns | {name: np.outer(norms, end).ravel() for name, end in zip(_RANGE, ends, strict=False)}


def _metrics(rows: Columns, places: Array, sizes: Sizes, found: Draws) -> dict[str, Array]:
    """The rows of a module lie one behind the other: its place, and beside it that of the metric."""
    norms = rows["frobenius_norm"]
    values = {name: norms[:, None] ** (METRICS[name].degree or 0) * found.metrics[name] for name in _SCALED}
    values |= _counts(rows, norms, found.spectra, sizes.rank_bound)
    count = len(values)
    own = np.stack([*values.values()], axis=1)  # (modules, metrics, draws)
    measured = np.stack([rows[name].astype(float) for name in values], axis=1).ravel()
    columns = {name: np.repeat(rows[name].astype(object), count) for name in IDENTITY}
    columns |= {"place": np.repeat(places, count), "value": measured}
    columns["metric"] = np.tile(np.array([*values], dtype=object), len(rows))
    ends = own.mean(axis=2).ravel(), own.min(axis=2).ravel(), own.max(axis=2).ravel()
    return columns | dict(zip(_RANGE, ends, strict=False)) | {"learned": measured - ends[0]}


def _counts(rows: Columns, norms: Array, spectra: Array, bound: int) -> dict[str, Array]:
    """(modules, draws) of the metrics that count against a threshold: each module's own."""
    tops = spectra[:, :1]
    found = np.zeros((len(rows), len(spectra)))
    for place, (cell, size) in enumerate(zip(rows["threshold"].tolist(), norms, strict=True)):
        limits = Threshold.of(cell).limit(size * tops, size)
        found[place] = (size * spectra > limits).sum(axis=1)
    return {"effective_rank": found, "rank_utilisation": found / bound if bound else found}
