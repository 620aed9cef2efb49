"""Page 2: one adapter, layer by layer, and what one module of it is made of."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import charts, palette
from app.columns import show
from app.context import adapters_or_stop
from app.controls import choose, segments
from app.downloads import offer
from app.explain import explanation, folded, question
from app.inspection import Inspection, inspect
from app.pictures import Picture
from app.remembered import remembered
from app.safe_markdown import markdown
from app.vega import draw
from app.verdicts import verdict_on
from bora_analysis import style
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis import views
from bora_analysis.analysis.null import null
from bora_analysis.metrics import METRICS

OUTSIDE = "none"  # the "layer" of modules outside the layers

question("Layers", "In which layers does an adapter act, and which of its factors limits the rank there?")
context = adapters_or_stop()
threshold = context.threshold
looks = views.looks_of(context.layer_metrics)

top = st.columns([3, 3, 2], vertical_alignment="bottom")
labels = [source.label for source in context.sources]
# The last: what a visitor has just added, or of the bundled ones the one with most to see.
adapter = choose("Adapter", labels, "adapter", top[0], index=len(labels) - 1)
metric = choose("Metric", list(METRICS), "metric", top[1], format_func=charts.metric_name)
table = context.layer_metrics[context.layer_metrics["adapter"] == adapter]
steps = sorted(int(step) for step in table["step"].dropna().unique())
step = steps[-1] if steps else None
if len(steps) > 1:
    step = choose("Step", steps[::-1], "step", top[2])


def at_step(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["step"] == step] if steps else frame


def named_layers(frame: pd.DataFrame) -> pd.DataFrame:
    """With layers as text, as boxes and axes show them."""
    return frame.assign(layer=frame["layer"].astype("string").fillna(OUTSIDE).astype(str))


numbered = at_step(table)
verdict_on(context, numbered)
table = named_layers(numbered)
#: What everything on this page depends on.
shown = context.key, adapter, step
cells = remembered(("cells", shown, str(threshold), metric), lambda: named_layers(views.cells(numbered, metric)))
in_order = list(dict.fromkeys(cells["layer"]))


def heat_key() -> str:
    return f"heat{st.session_state.get('_heat', 0)}"


def picked() -> list[dict[str, Any]]:
    """The selection of the heat map as it is now: nothing, or one cell."""
    return st.session_state.get(heat_key(), {}).get("selection", {}).get("cell") or []


def renew() -> None:
    """A heat map without a selection, that is under another name."""
    st.session_state["_heat"] = st.session_state.get("_heat", 0) + 1


def clicked() -> None:
    """Take over the cell that was clicked on; a click beside the cells changes nothing."""
    if found := picked():
        st.session_state["projection"] = found[0]["projection"]
        st.session_state["layer"] = found[0]["layer"]
    else:
        renew()


def ranks_of(found: Inspection, method: str, row: pd.Series) -> None:
    """Sizes in a line, ranks as numbers, and which factor limits."""
    facts, ranks = found.facts, found.ranks
    st.caption(
        f"{markdown(method)}, ΔW is {facts.out_features:,} × {facts.in_features:,}, r = {facts.r}"
        + (f", b = {facts.blocks}" if facts.blocks > 1 else "")
        + f", {facts.parameters:,} parameters, factors stored in {markdown(facts.dtype)}."
    )
    with st.container(horizontal=True):
        if ranks:
            for name, value in (("B′", ranks.B), ("Σ′", ranks.sigma), ("A′", ranks.A)):
                limits = value == ranks.upper and len(ranks.limiting) < 3
                st.metric(f"rank {name}", value, "limits" if limits else None, delta_color="off", delta_arrow="off")
        st.metric("bound", facts.rank_bound, help="Highest rank that the sizes allow: Proposition 1")
        st.metric(f"σ > {threshold.formula}", int(row["effective_rank"]), help="Effective rank")
        st.metric("entropy rank", f"{row['entropy_rank']:.2f}", help="exp H(σ/Σσ)")
    if ranks is None:
        st.markdown(f"{markdown(method)} has no B′, Σ′, A′: its ΔW is not a product of block factors.")
        return
    between = f"{ranks.upper}" if ranks.lower == ranks.upper else f"between {ranks.lower} and {ranks.upper}"
    least = " and ".join(name.replace("'", "′") for name in ranks.limiting)
    which = {1: f"{least} limits it", 2: f"{least} limit it"}.get(len(ranks.limiting), "all three limit it equally")
    st.markdown(f"By the ranks of its factors, rank ΔW is {between}; {which}.")


def of_module(module: str) -> tuple[pd.DataFrame, Any, pd.DataFrame, pd.DataFrame]:
    """The module's spectrum, its null, and the curves of both."""
    mine = at_step(context.spectra[(context.spectra["adapter"] == adapter) & (context.spectra["module"] == module)])
    drawn = null(numbered[numbered["module"] == module])
    return mine, drawn, views.curves(mine), views.null_curves(drawn.spectra)


def module_spectrum(module: str) -> None:
    # Only the threshold's line moves with the threshold.
    mine, drawn, curves, beside = remembered(("module", shown, module), lambda: of_module(module))
    st.markdown("**Singular values of ΔW**" + (", dotted: random factors of the same norm" if len(beside) else ""))
    draw(
        charts.spectrum(curves, looks, threshold, views.limits_of(mine, threshold), beside),
        key="module_spectrum",
        alt=f"Singular values of {module}, {len(mine)} in all, logarithmic.",
    )
    offer(mine, "module_spectrum", "spectra", threshold=threshold, null=drawn)


def slot_chart(found: Inspection, slots: pd.DataFrame, method: str) -> None:
    st.markdown("**Singular values of the Sₖ**, whose ranks add up to rank Σ′")
    if slots["index"].max() == 1:
        values = slots["singular_value"]
        what = f"the scaling {found.facts.scaling:.4g}: nothing is trained between B′ and A′"
        if values.nunique() > 1:
            what = f"{values.min():.4g} to {values.max():.4g} in size, including the scaling"
        st.caption(
            f"{markdown(method)} has one number in each slot, {what}. Rank Σ′ is the number of slots that are not zero."
        )
        return
    titles = {"index": "index of the singular value", "singular_value": "singular value of Sₖ", "slot": "slot k"}
    draw(
        charts.families(slots, titles),
        key="slot_spectra",
        alt=f"Singular values of the {slots['slot'].nunique()} matrices Sₖ, logarithmic, coloured by k.",
    )
    offer(slots, "slot_spectra")


def delta_image(found: Inspection) -> None:
    facts, picture = found.facts, found.delta
    p, q = picture.image.shape
    st.markdown("**|ΔW|**" + ("" if picture.exact else f", root mean square in each of {p} × {q} cells"))
    names = f"output, m = {facts.out_features:,}", f"input, n = {facts.in_features:,}"
    words = f"Magnitude of ΔW, {p} by {q} cells, blocks {facts.blocks} by {facts.blocks}"
    draw(charts.picture(picture, "|ΔW|", names), key="delta", alt=words)


def middle_image(middle: Picture, tiles: Picture | None) -> None:
    if tiles is None:
        st.markdown("**|Σ′|** of eq. 6, including the scaling")
    elif segments("Σ as", ["Σ′ of eq. 6", "slot by slot"], "sigma", label_visibility="collapsed") == "slot by slot":
        chart = charts.picture(tiles, "|Sₖ|, including the scaling", ("output block", "input block"))
        draw(chart, key="tiles", alt="The Sₖ beside each other")
        return
    chart = charts.picture(middle, "|Σ′|, including the scaling", ("row of Σ′", "column of Σ′"))
    draw(chart, key="sigma_image", alt="Magnitude of Σ'")


def one_module(row: pd.Series) -> None:
    module = row["module"]
    source = next(source for source in context.sources if source.label == adapter)
    numbers = st.container()
    left, right = st.columns(2)
    with left:
        module_spectrum(module)  # first: the browser draws it while the factors are read
    found: Inspection = inspect(source, module, step)
    method = style.method_look(found.facts.method).label
    with numbers:
        ranks_of(found, method, row)
    if found.slots is not None:
        with right:
            slot_chart(found, found.slots, method)
        left, right = st.columns(2)
    with left if found.middle is not None else right:
        delta_image(found)
    if found.middle is not None:
        with right:
            middle_image(found.middle, found.tiles)


@st.fragment
def layers_and_module() -> None:
    """The heat map and the module of its framed cell: what a click on another cell runs again."""
    heat_place = st.container()
    boxes = st.columns([2, 2, 5], vertical_alignment="bottom")
    projection = choose("Projection", style.projections_in_order(table["projection"]), "projection", boxes[0])
    of_projection = set(table.loc[table["projection"] == projection, "layer"])
    layer = choose("Layer", [layer for layer in in_order if layer in of_projection], "layer", boxes[1])
    candidates = table[(table["layer"] == layer) & (table["projection"] == projection)]
    module = choose("Module", list(candidates["module"]), "module", boxes[2], disabled=len(candidates) == 1)
    row = candidates[candidates["module"] == module].iloc[0]

    here = layer, projection
    if not any((cell["layer"], cell["projection"]) == here for cell in picked()):
        if picked():  # the cell came from a box, another adapter …
            renew()
        st.session_state["_framed"] = here
    with heat_place:
        # As it was when it was drawn: a click is framed by the browser, and nothing is sent.
        framed = st.session_state["_framed"]
        draw(
            remembered(
                ("heat", shown, str(threshold), metric, framed, palette.dark()),
                lambda: charts.heatmap(cells, metric, framed),
            ),
            key=heat_key(),
            on_select=clicked,
            selection_mode="cell",
            alt=f"{charts.metric_name(metric)} over layers and projections of {adapter}; "
            f"from {cells[metric].min():.4g} to {cells[metric].max():.4g}. The boxes below name the framed cell.",
        )
        st.caption("Click a cell, or choose it below.")
    offer(table, "layer_metrics", "heatmap", numbered, metric=metric)
    with folded("Table", "table") as opened:
        if opened:
            show(table)

    st.subheader("One module", anchor=False)
    st.text(module)
    try:
        one_module(row)
    except AdapterError as error:
        st.error(markdown(str(error)), icon=":material/error:")


layers_and_module()
explanation("layers")
