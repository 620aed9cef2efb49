"""The figures: what they show equals the tables, any table draws without a warning, the same table gives the same
bytes. Warnings are errors here, which is what "without a warning" means."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figure_cases import ADAPTERS, artist, cut_texts, gids, legend_texts, tables, ydata
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from bora_analysis import Threshold, capture, figures, style, synthetic_adapter
from bora_analysis.analysis import views
from bora_analysis.catalogue import METHODS
from bora_analysis.paper import tables as paper

SPECTRA_FIGURES = ("figure4", "spectra", "threshold_sweep")


def sources(**options) -> dict[str, Any]:
    """What any figure may be drawn from."""
    evaluation = pd.read_csv(Path(__file__).parents[2] / "data" / "accuracy_by_rank.csv")
    seeds = [(method, seed) for method in ("lora", "bora") for seed in (0, 1)]
    runs = pd.DataFrame(
        [(f"{method}-r8", method, "accuracy", 0.8 + seed / 100, 8.0 + seed) for method, seed in seeds],
        columns=["group", "method", "outcome", "value", "effective_rank"],
    )
    measured = {"evaluation": evaluation, "runs": runs, "accuracy": paper.tables()}
    return {**tables(**options), **measured, "similarity": grid_of_phi(), "capture": captured()}


def captured():
    """The table of what two methods can represent of one module."""
    target = synthetic_adapter("lora", {"layers.0.q_proj": (48, 32)}, r=8)
    return capture(target, [("lora", 2), ("lora", 4), ("melora", 2, 4)])


def grid_of_phi(modules=("model.layers.0.q_proj", "model.layers.1.q_proj"), sizes=((3, 5), (4, 4)), names=("a", "b")):
    """The table of two adapters' similarity; the modules' grids may differ in size."""
    rng, rows = np.random.default_rng(0), []
    for module, (high, wide) in zip(modules, sizes, strict=True):
        for side, d in (("left", 48), ("right", 32)):
            key = {"adapter_a": names[0], "adapter_b": names[1], "module": module, "side": side, "dimension": d}
            key |= {"layer": modules.index(module), "projection": module[-6]}
            for i, j in np.ndindex(high, wide):
                more = {"i": i + 1, "j": j + 1, "phi": rng.uniform(), "random": max(i + 1, j + 1) / d}
                rows.append({**key, **more})
    return pd.DataFrame(rows).astype({"layer": "Int64"})


# --------------------------------------------------------------------------------------------- what the figures say


def test_figure4_shows_energy_rank_and_bound_of_the_query_layers():
    data = tables()
    figure = figures.draw("figure4", **data)
    rows = data["layer_metrics"].query("projection == 'q'")
    for name, _, r, b in ADAPTERS:
        mine = rows[rows["adapter"] == name].sort_values("layer")
        assert ydata(figure, f"energy:{name}") == pytest.approx(mine["energy"].tolist())
        assert ydata(figure, f"effective_rank:{name}") == mine["effective_rank"].tolist()
        assert ydata(figure, f"bound:{name}") == [r * b, r * b]
    assert figure.axes[1].get_ylabel() == "effective rank\n#{σ > 0.005}"
    assert figure.axes[1].get_xlabel() == "layer (q projection)"


def test_similarity_shows_the_mean_of_what_all_modules_have():
    table = grid_of_phi()
    figure = figures.draw("similarity", similarity=table)
    for side, d in (("left", 48), ("right", 32)):
        mesh = artist(figure, f"phi:{side}")
        mine = table[(table["side"] == side) & (table["i"] <= 3) & (table["j"] <= 4)]
        mean = mine.pivot_table(index="i", columns="j", values="phi")
        np.testing.assert_allclose(np.ma.getdata(mesh.get_array()).reshape(3, 4), mean)
        assert mesh.norm.vmin == 0
        assert mesh.norm.vmax == 1
        title = f"{side}, chance at most {4 / d:.2g}"
        assert title in [axes.get_title(loc="left") for axes in figure.axes]
    one = figures.draw("similarity", similarity=table, module="model.layers.1.q_proj")
    assert np.ma.getdata(artist(one, "phi:left").get_array()).size == 16
    assert cut_texts(one) == cut_texts(figure) == []
    with pytest.raises(ValueError, match="no projection 'v' here; there are q"):
        figures.draw("similarity", similarity=table, projection="v")
    long = grid_of_phi(sizes=((64, 1), (64, 1)), names=("a-very-long-name-of-an-adapter-$1$" * 3, "b_" * 40))
    assert cut_texts(figures.draw("similarity", similarity=long, width="icml")) == []


def test_figure4_takes_the_threshold_and_the_projection():
    data = tables()
    figure = figures.draw("figure4", **data, threshold=0.2, projection="v")
    rows = data["spectra"].query("projection == 'v' and adapter == 'mine'")
    counts = [int((group["singular_value"] > 0.2).sum()) for _, group in rows.groupby("layer")]
    assert ydata(figure, "effective_rank:mine") == counts
    assert "0.2" in figure.axes[1].get_ylabel()


def test_figure4_falls_back_to_qkv_then_to_the_projection_of_most_layers():
    assert "(qkv projection)" in figures.figure4(tables(projections=("v", "qkv"))["spectra"]).axes[1].get_xlabel()
    spectra = tables(projections=("o", "up"))["spectra"]
    spectra = spectra[(spectra["projection"] == "up") | (spectra["layer"] == 0)]
    assert "(up projection)" in figures.figure4(spectra).axes[1].get_xlabel()


def test_figure4_averages_the_modules_of_a_layer_and_says_so():
    spectra = tables(projections=("up",), adapters=ADAPTERS[:1])["spectra"]
    twice = pd.concat([spectra, spectra.assign(module=spectra["module"] + ".e1", singular_value=0.0)])
    figure = figures.figure4(twice)
    single = figures.figure4(spectra)
    assert "mean over modules" in figure.axes[1].get_xlabel()
    assert "mean" not in single.axes[1].get_xlabel()
    assert ydata(figure, "energy:lora-r4") == pytest.approx([x / 2 for x in ydata(single, "energy:lora-r4")])


def test_figure4_marks_every_adapter_also_where_markers_take_turns():
    many = tuple((f"run{i}", "lora", 2, 1) for i in range(9))
    spectra = tables(adapters=many, layers=range(12), projections=("q",))["spectra"]
    short = spectra[(spectra["adapter"] != "run8") | (spectra["layer"] == 11)]
    figure = figures.figure4(short)
    marked = gids(figure, "effective_rank:")
    assert len(marked) == 9
    for gid in marked:
        start, every = artist(figure, gid).get_markevery()
        assert len(ydata(figure, gid)[start::every]) > 0


def test_figure4_leaves_out_modules_without_a_layer_where_others_have_one():
    data = tables(layers=(0, 1, None), projections=("q",))["spectra"]
    some = data[(data["adapter"] != "mine") | data["layer"].isna()]
    figure = figures.figure4(some)
    assert ydata(figure, "effective_rank:lora-r4") == ydata(figures.figure4(data), "effective_rank:lora-r4")
    assert legend_texts(figure) == ["lora-r4", "melora-r2", "bora-b4"]


def test_figure4_draws_a_bound_that_changes_with_the_layer():
    one = tables(adapters=(("a", "lora", 2, 1),), layers=(0,), projections=("q",))["spectra"]
    two = tables(adapters=(("a", "lora", 5, 1),), layers=(1,), projections=("q",))["spectra"]
    assert ydata(figures.figure4(pd.concat([one, two])), "bound:a") == [2, 5]


@pytest.mark.parametrize(("count", "log"), [(1e3, True), (10, False)])
def test_energy_is_logarithmic_where_it_spreads_over_two_decades(count, log):
    spectra = tables(adapters=ADAPTERS[:1], projections=("q",))["spectra"]
    spectra["singular_value"] = np.sqrt(spectra["layer"].map({0: 1.0, 1: 2.0, 2: count}).astype(float))
    assert (figures.figure4(spectra).axes[0].get_yscale() == "log") is log


def test_spectra_show_median_band_bound_and_threshold():
    data = tables(zero=("melora-r2",))
    figure = figures.draw("spectra", **data, projection="q")
    rows = data["spectra"].query("projection == 'q'")
    floor = figure.axes[0].get_ylim()[0]
    for name, _, r, b in ADAPTERS:
        grid = rows[rows["adapter"] == name].pivot(index="layer", columns="index", values="singular_value").to_numpy()
        assert ydata(figure, f"median:{name}:{r * b}") == pytest.approx(np.fmax(np.median(grid, axis=0), floor))
        assert artist(figure, f"bound:{name}:{r * b}").get_segments()[0][:, 0].tolist() == [r * b, r * b]
        heights = artist(figure, f"band:{name}:{r * b}").get_paths()[0].vertices[:, 1]
        assert heights.max() == pytest.approx(max(grid.max(), floor))
    assert ydata(figure, "median:melora-r2:8") == [floor] * 8
    assert ydata(figure, "threshold") == [0.005, 0.005]
    assert "0.005" in [text.get_text() for text in figure.axes[0].texts]


def test_spectra_of_a_module_and_of_an_adapter_with_two_bounds():
    data = tables()
    one = figures.draw("spectra", **data, module="model.layers.1.v_proj")
    rows = data["spectra"].query("module == 'model.layers.1.v_proj' and adapter == 'mine'")
    assert ydata(one, "median:mine:24") == pytest.approx(rows["singular_value"].tolist())
    assert not gids(one, "band")
    narrow = data["spectra"].query("not (projection == 'v' and index > 3)")
    two = figures.spectra(narrow)
    assert gids(two, "median:mine") == ["median:mine:24", "median:mine:3"]
    assert len(legend_texts(two)) == len(ADAPTERS)


def test_spectra_of_many_bounds_share_one_curve():
    data = tables(adapters=(("ada", "adalora", 8, 1),), layers=range(6), projections=("q",))["spectra"]
    figure = figures.spectra(data[data["index"] <= data["layer"] + 1])
    assert gids(figure, "median") == ["median:ada:6"]
    assert np.all(np.diff(ydata(figure, "median:ada:6")) <= 0)


@pytest.mark.parametrize("metric", ["effective_rank", "energy", "rank_utilisation"])
def test_heatmap_cells_are_the_table(metric):
    data = tables(projections=("router", "v", "q"), layers=(0, 1, None, 7))
    figure = figures.draw("heatmap", **data, metric=metric)
    for name, *_ in ADAPTERS:
        mine = data["layer_metrics"].query("adapter == @name")
        cells = artist(figure, f"cells:{name}").get_array()
        assert cells.shape == (3, 4)
        for i, projection in enumerate(("q", "v", "router")):
            for j, layer in enumerate((0, 1, 7, None)):
                here = mine[(mine["projection"] == projection)]
                here = here[here["layer"].isna()] if layer is None else here[here["layer"] == layer]
                assert cells[i, j] == pytest.approx(here[metric].item())
    lowest = figure.axes[len(ADAPTERS) - 1]
    assert [text.get_text() for text in lowest.get_xticklabels()] == ["0", "1", "7", "–"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["q", "v", "router"]
    meshes = [each for axes in figure.axes for each in axes.collections if isinstance(each, QuadMesh)]
    panels = [mesh for mesh in meshes if mesh.get_gid()]
    assert len({mesh.get_clim() for mesh in panels}) == 1  # one colour scale
    assert len(panels) == len(ADAPTERS)


def test_heatmap_leaves_missing_cells_blank_and_averages_several_modules():
    table = tables(adapters=ADAPTERS[:1])["layer_metrics"]
    table = table[~((table["layer"] == 1) & (table["projection"] == "v"))]
    written = table.sort_values(["projection", "layer"])["effective_rank"].tolist()
    figure = figures.heatmap(table)
    cells = artist(figure, "cells:lora-r4").get_array()
    assert cells.mask.tolist() == [[False, False, False], [False, True, False]]
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{x}" for x in written]
    assert "mean" not in figure.axes[-1].get_ylabel()
    twice = pd.concat([table, table.assign(module=table["module"] + ".1", effective_rank=0)])
    figure = figures.heatmap(twice)
    assert artist(figure, "cells:lora-r4").get_array()[0, 0] == written[0] / 2
    assert "mean" in figure.axes[-1].get_ylabel()


def test_threshold_sweep_counts():
    data = tables()
    figure = figures.draw("threshold_sweep", **data, threshold=0.01)
    for name, *_ in ADAPTERS:
        mine = data["spectra"].query("adapter == @name")
        line = artist(figure, f"mean:{name}")
        for tau, count in list(zip(*line.get_data(), strict=True))[::37]:
            assert count == pytest.approx((mine["singular_value"] > tau).sum() / 6)
    assert list(artist(figure, "threshold").get_xdata()) == [0.01, 0.01]


@pytest.mark.parametrize("threshold", [0.01, "2%", "0.02 at norm 1"])
def test_threshold_sweep_has_an_axis_that_does_not_depend_on_the_scale(threshold):
    data = tables()
    tau = Threshold.of(threshold)
    figure = figures.draw("threshold_sweep", **data, threshold=threshold, width="icml")
    for name, *_ in ADAPTERS:
        mine = data["spectra"].query("adapter == @name")
        groups = mine.groupby("module")["singular_value"]
        size = groups.transform(np.linalg.norm) if tau.norm else groups.transform("max")
        for share, count in list(zip(*artist(figure, f"free mean:{name}").get_data(), strict=True))[::37]:
            assert count == pytest.approx((mine["singular_value"] > share * size).sum() / 6)
    marks = [axes for axes in figure.axes if any(line.get_gid() == "threshold" for line in axes.lines)]
    assert [figure.axes.index(axes) for axes in marks] == [0 if tau.absolute else 1]
    assert list(artist(figure, "threshold").get_xdata()) == [tau.value] * 2


@pytest.mark.parametrize("threshold", ["10%", "0.05 at norm 1"])
def test_spectra_and_figure4_at_thresholds_of_each_adapter(threshold):
    data = tables()
    figure = figures.draw("spectra", **data, threshold=threshold)
    assert gids(figure, "threshold:")
    for name, *_ in ADAPTERS:
        values = data["spectra"].query("adapter == @name").groupby("module")["singular_value"]
        limits = Threshold.of(threshold).limit(values.max(), values.apply(np.linalg.norm))
        (segment,) = artist(figure, f"threshold:{name}").get_segments()
        assert segment[0, 1] == pytest.approx(limits.median())
    means = views.by_layer(views.counted(data["spectra"].query("projection == 'q'"), threshold))
    drawn = figures.draw("figure4", **data, threshold=threshold)
    for name, *_ in ADAPTERS:
        expected = means.query("adapter == @name")["effective_rank"].tolist()
        assert ydata(drawn, f"effective_rank:{name}") == pytest.approx(expected)


def test_trajectory_of_one_adapter_has_a_line_per_layer_and_the_mean():
    data = tables(adapters=ADAPTERS[:1], steps=(100, 0, 50), layers=(0, 3, None))
    figure = figures.draw("trajectory", **data, metric="stable_rank")
    rows = data["layer_metrics"]
    assert gids(figure, "layer:") == ["layer:0", "layer:3", "layer:–"]
    assert ydata(figure, "mean:lora-r4") == pytest.approx(rows.groupby("step")["stable_rank"].mean().tolist())
    third = rows[rows["layer"] == 3].groupby("step")["stable_rank"].mean()
    assert ydata(figure, "layer:3") == pytest.approx(third.tolist())
    assert list(artist(figure, "mean:lora-r4").get_xdata()) == [0, 50, 100]


def test_trajectory_of_several_adapters_has_means_and_bands():
    data = tables(steps=(0, 10))
    figure = figures.draw("trajectory", **data, projection="q")
    rows = data["layer_metrics"].query("projection == 'q' and adapter == 'mine'")
    assert ydata(figure, "mean:mine") == pytest.approx(rows.groupby("step")["entropy_rank"].mean().tolist())
    heights = artist(figure, "band:mine").get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(rows["entropy_rank"].max())


def test_all_figures_but_trajectory_show_the_last_step():
    data = tables(steps=(5, 20, 10))
    last = {name: table[table["step"] == 20] for name, table in data.items()}
    for name in ("figure4", "threshold_sweep", "spectra"):
        both = [figures.draw(name, **each) for each in (data, last)]
        for gid in gids(both[0], "mean:") + gids(both[0], "energy:") + gids(both[0], "median:"):
            assert ydata(both[0], gid) == ydata(both[1], gid)
    cells = [artist(figures.draw("heatmap", **each), "cells:mine").get_array() for each in (data, last)]
    assert (cells[0] == cells[1]).all()


# ------------------------------------------------------------------------------------------------------- any table

LONG = tuple((f"Qwen2.5-7B-Instruct-commonsense170k-{i}-seed-{i}-final", "lora", 2 + i, 1) for i in range(6))
CASES = {
    "one layer, one adapter": {"adapters": ADAPTERS[:1], "layers": (0,), "projections": ("q",)},
    "no layer": {"layers": (None,), "projections": ("q",)},
    "80 layers, six adapters": {"adapters": LONG, "layers": range(80), "projections": ("q",)},
    "bounds 1 and 256": {"adapters": (("a", "lora", 1, 1), ("b", "bora", 8, 32)), "layers": (0, 1)},
    "zero update": {"zero": [name for name, *_ in ADAPTERS]},
    "one zero update": {"zero": ["mine"]},
    "odd names": {"adapters": (("_a $x$ {", "lora", 2, 1), ("b\nc", "newra", 2, 1)), "projections": ("q", "$r$_x")},
    "500 modules": {"adapters": ADAPTERS[:1], "layers": (None,), "projections": [f"module_{i}" for i in range(500)]},
}


@pytest.mark.parametrize("case", CASES)
def test_every_figure_draws_and_cuts_no_text(case):
    data = tables(**CASES[case])
    widths = {"icml": ("figure4", "spectra", "threshold_sweep", "heatmap"), "neurips": ("spectra", "heatmap")}
    for width, names in widths.items():
        for name in names:
            figure = figures.draw(name, **data, width=width)
            assert figure.get_figwidth() == style.VENUES[width]
            assert figure.get_figheight() < 9.5
            assert cut_texts(figure) == [], name


def test_a_metric_that_is_nowhere_defined_gives_hatched_panels(tmp_path):
    table = tables(adapters=ADAPTERS[:2])["layer_metrics"].assign(condition=np.nan)  # as for zero updates
    figure = figures.heatmap(table, metric="condition")
    assert artist(figure, "cells:lora-r4").get_array().mask.all()
    figures.save(figure, tmp_path / "nan.pdf")


@pytest.mark.parametrize("adapters", [LONG, ADAPTERS[:1]])
def test_trajectory_draws_and_cuts_no_text(adapters):
    for metric in ("energy", "effective_rank", "energy_rank_90"):
        data = tables(adapters=adapters, steps=range(0, 300, 10), layers=(0, 1), zero=[adapters[0][0]])
        for width in ("neurips", "icml"):
            figure = figures.draw("trajectory", **data, metric=metric, width=width, title="A title")
            assert cut_texts(figure) == []


def test_every_metric_has_a_label_and_draws():
    data = tables(adapters=ADAPTERS[:2])
    for metric in style.METRICS:
        figure = figures.draw("heatmap", **data, metric=metric, width="icml")
        assert figure.axes[-1].get_ylabel()
    assert cut_texts(figures.draw("heatmap", **data, metric="participation_ratio", width="icml")) == []


def test_titles_are_off_by_default():
    data = sources(steps=(0, 1))
    for name in figures.FIGURES:
        assert figures.draw(name, **data).get_suptitle() == ""
        assert figures.draw(name, **data, title="On $x$").get_suptitle() == r"On \$x\$"


def test_axes_of_whole_numbers_have_whole_ticks():
    figure = figures.draw("figure4", **tables(adapters=(("a", "lora", 1, 1),), projections=("q",)))
    assert all(float(tick).is_integer() for tick in figure.axes[1].get_yticks())


# ------------------------------------------------------------------------------------------------------------ looks


@pytest.mark.parametrize("name", ["threshold_sweep", "spectra", "trajectory", "figure4"])
def test_lines_of_adapters_are_told_apart_without_colour(name):
    """As they are printed in grey: by marker, its filling, or dashes; also in the legend."""
    made = tables(steps=(0, 10)) if name == "trajectory" else tables()
    options = {"panels": "one", "projection": "q"} if name == "trajectory" else {}
    figure = figures.draw(name, **made, **options)
    for axes in figure.axes:
        lines = [line for line in axes.lines if str(line.get_gid()).rpartition(":")[0] and line.get_marker() != "None"]
        own = [line for line in lines if any(adapter in str(line.get_gid()) for adapter, *_ in ADAPTERS)]
        shown = {(line.get_marker(), line.get_fillstyle(), line.get_markerfacecolor() == "white") for line in own}
        assert len(shown) == len(ADAPTERS), axes
    legends = [figure.legends[0]]
    if name == "threshold_sweep":  # on axes of one's own, too
        axes = Figure().subplots()
        figures.draw(name, **made, ax=axes)
        legends.append(axes.get_legend() or axes.figure.legends[0])
    for legend in legends:
        handles: list[Any] = [*legend.legend_handles]
        marks = [(line.get_marker(), line.get_markerfacecolor() == "white") for line in handles]
        assert len(set(marks)) == len(ADAPTERS)


def test_a_method_has_one_colour_and_marker_in_all_figures():
    data = tables(steps=(0, 1))
    found: dict[str, set[str]] = {}
    for name, gid in {
        "figure4": "effective_rank:",
        "spectra": "median:",
        "threshold_sweep": "mean:",
        "trajectory": "mean:",
    }.items():
        figure = figures.draw(name, **data)
        for each in gids(figure, gid):
            found.setdefault(each.split(":")[1], set()).add(artist(figure, each).get_color())
    assert found["lora-r4"] == {style.method_look("lora").colour}
    assert found["melora-r2"] == {style.method_look("melora").colour}
    assert found["bora-b4"] == {style.method_look("bora").colour}
    assert len(found["mine"]) == 1
    assert found["mine"] != found["bora-b4"]


def test_narrowing_does_not_change_an_adapters_colour():
    spectra = tables()["spectra"]
    spectra = spectra[~((spectra["adapter"] == "bora-b4") & (spectra["projection"] == "v"))]
    all_of_it, only_v = figures.spectra(spectra), figures.spectra(spectra, projection="v")
    assert artist(all_of_it, "median:mine:24").get_color() == artist(only_v, "median:mine:24").get_color()
    assert "bora-b4" not in legend_texts(only_v)


def test_methods_are_told_apart_and_adapters_of_one_method_too():
    pairs = [(method.colour, method.marker) for method in METHODS.values()]
    assert len(set(pairs)) == len(pairs)
    looks = style.looks([(f"run{i}", "lora") for i in range(6)])
    assert len({look.colour for look in looks.values()}) == 6
    assert {look.marker for look in looks.values()} == {"o"}


@pytest.mark.parametrize(
    ("name", "method", "label"),
    [
        ("bora-r8", "bora", "bora-r8"),
        ("melora-r8", "lora", "melora-r8 (LoRA)"),
        ("run_BoRA_1", "bora", "run_BoRA_1"),
        ("seed 1", "rslora", "seed 1 (rsLoRA)"),
        ("seed 1", "new", "seed 1 (new)"),
    ],
)
def test_labels_name_the_method_once(name, method, label):
    assert style.looks([(name, method)])[name].label == label


def test_long_names_stay_different():
    same_ends = [f"{'a' * 40}{i}{'b' * 40}" for i in range(12)]
    for names in (same_ends, [f"{i}{'a' * 40}" for i in range(12)], [f"{'a' * 40}{i}" for i in range(12)]):
        short = style.shortened(names, 20)
        assert len(set(short)) == 12
        assert max(map(len, short)) <= 20
    figure = figures.draw("spectra", **tables(adapters=LONG, layers=(0,)))
    assert len(set(legend_texts(figure))) == len(LONG)


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("figure5", {}, "unknown figure 'figure5'; there are figure1, figure2, figure3, figure4"),
        ("heatmap", {"metric": "rank"}, "unknown metric 'rank'; there are effective_rank, energy"),
        ("trajectory", {"metric": "rank"}, "unknown metric 'rank'; there are effective_rank"),
        ("figure4", {"projection": "k"}, "no projection 'k' here; there are q, v"),
        ("spectra", {"module": "x"}, "no module 'x' here; there are model.layers.0.q_proj"),
        ("spectra", {"width": "a4"}, "unknown width 'a4'; there are neurips, iclr, icml, icml2"),
        (
            "heatmap",
            {"threshold": 1.0},
            "figure heatmap has no option 'threshold'; it has metric, scale, group, width, height, font",
        ),
        ("spectra", {"threshold": 0.0}, "threshold is 0.0; expected a finite number above 0"),
        ("figure4", {"threshold": -1.0}, "threshold is -1.0; expected a finite number above 0"),
        ("trajectory", {}, "needs two or more steps"),
    ],
)
def test_wrong_requests_are_answered_with_what_there_is(name, options, message):
    with pytest.raises(ValueError, match=message):
        figures.draw(name, **tables(layers=(0,)), **options)


@pytest.mark.parametrize("name", [name for name, spec in figures.FIGURES.items() if spec.adapters == "required"])
def test_empty_tables_are_refused(name):
    data = {key: table.iloc[:0] for key, table in sources(layers=(0,)).items()}
    with pytest.raises(ValueError, match="no rows"):
        figures.draw(name, **data)


@pytest.mark.parametrize(
    ("name", "source"), [("figure3", "accuracy"), ("figure4", "spectra"), ("pareto", "layer_metrics")]
)
def test_a_missing_source_is_named(name, source):
    with pytest.raises(ValueError, match=f"figure {name} is drawn from {source}, and none was given"):
        figures.draw(name)


def test_trajectory_needs_two_steps():
    with pytest.raises(ValueError, match="two or more steps"):
        figures.draw("trajectory", **tables(steps=(10,)))


def test_options_that_are_none_keep_their_default():
    data = tables()
    figure = figures.draw("figure4", **data, threshold=None, width=None, projection=None)
    assert "0.005" in figure.axes[1].get_ylabel()


def test_the_registry_tells_what_the_functions_take():
    for spec in figures.FIGURES.values():
        assert spec.source is None or spec.source in sources(layers=(0,)) or spec.source == "updates"
        assert spec.adapters in ("required", "optional", "none")
        assert {"width", "font", "title"} <= set(spec.options)
        assert "\n" not in spec.description
    assert figures.FIGURES["figure2"].options == ("width", "font", "title")
    assert figures.FIGURES["spectra"].options == (
        "projection", "module", "threshold", "null", "band", "group", "width", "height", "font", "title",
        "labels", "ax",
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- saving


def written(folder: Path) -> dict[str, str]:
    """Name → hash of every figure in every format."""
    data = sources(adapters=ADAPTERS[2:], steps=(0, 1), layers=(0, None))
    result = {}
    for name in figures.FIGURES:
        figure = figures.draw(name, **data)
        # Pixels follow from what is drawn, so one picture of them does.
        for suffix in (".pdf", ".svg", *([".png"] if name == "heatmap" else [])):
            path = figures.save(figure, folder / f"{name}{suffix}")
            result[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return result


def test_bytes_repeat_in_another_process(tmp_path):
    first = written(tmp_path / "a")
    assert len(first) == 2 * len(figures.FIGURES) + 1
    code = f"from pathlib import Path; import test_figures as t; print(t.written(Path({str(tmp_path / 'b')!r})))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo"}
    here = Path(__file__).parent
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(here), str(here.parent), str(here.parents[1]), environment.get("PYTHONPATH", "")]
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == str(first)


def test_saving_a_figure_again_gives_the_same_bytes(tmp_path):
    figure = figures.draw("heatmap", **tables())
    first, between, again = (figures.save(figure, tmp_path / name) for name in ("a.pdf", "b.png", "c.pdf"))
    assert between.exists()
    assert first.read_bytes() == again.read_bytes()


def test_files_are_what_their_suffix_says(tmp_path):
    figure = figures.draw("figure4", **tables(layers=(0,)))
    pdf = figures.save(figure, tmp_path / "new folder" / "a.PDF").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/FontType3" not in pdf
    assert b"/Type3" not in pdf
    assert figures.save(figure, tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert figures.save(figure, str(tmp_path / "a.png")).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_other_suffixes_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"\.pdf, \.svg, \.png"):
        figures.save(Figure(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a.svg").write_text("old")

    def fail(self, path, **options):
        Path(path).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.save(Figure(), tmp_path / "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
    assert (tmp_path / "a.svg").read_text() == "old"


def test_figures_leave_no_trace_and_ignore_the_users_settings(tmp_path):
    import matplotlib as mpl

    data = tables(layers=(0, 1))
    plain = figures.save(figures.draw("spectra", **data), tmp_path / "a.svg").read_bytes()
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9}):
        assert figures.save(figures.draw("spectra", **data), tmp_path / "b.svg").read_bytes() == plain
    assert dict(mpl.rcParams) == before


def test_figures_import_neither_pyplot_nor_torch():
    code = "import sys, bora_analysis.figures; print([m for m in ('matplotlib.pyplot', 'torch') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
    code = "import sys, bora_analysis.style; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
