"""Groups of seeds, bands, panels, scales, tables in files, and the user's own runs: against numbers made by hand."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from figure_cases import artist, cut_texts, gids, legend_texts, tables, ydata
from test_figures import grid_of_phi

from bora_analysis import figures
from bora_analysis.analysis.groups import groups_of
from bora_analysis.cli import main
from bora_analysis.figures.data import of_files

SEEDS = tuple(
    (f"{method}-r4-seed{seed}", method, 4, b) for method, b in (("lora", 1), ("bora", 2)) for seed in (0, 1, 2)
)


@pytest.fixture(scope="module")
def seeds():
    return tables(adapters=SEEDS, steps=(0, 10))


@pytest.fixture(scope="module")
def last(seeds):
    return {name: frame[frame["step"] == 10] for name, frame in seeds.items()}


def of(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame[frame["adapter"].str.startswith(name)]


def heights(figure, gid: str) -> tuple[float, float]:
    y = artist(figure, gid).get_paths()[0].vertices[:, 1]
    return float(y.min()), float(y.max())


def test_figure4_of_seeds_is_their_mean_and_deviation(seeds, last):
    figure = figures.draw("figure4", **seeds, group="seed")
    assert legend_texts(figure) == ["lora-r4, n = 3", "bora-r4, n = 3"]
    rows = of(last["layer_metrics"], "bora").query("projection == 'q'")
    by_layer = rows.groupby("layer")["energy"]
    assert ydata(figure, "energy:bora-r4") == pytest.approx(by_layer.mean().tolist())
    bars = artist(figure, "sd:energy:bora-r4").get_segments()
    lengths = [segment[1, 1] - segment[0, 1] for segment in bars]
    assert lengths == pytest.approx((2 * by_layer.std()).tolist())


def test_spectra_of_seeds_are_means_of_medians(seeds, last):
    figure = figures.draw("spectra", **seeds, group="seed", projection="q")
    rows = of(last["spectra"], "bora").query("projection == 'q'")
    medians = rows.groupby(["adapter", "index"])["singular_value"].median().unstack()
    floor = figure.axes[0].get_ylim()[0]
    assert ydata(figure, "median:bora-r4:8") == pytest.approx(np.fmax(medians.mean(), floor).tolist())
    assert heights(figure, "band:bora-r4:8")[1] == pytest.approx((medians.mean() + medians.std()).max())


def test_counts_points_and_cells_of_seeds(seeds, last):
    layers = of(last["layer_metrics"], "bora")
    sweep = figures.draw("threshold_sweep", **seeds, group="seed", threshold=0.01)
    line = artist(sweep, "mean:bora-r4")
    for tau, count in list(zip(*line.get_data(), strict=True))[::80]:
        assert count == pytest.approx((of(last["spectra"], "bora")["singular_value"] > tau).sum() / 18)
    points = figures.draw("pareto", **seeds, group="seed")
    each = layers.groupby("adapter")["effective_rank"].mean()
    assert ydata(points, "rank:bora-r4") == pytest.approx([each.mean()])
    (bar,) = artist(points, "sd:bora-r4").get_segments()
    assert bar[1, 1] - bar[0, 1] == pytest.approx(2 * each.std())
    cells = figures.draw("heatmap", **seeds, group="seed", metric="energy", width="icml2")
    expected = layers[(layers["projection"] == "q") & (layers["layer"] == 1)]["energy"]
    assert artist(cells, "cells:bora-r4").get_array()[0, 1] == pytest.approx(expected.mean())
    assert f"{expected.mean():.3g}±{expected.std():.1g}" in [text.get_text() for text in cells.axes[1].texts]
    assert cut_texts(cells) == []


def test_outcomes_of_seeds(seeds):
    results = pd.DataFrame({"adapter": [name for name, *_ in SEEDS], "accuracy": [0.8, 0.81, 0.85, 0.7, 0.72, 0.77]})
    figure = figures.draw("pareto", **seeds, y="accuracy", outcome=results, group="seed")
    assert ydata(figure, "outcome:lora-r4") == pytest.approx([0.82])
    spread = np.std([0.8, 0.81, 0.85], ddof=1)
    assert ydata(figure, "spread:lora-r4") == pytest.approx([0.82 - spread, 0.82 + spread])


def test_trajectories_of_seeds_stand_in_a_panel_for_each_bound(seeds):
    figure = figures.draw("trajectory", **seeds, metric="stable_rank", group="seed", width="icml")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["rank bound 4", "rank bound 8"]
    rows = of(seeds["layer_metrics"], "bora").groupby(["step", "adapter"])["stable_rank"].mean().unstack()
    assert ydata(figure, "mean:bora-r4") == pytest.approx(rows.mean(axis=1).tolist())
    assert heights(figure, "band:bora-r4")[1] == pytest.approx((rows.mean(axis=1) + rows.std(axis=1)).max())
    assert cut_texts(figure) == []
    one = figures.draw("trajectory", **seeds, metric="stable_rank", panels="one")
    assert len(one.axes) == 1
    assert len(figures.draw("trajectory", **seeds, metric="energy").axes) == 1  # no rank


def test_bounds_beyond_four_share_a_panel():
    many = tables(adapters=[(f"a{r}", "lora", r, 1) for r in (1, 2, 3, 4, 5)], steps=(0, 1), layers=(0,))
    assert len(figures.draw("trajectory", **many).axes) == 1
    assert len(figures.draw("trajectory", **many, panels="bound").axes) == 5


def test_quartiles_are_the_middle_half(last):
    rows = of(last["spectra"], "bora").query("adapter == 'bora-r4-seed0'")
    grid = rows.pivot(index="module", columns="index", values="singular_value")
    figure = figures.spectra(rows, band="quartiles")
    low, high = heights(figure, "band:bora-r4-seed0:8")
    assert high == pytest.approx(grid.quantile(0.75).max())
    assert low == pytest.approx(max(grid.quantile(0.25).min(), figure.axes[0].get_ylim()[0]))
    assert "median and quartiles" in figure.axes[0].get_ylabel()
    sweep = figures.threshold_sweep(rows, band="quartiles", width="icml")
    assert "mean and quartiles" in sweep.axes[0].get_ylabel()
    with pytest.raises(ValueError, match="with groups the band is the standard deviation"):
        figures.spectra(last["spectra"], band="range", group="seed")
    with pytest.raises(ValueError, match="unknown band 'iqr'; expected range or quartiles"):
        figures.spectra(rows, band="iqr")


def test_groups_need_members():
    with pytest.raises(ValueError, match="no two adapters differ in their seed alone; there are a, b"):
        groups_of(["a", "b"], "seed")
    with pytest.raises(ValueError, match="no group of b"):
        groups_of(["a", "b"], {"a": "x"})
    with pytest.raises(ValueError, match="unknown group 'r'"):
        groups_of(["a", "b"], "r")


def test_a_scale_for_each_panel(last):
    figure = figures.draw("heatmap", **last, scale="each", metric="energy")
    limits = [artist(figure, gid).get_clim() for gid in gids(figure, "cells:")]
    assert len(set(limits)) == len(SEEDS)
    assert "each adapter has its own colours" in figure.axes[len(SEEDS) - 1].get_xlabel()
    with pytest.raises(ValueError, match="unknown scale 'own'"):
        figures.draw("heatmap", **last, scale="own")


def test_similarity_above_chance_and_its_square_cells():
    table = grid_of_phi()
    plain, above = (figures.draw("similarity", similarity=table, above_chance=each) for each in (None, True))
    rows = table[(table["side"] == "left") & (table["i"] <= 3) & (table["j"] <= 4)]
    expected = rows.assign(left=rows["phi"] - rows["random"]).pivot_table(index="i", columns="j", values="left")
    shown = np.ma.getdata(artist(above, "phi:left").get_array()).reshape(3, 4)
    np.testing.assert_allclose(shown, expected)
    assert "chance taken off: at most" in above.axes[0].get_title(loc="left")
    plain.draw_without_rendering()
    box = plain.axes[0].get_window_extent()
    assert box.width / 4 == pytest.approx(box.height / 3, rel=1e-3)
    assert plain.axes[-1].get_ylabel().endswith("mean of 2")


# ------------------------------------------------------------------------------------------- files and runs


def test_tables_in_files_tell_their_runs_apart(tmp_path, last):
    rows = last["spectra"].assign(seed=last["spectra"]["adapter"].str[-1].astype(int), task="movies")
    rows = rows.assign(adapter=rows["adapter"].str.replace(r"-seed\d", "", regex=True)).drop(columns="step")
    rows.to_parquet(tmp_path / "spectra.parquet")
    found = of_files([tmp_path / "spectra.parquet"])
    assert list(dict.fromkeys(found["adapter"])) == [f"{x}-r4 seed {k}" for x in ("lora", "bora") for k in range(3)]
    figure = figures.draw("spectra", tmp_path / "spectra.parquet", group="seed")
    assert legend_texts(figure) == ["lora-r4, n = 3", "bora-r4, n = 3"]
    assert set(of_files([tmp_path / "spectra.parquet"], ["seed=1"])["seed"]) == {1}
    with pytest.raises(ValueError, match="no row has seed=7; seed is 0, 1, 2"):
        of_files([tmp_path / "spectra.parquet"], ["seed=7"])
    with pytest.raises(ValueError, match="no column 'run'"):
        of_files([tmp_path / "spectra.parquet"], ["run=7"])


def run_of(folder, seed, value, **settings):
    told = {
        "method": "bora",
        "r": 8,
        "blocks": 8,
        "target": "QV",
        "activation": "exp-norm",
        "seed": seed,
        "model": "m/x",
    }
    folder.mkdir(parents=True)
    record = {"status": "finished", "settings": told | settings, "metric": {"accuracy": value}}
    (folder / "run.json").write_text(json.dumps(record))


def test_figure3_of_own_runs(tmp_path):
    for seed, value in ((0, 0.80), (1, 0.84)):
        run_of(tmp_path / f"a-seed{seed}", seed, value)
        run_of(tmp_path / f"b-seed{seed}", seed, value - 0.1, activation="no-exp")
        run_of(tmp_path / f"c-seed{seed}", seed, value + 0.1, blocks=16)
    run_of(tmp_path / "d", 0, 0.7, method="lora", blocks=8)
    figure = figures.draw("figure3", [tmp_path], width="icml")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["(a) ablations", "(b) rank and blocks"]
    assert list(artist(figure, "a:bora").get_xdata()) == pytest.approx([0.82])
    assert list(artist(figure, "a:bora-no-exp").get_xdata()) == pytest.approx([0.72])
    assert ydata(figure, "b:8") == pytest.approx([0.82, 0.92])
    assert ydata(figure, "b:lora:8") == [0.7, 0.7]
    assert "mean ± sd over seeds" in figure.axes[0].get_xlabel()
    assert cut_texts(figure) == []
    run_of(tmp_path / "e", 0, 0.7, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"runs that are alike differ in learning_rate \(0.1, nan\)"):
        figures.draw("figure3", [tmp_path])
    table = pd.DataFrame({"method": ["lora"] * 2, "r": 8, "blocks": 1, "target": ["Q", "QV"], "value": [1.0, 2.0]})
    assert ydata(figures.draw("figure3", table), "c:lora") == [1.0, 2.0]
    with pytest.raises(ValueError, match="the runs have none of these"):
        figures.draw("figure3", table.iloc[:1])


def test_end_labels_stand_at_the_ends_of_their_lines():
    from bora_analysis.paper import tables as paper

    figure = figures.draw("figure3", accuracy=paper.tables(), width="icml")
    axes = figure.axes[1]
    labels = {text.get_gid(): text.get_position() for text in axes.texts if text.get_gid()}
    assert len(labels) == 6
    for r in (2, 4, 8, 16, 32, 64):
        x, y = artist(figure, f"b:end:{r}").get_data()
        assert y[0] == ydata(figure, f"b:{r}")[-1]
        assert y[1] == pytest.approx(labels[f"b:label:{r}"][1])
        assert x[1] < labels[f"b:label:{r}"][0]


# ------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("name", figures.FIGURES)
def test_help_of_a_figure_has_its_options_and_an_example(name, capsys):
    with pytest.raises(SystemExit):
        main(["figure", name, "--help"])
    told = capsys.readouterr().out.replace("\\\n", "")
    assert re.search(rf"bora-analysis figure {name} .*-o ", told)
    assert ("--group" in told) == ("group" in figures.FIGURES[name].options)
    assert ("--height" in told) == ("height" in figures.FIGURES[name].options)


def test_an_option_that_a_figure_has_not_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["figure", "figure2", "--group", "seed", "-o", "x.pdf"])
    assert "figure2 has no --group; it has --width, --font, --title" in capsys.readouterr().err
