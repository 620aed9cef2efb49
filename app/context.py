"""What every page is given: the adapters that are chosen in the sidebar, and the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import streamlit as st

from app import sources
from app.explain import progress
from app.safe_markdown import markdown
from app.sources import Source
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS, recounted
from bora_analysis.threshold import Threshold


@dataclass(frozen=True)
class Context:
    """The chosen adapters, in the order of choice, and their tables joined."""

    sources: tuple[Source, ...]
    spectra: pd.DataFrame
    layer_metrics: pd.DataFrame
    threshold: Threshold


def current() -> Context:
    """The context that the entry file made for this run of the page."""
    return st.session_state["_context"]


def load(chosen: Sequence[Source], threshold: Threshold) -> Context:
    """The tables of the chosen adapters; one that cannot be read shows its line and the others go on."""
    store, tables, read = sources.table_store(), [], []
    for source in chosen:
        slot, name = st.empty(), markdown(source.label)
        try:
            if not store.has(source):
                slot.progress(0.0, f"{name}: reading")
            tables.append(store.get(source, partial(progress, slot, f"{name}: ")))
        except AdapterError as error:
            slot.error(markdown(str(error)), icon=":material/error:")
            continue
        slot.empty()
        read.append(source)
    if not tables:
        nothing = pd.DataFrame(columns=list(SPECTRA_COLUMNS)), pd.DataFrame(columns=list(LAYER_COLUMNS))
        return Context((), *nothing, threshold)
    together = sources.joined(tables)
    return Context(tuple(read), together.spectra, recounted(together, threshold), threshold)


def adapters_or_stop() -> Context:
    """The context of a page about the chosen adapters; where none is chosen the page says so and ends."""
    context = current()
    if context.layer_metrics.empty:
        st.info("Choose one or more adapters in the sidebar.", icon=":material/arrow_back:")
        st.stop()
    return context
