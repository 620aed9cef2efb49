"""Which factor limits the rank: the ranks of B', Σ' and A' (BoRA, arXiv 2508.06953, eq. 6) as a tidy table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

from ..adapters.given import adapters_of
from ..adapters.reading import Options
from ..updates.contract import Blocked
from .progress import each_module
from .spectrum import factor_ranks
from .tables import IDENTITY, identity, typed

if TYPE_CHECKING:
    import pandas as pd

FACTOR_COLUMNS = (*IDENTITY, "rank_B", "rank_sigma", "rank_A", "rank_bound", "rank_upper", "rank_lower", "limiting")


def factor_table(
    adapters: Any, *, on_module: Callable[[], object] | None = None, **reading: Unpack[Options]
) -> pd.DataFrame:
    """One row per module and step, for modules with block factors (LoRA, MELoRA, BoRA); others have no row.

    ``rank_B``, ``rank_sigma``, ``rank_A`` are numerical ranks, see :func:`bora_analysis.factor_ranks`; ``rank_bound``
    is Proposition 1's min(m, n, br), ``rank_upper`` the least of the three, ``rank_lower`` Sylvester's floor.
    ``limiting`` names the factors whose rank is that least one.

    Parameters
    ----------
    adapters, on_module, reading : as for :func:`bora_analysis.analyse`.

    Returns
    -------
    DataFrame

    Raises
    ------
    AdapterError
        A module that cannot be used, with file and tensor.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import Adapter, factor_table, lora
    >>> adapter = Adapter.from_updates("demo", {"layers.0.q_proj": lora(np.eye(4)[:, :2], np.eye(2, 4))})
    >>> factor_table(adapter)[["rank_B", "rank_sigma", "rank_A", "limiting"]].values.tolist()
    [[2, 2, 2, "B', Σ', A'"]]
    """
    import pandas as pd

    rows = []
    for adapter, module in each_module(adapters_of(adapters, **reading), on_module):
        update = adapter[module]
        if isinstance(update, Blocked):
            ranks = factor_ranks(update)
            numbers = ranks.B, ranks.sigma, ranks.A, ranks.bound, ranks.upper, ranks.lower
            rows.append((*identity(adapter, module, update.facts), *numbers, ", ".join(ranks.limiting)))
    return typed(pd.DataFrame(rows, columns=list(FACTOR_COLUMNS))).astype({"limiting": "str"})
