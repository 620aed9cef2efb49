"""Page: updates beside the base model's weights: how large, what they amplify, whether they bring new directions."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app import beside_base, series, sources
from app.columns import show
from app.context import adapters_or_stop
from app.controls import choose, linked
from app.downloads import offer
from app.explain import explanation, folded, question
from app.inspection import adapter_of
from app.jobs import aside
from app.safe_markdown import markdown
from app.vega import draw
from app.verdicts import verdict_on
from bora_analysis.adapters import AdapterError

#: Column → its name in the menu and on the axis, and what it is.
MEASURES = {
    "relative_norm": ("‖ΔW‖ / ‖W0‖", "Frobenius norms"),
    "relative_spectral_norm": ("σ₁(ΔW) / σ₁(W0)", "Largest singular values"),
    "amplification": ("amplification", "‖ΔW‖_F / ‖UᵀW0V‖_F, U and V the top r directions of ΔW"),
    "intruder_dimensions": (
        "intruder dimensions",
        "Of the k largest directions of W0 + ΔW, those that W0 has not",
    ),
    "share_both": ("ρₖ, both sides", "Share of ‖ΔW‖² within the k largest directions of W0, of outputs and inputs"),
    "share_left": ("ρₖ, outputs", "Share of ‖ΔW‖² within the outputs of the k largest directions of W0"),
    "share_right": ("ρₖ, inputs", "Share of ‖ΔW‖² within the inputs of the k largest directions of W0"),
}

question("Relative", "How large is an update beside the base model, and does it bring directions of its own?")
context = adapters_or_stop()
known = {source.label: source for source in context.sources}
top = st.columns([3, 2, 3], vertical_alignment="bottom")
name = str(choose("Adapter", list(known), "adapter", top[0]))
source, layers = known[name], context.layer_metrics[context.layer_metrics["adapter"] == name]
steps = sorted(int(step) for step in layers["step"].dropna().unique())
step = steps[-1] if steps else None
if len(steps) > 1:
    step = choose("Step", steps[::-1], "step", top[1])
verdict_on(context, layers)
given = "" if sources.arguments().base is None else " (else the server's)"
text = ""
if sources.arguments().root:  # a public server opens no paths
    text = linked(
        top[2].text_input,
        f"Base model, a path on this server{given}",
        key="base",
        max_chars=1024,
        placeholder="a folder with model.safetensors",
    )
with st.expander("Settings", icon=":material/tune:"):
    boxes = st.columns(3)
    k = linked(boxes[0].number_input, "k of the intruders", 1, 256, 10, key="relative_k")
    epsilon = linked(boxes[1].number_input, "ε, the least cosine", 0.0, 1.0, 0.5, step=0.05, key="relative_epsilon")
    subspace = linked(boxes[2].number_input, "k of ρₖ", 1, 256, 10, key="relative_subspace")


def end() -> None:
    explanation("relative")
    st.stop()


base = frame = None
try:
    base = beside_base.base_of(text or "")
    if base is not None:
        adapter = adapter_of(source, step)
        key = (base.key, str(source.path), sources.stamp(source.path), step, k, epsilon, subspace)
        work = partial(beside_base.relative, base, source, adapter, int(k), float(epsilon), int(subspace))
        frame = aside("relative", key, sources.shielded(source, work), markdown(name))
except (AdapterError, ValueError) as error:
    st.error(markdown(str(error) if base is None else base.told(error)), icon=":material/error:")
    end()
if base is None:
    st.info(
        "Name the base model of this adapter above, or start with `bora-analysis dashboard --base DIR_OR_HUB_ID`.",
        icon=":material/info:",
    )
    end()
if frame is None:
    end()
else:
    measure = choose("Measure", list(MEASURES), "measure", format_func=lambda each: MEASURES[each][0])
    title, words = MEASURES[measure]
    cards = st.container(horizontal=True)
    for each in ("relative_norm", "amplification", "intruder_dimensions", "share_both"):
        cards.metric(f"{MEASURES[each][0]}, mean", f"{frame[each].mean():.3g}", help=MEASURES[each][1])
    if frame["layer"].notna().any():
        draw(
            series.by_projection(frame, measure, title),
            key="relative",
            alt=f"{title} over the layers of {name}, a line per projection; from {frame[measure].min():.4g} to "
            f"{frame[measure].max():.4g}.",
        )
    st.caption(markdown(f"{words}."))
    offer(frame, "relative", partial(series.figure, columns={measure: title}))
    with folded("Table", "relative_table") as opened:
        if opened:
            show(frame)

explanation("relative")
