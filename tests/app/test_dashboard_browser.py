"""The dashboard as a visitor has it: the real server, a real browser. Screenshots go to ``out/screenshots/``."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pandas as pd
import pytest
from dashboard_cases import PAGES, adapter, contents, zipped

from app import sources
from bora_analysis import analyse, read_adapter
from bora_analysis.figures import save, spectra
from bora_analysis.style import METRICS

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip(f"no browser: {CHROMIUM} is missing (apt-get install chromium)", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "out" / "screenshots"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-quic",
]  # fmt: skip
TITLES: dict[str, str] = dict(
    zip(PAGES, ("Spectra", "Layers", "Training", "Capture", "Synthetic lab", "Budget", "Paper"), strict=True)
)
#: Charts that each page shows at first, or more.
CHARTS = {
    "spectra": 3,
    "layers": 4,
    "training": 2 if sources.runs() else 0,
    "capture": 1,
    "lab": 4,
    "budget": 3,
    "paper": 3,
}
#: Streamlit asks below a page's own address first and then at the root: these, and nothing else, may be missing.
HARMLESS = re.compile(r"/(layers|training|capture|lab|budget|paper)/_stcore/(health|host-config)")
WAIT = 120_000  # ms; machines are shared
SETTLED = """count => {
  const app = document.querySelector('[data-testid=stApp]');
  const charts = [...document.querySelectorAll('[data-testid=stVegaLiteChart]')];
  return app && app.dataset.testScriptState === 'notRunning' && charts.length >= count
    && charts.every(chart => chart.querySelector('svg.marks, canvas.marks'))
    && !document.querySelector('[data-testid=stSkeleton], [data-stale=true]');
}"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What the server may open: an adapter and a run."""
    with tempfile.TemporaryDirectory() as home:
        adapter(Path(home) / "mine", seed=1, layers=6)
        for step in (10, 20, 30):
            adapter(Path(home) / "run" / f"checkpoint-{step}", seed=step, rank=3)
        yield Path(home)


@pytest.fixture(scope="module")
def site(folder) -> Iterator[str]:
    """The address of the server, started as a user does; it ends with the module."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bora_analysis", "dashboard", "--port", str(port), "--root", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    address = f"http://localhost:{port}"
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            for _ in range(600):
                try:
                    with urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):
                        break
                except (urllib.error.URLError, OSError):
                    assert server.poll() is None, "the server has ended"
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(timeout=15)
            except subprocess.TimeoutExpired:  # a tab may keep it
                server.kill()
                server.wait()
        log.seek(0)
        said = log.read().decode()
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def visit(browser: Any, theme: str = "light", width: int = 1280) -> Iterator[Any]:
    """A visitor's tab; at its end nothing may have gone wrong in it."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, accept_downloads=True)
    context.set_default_timeout(WAIT)
    page = context.new_page()
    trouble: list[str] = []

    def said(message: Any) -> None:
        if message.type in ("error", "warning") and not HARMLESS.fullmatch(urlsplit(message.location["url"]).path):
            trouble.append(f"{message.type}: {message.text} ({message.location['url']})")

    page.on("console", said)
    page.on("pageerror", lambda error: trouble.append(f"exception: {error}"))
    page.on(
        "response",
        lambda response: (
            trouble.append(f"{response.status}: {response.url}")
            if response.status >= 400 and not HARMLESS.fullmatch(urlsplit(response.url).path)
            else None
        ),
    )
    try:
        yield page
        assert page.locator("[data-testid=stException]").count() == 0
    finally:
        context.close()
    assert trouble == []


def settled(page: Any, charts: int = 0) -> None:
    """The script has run, and every chart is drawn."""
    page.wait_for_function(SETTLED, arg=charts)


def opened(page: Any, site: str, name: str, query: str = "") -> None:
    page.goto(f"{site}/{'' if name == 'spectra' else name}{query}")
    page.get_by_role("heading", name=TITLES[name], exact=True).wait_for()
    settled(page, CHARTS[name])


def alts(page: Any) -> list[str]:
    return page.locator("[data-testid=stVegaLiteChart]").evaluate_all("all => all.map(x => x.ariaLabel)")


def shows(page: Any, chart: int, *words: str) -> None:
    """Wait until that chart's words for the blind hold all of these.

    A quiet page is not enough: between two runs of the script (an upload, a new address) it is quiet with old charts.
    """
    holds = f"""words => {{
      const said = document.querySelectorAll('[data-testid=stVegaLiteChart]')[{chart}]?.ariaLabel ?? '';
      return words.every(word => said.includes(word));
    }}"""
    try:
        page.wait_for_function(holds, arg=list(words))
    except playwright.TimeoutError:
        assert words == alts(page)[chart : chart + 1]  # fails, and shows what is there
    settled(page)


def in_url(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def downloaded(page: Any, label: str) -> bytes:
    with page.expect_download() as waiting:
        page.get_by_test_id("stDownloadButton").filter(has_text=label).first.click()
    return Path(waiting.value.path()).read_bytes()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_wide_and_on_a_phone(browser, site, theme):
    SHOTS.mkdir(parents=True, exist_ok=True)
    with visit(browser, theme) as page:
        opened(page, site, "spectra")
        shows(page, 0, *(f"{source.label}: " for source in sources.usual()))
        for name in PAGES:
            if name != "spectra":  # as a visitor does, in the same session
                page.get_by_role("link", name=TITLES[name], exact=True).click()
                page.get_by_role("heading", name=TITLES[name], exact=True).wait_for()
            settled(page, CHARTS[name])
            assert all(alts(page)), "a chart without words for those who do not see it"
            page.get_by_text("What am I looking at?").wait_for()
            shoot(page, f"{name}-{theme}")
            page.set_viewport_size({"width": 390, "height": 844})
            page.get_by_test_id("stExpandSidebarButton").wait_for()  # the sidebar makes room by itself
            settled(page, CHARTS[name])
            main = page.get_by_test_id("stMain")
            assert main.evaluate("x => x.scrollWidth - x.clientWidth") <= 0, "the page is wider than a phone"
            shoot(page, f"{name}-{theme}-phone")
            page.set_viewport_size({"width": 1280, "height": 900})
            page.get_by_test_id("stExpandSidebarButton").wait_for(state="detached")


def shoot(page: Any, name: str) -> None:
    """The whole page, in one picture."""
    size = page.viewport_size
    height = page.get_by_test_id("stMain").evaluate("x => x.scrollHeight")
    page.set_viewport_size({"width": size["width"], "height": min(6000, max(size["height"], height))})
    page.wait_for_timeout(250)  # charts are drawn to their new size
    page.screenshot(path=SHOTS / f"{name}.png")


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
        assert page.evaluate("window.drawn.isConnected"), "the heat map was drawn anew"
        page.get_by_test_id("stSelectbox").filter(has_text="Layer").first.click()
        page.get_by_role("option", name="5", exact=True).click()
        page.get_by_text("encoder.layer.5.attention.self.value", exact=True).first.wait_for()
        is_framed(page, "layer: 5; projection: v")
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
        opened(page, site, "spectra")
        page.get_by_text("Add an adapter").click()
        packed = zipped(contents(folder / "mine"))
        file = {"name": "sent <b>.zip", "mimeType": "application/zip", "buffer": packed}
        page.get_by_test_id("stFileUploaderDropzoneInput").set_input_files(files=[file])
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
