"""The page Fleet: of a sweep's results, of the chosen adapters, of results that are none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest
from dashboard_cases import APP
from results_cases import store
from streamlit.testing.v1 import AppTest

from app import fleets, sources
from bora_analysis import synthetic_adapter, write_adapter
from bora_analysis.figures import save
from bora_analysis.fleet import numbers
from bora_analysis.fleet.pairs import compare_all
from bora_analysis.fleet.sketches import sketch

SHAPES = {f"model.layers.{k}.self_attn.{name}": (40, 24) for k in range(9) for name in ("q_proj", "v_proj")}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., AppTest]]:
    def started(*words: str, **query: str) -> AppTest:
        arguments = [str(APP / "streamlit_app.py"), f"--root={tmp_path}", *words]
        monkeypatch.setattr(sys, "argv", arguments)
        sources.arguments.cache_clear()
        fleets._read.cache_clear()
        app = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=180)
        for name, value in query.items():
            app.query_params[name] = value
        app.switch_page("app_pages/fleet.py")
        return app.run()

    yield started
    sources.arguments.cache_clear()


def charts(app: AppTest) -> list[Any]:
    assert not app.exception, [error.value for error in app.exception]
    found = [element.proto for element in app.get("vega_lite_chart")]
    for chart in found:
        alt.Chart.from_dict(json.loads(chart.spec), validate=True)
        assert chart.alt
    return found


def test_a_sweep_with_sketches(start: Callable[..., AppTest], tmp_path: Path) -> None:
    adapters = {}
    for k, r in enumerate((2, 2, 4, 4, 8, 8)):
        adapters[f"a{k}"] = replace(synthetic_adapter("lora", SHAPES, r=r, seed=k, kind="decay"), name=f"a{k}")
    adapters["copy"] = replace(adapters["a0"], name="copy")
    results: Any = f"memory://{tmp_path}/results"  # a folder is read by the same code
    app = start(f"--fleet={store(results, adapters, sketch=sketch)}", fleet_pairs="true")
    assert len(charts(app)) == 2
    cards = {card.label: card.value for card in app.metric}
    assert cards["Adapters"] == "7"
    assert cards["Modules"] == "126"
    told = " ".join(caption.value for caption in app.caption)
    assert "grows as r to the power of" in told
    assert "1 pairs have one ΔW" in told
    assert [error.value for error in app.error] == []
    assert {"fleet_points.pdf", "fleet_points.svg", "fleet_points.png", "fleet_map.pdf"} <= offered(app)
    heads = [head for table in app.dataframe for head in shown_heads(table.proto)]
    assert {"stable rank, quantile 95 %", "rank now", "method", "size now"} <= set(heads)
    assert not [head for head in heads if "_" in head]


def test_the_figures_have_what_the_page_shows(start: Callable[..., AppTest], tmp_path: Path) -> None:
    adapters = {
        f"a{k}": replace(synthetic_adapter("lora", SHAPES, r=r, seed=k, kind="decay"), name=f"a{k}")
        for k, r in enumerate((2, 4, 8))
    }
    fleet = numbers.read_fleet(store(tmp_path / "results", adapters, sketch=sketch))
    points, lines = numbers.growth_points(fleet, "stable_rank"), numbers.growth(fleet, "stable_rank")
    figure = fleets.growth_figure(points, lines=lines, metric="stable_rank")
    drawn = [line for axes in figure.axes for line in axes.lines if str(line.get_gid()).startswith("points:")]
    assert sorted(value for line in drawn for value in line.get_ydata()) == sorted(points["value"])
    figure = fleets.map_figure(compare_all(fleet), None)
    (image,) = [image for axes in figure.axes for image in axes.images]
    assert image.get_array().shape == (3, 3)
    for form in ("pdf", "svg", "png"):
        assert save(figure, tmp_path / f"map.{form}").stat().st_size > 1000


def shown_heads(proto: Any) -> list[str]:
    """What stands above the columns of a table."""
    known = json.loads(proto.columns or "{}")
    return [known.get(name, {}).get("label") or name for name in proto.column_order]


def offered(app: AppTest) -> set[str]:
    """The files that the page offers, by the keys of its buttons."""
    keys = [each.proto.id.split("download:")[1] for each in app.get("download_button")]
    return {key.replace(":", ".") for key in keys}


def test_the_chosen_adapters_without_a_sweep(start: Callable[..., AppTest]) -> None:
    app = start()
    assert len(charts(app)) == 1
    assert "dashboard --fleet RESULTS" in app.caption[0].value
    assert any("Where the chosen adapters stand" in header.value for header in app.subheader)
    heads = "".join(each.proto.columns for each in app.dataframe)
    assert '"rank now"' in heads  # and not rank_now
    assert '"size now"' in heads


def test_the_chosen_adapters_have_the_base_models_of_their_configurations(
    start: Callable[..., AppTest], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    modules = {name: {"B": rng.standard_normal((40, 2)), "A": rng.standard_normal((2, 24))} for name in SHAPES}
    bases = {"a": "acme/one", "b": "acme/two", "c": "acme/two", "d": None}
    folders = [
        write_adapter(tmp_path / name, "lora", modules, alpha=4, base_model=base) for name, base in bases.items()
    ]
    app = start("--", *map(str, folders))
    assert [error.value for error in app.error] == []
    box = app.selectbox(key="fleet_base")
    assert box.options == ["acme/two", "acme/one", "unknown"]
    assert {card.label: card.value for card in app.metric}["Adapters"] == "2"
    assert app.dataframe[0].value["adapter"].tolist() == ["b", "c"], "of this base model"
    charts(app)


def test_results_that_are_none(start: Callable[..., AppTest], tmp_path: Path) -> None:
    app = start(f"--fleet={tmp_path}")
    assert not app.exception
    assert "holds no results of a sweep" in app.error[0].value
