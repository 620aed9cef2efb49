"""Page: adapters beside a pinned one: differences module by module, and the subspaces of all pairs."""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from app import charts, comparing
from app.columns import show
from app.context import adapters_or_stop
from app.controls import choose, linked, segments
from app.downloads import offer
from app.explain import explanation, folded, question
from app.jobs import aside
from app.safe_markdown import markdown
from app.sources import stamp
from app.vega import draw
from app.verdicts import verdict_on
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis import views
from bora_analysis.metrics import METRICS

SIDES = {"left": "outputs of ΔW", "right": "inputs of ΔW"}

question("Compare", "Where do adapters differ from one of them, and do they point into the same directions?")
context = adapters_or_stop()
layers = views.last_steps(context.layer_metrics)
names = [source.label for source in context.sources]
if len(names) < 2:
    if not context.waiting:
        st.info("Choose two adapters or more in the sidebar.", icon=":material/arrow_back:")
    explanation("compare")
    st.stop()

verdict_on(context, layers)
boxes = st.columns(2)
baseline = str(choose("Baseline", names, "baseline", boxes[0]))
metric = str(choose("Metric", list(METRICS), "metric", boxes[1], format_func=charts.metric_name))
table = comparing.differences(layers, metric, baseline)
if table.empty:
    st.info(f"No other adapter has a module of {markdown(baseline)}.", icon=":material/info:")
else:
    st.subheader(f"Less {markdown(baseline)}", anchor=False)
    title = f"{charts.metric_title(metric)}, difference"
    means = table.groupby("adapter", sort=False)["difference"].mean()
    told = "; ".join(f"{name}: {value:+.4g}" for name, value in means.items())
    count, shown = table["module"].nunique(), comparing.with_rows(table)
    draw(
        comparing.grid(shown, "adapter", "row", "difference", title, centred=True, tall=24 if count <= 40 else 8),
        key="compare",
        alt=f"{metric} of each adapter less that of {baseline}, {count} modules. Means: {told}.",
    )
    st.caption(markdown(f"Red: more than {baseline}, blue: less. Mean differences: {told}."))
    options: dict[str, Any] = {
        "across": "adapter",
        "down": "row",
        "value": "difference",
        "label": title,
        "centred": True,
    }
    offer(table, "compare", partial(comparing.figure, **options), shown)
    with folded("Table", "compare_table") as opened:
        if opened:
            show(table)

st.subheader("Subspaces of all pairs", anchor=False)
boxes = st.columns([2, 3], vertical_alignment="bottom")
i = int(linked(boxes[0].number_input, "Directions of each, at most", 1, 256, 8, key="similarity_i"))
side = segments("Side", list(SIDES), "similarity_side", boxes[1], format_func=lambda each: SIDES[each])
if len(names) > comparing.MOST:
    st.caption(f"The first {comparing.MOST} adapters are compared.")
chosen = []
for source in context.sources[: comparing.MOST]:
    step = layers.loc[layers["adapter"] == source.label, "step"].dropna()
    chosen.append((source, None if step.empty else int(step.iloc[0])))
try:
    key = (tuple((str(source.path), stamp(source.path), source.label, step) for source, step in chosen), i)
    pairs = aside("similarity", key, partial(comparing.overlaps, chosen, i), "All pairs")
    if pairs is not None and pairs.empty:
        st.info("No two of these adapters have a base model and a module in common.", icon=":material/info:")
    elif pairs is not None:
        found = comparing.matrix(pairs, names, side)
        title = "φ above chance, mean over the modules"
        best: Any = max(found.to_dict("records"), key=lambda row: row["above_chance"])
        draw(
            comparing.grid(found, "adapter_b", "adapter_a", "above_chance", title, centred=False, tall=40),
            key="similarity",
            alt=f"Overlap of the top {i} directions of every pair, {SIDES[side]}, less that of random ones. Largest: "
            f"{best['adapter_a']} and {best['adapter_b']}, {best['above_chance']:.3f}.",
        )
        told = f"Most alike: {best['adapter_a']} and {best['adapter_b']}, {best['above_chance']:.3f} of 1."
        st.caption(markdown(told))
        options: dict[str, Any] = {"across": "adapter_b", "down": "adapter_a", "value": "above_chance", "label": title}
        options["centred"] = False
        offer(found, "similarity_matrix", partial(comparing.figure, **options))
        with folded("Modules", "similarity_table") as opened:
            if opened:
                show(pairs)
                offer(pairs, "similarity_pairs")
except (AdapterError, ValueError) as error:
    st.error(markdown(str(error)), icon=":material/error:")

explanation("compare")
