"""Page 5: what a budget of parameters buys on a model, before anything is trained."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import charts, method_charts
from app.context import current, latest
from app.downloads import offer
from app.explain import explanation, question
from bora_analysis.analysis.budget import Choice
from bora_analysis.analysis.cost_tables import best_blocks as best_of
from bora_analysis.analysis.cost_tables import budget_table, notes
from bora_analysis.catalogue import METHODS, costed
from bora_analysis.catalogue.architectures import ARCHITECTURES, LETTERS, Matrices, architecture

MODELS = list(ARCHITECTURES)
LETTER_OF = {name: letter.upper() for letter, name in LETTERS.items()}
USUAL = ["lora", "melora", "bora"]
#: Of every method's choices that many stand in the table, the highest bounds first.
SHOWN = 200

question("Budget", "Which method, r and b buy the most rank for the parameters that you can train?")


def controls() -> tuple[str, list[Matrices], int, list[str]]:
    with st.container(border=True):
        top = st.columns([1.3, 1.7, 1.2])
        model = str(
            top[0].selectbox("Model", MODELS, index=MODELS.index("llama-3-8b"), key="budget_model", bind="query-params")
        )
        known = architecture(model).matrices()
        letters = [LETTER_OF[part.projection] for part in known]
        target = top[1].segmented_control(
            "Projections",
            letters,
            default=[letter for letter in ("Q", "K", "V") if letter in letters],
            selection_mode="multi",
            key="budget_target",
            bind="query-params",
            help="Adapted in every layer. Q K V O: attention; G U D: gate, up and down of the MLP.",
        )
        budget = top[2].number_input(
            "Parameters to train",
            1_000,
            1_000_000_000,
            5_000_000,
            100_000,
            format="%d",
            key="budget_parameters",
            bind="query-params",
        )
        methods = st.pills(
            "Methods",
            costed(),
            default=USUAL,
            selection_mode="multi",
            format_func=lambda method: METHODS[method].label,
            key="budget_methods",
            bind="query-params",
        )
    chosen = [part for part in known if LETTER_OF[part.projection] in (target or [])]
    return model, chosen, int(budget), [method for method in costed() if method in methods]


def front_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose bound no cheaper row reaches, by parameters."""
    ordered = frame.sort_values(["parameters", "rank_bound"], ascending=[True, False], kind="stable")
    before = ordered["rank_bound"].cummax().shift(fill_value=0)
    return ordered[ordered["rank_bound"] > before]


def choices_table(frame: pd.DataFrame) -> None:
    columns: dict[str, Any] = {
        "label": st.column_config.TextColumn("method", pinned=True),
        "r": "r",
        "blocks": "b",
        "parameters": st.column_config.NumberColumn("parameters", format="localized"),
        "share": st.column_config.ProgressColumn("of the budget", format="percent", min_value=0.0, max_value=1.0),
        "rank_bound": st.column_config.NumberColumn("bound", format="%.6g", help="Mean over the matrices"),
        "per_1k": st.column_config.NumberColumn("per 1k parameters", format="%.3g", help="Bounds for 1,000 parameters"),
        "macs_per_token": st.column_config.NumberColumn(
            "MACs per token", format="localized", help="Multiply-adds beyond the frozen layers; the paper's FLOPs"
        ),
    }
    shown = method_charts.labelled(frame.head(SHOWN)).assign(per_1k=1000 * frame["bound_per_parameter"])
    rows = [METHODS[method] for method in shown["method"]]
    shown["blocks"] = [str(b) if row.cut else "·" for b, row in zip(shown["blocks"], rows, strict=True)]
    shown["r"] = [str(r) if row.ranked else "·" for r, row in zip(shown["r"], rows, strict=True)]
    st.dataframe(shown, hide_index=True, column_order=list(columns), column_config=columns)


def buys(model: str, parts: list[Matrices], budget: int, methods: list[str]) -> None:
    """What fits into the budget: the best of each method, the picture, all of it."""
    try:
        frame = budget_table(model, parts, budget, methods=methods, at_least=0.0)
    except ValueError as error:
        st.error(str(error), icon=":material/error:")
        return
    best = frame.drop_duplicates("method")
    first = best.iloc[0]
    choice = Choice(*(first[name] for name in Choice._fields))
    label = METHODS[choice.method].label
    st.markdown(
        f"The highest bound for at most {budget:,} parameters has **{label}**"
        + (f" with **{choice.settings}**" if choice.settings else "")
        + f": {choice.rank_bound:,.6g} for {choice.parameters:,} parameters."
    )
    charts.draw(
        method_charts.pareto(frame, front_of(frame), budget, methods),
        key="pareto",
        alt=f"Rank bound against trained parameters, both logarithmic, of {len(frame)} settings within the budget. "
        f"Highest: {label}, bound {choice.rank_bound:,.6g}.",
    )
    st.caption("A point: one method at one r and b. Dashed: the front, the least parameters for each bound.")
    if first["method"] == "melora":
        st.caption(
            f"MELoRA's ΔW is 0 outside of its b diagonal blocks: with b = {first['blocks']} it changes one entry in "
            f"{first['blocks']:,} of W. BoRA fills all blocks."
        )
    st.markdown("The best of each method")
    choices_table(best)
    for line in notes(methods):
        st.caption(line)
    with st.expander(f"All {len(frame):,} settings", icon=":material/table:"):
        choices_table(frame)
        if len(frame) > SHOWN:
            st.caption(f"The first {SHOWN} of {len(frame):,}; the CSV has all.")
    offer(frame.drop(columns="share"), "budget")


def best_blocks(model: str, parts: list[Matrices]) -> None:
    """N(b)/R of every shape, and of all together where they differ."""
    rows: list[tuple[Any, ...]] = []
    rules: list[tuple[Any, ...]] = []
    summary: list[tuple[Any, ...]] = []
    for names, blocks in best_of(parts).items():
        matrices, (m, n) = len(blocks.shapes), blocks.shapes[0]
        letters = " ".join(LETTER_OF[name] for name in names.split() if name in LETTER_OF)
        name = "all together" if names == "all" else f"{letters}  {m}×{n}"
        # Far beyond the optimum the curve is a straight line that would press the rest together.
        for b in (b for b in blocks.valid if b <= 8 * blocks.optimum):
            rows.append((name, b, float(blocks.parameters(b)) / matrices, b in blocks.best))
        if blocks.paper is not None and names != "all":
            rules.append((name, blocks.paper, float(blocks.parameters(blocks.paper))))
        divides = "" if blocks.paper in blocks.valid else " (does not divide)"
        summary.append((
            name, " or ".join(map(str, blocks.best)) + (" (tie)" if len(blocks.best) > 1 else ""), blocks.optimum,
            "·" if blocks.paper is None else f"{blocks.paper}{divides}",
            float(blocks.parameters(min(blocks.best))) / matrices,
        ))  # fmt: skip
    curve = pd.DataFrame(rows, columns=["shape", "blocks", "price", "best"])
    rule = pd.DataFrame(rules, columns=["shape", "blocks", "price"])
    table = pd.DataFrame(summary, columns=["shape", "best b", "√(m+n)", "⌊√n⌋", "parameters per rank"])
    charts.draw(
        method_charts.block_price(curve, rule),
        key="block_price",
        alt="Parameters of BoRA per unit of rank against b. Best: "
        + "; ".join(f"{row[0]} b = {row[1]}" for row in summary)
        + ".",
    )
    st.caption("Diamonds: every b that divides m and n; large: the best. Ring: the paper's rule ⌊√n⌋.")
    st.dataframe(
        table,
        hide_index=True,
        column_config={
            "√(m+n)": st.column_config.NumberColumn(format="%.2f", help="Where N(b) is least for real b"),
            "parameters per rank": st.column_config.NumberColumn(format="%.6g", help="At the best b"),
        },
    )

    def figure() -> Any:
        from bora_analysis.figures import optimal_blocks as draw

        return draw(model=model)

    offer(curve.assign(model=model), "optimal-blocks", figure)


def your_adapters() -> None:
    layers = latest(current().layer_metrics)
    if layers.empty:
        st.caption("Choose adapters in the sidebar to see what they paid and what they use.")
        return
    looks = charts.looks_of(current().layer_metrics)
    totals = (
        layers.groupby("adapter", sort=False)
        .agg(
            parameters=("parameters", "sum"),
            rank_bound=("rank_bound", "mean"),
            effective_rank=("effective_rank", "mean"),
        )
        .reset_index()
    )
    charts.draw(
        method_charts.adapters_pareto(totals, looks),
        key="adapters_pareto",
        alt=f"Mean rank bound and mean effective rank of {len(totals)} adapters against their trained parameters.",
    )
    st.caption(f"Open: rank bound; filled: effective rank, #{{σ > {current().threshold:g}}}; means over the modules.")

    def figure() -> Any:
        from bora_analysis.figures import pareto as draw

        return draw(layers)

    offer(totals, "pareto", figure)


model, parts, budget, methods = controls()
if not parts or not methods:
    st.info("Choose at least one projection and one method.", icon=":material/info:")
else:
    matrices = sum(part.layers for part in parts)
    sizes = ", ".join(f"{LETTER_OF[part.projection]} {part.out_features}×{part.in_features}" for part in parts)
    st.caption(f"{model}: {matrices} matrices, in each of {parts[0].layers} layers {sizes}.")
    buys(model, parts, budget, methods)
    st.subheader("The best b", anchor=False)
    best_blocks(model, parts)
st.subheader("The chosen adapters", anchor=False)
your_adapters()

explanation(
    [
        (
            (
                "Every method is asked for the highest rank bound that the budget allows. r runs over the powers of "
                "two, three times these, and the largest that fits; b over the divisors that all sizes share. The "
                "bound is what the sizes allow one ΔW; what training makes of it is on the page Spectra."
            ),
            (
                r"\text{LoRA, MELoRA: } (m+n)\,r \qquad \text{BoRA: } (m+n+b^2)\,r \qquad "
                r"\text{bound: } \min(m,n,r) \text{ and } \min(m,n,br)"
            ),
        ),
        (
            (
                "For a wished bound R = br BoRA trains N(b) parameters, least at b = √(m+n). The paper's practical "
                "rule is ⌊√n⌋, which need not divide the sizes. §3.3 says that LoRA needs (m+n)(b²r) parameters for "
                "rank br: it is (m+n)br."
            ),
            r"N(b) = R\,\big(\tfrac{m+n}{b} + b\big), \qquad b^\ast = \sqrt{m+n}",
        ),
    ],
    [
        "BoRA, arXiv 2508.06953, §3.3 and §3.4",
        "counts of the other methods as in PEFT's print_trainable_parameters, without heads and biases",
    ],
)
