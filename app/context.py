"""What every page is given: the adapters that are chosen in the sidebar, and the threshold."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import streamlit as st
from sources import Source


@dataclass(frozen=True)
class Context:
    """The chosen adapters, in the order of choice, and their tables joined."""

    sources: tuple[Source, ...]
    spectra: pd.DataFrame
    layer_metrics: pd.DataFrame
    threshold: float


def current() -> Context:
    """The context that the entry file made for this run of the page."""
    return st.session_state["_context"]


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """Each adapter's last step only."""
    last = frame.groupby("adapter")["step"].transform("max")
    return frame[(frame["step"] == last) | (frame["step"].isna() & last.isna())]
