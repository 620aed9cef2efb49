"""What every page is given: the adapters that are chosen in the sidebar, and the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from weakref import WeakKeyDictionary

import pandas as pd
import streamlit as st

from app import sources
from app.jobs import Told, aside
from app.safe_markdown import markdown
from app.sources import Source
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS, Tables, recounted
from bora_analysis.files.errors import BaseNeededError
from bora_analysis.threshold import Threshold

#: Seconds that a page waits for an analysis before it goes on without it.
PATIENCE = 2.0


@dataclass(frozen=True)
class Problem:
    """An adapter that is chosen and cannot be read, and why."""

    source: Source
    words: str
    needs_base: bool = False


@dataclass(frozen=True)
class Context:
    """The chosen adapters, in the order of choice, their tables joined, and those that cannot be read.

    ``waiting`` are those whose analysis goes on, or was stopped. ``key`` is another for other tables, and the same for
    every threshold.
    """

    sources: tuple[Source, ...]
    spectra: pd.DataFrame
    layer_metrics: pd.DataFrame
    threshold: Threshold
    problems: tuple[Problem, ...] = ()
    waiting: tuple[Source, ...] = ()
    key: int = 0


def current() -> Context:
    """The context that the entry file made for this run of the page."""
    return st.session_state["_context"]


def load(chosen: Sequence[Source], threshold: Threshold, job: str = "analysis") -> Context:
    """The tables of the chosen adapters; one that cannot be read is a problem and the others go on.

    What is not analysed within :data:`PATIENCE` goes on beside the page, where it can be stopped.

    Parameters
    ----------
    job : the name of that, once in a run of a page.
    """
    found = _analysed(chosen, job)
    tables, read, problems, waiting = [], [], [], []
    for source in chosen:
        each = found.get(source)
        if each is None:
            waiting.append(source)
        elif isinstance(each, AdapterError):
            problems.append(Problem(source, str(each), isinstance(each, BaseNeededError)))
        else:
            tables.append(each)
            read.append(source)
    beside = tuple(problems), tuple(waiting)
    if not tables:
        nothing = pd.DataFrame(columns=list(SPECTRA_COLUMNS)), pd.DataFrame(columns=list(LAYER_COLUMNS))
        return Context((), *nothing, threshold, *beside)
    together = sources.joined(tables)
    return Context(tuple(read), together.spectra, recounted(together, threshold), threshold, *beside, _key(together))


def _analysed(chosen: Sequence[Source], job: str) -> dict[Source, Tables | AdapterError]:
    """What is known of the sources by now: those that are missing are being analysed, or were stopped."""
    store = sources.table_store()
    place = st.container()  # in every run: where elements move by one the browser draws all charts anew
    if all(map(store.has, chosen)):
        st.session_state.get("_jobs", {}).pop(job, None)  # with what it gave
        return {source: _got(source) for source in chosen}
    words = ["reading"]

    def work(told: Told) -> dict[Source, Tables | AdapterError]:
        done = {}
        for number, source in enumerate(chosen, 1):
            several = f" ({number} of {len(chosen)} adapters)" if len(chosen) > 1 else ""
            words[0] = f"{markdown(source.label)}{several}"
            told(0, 0)
            done[source] = _got(source, told)
        return done

    # By all that is chosen: while it goes on, some of them are there already.
    key = tuple(map(sources.table_key, chosen))
    with place:
        found = aside(job, key, work, lambda: words[0], patience=PATIENCE)
    if found is None:
        there = {source: _got(source) if store.has(source) else store.before(source) for source in chosen}
        found = {source: each for source, each in there.items() if each is not None}
    return found


def _got(source: Source, on_module: Told | None = None) -> Tables | AdapterError:
    try:
        return sources.table_store().get(source, on_module)
    except AdapterError as error:
        return error


#: Tables → their number. Not a time stamp: of a run that grows the tables of before are shown for a while.
_keys: WeakKeyDictionary[Tables, int] = WeakKeyDictionary()
_numbers = count(1)


def _key(tables: Tables) -> int:
    return _keys.setdefault(tables, next(_numbers))


def adapters_or_stop() -> Context:
    """The context of a page about the chosen adapters; where none is chosen the page says so and ends."""
    context = current()
    if context.layer_metrics.empty:
        if context.waiting:  # the top of the page says so
            st.stop()
        words = "None of the chosen adapters can be read; the sidebar says why." if context.problems else ""
        st.info(words or "Choose one or more adapters in the sidebar.", icon=":material/arrow_back:")
        st.stop()
    return context
