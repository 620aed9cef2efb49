"""The page: width, height and font of every figure that has them, and bytes that repeat where a layout does not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_cases import ADAPTERS, cut_texts, tables
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from test_figures import sources

from bora_analysis import figures
from bora_analysis.figures import page

HIGH = [name for name, spec in figures.FIGURES.items() if "height" in spec.options]


@pytest.fixture(scope="module")
def data():
    return sources(steps=(0, 1), layers=(0, 1))


@pytest.mark.parametrize("name", figures.FIGURES)
def test_places_are_rounded_so_that_an_svg_repeats(name, data):
    """The layout's solver takes its equations in the order of memory addresses; an SVG names its clips by places."""
    figure = figures.draw(name, **data, width="icml")
    page.settle(figure)
    for axes in figure.axes:
        points = axes.get_position(original=True).get_points()
        np.testing.assert_array_equal(points, np.round(points, 6))


def test_the_figure_that_had_two_forms_has_one(data, tmp_path):
    made = [figures.save(figures.draw("figure3", **data, width="icml"), tmp_path / f"{k}.svg") for k in range(3)]
    assert len({hashlib.sha256(Path(each).read_bytes()).hexdigest() for each in made}) == 1


@pytest.mark.parametrize("name", HIGH)
def test_a_height_is_that_of_the_page(name, data):
    figure = figures.draw(name, **data, height=4.75)
    assert figure.get_figheight() == 4.75
    assert cut_texts(figure) == []


def test_figures_without_a_height_say_so(data):
    assert set(figures.FIGURES) - set(HIGH) == {"figure1", "figure2", "similarity"}
    with pytest.raises(ValueError, match="figure figure2 has no option 'height'; it has width, font"):
        figures.draw("figure2", height=3.0)
    for height in (0.5, 21.0, float("nan")):
        with pytest.raises(ValueError, match=r"height is .* inches; expected 0.8 to 20"):
            figures.draw("spectra", **data, height=height)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_font_is_that_of_all_letters(name, data, tmp_path):
    """Ticks are made when the figure is drawn, that is after the figure's function has ended."""
    figure = figures.draw(name, **data, font="STIXGeneral")
    pdf = figures.save(figure, tmp_path / "a.pdf").read_bytes()
    assert b"STIXGeneral" in pdf
    assert b"/FontType3" not in pdf
    texts: list[Any] = figure.findobj(match=Text)
    families = {text.get_fontfamily()[0] for text in texts if text.get_text().strip()}
    assert families == {"STIXGeneral"}
    assert cut_texts(figure) == []


def test_letters_that_a_font_lacks_come_from_another(tmp_path):
    figure = figures.draw("spectra", **tables(adapters=ADAPTERS[:1]), font="STIXGeneral", labels=["Ω₂⁺ ⚖"])
    FigureCanvasAgg(figure).draw()  # a missing letter is a warning, and that an error
    assert b"DejaVuSans" in figures.save(figure, tmp_path / "a.pdf").read_bytes()


def test_an_unknown_font_is_refused_with_those_there():
    with pytest.raises(ValueError, match=r"unknown font 'DejaVu Serf'; did you mean DejaVu Serif\? there are DejaVu"):
        figures.draw("figure2", font="DejaVu Serf")


def test_fonts_of_postscript_outlines_are_refused(tmp_path, monkeypatch):
    """A PDF of type 42 would hold them as TrueType, which they are not."""
    (tmp_path / "a.otf").write_bytes(b"OTTO" + bytes(20))
    monkeypatch.setattr(page.font_manager, "findfont", lambda *a, **b: str(tmp_path / "a.otf"))
    with pytest.raises(ValueError, match="PostScript outlines"):
        figures.draw("figure2", font="Some")


def test_labels_go_by_name_or_by_order():
    data = tables(adapters=ADAPTERS[:2])
    for labels in (["LoRA r = 4", "Mini"], {"lora-r4": "LoRA r = 4", "melora-r2": "Mini"}, ["melora-r2=Mini"]):
        (legend,) = figures.draw("spectra", **data, labels=labels).legends
        assert [text.get_text() for text in legend.get_texts()][1] == "Mini"
    with pytest.raises(ValueError, match=r"got 1 labels; expected 2, for lora-r4, melora-r2 .*, or ADAPTER=LABEL"):
        figures.draw("spectra", **data, labels=["other=Mini"])
