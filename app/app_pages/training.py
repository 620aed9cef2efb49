"""Page 4: what happens to the rank while an adapter is trained."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pandas as pd
import streamlit as st

from app import charts, sources
from app.context import current, load
from app.controls import ALL, choose, linked, null_toggle, of_projection, projections
from app.downloads import offer
from app.explain import explanation, question, table
from app.jobs import Told, aside
from app.run_steps import follow, offer_film, played
from app.safe_markdown import markdown
from app.vega import draw
from app.verdicts import verdict_on
from bora_analysis import factor_table
from bora_analysis.adapters import AdapterError, checkpoints
from bora_analysis.analysis import views
from bora_analysis.analysis.null import null
from bora_analysis.metrics import METRICS

context = current()
threshold = context.threshold
question("Training", "How does the rank of an adapter grow during training, layer by layer, and what limits it?")


def runs_in(frame: pd.DataFrame) -> list[str]:
    """The adapters of a table that have two steps or more."""
    counts = frame.groupby("adapter", sort=False)["step"].nunique()
    return [str(name) for name in counts.index[counts >= 2]]


follow(context.sources)
trajectories = runs_in(context.layer_metrics)
if not trajectories and context.waiting:  # one of them may be a run
    st.stop()
if not trajectories and sources.runs():
    st.caption("None of the chosen adapters has two or more steps. The page shows the runs that come with the toolkit.")
    context = load(sources.runs(), threshold, "runs")
    trajectories = runs_in(context.layer_metrics)
    if not trajectories and context.waiting:
        st.stop()
if not trajectories:
    st.info("None of the chosen adapters has two or more steps.", icon=":material/timeline:")
    st.markdown(
        "Open a folder of checkpoints as the Hugging Face `Trainer` leaves it, on the page *Start*, "
        "or on the command line with `bora-analysis dashboard RUN`:"
    )
    st.code("RUN/\n  checkpoint-500/\n  checkpoint-1000/\n  checkpoint-1500/", language=None)
    st.markdown("Each `checkpoint-N` holds an `adapter_config.json` and its weights; N is taken as the step.")
    explanation("training")
    st.stop()

places = st.columns([3, 3, 2])
adapter = choose("Run", trajectories, "run", places[0])
saved = context.layer_metrics[context.layer_metrics["step"].notna()].astype({"step": int})
mine = saved[saved["adapter"] == adapter]
verdict_on(context, mine)
metrics = ["entropy_rank", *(name for name in METRICS if name != "entropy_rank")]
metric = choose("Metric", metrics, "metric", places[1], format_func=charts.metric_name)
projection = choose("Projection", projections(mine), "projection", places[2])
rows = of_projection(mine, projection)
steps = sorted(rows["step"].unique().tolist())
where = "all modules" if projection == ALL else f"projection {projection}"

# One line per layer; modules outside the layers are in the mean only.
beside = drawn = None
told = "Thin: one line per layer, by depth. Bold: the mean over all modules."
if null_toggle():
    drawn = null(rows)
    beside = views.null_means(drawn.layer_metrics, metric, "step").sort_values("step").astype({"step": int})
    missing = drawn.missing or ([] if len(beside) else [f"{charts.metric_name(metric)} has no null"])
    told += f" {markdown('; '.join(missing))}." if missing else " Dotted: random factors, their mean and range."
    drawn = None if missing else drawn
lines = views.means(rows[rows["layer"].notna()], metric, "layer", "step").assign(bold=False)
mean = views.means(rows, metric, "step").assign(bold=True, layer=0)
draw(
    charts.families(
        pd.concat([lines, mean], ignore_index=True).astype({"layer": int}),
        {"step": "training step", metric: charts.metric_title(metric), "layer": "layer"},
        bold="mean",
        logarithmic=views.spreads(rows[metric]),
        null=beside,
    ),
    key="trajectory",
    alt=f"{metric} against the training step, {where} of {adapter}; the mean goes from {mean[metric].iloc[0]:.4g} "
    f"to {mean[metric].iloc[-1]:.4g}.",
)
st.caption(told)
of = None if projection == ALL else projection
offer(rows, "trajectory", "trajectory", mine, metric=metric, projection=of, null=drawn)
if len(trajectories) > 1:
    with st.expander("All runs, means over the modules", icon=":material/stacked_line_chart:"):
        together = of_projection(saved[saved["adapter"].isin(trajectories)], projection)
        means = views.means(together, metric, "adapter", "step")
        draw(
            charts.runs(means, metric, views.looks_of(context.layer_metrics)),
            key="runs",
            alt=f"{metric} against the training step, {where}, a line per run.",
        )
        offer(means, "runs")

st.subheader("The spectrum at a step", anchor=False)
source = next(source for source in context.sources if source.label == adapter)
spectra = of_projection(context.spectra[context.spectra["adapter"] == adapter], projection)
spectra = spectra[spectra["step"].notna()].astype({"step": int})
medians = spectra.groupby(["step", "index"])["singular_value"].median().reset_index()


def at_step(step: int) -> None:
    """The spectrum of a step in bold; the steps between the first and the last are thin behind, of many only some."""
    some = sorted({steps[round(k * (len(steps) - 1) / 11)] for k in range(12)} | {step})
    own = spectra[spectra["step"] == step]
    draw(
        charts.families(
            medians[medians["step"].isin(some)].assign(bold=medians["step"] == step),
            {"index": "index of the singular value", "singular_value": "singular value σ, median", "step": "step"},
            bold=f"{step} (chosen)",
            threshold=(views.limits_of(own, threshold)[adapter], threshold.formula),
        ),
        key="step_spectrum",
        alt=f"Median singular values of {where} at step {step}, logarithmic, with other steps thin behind them.",
    )
    offer(own, "step_spectra", "spectra", threshold=threshold)


played(steps, at_step)
if len(steps) > 1:
    key = (str(source.path), sources.stamp(source.path), projection, str(threshold))
    offer_film(medians, key, threshold.value if threshold.absolute else None, "singular value σ, median")

st.subheader("Which factor limits the rank", anchor=False)


def read_factors(told: Told) -> pd.DataFrame:
    """Ranks of the three factors, module by module and step by step, read anew."""
    modules = set(rows["module"])
    wanted = [
        replace(checkpoint, loaders={name: load for name, load in checkpoint.loaders.items() if name in modules})
        for checkpoint in checkpoints(sources.read(source.path))
        if checkpoint.step in steps
    ]
    total, done = sum(map(len, wanted)), count(1)
    return factor_table(wanted, on_module=lambda: told(next(done), total))


def limits(ranks: Any) -> None:
    """The factors' ranks over the steps, and which of them is the least at the last step."""
    names = {"rank_B": "B′", "rank_sigma": "Σ′", "rank_A": "A′", "rank_bound": "bound"}
    tidy = ranks.groupby("step")[list(names)].mean().rename(columns=names).reset_index()
    draw(
        charts.ranks_by_step(tidy.melt("step", var_name="factor", value_name="rank")),
        key="factor_ranks",
        alt=f"Mean ranks of B', Σ' and A' against the training step, {where} of {adapter}.",
    )
    last = ranks[ranks["step"] == steps[-1]]["limiting"].value_counts()
    parts = [
        f"{count} where all three are equal" if factors.count(",") == 2 else f"{count} where the least is {factors}"
        for factors, count in last.items()
    ]
    st.markdown(f"Of the {last.sum()} modules at step {steps[-1]}: {'; '.join(parts)}.")
    table(ranks)
    offer(ranks, "factor_ranks")


if linked(st.toggle, "Ranks of B′, Σ′, A′ by step", key="factors", help="This reads the factors again."):
    key = (str(source.path), sources.stamp(source.path), projection, tuple(steps))
    try:
        found = aside("factors", key, read_factors, markdown(adapter))
        if found is not None and found.empty:
            words = f"{adapter} has no B', Σ', A' (eq. 6): its update is not a product of block factors"
            st.info(markdown(words), icon=":material/info:")
        elif found is not None:
            limits(found)
    except AdapterError as error:
        st.error(markdown(str(error)), icon=":material/error:")

explanation("training")
