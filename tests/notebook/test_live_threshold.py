"""The threshold in a notebook: what Python counts, and what the browser draws and counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bora_analysis import analyse, layer_metrics, lora, summary, synthetic_adapter
from bora_analysis.notebook import LiveThreshold

DATA = Path(__file__).parents[2] / "data"
PAIR = [str(DATA / "trained-lora-r8"), str(DATA / "trained-bora-r8-b8")]
#: A stand-in for the notebook's side of the widget; it keeps what the browser would send.
MODEL = """async ([source, state]) => {
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const widget = (await import(address)).default;
  const heard = {};
  window.model = {
    get: name => state[name],
    set: (name, value) => { state[name] = value; (heard[`change:${name}`] ?? []).forEach(f => f()); },
    save_changes: () => { window.sent = state.threshold; },
    on: (name, f) => { (heard[name] ??= []).push(f); },
    off: (name, f) => { heard[name] = heard[name].filter(other => other !== f); },
  };
  window.heard = heard;
  window.end = widget.render({ model: window.model, el: document.body });
}"""


@pytest.fixture(scope="module")
def live() -> LiveThreshold:
    return LiveThreshold(PAIR)


@pytest.mark.parametrize("threshold", [0.005, 0.1, 2.0])
def test_python_counts_as_an_analysis_does(live, threshold):
    live.threshold = threshold
    own = layer_metrics(PAIR, threshold=threshold)
    assert live.layer_metrics["effective_rank"].tolist() == own["effective_rank"].tolist()
    assert live.summary().equals(summary(own))
    live.threshold = 0.005


def test_what_it_takes(live):
    assert LiveThreshold(analyse(PAIR))._adapters == live._adapters
    assert len(live._adapters) == 2
    assert [len(each["modules"]) for each in live._adapters] == [12, 12]
    steps = LiveThreshold(str(DATA / "runs" / "lora-r8"), modules="layer.0.*query")._adapters
    assert [each["name"] for each in steps][1:3] == ["lora-r8, step 10", "lora-r8, step 20"]


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_refused(live, threshold):
    with pytest.raises(ValueError, match="threshold is"):
        live.threshold = threshold
    assert live.threshold == 0.005


def test_nothing_trained_is_refused():
    with pytest.raises(ValueError, match="no singular value is above 0, and no line could be drawn"):
        LiveThreshold({"layers.0.q_proj": lora([[0.0]], [[1.0]])})


def test_without_the_extra_a_line_says_what_to_install():
    code = "import sys; sys.modules['anywidget'] = None; import bora_analysis.notebook"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: bora_analysis.notebook: anywidget is not installed; expected the extra notebook: "
        'pip install "bora_analysis[notebook]"'
    )


@pytest.fixture(scope="module")
def page(live: LiveThreshold) -> Any:
    cases = pytest.importorskip("browser_cases")
    with cases.playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(cases.CHROMIUM), args=cases.FLAGS)
        page = browser.new_page(viewport={"width": 720, "height": 520})
        trouble: list[str] = []
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.add_style_tag(content=str(live._css))
        page.evaluate(MODEL, [str(live._esm), {"threshold": 0.005, "_adapters": live._adapters}])
        yield page
        assert trouble == []
        browser.close()


def counted(page: Any) -> list[str]:
    return [row.split("\t")[2] for row in page.locator("tr:has(td)").evaluate_all("rows => rows.map(x => x.innerText)")]


def expected(threshold: float) -> list[str]:
    ranks = layer_metrics(PAIR, threshold=threshold).groupby("adapter", sort=False)["effective_rank"].mean()
    return [f"{rank:.2f}" for rank in ranks]


def test_the_browser_counts_as_python_does(page):
    assert counted(page) == expected(0.005)
    page.evaluate("model.set('threshold', 0.5)")
    assert counted(page) == expected(0.5) != expected(0.005)


def test_the_slider_and_the_mouse_move_the_line(page):
    page.locator("input").fill("200")
    slid = page.evaluate("sent")
    assert counted(page) == expected(slid)
    box = page.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.7)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.3)
    page.mouse.up()
    dragged = page.evaluate("sent")
    assert dragged > 10 * slid
    assert counted(page) == expected(dragged)
    y = page.locator(".bora-line").get_attribute("y1")
    assert float(y) == pytest.approx(300 * 0.3, abs=2)
    assert f"threshold {dragged:.3g}" in page.locator("svg").get_attribute("aria-label")


def test_other_adapters_are_drawn_anew(page):
    one = LiveThreshold(synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4))
    before = page.evaluate("model.get('_adapters')")
    page.evaluate("given => model.set('_adapters', given)", one._adapters)
    assert page.locator("polyline").count() == 1
    page.evaluate("given => model.set('_adapters', given)", before)
    assert page.locator("polyline").count() == 2


def test_it_lets_go_of_the_model(page):
    page.evaluate("end()")
    assert page.evaluate("Object.values(heard).flat().length") == 0
