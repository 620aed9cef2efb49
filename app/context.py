"""What every page is given: the adapters that are chosen in the sidebar, and the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from weakref import WeakKeyDictionary

import pandas as pd
import streamlit as st

from app import sources
from app.explain import progress
from app.safe_markdown import markdown
from app.sources import Source
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS, Tables, recounted
from bora_analysis.files.errors import BaseNeededError
from bora_analysis.threshold import Threshold


@dataclass(frozen=True)
class Problem:
    """An adapter that is chosen and cannot be read, and why."""

    source: Source
    words: str
    needs_base: bool = False


@dataclass(frozen=True)
class Context:
    """The chosen adapters, in the order of choice, their tables joined, and those that cannot be read.

    ``key`` is another for other tables, and the same for every threshold.
    """

    sources: tuple[Source, ...]
    spectra: pd.DataFrame
    layer_metrics: pd.DataFrame
    threshold: Threshold
    problems: tuple[Problem, ...] = ()
    key: int = 0


def current() -> Context:
    """The context that the entry file made for this run of the page."""
    return st.session_state["_context"]


def load(chosen: Sequence[Source], threshold: Threshold) -> Context:
    """The tables of the chosen adapters; one that cannot be read is a problem and the others go on."""
    store, tables, read, problems = sources.table_store(), [], [], []
    for source in chosen:
        slot, name = st.empty(), markdown(source.label)
        try:
            if not store.has(source):
                slot.progress(0.0, f"{name}: reading")
            tables.append(store.get(source, partial(progress, slot, f"{name}: ")))
        except AdapterError as error:
            problems.append(Problem(source, str(error), isinstance(error, BaseNeededError)))
        else:
            read.append(source)
        slot.empty()
    if not tables:
        nothing = pd.DataFrame(columns=list(SPECTRA_COLUMNS)), pd.DataFrame(columns=list(LAYER_COLUMNS))
        return Context((), *nothing, threshold, tuple(problems))
    together = sources.joined(tables)
    counted = recounted(together, threshold)
    return Context(tuple(read), together.spectra, counted, threshold, tuple(problems), _key(together))


#: Tables → their number. Not a time stamp: of a run that grows the tables of before are shown for a while.
_keys: WeakKeyDictionary[Tables, int] = WeakKeyDictionary()
_numbers = count(1)


def _key(tables: Tables) -> int:
    return _keys.setdefault(tables, next(_numbers))


def adapters_or_stop() -> Context:
    """The context of a page about the chosen adapters; where none is chosen the page says so and ends."""
    context = current()
    if context.layer_metrics.empty:
        words = "None of the chosen adapters can be read; the sidebar says why." if context.problems else ""
        st.info(words or "Choose one or more adapters in the sidebar.", icon=":material/arrow_back:")
        st.stop()
    return context
