"""Page 3: the ranks that LoRA, MELoRA, BoRA and others give from random factors, Proposition 1 live."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import streamlit as st

from app import charts, method_charts, random_target
from app import lab_model as lab
from app.columns import show
from app.context import current
from app.controls import choose, linked, segments
from app.downloads import offer
from app.explain import explanation, question, table
from app.vega import draw, labelled
from bora_analysis import style
from bora_analysis.analysis import views
from bora_analysis.analysis.capture import shares
from bora_analysis.catalogue import ACTIVATIONS

PRESETS: dict[str, dict[str, Any]] = {
    "The paper's r = 8, b = 8": {"m": 384, "n": 384, "r": 8, "b": 8, "kind": "gaussian", "same": "r"},
    "Counterexample, b = r = m = n = 2": {"m": 2, "n": 2, "r": 2, "b": 2, "kind": "counterexample", "same": "r"},
    "Beyond √(m+n)": {"m": 256, "n": 256, "r": 8, "b": 64, "kind": "gaussian", "same": "r"},
}

threshold = current().threshold
question(
    "Synthetic lab",
    "How much rank do LoRA, MELoRA and BoRA have by construction, before any training, and where does the bound of "
    "Proposition 1 cease to be reached?",
)


def preset(name: str) -> None:
    for key, value in PRESETS[name].items():
        st.session_state[f"lab_{key}"] = value


def size(place: Any, label: str, key: str, value: int, largest: int) -> int:
    return int(linked(place.number_input, f"{label} (≤ {largest})", 1, largest, value, key=f"lab_{key}"))


def controls() -> tuple[lab.Setting, list[str]]:
    """The widgets; only sizes that fit together are offered."""
    with st.container(horizontal=True):
        for name in PRESETS:
            st.button(name, on_click=preset, args=(name,), key=f"preset:{name}")
    with st.container(border=True):
        sizes = st.columns(4)
        m = size(sizes[0], "m, outputs", "m", 384, lab.LARGEST)
        n = size(sizes[1], "n, inputs", "n", 384, lab.LARGEST)
        r = min(size(sizes[2], "r, rank of a pair", "r", 8, lab.LARGEST_RANK), m, n)
        offered = lab.blocks_offered(m, n, r)
        held = st.session_state.get("lab_b")
        if held is not None and held not in offered:  # m, n or r have changed: the nearest b that still fits
            st.session_state["lab_b"] = min(offered, key=lambda b: abs(b - held))
        usual = min(offered, key=lambda b: abs(b - 8))
        note = "The common divisors of m and n, except those whose spectrum takes too long to compute."
        b = choose("b, blocks", offered, "lab_b", sizes[3], index=offered.index(usual), help=note)
        left, right = st.columns([3, 2])
        kind = segments(
            "Factors",
            list(lab.KINDS),
            "lab_kind",
            left,
            format_func=lab.KINDS.__getitem__,
            wrap=True,
            help="Gaussian: independent normal numbers. Decay: orthonormal factors, slot k scaled by k⁻ᵖ. "
            "Initialisation: B = 0, as training starts. Counterexample: B_i = [I 0], A_j = [0 I]ᵀ, which have full "
            "rank and yet ΔW = 0.",
        )
        activation = segments(
            "Σ from σ, in BoRA",
            ACTIVATIONS,
            "lab_activation",
            left,
            "exp-norm",
            wrap=True,
            help="exp-norm is eq. 5, Exp(σ / Mav σ). no-exp (σ / Mav σ) and no-norm (Exp(σ)) are its ablations (§4.3). "
            "identity takes σ itself as Σ.",
        )
        note = "Same budget: LoRA and MELoRA get the largest r that BoRA's parameters pay for."
        same = segments(
            "Compare at the", list(lab.BUDGETS), "lab_same", right, format_func=lab.BUDGETS.__getitem__, help=note
        )
        first, second = right.columns(2)
        seed = linked(first.number_input, "Seed", 0, 999_999, 0, key="lab_seed")
        p = {"key": "lab_decay", "disabled": kind != "decay"}
        decay = linked(second.number_input, "p of the decay", 0.0, 4.0, 1.0, 0.25, **p)
        setting = lab.Setting(m, n, r, int(b), str(kind), float(decay), int(seed), str(activation), str(same))
        return setting, beside(setting)


def beside(setting: lab.Setting) -> list[str]:
    """The other methods to show; only those are offered that the sizes allow."""
    offered = [method for method in lab.OTHERS if lab.sizes_of(setting, method) is not None]
    return linked(
        st.multiselect,
        "More methods",
        offered,
        key="lab_others",
        format_func=lambda method: style.method_look(method).label,
        placeholder="Other methods, at the same r or budget",
        disabled=setting.kind == "counterexample",
        help="KronA, C³A and FourierFT have no r, so their number of parameters is fixed. Methods whose update needs "
        "the base model's weights (DoRA, HiRA, OFT …) cannot be made from random factors.",
    )


def verdict(one: lab.Outcome) -> None:
    """Proposition 1 for BoRA's ΔW: the bound, what was measured, and what the three factors say."""
    ranks, facts = one.ranks, one.facts
    assert ranks is not None  # BoRA has the three factors
    with st.container(horizontal=True):  # two beside each other on a phone, where columns would be a tower
        st.metric("Bound min(m, n, br)", f"{facts.rank_bound:,}", help="Proposition 1: rank ΔW is at most this.")
        st.metric("Least rank of B′, Σ′, A′", f"{ranks.upper:,}", help="A tighter bound, which always holds.")
        st.metric("Measured rank ΔW", f"{one.measured:,}", help="Numerical rank, #{σ > √K ε σ₁}, ε of float64.")
        least = "rank B′ + rank Σ′ + rank A′ − 2br: rank ΔW is at least this."
        st.metric("Floor (Sylvester)", f"{ranks.lower:,}", help=least)
    br, largest = facts.r * facts.blocks, max(facts.out_features, facts.in_features)
    full = min(facts.out_features, br) == ranks.B and min(facts.in_features, br) == ranks.A and ranks.sigma == br
    if one.measured == facts.rank_bound:
        beyond = f", although br = {br:,} is above max(m, n) = {largest:,}: generic factors reach it at any br"
        st.success(f"BoRA's ΔW reaches the bound{beyond if br > largest else ''}.", icon=":material/check_circle:")
    elif full:
        st.warning(
            f"B′, Σ′ and A′ have full rank, and ΔW has rank {one.measured:,} instead of {facts.rank_bound:,}. "
            "Proposition 1 says that full-rank factors reach the bound. That is certain only for br ≤ max(m, n), and "
            f"here br = {br:,} is above {largest:,}.",
            icon=":material/error:",
        )
    else:
        limiting = " and ".join(name.replace("'", "′") for name in ranks.limiting)
        start = " Training starts here: B = 0 makes ΔW = 0." if setting.kind == "init" else ""
        st.info(
            f"ΔW does not reach the bound: {limiting} of rank {ranks.upper:,} limits it.{start}", icon=":material/info:"
        )


setting, others = controls()
try:
    outcomes = lab.compare(setting, others)
except ValueError as error:
    st.error(str(error), icon=":material/error:")
    st.stop()

ranks = labelled(lab.ranks_frame(outcomes, threshold))
names = {one.method: style.method_look(one.method).label for one in outcomes}
spectra = lab.spectra_frame(outcomes, names)
measured = spectra["adapter"].map(dict(zip(ranks["label"], ranks["measured_rank"], strict=True)))
# Beyond the measured rank only rounding is left, which would stretch the axis to 1e-17.
exact = spectra.assign(singular_value=spectra["singular_value"].where(spectra["index"] <= measured, 0.0))

verdict(next(one for one in outcomes if one.method == "bora"))
drawable = bool(ranks["measured_rank"].any())
if drawable:
    described = ", ".join(f"{row.label} {row.measured_rank} of {row.rank_bound}" for row in ranks.itertuples())
    draw(
        charts.spectrum(views.curves(exact), views.looks_of(exact), threshold, views.limits_of(exact, threshold)),
        key="lab_spectrum",
        alt=f"Singular values against index, logarithmic, of {', '.join(ranks['label'])}. Measured rank: {described}.",
    )
    st.caption("Each curve ends at the rank bound of its method. Dashes: the threshold τ from the sidebar.")
else:
    st.caption("With every method ΔW = 0, so there is no singular value to draw.")
help_b = "Minis of MELoRA, experts of HydraLoRA and MoELoRA; C³A: gcd(m, n) / block size"
shown = ("label", "r", "blocks", "parameters", "rank_B", "rank_sigma", "rank_A", "rank_bound", "measured_rank")
shown += ("effective_rank", "entropy_rank", "stable_rank")
heads = {"blocks": st.column_config.Column("b", help=help_b), "effective_rank": f"σ > {threshold.formula}"}
show(ranks, shown, heads)
if ranks["r"].nunique() > 1 or setting.same == "budget":
    sizes = zip(ranks["label"], ranks["r"].astype("string").fillna(""), ranks["parameters"], strict=True)
    bought = ", ".join(f"{label}{r and f' r = {r}'} ({price:,})" for label, r, price in sizes)
    why = "r is lower where the sizes, or the time for one computation, allow no more."
    if setting.same == "budget":
        why = "A mini of MELoRA gets no larger r where that would add no rank."
    st.caption(f"Parameters: {bought}. {why}")

offer(spectra, "lab-spectra", "spectra" if drawable else None, threshold=threshold)
with st.expander("Ranks as a table, ΔW and Σ′ as block products (figure 1)", icon=":material/table:"):
    products = {names[one.method]: one.update for one in outcomes if one.method in lab.METHODS}
    offer(ranks.drop(columns="label"), "lab-ranks", "figure1" if drawable else None, products)

st.subheader("More blocks", anchor=False)
if setting.kind == "counterexample":
    st.caption("This part needs random factors: the counterexample exists only where m/b + n/b ≤ r.")
else:
    curve = lab.sweep(replace(setting, blocks=1, same="r"))
    optimum = sqrt(setting.m + setting.n)
    st.caption(
        f"BoRA with r = {setting.r} at every b that divides m = {setting.m} and n = {setting.n}. As long as br ≤ "
        f"min(m, n), a unit of rank gets cheaper with more blocks up to √(m+n) = {optimum:.4g}, and dearer beyond: "
        "there σ costs more than it adds. Open: bound; filled: measured; grey band: the b chosen above."
    )
    prices = {"parameters": "parameters (m+n+b²)r", "parameters_per_rank": "parameters per rank"}
    drawn = [
        (method_charts.sweep_ranks(curve, optimum, setting.blocks), "Rank bound and measured rank against b."),
        *(
            (method_charts.sweep_price(curve, name, title, optimum, setting.blocks), f"{title} against b.")
            for name, title in prices.items()
        ),
    ]
    for k, (column, (chart, words)) in enumerate(zip(st.columns(3), drawn, strict=True)):
        with column:
            draw(chart, key=f"sweep{k}", alt=words)
    table(curve)
    offer(curve, "lab-blocks")

st.subheader("Is the rank worth it?", anchor=False)
size_m, size_n = random_target.fitting(setting.m, setting.n, setting.blocks)
st.caption(
    f"A random {size_m} × {size_n} update with σ_k = k⁻ᵖ, which needs all of its rank for p = 0 and little of it for "
    "p = 2, and the nearest that LoRA, MELoRA and BoRA have at ½, 1, 2 and 4 times the parameters of LoRA r."
)
power = linked(st.slider, "p of the update", 0.0, 2.0, 0.5, 0.25, key="lab_target")
if linked(st.toggle, "Find the nearest updates", key="lab_capture", help="Takes some seconds for each p."):
    with st.spinner("Looking for the nearest updates …"):
        sizes = (size_m, size_n, setting.r, setting.blocks)
        nearest = random_target.captured(*sizes, setting.activation, float(power), setting.seed)
    found = shares(nearest)
    if found.empty:
        st.info("None of the three has so few parameters: choose a larger r.", icon=":material/info:")
    else:
        best = found.loc[found.groupby("method")["captured"].idxmax()]
        told = ", ".join(f"{row.member} {row.captured:.1%}" for row in best.itertuples())
        alt = f"Captured share of a random update's Σσ² against trained parameters. Highest: {told}."
        draw(method_charts.captured(found, lab.METHODS), key="lab_captured", alt=alt)
        st.caption("Dashed: LoRA between whole ranks. BoRA is found by a search, so its share is a lower bound.")
        offer(nearest, "lab-capture", "capture")

explanation("lab")
