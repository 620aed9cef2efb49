"""The colours of the dashboard stand out as far as WCAG 2.2 asks, in both themes, and come from one place."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from dashboard_cases import APP
from matplotlib import colormaps
from matplotlib.colors import to_hex

from app import palette, vega
from app.page_style import sheet
from bora_analysis import style
from bora_analysis.catalogue import METHODS

THEMES = palette.themes()
#: Streamlit writes headings of tables, captions and placeholders in the ink at this share.
FADED = 0.6


@pytest.fixture(params=["light", "dark"])
def theme(request, monkeypatch):
    monkeypatch.setattr(palette, "dark", lambda: request.param == "dark")
    return THEMES[request.param]


def test_the_contrast_is_that_of_the_standard():
    """Pairs whose contrasts WCAG's own tools give."""
    for pair, known in {
        ("#777777", "#FFFFFF"): 4.48,
        ("#767676", "#FFFFFF"): 4.54,
        ("#0000FF", "#FFFFFF"): 8.59,
    }.items():
        assert round(palette.contrast(*pair), 2) == known


def test_text_can_be_read(theme):
    for ground in (theme.ground, theme.panel):
        words = theme.ink, theme.guide, theme.alarm, theme.accent, palette.over(theme.ink, ground, FADED)
        assert {
            colour: palette.contrast(colour, ground) for colour in words if palette.contrast(colour, ground) < 4.5
        } == {}
    chosen = palette.over(theme.accent, theme.ground, palette.TINT)
    assert palette.contrast(theme.accent, chosen) >= 4.5
    assert palette.contrast(theme.ground, theme.alarm) >= 4.5  # a chip of an adapter that cannot be read


def test_lines_can_be_seen(theme):
    own = {look.colour for look in map(style.method_look, METHODS)} | {style.GREY}
    shades = {style.shade(colour, nth) for colour in own for nth in range(6)} | {style.YELLOW}
    drawn = {palette.on_screen(colour) for colour in shades} | {theme.guide, theme.ink, theme.accent}
    drawn |= {
        to_hex(colormaps["viridis"](place)).upper() for place in np.linspace(theme.viridis[0], theme.viridis[1], 20)
    }
    drawn |= {shade for count in (1, 2, 6) for shade in palette.ramp(style.VERMILLION, count)}
    assert {colour for colour in drawn if palette.contrast(colour, theme.ground) < 3} == set()


def test_shades_of_a_ramp_are_in_order_and_apart(theme):
    steps = [palette.contrast(shade, theme.ground) for shade in palette.ramp(style.VERMILLION, 6)]
    assert all(later > 1.15 * sooner for sooner, later in itertools.pairwise(steps)), steps


def test_adapters_of_one_method_stay_apart_on_the_screen(theme):
    looks = style.looks((f"run-{k}", method) for method in ("melora", "rslora", "bora") for k in range(6))
    seen = {(palette.on_screen(look.colour), look.marker, look.dash, look.filled) for look in looks.values()}
    assert len(seen) == len(looks)


def test_numbers_in_the_cells_of_a_heat_map_can_be_read():
    for share in np.linspace(0, 1, 101):
        ink = {"white": "#FFFFFF", "black": "#000000"}[style.ink_on_viridis(share)]
        assert palette.contrast(ink, to_hex(colormaps["viridis"](share))) >= 4.4, share


def test_colours_stand_in_one_place():
    for file in APP.rglob("*.py"):
        if file.name != "palette.py":
            assert re.findall(r"#[0-9A-Fa-f]{6}\b", file.read_text(encoding="utf-8")) == [], file


def test_axes_and_legends_have_the_colour_that_can_be_read(theme):
    words = vega._words()
    assert {words[part][name] for part in ("axis", "legend") for name in ("labelColor", "titleColor")} == {theme.guide}


def test_a_chip_has_the_colour_of_its_line_and_one_in_error_the_alarm(theme):
    rules = sheet(theme, {0: style.ORANGE, 1: None})
    chips = dict(re.findall(r'\[data-tag-index="(\d)"\] \{(.*?)\}', rules, re.DOTALL))
    assert palette.on_screen(style.ORANGE) in chips["0"]
    assert theme.alarm not in chips["0"]
    assert theme.alarm in chips["1"]
    assert "{{" not in rules
    assert rules.count("{") == rules.count("}")
