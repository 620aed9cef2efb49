"""Page 2: one adapter, layer by layer, and what one module of it is made of."""

from __future__ import annotations

from typing import Any

import charts
import numpy as np
import pandas as pd
import pictures
import streamlit as st
from context import current
from downloads import offer
from explain import explanation, question
from plain import markdown

from bora_analysis import factor_ranks, style
from bora_analysis.adapters import AdapterError, checkpoints, read_adapter
from bora_analysis.delta import Blocked, Update

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
    adapter = choose("Adapter", [source.label for source in context.sources], "adapter")
with top[1]:
    metric = choose("Metric", list(style.METRICS), "metric", format_func=charts.metric_name)
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


def clicked() -> None:
    """Take over the cell that was clicked on; a click beside the cells changes nothing."""
    found = st.session_state[heat_key]["selection"].get("cell") or []
    if found:
        st.session_state["projection"] = found[0]["projection"]
        st.session_state["layer"] = found[0]["layer"]


def boxed() -> None:
    """The chart must forget its selection, or a click on the same cell as before would not be told."""
    st.session_state["_heat"] = st.session_state.get("_heat", 0) + 1


heat_key = f"heat{st.session_state.get('_heat', 0)}"
heat_place = st.container()
boxes = st.columns([2, 2, 5], vertical_alignment="bottom")
with boxes[0]:
    projection = choose("Projection", style.projections_in_order(table["projection"]), "projection", on_change=boxed)
with boxes[1]:
    having = [layer for layer in in_order if ((table["layer"] == layer) & (table["projection"] == projection)).any()]
    layer = choose("Layer", having, "layer", on_change=boxed)
candidates = table[(table["layer"] == layer) & (table["projection"] == projection)]
with boxes[2]:
    module = choose("Module", list(candidates["module"]), "module", disabled=len(candidates) == 1)
row = candidates[candidates["module"] == module].iloc[0]

with heat_place:
    st.altair_chart(
        charts.heatmap(cells, metric, threshold, (layer, projection), night),
        width="stretch",
        key=heat_key,
        on_select=clicked,
        selection_mode="cell",
        alt=f"{charts.metric_name(metric)} over layers and projections of {adapter}; "
        f"from {cells[metric].min():.4g} to {cells[metric].max():.4g}. The framed cell is layer {layer}, {projection}.",
    )
    st.caption("Click a cell, or choose it below.")


def heat_figure() -> Any:
    from bora_analysis.figures import heatmap as draw

    shown = context.layer_metrics[context.layer_metrics["adapter"] == adapter]
    return draw(shown[shown["step"] == step] if steps else shown, metric=metric)


def chosen_update() -> Update:
    """The factors of the one module, read now and kept by nobody."""
    source = next(source for source in context.sources if source.label == adapter)
    for checkpoint in checkpoints(read_adapter(source.path)):
        if (checkpoint.step == step or not steps) and module in checkpoint:
            return checkpoint[module]
    raise AdapterError(f"{source.label}: {module} is no longer in the file; reload the page")


def slot_spectra(update: Blocked) -> pd.DataFrame:
    """Singular values of each S_k: slot, index, singular_value."""
    values = [np.linalg.svd(slot, compute_uv=False) for slot in update.slots()]
    return pd.DataFrame(
        {
            "slot": np.repeat(np.arange(1, len(values) + 1), [len(v) for v in values]),
            "index": np.concatenate([np.arange(1, len(v) + 1) for v in values]),
            "singular_value": np.concatenate(values),
        }
    )


def image(picture: pictures.Picture, title: str, key: str, words: str, names: tuple[str, str]) -> None:
    st.altair_chart(
        charts.picture(picture.image, picture.size, (picture.rows, picture.columns), title, names),
        width="stretch",
        key=key,
        alt=words,
    )


def inspect(update: Update) -> None:
    facts = update.facts
    method = style.method_look(facts.method).label
    st.caption(
        f"{markdown(method)}, ΔW is {facts.out_features:,} × {facts.in_features:,}, r = {facts.r}"
        + (f", b = {facts.blocks}" if facts.blocks > 1 else "")
        + f", {facts.parameters:,} parameters, factors stored in {markdown(facts.dtype)}."
    )
    ranks = factor_ranks(update) if isinstance(update, Blocked) else None
    with st.container(horizontal=True):
        if ranks:
            for name, value in (("B′", ranks.B), ("Σ′", ranks.sigma), ("A′", ranks.A)):
                limits = value == ranks.upper and len(ranks.limiting) < 3
                st.metric(f"rank {name}", value, "limits" if limits else None, delta_color="off", delta_arrow="off")
        st.metric("bound", facts.rank_bound, help="Most that the sizes allow: Proposition 1")
        st.metric(f"σ > {threshold:g}", int(row["effective_rank"]), help="Effective rank")
        st.metric("entropy rank", f"{row['entropy_rank']:.2f}", help="exp H(σ/Σσ)")
    if ranks:
        between = f"{ranks.upper}" if ranks.lower == ranks.upper else f"between {ranks.lower} and {ranks.upper}"
        least = " and ".join(ranks.limiting)
        who = {1: f"{least} allows no more.", 2: f"{least} allow no more."}.get(
            len(ranks.limiting), "all three allow the same."
        )
        st.markdown(f"By the ranks of its factors, rank ΔW is {between}: {who}")
    else:
        st.markdown(f"{markdown(method)} has no B′, Σ′, A′: its ΔW is no product of block factors.")

    mine = context.spectra[(context.spectra["adapter"] == adapter) & (context.spectra["module"] == module)]
    mine = mine[mine["step"] == step] if steps else mine
    left, right = st.columns(2)
    with left:
        st.markdown("**Singular values of ΔW**")
        st.altair_chart(
            charts.spectrum(charts.curves(mine), looks, threshold, night),
            width="stretch",
            key="module_spectrum",
            alt=f"Singular values of {module}, {len(mine)} in all, logarithmic.",
        )
        offer(mine, "module_spectrum", lambda: _module_figure(mine))
    if isinstance(update, Blocked):
        with right:
            slot_chart(update, method)
    left, right = st.columns(2)
    with left:
        picture = pictures.magnitude(update)
        p, q = picture.image.shape
        st.markdown("**|ΔW|**" + ("" if picture.exact else f", each of the {p} × {q} cells a mean"))
        image(
            picture,
            "|ΔW|",
            "delta",
            f"Magnitude of ΔW, {p} by {q} cells, blocks {facts.blocks} by {facts.blocks}",
            (f"output, m = {facts.out_features:,}", f"input, n = {facts.in_features:,}"),
        )
    if isinstance(update, Blocked):
        with right:
            middle_image(update)


def slot_chart(update: Blocked, method: str) -> None:
    slots = slot_spectra(update)
    st.markdown("**Singular values of the Sₖ**, whose ranks add up to rank Σ′")
    if slots["index"].max() == 1:
        values = slots["singular_value"]
        what = f"the scaling {update.facts.scaling:.4g}: nothing is trained between B′ and A′"
        if values.nunique() > 1:
            what = f"{values.min():.4g} to {values.max():.4g} in size, the scaling included"
        st.caption(f"{method} has one number in each slot, {what}; rank Σ′ is the number of slots that are not zero.")
        return
    st.altair_chart(
        charts.families(
            slots,
            x="index",
            y="singular_value",
            by="slot",
            titles=("index of the singular value", "singular value of Sₖ", "slot k"),
            bold=None,
            night=night,
        ),
        width="stretch",
        key="slot_spectra",
        alt=f"Singular values of the {slots['slot'].nunique()} matrices Sₖ, logarithmic, coloured by k.",
    )
    offer(slots, "slot_spectra")


def middle_image(update: Blocked) -> None:
    tiles = pictures.slot_tiles(update)
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
            pictures.middle(update),
            "|Σ′|, with the scaling",
            "sigma_image",
            "Magnitude of Σ'",
            ("row of Σ′", "column of Σ′"),
        )


def _module_figure(mine: pd.DataFrame) -> Any:
    from bora_analysis.figures import spectra as draw

    return draw(mine, threshold=threshold)


offer(table, "layer_metrics", heat_figure)
with st.expander("Table", icon=":material/table:"):
    st.dataframe(table, hide_index=True)

st.subheader("One module", anchor=False)
st.text(module)
try:
    inspect(chosen_update())
except AdapterError as error:
    st.error(markdown(str(error)), icon=":material/error:")

explanation(
    [
        (
            (
                "Above, a metric of every module: bright cells hold more. Below, one module. All methods here cut ΔW "
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
