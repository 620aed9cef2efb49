"""What a share of Σσ² costs and keeps, module by module, from the singular values alone.

:func:`bora_analysis.convert` with ``energy`` cuts so. Its table has the same columns, with the rounding of the file
that it writes; this one needs no factors and takes milliseconds, so that the share can be moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..linalg import norm
from ..metrics import energy_rank

if TYPE_CHECKING:
    import pandas as pd

#: Columns of :func:`trimmed`, which are those of ``Conversion.table`` but for the cap.
COLUMNS = (
    "module", "layer", "projection", "out_features", "in_features", "method", "rank_before", "rank", "energy_kept",
    "error_spectral", "error_frobenius", "error_relative", "parameters_before", "parameters",
)  # fmt: skip


def trimmed(layer_metrics: Any, spectra: Any, energy: float) -> pd.DataFrame:
    """One row per module: the rank that keeps the share, what is lost, and the parameters of a LoRA of that rank.

    Parameters
    ----------
    layer_metrics, spectra : the tables of one adapter at one step.
    energy : share of Σσ², above 0 and up to 1. With 1 every σ above the rounding of the computation is kept.

    Returns
    -------
    DataFrame
        rank_before is the numerical rank, rank at most that; a module with ΔW = 0 has rank 0, and its LoRA rank 1.
        error_spectral and error_frobenius are ‖ΔW − ΔW_k‖₂ = σ_{k+1} and (Σ_{i>k} σ_i²)^½ (Eckart & Young 1936).

    Raises
    ------
    ValueError
        A share out of range.

    Examples
    --------
    >>> from bora_analysis import analyse, synthetic_adapter
    >>> adapter = synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=16, kind="decay", decay=2.0)
    >>> tables = analyse(adapter)
    >>> found = trimmed(tables.layer_metrics, tables.spectra, 0.99)
    >>> found[["rank_before", "rank", "parameters_before", "parameters"]].values.tolist()
    [[16, 3, 1536, 288]]
    """
    import pandas as pd

    if not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; expected a share of Σσ² above 0 and up to 1")
    spectrum = {module: part.to_numpy(float) for module, part in spectra.groupby("module")["singular_value"]}
    rows = []
    for row in layer_metrics.to_dict("records"):
        values, full = spectrum.get(row["module"], np.zeros(0)), int(row["numerical_rank"])
        k = min(full, energy_rank(values, energy))
        total, lost = norm(values), norm(values[k:])
        relative = lost / total if total else 0.0
        size = row["out_features"] + row["in_features"]
        rows.append((
            *(row[name] for name in COLUMNS[:6]), full, k, 1 - relative**2, float(values[k:].max(initial=0.0)), lost,
            relative, row["parameters"], size * max(1, k),
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"layer": "Int64"})
