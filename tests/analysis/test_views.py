"""What figures and pages show of the tables, against loops over their rows in plain Python."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bora_analysis import Adapter, Trajectory, analyse, lora, null, synthetic_adapter
from bora_analysis.analysis import columns, views
from bora_analysis.analysis.columns import typed
from bora_analysis.threshold import Threshold

SHAPES = {f"model.layers.{layer}.self_attn.{name}_proj": (40, 24) for layer in range(3) for name in "qv"}


def adapters(bounds: int) -> list[Adapter | Trajectory]:
    """One without steps, whose modules have that many rank bounds, and a run of two steps."""
    rng = np.random.default_rng(bounds)
    updates = {
        f"model.layers.{k}.mlp.up_proj": lora(rng.standard_normal((12, r)), rng.standard_normal((r, 9)))
        for k, r in enumerate([*range(2, 2 + bounds), 2])
    }
    steps = [replace(synthetic_adapter("lora", SHAPES, r=3, seed=step), name="run", step=step) for step in (5, 20)]
    return [Adapter.from_updates("many", updates), Trajectory("run", tuple(steps))]


@pytest.fixture(params=[1, 3, 5], scope="module")
def tables(request):
    return analyse(adapters(request.param))


def spectra_of(frame: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    """Adapter → module → its singular values."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in frame.to_dict("records"):
        found.setdefault(row["adapter"], {}).setdefault(row["module"], []).append(row["singular_value"])
    return found


def test_the_last_steps_are_those_of_the_plain_rule(tables):
    for frame in (tables.spectra, tables.layer_metrics):
        wanted = frame[columns.last_steps(frame["adapter"], frame["step"])]
        pd.testing.assert_frame_equal(views.last_steps(frame), wanted)
        assert set(wanted["step"].dropna()) == {20}
    alone = tables.layer_metrics[tables.layer_metrics["adapter"] == "many"]
    assert views.last_steps(alone) is alone
    mixed = tables.layer_metrics.assign(adapter="one").astype({"step": float})  # steps, and rows without one
    assert set(views.last_steps(mixed)["step"]) == {20.0}
    assert views.last_steps(mixed.iloc[:0]).empty


def test_curves_are_medians_and_ranges_over_the_modules(tables):
    spectra = views.last_steps(tables.spectra)
    found, wanted = views.curves(spectra), []
    for adapter, modules in spectra_of(spectra).items():
        lengths = list(dict.fromkeys(map(len, modules.values())))
        for bound in lengths if len(lengths) <= 3 else [max(lengths)]:
            own = [each for each in modules.values() if len(lengths) > 3 or len(each) == bound]
            for index in range(bound):
                values = [each[index] if index < len(each) else 0.0 for each in own]
                ends = statistics.median(values), min(values), max(values)
                wanted.append((adapter, bound, len(own), index + 1, *ends))
    assert list(zip(found["adapter"], found["bound"], found["modules"], found["index"], strict=True)) == [
        row[:4] for row in wanted
    ]
    for place, name in enumerate(("median", "least", "largest"), 4):
        assert found[name].tolist() == pytest.approx([row[place] for row in wanted])


def test_curves_of_the_null_are_medians_of_its_columns(tables):
    drawn = null(views.last_steps(tables.layer_metrics)).spectra
    found = views.null_curves(drawn)
    for name in ("mean", "low", "high"):
        alone = views.curves(drawn.assign(singular_value=drawn[f"null_{name}"]))
        assert found[name].tolist() == pytest.approx(alone["median"].tolist())
    assert (found["low"] <= found["mean"]).all()
    assert (found["mean"] <= found["high"]).all()


def test_means_by_layer_and_costs(tables):
    layers = views.last_steps(tables.layer_metrics)
    rows = layers.to_dict("records")
    for keys, found, sums in (
        (("adapter", "layer"), views.by_layer(layers), {"modules": lambda row: 1}),
        (("adapter",), views.costs(layers), {"parameters": lambda row: row["parameters"]}),
    ):
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
        assert [tuple(row) for row in found[list(keys)].itertuples(index=False, name=None)] == list(groups)
        for name in found.columns.difference(list(keys)):
            for value, group in zip(found[name], groups.values(), strict=True):
                each = [sums[name](row) if name in sums else row[name] for row in group]
                assert value == pytest.approx(sum(each) if name in sums else statistics.fmean(each))


@pytest.mark.parametrize("threshold", [0.005, "1%", Threshold(0.1, norm=1.0)])
def test_the_limit_of_an_adapter_is_the_median_of_its_modules(tables, threshold):
    tau, spectra = Threshold.of(threshold), views.last_steps(tables.spectra)
    wanted = {
        adapter: statistics.median(tau.limit(each[0], float(np.linalg.norm(each))) for each in modules.values())
        for adapter, modules in spectra_of(spectra).items()
    }
    assert views.limits_of(spectra, tau) == pytest.approx(wanted)


def test_frames_have_the_types_of_tables(tables):
    for made in (tables.layers, tables.spectra_columns()):
        frame = made.frame()
        again = typed(pd.DataFrame({name: made[name].tolist() for name in made}))
        pd.testing.assert_frame_equal(frame, again)
