"""Page 2: one adapter, layer by layer, and what one module of it is made of."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import charts
from app.context import current
from app.downloads import offer
from app.explain import explanation, folded, question
from app.inspection import Inspection, inspect
from app.pictures import Picture
from app.safe_markdown import markdown
from bora_analysis import style
from bora_analysis.adapters import AdapterError
from bora_analysis.metrics import METRICS

OUTSIDE = "none"  # the "layer" of modules outside the layers

context = current()
night = charts.dark()
threshold = context.threshold
question("Layers", "Where in the network does an adapter act, and which of its factors limits the rank there?")

if context.layer_metrics.empty:
    st.info("Choose one or more adapters in the sidebar.", icon=":material/arrow_back:")
    st.stop()

looks = charts.looks_of(context.layer_metrics)


def choose(label: str, options: list[Any], key: str, **more: Any) -> Any:
    """A select box that forgets a choice which the adapter at hand does not have."""
    if st.session_state.get(key, options[0]) not in options:
        del st.session_state[key]
    return st.selectbox(label, options, key=key, bind="query-params", **more)


top = st.columns([3, 3, 2], vertical_alignment="bottom")
with top[0]:
    labels = [source.label for source in context.sources]
    # The last: what a visitor has just added, or of the bundled ones the one with most to see.
    adapter = choose("Adapter", labels, "adapter", index=len(labels) - 1)
with top[1]:
    metric = choose("Metric", list(METRICS), "metric", format_func=charts.metric_name)
table = context.layer_metrics[context.layer_metrics["adapter"] == adapter]
steps = sorted(int(step) for step in table["step"].dropna().unique())
step = steps[-1] if steps else None
if len(steps) > 1:
    with top[2]:
        step = choose("Step", steps[::-1], "step")
if steps:
    table = table[table["step"] == step]
table = table.assign(layer=table["layer"].astype("string").fillna(OUTSIDE).astype(str))

# The axis: layers by number, then what lies outside of them.
in_order = sorted(table["layer"].unique(), key=lambda text: (text == OUTSIDE, int(text) if text.isdigit() else 0))
cells = (
    table.groupby(["layer", "projection"], sort=False)
    .agg(value=(metric, "mean"), modules=("module", "size"))
    .rename(columns={"value": metric})
    .reset_index()
    .sort_values("layer", key=lambda column: column.map(in_order.index), kind="stable", ignore_index=True)
)


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


heat_place = st.container()
boxes = st.columns([2, 2, 5], vertical_alignment="bottom")
with boxes[0]:
    projection = choose("Projection", style.projections_in_order(table["projection"]), "projection")
with boxes[1]:
    of_projection = set(table.loc[table["projection"] == projection, "layer"])
    having = [layer for layer in in_order if layer in of_projection]
    layer = choose("Layer", having, "layer")
candidates = table[(table["layer"] == layer) & (table["projection"] == projection)]
with boxes[2]:
    module = choose("Module", list(candidates["module"]), "module", disabled=len(candidates) == 1)
row = candidates[candidates["module"] == module].iloc[0]

here = layer, projection
if not any((cell["layer"], cell["projection"]) == here for cell in picked()):
    if picked():  # the cell came from a box, another adapter …
        renew()
    st.session_state["_framed"] = here
with heat_place:
    # As it was when it was drawn: a click is framed by the browser, and nothing is sent.
    charts.draw(
        charts.heatmap(cells, metric, st.session_state["_framed"], night),
        key=heat_key(),
        on_select=clicked,
        selection_mode="cell",
        alt=f"{charts.metric_name(metric)} over layers and projections of {adapter}; "
        f"from {cells[metric].min():.4g} to {cells[metric].max():.4g}. The boxes below name the framed cell.",
    )
    st.caption("Click a cell, or choose it below.")


def heat_figure() -> Any:
    from bora_analysis.figures import heatmap as draw

    shown = context.layer_metrics[context.layer_metrics["adapter"] == adapter]
    return draw(shown[shown["step"] == step] if steps else shown, metric=metric)


def image(picture: Picture, title: str, key: str, words: str, names: tuple[str, str]) -> None:
    charts.draw(
        charts.picture(picture.image, picture.size, (picture.rows, picture.columns), title, names),
        key=key,
        alt=words,
    )


def ranks_of(found: Inspection, method: str) -> None:
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
        st.metric("bound", facts.rank_bound, help="Most that the sizes allow: Proposition 1")
        st.metric(f"σ > {threshold:g}", int(row["effective_rank"]), help="Effective rank")
        st.metric("entropy rank", f"{row['entropy_rank']:.2f}", help="exp H(σ/Σσ)")
    if ranks is None:
        st.markdown(f"{markdown(method)} has no B′, Σ′, A′: its ΔW is no product of block factors.")
        return
    between = f"{ranks.upper}" if ranks.lower == ranks.upper else f"between {ranks.lower} and {ranks.upper}"
    least = " and ".join(name.replace("'", "′") for name in ranks.limiting)
    who = {1: f"{least} allows no more.", 2: f"{least} allow no more."}.get(
        len(ranks.limiting), "all three allow the same."
    )
    st.markdown(f"By the ranks of its factors, rank ΔW is {between}: {who}")


def module_spectrum() -> None:
    mine = context.spectra[(context.spectra["adapter"] == adapter) & (context.spectra["module"] == module)]
    mine = mine[mine["step"] == step] if steps else mine
    st.markdown("**Singular values of ΔW**")
    charts.draw(
        charts.spectrum(charts.curves(mine), looks, threshold, night),
        key="module_spectrum",
        alt=f"Singular values of {module}, {len(mine)} in all, logarithmic.",
    )
    offer(mine, "module_spectrum", lambda: _module_figure(mine))


def slot_chart(found: Inspection, slots: pd.DataFrame, method: str) -> None:
    st.markdown("**Singular values of the Sₖ**, whose ranks add up to rank Σ′")
    if slots["index"].max() == 1:
        values = slots["singular_value"]
        what = f"the scaling {found.facts.scaling:.4g}: nothing is trained between B′ and A′"
        if values.nunique() > 1:
            what = f"{values.min():.4g} to {values.max():.4g} in size, the scaling included"
        st.caption(
            f"{markdown(method)} has one number in each slot, {what}; rank Σ′ is the number of slots that are not zero."
        )
        return
    charts.draw(
        charts.families(
            slots,
            x="index",
            y="singular_value",
            by="slot",
            titles=("index of the singular value", "singular value of Sₖ", "slot k"),
            bold=None,
            night=night,
        ),
        key="slot_spectra",
        alt=f"Singular values of the {slots['slot'].nunique()} matrices Sₖ, logarithmic, coloured by k.",
    )
    offer(slots, "slot_spectra")


def delta_image(found: Inspection) -> None:
    facts, picture = found.facts, found.delta
    p, q = picture.image.shape
    st.markdown("**|ΔW|**" + ("" if picture.exact else f", each of the {p} × {q} cells a mean"))
    image(
        picture,
        "|ΔW|",
        "delta",
        f"Magnitude of ΔW, {p} by {q} cells, blocks {facts.blocks} by {facts.blocks}",
        (f"output, m = {facts.out_features:,}", f"input, n = {facts.in_features:,}"),
    )


def middle_image(middle: Picture, tiles: Picture | None) -> None:
    form = None
    if tiles is not None:
        form = st.segmented_control(
            "Σ as",
            ["Σ′ of eq. 6", "slot by slot"],
            default="Σ′ of eq. 6",
            required=True,
            key="sigma",
            bind="query-params",
            label_visibility="collapsed",
        )
    else:
        st.markdown("**|Σ′|** of eq. 6, with the scaling")
    if form == "slot by slot" and tiles is not None:
        image(tiles, "|Sₖ|, with the scaling", "tiles", "The Sₖ beside each other", ("output block", "input block"))
    else:
        image(
            middle,
            "|Σ′|, with the scaling",
            "sigma_image",
            "Magnitude of Σ'",
            ("row of Σ′", "column of Σ′"),
        )


def one_module() -> None:
    source = next(source for source in context.sources if source.label == adapter)
    numbers = st.container()
    left, right = st.columns(2)
    with left:
        module_spectrum()  # first: the browser draws it while the factors are read
    found = inspect(source, module, step)
    method = style.method_look(found.facts.method).label
    with numbers:
        ranks_of(found, method)
    if found.slots is not None:
        with right:
            slot_chart(found, found.slots, method)
        left, right = st.columns(2)
    with left if found.middle is not None else right:
        delta_image(found)
    if found.middle is not None:
        with right:
            middle_image(found.middle, found.tiles)


def _module_figure(mine: pd.DataFrame) -> Any:
    from bora_analysis.figures import spectra as draw

    return draw(mine, threshold=threshold)


offer(table, "layer_metrics", heat_figure)
with folded("Table", "table") as opened:
    if opened:
        st.dataframe(table, hide_index=True)

st.subheader("One module", anchor=False)
st.text(module)
try:
    one_module()
except AdapterError as error:
    st.error(markdown(str(error)), icon=":material/error:")

explanation(
    [
        (
            (
                "Above, a metric of every module: bright cells hold more. Below, one module. BoRA and MELoRA cut ΔW "
                "into b × b blocks (LoRA: one), each a product of thin factors; put together they are three matrices, "
                "of which the middle one is sparse."
            ),
            r"\Delta W_{ij} = B_i\,\Sigma_{ij}\,A_j \qquad\Longleftrightarrow\qquad \Delta W = B'\,\Sigma'\,A'",
        ),
        (
            "The rank of ΔW is at most the least of the three ranks. Sorting rows and columns of Σ′ by slot k makes it "
            "block-diagonal with r small matrices, so that its rank is the sum of theirs. For LoRA written with b "
            "blocks every S_k would be all ones, of rank 1; for MELoRA it is the identity; BoRA trains it.".replace(
                "S_k", "$S_k$"
            ),
            (
                r"\operatorname{rank}\Delta W \le \min(\operatorname{rank}B',\, \operatorname{rank}\Sigma',\, "
                r"\operatorname{rank}A'), \qquad \operatorname{rank}\Sigma' = \sum_{k=1}^{r}\operatorname{rank} S_k, "
                r"\quad (S_k)_{ij} = (\Sigma_{ij})_{kk}"
            ),
        ),
        (
            (
                "It is at least the sum of the three less twice their inner dimension (Sylvester). Full-rank factors "
                "reach the bound of Proposition 1 for certain only while br ≤ max(m, n)."
            ),
            "",
        ),
    ],
    ["BoRA, arXiv 2508.06953, eq. 4–7 and Proposition 1"],
)
