"""Page: a weighted sum of adapters: its spectrum beside theirs, and the sum as one LoRA."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from app import charts, merging
from app.columns import show
from app.context import adapters_or_stop
from app.controls import linked, segments
from app.downloads import offer
from app.explain import explanation, question
from app.jobs import aside
from app.merging import OWN, WEIGHTS, Part
from app.safe_markdown import markdown, one_line
from app.vega import draw
from app.verdicts import verdict_on
from app.written import WIDTHS, bytes_of, file_name, offer_written
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis import views
from bora_analysis.analysis.summary import summary
from bora_analysis.analysis.tables import recounted
from bora_analysis.analysis.trimming import trimmed

#: Percent of Σσ² that is kept; all of it is the sum itself.
SHARES = [90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.99, 100.0]

question("Merge", "What do adapters make together, and what does their sum cost as one LoRA?")
context = adapters_or_stop()
threshold = context.threshold
known = {source.label: source for source in context.sources}
layers, spectra = views.last_steps(context.layer_metrics), views.last_steps(context.spectra)

names = linked(st.multiselect, "Adapters", list(known), default=merging.alike(layers), key="merge")
if len(names) < 2:
    if not context.waiting:
        st.info("Choose two adapters or more.", icon=":material/info:")
    explanation("merge")
    st.stop()
verdict_on(context, layers[layers["adapter"].isin(names)])
kind = segments("Weights", list(WEIGHTS), "merge_weights")
if kind == OWN:
    boxes = st.container(horizontal=True)
    weights = [
        float(linked(boxes.number_input, markdown(name), value=1 / len(names), step=0.1, key=f"merge_weight:{name}"))
        for name in names
    ]
else:
    weights = merging.weights_of(kind, len(names))


def last_step(name: str) -> int | None:
    step = layers.loc[layers["adapter"] == name, "step"].dropna()
    return None if step.empty else int(step.iloc[0])


parts = [Part(known[name], last_step(name), weight) for name, weight in zip(names, weights, strict=True)]
key = tuple(part.key for part in parts)
force = False
try:
    try:
        merging.summed(parts, force)
    except AdapterError as error:
        # Those that come from several base models may be what is wanted, as on the command line.
        force = st.toggle("Merge them all the same", key="merge_force")
        if not force:
            raise
        merging.summed(parts, force)
        st.warning(markdown(merging.shielded(parts, error)), icon=":material/warning:")
    found = aside("merge_tables", (key, force), partial(merging.tables, parts, force), "The sum")
except (AdapterError, ValueError) as error:
    st.error(markdown(merging.shielded(parts, error)), icon=":material/error:")
    explanation("merge")
    st.stop()
if found is None:
    explanation("merge")
    st.stop()

own = layers["adapter"].isin(names), spectra["adapter"].isin(names)
together = pd.concat([layers[own[0]], recounted(found, threshold)], ignore_index=True)
shown = pd.concat([spectra[own[1]], found.spectra], ignore_index=True)
ranks = together.groupby("adapter", sort=False)["energy_rank_99"].mean()
draw(
    charts.spectrum(views.curves(shown), views.looks_of(together), threshold, views.limits_of(shown, threshold)),
    key="merge_spectrum",
    alt="Singular values of the adapters and of their weighted sum, logarithmic. Directions that hold 99 % of the "
    f"energy: {'; '.join(f'{name}: {value:.4g}' for name, value in ranks.items())}.",
)
st.caption("The median over all modules, each adapter without its weight.")
totals = summary(together)
totals = totals[totals["projection"] == "all"].drop(columns=["projection"])
totals["weight"] = [*(dict(zip(names, weights, strict=True)).get(name) for name in totals["adapter"])]
columns = ("adapter", "weight", "rank_bound", "effective_rank", "entropy_rank", "stable_rank", "energy_rank_99")
weight = st.column_config.NumberColumn("weight", format="%.4g")
counted = st.column_config.NumberColumn(f"σ > {threshold.formula}", format="%.2f")
show(totals, (*columns, "energy"), {"weight": weight, "effective_rank": counted})
offer(shown, "merge", "spectra", threshold=threshold)

st.subheader("The sum as one LoRA", anchor=False)
left, right = st.columns([3, 2])
percent = linked(
    left.select_slider,
    "Energy kept, percent of Σσ²",
    SHARES,
    value=100.0,
    format_func=lambda value: f"{value:g}%",
    key="merge_energy",
)
width = segments("Type of the numbers", list(WIDTHS), "merge_dtype", right)
share = None if percent == 100 else float(percent) / 100
table = trimmed(found.layer_metrics, found.spectra, share or 1.0)
size = int(table["parameters"].sum())
with st.container(horizontal=True):
    st.metric("parameters", f"{size:,}")
    st.metric("file", bytes_of(size * WIDTHS[width]))
    st.metric("rank, mean", f"{table['rank'].mean():.1f}", help=f"of {table['rank_before'].mean():.1f} of the sum")
    st.metric("largest error", f"{table['error_relative'].max():.3g}", help="‖ΔW − ΔW_k‖_F / ‖ΔW‖_F of one module")
offer(table, "merge_table")
name = file_name("-".join(names))
written = None
try:
    written = offer_written(
        "merge", (key, force, share, width), name, size * WIDTHS[width],
        partial(merging.write, parts, force, share, width),
    )  # fmt: skip
except (AdapterError, ValueError) as error:
    st.error(markdown(merging.shielded(parts, error)), icon=":material/error:")
if written is not None:
    worst = written.table["error_relative"].max()
    st.caption(f"A LoRA for PEFT, rounded to {width}; the largest relative error of the file is {worst:.4g}.")
st.caption("The same on the command line:")
options = ("" if share is None else f" --energy {share:.10g}") + ("" if width == "float32" else f" --dtype {width}")
terms = " ".join(f"{one_line(each)}@{weight:.17g}" for each, weight in zip(names, weights, strict=True))
st.code(f"bora-analysis merge {terms} -o {name}{options}{' --force' if force else ''}", language="sh", wrap_lines=True)

explanation("merge")
