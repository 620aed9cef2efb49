"""The frame of a page: its question at the top, formulas and references at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import streamlit as st


def question(title: str, sentence: str) -> None:
    """The head of a page: its name and the one question that it answers."""
    st.title(title, anchor=False)
    st.markdown(sentence)


@contextmanager
def folded(label: str, key: str, icon: str = ":material/table:") -> Iterator[bool]:
    """A box that is closed at first; ``if`` it is open, its content is worth computing and sending."""
    with st.expander(label, icon=icon, key=key, on_change="rerun") as box:
        yield bool(box.open)


def explanation(parts: Sequence[tuple[str, str]], references: Sequence[str]) -> None:
    """The end of a page. A part is a text in Markdown and a formula in LaTeX, either of which may be empty."""
    with st.expander("What am I looking at?", icon=":material/help:"):
        for words, formula in parts:
            if words:
                st.markdown(words)
            if formula:
                st.latex(formula)
        st.caption("References: " + "; ".join(references) + ".")
