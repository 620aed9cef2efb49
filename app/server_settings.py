"""How the process of this server is set, once: its pages run in threads, beside browsers that want a core too."""

from __future__ import annotations

import gc
from contextlib import ExitStack
from functools import cache

from bora_analysis.linalg.threads import one_blas_thread

#: What holds for the whole life of the server.
_for_good = ExitStack()


@cache
def settle(page: str = "") -> None:
    """Set it, when what a page needs is loaded: at the start, and after the first run of each page.

    One BLAS thread for good: where the number of threads goes up and down, a thin QR took 60 to 100 ms and not 1 as
    soon as others used the cores. What is loaded is not looked through for garbage any more: Streamlit collects after
    each run of a page, which took 70 ms, and 12 to 30 where only what is there at the start was left out.
    """
    _one_thread()
    gc.collect()
    gc.freeze()


@cache
def _one_thread() -> None:
    """As an analysis does it, so that none in this server looks through the loaded libraries again, 5 ms each time."""
    import scipy.linalg  # noqa: F401  its BLAS must be loaded to be limited

    _for_good.enter_context(one_blas_thread())
