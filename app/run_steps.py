"""The steps of a run, one after the other: a slider that plays, the film of it, and a look at what has come since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app import sources
from app.controls import linked
from app.downloads import drawing
from app.explain import asked_for
from app.jobs import Told, aside
from app.sources import Source
from bora_analysis.adapters import AdapterError

#: Seconds that a step stays while the steps are played, and between two looks at a run that is followed.
FRAME, LOOK = 0.6, 5.0
_PLAYS = "_plays"


def played(steps: Sequence[int], show: Callable[[int], None]) -> None:
    """A slider of steps, its button that plays them, and below it what ``show`` makes of the step.

    Only this part of the page runs again when the step moves.
    """
    plays = bool(st.session_state.get(_PLAYS)) and len(steps) > 1

    def part() -> None:
        if len(steps) == 1:
            show(steps[0])
            return
        if (wanted := st.session_state.pop("_step_wanted", None)) in steps:
            st.session_state["step"] = wanted
        elif plays:
            _advance(steps)
        with st.container(horizontal=True, vertical_alignment="bottom"):
            label, icon = ("Pause", ":material/pause:") if plays else ("Play", ":material/play_arrow:")
            if st.button(label, key="play", icon=icon):
                st.session_state[_PLAYS] = not plays
                if not plays and st.session_state.get("step") == steps[-1]:  # from the beginning
                    st.session_state["_step_wanted"] = steps[0]
                st.rerun()
            step = linked(st.select_slider, "Step", steps, value=steps[-1], key="step")
        show(int(step))

    st.fragment(part, run_every=FRAME if plays else None)()


def _advance(steps: Sequence[int]) -> None:
    """The next step, by the state of the slider, which is made after it; at the last one it is no longer played."""
    here = st.session_state.get("step", steps[0])
    later = [step for step in steps if step > here]
    if not later:
        st.session_state[_PLAYS] = False
        st.rerun()
    st.session_state["step"] = later[0]


def offer_film(curves: pd.DataFrame, key: Any, threshold: float | None, label: str) -> None:
    """A button that makes a film of the steps, as a GIF, and then one that downloads it."""
    if not asked_for("film", key, "Make a film", ":material/movie:", "An animated GIF, a frame for each step"):
        return

    def work(told: Told) -> bytes:
        from bora_analysis.figures.film import film

        with drawing:
            return film(curves, threshold=threshold, label=label, on_frame=told)

    try:
        made = aside("film", key, work, "The film", "frames")
    except ValueError as error:  # every singular value is 0
        st.info(str(error), icon=":material/info:")
        return
    if made is not None:
        st.image(made, width=560)
        st.download_button(
            "GIF", made, "steps.gif", "image/gif", key="download:film:gif", on_click="ignore", type="tertiary",
            icon=":material/download:",
        )  # fmt: skip


def follow(chosen: Sequence[Source]) -> None:
    """A switch under which new checkpoints of the runs appear by themselves."""
    growing = [source for source in chosen if source.origin in ("given", "path") and source.path.is_dir()]
    if not growing:
        return
    words = f"Looks for new checkpoints every {LOOK:g} seconds; one that is being written waits until it is whole."
    if linked(st.toggle, "Follow the run", key="follow", help=words):
        marks = {source: sources.stamp(source.path) for source in growing}
        st.fragment(_look, run_every=LOOK)(marks)


def _look(marks: dict[Source, int]) -> None:
    for source, mark in marks.items():
        try:
            sources.check(source)
        except AdapterError:  # being written, or gone: the page says so when it is asked
            continue
        if sources.stamp(source.path) != mark:
            st.rerun()
