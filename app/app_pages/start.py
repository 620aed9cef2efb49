"""Page: adapters are added and checked here, and examples chosen, before anything is shown of them."""

from __future__ import annotations

import streamlit as st

from app import adding, sources
from app.adding import Candidate
from app.explain import explanation, question
from app.picker import with_base
from app.safe_markdown import markdown, one_line
from app.sources import Source
from app.uploads import upload_box
from bora_analysis.adapters import AdapterError

SHOWN = "app_pages/spectra.py"

question("Start", "What rank does a low-rank adapter really use? Add adapters, your own or the examples, and see.")

#: Key → what was added in this session and is not yet shown, in its order.
waiting: dict[str, Source] = st.session_state.setdefault("_waiting", {})
errors: dict[str, str] = st.session_state.setdefault("_not_found", {})


def add_lines() -> None:
    """What the box of paths and ids holds; the lines that stand for nothing stay there."""
    errors.clear()
    for word in adding.lines_of(st.session_state["_lines"]):
        try:
            waiting.update((source.key, source) for source in adding.found(word))
        except AdapterError as error:
            errors[word] = str(error)
    st.session_state["_lines"] = "\n".join(errors)


def show(keys: list[str]) -> None:
    """Choose these, which the sidebar does before its next run, and forget what else was added."""
    st.session_state["added"].update((key, waiting[key]) for key in keys if key in waiting)
    st.session_state["_choose"] = keys
    st.session_state["_open"] = SHOWN
    waiting.clear()
    errors.clear()


def forget(key: str) -> None:
    waiting.pop(key, None)


def not_ready(candidate: Candidate) -> None:
    """One that cannot be read as it is: a red chip, why, and a way out."""
    source = candidate.source
    with st.container(border=True, key=f"candidate:{source.key}"):
        with st.container(horizontal=True, vertical_alignment="center"):
            colour, icon = ("orange", "info") if candidate.needs_base else ("red", "error")
            st.badge(markdown(source.label), icon=f":material/{icon}:", color=colour)
            st.button("Leave it out", key=f"out:{source.key}", type="tertiary", on_click=forget, args=(source.key,))
        st.markdown(f":small[{markdown(candidate.words)}]")
        if candidate.needs_base and not (sources.arguments().root or sources.arguments().hub):
            st.caption("This server opens no base models; the toolkit on your own machine does.")
        elif candidate.needs_base:
            st.text_input(
                "Its base model: a folder on this server" + (", or a Hub id" if sources.arguments().hub else ""),
                key=f"base:{source.key}",
                on_change=with_base,
                args=(source,),
            )
            if wrong := st.session_state.get("_bases", {}).get(source.key):
                st.caption(markdown(wrong))


left, right = st.columns(2)
with left:
    (new, refused), (also, refused_also) = upload_box(), upload_box(folders=True)
    if new or also:
        waiting.update((source.key, source) for source in (*new, *also))
        errors.update(refused | refused_also)
        st.rerun()  # with empty uploaders


def lines() -> None:
    """The box of paths and ids."""
    hub = " or Hub ids" if sources.arguments().hub else ""
    st.text_area(
        f"Paths on this server{hub}, one a line",
        key="_lines",
        height=122,
        placeholder="runs/my-adapter\nruns" + ("\norg/name" if hub else ""),
        help="A PEFT folder, a weights file, a run with its checkpoints, or a folder of adapters, which offers them.",
    )
    st.form_submit_button("Check", icon=":material/search:", on_click=add_lines)


if sources.arguments().root or sources.arguments().hub:
    with right, st.form("lines", border=False):
        lines()
else:
    right.caption("The page *About* says what is kept of an upload, and for how long.")
for word, error in errors.items():
    st.badge(markdown(one_line(word, 60)), icon=":material/error:", color="red")
    st.markdown(f":small[{markdown(error)}]")

if waiting:
    st.subheader("Added", anchor=False)
    candidates = [adding.checked(source) for source in waiting.values()]
    ready = {one.source.key: one for one in candidates if one.ready}
    for candidate in candidates:
        if not candidate.ready:
            not_ready(candidate)
    if ready:
        chosen = st.pills(
            "Ready",
            list(ready),
            default=list(ready),
            selection_mode="multi",
            format_func=lambda key: f"{markdown(ready[key].source.label)}: {markdown(ready[key].words)}",
            key=f"_ready:{'|'.join(ready)}",
        )
        st.button(
            f"Show {len(chosen)} of {len(ready)}" if len(ready) > 1 else "Show it",
            type="primary",
            icon=":material/arrow_forward:",
            disabled=not chosen,
            key="show_added",
            on_click=show,
            args=(list(chosen),),
        )

st.subheader("Examples", anchor=False)
examples = {source.key: source for source in (*sources.bundled(), *sources.runs())}
usual = [source.key for source in sources.usual()]
picked = st.pills(
    "They come with the toolkit; the runs have all their steps",
    list(examples),
    default=usual,
    selection_mode="multi",
    format_func=lambda key: examples[key].label,
    key="_examples",
)
st.button("Show the examples", key="show_examples", disabled=not picked, on_click=show, args=(list(picked),))
if page := st.session_state.pop("_open", None):
    st.switch_page(page)

explanation("start")
