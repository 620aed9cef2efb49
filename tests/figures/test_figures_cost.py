"""The cost figures: pareto shows the table's sums and means, optimal_blocks the minimum where it is."""

from __future__ import annotations

from typing import Any

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
    shown = [name for note in notes(figure) for name in note.split(", ")]
    assert sorted(shown, key=int) == [str(k) for k in range(1, 21)]
    assert legend_texts(figure)[2:] == [f"{k} a-run-with-a-long-name-{k - 1} (LoRA)" for k in range(1, 21)]
    assert cut_texts(figure) == []


def place(figure, gid):
    point = artist(figure, gid)
    return point.get_transform().transform(np.column_stack(point.get_data()))[0]


def test_pareto_moves_no_point():
    """Two adapters of the same parameters and ranks lie on one another, with one name for both."""
    twins = (("one", "lora", 4, 1), ("two", "lora", 4, 1), ("far", "melora", 4, 12))
    figure = figures.draw("pareto", **tables(adapters=twins, zero=["one", "two"]))
    axes = figure.axes[0]
    for name, *_ in twins:
        for kind in ("rank", "bound"):
            data = np.column_stack(artist(figure, f"{kind}:{name}").get_data())
            np.testing.assert_allclose(place(figure, f"{kind}:{name}"), axes.transData.transform(data)[0])
    np.testing.assert_array_equal(place(figure, "rank:one"), place(figure, "rank:two"))
    assert sorted(notes(figure)) == ["far (MELoRA)", "one (LoRA), two (LoRA)"]


OUTCOME = pd.DataFrame({
    "adapter": ["lora-r4", "lora-r4", "melora-r2", "bora-b4", "mine", "another"],
    "score": [0.5, 0.7, 0.65, 0.4, 0.9, 0.1],
})  # fmt: skip


@pytest.mark.parametrize("suffix", [None, ".csv", ".json"])
@pytest.mark.parametrize("lower", [False, True])
def test_pareto_of_an_outcome_has_the_front(suffix, lower, tmp_path):
    outcome: Any = OUTCOME if suffix is None else tmp_path / f"results{suffix}"
    if suffix == ".csv":
        OUTCOME.to_csv(outcome, index=False)
    elif suffix == ".json":
        OUTCOME.to_json(outcome, orient="records")
    table = tables()["layer_metrics"]
    figure = figures.draw("pareto", layer_metrics=table, y="score", outcome=outcome, lower=lower)
    means = OUTCOME.groupby("adapter")["score"].mean()
    points = []
    for name, *_ in ADAPTERS:
        x, y = (values[0] for values in artist(figure, f"outcome:{name}").get_data())
        assert (x, y) == (table[table["adapter"] == name]["parameters"].sum(), pytest.approx(means[name]))
        points.append((x, -y if lower else y))
    best = [(x, y) for x, y in points if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)]
    x, y = artist(figure, "front").get_data()
    assert sorted(zip(x[:-1], y[:-1], strict=True)) == [(a, pytest.approx(abs(b))) for a, b in sorted(best)]
    assert cut_texts(figure) == []
    assert "Pareto front" in figure.axes[0].get_ylabel()


def test_pareto_of_ranks_has_no_front():
    figure = figures.draw("pareto", **tables())
    assert not gids(figure, "front")
    assert "front" not in figure.axes[0].get_ylabel()


def test_an_outcome_that_does_not_fit_is_refused(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    for options, told in (
        ({"y": "score"}, "go together"),
        ({"outcome": OUTCOME}, "go together"),
        ({"y": "f1", "outcome": OUTCOME}, "outcome: has no column 'f1'; it has adapter, score"),
        ({"y": "score", "outcome": OUTCOME.iloc[:4]}, "has no number under 'score' for mine; it has adapters lora-r4"),
        ({"y": "score", "outcome": OUTCOME.replace(0.9, np.nan)}, "has no number under 'score' for mine"),
        ({"y": "score", "outcome": tmp_path / "empty.csv"}, r"empty.csv: cannot be read: "),
    ):
        with pytest.raises(ValueError, match=told):
            figures.draw("pareto", **tables(), **options)


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
    names = [gid.removeprefix("valid:") for gid in gids(figure, "valid:")]
    assert len({artist(figure, f"valid:{name}").get_marker() for name in names}) == 5, "told apart in grey"
    assert all(artist(figure, f"best:{x}").get_marker() == artist(figure, f"valid:{x}").get_marker() for x in names)


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
    with pytest.raises(
        ValueError, match="figure pareto has no option 'metric'; it has y, outcome, lower, group, width"
    ):
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
