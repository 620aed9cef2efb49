"""The figure of what each method can represent."""

import pandas as pd
import pytest
from figure_cases import artist, gids, ydata

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


def test_one_adapter_at_a_time(table):
    other = table.assign(adapter="other")
    with pytest.raises(ValueError, match="expected one adapter"):
        figures.capture(pd.concat([table, other]))
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.capture(table.iloc[:0])
