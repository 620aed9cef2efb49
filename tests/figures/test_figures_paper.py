"""Figures 1 to 3: the pictures are the factors, the numbers are the paper's, nothing is cut off."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from figure_cases import artist, cut_texts, gids, legend_texts, ydata
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import AxesImage

from bora_analysis import bora, figures, lora, melora, style
from bora_analysis.figures.block_products import example
from bora_analysis.paper import tables as paper

WIDTHS = ("neurips", "icml", "icml2")


def panel(figure, gid):
    (found,) = [axes for axes in figure.axes if axes.get_gid() == gid]
    return found


def image(figure, gid) -> Any:
    (found,) = [each for each in panel(figure, gid).get_children() if isinstance(each, AxesImage)]
    return found


def texts(figure, gid):
    return [text.get_text() for text in panel(figure, gid).texts]


# ---------------------------------------------------------------------------------------------------------- figure 1


def test_figure1_shows_the_factors_and_their_ranks():
    figure = figures.draw("figure1")
    for name, update in example().items():
        weights = image(figure, f"weights:{name}").get_array()
        np.testing.assert_allclose(weights.filled(0.0), np.abs(update.to_dense()), rtol=0, atol=1e-12)
        rank = np.linalg.matrix_rank(update.to_dense())
        assert f"rank {rank} (bound {update.facts.rank_bound})" in texts(figure, f"weights:{name}")
        sigma = image(figure, f"sigma:{name}").get_array().filled(0.0)
        assert texts(figure, f"sigma:{name}") == [f"rank {np.linalg.matrix_rank(sigma)}"]
    assert [texts(figure, f"sigma:{name}")[0] for name in example()] == ["rank 4", "rank 12", "rank 12"]


def test_figure1_shows_lora_and_melora_as_bora():
    """Σ' of LoRA is b×b identities, that of MELoRA the identity, and both give the ΔW that is shown."""
    figure = figures.draw("figure1")
    sigma = {name: image(figure, f"sigma:{name}").get_array().filled(0.0) for name in example()}
    np.testing.assert_array_equal(sigma["LoRA"], np.tile(np.eye(4), (3, 3)))
    np.testing.assert_array_equal(sigma["MELoRA"], np.eye(12))
    B, full, A = example()["BoRA"].expanded()
    np.testing.assert_array_equal(sigma["BoRA"], full)
    for name in ("LoRA", "MELoRA"):
        np.testing.assert_allclose(B @ sigma[name] @ A, example()[name].to_dense(), atol=1e-12)


def test_figure1_has_one_colour_scale_per_row_unless_a_panel_would_vanish():
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((8, 2)), rng.standard_normal((2, 8))

    def limits(scaling):
        updates = {"a": lora(B, A), "b": bora(B, A, np.zeros((2, 2, 2)), scaling=scaling)}
        figure = figures.draw("figure1", updates=updates)
        bars = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
        return {image(figure, f"weights:{name}").get_clim() for name in "ab"}, bars[0]

    assert len(limits(3.0)[0]) == 1
    assert limits(3.0)[1] == "entry |ΔW|"
    assert len(limits(1000.0)[0]) == 2
    assert limits(1000.0)[1] == "entry |ΔW|, share of each largest"


def test_figure1_makes_a_large_update_smaller():
    """Cells are means of |ΔW|, of Σ' maxima; none reaches over the border of a block."""
    rng = np.random.default_rng(0)
    m, n, r, b = 500, 1000, 3, 10
    update = bora(rng.standard_normal((m, r)), rng.standard_normal((r, n)), rng.standard_normal((b, b, r)))
    few = melora([rng.standard_normal((200, 100))] * 2, [rng.standard_normal((100, 150))] * 2)
    figure = figures.draw("figure1", updates={"big": update, "wide": few})
    weights = image(figure, "weights:big").get_array().filled(0.0)
    assert weights.shape == (190, 190)
    # The cells of one block together are the block: their weighted mean is its mean.
    heights, widths = (np.diff(np.arange(191) * size // 190) for size in (m, n))
    total = weights * np.outer(heights, widths)
    blocks = total.reshape(b, 19, b, 19).sum(axis=(1, 3))
    expected = np.abs(update.to_dense()).reshape(b, m // b, b, n // b).sum(axis=(1, 3))
    np.testing.assert_allclose(blocks, expected)
    assert image(figure, "sigma:wide").get_array().shape == (192, 192)
    assert image(figure, "sigma:wide").get_array().max() == 1.0


@pytest.mark.parametrize(("width", "count"), [("neurips", 1), ("neurips", 6), ("icml", 1), ("icml", 3), ("icml2", 8)])
def test_figure1_cuts_no_text(width, count):
    update = example()["BoRA"]
    updates = {f"a rather long name of an adapter {k} $x$": update for k in range(count)}
    figure = figures.draw("figure1", updates=updates, width=width)
    assert figure.get_figwidth() == style.VENUES[width]
    assert cut_texts(figure) == []
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for axes in figure.axes for text in axes.texts]
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])


def test_figure1_of_zero_updates_draws():
    figure = figures.draw("figure1", updates={"zero": lora(np.zeros((8, 2)), np.ones((2, 6)))})
    assert "rank 0 (bound 2)" in texts(figure, "weights:zero")


@pytest.mark.parametrize(("width", "most", "count"), [("neurips", 6, 0), ("neurips", 6, 7), ("icml", 3, 4)])
def test_figure1_takes_as_many_as_fit(width, most, count):
    update = example()["LoRA"]
    with pytest.raises(ValueError, match=f"1 to {most} updates side by side at width {width}; got {count}"):
        figures.draw("figure1", updates={str(k): update for k in range(count)}, width=width)


def test_figure1_keeps_long_names_apart():
    updates = {f"synthetic-{name}-r8-b8-of-a-long-run": update for name, update in example().items()}
    figure = figures.draw("figure1", updates=updates, width="icml")
    heads = {texts(figure, f"weights:{name}")[1] for name in updates}
    assert len(heads) == 3
    assert all("…" in head for head in heads)


# ---------------------------------------------------------------------------------------------------------- figure 2


@pytest.mark.parametrize("width", WIDTHS)
def test_figure2_has_every_block_every_sigma_and_every_cost(width):
    figure = figures.draw("figure2", width=width)
    shown = [text.get_text() for text in figure.axes[0].texts]
    for k in (1, 2, 3):
        assert {f"$X_{k}$", f"$A_{k}$", f"$B_{k}$", f"$Y_{k}$"} <= set(shown)
    sigmas = [text for text in shown if text.startswith("$\\Sigma_{") and "k" not in text]
    assert sigmas == [f"$\\Sigma_{{{j}{k}}}$" for j in (1, 2, 3) for k in (1, 2, 3)]
    assert {"$nr$", "$b^2r$", "$mr$", "multiply-adds per token"} <= set(shown)
    assert cut_texts(figure) == []


def test_figure2_connects_what_the_equation_connects():
    """Y_j = B_j Σ_k Σ_jk A_k X_k: line (j, k) begins in row k and its diagonal stands in group j."""
    axes = figures.draw("figure2").axes[0]
    rows = {text.get_text(): text.get_position()[1] for text in axes.texts}
    lines = {line.get_gid(): line for line in axes.lines if str(line.get_gid()).startswith("line:")}
    assert len(lines) == 9
    for j in (1, 2, 3):
        for k in (1, 2, 3):
            start, end = np.asarray(lines[f"line:{j},{k}"].get_ydata(), dtype=float)
            assert start == pytest.approx(rows[f"$A_{k}$"])
            assert end == pytest.approx(rows[f"$\\Sigma_{{{j}{k}}}$"])
            nearest = min((1, 2, 3), key=lambda row: abs(end - rows[f"$B_{row}$"]))
            assert nearest == j


# ---------------------------------------------------------------------------------------------------------- figure 3


def average(table, **setting):
    """The Avg of one run, looked up by hand."""
    rows = paper.table(table)
    rows = rows[rows["task"] == "Avg"]
    for column, value in setting.items():
        rows = rows[rows[column] == value]
    return rows["value"].item()


@pytest.mark.parametrize("width", WIDTHS)
def test_figure3_plots_the_tables(width):
    figure = figures.draw("figure3", accuracy=paper.tables(), width=width)
    models = ["gemma-7b", "llama-3-8b", "qwen2.5-14b"]
    for method in ("bora", "bora-no-exp", "bora-no-norm"):
        x = artist(figure, f"a:{method}").get_xdata()
        assert list(x) == [average(7, model=model, method=method) for model in models]
    for r in (2, 4, 8, 16, 32, 64):
        line = artist(figure, f"b:{r}")
        assert list(line.get_xdata()) == [2, 4, 8, 16, 32, 64]
        assert list(line.get_ydata()) == [average(9, r=r, method="bora", blocks=b) for b in (2, 4, 8, 16, 32, 64)]
        level = artist(figure, f"b:lora:{r}")
        assert list(level.get_ydata()) == [average(9, r=r, method="lora")] * 2
        assert level.get_color() == line.get_color()
    targets = ["Q", "QV", "QKV", "QKVUD", "QKVOGUD"]
    for method in ("lora", "bora"):
        assert ydata(figure, f"c:{method}") == [average(8, target=target, method=method) for target in targets]
        assert artist(figure, f"c:{method}").get_color() == style.method_look(method).colour
        assert artist(figure, f"c:{method}").get_marker() == style.method_look(method).marker
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == targets
    assert cut_texts(figure) == []


def test_figure3_of_numbers_typed_from_the_paper():
    """Some of the paper's own digits, so that the bundled data cannot be wrong together with the figure."""
    figure = figures.draw("figure3", accuracy=paper.tables())
    assert list(artist(figure, "a:bora-no-norm").get_xdata()) == [72.15, 68.48, 79.26]
    assert ydata(figure, "b:16") == [70.56, 71.30, 71.65, 72.01, 72.78, 73.39]
    assert ydata(figure, "b:lora:64") == [72.41, 72.41]
    assert ydata(figure, "c:lora") == [64.97, 68.05, 68.19, 72.14, 72.23]


def test_figure3_writes_the_value_beside_each_dot_and_draws_no_bar():
    """Its axis does not begin at 0."""
    figure = figures.draw("figure3", accuracy=paper.tables())
    rows = paper.table(7).query("task == 'Avg'")
    assert sorted(text.get_text() for text in figure.axes[0].texts) == sorted(f"{x:.2f}" for x in rows["value"])
    assert not any(axes.patches for axes in figure.axes)
    assert legend_texts(figure) == ["LoRA", "BoRA", "BoRA w.o. Exp", "BoRA w.o. Norm"]


def test_figure3_is_told_apart_in_grey():
    """Lines in shades of one colour have markers of their own, and LoRA's level that of its rank."""
    figure = figures.draw("figure3", accuracy=paper.tables())
    ranks = [2, 4, 8, 16, 32, 64]
    assert len({artist(figure, f"b:{r}").get_marker() for r in ranks}) == len(ranks)
    for r in ranks:
        mark = artist(figure, f"b:lora:mark:{r}")
        assert mark.get_marker() == artist(figure, f"b:{r}").get_marker()
        assert ydata(figure, f"b:lora:mark:{r}") == ydata(figure, f"b:lora:{r}")[:1]
    assert len({artist(figure, f"a:{method}").get_marker() for method in ("bora", "bora-no-exp", "bora-no-norm")}) == 3


def test_figure3_draws_a_part_of_the_tables():
    """One model, one rank, one target: as after a filter."""
    rows = paper.tables().query("model == 'llama-3-8b' and r == 8 and target == 'QKV'")
    figure = figures.draw("figure3", accuracy=rows, width="icml")
    assert gids(figure, "b:") == ["b:8", "b:lora:8", "b:lora:mark:8", "b:end:8", "b:label:8"]
    assert cut_texts(figure) == []


@pytest.mark.parametrize("table", [7, 8, 9])
def test_figure3_says_which_table_is_missing(table):
    rows = paper.tables()
    with pytest.raises(ValueError, match=f"tables 7, 8 and 9; table {table} has none"):
        figures.draw("figure3", accuracy=rows[rows["table"] != table])
    with pytest.raises(ValueError, match="no rows"):
        figures.draw("figure3", accuracy=pd.DataFrame(columns=rows.columns))
