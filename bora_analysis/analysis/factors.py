"""Which factor limits the rank: the ranks of B', Σ' and A' (BoRA, arXiv 2508.06953, eq. 6) as a tidy table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from ..adapters import Adapter
from ..adapters.given import adapters_of
from ..adapters.reading import Options
from ..linalg.threads import in_order
from ..updates.contract import Blocked
from .columns import typed
from .progress import progress
from .spectrum import factor_ranks
from .tables import IDENTITY, identity

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

    rows: list[tuple[Any, ...]] = []
    given = adapters_of(adapters, **reading)
    with progress(sum(map(len, given)), on_module) as step:
        for adapter in given:
            for _, row in in_order(partial(_row, adapter), adapter):
                rows += row
                step()
    return typed(pd.DataFrame(rows, columns=list(FACTOR_COLUMNS))).astype({"limiting": "str"})


def _row(adapter: Adapter, module: str) -> list[tuple[Any, ...]]:
    update = adapter[module]
    if not isinstance(update, Blocked):
        return []
    ranks = factor_ranks(update)
    numbers = ranks.B, ranks.sigma, ranks.A, ranks.bound, ranks.upper, ranks.lower
    return [(*identity(adapter, module, update.facts), *numbers, ", ".join(ranks.limiting))]
