"""Work that goes on beside a page, in a real browser: its progress, a button that stops it, a tab that is closed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from browser_cases import settled, shows, visit
from dashboard_cases import adapter

LONG = "/capture?path=long&adapters=long&capture_methods=BoRA&capture_methods=LoHa"


@pytest.fixture(scope="module")
def long(folder: Path) -> Path:
    """An adapter whose capture takes longer than any of these tests."""
    return adapter(folder / "long", seed=5, rank=6, layers=1000)


def spent(process: int) -> float:
    """Processor seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_long_job_is_stopped_by_its_button_and_by_closing_the_tab(browser, server, long):
    site, process = server
    with visit(browser) as page:
        page.goto(f"{site}{LONG}")
        page.get_by_test_id("stCheckbox").filter(has_text="All modules").click()
        page.get_by_text(" of 2,000 modules").first.wait_for()
        page.get_by_text("What am I looking at?").wait_for()  # the page is whole beside it
        page.get_by_role("button", name="Stop", exact=True).click()
        page.get_by_text("Stopped after ").wait_for()
        page.get_by_role("button", name="Go on", exact=True).click()
        page.get_by_role("button", name="Stop", exact=True).wait_for()
        page.get_by_role("link", name="Paper", exact=True).click()  # it goes on there
        page.get_by_role("heading", name="Paper", exact=True).wait_for()
        settled(page, 3)
        before = spent(process)
        time.sleep(2)
        assert spent(process) - before > 0.3, "the job does not go on"
    end, before, still = time.monotonic() + 60, spent(process), 0
    while still < 4:  # two quiet seconds
        assert time.monotonic() < end, "the job goes on without its visitor"
        time.sleep(0.5)
        now = spent(process)
        still, before = (still + 1 if now - before < 0.1 else 0), now


def test_a_run_that_grows_is_followed_and_its_steps_are_played(browser, site, folder):
    for step in (10, 20):
        adapter(folder / "grows" / f"checkpoint-{step}", seed=step)
    with visit(browser) as page:
        page.goto(f"{site}/training?path=grows&adapters=grows&run=grows&follow=true")
        shows(page, 1, "at step 20")
        adapter(folder / "grows" / "checkpoint-30", seed=30)
        page.get_by_role("button", name="Play", exact=True).wait_for()
        # The chart of all steps has the third by itself; the one that is looked at stays.
        page.wait_for_function("() => document.body.innerText.includes('grows step 30')")
        page.get_by_role("button", name="Play", exact=True).click()
        page.get_by_role("button", name="Pause", exact=True).wait_for()
        page.get_by_role("button", name="Play", exact=True).wait_for()  # it has come to the end
        shows(page, 1, "at step 30")
