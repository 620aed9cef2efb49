"""Every adapter of a sweep beside every other: cosines, φ, duplicates, clusters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..adapters import Adapter, AdapterError
from ..analysis.subspaces import bases
from ..linalg import Array
from .numbers import Fleet, read_fleet
from .reopened import named_in, reopened
from .results import SKETCHES
from .sketches import BETA, DIRECTIONS, inner, projectors, unbiased

if TYPE_CHECKING:
    import pandas as pd

#: Sketches are equal where they differ by less than this, relative to their norm.
EQUAL = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """The comparison of N adapters of one base model.

    Attributes
    ----------
    adapters : one row per adapter: id, name, content_hash.
    cosine : (N, N) tr(ΔW_aᵀ ΔW_b) / (‖ΔW_a‖ ‖ΔW_b‖) over all modules, from the sketches; a module that one of the two
        lacks counts as zero there.
    deviation : (N, N) the bound on the standard deviation of the inner product of the sketches, relative to the norms:
        β √(Σ w_a w_b) over the modules, w their shares of Σσ².
    phi : side → (N, N) φ of the top directions, the mean over the modules that both have; missing without one. None
        where it was not asked for.
    norms : (N,) ‖ΔW‖_F of the sketches.
    base_model : of all of them.

    Examples
    --------
    >>> from bora_analysis.fleet.pairs import Pairs
    >>> Pairs.__doc__.splitlines()[0]
    'The comparison of N adapters of one base model.'
    """

    adapters: pd.DataFrame
    cosine: Array
    deviation: Array
    phi: dict[str, Array] | None
    norms: Array
    base_model: str

    def __repr__(self) -> str:
        return f"<Pairs of {len(self.adapters)} adapters of {self.base_model}>"

    def table(self, top: int | None = None) -> pd.DataFrame:
        """One row per pair, the most similar first.

        a, b (ids), name_a, name_b, cosine, deviation, and phi_left, phi_right where they were asked for.
        """
        import pandas as pd

        i, j = np.triu_indices(len(self.adapters), 1)
        order = np.argsort(-np.abs(self.cosine[i, j]), kind="stable")[:top]
        i, j = i[order], j[order]
        ids, names = self.adapters["id"].to_numpy(), self.adapters["name"].to_numpy()
        columns: dict[str, Any] = {"a": ids[i], "b": ids[j], "name_a": names[i], "name_b": names[j]}
        columns |= {"cosine": self.cosine[i, j], "deviation": self.deviation[i, j]}
        columns |= {f"phi_{side}": own[i, j] for side, own in (self.phi or {}).items()}
        return pd.DataFrame(columns)

    def duplicates(self) -> pd.DataFrame:
        """Pairs with one ΔW but for a factor: a, b, name_a, name_b, factor (‖ΔW_b‖ / ‖ΔW_a‖, signed), same_file."""
        import pandas as pd

        near = np.argwhere(np.triu(np.abs(self.cosine) > 1 - EQUAL, 1))
        rows = self.adapters.to_dict("records")
        found = []
        for i, j in near.tolist():
            a, b = rows[i], rows[j]
            factor = float(np.sign(self.cosine[i, j]) * self.norms[j] / self.norms[i])
            same = a["content_hash"] is not None and a["content_hash"] == b["content_hash"]
            found.append((a["id"], b["id"], a["name"], b["name"], factor, same))
        return pd.DataFrame(found, columns=["a", "b", "name_a", "name_b", "factor", "same_file"])

    def linkage(self) -> Array:
        """SciPy's linkage of the distances 1 − cosine, by average; (N − 1, 4)."""
        from scipy.cluster.hierarchy import linkage
        from scipy.spatial.distance import squareform

        distance = np.clip(1 - self.cosine, 0, 2)
        np.fill_diagonal(distance, 0)
        return linkage(squareform((distance + distance.T) / 2, checks=False), "average")

    def clusters(self, cosine: float = 0.5) -> pd.DataFrame:
        """Groups whose mean cosine is above the limit: id, name, cluster (1 is the largest), size."""
        from scipy.cluster.hierarchy import fcluster

        if len(self.adapters) < 2:
            labels = np.ones(len(self.adapters), dtype=int)
        else:
            labels = fcluster(self.linkage(), 1 - cosine, "distance")
        sizes = np.bincount(labels)
        order = {label: k for k, label in enumerate(np.argsort(-sizes, kind="stable").tolist(), 1)}
        frame = self.adapters[["id", "name"]].assign(
            cluster=[order[label] for label in labels], size=[int(sizes[label]) for label in labels]
        )
        return frame.sort_values(["cluster", "name"], kind="stable").reset_index(drop=True)


def compare_all(place: Any, *, base_model: str | None = None, phi: bool = False) -> Pairs:
    """Compare all adapters of a sweep that have one base model.

    Parameters
    ----------
    place : as for :func:`bora_analysis.fleet.numbers.read_fleet`; the sweep must have stored
        :func:`bora_analysis.fleet.sketches.sketch`.
    base_model : which; by default the one with the most adapters.
    phi : compare the top directions too, which takes twice as long again.

    Raises
    ------
    AdapterError
        No sketches, others than these, no adapter of that base model.
    """
    fleet = read_fleet(place)
    base_model = str(fleet.bases().index[0]) if base_model is None else base_model
    fleet = fleet.of_base(base_model)
    if fleet.results is None:
        raise AdapterError("the fleet is of metrics alone; expected the results of a sweep with --sketch")
    adapters = fleet.adapters[["id", "name", "content_hash"]]
    count = len(adapters)
    cosine, shared = np.zeros((count, count)), np.zeros((count, count))
    totals = {side: np.zeros((count, count)) for side in (("left", "right") if phi else ())}
    seen = np.zeros((count, count)) if phi else None
    modules, norms = _modules(fleet, ["sketch", *totals])
    energies = np.zeros(count)
    for own in modules.values():
        energies[own.rows] += np.einsum("ij,ij->i", own.columns["sketch"], own.columns["sketch"], dtype=np.float64)
    for own in modules.values():
        at = np.ix_(own.rows, own.rows)
        S = own.columns["sketch"]
        cosine[at] += S @ S.T
        weights = np.einsum("ij,ij->i", S, S, dtype=np.float64) / np.maximum(energies[own.rows], np.finfo(float).tiny)
        shared[at] += np.outer(weights, weights)
        for side, total in totals.items():
            rows, ranks = projectors(own.columns[side])
            least, most = np.minimum.outer(ranks, ranks), np.maximum.outer(ranks, ranks)
            there = least > 0
            values = unbiased((rows @ rows.T) / np.maximum(least, 1), most)
            total[at] += np.where(there, values, 0)
            if seen is not None and side == "left":
                seen[at] += there
    units = np.sqrt(energies)  # 1, but for rounding; 0 where ΔW = 0
    scale = np.maximum(np.outer(units, units), np.finfo(float).tiny)
    cosine = np.clip(cosine / scale, -1, 1)
    found = None
    if seen is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {side: total / seen for side, total in totals.items()}
    return Pairs(adapters, cosine, BETA * np.sqrt(shared), found, norms, base_model)


def exact_pairs(
    pairs: Iterable[Sequence[Any]], *, k: int = DIRECTIONS, fleet: Any = None, **reading: Any
) -> pd.DataFrame:
    """The exact cosine and φ(k, k) of some pairs, whose adapters are read again.

    Parameters
    ----------
    pairs : of ids of the sweep, or of what :func:`bora_analysis.read_adapter` takes.
    k : directions; less where a module's numerical rank is less.
    fleet : as for :func:`bora_analysis.fleet.numbers.read_fleet`; adapters may then be named by their names too, and
        are read with the options of the sweep.
    reading : options of reading.

    Returns
    -------
    DataFrame
        a, b, name_a, name_b, cosine (a module that one lacks counts as zero), phi_left and phi_right (the mean over the
        modules that both have; missing without one).

    Raises
    ------
    AdapterError
        An adapter that is not there any more, or a name that several have.
    """
    import pandas as pd

    whole = None if fleet is None else read_fleet(fleet)
    rows = []
    for pair in pairs:
        given = [named_in(whole, each) if whole is not None and isinstance(each, str) else each for each in pair]
        with reopened(given, whole, **reading) as (one, two):
            sums, phis = np.zeros(3), []
            for module in dict.fromkeys([*one, *two]):
                x, y = one.get(module), two.get(module)
                sums += [_product(x, x), _product(y, y), _product(x, y)]
                if x is not None and y is not None:
                    found, other = bases(x), bases(y)
                    both = [(found[side][:, :k], other[side][:, :k]) for side in ("left", "right")]
                    if min(U.shape[1] for each in both for U in each):
                        phis.append([np.sum((U.T @ V) ** 2) / min(U.shape[1], V.shape[1]) for U, V in both])
        left, right = np.mean(phis, axis=0) if phis else (np.nan, np.nan)
        cosine = sums[2] / np.sqrt(sums[0]) / np.sqrt(sums[1]) if sums[0] and sums[1] else 0.0
        ids = [each.name if isinstance(each, Adapter) else str(each) for each in given]
        rows.append((*ids, one.name, two.name, cosine, left, right))
    columns = ["a", "b", "name_a", "name_b", "cosine", "phi_left", "phi_right"]
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class _Module:
    """One module of all adapters that have it: their places in the fleet, and their arrays, (N, size) float32."""

    rows: Array
    columns: dict[str, Array]


def _modules(fleet: Fleet, names: Sequence[str]) -> tuple[dict[str, _Module], Array]:
    """Module → its sketches over the adapters, of each relative to the norm of all of its own; and these norms.

    So no ΔW is too large or too small for float32.
    """
    assert fleet.results is not None
    places = {name: k for k, name in enumerate(fleet.adapters["id"])}
    norms = np.zeros(len(places))
    rows: dict[str, list[int]] = defaultdict(list)
    arrays: dict[str, dict[str, list[Array]]] = defaultdict(lambda: defaultdict(list))
    for name, part in zip(fleet.adapters["id"], fleet.adapters["part"], strict=True):
        table = fleet.results.storage.read_table(f"{SKETCHES}/{part}")
        missing = [column for column in names if column not in table.column_names]
        if missing:
            raise AdapterError(
                f"{fleet.results.storage}/{SKETCHES}/{part}: has no column {missing[0]}; sweep the adapters with "
                "--sketch bora_analysis.fleet.sketches:sketch"
            )
        columns = {}
        for column in names:
            flat = np.asarray(table[column].combine_chunks().flatten(), dtype=np.float64)
            if column == "sketch" and (top := float(np.abs(flat).max(initial=0.0))):
                norms[places[name]] = top * np.linalg.norm(flat / top)
                flat = flat / norms[places[name]]
            columns[column] = flat.astype(np.float32).reshape(len(table), -1)
        shapes = zip(*(table[column].to_pylist() for column in ("module", "out_features", "in_features")), strict=True)
        for k, (module, m, n) in enumerate(shapes):
            key = f"{module} {m}×{n}"
            rows[key].append(places[name])
            for column, values in columns.items():
                arrays[key][column].append(values[k])
    found = {
        key: _Module(np.array(own), {column: np.stack(values) for column, values in arrays[key].items()})
        for key, own in rows.items()
    }
    return found, norms


def _product(a: Any, b: Any) -> float:
    return 0.0 if a is None or b is None else inner(a, b)
