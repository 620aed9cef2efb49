"""Charts for the screen beside the figures that the page offers of them, and the room that their legends take."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from app import charts, columns, comparing, method_charts, palette, vega
from bora_analysis import analyse, figures, style, synthetic_adapter
from bora_analysis.analysis import views
from bora_analysis.analysis.capture import CAPTURE_COLUMNS
from bora_analysis.analysis.factors import FACTOR_COLUMNS
from bora_analysis.analysis.relative import BASE_COLUMNS
from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS
from bora_analysis.analysis.trimming import trimmed
from bora_analysis.catalogue import METHODS
from bora_analysis.threshold import Threshold


@pytest.fixture(autouse=True)
def light(monkeypatch):
    monkeypatch.setattr(palette, "dark", lambda: False)


def tables(*ranks: int, scales: tuple[float, ...] = (1.0,)):
    """LoRA adapters of these ranks in two layers; a step for each scale of ΔW."""
    shapes = {f"model.layers.{k}.self_attn.{name}_proj": (300, 300) for k in range(2) for name in "qv"}
    found = []
    for rank in ranks:
        made = analyse(synthetic_adapter("lora", shapes, r=rank, seed=rank))
        for step, scale in enumerate(scales, 1):
            at: Any
            name, at = f"rank {rank}", step if len(scales) > 1 else pd.NA
            spectra = made.spectra.assign(adapter=name, step=at, singular_value=made.spectra["singular_value"] * scale)
            layers = made.layer_metrics.assign(adapter=name, step=at)
            layers["energy"] *= scale**2
            found.append((spectra.astype({"step": "Int64"}), layers.astype({"step": "Int64"})))
    spectra, layers = (pd.concat(frames, ignore_index=True) for frames in zip(*found, strict=True))
    return SimpleNamespace(spectra=spectra, layer_metrics=layers)


def kind(chart: vega.Chart, axis: str) -> str:
    """The kind of the axis: the one that its layers agree on."""
    kinds = {
        layer["encoding"][axis].get("scale", {}).get("type")
        for layer in chart.spec["layer"]
        if axis in layer["encoding"]
    }
    return "log" if "log" in kinds else "linear"


@pytest.mark.parametrize("ranks", [(8, 16), (8, 63), (8, 64), (2, 128), (4, 256)])
def test_the_index_axis_is_that_of_the_figure(ranks):
    found = tables(*ranks)
    tau, looks = Threshold.of(0.005), views.looks_of(found.layer_metrics)
    chart = charts.spectrum(views.curves(found.spectra), looks, tau, views.limits_of(found.spectra, tau))
    axes = figures.spectra(found.spectra).axes[0]
    assert (kind(chart, "x"), kind(chart, "y")) == (axes.get_xscale(), axes.get_yscale())
    assert axes.get_xscale() == ("log" if ranks[1] >= 8 * ranks[0] else "linear")


@pytest.mark.parametrize("ranks", [(8, 16), (8, 128), (8, 129), (4, 256)])
def test_the_rank_axis_against_parameters_is_that_of_the_figure(ranks):
    layers = tables(*ranks).layer_metrics
    chart = method_charts.adapters_pareto(views.costs(layers), views.looks_of(layers))
    axes = figures.pareto(layers).axes[0]
    assert (kind(chart, "x"), kind(chart, "y")) == (axes.get_xscale(), axes.get_yscale())


@pytest.mark.parametrize("scales", [(1.0, 2.0), (1.0, 9.0), (1.0, 11.0), (0.1, 100.0)])
def test_the_axes_of_energy_are_those_of_the_figures(scales):
    found = tables(8, scales=scales)
    rows = found.layer_metrics.astype({"step": int})
    lines = views.means(rows, "energy", "layer", "step").assign(bold=False)
    titles = {"step": "step", "energy": "energy", "layer": "layer"}
    chart = charts.families(lines.astype({"layer": int}), titles, logarithmic=views.spreads(rows["energy"]))
    assert kind(chart, "y") == figures.trajectory(rows, metric="energy").axes[0].get_yscale()
    by_layer = views.by_layer(views.last_steps(found.layer_metrics))
    chart = charts.over_layers(by_layer, "energy", views.looks_of(found.layer_metrics))
    assert kind(chart, "y") == figures.figure4(found.spectra).axes[0].get_yscale()


# Heat maps


def cells(*values: float) -> pd.DataFrame:
    rows = [(str(k), "q", 1, value) for k, value in enumerate(values)]
    return pd.DataFrame(rows, columns=["layer", "projection", "modules", "energy"])


def test_the_colours_of_a_heat_map_begin_at_zero():
    """109 and 123 looked like 0 and 1."""
    chart = charts.heatmap(cells(109.0, 123.0), "energy", ("0", "q"))
    scale = chart.spec["layer"][0]["encoding"]["color"]["scale"]
    assert (scale["type"], scale["zero"]) == ("linear", True)
    assert "logarithmic" not in chart.spec["layer"][0]["encoding"]["color"]["legend"]["title"]
    layers = tables(8).layer_metrics
    mesh = figures.heatmap(layers, metric="energy").axes[0].collections[0]
    assert mesh.norm.vmin == 0
    assert mesh.norm.vmax == views.cells(layers, "energy")["energy"].max()


def test_a_logarithmic_heat_map_says_so():
    chart = charts.heatmap(cells(1.0, 1000.0), "energy", ("0", "q"))
    colour = chart.spec["layer"][0]["encoding"]["color"]
    assert colour["scale"]["type"] == "log"
    assert colour["legend"]["title"].endswith(", logarithmic")


@pytest.mark.parametrize(
    "values", [(109.0, 123.0), (0.001, 0.002, 1.0), (0.0, 0.0), (0.0, np.nan, 7.25), (np.nan,), (3.0,)]
)
def test_numbers_stand_in_the_cells(values):
    chart = charts.heatmap(cells(*values), "energy", ("0", "q"))
    numbers = chart.data["numbers"]
    known = [value for value in values if not np.isnan(value)]
    np.testing.assert_allclose([float(text) for text in numbers["text"]], known, rtol=0.005)
    assert set(numbers["characters"]) <= {max(map(len, numbers["text"]), default=0)}
    assert list(numbers["ink"]) == [
        style.ink_on_viridis(share) for share in shares(known, chart.spec["layer"][0]["encoding"]["color"]["scale"])
    ]


def shares(values: list[float], scale: dict) -> list[float]:
    """Where values lie on the scale of the colours, by Vega's rules."""
    if not values:
        return []
    ends = [min(values), max(values)]
    if scale["type"] == "log":
        return [float(np.log(v / ends[0]) / np.log(ends[1] / ends[0])) for v in values]
    low, high = (min(0.0, ends[0]), max(0.0, ends[1])) if scale["zero"] else ends
    return [(v - low) / (high - low) if high > low else 0.0 for v in values]


# Legends


def adapters(count: int) -> pd.DataFrame:
    names = [f"llama-3-8b-commonsense-lora-r{2 ** (k % 5)}-seed-{k}" for k in range(count)]
    return pd.DataFrame({"adapter": names, "method": "lora"})


@pytest.mark.parametrize("count", [1, 4, 8, 9, 22, 60])
def test_a_legend_names_all_and_stays_low(count):
    looks = views.looks_of(adapters(count))
    shown = vega.dressed(adapters(count), looks)
    colour, _, _ = vega.by_adapter(shown, looks)
    key = colour["legend"]
    assert len(colour["scale"]["domain"]) == count
    assert key["symbolLimit"] == 0, "Vega leaves out what is beyond thirty"
    assert key["labelOverlap"] is False
    if count <= 22:
        assert 20 + vega.legend_height(shown, vega.WHOLE) <= 110
        assert 20 + vega.legend_height(shown, vega.HALF) <= 170
    if count > vega.FEW:
        short = json.loads(key["labelExpr"].removesuffix("[datum.value]"))
        assert list(short) == colour["scale"]["domain"]
        assert len(set(short.values())) == count
        assert max(map(len, short.values())) <= vega.SHORT


@pytest.mark.parametrize("count", [2, 8, 12, 13, 80])
def test_the_legend_of_a_family_skips_none(count):
    lines = pd.DataFrame({"step": [0, 1] * count, "layer": np.repeat(range(count), 2), "energy": 1.0, "bold": False})
    chart = charts.families(lines, {"step": "step", "energy": "energy", "layer": "layer"})
    key = chart.spec["layer"][0]["encoding"]["color"]["legend"]
    if count <= 12:
        assert key["values"] == list(range(count))
    else:
        assert key["type"] == "gradient"


def test_every_marker_of_the_figures_has_a_shape_on_the_screen():
    assert {method: look.marker for method, look in METHODS.items() if look.marker not in vega.SHAPES} == {}


def test_methods_that_stand_side_by_side_have_colours_of_their_own():
    """MELoRA and BoRA are in nearly every chart of this toolkit: no other method has their colours."""
    for method in ("melora", "bora"):
        own = style.method_look(method).colour
        assert [name for name, look in METHODS.items() if look.colour == own] == [method]


def test_cells_of_many_layers_are_not_hidden_by_the_gaps_between_them():
    """At 500 layers the gap of a pixel was wider than a cell: the heat map was white."""

    def gaps(layers: int, width: int) -> dict[str, float]:
        names = [str(k) for k in range(layers)]
        shown = pd.DataFrame({"layer": names, "projection": "q", "energy": 1.0, "modules": 1})
        mark = charts.heatmap(shown, "energy", ("0", "q")).spec["layer"][0]["mark"]
        found = {}
        for name in ("strokeWidth", "cornerRadius"):
            condition, then = mark[name]["expr"].split(" ? ")
            yes, no = map(float, then.split(" : "))
            found[name] = yes if eval(condition, {"width": width}) else no
        return found

    assert gaps(500, 740) == gaps(80, 300) == {"strokeWidth": 0, "cornerRadius": 0}
    assert gaps(32, 740) == gaps(6, 300) == {"strokeWidth": 1, "cornerRadius": 2}


@pytest.mark.parametrize(("layers", "most"), [(64, 55), (500, 10)])
def test_markers_of_many_layers_leave_their_line_to_be_seen(layers, most):
    table = pd.DataFrame({
        "adapter": "a", "layer": range(layers), "energy": 1.0, "effective_rank": 1.0, "rank_bound": 1, "modules": 1,
    })  # fmt: skip
    chart = charts.over_layers(table, "energy", style.looks([("a", "lora")]))
    sizes = [layer["mark"]["size"] for layer in chart.spec["layer"] if layer["mark"]["type"] == "point"]
    assert sizes == [most]


def test_a_matrix_of_pairs_has_its_names_and_its_title_on_a_phone():
    names = [f"adapter-{k}" for k in range(4)]
    table = pd.DataFrame([(a, b, 0.5) for a in names for b in names], columns=["adapter_a", "adapter_b", "phi"])
    title = "φ above chance, mean over the modules"
    chart = comparing.grid(table, "adapter_b", "adapter_a", "phi", title, centred=False, tall=40)
    encoding = chart.spec["layer"][0]["encoding"]
    assert encoding["x"]["axis"]["labelOverlap"] is False
    assert max(map(len, encoding["color"]["legend"]["title"])) <= 36
    assert [each["title"] for each in encoding["tooltip"]] == ["adapter", "other", "φ"]


def test_every_column_has_words():
    names = {*LAYER_COLUMNS, *SPECTRA_COLUMNS, *FACTOR_COLUMNS, *CAPTURE_COLUMNS, *BASE_COLUMNS}
    names |= {*trimmed(tables(2).layer_metrics, tables(2).spectra, 0.9).columns, *comparing.PAIR_COLUMNS}
    words = {name: columns.heading(name) for name in names}
    assert not [word for word in words.values() if "_" in word]
    known = [word for name, word in words.items() if name in LAYER_COLUMNS]
    assert len(set(known)) == len(known), "two columns of one table have one name"


@pytest.mark.parametrize("chart", ["block_price", "ranks_and_blocks"])
def test_lines_in_shades_of_one_colour_have_markers_of_their_own(chart):
    names = [f"r = {k}" for k in range(6)]
    rows = pd.DataFrame({"shape": names, "rank": names, "blocks": 2, "price": 3.0, "value": 70.0, "best": True})
    made = getattr(method_charts, chart)(rows, rows)
    scales = [layer["encoding"]["shape"]["scale"] for layer in made.spec["layer"] if "shape" in layer["encoding"]]
    assert scales
    assert all(scale["domain"] == names and len(set(scale["range"])) == 6 for scale in scales)
