"""Controls whose state stands in the URL, so that a link shows a page as it is now.

Streamlit forgets a choice, of another adapter or table, that is not among the options any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from bora_analysis.style import projections_in_order

#: What stands for every projection.
ALL = "all"


def linked(widget: Callable[..., Any], label: str, *values: Any, key: str, **more: Any) -> Any:
    """A widget with its state in the URL."""
    return widget(label, *values, key=key, bind="query-params", **more)


def choose(label: str, options: Sequence[Any], key: str, place: Any = st, **more: Any) -> Any:
    """A select box.

    What is no longer offered is forgotten here, in words that reach the browser: where Streamlit forgets it, the box
    goes on showing it.
    """
    if key in st.session_state and st.session_state[key] not in options and len(options):
        st.session_state[key] = options[more.get("index", 0)]
    return linked(place.selectbox, label, options, key=key, **more)


def segments(label: str, options: Sequence[Any], key: str, place: Any = st, default: Any = None, **more: Any) -> Any:
    """A row of buttons of which one is always chosen, at first the default or else the first of them."""
    first = options[0] if default is None else default
    return linked(place.segmented_control, label, options, key=key, default=first, required=True, **more)


def null_toggle() -> bool:
    """Whether random factors are shown beside what was trained; one switch for all pages."""
    return bool(linked(st.toggle, "Null: random factors of the same sizes and ‖ΔW‖_F", key="null"))


pills = partial(linked, st.pills)


def projections(frame: pd.DataFrame) -> list[str]:
    """The projections to choose from, "all" before them if there are several."""
    found = projections_in_order(frame["projection"])
    return [*([ALL] if len(found) > 1 else []), *found]


def of_projection(frame: Any, projection: str | None) -> Any:
    """The rows of a projection; all rows for "all" or None."""
    return frame if projection in (None, ALL) else frame[frame["projection"] == projection]
