"""Page 3: the ranks that LoRA, MELoRA, BoRA and others give from random factors, Proposition 1 live."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import pandas as pd
import streamlit as st

from app import charts, method_charts
from app.context import current
from app.downloads import offer
from app.explain import explanation, question
from app.lab_model import (
    BUDGETS,
    KINDS,
    LARGEST,
    LARGEST_RANK,
    METHODS,
    OTHERS,
    Outcome,
    Setting,
    blocks_offered,
    compare,
    ranks_frame,
    sizes_of,
    spectra_frame,
    sweep,
)
from bora_analysis import style
from bora_analysis.catalogue import ACTIVATIONS

PRESETS: dict[str, dict[str, Any]] = {
    "The paper's r = 8, b = 8": {"m": 384, "n": 384, "r": 8, "b": 8, "kind": "gaussian", "same": "r"},
    "Counterexample, b = r = m = n = 2": {"m": 2, "n": 2, "r": 2, "b": 2, "kind": "counterexample", "same": "r"},
    "Beyond √(m+n)": {"m": 256, "n": 256, "r": 8, "b": 64, "kind": "gaussian", "same": "r"},
}

threshold = current().threshold
question(
    "Synthetic lab",
    "How much rank do LoRA, MELoRA and BoRA have by construction, before training has a say, and where does "
    "Proposition 1 stop being an equality?",
)


def choose(preset: str) -> None:
    for key, value in PRESETS[preset].items():
        st.session_state[f"lab_{key}"] = value


def controls() -> Setting:
    """The widgets; only sizes that fit together are offered."""
    with st.container(horizontal=True):
        for name in PRESETS:
            st.button(name, on_click=choose, args=(name,), key=f"preset:{name}")
    with st.container(border=True):
        sizes = st.columns(4)
        m = number(sizes[0], "m, outputs", "m", 384, LARGEST)
        n = number(sizes[1], "n, inputs", "n", 384, LARGEST)
        r = number(sizes[2], "r, rank of a pair", "r", 8, LARGEST_RANK)
        r = min(r, m, n)
        offered = blocks_offered(m, n, r)
        held = st.session_state.get("lab_b")
        if held is not None and held not in offered:  # m, n or r have changed: the nearest b that still fits
            st.session_state["lab_b"] = min(offered, key=lambda b: abs(b - held))
        usual = min(offered, key=lambda b: abs(b - 8))
        b = sizes[3].selectbox(
            "b, blocks",
            offered,
            index=offered.index(usual),
            key="lab_b",
            bind="query-params",
            help="Every divisor that m and n share, as far as its spectrum is found at once.",
        )
        left, right = st.columns([3, 2])
        kind = left.segmented_control(
            "Factors",
            list(KINDS),
            default="gaussian",
            required=True,
            format_func=KINDS.__getitem__,
            wrap=True,
            key="lab_kind",
            bind="query-params",
            help="Independent normal numbers (Gaussian); orthonormal factors whose slot k is scaled by k⁻ᵖ (decay); as "
            "training starts, B = 0 (initialisation); or B_i = [I 0], A_j = [0 I]ᵀ, full rank and yet ΔW = 0.",
        )
        activation = left.segmented_control(
            "Σ from σ, in BoRA",
            ACTIVATIONS,
            default="exp-norm",
            required=True,
            key="lab_activation",
            bind="query-params",
            wrap=True,
            help="exp-norm is eq. 5, Exp(σ / Mav σ); no-exp and no-norm are its ablations (§4.3), σ / Mav σ and "
            "Exp(σ); identity takes σ itself as Σ.",
        )
        same = right.segmented_control(
            "Compare at the",
            list(BUDGETS),
            default="r",
            required=True,
            format_func=BUDGETS.__getitem__,
            key="lab_same",
            bind="query-params",
            help="Same budget: LoRA and MELoRA get the largest r that BoRA's parameters buy.",
        )
        first, second = right.columns(2)
        seed = first.number_input("Seed", 0, 999_999, 0, key="lab_seed", bind="query-params")
        decay = second.number_input(
            "p of the decay", 0.0, 4.0, 1.0, 0.25, key="lab_decay", bind="query-params", disabled=kind != "decay"
        )
        setting = Setting(m, n, r, int(b), str(kind), float(decay), int(seed), str(activation), str(same))
        return replace(setting, others=beside(setting))


def beside(setting: Setting) -> tuple[str, ...]:
    """The other methods to show; only those are offered that the sizes allow."""
    offered = [method for method in OTHERS if sizes_of(setting, method) is not None]
    held = st.session_state.get("lab_others", [])
    if not set(held) <= set(offered):
        st.session_state["lab_others"] = [method for method in held if method in offered]
    chosen = st.multiselect(
        "Beside them",
        offered,
        format_func=lambda method: style.method_look(method).label,
        key="lab_others",
        bind="query-params",
        placeholder="Other methods, at the same r or budget",
        disabled=setting.kind == "counterexample",
        help="KronA, C³A and FourierFT have no r: they cost what they cost. Methods whose update needs the base "
        "model's weights (DoRA, HiRA, OFT …) cannot be made from random factors.",
    )
    return tuple(chosen)


def number(place: Any, label: str, key: str, value: int, largest: int) -> int:
    return int(place.number_input(f"{label} (≤ {largest})", 1, largest, value, key=f"lab_{key}", bind="query-params"))


def verdict(one: Outcome) -> None:
    """Proposition 1 for BoRA's ΔW: the bound, what was measured, and what the three factors say."""
    ranks, facts = one.ranks, one.facts
    assert ranks is not None  # BoRA has the three factors
    with st.container(horizontal=True):  # two beside each other on a phone, where columns would be a tower
        st.metric("Bound min(m, n, br)", f"{facts.rank_bound:,}", help="Proposition 1: rank ΔW is at most this.")
        st.metric("Least rank of B′, Σ′, A′", f"{ranks.upper:,}", help="Always holds, and is tighter.")
        st.metric("Measured rank ΔW", f"{one.measured:,}", help="Numerical rank, #{σ > √K ε σ₁}, ε of float64.")
        least = "rank B′ + rank Σ′ + rank A′ − 2br: at least that is certain."
        st.metric("Floor (Sylvester)", f"{ranks.lower:,}", help=least)
    br, largest = facts.r * facts.blocks, max(facts.out_features, facts.in_features)
    full = min(facts.out_features, br) == ranks.B and min(facts.in_features, br) == ranks.A and ranks.sigma == br
    if one.measured == facts.rank_bound:
        beyond = f", although br = {br:,} is above max(m, n) = {largest:,}: generic factors reach it at any br"
        st.success(f"BoRA's ΔW reaches the bound{beyond if br > largest else ''}.", icon=":material/check_circle:")
    elif full:
        st.warning(
            f"B′, Σ′ and A′ have full rank, and ΔW has rank {one.measured:,} instead of {facts.rank_bound:,}. "
            "Proposition 1 says that full-rank factors reach the bound: that is so for br ≤ max(m, n), and here "
            f"br = {br:,} is above {largest:,}.",
            icon=":material/error:",
        )
    else:
        limiting = " and ".join(name.replace("'", "′") for name in ranks.limiting)
        start = " Training starts here: B = 0 makes ΔW = 0." if setting.kind == "init" else ""
        st.info(
            f"ΔW stays below the bound: {limiting} of rank {ranks.upper:,} limits it.{start}", icon=":material/info:"
        )


def numbers(frame: pd.DataFrame) -> None:
    columns: dict[str, Any] = {
        "label": st.column_config.TextColumn("method", pinned=True),
        "r": "r",
        "blocks": st.column_config.NumberColumn(
            "b", help="Minis of MELoRA, experts of HydraLoRA and MoELoRA; C³A: gcd(m, n) in sizes of its blocks"
        ),
        "parameters": st.column_config.NumberColumn("parameters", format="localized"),
        "rank_B": st.column_config.NumberColumn("rank B′", format="localized"),
        "rank_sigma": st.column_config.NumberColumn("rank Σ′", format="localized", help="Σ_k rank S_k"),
        "rank_A": st.column_config.NumberColumn("rank A′", format="localized"),
        "rank_bound": st.column_config.NumberColumn("bound", format="localized", help="Most that the sizes allow"),
        "measured_rank": st.column_config.NumberColumn("rank ΔW", format="localized", help="Measured: #{σ > √K ε σ₁}"),
        "effective_rank": st.column_config.NumberColumn(f"σ > {threshold:g}", help="Effective rank of BoRA §4.5"),
        "entropy_rank": st.column_config.NumberColumn("entropy rank", format="%.2f", help="exp H(σ/Σσ)"),
        "stable_rank": st.column_config.NumberColumn("stable rank", format="%.2f", help="Σσ² / σ₁²"),
    }
    st.dataframe(frame, hide_index=True, column_order=list(columns), column_config=columns, placeholder="·")


setting = controls()
try:
    outcomes = compare(setting)
except ValueError as error:
    st.error(str(error), icon=":material/error:")
    st.stop()

ranks = method_charts.labelled(ranks_frame(outcomes, threshold))
names = {one.method: style.method_look(one.method).label for one in outcomes}
spectra = spectra_frame(outcomes, names)
# A logarithmic axis has no place for zero, and numerical zeros would stretch it to 1e-17.
visible = pd.concat(
    spectra[spectra["method"] == one.method].head(one.measured) for one in outcomes
)  # fmt: skip

verdict(next(one for one in outcomes if one.method == "bora"))
if visible.empty:
    st.caption("ΔW = 0 under all methods: there is no singular value to draw.")
else:
    bounds = dict(zip(ranks["method"], ranks["rank_bound"], strict=True))
    described = ", ".join(f"{row.label} {row.measured_rank} of {row.rank_bound}" for row in ranks.itertuples())
    charts.draw(
        method_charts.spectra(visible, bounds, threshold),
        key="lab_spectrum",
        alt=f"Singular values against index, logarithmic, of {', '.join(ranks['label'])}. Measured rank: {described}.",
    )
    st.caption("Upright dashes: the rank bound of each method. Level dashes: the threshold τ of the sidebar.")
numbers(ranks)
if ranks["r"].nunique() > 1 or setting.same == "budget":
    sizes = zip(ranks["label"], ranks["r"].astype("string").fillna(""), ranks["parameters"], strict=True)
    bought = ", ".join(f"{label}{r and f' r = {r}'} ({price:,})" for label, r, price in sizes)
    st.caption(
        f"Parameters: {bought}. "
        + (
            "A mini of MELoRA gets no more r where that adds no rank."
            if setting.same == "budget"
            else "r is lower where the sizes, or what is computed at once, allow no more."
        )
    )


def spectra_figure() -> Any:
    from bora_analysis.figures import spectra as draw

    return draw(spectra, threshold=threshold)


def blocks_figure() -> Any:
    from bora_analysis.figures import figure1

    return figure1({names[one.method]: one.update for one in outcomes if one.method in METHODS})


offer(spectra, "lab-spectra", None if visible.empty else spectra_figure)
with st.expander("Ranks as a table, ΔW and Σ′ as block products (figure 1)", icon=":material/table:"):
    offer(ranks.drop(columns="label"), "lab-ranks", None if visible.empty else blocks_figure)

st.subheader("More blocks", anchor=False)
if setting.kind == "counterexample":
    st.caption("The sweep is for random factors: the counterexample exists only where m/b + n/b ≤ r.")
else:
    curve = sweep(replace(setting, blocks=1, same="r"))
    optimum = sqrt(setting.m + setting.n)
    st.caption(
        f"BoRA with r = {setting.r} at every b that divides m = {setting.m} and n = {setting.n}. A unit of rank gets "
        f"cheaper with every block up to √(m+n) = {optimum:.4g}, as long as br ≤ min(m, n); beyond, σ costs more than "
        "it brings. Open: bound; filled: measured; grey band: the b chosen above."
    )
    prices = {"parameters": "parameters (m+n+b²)r", "parameters_per_rank": "parameters per unit of bound"}
    drawn = [
        (method_charts.sweep_ranks(curve, optimum, setting.blocks), "Rank bound and measured rank against b."),
        *(
            (method_charts.sweep_price(curve, name, title, optimum, setting.blocks), f"{title} against b.")
            for name, title in prices.items()
        ),
    ]
    for k, (column, (chart, words)) in enumerate(zip(st.columns(3), drawn, strict=True)):
        with column:
            charts.draw(chart, key=f"sweep{k}", alt=words)
    with st.expander("Table", icon=":material/table:"):
        st.dataframe(curve, hide_index=True)
        offer(curve, "lab-blocks")

explanation(
    [
        (
            (
                "One layer's update under several methods, from the same kind of random factors. BoRA cuts B and A "
                "into b blocks and puts a diagonal of its own between each pair; with all diagonals equal to I it is "
                "LoRA, with Σ_ij = 0 for i ≠ j it is MELoRA."
            ),
            (
                r"\Delta W_{ij} = \tfrac{\alpha}{r}\, B_i\, \Sigma_{ij}\, A_j, \qquad "
                r"\Sigma_{ij} = \mathrm{Diag}\big(\mathrm{Exp}(\sigma_{ij} / \mathrm{Mav}(\sigma))\big), \qquad "
                r"\Delta W = B' \Sigma' A'"
            ),
        ),
        (
            (
                "Proposition 1 bounds the rank. Always true, and tighter, is the least of the three ranks; the rank of "
                "Σ′ is the sum over the slots k of the ranks of the b × b matrices S_k, which is r for LoRA and br for "
                "MELoRA and a generic σ. That full-rank factors *reach* the bound is true only for br ≤ max(m, n): "
                "with b = r = m = n = 2, B_i = [1 0] and A_j = [0 1]ᵀ all three have full rank and ΔW = 0."
            ),
            (
                r"\operatorname{rank} \Delta W \le \min(\operatorname{rank} B', \operatorname{rank} \Sigma', "
                r"\operatorname{rank} A') \le \min(m, n, br), \qquad \operatorname{rank} \Sigma' = "
                r"\textstyle\sum_k \operatorname{rank} S_k"
            ),
        ),
        (
            (
                "The factors are taken as exact numbers, so the measured rank counts σ above √K · ε · σ₁ with the ε of "
                "float64 and K the length of the spectrum. α = 2r. For a rank bound R, BoRA trains least at b = √(m+n)."
            ),
            r"N(b) = (m + n + b^2)\, r = R\,\big(\tfrac{m+n}{b} + b\big), \qquad R = br",
        ),
    ],
    ["BoRA, arXiv 2508.06953, eq. 4 to 7, Proposition 1 (§3.3, Appendix F) and §4.3", "MELoRA, arXiv 2402.17263"],
)
