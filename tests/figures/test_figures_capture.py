"""The figure of what each method can represent."""

import pandas as pd
import pytest
from figure_cases import artist, gids, ydata
from matplotlib.figure import Figure

from bora_analysis import capture, figures, synthetic_adapter


@pytest.fixture(scope="module")
def table():
    target = synthetic_adapter("lora", {"layers.0.q_proj": (48, 32), "layers.0.v_proj": (48, 32)}, r=8)
    return capture(target, [("lora", 2), ("lora", 4), ("bora", 2, 4), ("sbora-fa", 4)], starts=1)


def test_a_line_for_each_method_over_its_budgets(table):
    figure = figures.capture(table)
    assert {*gids(figure, "captured:")} == {"captured:lora", "captured:bora", "captured:sbora-fa"}
    lora = table[table["method"] == "lora"].groupby("r")["parameters"].sum()
    assert list(artist(figure, "captured:lora").get_xdata()) == lora.tolist()
    assert artist(figure, "captured:sbora-fa").get_markerfacecolor() == "white"  # a best case


def test_methods_of_one_set_are_one_line_named_for_all(table):
    doubled = pd.concat([table, table[table["method"] == "lora"].assign(method="rslora")])
    for frame in (table, doubled):
        figure = figures.capture(frame)
        assert {*gids(figure, "captured:")} == {"captured:lora", "captured:bora", "captured:sbora-fa"}
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == ["LoRA, rsLoRA, AdaLoRA, DeLoRA", "BoRA", "SBoRA-FA"]


def test_only_the_modules_of_a_projection(table):
    own = table[(table["projection"] == "q") & (table["method"] == "bora")]
    shown = ydata(figures.capture(table, projection="q"), "captured:bora")
    assert shown == pytest.approx(own["captured"].tolist())


def test_a_panel_for_each_adapter(table, tmp_path):
    other = table.assign(adapter="other", captured=table["captured"] / 2)
    both = pd.concat([table, other])
    both.to_csv(tmp_path / "capture.csv", index=False)
    for source in (both, tmp_path / "capture.csv", str(tmp_path / "capture.csv")):
        figure = figures.capture(source, labels={"other": "half"})
        left, right = figure.axes
        assert [axes.get_title() for axes in figure.axes] == [str(table["adapter"].iloc[0]), "half"]
        lines = [{line.get_gid(): line.get_ydata() for line in axes.lines} for axes in (left, right)]
        assert lines[1]["captured:bora"] == pytest.approx(lines[0]["captured:bora"] / 2)


def test_five_adapters_are_two_rows(table):
    five = pd.concat([table.assign(adapter=f"a{k}") for k in range(5)])
    axes = figures.capture(five).axes
    assert [each.get_title() for each in axes] == [*(f"a{k}" for k in range(5)), ""]
    assert [each.axison for each in axes] == [True] * 5 + [False]
    assert [bool(each.get_ylabel()) for each in axes] == [True, False, False] * 2


def test_a_table_that_cannot_be_drawn(table, tmp_path):
    many = pd.concat([table.assign(adapter=f"a{k}") for k in range(7)])
    with pytest.raises(ValueError, match=r"has 7 adapters and steps, a0, a1, .*; expected at most 6"):
        figures.capture(many)
    with pytest.raises(ValueError, match="expected at most 1"):
        figures.capture(many.iloc[: 2 * len(table)], ax=Figure().subplots())
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.capture(table.iloc[:0])
    table.drop(columns="energy").to_csv(tmp_path / "short.csv")
    with pytest.raises(ValueError, match=r"short\.csv: has no column energy"):
        figures.capture(tmp_path / "short.csv")
    with pytest.raises(ValueError, match=r"is no table; expected .* `bora-analysis capture`"):
        figures.capture(tmp_path / "missing.csv")
