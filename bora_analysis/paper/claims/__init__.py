"""The checkable claims of the BoRA paper (arXiv 2508.06953), each judged by a computation made on the spot.

No verdict is stored. The function of each claim computes numbers and derives the verdict from them: "holds", "holds
under a condition" (true in some of the cases that the claim covers; the evidence names them) or "erratum"; of claims
on trained adapters, judged by the bundled ones, "fails" (in half of the cases or more) and "cannot be told". Random
factors come from fixed seeds. Gains in accuracy are percentage points of the Avg columns, as in the paper.
"""

from __future__ import annotations

import pandas as pd

from ...linalg.threads import one_blas_thread

# Each adds its claims.
from . import accuracy, common, construction, costs, expressiveness, rank, sigma, trained  # noqa: F401

CLAIMS = sorted(common.CLAIMS, key=lambda claim: int(claim.id[1:]))


def claims() -> pd.DataFrame:
    """Judge every claim.

    Returns
    -------
    DataFrame, one row per claim: ``id``, ``where``, ``claim``, ``verdict``, ``evidence``.

    Raises
    ------
    FileNotFoundError
        The bundled tables of the paper were not installed.

    Examples
    --------
    >>> from bora_analysis.paper.claims import CLAIMS
    >>> [claim.judge().verdict for claim in CLAIMS if claim.id in ("C10", "C11", "C12")]  # three of them
    ['erratum', 'holds', 'holds under a condition']
    """
    with one_blas_thread():
        rows = [(claim.id, claim.where, claim.text, *claim.judge()) for claim in CLAIMS]
    return pd.DataFrame(rows, columns=["id", "where", "claim", "verdict", "evidence"])
