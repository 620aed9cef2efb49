"""Page 1: adapters side by side."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import charts
from app.context import current, latest
from app.downloads import offer
from app.explain import explanation, folded, question
from app.safe_markdown import markdown
from bora_analysis import style
from bora_analysis.analysis.summary import summary

context = current()
night = charts.dark()
question("Spectra", "How many directions does each adapter really use, and how many would its method allow?")

if context.layer_metrics.empty:
    st.info("Choose one or more adapters in the sidebar.", icon=":material/arrow_back:")
    st.stop()

spectra, layers = latest(context.spectra), latest(context.layer_metrics)
looks = charts.looks_of(context.spectra)
threshold = context.threshold


def numbers(frame: pd.DataFrame) -> None:
    """The summary as a table, adapters that share a budget marked."""
    columns: dict[str, Any] = {
        "adapter": st.column_config.TextColumn("adapter", pinned=True),
        "equal_budget": st.column_config.TextColumn("budget", help="Same letter: parameters equal within 5 %"),
        "parameters": st.column_config.NumberColumn("parameters", format="localized"),
        "rank_bound": st.column_config.NumberColumn("bound", format="%.4g", help="Most that the sizes allow"),
        "effective_rank": st.column_config.NumberColumn(f"σ > {threshold:g}", format="%.2f", help="Effective rank"),
        "rank_utilisation": st.column_config.NumberColumn(
            "used", format="percent", help="Effective rank as a share of the bound"
        ),
        "entropy_rank": st.column_config.NumberColumn("entropy", format="%.2f", help="Entropy rank, exp H(σ/Σσ)"),
        "stable_rank": st.column_config.NumberColumn("stable", format="%.2f", help="Stable rank, Σσ² / σ₁²"),
        "energy_rank_99": st.column_config.NumberColumn("99 %", format="%.2f", help="Directions that hold it of Σσ²"),
        "energy": st.column_config.NumberColumn("Σσ²", format="%.4g", help="Energy, ‖ΔW‖_F², summed"),
        "modules": st.column_config.NumberColumn("modules"),
    }
    st.dataframe(frame, hide_index=True, column_order=list(columns), column_config=columns)


with st.container(horizontal=True, vertical_alignment="bottom"):
    view = st.segmented_control(
        "Show", ["all layers", "one module"], default="all layers", required=True, key="view", bind="query-params"
    )
    projections = style.projections_in_order(spectra["projection"])
    modules = list(dict.fromkeys(spectra["module"]))
    if view == "one module":
        module = st.selectbox("Module", modules, key="module", bind="query-params")
        projection = None
    else:
        module = None
        everything = [*(["all"] if len(projections) > 1 else []), *projections]
        projection = st.segmented_control(
            "Projection",
            everything,
            default=everything[0],
            required=True,
            format_func=markdown,
            key="projection",
            bind="query-params",
        )

if module is not None:
    shown, rows = spectra[spectra["module"] == module], layers[layers["module"] == module]
elif projection in (None, "all"):
    shown, rows = spectra, layers
else:
    shown, rows = spectra[spectra["projection"] == projection], layers[layers["projection"] == projection]
missing = [name for name in looks if name not in set(shown["adapter"])]
if missing:
    what = "this module" if module is not None else "this projection"
    st.caption(f"Without {what}: {', '.join(markdown(name) for name in missing)}.")

where = module or ("all modules" if projection in (None, "all") else f"projection {projection}")
ranks = "; ".join(
    f"{name}: {value:.4g} of {bound:.4g}"
    for name, value, bound in rows.groupby("adapter", sort=False)[["effective_rank", "rank_bound"]].mean().itertuples()
)
charts.draw(
    charts.spectrum(charts.curves(shown), looks, threshold, night),
    key="spectrum",
    alt=f"Singular values against their index, logarithmic, {where}. Mean effective rank of the bound: {ranks}.",
)

totals = summary(rows)
totals = totals[totals["projection"] == "all"].drop(columns=["projection"])
numbers(totals)
shared = any(totals["equal_budget"])
st.caption(
    ("Means over the modules; parameters and Σσ² are sums. " if module is None else "")
    + (
        "Adapters with the same letter under *budget* have equal parameters within 5 %."
        if shared
        else "No two of these adapters have equal parameters within 5 %."
    )
)


def spectra_figure() -> Any:
    from bora_analysis.figures import spectra as draw

    return draw(shown, threshold=threshold)


offer(shown, "spectra", spectra_figure)

if module is None:
    st.subheader("Over the layers", anchor=False)
    if projection == "all":
        st.caption("Mean over the modules of each layer. Choose a projection above for the paper's figure 4.")
    placed = rows[rows["layer"].notna()]
    if placed.empty:
        st.caption("The modules of these adapters have no layer numbers.")
    else:
        by_layer = (
            placed.groupby(["adapter", "layer"], sort=False)
            .agg(
                modules=("module", "size"),
                rank_bound=("rank_bound", "mean"),
                effective_rank=("effective_rank", "mean"),
                energy=("energy", "mean"),
            )
            .reset_index()
            .astype({"layer": int})
        )
        left, right = st.columns(2)
        for column, metric in ((left, "effective_rank"), (right, "energy")):
            with column:
                charts.draw(
                    charts.over_layers(by_layer, metric, looks, night),
                    key=f"layers_{metric}",
                    alt=f"{style.metric_label(metric, threshold, ', ')}, over the layers, {where}, a line per adapter.",
                )

        def figure4() -> Any:
            from bora_analysis.figures import figure4 as draw

            return draw(shown, projection=None if projection == "all" else projection, threshold=threshold)

        offer(by_layer, "figure4", figure4)

with folded("Tables", "tables") as opened:
    if opened:
        st.caption("One row per module and adapter.")
        st.dataframe(rows, hide_index=True)
        offer(rows, "layer_metrics")
        st.caption("The summary above.")
        offer(totals, "summary")

explanation(
    [
        (
            (
                "The update that an adapter adds to a layer is a matrix ΔW of m × n. Its singular values say how "
                "strongly it acts in each of its directions. The curve shows them in descending order (of several "
                "modules the median, with the band from the least to the largest), and ends where the method "
                "allows no more: the rank bound, the upright line."
            ),
            (
                r"\operatorname{rank}\Delta W \;\le\; \min(m,\, n,\, r) \text{ for LoRA},\qquad "
                r"\min(m,\, n,\, b\,r) \text{ for MELoRA and BoRA}"
            ),
        ),
        (
            (
                "The *effective rank* is the paper's: how many singular values lie above the threshold τ, the dashed "
                "line. An absolute threshold says as much about α and the learning rate as about rank; the entropy "
                "rank and the stable rank do not change when ΔW is multiplied by a number."
            ),
            (
                r"\#\{\sigma_k > \tau\} \qquad \text{energy } \textstyle\sum_k \sigma_k^2 = \lVert\Delta W\rVert_F^2 "
                r"\qquad \exp H(\sigma/\textstyle\sum\sigma) \qquad \sum\sigma^2/\sigma_1^2"
            ),
        ),
    ],
    [
        "BoRA, arXiv 2508.06953, Proposition 1, §4.5 and figure 4",
        "the threshold from HiRA, ICLR 2025, §6.1",
        "entropy rank: Roy & Vetterli, EUSIPCO 2007",
        "stable rank: Rudelson & Vershynin, J. ACM 2007",
    ],
)
