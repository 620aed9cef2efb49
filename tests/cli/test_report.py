"""A report is one file that says what the commands say, and holds nothing that an adapter's name could smuggle in."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from bora_analysis import read_adapter, summary
from bora_analysis.adapters.synthetic import Synthetic, write_synthetic
from bora_analysis.cli import main

DATA = Path(__file__).parents[2] / "data"
CHROMIUM = Path("/usr/bin/chromium")
EMPTY = {"meta", "img", "br"}


class Tree(HTMLParser):
    """The tables and pictures of a page; every tag must be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in EMPTY:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(tag in self.open for tag in ("td", "th")):
            self.tables[-1][-1][-1] += data


def written(tmp_path: Path, *arguments: str, code: int = 0) -> tuple[str, Tree, str]:
    target = tmp_path / "report.html"
    done = CliRunner().invoke(main, ["report", *arguments, "-o", str(target)])
    assert done.exit_code == code, done.output
    text = target.read_text(encoding="utf-8")
    tree = Tree()
    tree.feed(text)
    tree.close()
    assert tree.open == []
    assert all(link.startswith("data:image/svg+xml;base64,") for link in tree.links), "the page must need no network"
    for image in tree.images:
        ElementTree.fromstring(base64.b64decode(str(image["src"]).partition(",")[2]))
        assert image["alt"]
    return text, tree, done.output


def test_it_says_what_the_commands_say(tmp_path):
    names = ("trained-lora-r8", "trained-bora-r8-b8")
    paths = [str(DATA / name) for name in names]
    text, tree, _ = written(tmp_path, *paths)
    assert len(tree.images) == 5
    whole, *rest = tree.tables
    frame = summary([read_adapter(path) for path in paths])
    frame = frame[frame["projection"] == "all"]
    assert [row[0] for row in whole[1:]] == list(names)
    place = whole[0].index("99 %")
    assert [row[place] for row in whole[1:]] == [f"{value:.2f}" for value in frame["energy_rank_99"]]
    modules = [table for table in rest if table[0][0] == "module"]
    assert [len(table) for table in modules] == [1 + 12 + 1] * 2  # head, modules, mean
    verdict = CliRunner().invoke(main, ["compare", *paths]).stdout.splitlines()[0]
    assert verdict in re.sub("<[^>]*>", "\n", text)


def test_one_adapter_needs_no_comparison(tmp_path):
    text, tree, _ = written(tmp_path, str(DATA / "trained-lora-r8"), "--title", "Mine", "--threshold", "0.1")
    assert "<title>Mine</title>" in text
    assert "Side by side" not in text
    assert "σ&gt;0.1" in text
    assert len(tree.tables) == 1


def test_a_run_has_its_trajectory_and_tables_of_the_last_step(tmp_path):
    text, tree, _ = written(tmp_path, str(DATA / "runs" / "lora-r8"), "--steps")
    assert len(tree.images) == 6
    assert len(tree.tables) == 1
    assert "step 400" in text


def test_names_are_text(tmp_path):
    evil = "<script>alert(1)<!-- \"' &amp;"
    folder = tmp_path / evil.replace("/", "")
    write_synthetic(folder, Synthetic("lora", {"layers.0.q_proj": (16, 12)}, 2))
    text, tree, _ = written(tmp_path, str(folder), "--title", "</title><b>")
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert "&lt;/title&gt;" in text
    assert len(tree.tables) == 1


def test_nothing_learned_and_one_of_two_unreadable(tmp_path):
    folder = tmp_path / "still"
    write_synthetic(folder, Synthetic("lora", {"layers.0.q_proj": (16, 12)}, 2, kind="init"))
    text, _, said = written(tmp_path, str(folder), str(tmp_path / "missing"), code=1)
    assert "ΔW = 0" in text
    assert "missing" in said


def test_two_hundred_modules(tmp_path):
    shapes = {f"model.layers.{k}.self_attn.{name}_proj": (24, 16) for k in range(100) for name in "qv"}
    write_synthetic(tmp_path / "many", Synthetic("bora", shapes, 2, blocks=4))
    _, tree, _ = written(tmp_path, str(tmp_path / "many"))
    assert len(tree.tables[0]) == 202


@pytest.mark.parametrize("output", ["report.pdf", "report", "."])
def test_another_kind_of_file_is_refused_before_the_work(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["report", "nowhere", "-o", output])
    assert done.exit_code == 2
    assert "expected" in done.output
    assert "nowhere" not in done.output


def test_a_failed_report_leaves_the_old_one(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    done = CliRunner().invoke(main, ["report", str(tmp_path / "nothing"), "-o", str(target)])
    assert done.exit_code == 1
    assert target.read_text() == "old"


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no browser")
def test_a_click_on_a_head_sorts(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    written(tmp_path, str(DATA / "trained-bora-r8-b8"))
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        trouble: list[str] = []
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the page is wider than a phone"
        column = page.locator("thead button").all_inner_texts().index("entropy")
        read = "(rows, k) => rows.map(row => row.cells[k].textContent)"
        ranks = [f"{x:.2f}" for x in np.sort(read_adapter(DATA / "trained-bora-r8-b8").metrics()["entropy_rank"])]
        for expected in (ranks[::-1], ranks):
            page.locator("thead button").nth(column).click()
            assert page.locator("tbody tr").evaluate_all(read, column) == expected
        page.locator("thead button").first.click()  # words, in natural order
        modules = page.locator("tbody tr").evaluate_all(read, 0)
        assert modules == sorted(modules)
        assert trouble == []
        browser.close()
