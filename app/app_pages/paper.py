"""Page 6: the paper's figure 3, its tables, and its claims with verdicts."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import charts, method_charts
from app.downloads import offer
from app.explain import explanation, question
from app.safe_markdown import markdown
from bora_analysis import style
from bora_analysis.paper import tables as paper
from bora_analysis.paper.claims import claims
from bora_analysis.paper.claims.common import CONDITION, ERRATUM, HOLDS, MODELS

VIEWS = ["Figure 3", "Tables", "#Params", "Claims"]
#: Verdict → colour and icon of its badge: a reader who sees no colours has the icon and the word.
BADGES: dict[str, tuple[Any, str]] = {
    HOLDS: ("green", ":material/check:"),
    CONDITION: ("orange", ":material/rule:"),
    ERRATUM: ("red", ":material/close:"),
}
VARIANTS = {"bora": "BoRA", "bora-no-exp": "w.o. Exp", "bora-no-norm": "w.o. Norm"}
UNITS = {"memory_gb": "memory (GB)", "time_min": "time of one epoch (min)"}

question("Paper", "What does the BoRA paper report, and which of its checkable claims hold when computed again?")


@st.cache_resource(show_spinner=False)
def tables() -> pd.DataFrame:
    return paper.tables()


@st.cache_resource(show_spinner="Judging the claims anew, each by a computation …")
def judged() -> pd.DataFrame:
    return claims()


@st.cache_resource(show_spinner=False)
def recounted() -> pd.DataFrame:
    return paper.check()


def averages(k: int) -> Any:
    frame: Any = tables()
    return frame[(frame["table"] == k) & (frame["task"] == "Avg")]


def figure_3() -> None:
    st.markdown("Average accuracy on mathematical reasoning, from the paper's tables 7, 9 and 8.")
    first, second = st.columns(2)
    third, rest = st.columns(2)
    rows = averages(7)
    rows = rows.assign(name=rows["model"].map(MODELS), variant=rows["method"].map(VARIANTS))
    with first:
        st.markdown("**(a) Ablations**")
        charts.draw(
            method_charts.ablations(rows),
            key="figure3a",
            alt="Accuracy of BoRA, and without its exponential and its normalisation, for three models.",
        )
    rows = averages(9)
    rows = rows.assign(rank=[f"r = {r}" for r in rows["r"]]).sort_values(["r", "blocks"], kind="stable")
    with second:
        st.markdown("**(b) Rank and blocks**")
        charts.draw(
            method_charts.ranks_and_blocks(rows[rows["method"] == "bora"], rows[rows["method"] == "lora"]),
            key="figure3b",
            alt="Accuracy of BoRA on LLaMA-3-8B against the number of blocks, a line per r, and LoRA of the same r.",
        )
    with third:
        st.markdown("**(c) Projections**")
        charts.draw(
            method_charts.granularity(averages(8)),
            key="figure3c",
            alt="Accuracy of LoRA and BoRA on LLaMA-3-8B for five choices of the adapted projections.",
        )

    def figure() -> Any:
        from bora_analysis.figures import figure3 as draw

        return draw(tables())

    shown = pd.concat([averages(k) for k in (7, 9, 8)], ignore_index=True)
    with rest:
        st.caption(
            "Dashed in (b): LoRA of the same r. (b) and (c) are LLaMA-3-8B. No axis begins at 0, so nothing is drawn "
            "as a bar."
        )
        offer(shown, "figure3", figure)
        with st.expander("Table", icon=":material/table:"):
            st.dataframe(shown, hide_index=True)


def table() -> None:
    k = st.segmented_control(
        "Table", list(paper.TITLES), default=2, required=True, wrap=True, key="paper_table", bind="query-params"
    )
    st.markdown(f"**Table {k}:** {paper.TITLES[int(k)]}")
    frame: Any = tables()
    frame = frame[frame["table"] == k]
    tasks = list(dict.fromkeys(frame["task"]))
    usual = "Avg" if "Avg" in tasks else tasks[-1]
    if st.session_state.get("paper_task", usual) not in tasks:  # of the table shown before
        del st.session_state["paper_task"]
    task = st.segmented_control(
        "Task",
        tasks,
        default=usual,
        required=True,
        format_func=lambda name: UNITS.get(str(name), str(name)),
        key="paper_task",
        bind="query-params",
    )
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
            st.markdown(f"**{markdown(str(MODELS.get(model, model)))}**")
            charts.draw(
                method_charts.runs(part, unit, list(dict.fromkeys(method_of(name) for name in part["method"]))),
                key=f"runs_{model}",
                alt=f"{unit} of {len(part)} runs on {model}. Highest: {best['run']}, {best['value']:.2f}.",
            )
    if rows["std"].notna().any():
        st.caption("Lines: ± the standard deviation that the paper gives. The axes do not begin at 0.")
    numbers = {name: st.column_config.NumberColumn(UNITS.get(name, name), format="%.2f") for name in tasks}
    st.dataframe(paper.wide(int(k)), hide_index=True, column_config={"blocks": "b", "params": "#Params", **numbers})
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
        f"**{right} of {len(frame)}** entries of the #Params columns (tables 1–4, 8 and 9) are what the architectures "
        "give, to the digits printed."
    )
    columns: dict[str, Any] = {
        "parameters": st.column_config.NumberColumn("exact count", format="localized"),
        "paper": "as printed",
        "ok": st.column_config.CheckboxColumn("equal"),
    }
    st.dataframe(frame, hide_index=True, column_config=columns)
    offer(frame, "params-check")


def claims_list() -> None:
    frame = judged()
    counts = frame["verdict"].value_counts()
    verdicts = [verdict for verdict in BADGES if verdict in counts]
    chosen = st.pills(
        "Verdict",
        verdicts,
        default=verdicts,
        selection_mode="multi",
        format_func=lambda verdict: f"{BADGES[verdict][1]} {verdict} ({counts[verdict]})",
        key="paper_verdicts",
        bind="query-params",
    )
    for row in frame[frame["verdict"].isin(chosen)].itertuples():
        colour, icon = BADGES[str(row.verdict)]
        with st.container(border=True, gap="xsmall"):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.badge(str(row.verdict), icon=icon, color=colour)
                st.caption(markdown(f"{row.id} · {row.where}"), width="content")
            st.markdown(f"**{markdown(str(row.claim))}**")
            st.caption(markdown(str(row.evidence)))
    with st.expander("Table", icon=":material/table:"):
        st.dataframe(frame, hide_index=True)
    offer(frame, "claims")


view = st.segmented_control(
    "Show", VIEWS, default=VIEWS[0], required=True, key="paper_view", bind="query-params", label_visibility="collapsed"
)
{"Figure 3": figure_3, "Tables": table, "#Params": params, "Claims": claims_list}[str(view)]()

explanation(
    [
        (
            (
                "The numbers are the paper's own, kept as tidy tables. Averages lost in extraction are rebuilt, and "
                "the #Params column is computed from the layers of each model."
            ),
            (
                r"\#\text{Params} = \textstyle\sum_{\text{layers}} (m + n)\,r \text{ for LoRA}, \qquad "
                r"\sum_{\text{layers}} (m + n + b^2)\,r \text{ for BoRA}"
            ),
        ),
        (
            (
                "No verdict is written down. Each claim has a computation, made when this page is first opened, and "
                "the verdict follows from its numbers: *holds*; *holds under a condition*, true in part of the cases "
                "that the claim covers; *erratum*. What only a training run can show is not among them."
            ),
            "",
        ),
    ],
    ["BoRA, arXiv 2508.06953"],
)
