"""What the documentation shows is what one gets: its commands and its Python are run again, its links are followed."""

from __future__ import annotations

import doctest
import re
import runpy
import shlex
import unicodedata
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

import bora_analysis
from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS
from bora_analysis.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
#: A command with its output, Python to run, or Python with its output. What is not run is marked ``py`` or ``sh``.
SHOWN = re.compile(
    r"```console\n\$ bora-analysis (?P<command>[^\n]*)\n(?P<output>.*?)```"
    r"|```python\n(?P<code>.*?)```|```pycon\n(?P<session>.*?)```",
    re.DOTALL,
)


def given() -> dict[str, Any]:
    """The names that Python on a page may use without having made them."""
    rng = np.random.default_rng(0)
    names = {"B": (12, 2), "A": (2, 8), "sigma": (4, 4, 2)}
    return {name: rng.standard_normal(shape) for name, shape in names.items()}


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if SHOWN.search(text)])
def test_a_page_is_a_session_that_runs(page, tmp_path, monkeypatch):
    """Its commands and its Python, one after the other, in one folder."""
    (tmp_path / "data").symlink_to(ROOT / "data")  # what a command writes stays out of the repository
    monkeypatch.chdir(tmp_path)
    names = given()
    for shown in SHOWN.finditer(TEXTS[page]):
        if shown["code"]:
            exec(shown["code"], names)
            continue
        if shown["session"]:
            example = doctest.DocTestParser().get_doctest(shown["session"], names, page, None, None)
            said: list[str] = []
            assert doctest.DocTestRunner(verbose=False).run(example, out=said.append).failed == 0, "".join(said)
            continue
        result = CliRunner().invoke(main, shlex.split(shown["command"]))
        assert result.exit_code == 0, (shown["command"], result.output)
        assert result.stdout == shown["output"], shown["command"]


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_there_are_sessions():
    """The pattern finds them: a page that is not run would pass every test."""
    found = [shown for text in TEXTS.values() for shown in SHOWN.finditer(text)]
    fences = sum(len(re.findall(r"```(?:console|python|pycon)\n", text)) for text in TEXTS.values())
    assert len(found) == fences >= 15


def test_every_command_is_documented():
    text = "\n".join(TEXTS.values())
    for name in main.commands:
        assert f"bora-analysis {name}" in TEXTS["docs/command-line.md"], name
        assert re.search(rf"bora-analysis {name}\b", text)


def test_every_column_is_explained():
    text = TEXTS["docs/reference/tables.md"]
    for column in {*LAYER_COLUMNS, *SPECTRA_COLUMNS}:
        assert column in text, column


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the web shows them."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.*)$", plain, re.MULTILINE):
        kept = "".join(c for c in heading.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
        found.add(kept.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    plain = re.sub(r"```.*?```|`[^`\n]*`", "", TEXTS[page], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", plain):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), target


def test_pictures_are_described():
    for page, text in TEXTS.items():
        for words, target in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", text):
            assert len(words) > 20, (page, target)


def test_the_picture_is_drawn_from_bundled_data(tmp_path):
    """``python docs/site/pictures.py`` when this fails."""
    script = runpy.run_path(str(ROOT / "docs" / "site" / "pictures.py"))
    script["draw"](tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as drawn, Image.open(script["PICTURE"]) as kept:
        assert np.array_equal(np.asarray(drawn.convert("RGB")), np.asarray(kept.convert("RGB")))


def test_the_citation_and_the_changelog_are_of_this_version():
    """CITATION.cff was valid for cffconvert 2.0.0, which the pinned jsonschema keeps out of the tests."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == bora_analysis.__version__ == version("bora_analysis")
    assert f"\n## {cited['version']}\n" in TEXTS["docs/CHANGELOG.md"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["license"] == "Apache-2.0"
