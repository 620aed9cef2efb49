"""The files that a page offers of what it shows: its table, and the figure for a paper."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import streamlit as st

from bora_analysis.cli.text_tables import text

_MIME = {"csv": "text/csv", "pdf": "application/pdf", "svg": "image/svg+xml", "png": "image/png"}

# matplotlib's settings belong to the process, and a file is made in a thread of the visitor who asked for it.
drawing = threading.Lock()


def offer(
    frame: pd.DataFrame, stem: str, figure: str | Callable[..., Any] | None = None, source: Any = None, **options: Any
) -> None:
    """Buttons "CSV" and, where there is a figure, "PDF", "SVG" and "PNG". A file is made only when it is asked for.

    Parameters
    ----------
    frame : the table behind what is shown; all its rows go into the CSV, unrounded.
    stem : of the file names, and of the widgets' keys: once on a page, and never taken from an adapter's name.
    figure, source, options : as for :func:`bora_analysis.figures.draw`, which draws the same for a paper, or a function
        that does; ``source`` is by default the frame.
    """

    def file(form: str) -> bytes:
        from bora_analysis.figures import draw, save

        with drawing, TemporaryDirectory() as folder:
            given = frame if source is None else source
            drawn = figure(given, **options) if callable(figure) else draw(str(figure), given, **options)
            return save(drawn, Path(folder) / f"figure.{form}").read_bytes()

    with st.container(horizontal=True):
        _button("CSV", stem, lambda: text(frame, "csv").encode(), "The table behind this, all rows, unrounded")
        if figure is not None:
            _button("PDF", stem, lambda: file("pdf"), "The figure as in a paper")
            _button("SVG", stem, lambda: file("svg"), "The figure as in a paper, to edit")
            _button("PNG", stem, lambda: file("png"), "The figure as in a paper, for slides")


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
