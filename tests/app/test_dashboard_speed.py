"""What a page does not do again when something moves on which it does not depend."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pytest
from dashboard_cases import APP, adapter
from streamlit.testing.v1 import AppTest

from app import charts, inspection, server_settings, sources, vega, verdicts
from bora_analysis.analysis import views


@pytest.fixture
def open_page(monkeypatch, tmp_path) -> Iterator[object]:
    """A page with one adapter of two layers."""
    adapter(tmp_path / "mine")
    words = [str(APP / "streamlit_app.py"), f"--root={tmp_path}", "--", str(tmp_path / "mine")]
    monkeypatch.setattr(sys, "argv", words)
    sources.arguments.cache_clear()

    def opened(page: str) -> AppTest:
        app = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=180)
        app.switch_page(f"app_pages/{page}.py")
        app.run()
        assert not app.exception
        return app

    yield opened
    sources.arguments.cache_clear()


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("this does not depend on what has moved")


@pytest.mark.parametrize("page", ["spectra", "layers"])
def test_a_moved_threshold_computes_only_what_counts(open_page, monkeypatch, page):
    app = open_page(page)
    before = app.session_state["_context"].layer_metrics["effective_rank"].tolist()
    for module, name in (
        (verdicts, "verdicts"),
        (verdicts, "overview"),
        (views, "curves"),
        (views, "null_curves"),
        (importlib.import_module("bora_analysis.analysis.null"), "null"),
        (inspection, "factor_ranks"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    app.select_slider(key="threshold").set_value(50.0).run()
    assert not app.exception, [error.value for error in app.exception]
    assert app.session_state["_context"].layer_metrics["effective_rank"].tolist() != before


def test_what_is_chosen_outside_the_heat_map_draws_it_no_second_time(open_page, monkeypatch):
    app = open_page("layers")
    for module, name in ((charts, "heatmap"), (views, "cells")):
        monkeypatch.setattr(module, name, forbidden)
    app.run()
    assert not app.exception, [error.value for error in app.exception]


def test_other_tables_are_not_taken_for_those_of_before(open_page, tmp_path):
    """The same adapter with other weights, also where its files were changed within the time stamp's grain."""
    app = open_page("spectra")
    first = chart(app)
    adapter(tmp_path / "mine", seed=7)
    app.run()
    assert chart(app) != first


def chart(app: AppTest) -> list[float]:
    """The medians of the first chart."""
    datasets = {each.name: each.data.data for each in app.get("vega_lite_chart")[0].proto.datasets}
    return pa.ipc.open_stream(datasets["curves"]).read_pandas()["median"].tolist()


def test_the_explanation_is_sent_when_it_is_opened(open_page):
    app = open_page("spectra")
    assert not any("operatorname" in each.value for each in app.markdown)
    (box,) = [each for each in app.expander if "What am I looking at?" in each.label]
    assert not box.markdown


def test_charts_have_the_columns_of_their_frames():
    """As ``Table.from_pandas`` has them, missing values too."""
    frame = pd.DataFrame({
        "layer": pd.array([1, None], "Int64"), "name": ["a", None], "y": [1.5, float("nan")], "whole": [1, 2],
        "filled": [True, False], "text": pd.array(["a", None], "str"),
    })  # fmt: skip
    made = vega.Chart({}, {"rows": frame}).datasets["rows"]
    known = pa.Table.from_pandas(frame, preserve_index=False)
    assert made.to_pylist() == known.to_pylist()
    assert made.schema.types == known.schema.types


def test_what_a_page_has_loaded_is_not_looked_through_again():
    """Streamlit collects garbage after each run: that took a fifth of it."""
    server_settings.settle()
    here = [[k] for k in range(1000)]
    assert any(each is here for each in gc.get_objects())
    try:
        server_settings.settle("a page of this test")
        assert not any(each is here for each in gc.get_objects())
        later = [[1]]
        server_settings.settle("a page of this test")  # once for each
        assert any(each is later for each in gc.get_objects())
    finally:
        gc.unfreeze()
