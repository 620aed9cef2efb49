"""Page 4: what happens to the rank while an adapter is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pandas as pd
import streamlit as st

from app import charts, sources
from app.context import current, load
from app.downloads import offer
from app.explain import explanation, question
from app.safe_markdown import markdown
from bora_analysis import factor_table, style
from bora_analysis.adapters import AdapterError, checkpoints
from bora_analysis.metrics import METRICS

context = current()
night = charts.dark()
threshold = context.threshold
question(
    "Training", "How does the rank of an adapter grow while it is trained, layer by layer, and what holds it back?"
)


def runs_in(frame: pd.DataFrame) -> list[str]:
    """The adapters of a table that have two steps or more."""
    counts = frame.groupby("adapter", sort=False)["step"].nunique()
    return [str(name) for name in counts.index[counts >= 2]]


trajectories = runs_in(context.layer_metrics)
if not trajectories and sources.runs():
    st.caption("None of the chosen adapters has two or more steps: these are the runs that come with the toolkit.")
    context = load(sources.runs(), threshold)
    trajectories = runs_in(context.layer_metrics)


def explained() -> None:
    explanation(
        [
            (
                (
                    "A training run saves the adapter every so many steps. Each checkpoint is analysed like a finished "
                    "adapter; the lines join the same layer (the mean over its modules) from step to step."
                ),
                (
                    r"\Delta W^{(t)} = B'^{(t)}\,\Sigma'^{(t)}\,A'^{(t)}, \qquad \operatorname{rank}\Delta W^{(t)} \le "
                    r"\min(\operatorname{rank}B',\, \operatorname{rank}\Sigma',\, \operatorname{rank}A')"
                ),
            ),
            (
                (
                    "B starts at zero, so that ΔW = 0 at step 0 and every rank of it is 0. The numerical ranks of the "
                    "factors count singular values above √K ε σ₁, with K values and ε of the dtype in which the "
                    "factors are stored."
                ),
                "",
            ),
        ],
        ["BoRA, arXiv 2508.06953, eq. 5–7", "for ranks over training see also HiRA, ICLR 2025"],
    )


if not trajectories:
    st.info("None of the chosen adapters has two or more steps.", icon=":material/timeline:")
    st.markdown(
        "Open a folder of checkpoints as the Hugging Face `Trainer` leaves it, with *Add an adapter* in the sidebar, "
        "or on the command line with `bora-analysis dashboard RUN`:"
    )
    st.code("RUN/\n  checkpoint-500/\n  checkpoint-1000/\n  checkpoint-1500/", language=None)
    st.markdown("Each `checkpoint-N` holds an `adapter_config.json` and its weights; N is taken as the step.")
    explained()
    st.stop()


def choose(label: str, options: Sequence[Any], key: str, **more: Any) -> Any:
    """A select box that forgets a choice which the adapter at hand does not have."""
    if st.session_state.get(key, options[0]) not in options:
        del st.session_state[key]
    return st.selectbox(label, options, key=key, bind="query-params", **more)


columns = st.columns([3, 3, 2])
with columns[0]:
    adapter = choose("Run", trajectories, "run")
table = context.layer_metrics[context.layer_metrics["adapter"] == adapter]
table = table[table["step"].notna()]
with columns[1]:
    metric = choose(
        "Metric",
        ["entropy_rank", *(name for name in METRICS if name != "entropy_rank")],
        "metric",
        format_func=charts.metric_name,
    )
projections = style.projections_in_order(table["projection"])
with columns[2]:
    projection = choose("Projection", [*(["all"] if len(projections) > 1 else []), *projections], "projection")


def narrowed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame if projection == "all" else frame[frame["projection"] == projection]


rows = narrowed(table)
steps = sorted(int(step) for step in rows["step"].unique())
where = "all modules" if projection == "all" else f"projection {projection}"

# One line per layer; modules outside the layers are in the mean only.
lines = rows[rows["layer"].notna()].groupby(["layer", "step"])[metric].mean().reset_index().assign(bold=False)
mean = rows.groupby("step")[metric].mean().reset_index().assign(bold=True, layer=0)
both = pd.concat([lines, mean], ignore_index=True).astype({"layer": int, "step": int})
charts.draw(
    charts.families(
        both,
        x="step",
        y=metric,
        by="layer",
        titles=("training step", charts.metric_title(metric), "layer"),
        bold="mean",
        night=night,
    ),
    key="trajectory",
    alt=f"{metric} against the training step, {where} of {adapter}; the mean goes from {mean[metric].iloc[0]:.4g} "
    f"to {mean[metric].iloc[-1]:.4g}.",
)
st.caption("One line per layer, dark to bright with depth; in bold the mean over all modules.")


def trajectory_figure() -> Any:
    from bora_analysis.figures import trajectory as draw

    return draw(table, metric=metric, projection=None if projection == "all" else projection)


offer(rows, "trajectory", trajectory_figure)
if len(trajectories) > 1:
    with st.expander("All runs, means over the modules", icon=":material/stacked_line_chart:"):
        together = narrowed(context.layer_metrics[context.layer_metrics["adapter"].isin(trajectories)])
        together = together[together["step"].notna()]
        means = together.groupby(["adapter", "step"], sort=False)[metric].mean().reset_index().astype({"step": int})
        charts.draw(
            charts.runs(means, metric, charts.looks_of(context.layer_metrics), night),
            key="runs",
            alt=f"{metric} against the training step, {where}, a line per run.",
        )
        offer(means, "runs")

st.subheader("The spectrum at a step", anchor=False)
if st.session_state.get("step", steps[-1]) not in steps:
    del st.session_state["step"]
if len(steps) == 1:
    step = steps[0]
else:
    step = st.select_slider("Step", steps, value=steps[-1], key="step", bind="query-params")
spectra = narrowed(context.spectra[context.spectra["adapter"] == adapter])
spectra = spectra[spectra["step"].notna()]
# The steps between the first and the last are drawn thin, in the background; of many only some.
some = sorted({steps[round(k * (len(steps) - 1) / 11)] for k in range(12)} | {step})
medians = (
    spectra[spectra["step"].isin(some)]
    .groupby(["step", "index"])["singular_value"]
    .median()
    .reset_index()
    .astype({"step": int})
)
charts.draw(
    charts.families(
        medians.assign(bold=medians["step"] == step),
        x="index",
        y="singular_value",
        by="step",
        titles=("index of the singular value", "singular value σ, median", "step"),
        bold=f"{step} (chosen)",
        night=night,
        threshold=threshold,
    ),
    key="step_spectrum",
    alt=f"Median singular values of {where} at step {step}, logarithmic, with other steps thin behind them.",
)
offer(spectra[spectra["step"] == step], "step_spectra", lambda: _step_figure())


def _step_figure() -> Any:
    from bora_analysis.figures import spectra as draw

    return draw(spectra[spectra["step"] == step], threshold=threshold)


st.subheader("Which factor limits the rank", anchor=False)
source = next(source for source in context.sources if source.label == adapter)


def read_factors() -> pd.DataFrame:
    """Ranks of the three factors, module by module and step by step, read anew; with progress."""
    modules = set(rows["module"])
    wanted = [
        replace(checkpoint, loaders={name: load for name, load in checkpoint.loaders.items() if name in modules})
        for checkpoint in checkpoints(sources.read(source.path))
        if checkpoint.step in steps
    ]
    total, done = sum(map(len, wanted)), count(1)
    bar = st.progress(0.0, "Reading the factors")

    def step() -> None:
        k = next(done)
        if k % 8 == 0 or k == total:
            bar.progress(k / total, f"{k} of {total} modules")

    found = factor_table(wanted, on_module=step)
    bar.empty()
    if found.empty:
        raise ValueError(f"{adapter} has no B', Σ', A' (eq. 6): its update is no product of block factors")
    return found


st.caption("The factors are read again for this, module by module; leave the page or change a choice to stop.")
if st.toggle("Ranks of B′, Σ′, A′ by step", key="factors", bind="query-params"):
    wish = (str(source.path), projection, tuple(steps))
    if st.session_state.get("_factors", (None,))[0] != wish:
        try:
            st.session_state["_factors"] = (wish, read_factors())
        except AdapterError as error:
            st.error(markdown(str(error)), icon=":material/error:")
        except ValueError as error:  # a method that has no such factors
            st.info(markdown(str(error)), icon=":material/info:")
    if st.session_state.get("_factors", (None,))[0] == wish:
        ranks = st.session_state["_factors"][1]
        names = {"rank_B": "B′", "rank_sigma": "Σ′", "rank_A": "A′", "rank_bound": "bound"}
        tidy = ranks.groupby("step")[list(names)].mean().rename(columns=names).reset_index()
        tidy = tidy.melt("step", var_name="factor", value_name="rank")
        charts.draw(
            charts.ranks_by_step(tidy, night),
            key="factor_ranks",
            alt=f"Mean ranks of B', Σ' and A' against the training step, {where} of {adapter}.",
        )
        last = ranks[ranks["step"] == steps[-1]]["limiting"].value_counts()
        parts = [
            f"{count} where all three are equal" if names.count(",") == 2 else f"{count} where the least is {names}"
            for names, count in last.items()
        ]
        st.markdown(f"Of the {last.sum()} modules at step {steps[-1]}: {'; '.join(parts)}.")
        with st.expander("Table", icon=":material/table:"):
            st.dataframe(ranks, hide_index=True)
        offer(ranks, "factor_ranks")

explained()
