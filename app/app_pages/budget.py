"""Page 5: what a budget of parameters buys on a model, before anything is trained."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from app import method_charts
from app.columns import show
from app.context import current
from app.controls import choose, linked, pills
from app.downloads import offer
from app.explain import explanation, question
from app.vega import draw, labelled
from bora_analysis.analysis import views
from bora_analysis.analysis.cost_tables import best_blocks as best_of
from bora_analysis.analysis.cost_tables import budget_table, notes
from bora_analysis.catalogue import METHODS, costed
from bora_analysis.catalogue.architectures import ARCHITECTURES, LETTERS, Matrices, architecture

MODELS = list(ARCHITECTURES)
LETTER_OF = {name: letter.upper() for letter, name in LETTERS.items()}
USUAL = ["lora", "melora", "bora"]
#: Of every method's choices that many stand in the table, the highest bounds first.
SHOWN = 200

question("Budget", "Which methods, r and b fit into the parameters that you can train, and which rank can each reach?")


def controls() -> tuple[str, list[Matrices], int, list[str]]:
    with st.container(border=True):
        top = st.columns([1.3, 1.7, 1.2])
        model = str(choose("Model", MODELS, "budget_model", top[0], index=MODELS.index("llama-3-8b")))
        known = architecture(model).matrices()
        letters = [LETTER_OF[part.projection] for part in known]
        target = linked(
            top[1].segmented_control,
            "Projections",
            letters,
            key="budget_target",
            default=[letter for letter in ("Q", "K", "V") if letter in letters],
            selection_mode="multi",
            help="Adapted in every layer. Q K V O: attention; G U D: gate, up and down of the MLP.",
        )
        limits = 1_000, 1_000_000_000, 5_000_000, 100_000  # least, most, at first, step
        budget = linked(top[2].number_input, "Parameters to train", *limits, key="budget_parameters", format="%d")
        methods = pills(
            "Methods",
            costed(),
            key="budget_methods",
            default=USUAL,
            selection_mode="multi",
            format_func=lambda method: METHODS[method].label,
        )
    chosen = [part for part in known if LETTER_OF[part.projection] in (target or [])]
    return model, chosen, int(budget), [method for method in costed() if method in methods]


def front_of(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose bound no cheaper row reaches, by parameters."""
    ordered = frame.sort_values(["parameters", "rank_bound"], ascending=[True, False], kind="stable")
    before = ordered["rank_bound"].cummax().shift(fill_value=0)
    return ordered[ordered["rank_bound"] > before]


def choices_table(frame: pd.DataFrame) -> None:
    shown = labelled(frame.head(SHOWN)).assign(per_1k=1000 * frame["bound_per_parameter"])
    rows = [METHODS[method] for method in shown["method"]]
    shown["blocks"] = [str(b) if row.cut else None for b, row in zip(shown["blocks"], rows, strict=True)]
    shown["r"] = [str(r) if row.ranked else None for r, row in zip(shown["r"], rows, strict=True)]
    share = st.column_config.ProgressColumn("of the budget", format="percent", min_value=0.0, max_value=1.0)
    names = "label", "r", "blocks", "parameters", "share", "rank_bound", "per_1k", "macs_per_token"
    show(shown, names, {"share": share})


def buys(model: str, parts: list[Matrices], budget: int, methods: list[str]) -> None:
    """What fits into the budget: the best of each method, the picture, all of it."""
    try:
        frame = budget_table(model, parts, budget, methods=methods, at_least=0.0)
    except ValueError as error:
        st.error(str(error), icon=":material/error:")
        return
    best = frame.drop_duplicates("method")
    st.markdown(
        f"At most {budget:,} parameters buy {len(frame):,} settings of {len(best)} methods. A rank bound says which "
        "rank ΔW can have, and nothing of how much it learns."
    )
    draw(
        method_charts.pareto(frame, front_of(frame), budget, methods),
        key="pareto",
        alt=f"Rank bound against trained parameters, both logarithmic, of {len(frame)} settings within the budget.",
    )
    st.caption("Each point is one method with one r and b. Dashed: the fewest parameters for each bound.")
    if "melora" in methods:
        st.caption("MELoRA's ΔW is 0 outside its b diagonal blocks: it changes one of every b entries. BoRA fills all.")
    st.markdown("The setting of each method with the highest bound")
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
    draw(
        method_charts.block_price(curve, rule),
        key="block_price",
        alt="Parameters of BoRA per unit of rank against b. Best: "
        + "; ".join(f"{row[0]} b = {row[1]}" for row in summary)
        + ".",
    )
    st.caption("Markers: every b that divides m and n; large: the best. Ring: the paper's rule ⌊√n⌋.")
    show(table, table.columns)
    offer(curve.assign(model=model), "optimal-blocks", "optimal_blocks", model=model)


def your_adapters() -> None:
    layers = views.last_steps(current().layer_metrics)
    if layers.empty:
        st.caption("Choose adapters in the sidebar to compare their parameters with the rank that they use.")
        return
    totals = views.costs(layers)
    draw(
        method_charts.adapters_pareto(totals, views.looks_of(current().layer_metrics)),
        key="adapters_pareto",
        alt=f"Mean rank bound and mean effective rank of {len(totals)} adapters against their trained parameters.",
    )
    st.caption(
        f"Open: rank bound; filled: effective rank, #{{σ > {current().threshold.formula}}}; means over the modules."
    )
    offer(totals, "pareto", "pareto", layers)


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

explanation("budget")
