"""The figure of what each method can represent."""

import pandas as pd
import pytest

from bora_analysis import capture, figures, synthetic_adapter


@pytest.fixture(scope="module")
def table():
    target = synthetic_adapter("lora", {"layers.0.q_proj": (48, 32), "layers.0.v_proj": (48, 32)}, r=8)
    return capture(target, [("lora", 2), ("lora", 4), ("bora", 2, 4), ("sbora-fa", 4)], starts=1)


def test_a_line_for_each_method_over_its_budgets(table):
    (axes,) = figures.capture(table).axes
    lines = {line.get_gid(): line for line in axes.lines}
    lora = table[table["method"] == "lora"].groupby("r")["parameters"].sum()
    assert lines["captured:lora"].get_xdata().tolist() == lora.tolist()
    assert set(lines) == {"lora", "captured:lora", "captured:bora", "captured:sbora-fa"}
    assert lines["captured:sbora-fa"].get_markerfacecolor() == "white"  # a best case


def test_only_the_modules_of_a_projection(table):
    (axes,) = figures.capture(table, projection="q").axes
    own = table[(table["projection"] == "q") & (table["method"] == "bora")]
    (line,) = [line for line in axes.lines if line.get_gid() == "captured:bora"]
    assert line.get_ydata().tolist() == pytest.approx(own["captured"].tolist())


def test_one_adapter_at_a_time(table):
    other = table.assign(adapter="other")
    with pytest.raises(ValueError, match="expected one adapter"):
        figures.capture(pd.concat([table, other]))
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.capture(table.iloc[:0])
