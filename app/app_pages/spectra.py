"""Page 1: adapters side by side."""

from __future__ import annotations

import streamlit as st

from app import charts
from app.columns import show
from app.context import adapters_or_stop
from app.controls import ALL, choose, null_toggle, of_projection, projections, segments
from app.downloads import offer
from app.explain import explanation, folded, question
from app.remembered import remembered
from app.safe_markdown import markdown
from app.vega import draw
from app.verdicts import verdict_on
from bora_analysis import style
from bora_analysis.analysis import views
from bora_analysis.analysis.null import null
from bora_analysis.analysis.summary import summary

question("Spectra", "How many directions does each adapter really use, and how many does its method allow?")
context = adapters_or_stop()
threshold = context.threshold
spectra, layers = views.last_steps(context.spectra), views.last_steps(context.layer_metrics)
looks = views.looks_of(context.layer_metrics)
verdict_on(context, layers)

with st.container(horizontal=True, vertical_alignment="bottom"):
    view = segments("Show", ["all layers", "one module"], "view")
    module = projection = None
    if view == "one module":
        module = choose("Module", list(dict.fromkeys(layers["module"])), "module")
        where, what = str(module), "this module"
        shown, rows = spectra[spectra["module"] == module], layers[layers["module"] == module]
    else:
        projection = segments("Projection", projections(layers), "projection", format_func=markdown)
        where, what = "all modules" if projection == ALL else f"projection {projection}", "this projection"
        shown, rows = of_projection(spectra, projection), of_projection(layers, projection)

missing = [markdown(name) for name in looks if name not in set(rows["adapter"])]
if missing:
    st.caption(f"Without {what}: {', '.join(missing)}.")

means = rows.groupby("adapter", sort=False)[["effective_rank", "rank_bound"]].mean()
ranks = "; ".join(f"{name}: {value:.4g} of {bound:.4g}" for name, value, bound in means.itertuples())
beside = drawn = None
if null_toggle():
    drawn = null(rows)
    beside = views.null_curves(drawn.spectra)
    if drawn.missing:
        st.caption(markdown("; ".join(drawn.missing)))
curves = remembered(("curves", context.key, view, projection, module), lambda: views.curves(shown))
draw(
    charts.spectrum(curves, looks, threshold, views.limits_of(shown, threshold), beside),
    key="spectrum",
    alt=f"Singular values against their index, logarithmic, {where}. Mean effective rank of the bound: {ranks}.",
)

totals = summary(rows)
totals = totals[totals["projection"] == "all"].drop(columns=["projection"])
# First what a phone has room for.
names = ("adapter", "effective_rank", "rank_bound", "rank_utilisation", "entropy_rank", "stable_rank")
names += ("energy_rank_99", "energy", "parameters", "equal_budget", "modules")
show(totals, names, {"effective_rank": st.column_config.NumberColumn(f"σ > {threshold.formula}", format="%.2f")})
st.caption(
    ("Means over the modules; parameters and Σσ² are sums. " if module is None else "")
    + (
        "Adapters with the same letter under *budget* have equal parameters within 5 %."
        if any(totals["equal_budget"])
        else "No two of these adapters have equal parameters within 5 %."
    )
)
offer(shown, "spectra", "spectra", threshold=threshold, null=drawn)

if module is None:
    st.subheader("Over the layers", anchor=False)
    if projection == ALL:
        st.caption("Mean over the modules of each layer. Choose a projection above for the paper's figure 4.")
    by_layer = views.by_layer(rows)
    if by_layer.empty:
        st.caption("The modules of these adapters have no layer numbers.")
    else:
        for column, metric in zip(st.columns(2), ("effective_rank", "energy"), strict=True):
            with column:
                draw(
                    charts.over_layers(by_layer, metric, looks),
                    key=f"layers_{metric}",
                    alt=f"{style.metric_label(metric, threshold, ', ')}, over the layers, {where}, a line per adapter.",
                )
        of = None if projection == ALL else projection
        offer(by_layer, "figure4", "figure4", shown, projection=of, threshold=threshold)

with folded("Tables", "tables") as opened:
    if opened:
        st.caption("One row per module and adapter.")
        show(rows)
        offer(rows, "layer_metrics")
        st.caption("The summary above.")
        offer(totals, "summary")

explanation("spectra")
