"""The card: its numbers are those of the tables, its picture has a preview's size, its section leaves a page alone."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from figure_cases import drawn_text
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bora_analysis import layer_metrics, null, read_adapter, synthetic_adapter, verdict
from bora_analysis.analysis.tables import analyse
from bora_analysis.analysis.telling import telling
from bora_analysis.cli import main
from bora_analysis.cli.card import words_of
from bora_analysis.figures import card as drawing

TRAINED = Path(__file__).parents[2] / "data" / "trained-bora-r8-b8"
FRONT = "---\r\nlicense: mit\r\ntags:\r\n- lora\r\nmodel-index: [{name: x}]\r\n---\r\n\r\n# Mine\r\n\r\nText.\r\n"


def run(*words: Any) -> str:
    found = CliRunner().invoke(main, ["card", *map(str, words)])
    assert found.exit_code == 0, found.output
    return found.stderr


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of the Hub with the card of an adapter, its bytes, and what the command said."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "README.md").write_bytes(FRONT.encode())
    said = run(TRAINED, "-o", folder / "README.md")
    return folder, (folder / "README.md").read_bytes(), said


def test_a_page_of_the_hub_keeps_every_byte(page):
    folder, once, said = page
    assert once.startswith(FRONT.encode())
    assert b"\n" not in once.replace(b"\r\n", b"")  # its own line ends
    assert "stands at the end" in said
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "card.png"]
    assert "](card.png)" in once.decode()


def test_a_second_card_replaces_the_first_and_text_behind_the_section_stays(page, tmp_path):
    once = page[1]
    (tmp_path / "README.md").write_bytes(once + b"\r\n## Licence\r\n")
    said = run(TRAINED, "--no-null", "-o", tmp_path / "README.md")
    assert "replaces that of an earlier card" in said
    found = (tmp_path / "README.md").read_bytes()
    assert found.startswith(FRONT.encode())
    assert found.endswith(b"\r\n## Licence\r\n")
    assert found.count(b"## The rank that this adapter uses") == 1
    assert b"random factors" not in found


def test_numbers_and_sentences_are_those_of_the_library(page):
    text = page[1].decode()
    layers = layer_metrics(TRAINED)
    told = json.loads(re.findall(r"<!-- bora_analysis (.*?) -->", text)[0])
    assert told["rank_bound"] == layers["rank_bound"].mean()
    assert told["ranks"]["effective rank (σ > 0.005)"] == pytest.approx(layers["effective_rank"].mean(), abs=1e-4)
    rows = null(TRAINED).layer_metrics
    drawn = rows[rows["metric"] == "energy_rank_99"]["null_mean"].mean()
    assert told["null"]["directions for 99 % of Σσ²"] == pytest.approx(drawn, abs=1e-4)
    assert f"| directions for 99 % of Σσ² | {layers['energy_rank_99'].mean():.4g} | {drawn:.4g} |" in text
    plain = text.replace("\\", "")
    assert verdict(TRAINED).partition("; next")[0] in plain
    assert len(telling(layers)) >= 2
    for each in telling(layers):
        assert f"- {each.name}: {each.reason}." in plain
    assert "effective rank: σ > 0.005; " in plain
    assert "stored in float32" in plain


def test_the_picture_is_that_of_a_links_preview_and_repeats(page, tmp_path):
    picture = (page[0] / "card.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1200, 630)
    run(
        TRAINED,
        "-o",
        tmp_path / "again.png",
        "-o",
        tmp_path / "a.svg",
        "-o",
        tmp_path / "a.pdf",
        "-o",
        tmp_path / "a.md",
    )
    assert (tmp_path / "again.png").read_bytes() == picture
    assert b"/FontType3" not in (tmp_path / "a.pdf").read_bytes()
    assert "](again.png)" in (tmp_path / "a.md").read_text(encoding="utf-8")
    assert not (tmp_path / "a.png").exists()  # there is a picture
    section = page[1].decode().replace("\r\n", "\n")[len(FRONT.replace("\r\n", "\n")) :]
    assert (tmp_path / "a.md").read_text(encoding="utf-8").strip().replace("again.png", "card.png") == section.strip()


CASES = {
    "long name": lambda: synthetic_adapter("lora", {f"h.{k}.q": (32, 32) for k in range(3)}, r=4, name="n-" * 90),
    "odd name": lambda: synthetic_adapter("lora", {"h.0.q": (32, 32)}, r=4, name="a|b $x$ <b> [c](d)"),
    "no layers, many names": lambda: synthetic_adapter("bora", {f"w{k}": (32, 32) for k in range(60)}, r=2, blocks=4),
    "80 layers": lambda: synthetic_adapter("lora", {f"h.{k}.{p}": (16, 16) for k in range(80) for p in "qkv"}, r=2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_card_of_any_adapter_cuts_no_text(case):
    adapter = CASES[case]()
    tables = analyse(adapter)
    words = words_of(adapter, tables.layer_metrics, None)
    figure = drawing.card(tables.layer_metrics, tables.spectra, words)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    for text in [*figure.texts, *drawn_text(figure)]:
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            assert box.x0 >= -1, text
            assert box.x1 <= figure.bbox.x1 + 1, text
            assert box.y0 >= -1, text
            assert box.y1 <= figure.bbox.y1 + 1, text
    cells: Any = next(each for axes in figure.axes for each in axes.get_children() if each.get_gid() == "cells")
    shares = 100 * tables.layer_metrics["energy_rank_99"] / tables.layer_metrics["rank_bound"]
    assert np.nanmean(np.ma.filled(cells.get_array().astype(float), np.nan)) == pytest.approx(shares.mean())


def test_what_is_no_card_is_refused_before_the_work(tmp_path):
    for output, told in (
        ("card.jpg", "expected a name that ends in .png, .svg, .pdf, .md"),
        (str(tmp_path), "expected"),
    ):
        found = CliRunner().invoke(main, ["card", str(TRAINED), "-o", output])
        assert found.exit_code == 2
        assert told in found.stderr
    found = CliRunner().invoke(main, ["card", str(TRAINED.parent / "runs"), "-o", str(tmp_path / "a.png")])
    assert found.exit_code == 2
    assert "a card shows one adapter; there are" in found.stderr
    assert list(tmp_path.iterdir()) == []
    assert read_adapter(TRAINED)
