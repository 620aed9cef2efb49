"""The files that a page offers of what it shows: its table, and the figure for a paper."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from bora_analysis.cli.text_tables import text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIME = {"csv": "text/csv", "pdf": "application/pdf", "svg": "image/svg+xml"}

# matplotlib's settings belong to the process, and a file is made in a thread of the visitor who asked for it.
_drawing = threading.Lock()


def offer(frame: pd.DataFrame, stem: str, figure: Callable[[], Figure] | None = None) -> None:
    """Buttons "CSV" and, where there is a figure, "PDF" and "SVG". A file is made only when it is asked for.

    Parameters
    ----------
    frame : the table behind what is shown; all its rows go into the CSV, unrounded.
    stem : of the file names, and of the widgets' keys: once on a page, and never taken from an adapter's name.
    figure : draws the same for a paper, e.g. ``lambda: figures.figure4(spectra, threshold=threshold)``.
    """
    with st.container(horizontal=True):
        _button("CSV", stem, lambda: text(frame, "csv").encode(), "The table behind this, all rows, unrounded")
        if figure is not None:
            _button("PDF", stem, lambda: drawn(figure, "pdf"), "The figure as in a paper")
            _button("SVG", stem, lambda: drawn(figure, "svg"), "The figure as in a paper, to edit")


def drawn(figure: Callable[[], Figure], form: str) -> bytes:
    """The bytes of a figure as ``"pdf"`` or ``"svg"``, the same each time."""
    from bora_analysis.figures import save

    with _drawing, TemporaryDirectory() as folder:
        return save(figure(), Path(folder) / f"figure.{form}").read_bytes()


def _button(label: str, stem: str, data: Callable[[], bytes], note: str) -> None:
    form = label.lower()
    st.download_button(
        label,
        data,
        f"{stem}.{form}",
        _MIME[form],
        key=f"download:{stem}:{form}",
        on_click="ignore",
        help=note,
        icon=":material/download:",
        type="tertiary",
    )
