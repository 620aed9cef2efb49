"""Page 4: how much of an update other methods could have represented, at fewer and at more parameters."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import capturing, method_charts
from app.columns import show
from app.context import adapters_or_stop
from app.controls import ALL, choose, pills, projections, segments
from app.downloads import offer
from app.explain import explanation, question
from app.inspection import adapter_of
from app.jobs import aside
from app.safe_markdown import markdown
from app.sources import stamp
from app.vega import draw
from app.verdicts import verdict_on
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis import views
from bora_analysis.analysis.capture import shares
from bora_analysis.analysis.members import set_label
from bora_analysis.catalogue import METHODS

#: The paper's three.
USUAL = ["lora", "melora", "bora"]

question("Capture", "How much of an update could another method, or a smaller rank, have represented?")
context = adapters_or_stop()
layers = views.last_steps(context.layer_metrics)
known = {source.label: source for source in context.sources}

with st.container(horizontal=True, vertical_alignment="bottom"):
    name = str(choose("Target", list(known), "adapter"))
    own = layers[layers["adapter"] == name]
    projection = segments("Projection", projections(own), "projection", format_func=markdown)
    whole = st.toggle("All modules", key=f"capture_all:{name}", help="A few of them are shown at first.")
verdict_on(context, own)
methods = pills(
    "Methods",
    capturing.methods(),
    key="capture_methods",
    default=USUAL,
    selection_mode="multi",
    format_func=lambda method: METHODS[method].label,
)
chosen = [method for method in capturing.methods() if method in (methods or [])]
if not chosen:
    st.info("Choose at least one method.", icon=":material/info:")
    st.stop()

source, steps = known[name], own["step"].dropna()
try:
    adapter = adapter_of(source, None if steps.empty else int(steps.max()))
    modules = capturing.modules_of(adapter, None if projection == ALL else projection, whole)
    frame = aside(
        "capture",
        (source, stamp(source.path), adapter.step, tuple(modules), tuple(chosen)),
        partial(capturing.captured, source, adapter, chosen, modules),
        markdown(name),
    )
except (AdapterError, ValueError) as error:
    st.error(markdown(str(error)), icon=":material/error:")
    st.stop()
if frame is None:
    explanation("capture")
    st.stop()

found = shares(frame)
if found.empty:
    st.info("ΔW = 0 in these modules: there is nothing to represent.", icon=":material/info:")
    st.stop()
best = found.loc[found.groupby("method")["captured"].idxmax()]
told = ", ".join(f"{row.member} {row.captured:.1%}" for row in best.itertuples())
draw(
    method_charts.captured(found, chosen),
    key="captured",
    alt=f"Captured share of Σσ² against trained parameters, logarithmic, {len(modules)} modules. Highest: {told}.",
)
count, total = len(modules), len(own if projection == ALL else own[own["projection"] == projection])
st.caption(
    f"{count} of {total} modules; parameters are theirs. Dashed: LoRA between whole ranks. Searches of the local kind "
    "begin once."
)
if "lora" in chosen:
    st.caption(f"One set, one line: {set_label('lora')}.")
share = {
    key: st.column_config.NumberColumn(head, format="percent", help=words)
    for key, head, words in (
        ("captured", "captured", "Share of Σσ² that the nearest ΔW keeps, over all modules"),
        ("least", "least", "Of one module"),
        ("most", "most", "Of one module"),
        ("lora_captured", "LoRA", "Of a LoRA with as many parameters, between whole ranks"),
    )
}
named = {"member": st.column_config.Column("nearest", pinned=True), "kind": st.column_config.Column("found")}
show(found, ("member", "parameters", "captured", "lora_captured", "least", "most", "kind"), named | share)
offer(frame, "capture", "capture")

explanation("capture")
