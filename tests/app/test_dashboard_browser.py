"""The dashboard as a visitor has it: the real server, a real browser. Screenshots go to ``out/screenshots/``."""

from __future__ import annotations

import io
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from browser_cases import SHOTS, WAIT, alts, downloaded, in_url, playwright, settled, shoot, shows, visit
from dashboard_cases import PAGES, adapter, contents, zipped

from app import sources
from bora_analysis import analyse, read_adapter, write_adapter
from bora_analysis.figures import save, spectra
from bora_analysis.style import METRICS

#: The title of a page, where it is not its name.
TITLES = {page: page.capitalize() for page in PAGES} | {"lab": "Synthetic lab", "fleet": "Fleet", "start": "Start"}
#: Charts that each page shows at first, or more.
CHARTS = {
    "spectra": 3,
    "layers": 4,
    "training": 2 if sources.runs() else 0,
    "capture": 1,
    "fleet": 1,
    "compare": 2,
    "relative": 0,
    "trim": 2,
    "merge": 1,
    "lab": 4,
    "budget": 3,
    "paper": 3,
    "start": 0,
}


def opened(page: Any, site: str, name: str, query: str = "") -> None:
    page.goto(f"{site}/{name}{query}")
    page.get_by_role("heading", name=TITLES[name], exact=True).wait_for()
    settled(page, CHARTS[name])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_wide_and_on_a_phone(browser, site, theme):
    SHOTS.mkdir(parents=True, exist_ok=True)
    with visit(browser, theme) as page:
        opened(page, site, "spectra")
        shows(page, 0, *(f"{source.label}: " for source in sources.usual()))
        for name in (*PAGES, "fleet", "start"):
            if name != "spectra":  # as a visitor does, in the same session
                page.get_by_role("link", name=TITLES[name], exact=True).click()
                page.get_by_role("heading", name=TITLES[name], exact=True).wait_for()
            settled(page, CHARTS[name])
            assert all(alts(page)), "a chart without words for those who do not see it"
            page.get_by_text("What am I looking at?").wait_for()
            assert page.locator("h1").bounding_box()["y"] < 70, "nothing stands above the title"
            shoot(page, f"{name}-{theme}")
            if theme == "dark":  # colours, which have no width
                page.set_viewport_size({"width": 1280, "height": 900})
                continue
            page.set_viewport_size({"width": 390, "height": 844})
            page.get_by_test_id("stExpandSidebarButton").wait_for()  # the sidebar makes room by itself
            settled(page, CHARTS[name])
            main = page.get_by_test_id("stMain")
            assert main.evaluate("x => x.scrollWidth - x.clientWidth") <= 0, "the page is wider than a phone"
            shoot(page, f"{name}-{theme}-phone")
            page.set_viewport_size({"width": 1280, "height": 900})
            page.get_by_test_id("stExpandSidebarButton").wait_for(state="detached")


def test_the_threshold_moves_by_the_keyboard(browser, site, folder):
    with visit(browser) as page:
        opened(page, site, "spectra", "?path=run&adapters=run")
        before = alts(page)
        slider = page.get_by_role("slider")
        slider.focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        page.wait_for_function("() => location.search.includes('threshold=0.007')")
        page.get_by_text("τ = 0.007").first.wait_for(state="attached")
        shows(page, 1, before[1].replace("0.005", "0.007"))
        page.goto(f"{site}/?path=run&adapters=run&threshold=2.5")
        last = analyse(read_adapter(folder / "run" / "checkpoint-30"), threshold=2.5).layer_metrics
        shows(page, 0, f"run: {last['effective_rank'].mean():.4g} of 3")


def test_a_run_and_its_factors(browser, site):
    with visit(browser) as page:
        opened(page, site, "training", "?path=run&adapters=run&metric=stable rank&step=20&factors=true")
        shows(page, 1, "at step 20")
        shows(page, 0, "stable_rank")
        page.get_by_text("Of the 4 modules at step 30: 4 where all three are equal.").wait_for()


FRAMED = """() => [
    ...document.querySelector('[data-testid=stVegaLiteChart]').querySelectorAll("path[stroke-width='3']")
  ].filter(ring => ring.getAttribute('opacity') !== '0').map(ring => ring.getAttribute('aria-label')).join('|')"""


def is_framed(page: Any, cell: str) -> None:
    """Wait until that cell of the heat map, and no other, has a visible frame."""
    try:
        page.wait_for_function(f"cell => ({FRAMED})() === cell", arg=cell)
    except playwright.TimeoutError:
        assert page.evaluate(FRAMED) == cell
    settled(page, 5)


def box_says(page: Any, label: str, value: str) -> None:
    """Wait until the select box of that label shows that value, and not one of before."""
    box = page.get_by_role("combobox", name=label, exact=True)
    playwright.expect(box).to_have_value(value, timeout=WAIT)


def test_a_click_among_experts_leaves_the_box_at_what_the_page_shows(browser, site, folder):
    experts = {f"model.layers.{k}.mlp.experts.{e}.up_proj": k + e for k in range(3) for e in range(3)}
    rng = np.random.default_rng(0)
    modules = {name: {"B": rng.standard_normal((12, 3)), "A": rng.standard_normal((3, 16))} for name in experts}
    write_adapter(folder / "experts", "lora", modules, alpha=6)
    with visit(browser) as page:
        opened(page, site, "layers", "?path=experts&adapters=experts")
        page.get_by_test_id("stSelectbox").filter(has_text="Module").first.click()
        page.get_by_role("option", name="model.layers.0.mlp.experts.2.up_proj", exact=True).click()
        page.get_by_test_id("stText").get_by_text("model.layers.0.mlp.experts.2.up_proj").wait_for()
        page.locator(".grid_marks path[aria-label*='layer: 2;']").click()
        page.get_by_test_id("stText").get_by_text("model.layers.2.mlp.experts.0.up_proj").wait_for()
        box_says(page, "Module", "model.layers.2.mlp.experts.0.up_proj")


def test_a_click_on_a_cell_and_its_link(browser, site):
    with visit(browser) as page:
        opened(page, site, "layers", "?adapters=synthetic-bora-r8-b8&metric=stable rank")
        cell = page.locator(".grid_marks path[aria-label*='layer: 3; projection: v']")
        is_framed(page, "layer: 0; projection: q")
        page.evaluate("window.drawn = document.querySelector('[data-testid=stVegaLiteChart] svg.marks'), 1")
        cell.click()
        module = page.get_by_text("encoder.layer.3.attention.self.value", exact=True)
        module.first.wait_for()
        is_framed(page, "layer: 3; projection: v")
        box_says(page, "Module", "encoder.layer.3.attention.self.value")
        assert page.evaluate("window.drawn.isConnected"), "the heat map was drawn anew"
        page.get_by_test_id("stSelectbox").filter(has_text="Layer").first.click()
        page.get_by_role("option", name="5", exact=True).click()
        page.get_by_text("encoder.layer.5.attention.self.value", exact=True).first.wait_for()
        is_framed(page, "layer: 5; projection: v")
        box_says(page, "Module", "encoder.layer.5.attention.self.value")
        cell.click()  # the one that was clicked before
        module.first.wait_for()
        is_framed(page, "layer: 3; projection: v")
        shows(page, 0, METRICS["stable_rank"][0])
        state = in_url(page)
        assert (state["layer"], state["projection"]) == (["3"], ["v"])
        before = alts(page)
        page.goto(page.url)  # the link, sent to a colleague
        module.first.wait_for()
        for chart, words in enumerate(before):
            shows(page, chart, words)


def test_an_upload(browser, site, folder):
    with visit(browser) as page:
        opened(page, site, "start")
        packed = zipped(contents(folder / "mine"))
        file = {"name": "sent <b>.zip", "mimeType": "application/zip", "buffer": packed}
        page.get_by_test_id("stFileUploaderDropzoneInput").first.set_input_files(files=[file])
        page.get_by_role("button", name="Show it").click()
        page.get_by_role("heading", name="Spectra", exact=True).wait_for()
        page.wait_for_function("() => location.search.includes('upload=')")
        bound = analyse(read_adapter(folder / "mine")).layer_metrics
        shows(page, 0, f"sent <b>: {bound['effective_rank'].mean():.4g} of 3")


def test_a_bad_adapter_is_one_line_and_the_rest_works(browser, site, folder):
    (folder / "bad").mkdir()
    (folder / "bad" / "adapter_model.safetensors").write_bytes(b"no tensors")
    with visit(browser) as page:
        opened(page, site, "spectra", "?path=bad&path=../outside&path=mine")
        alerts = page.get_by_test_id("stAlert")
        alerts.filter(has_text="bad").first.wait_for()
        alerts.filter(has_text="lies outside").first.wait_for()
        shows(page, 0, "mine: ")


def test_downloads(browser, site, folder):
    with visit(browser) as page:
        opened(page, site, "spectra", "?adapters=mine&path=mine&projection=q")
        expected = analyse(read_adapter(folder / "mine")).spectra
        expected = expected[expected["projection"] == "q"].reset_index(drop=True)
        table = pd.read_csv(io.BytesIO(downloaded(page, "CSV")))
        assert table.columns.tolist() == expected.columns.tolist()
        pd.testing.assert_series_equal(table["singular_value"], expected["singular_value"], rtol=1e-15)
        assert table["module"].tolist() == expected["module"].tolist()
        figure = downloaded(page, "PDF")
        with tempfile.TemporaryDirectory() as home:
            same = save(spectra(expected), Path(home) / "figure.pdf").read_bytes()
        assert figure.startswith(b"%PDF")
        assert streams(figure) == streams(same)
        assert downloaded(page, "SVG").lstrip().startswith(b"<?xml")


def streams(pdf: bytes) -> list[bytes]:
    """What a PDF draws, unpacked."""
    found = []
    for packed in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            found.append(zlib.decompress(packed))
        except zlib.error:
            found.append(packed)
    assert any(b" re\n" in drawn or b" l\n" in drawn for drawn in found), "a page with nothing on it"
    return found


def test_leaving_a_long_analysis(browser, site, folder):
    """A visitor who goes elsewhere in the middle of an analysis is where he went."""
    adapter(folder / "long", seed=5, layers=400)
    with visit(browser) as page:
        page.goto(f"{site}/?path={quote('long')}")
        page.get_by_role("link", name=TITLES["paper"], exact=True).click()
        page.get_by_role("heading", name=TITLES["paper"], exact=True).wait_for()
        settled(page, CHARTS["paper"])
