"""The sidebar, which all pages share: which adapters, what is wrong with them, and the threshold."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from app import adding, sources
from app.context import Context
from app.controls import choose, linked
from app.safe_markdown import markdown, one_line
from app.uploads import upload_store
from bora_analysis.adapters import AdapterError
from bora_analysis.files.errors import counted
from bora_analysis.metrics import THRESHOLD
from bora_analysis.threshold import Threshold

#: Twelve steps a decade from 1e-6 to 100, the figures that people type among them.
STEPS = [float(f"{digits}e{power}") for power in range(-6, 2) for digits in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)]
STEPS.append(100.0)
#: Percent of σ₁.
SHARES = [float(f"{digits}e{power}") for power in range(-2, 2) for digits in (1, 1.5, 2, 3, 5, 7)]
#: What a singular value is compared with.
ABSOLUTE, RELATIVE, AT_NORM = KINDS = ("a number", "a share of σ₁", "a number, at ‖ΔW‖ = 1")


def picker() -> tuple[list[sources.Source], Threshold, Any]:
    """The sidebar: which adapters, the threshold, and the place for what is wrong. Their state stands in the URL.

    Adapters in the URL by ``adapters`` (their labels, bound to the picker), those that are neither given nor bundled
    first by ``path`` or ``upload``, so that a link brings them with it. At first those are chosen that are given on the
    command line or come with the link, and only where there are none the examples.
    """
    added: dict[str, sources.Source] = st.session_state.setdefault("added", {})
    fixed = [*sources.given(), *sources.bundled(), *sources.runs()]
    errors = from_link(added)
    known = sources.named_apart(fixed, added.values())
    examples = [source.key for source in sources.usual() if source.key in known]
    own = [key for key in (*(source.key for source in sources.given()), *added) if key in known]
    first = own or examples
    unknown = not_there(known)
    in_link(added)
    # One that is here already by another way is chosen there.
    places = {source.path: key for key, source in known.items()}
    asked = [key if key in known else places.get(added[key].path) for key in st.session_state.pop("_choose", [])]
    new = [key for key in asked if key is not None]
    if new:  # before the widget is made: afterwards its state may not be set
        st.session_state["adapters"] = list(dict.fromkeys([*before(examples), *new]))
    with st.sidebar:
        chosen = linked(
            st.multiselect,
            "Adapters",
            list(known),
            default=first,
            format_func=lambda key: known[key].label,
            key="adapters",
            placeholder="Choose, or type to search",
            help="Type a part of a name to search. The examples that come with the toolkit are trained adapters, then "
            "synthetic ones, whose spectra are known, then training runs with all their steps.",
        )
        if chosen and all(known[key].origin == "bundled" for key in chosen):
            st.caption("Examples that come with the toolkit.")
        place = st.container()
        for error in errors:
            place.error(markdown(error), icon=":material/error:")
        threshold = threshold_picker()
        st.page_link("app_pages/start.py", label="Add adapters", icon=":material/add:")
    # On the page: at the side it would be out of sight on a laptop, and on a phone.
    note = st.container()
    if errors:
        chip = f":red-badge[:material/link_off: {counted(len(errors), 'adapter')} of this link]"
        note.markdown(f"{chip} :small[cannot be opened; the sidebar says why]")
    if unknown and chosen == first:
        words = f"No adapter here is called {', '.join(unknown)}; shown is what is chosen at first."
        note.markdown(f":small[:orange[:material/link_off:] {markdown(words)}]")
    return [known[key] for key in chosen], threshold, place


def before(examples: list[str]) -> list[str]:
    """What is chosen and stays so when another is added: examples alone make room."""
    chosen = st.session_state.get("adapters", examples)
    return [] if chosen == examples else chosen


def not_there(known: dict[str, sources.Source]) -> list[str]:
    """The names in the link with which this session began that no adapter has."""
    if "_unknown" not in st.session_state:
        labels = {source.label for source in known.values()}
        asked = st.query_params.get_all("adapters")
        st.session_state["_unknown"] = [one_line(name, 60) for name in asked if name not in labels][:5]
    return st.session_state["_unknown"]


def troubles(place: Any, context: Context) -> None:
    """What is wrong with adapters that are chosen, and the way out: each is a red chip, and here is its message.

    Above a page about the others stand their names alone.
    """
    note = st.container()
    if context.problems and context.sources:
        chips = " ".join(f":red-badge[:material/error: {markdown(each.source.label)}]" for each in context.problems)
        note.markdown(f"{chips} :small[cannot be read; the sidebar says why]")
    for problem in context.problems:
        key = problem.source.key
        place.error(markdown(problem.words), icon=":material/error:")
        if problem.needs_base:
            place.text_input(
                "Its base model", key=f"base:{key}", on_change=with_base, args=(problem.source,), placeholder="a folder"
            )
            if wrong := st.session_state.get("_bases", {}).get(key):
                place.caption(markdown(wrong))
        place.button("Leave it out", key=f"leave:{key}", icon=":material/close:", on_click=leave, args=(key,))


def with_base(source: sources.Source) -> None:
    """Read an adapter with the base model in its field; what is wrong with that is kept for its place."""
    wrong = st.session_state.setdefault("_bases", {})
    wrong.pop(source.key, None)
    if words := st.session_state[f"base:{source.key}"].strip():
        try:
            adding.set_base(source, words)
        except AdapterError as error:
            wrong[source.key] = str(error)


def leave(key: str) -> None:
    """Take an adapter out of the choice."""
    st.session_state["adapters"] = [one for one in st.session_state["adapters"] if one != key]


def threshold_picker() -> Threshold:
    """Which singular values count. The slider of shares is another one: its steps are others."""
    kind = choose(
        "The effective rank counts σ above",
        KINDS,
        "counting",
        help="A number counts more directions when α or the learning rate is higher. A share of each ΔW's σ₁, or a "
        "number after every ΔW is scaled to ‖ΔW‖_F = 1, does not depend on the scale.",
    )
    slider = partial(linked, st.select_slider)
    if kind == RELATIVE:
        share = slider(
            "Threshold τ, in percent of σ₁", SHARES, value=1.0, format_func=lambda value: f"{value:g}%", key="share"
        )
        return Threshold(share / 100, relative=True)
    value = slider(
        "Threshold τ of the effective rank",
        steps(),
        value=THRESHOLD,
        format_func=lambda value: f"{value:g}",
        key="threshold",
        help="Singular values above τ count. The paper uses 0.005 (§4.5), as HiRA does.",
    )
    return Threshold(float(value), norm=1.0 if kind == AT_NORM else None)


def from_link(added: dict[str, sources.Source]) -> list[str]:
    """Add the adapters that the URL brings with it, and return what is wrong with them."""
    errors = []
    for origin, found in (("path", sources.within_roots), ("upload", upload_store().find), ("hub", adding.from_hub)):
        for word in st.query_params.get_all(origin):
            try:
                if f"{origin}:{word}" not in added:
                    source = found(word)
                    added.setdefault(source.key, source)
            except AdapterError as error:
                errors.append(str(error))
    return errors


def in_link(added: dict[str, sources.Source]) -> None:
    """Put the added adapters into the URL. What is there already stays, also what is in error: it is the visitor's."""
    for origin in ("path", "upload", "hub"):
        there = st.query_params.get_all(origin)
        missing = [s.word for s in added.values() if s.origin == origin and s.word not in there]
        if missing:
            st.query_params[origin] = [*there, *missing]


def steps() -> list[float]:
    """The slider's steps, and the one between them that a link asked for when this session began."""
    if "_steps" not in st.session_state:
        try:
            asked = float(st.query_params.get("threshold", ""))
        except ValueError:
            asked = THRESHOLD
        st.session_state["_steps"] = sorted({*STEPS, *([asked] if 1e-12 <= asked <= 1e12 else [])})
    return st.session_state["_steps"]
