"""What many adapters show together: distributions, growth with r, outliers, percentiles, the rank that serves all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..adapters import AdapterError
from ..files.errors import counted
from ..linalg import Array
from ..metrics import energy_rank
from .results import Results
from .robust import NORMAL_MAD, family, standing

if TYPE_CHECKING:
    import pandas as pd

#: What a fleet's adapters have in common where the numbers are to be compared.
GROUP = ("base_model", "method", "projection", "r")
#: The name of a base model that no configuration tells.
UNKNOWN = "unknown"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Of one base and family, from this many adapters on the trend over depth is the median of each layer.
ENOUGH = 5


class Summed(NamedTuple):
    """How a metric of an adapter comes from those of its modules, and its name in a sentence."""

    label: str
    of: str  # column of the modules
    how: str


#: Metrics of whole adapters.
OF_ADAPTERS: Mapping[str, Summed] = {
    "stable_rank": Summed("mean stable rank", "stable_rank", "mean"),
    "energy_rank_99": Summed("mean 99 % energy rank", "energy_rank_99", "mean"),
    "top_share": Summed("mean share of σ₁² in Σσ²", "top_share", "mean"),
    "spectral_norm": Summed("largest σ₁", "spectral_norm", "max"),
    "energy": Summed("Σσ² over all modules", "energy", "sum"),
}


@dataclass(frozen=True, eq=False, repr=False)
class Fleet:
    """The results of a sweep, joined.

    Attributes
    ----------
    adapters : one row per adapter that was analysed, as in the results.
    layers : one row per module with ΔW ≠ 0: ``layer_metrics`` with ``base_model`` and ``family``, its path
        without numbers.
    results : where the other tables are; None for frames in memory.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import layer_metrics, synthetic_adapter
    >>> shapes = {f"layers.{k}.q_proj": (64, 32) for k in range(2)}
    >>> frames = [layer_metrics(synthetic_adapter("lora", shapes, r=r, seed=r)) for r in (2, 4)]
    >>> Fleet.of_metrics(frames, base_model="mine")
    <Fleet of 2 adapters, 4 modules, 1 base model>
    """

    adapters: pd.DataFrame
    layers: pd.DataFrame
    results: Results | None = None

    def __repr__(self) -> str:
        counts = (len(self.adapters), "adapter"), (len(self.layers), "module")
        words = [counted(*each) for each in (*counts, (self.adapters["base_model"].nunique(), "base model"))]
        return f"<Fleet of {', '.join(words)}>"

    @classmethod
    def of_metrics(cls, frames: Iterable[pd.DataFrame], base_model: str | Sequence[str] = UNKNOWN) -> Fleet:
        """Of the ``layer_metrics`` of adapters, one frame each; one base model for all, or one for each."""
        import pandas as pd

        frames = [frame.assign(id=str(k)) for k, frame in enumerate(frames)]
        layers = pd.concat(frames, ignore_index=True)
        rows = layers.groupby("id", sort=False).agg(name=("adapter", "first"), method=("method", "first"))
        bases = base_model if isinstance(base_model, str) else list(base_model)
        return _joined(rows.reset_index().assign(base_model=bases), layers)

    def of_base(self, name: str) -> Fleet:
        """The part with one base model; AdapterError where there is none."""
        if name not in self.bases().index:
            raise AdapterError(f"no adapter of {name}; {_bases(self)}")
        adapters, layers = (
            frame[frame["base_model"] == name].reset_index(drop=True) for frame in (self.adapters, self.layers)
        )
        return Fleet(adapters, layers, self.results)

    def bases(self) -> pd.Series:
        """Base model → number of adapters, the most first."""
        return self.adapters["base_model"].value_counts()


def read_fleet(place: Any) -> Fleet:
    """The results of a sweep, to be looked at together.

    Parameters
    ----------
    place : the folder or URL of ``sweep -o``, :class:`Results`, or a :class:`Fleet`, which is returned.

    Raises
    ------
    AdapterError
        No results, or none of an adapter that could be analysed.
    """
    if isinstance(place, Fleet):
        return place
    results = place if isinstance(place, Results) else Results(place)
    adapters = results.adapters()
    adapters = adapters[adapters["part"].notna()].assign(base_model=lambda x: x["base_model"].fillna(UNKNOWN))
    if adapters.empty:
        raise AdapterError(f"{results.storage}: no adapter of the sweep could be analysed; see the column error")
    return _joined(adapters.reset_index(drop=True), results.layer_metrics(), results)


def distributions(fleet: Any, by: Sequence[str] = GROUP) -> pd.DataFrame:
    """Quantiles of stable rank, energy rank and σ₁'s share over the modules of each group.

    Parameters
    ----------
    fleet : as for :func:`read_fleet`. by : columns of ``layers``.

    Returns
    -------
    DataFrame
        The columns of ``by``; adapters, modules; for stable_rank, energy_rank_99 and top_share (σ₁² / Σσ²) the columns
        ``…_5``, ``…_25``, ``…_50``, ``…_75``, ``…_95``, quantiles in percent.
    """
    import pandas as pd

    layers = read_fleet(fleet).layers
    groups = layers.groupby(list(by), sort=True, observed=True)
    found = [groups["id"].nunique().rename("adapters"), groups.size().rename("modules")]
    for name in ("stable_rank", "energy_rank_99", "top_share"):
        found += [groups[name].quantile(share).rename(f"{name}_{100 * share:.0f}") for share in QUANTILES]
    return pd.concat(found, axis=1).reset_index()


def growth(fleet: Any, metric: str = "stable_rank", confidence: float = 0.95) -> pd.DataFrame:
    """How a metric grows with r: metric = c · r^β, by base model, method and projection.

    The line of least squares through the logarithms, one point per adapter: the geometric mean over its modules of
    that projection. The interval is Student's, with the variance HC3 (MacKinnon & White, "Some
    heteroskedasticity-consistent covariance matrix estimators", J. Econometrics 29, 1985): adapters are taken as
    independent, their spread may differ with r.

    Returns
    -------
    DataFrame
        base_model, method, projection, adapters, r_min, r_max, exponent, low, high, factor (c). low and high are
        missing where an r has one adapter that decides alone.
    """
    import pandas as pd
    from scipy.stats import t as student

    keys = ["base_model", "method", "projection"]
    points = growth_points(fleet, metric).assign(x=lambda p: np.log(p["r"]), y=lambda p: np.log(p["value"]))
    rows = []
    for key, part in points.groupby(keys):
        x, y = part["x"].to_numpy(), part["y"].to_numpy()
        if len(x) < 3 or np.ptp(x) < 1e-9:
            continue
        slope, start, error = _line(x, y)
        reach = float(student.ppf((1 + confidence) / 2, len(x) - 2)) * error
        bounds = (slope - reach, slope + reach) if np.isfinite(reach) else (np.nan, np.nan)
        rows.append((*key, len(x), round(np.exp(x.min())), round(np.exp(x.max())), slope, *bounds, np.exp(start)))
    return pd.DataFrame(rows, columns=[*keys, "adapters", "r_min", "r_max", "exponent", "low", "high", "factor"])


def growth_points(fleet: Any, metric: str = "stable_rank") -> pd.DataFrame:
    """The points of :func:`growth`: base_model, method, projection, id, r, value (the geometric mean over modules)."""
    layers = read_fleet(fleet).layers
    points = layers.assign(value=np.log(layers[metric].astype(float)), r=np.log(layers["r"].astype(float)))
    points = points[np.isfinite(points["r"]) & np.isfinite(points["value"])]
    means = points.groupby(["base_model", "method", "projection", "id"], sort=True)[["r", "value"]].mean().reset_index()
    return means.assign(r=np.exp(means["r"]), value=np.exp(means["value"]))


def outliers(fleet: Any, metric: str = "spectral_norm", z: float = 6.0, times: float = 3.0) -> pd.DataFrame:
    """Modules that stand out of their base model and family, the farthest first.

    Robust z-scores of log(metric), with the trend over depth removed: the median of each layer over the adapters, of
    fewer than five the line of Theil and Sen through these medians (:func:`bora_analysis.fleet.robust.standing`). Each
    adapter's own level, the median of what is left over its modules of the family, from five on, is taken out too:
    an adapter that is larger as a whole is no outlier here; see :func:`percentiles`.

    Parameters
    ----------
    metric : column of ``layers``. z, times : both limits must be passed, above or below.

    Returns
    -------
    DataFrame
        id, adapter, base_model, module, projection, value, expected, times (value / expected), z, peers (modules in the
        group).
    """
    import pandas as pd

    layers = read_fleet(fleet).layers
    keys = ["base_model", "family"]
    found = []
    for _, part in layers.assign(y=np.log(layers[metric])).groupby(keys, sort=True):
        known = part[np.isfinite(part["y"])]
        if len(known) < 8:
            continue
        depth = known["layer"].fillna(-1).astype(float)
        middle = known.groupby(depth)["y"].median()
        if known["id"].nunique() < ENOUGH:
            line = standing(middle.to_numpy(), middle.index.to_numpy())
            middle = pd.Series(line.expected, index=middle.index)
        rest = known["y"] - depth.map(middle)
        if known["id"].nunique() > 1:  # α and the length of training move an adapter as a whole
            levels = rest.groupby(known["id"])
            rest = rest - levels.transform("median").where(levels.transform("size") >= ENOUGH, rest.median())
        rest = rest - rest.median()
        spread = float(rest.abs().median())
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = np.where(rest.abs() < 1e-12, 0.0, NORMAL_MAD * rest / spread)
        far = (np.abs(scores) > z) & (rest.abs() > np.log(times))
        ratio = np.exp(rest[far])
        found.append(
            known.loc[far, ["id", "adapter", "base_model", "module", "projection"]].assign(
                value=known.loc[far, metric], expected=known.loc[far, metric] / ratio, times=ratio, z=scores[far],
                peers=len(known),
            )
        )  # fmt: skip
    columns = ["id", "adapter", "base_model", "module", "projection", "value", "expected", "times", "z", "peers"]
    if not found:
        return pd.DataFrame(columns=columns)
    whole = pd.concat(found, ignore_index=True)
    return whole.iloc[np.argsort(-np.abs(np.log(whole["times"])), kind="stable")].reset_index(drop=True)


def of_adapters(layers: pd.DataFrame, by: str = "id") -> pd.DataFrame:
    """The metrics ``OF_ADAPTERS`` of whole adapters, from the rows of their modules."""
    groups = layers.groupby(by, sort=False)
    return groups.agg(**{name: (row.of, row.how) for name, row in OF_ADAPTERS.items()})


def percentiles(layers: pd.DataFrame, reference: Any, base_model: str | None = None) -> pd.DataFrame:
    """Where an adapter stands among those of its base model.

    Parameters
    ----------
    layers : its ``layer_metrics``. reference : as for :func:`read_fleet`.
    base_model : by default all adapters of the reference are compared with.

    Returns
    -------
    DataFrame
        metric, label, value, percentile (the share of the reference below, ties by half, in percent), count, and the
        reference's quantiles low (5 %), median, high (95 %).

    Raises
    ------
    AdapterError
        No adapter of that base model in the reference.
    """
    import pandas as pd

    fleet = read_fleet(reference)
    theirs = fleet.layers
    if base_model is not None:
        theirs = theirs[theirs["base_model"] == base_model]
        if theirs.empty:
            raise AdapterError(f"the reference has no adapter of {base_model}; {_bases(fleet)}")
    mine = layers[layers["energy"] > 0].assign(id="")
    values, others = of_adapters(mine), of_adapters(theirs)
    rows = []
    for name, row in OF_ADAPTERS.items():
        if values.empty or not np.isfinite(value := float(values[name].iloc[0])):
            continue
        known = others[name].dropna().to_numpy()
        place = 100 * (np.mean(known < value) + np.mean(known == value) / 2)
        rows.append((name, row.label, value, place, len(known), *np.quantile(known, [0.05, 0.5, 0.95])))
    return pd.DataFrame(rows, columns=["metric", "label", "value", "percentile", "count", "low", "median", "high"])


def placed(found: pd.DataFrame, base_model: str | None) -> str:
    """A sentence about :func:`percentiles`."""
    if found.empty:
        return "ΔW = 0 in every module, which has no place among others."
    of = "of all base models" if base_model is None else f"with the base {base_model}"
    rows = found.to_dict("records")
    words = [f"{row['label']} {row['value']:.3g} at the {_ordinal(round(row['percentile']))}" for row in rows]
    return f"among the {found['count'].iloc[0]:,} adapters {of}, percentiles: {', '.join(words)}."


def serving_ranks(fleet: Any, share: float = 0.99, itemsize: int = 2) -> pd.DataFrame:
    """The smallest rank with which a server holds each adapter, and so the whole fleet: its ``max_lora_rank``.

    Parameters
    ----------
    share : of Σσ² that every module keeps: 0.9, 0.95 or 0.99; others need the results of ``sweep --spectra``.
    itemsize : bytes of a number in the server's memory.

    Returns
    -------
    DataFrame
        One row per adapter, the largest rank first: id, name, base_model, rank_now (the largest rank of ΔW that the
        method allows, what the server needs today), rank (the largest that a module needs for the share), module (which
        one), bytes_now and bytes (of A and B of all its modules, at these ranks).

    Raises
    ------
    ValueError
        A share that is not in (0, 1].
    AdapterError
        The sweep stored no spectra, and the share is another one; or ΔW = 0 in every adapter.
    """
    whole = read_fleet(fleet)
    layers = whole.layers
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected 0 < share ≤ 1")
    if layers.empty:
        raise AdapterError("no adapter has an update; expected one with ΔW ≠ 0")
    column = f"energy_rank_{100 * share:g}"
    if column not in layers:
        if whole.results is None:
            raise AdapterError(f"the share {share:g} needs the singular values, and the fleet is of metrics alone")
        spectra = whole.results.spectra(columns=["id", "module", "index", "singular_value"])
        needed = spectra.groupby(["id", "module"])["singular_value"].agg(lambda s: energy_rank(s.to_numpy(), share))
        layers = layers.join(needed.rename(column), on=["id", "module"])
    sizes = (layers["out_features"] + layers["in_features"]).astype(float) * itemsize
    rows = layers.assign(rank=layers[column], size=sizes)
    groups = rows.groupby("id", sort=False)
    found = groups.agg(rank_now=("rank_bound", "max"), rank=("rank", "max"), size=("size", "sum"))
    found["module"] = rows.loc[groups["rank"].idxmax(), "module"].to_numpy()
    for end in ("_now", ""):
        found[f"rank{end}"] = found[f"rank{end}"].astype(int)
        found[f"bytes{end}"] = (found["size"] * found[f"rank{end}"]).astype(int)
    names = whole.adapters.set_index("id")[["name", "base_model"]]
    found = found.join(names).sort_values(["rank", "rank_now"], ascending=False, kind="stable").reset_index()
    return found[["id", "name", "base_model", "rank_now", "rank", "module", "bytes_now", "bytes"]]


def rank_for_all(ranks: pd.DataFrame) -> dict[str, Any]:
    """The rank for the whole fleet, from :func:`serving_ranks`: a server gives every adapter the same.

    Returns
    -------
    dict
        rank_now, rank; saved (share of the memory of a slot, 1 − rank/rank_now); and within (rank → share of the
        adapters that need no more), for the powers of two and the rank itself.
    """
    now, rank = int(ranks["rank_now"].max()), int(ranks["rank"].max())
    steps = sorted({*(2**k for k in range(12) if 2**k < rank), rank})
    within = {step: float((ranks["rank"] <= step).mean()) for step in steps}
    return {"rank_now": now, "rank": rank, "saved": max(0.0, 1 - rank / now), "within": within}


def _joined(adapters: pd.DataFrame, layers: pd.DataFrame, results: Results | None = None) -> Fleet:
    layers = layers[layers["energy"] > 0]
    bases = adapters.set_index("id")["base_model"]
    layers = layers[layers["id"].isin(bases.index)]
    families = {module: family(module) for module in layers["module"].unique()}
    named = layers.assign(base_model=layers["id"].map(bases), family=layers["module"].map(families))
    return Fleet(adapters, named.reset_index(drop=True), results)


def _ordinal(number: int) -> str:
    """
    >>> [_ordinal(k) for k in (0, 1, 2, 3, 11, 12, 22, 50, 100)]
    ['0th', '1st', '2nd', '3rd', '11th', '12th', '22nd', '50th', '100th']
    """
    end = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{end}"


def _bases(fleet: Fleet) -> str:
    counts = fleet.bases()
    more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
    return "there are those of " + ", ".join(f"{name} ({count})" for name, count in counts.head(5).items()) + more


def _line(x: Array, y: Array) -> tuple[float, float, float]:
    """Slope, intercept and HC3's standard error of the slope; infinite where a point has all the leverage."""
    away = x - x.mean()
    square = float(away @ away)
    slope = float(away @ y) / square
    start = float(y.mean() - slope * x.mean())
    lever = 1 / len(x) + away**2 / square
    free = 1 - lever
    if free.min() < 1e-9:
        return slope, start, float("inf")
    rest = (y - start - slope * x) / free
    return slope, start, float(np.sqrt(np.sum((away * rest) ** 2))) / square
