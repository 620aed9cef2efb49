"""Page: how small an adapter can be while it keeps a share of its energy, and the smaller one as a file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import streamlit as st

from app import series, sources
from app.columns import show
from app.context import adapters_or_stop
from app.controls import choose, linked, segments
from app.downloads import offer
from app.explain import explanation, folded, question
from app.inspection import adapter_of
from app.jobs import Told
from app.safe_markdown import markdown, one_line
from app.vega import draw
from app.verdicts import verdict_on
from app.written import WIDTHS, bytes_of, file_name, offer_written
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis.conversion import Conversion, convert
from bora_analysis.analysis.recommendation import recommend
from bora_analysis.analysis.tables import Tables
from bora_analysis.analysis.trimming import trimmed
from bora_analysis.style import method_look

#: Percent of Σσ².
SHARES = [50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 92.0, 94.0, 95.0, 96.0, 97.0, 98.0, 98.5, 99.0, 99.5, 99.9, 99.99]
SHARES += [100.0]
NEXT, FILE = "of the next run", "of this file"

question("Trim", "How small can an adapter be while it keeps its energy?")
context = adapters_or_stop()
known = {source.label: source for source in context.sources}
top = st.columns([3, 2], vertical_alignment="bottom")
name = str(choose("Adapter", list(known), "adapter", top[0]))
source, layers = known[name], context.layer_metrics[context.layer_metrics["adapter"] == name]
spectra = context.spectra[context.spectra["adapter"] == name]
steps = sorted(int(step) for step in layers["step"].dropna().unique())
step = steps[-1] if steps else None
if len(steps) > 1:
    step = choose("Step", steps[::-1], "step", top[1])
if steps:
    layers, spectra = layers[layers["step"] == step], spectra[spectra["step"] == step]
verdict_on(context, layers)
percent = linked(
    st.select_slider,
    "Energy kept, percent of Σσ²",
    SHARES,
    value=99.0,
    format_func=lambda value: f"{value:g}%",
    key="energy",
    help="In every module as many of the largest directions as hold this share. 100 %: all that are there.",
)
share = float(percent) / 100
table = trimmed(layers, spectra, share)
after, before = int(table["parameters"].sum()), int(table["parameters_before"].sum())

width = segments("Type of the numbers", list(WIDTHS), "trim_dtype")
with st.container(horizontal=True):
    st.metric("parameters", f"{after:,}", f"{after / before - 1:+.0%}" if before else None, delta_color="inverse")
    st.metric("file", bytes_of(after * WIDTHS[width]), help=f"{after:,} numbers of {WIDTHS[width]} bytes")
    st.metric("rank, mean", f"{table['rank'].mean():.1f}", f"of {table['rank_before'].mean():.1f}", delta_color="off",
              delta_arrow="off")  # fmt: skip
    st.metric("largest error", f"{table['error_relative'].max():.3g}", help="‖ΔW − ΔW_k‖_F / ‖ΔW‖_F of one module")
titles = {"rank": "rank kept", "error_relative": "relative error"}
if layers["layer"].notna().any():
    for place, (column, title), bound in zip(st.columns(2), titles.items(), ("rank_before", None), strict=True):
        with place:
            draw(
                series.by_projection(table, column, title, bound),
                key=f"trim_{column}",
                alt=f"{title} over the layers at {percent:g} % of Σσ², a line per projection of {name}; "
                f"from {table[column].min():.4g} to {table[column].max():.4g}.",
            )
    st.caption("Dashed: the rank before. Relative error: ‖ΔW − ΔW_k‖_F / ‖ΔW‖_F.")
offer(table, "trim", partial(series.figure, columns=titles, bounds={"rank": "rank_before"}))
with folded("Table", "trim_table") as opened:
    if opened:
        show(table)

st.subheader("The adapter, cut", anchor=False)
if after > before:
    st.caption(f"As a LoRA it has more parameters than now: {markdown(method_look(layers['method'].iloc[0]).label)} "
               "reaches its rank with fewer.")  # fmt: skip


def write(folder: Path, told: Told) -> Conversion:
    """As `bora-analysis convert --energy` does."""
    sources.check(source)
    adapter = adapter_of(source, step)
    done = 0

    def one() -> None:
        nonlocal done
        done += 1
        told(done, len(adapter))

    return convert(adapter, folder, energy=share, dtype=width, on_module=one, base=sources.arguments().base)


written = None
try:
    key = (str(source.path), sources.stamp(source.path), step, share, width)
    written = offer_written(
        "trim", key, file_name(f"{name}-{percent:g}"), after * WIDTHS[width], sources.shielded(source, write)
    )
except (AdapterError, ValueError) as error:
    st.error(markdown(str(error)), icon=":material/error:")
if written is not None:
    worst = written.table["error_relative"].max()
    st.caption(f"A LoRA for PEFT, rounded to {width}; the largest relative error of the file is {worst:.4g}.")
st.caption("The same on the command line:")
options = f"--energy {share:.10g}" + ("" if width == "float32" else f" --dtype {width}")
line = f"bora-analysis convert {one_line(name)} -o {file_name(f'{name}-{percent:g}')} {options}"
st.code(line, language="sh", wrap_lines=True)

st.subheader("Configuration", anchor=False)
of = segments("Of", [NEXT, FILE], "trim_config", label_visibility="collapsed")
if of == FILE:
    if written is None:
        st.caption("Write the adapter: its configuration is shown here.")
    else:
        st.code(written.config, language="json", height=320, wrap_lines=True)
elif share == 1:
    st.caption("Choose less than 100 % of the energy.")
else:
    st.caption("r, α and patterns for PEFT that give each projection the rank it needs, at the scaling it has.")
    try:
        config = recommend(Tables.of_frames(spectra, layers), energy=share).config
        tall = len(config["rank_pattern"]) > 5
        st.code(json.dumps(config, indent=1), language="json", height=320 if tall else "content", wrap_lines=True)
    except ValueError as error:  # ΔW = 0
        st.info(markdown(str(error)), icon=":material/info:")

explanation("trim")
