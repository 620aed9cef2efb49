"""Page: what many adapters show together, of a sweep's results or of the adapters that are chosen."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from app import charts, fleet_charts, fleets
from app.columns import show
from app.context import current
from app.controls import choose, linked
from app.downloads import offer
from app.explain import explanation, question, table
from app.safe_markdown import markdown
from app.vega import draw, labelled
from bora_analysis.adapters import AdapterError
from bora_analysis.fleet import numbers
from bora_analysis.metrics import METRICS

context = current()
question("Fleet", "What do many adapters show together, and where does one of them stand?")
try:
    fleet = fleets.of_sweep() or fleets.of_chosen(context)
except AdapterError as error:
    st.error(markdown(str(error)), icon=":material/error:")
    st.stop()
if fleet is None and context.waiting:
    st.stop()
if fleet is None:
    st.info("Choose adapters in the sidebar.", icon=":material/arrow_back:")
    st.stop()
if fleet.results is None:
    st.caption(
        "Shown are the adapters that are chosen. For many: `bora-analysis sweep FOLDER -o RESULTS`, then "
        "`bora-analysis dashboard --fleet RESULTS`."
    )

places = st.columns([3, 3, 2])
bases = [str(name) for name in fleet.bases().index]
base = choose("Base model", bases, "fleet_base", places[0])
fleet = fleet.of_base(base)
if fleet.layers.empty:
    st.info("ΔW = 0 in every adapter of this base model: nothing to compare.", icon=":material/info:")
    st.stop()
metrics = ["stable_rank", *(name for name in METRICS if name not in ("stable_rank", "rank_bound"))]
metric = choose("Metric", metrics, "fleet_metric", places[1], format_func=charts.metric_name)
share = choose("Share of Σσ²", [0.99, 0.95, 0.9], "fleet_share", places[2], format_func=lambda x: f"{x:.0%}")

ranks = numbers.serving_ranks(fleet, share)
whole = numbers.rank_for_all(ranks)
with st.container(horizontal=True):
    st.metric("Adapters", f"{len(fleet.adapters):,}")
    st.metric("Modules", f"{len(fleet.layers):,}")
    st.metric(f"Rank that keeps {share:.0%} in all", f"{whole['rank']} of {whole['rank_now']}")
    st.metric("Memory of a server saved", f"{whole['saved']:.0%}")

points = numbers.growth_points(fleet, metric)
draw(
    fleet_charts.growth(points, charts.metric_title(metric), fleets.names(fleet)),
    key="fleet_growth",
    alt=f"{metric} against r, a point per adapter and projection, {len(points)} in all.",
)
lines = numbers.growth(fleet, metric)
for line in lines.to_dict("records"):
    interval = "" if line["low"] != line["low"] else f", 95 % from {line['low']:.3f} to {line['high']:.3f}"
    words = f"{line['method']}, {line['projection']}: grows as r to the power of {line['exponent']:.3f}{interval}"
    st.caption(markdown(f"{words}; {line['adapters']} adapters."))
offer(points, "fleet_points", partial(fleets.growth_figure, lines=lines, metric=metric))

st.subheader("Where the chosen adapters stand", anchor=False)
chosen = []
of_base = set(fleet.adapters["name"])
for name, part in context.layer_metrics.groupby("adapter", sort=False):
    if fleet.results is None and name not in of_base:
        continue
    found = numbers.percentiles(part, fleet)
    chosen += [{"adapter": name, **{row["label"]: row["percentile"] for row in found.to_dict("records")}}]
standing = pd.DataFrame(chosen)
st.caption(f"Percentiles among the {len(fleet.adapters):,} adapters of this base model: 50 is the middle.")
show(standing)
offer(standing, "fleet_percentiles")

st.subheader("Modules that stand out", anchor=False)
found = numbers.outliers(fleet, metric)
if found.empty:
    st.caption("None is beyond a robust z of 6 and 3 times what its layer and projection lead to expect.")
else:
    heads = {
        "value": st.column_config.NumberColumn(charts.metric_name(metric), format="%.4g"),
        "expected": st.column_config.NumberColumn("expected", format="%.4g", help="From its layer and projection"),
        "times": st.column_config.NumberColumn("times that", format="%.4g"),
        "z": st.column_config.NumberColumn("robust z", format="%.3g", help="By the median and the MAD"),
        "peers": st.column_config.NumberColumn("compared with", help="Modules of the same base model and family"),
    }
    show(found.head(200), ("adapter", "module", "projection", *heads), heads)
    offer(found, "fleet_outliers")

if fleet.results is not None and fleets.has_sketches(fleet):
    st.subheader("Every adapter beside every other", anchor=False)
    if linked(st.toggle, "Cosines of all pairs, from sketches", key="fleet_pairs"):
        pairs = fleets.pairs(fleet, base)
        if len(pairs.adapters) > 1:
            shown = fleet_charts.ordered(pairs)
            draw(
                fleet_charts.cosines(shown), key="fleet_map", alt=f"Cosines of {shown['a'].nunique()} adapters in the "
                "order of their clusters.",
            )  # fmt: skip
            offer(shown, "fleet_map", partial(fleets.map_figure, pairs))
            double = pairs.duplicates()
            st.caption(f"{len(double)} pairs have one ΔW, but for a factor; {len(pairs.adapters):,} adapters.")
            nearest = pairs.table(500)
            table(nearest.drop(columns=["a", "b"]))
            offer(nearest, "fleet_nearest")

st.subheader("The rank that serves each", anchor=False)
heads = {
    "name": st.column_config.Column("adapter", pinned=True),
    "rank_now": st.column_config.NumberColumn("rank now", help="The largest rank that its ΔW may have"),
    "rank": st.column_config.NumberColumn("rank", help=f"The least that keeps {share:.0%} of Σσ² in every module"),
    "module": st.column_config.Column("module", help="The one that needs it"),
    "bytes_now": st.column_config.NumberColumn("size now", format="bytes", help="Of A and B of all its modules"),
    "bytes": st.column_config.NumberColumn("size", format="bytes", help="The same at that rank"),
}
show(ranks.head(500), heads, heads)
offer(ranks, "fleet_ranks")
with st.expander("Distributions by method, projection and r", icon=":material/table:"):
    spread = numbers.distributions(fleet)
    show(labelled(spread), ("label", *(name for name in spread.columns if name not in ("method", "base_model"))))
    offer(spread, "fleet_distributions")
explanation("fleet")
