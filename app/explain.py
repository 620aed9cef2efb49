"""The frame of a page: its question at the top, boxes that fold, and what its charts mean at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from app.columns import show


def question(title: str, sentence: str) -> None:
    """The head of a page: its name and the one question that it answers."""
    st.title(title, anchor=False)
    st.markdown(sentence)


@contextmanager
def folded(label: str, key: str) -> Iterator[bool]:
    """A box that is closed at first; ``if`` it is open, its content is worth computing and sending."""
    with st.expander(label, icon=":material/table:", key=key, on_change="rerun") as box:
        yield bool(box.open)


def table(frame: pd.DataFrame, label: str = "Table") -> None:
    """A frame in a box that is closed at first."""
    with st.expander(label, icon=":material/table:"):
        show(frame)


def asked_for(stem: str, key: Any, label: str, icon: str, words: str) -> bool:
    """Whether something has been asked for by its button, which is there until it is, and again for another key."""
    state = f"_asked:{stem}"
    if st.session_state.get(state) == key:
        return True
    # By a callback: a run that began by the click would not show the button as clicked when it is run again.
    st.button(label, key=f"ask:{stem}", on_click=lambda: st.session_state.update({state: key}), icon=icon, help=words)
    return False


def take_back(stem: str) -> None:
    """Offer the button of :func:`asked_for` again."""
    st.session_state.pop(f"_asked:{stem}", None)


@st.fragment
def explanation(page: str) -> None:
    """The end of a page: its text in ``explanations``, in Markdown with formulas in LaTeX and the references.

    It is sent when the box is opened: the browser would load a library of 265 kB for its formulas before the charts.
    """
    with st.expander("What am I looking at?", icon=":material/help:", key="explanation", on_change="rerun") as box:
        if box.open:
            st.markdown((Path(__file__).parent / "explanations" / f"{page}.md").read_text(encoding="utf-8"))
