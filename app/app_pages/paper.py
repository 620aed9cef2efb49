"""Page 6: the paper's figure 3, its tables, and its claims with verdicts."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import method_charts
from app.columns import show
from app.controls import pills, segments
from app.downloads import offer
from app.explain import explanation, question
from app.explain import table as boxed
from app.safe_markdown import markdown
from app.vega import draw
from bora_analysis import style
from bora_analysis.paper import tables as paper
from bora_analysis.paper.claims import claims
from bora_analysis.paper.claims.common import CONDITION, ERRATUM, HOLDS

VIEWS = ["Figure 3", "Tables", "#Params", "Claims"]
#: Verdict → colour and icon of its badge: a reader who sees no colours has the icon and the word.
BADGES: dict[str, tuple[Any, str]] = {
    HOLDS: ("green", ":material/check:"),
    CONDITION: ("orange", ":material/rule:"),
    ERRATUM: ("red", ":material/close:"),
}
VARIANTS = {"bora": "BoRA", "bora-no-exp": "w.o. Exp", "bora-no-norm": "w.o. Norm"}
UNITS = {"memory_gb": "memory (GB)", "time_min": "time of one epoch (min)"}

question("Paper", "What does the BoRA paper report, and which of its claims hold when they are computed again?")


tables = st.cache_resource(show_spinner=False)(paper.tables)
recounted = st.cache_resource(show_spinner=False)(paper.check)
judged = st.cache_resource(show_spinner="Computing a verdict for each claim …")(claims)


def averages(k: int) -> Any:
    frame: Any = tables()
    return frame[(frame["table"] == k) & (frame["task"] == "Avg")]


def figure_3() -> None:
    st.markdown("Average accuracy on mathematical reasoning, from the paper's tables 7, 9 and 8.")
    first, second = st.columns(2)
    third, rest = st.columns(2)
    models = averages(7)
    models = models.assign(name=models["model"].map(style.MODELS), variant=models["method"].map(VARIANTS))
    ranks = averages(9)
    ranks = ranks.assign(rank=[f"r = {r}" for r in ranks["r"]]).sort_values(["r", "blocks"], kind="stable")
    bora, lora = ranks[ranks["method"] == "bora"], ranks[ranks["method"] == "lora"]
    panels = {
        "**(a) Ablations**": (
            method_charts.ablations(models),
            "Accuracy of BoRA, and without its exponential and its normalisation, for three models.",
        ),
        "**(b) Rank and blocks**": (
            method_charts.ranks_and_blocks(bora, lora),
            "Accuracy of BoRA on LLaMA-3-8B against the number of blocks, a line per r, and LoRA of the same r.",
        ),
        "**(c) Projections**": (
            method_charts.granularity(averages(8)),
            "Accuracy of LoRA and BoRA on LLaMA-3-8B for five choices of the adapted projections.",
        ),
    }
    for place, letter, (head, (chart, alt)) in zip((first, second, third), "abc", panels.items(), strict=True):
        with place:
            st.markdown(head)
            draw(chart, key=f"figure3{letter}", alt=alt)
    shown = pd.concat([averages(k) for k in (7, 9, 8)], ignore_index=True)
    with rest:
        st.caption(
            "Dashed in (b): LoRA of the same r. (b) and (c) are LLaMA-3-8B. No axis starts at 0, so there are no bars."
        )
        offer(shown, "figure3", "figure3", tables())
        boxed(shown)


def table() -> None:
    k = segments("Table", list(paper.TITLES), "paper_table", default=2, wrap=True)
    st.markdown(f"**Table {k}:** {paper.TITLES[int(k)]}")
    frame: Any = tables()
    frame = frame[frame["table"] == k]
    tasks = list(dict.fromkeys(frame["task"]))
    usual = "Avg" if "Avg" in tasks else tasks[-1]
    task = segments("Task", tasks, "paper_task", default=usual, format_func=lambda name: UNITS.get(name, name))
    rows = frame[frame["task"] == task]
    rows = rows.assign(
        run=[run_name(row) for row in rows.itertuples()],
        low=rows["value"] - rows["std"],
        high=rows["value"] + rows["std"],
        label=[method_label(method) for method in rows["method"]],
    )
    unit = UNITS.get(str(task)) or ("standard deviation" if k in (5, 6) else f"{task} (%)")
    models = list(dict.fromkeys(rows["model"]))
    for column, model in zip(st.columns(len(models)), models, strict=True):
        part = rows[rows["model"] == model]
        best = part.loc[part["value"].idxmax()]
        with column:
            st.markdown(f"**{markdown(str(style.MODELS.get(model, model)))}**")
            draw(
                method_charts.runs(part, unit, list(dict.fromkeys(method_of(name) for name in part["method"]))),
                key=f"runs_{model}",
                alt=f"{unit} of {len(part)} runs on {model}. Highest: {best['run']}, {best['value']:.2f}.",
            )
    if rows["std"].notna().any():
        st.caption("Lines: ± the standard deviation that the paper gives. The axes do not start at 0.")
    numbers = {name: st.column_config.NumberColumn(UNITS.get(name, name), format="%.2f") for name in tasks}
    wide = paper.wide(int(k))
    show(wide, wide.columns, numbers)
    offer(frame, f"table{k}")


def method_of(name: str) -> str:
    """Ablations have BoRA's look."""
    return "bora" if name.startswith("bora") else name


def method_label(name: str) -> str:
    return style.method_look(method_of(name)).label


def run_name(row: Any) -> str:
    name = VARIANTS.get(row.method) or method_label(row.method)
    blocks = f", b = {row.blocks}" if row.blocks > 1 else ""
    target = f", {row.target}" if row.table == 8 else ""
    return f"{name} r = {row.r}{blocks}{target}"


def params() -> None:
    frame: Any = recounted()
    right = int(frame["ok"].sum())
    st.markdown(
        f"**{right} of {len(frame)}** entries of the #Params columns (tables 1–4, 8 and 9) agree, to the digits "
        "printed, with the number computed from the architecture."
    )
    count = st.column_config.NumberColumn("exact count", format="localized")
    equal = st.column_config.CheckboxColumn("equal")
    show(frame, frame.columns, {"parameters": count, "paper": "as printed", "ok": equal})
    offer(frame, "params-check")


def claims_list() -> None:
    frame = judged()
    counts = frame["verdict"].value_counts()
    verdicts = [verdict for verdict in BADGES if verdict in counts]
    chosen = pills(
        "Verdict",
        verdicts,
        key="paper_verdicts",
        default=verdicts,
        selection_mode="multi",
        format_func=lambda verdict: f"{BADGES[verdict][1]} {verdict} ({counts[verdict]})",
    )
    for row in frame[frame["verdict"].isin(chosen)].itertuples():
        colour, icon = BADGES[str(row.verdict)]
        with st.container(border=True, gap="xsmall"):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.badge(str(row.verdict), icon=icon, color=colour)
                st.caption(markdown(f"{row.id} · {row.where}"), width="content")
            st.markdown(f"**{markdown(str(row.claim))}**")
            st.caption(markdown(str(row.evidence)))
    boxed(frame)
    offer(frame, "claims")


view = segments("Show", VIEWS, "paper_view", label_visibility="collapsed")
{"Figure 3": figure_3, "Tables": table, "#Params": params, "Claims": claims_list}[str(view)]()

explanation("paper")
