"""The cost figures: pareto shows the table's sums and means, optimal_blocks the minimum where it is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from figure_cases import ADAPTERS, artist, cut_texts, gids, legend_texts, tables, ydata
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bora_analysis import figures, style
from bora_analysis.catalogue.architectures import ARCHITECTURES
from bora_analysis.figures import drawing as layout


def notes(figure):
    return [text.get_text() for text in figure.axes[0].texts]


# ------------------------------------------------------------------------------------------------------------ pareto


def test_pareto_points_are_the_table():
    table = tables(steps=(10, 20))["layer_metrics"]
    figure = figures.draw("pareto", layer_metrics=table)
    last = table[table["step"] == 20]
    for name, method, r, b in ADAPTERS:
        mine = last[last["adapter"] == name]
        for kind, column in (("rank", "effective_rank"), ("bound", "rank_bound")):
            point = artist(figure, f"{kind}:{name}")
            assert list(point.get_xdata()) == [mine["parameters"].sum()] == [6 * 128 * r]
            assert list(point.get_ydata()) == [pytest.approx(mine[column].mean())]
            assert point.get_marker() == style.method_look(method).marker
        assert ydata(figure, f"bound:{name}") == [r * b]
        assert artist(figure, f"bound:{name}").get_markerfacecolor() == "white"
        assert artist(figure, f"rank:{name}").get_markerfacecolor() != "white"
    assert figure.axes[0].get_xscale() == "log"


def test_pareto_names_adapters_beside_their_points():
    figure = figures.draw("pareto", **tables())
    assert sorted(notes(figure)) == sorted(["lora-r4", "melora-r2", "bora-b4", "mine (BoRA)"])
    assert legend_texts(figure) == ["rank bound", "effective rank #{σ > 0.005}"]


def test_pareto_numbers_adapters_where_names_have_no_room():
    many = tuple((f"a-run-with-a-long-name-{k}", "lora", 2 + k % 2, 1) for k in range(20))
    figure = figures.draw("pareto", **tables(adapters=many, layers=(0,)), width="icml")
    assert set(notes(figure)) <= {str(k) for k in range(1, 21)}
    assert len(notes(figure)) >= 10
    assert legend_texts(figure)[2:] == [f"{k} a-run-with-a-long-name-{k - 1} (LoRA)" for k in range(1, 21)]
    assert cut_texts(figure) == []


def test_pareto_sets_equal_adapters_apart_on_the_page_only():
    """Two adapters of the same parameters and ranks: one x in the data, two places on paper; far ones do not move."""
    twins = (("one", "lora", 4, 1), ("two", "lora", 4, 1), ("far", "melora", 4, 12))
    figure = figures.draw("pareto", **tables(adapters=twins, zero=["one", "two"]))
    places = {}
    for name, *_ in twins:
        point = artist(figure, f"rank:{name}")
        places[name] = point.get_transform().transform(np.column_stack(point.get_data()))[0, 0]
    assert artist(figure, "rank:one").get_xdata() == artist(figure, "rank:two").get_xdata()
    assert places["two"] - places["one"] == pytest.approx(7 * figure.dpi / 72)
    assert places["far"] == pytest.approx((places["one"] + places["two"]) / 2)


@pytest.mark.parametrize("count", [1, 2, 5, 20])
@pytest.mark.parametrize("width", ["neurips", "icml"])
def test_pareto_draws_one_to_twenty_adapters(count, width):
    shapes = [("lora", 4, 1), ("melora", 4, 4), ("bora", 4, 8), ("bora", 2, 3), ("rslora", 16, 1)]
    adapters = tuple((f"$x$_{k}", *shapes[k % 5]) for k in range(count))
    figure = figures.draw("pareto", **tables(adapters=adapters, layers=(0,), zero=["$x$_0"]), width=width)
    assert len(gids(figure, "rank:")) == count
    assert cut_texts(figure) == []
    assert figure.get_figheight() < 9.5


def test_pareto_names_cover_neither_each_other_nor_a_point():
    figure = figures.draw("pareto", **tables())
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[k + 1 :])
        for gid in gids(figure, "rank:") + gids(figure, "bound:"):
            point = artist(figure, gid)
            assert not box.contains(*point.get_transform().transform(np.column_stack(point.get_data()))[0])


# ---------------------------------------------------------------------------------------------------- optimal_blocks


def legend(figure):
    return dict(text.rsplit(": b = ", 1) for text in legend_texts(figure))


def test_optimal_blocks_minimum_is_at_the_right_divisor():
    figure = figures.draw("optimal_blocks")
    for gid in gids(figure, "valid:"):
        name = gid.removeprefix("valid:")
        m, n = map(int, name.rsplit(" ", 1)[1].split("×"))
        b, y = (np.asarray(each, dtype=float) for each in artist(figure, gid).get_data())
        divisors = [k for k in range(1, min(m, n) + 1) if m % k == 0 and n % k == 0]
        price = {k: (m + n) / k + k for k in divisors}
        assert list(b) == divisors[: len(b)]
        assert list(y) == pytest.approx([price[k] for k in divisors[: len(b)]])
        least = min(price.values())
        best = [k for k in divisors if price[k] == least]
        assert list(artist(figure, f"best:{name}").get_xdata()) == best
        said = " or ".join(map(str, best)) + (" (tie)" if len(best) > 1 else "")
        assert legend(figure)[name] == said
        assert list(artist(figure, f"rule:{name}").get_xdata()) == [int(np.sqrt(n))]
        x, curve = artist(figure, f"curve:{name}").get_data()
        assert x[np.argmin(curve)] == pytest.approx(np.sqrt(m + n), rel=0.03)
    assert legend(figure)["LLaMA-3-8B 4096×4096"] == "64 or 128 (tie)"
    assert len(gids(figure, "valid:")) == 5


def test_optimal_blocks_dashed_line_goes_through_the_minima():
    line = artist(figures.draw("optimal_blocks"), "optimum")
    b = np.asarray(line.get_xdata())
    np.testing.assert_allclose(line.get_ydata(), b**2 / b + b)  # m + n = b² at the optimum


def test_optimal_blocks_of_a_model_has_a_curve_per_shape():
    figure = figures.draw("optimal_blocks", model="llama-3-8b")
    names = ["k, v 1024×4096", "q, o 4096×4096", "gate, up 14336×4096", "down 4096×14336"]
    assert list(legend(figure)) == names
    # gate and down have one curve and different rules; the second is dashed, so that both show.
    assert artist(figure, f"rule:{names[2]}").get_xdata()[0] == 64
    assert artist(figure, f"rule:{names[3]}").get_xdata()[0] == 119
    dashes = [artist(figure, f"curve:{name}").is_dashed() for name in names]
    assert dashes == [False, False, False, True]


@pytest.mark.parametrize("model", [None, *ARCHITECTURES])
def test_optimal_blocks_cuts_no_text(model):
    for width in ("neurips", "icml"):
        figure = figures.draw("optimal_blocks", model=model, width=width, title="A title")
        assert figure.get_figwidth() == style.VENUES[width]
        assert cut_texts(figure) == []


def test_wrong_wishes_are_answered_with_the_choices():
    with pytest.raises(ValueError, match=r"model 'gpt-9' is unknown; known: roberta-base"):
        figures.draw("optimal_blocks", model="gpt-9")
    with pytest.raises(ValueError, match="unknown width 'a4'; there are neurips"):
        figures.draw("pareto", **tables(), width="a4")
    with pytest.raises(ValueError, match="figure pareto has no option 'metric'; it has width, title"):
        figures.draw("pareto", **tables(), metric="energy")
    with pytest.raises(ValueError, match="no rows"):
        figures.draw("pareto", layer_metrics=pd.DataFrame(tables()["layer_metrics"].iloc[:0]))


# ------------------------------------------------------------------------------------------------------ label places


def test_labels_move_apart_and_no_further():
    values = np.random.default_rng(0).uniform(0, 10, 12).tolist()
    places = layout.apart(values, 0.7)
    order = np.argsort(values)
    assert np.all(np.diff(np.array(places)[order]) >= 0.7 - 1e-12)
    assert layout.apart([0.0, 1.0, 5.0], 0.5) == [0.0, 1.0, 5.0]
    # No other feasible places found by chance are nearer in squares.
    rng = np.random.default_rng(1)
    cost = np.square(np.array(places) - values).sum()
    for _ in range(200):
        other = np.array(places)[order] + np.sort(rng.normal(0, 0.3, 12))
        assert np.square(other - np.array(values)[order]).sum() >= cost
