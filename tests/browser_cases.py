"""A browser and the real server, for the tests of the dashboard. Screenshots go to ``out/screenshots/``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

CHROMIUM = Path("/usr/bin/chromium")
if not CHROMIUM.exists():
    pytest.skip(f"no browser: {CHROMIUM} is missing (apt-get install chromium)", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parents[1]
SHOTS = ROOT / "out" / "screenshots"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-quic",
]  # fmt: skip
#: Streamlit asks below a page's own address first and then at the root: these, and nothing else, may be missing.
HARMLESS = re.compile(r"/\w+/_stcore/(health|host-config)")
WAIT = 120_000  # ms; machines are shared
SETTLED = """count => {
  const app = document.querySelector('[data-testid=stApp]');
  const charts = [...document.querySelectorAll('[data-testid=stVegaLiteChart]')];
  return app && app.dataset.testScriptState === 'notRunning' && charts.length >= count
    && charts.every(chart => chart.querySelector('svg.marks, canvas.marks'))
    && !document.querySelector('[data-testid=stSkeleton], [data-stale=true]');
}"""


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


def shoot(page: Any, name: str) -> None:
    """The whole page, in one picture."""
    size = page.viewport_size
    height = page.get_by_test_id("stMain").evaluate("x => x.scrollHeight")
    page.set_viewport_size({"width": size["width"], "height": min(6000, max(size["height"], height))})
    page.wait_for_timeout(250)  # charts are drawn to their new size
    page.screenshot(path=SHOTS / f"{name}.png")
