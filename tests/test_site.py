"""The pages that are made of code have everything: each command and option, each public name, each figure."""

from __future__ import annotations

import html
import importlib
import json
import re
import shlex

import api
import commands
import gallery
import hooks
import pytest
import roles
import tutorial
from click.testing import CliRunner

import bora_analysis
from bora_analysis.cli import main
from bora_analysis.figures import FIGURES


@pytest.fixture(scope="module")
def reference() -> str:
    return html.unescape(commands.reference())


@pytest.mark.parametrize("name", main.commands)
def test_every_option_is_in_the_reference(reference, name):
    """What ``--help`` lists stands in the command's section, or in the groups that it names."""
    help_text = CliRunner().invoke(main, [name, "--help"]).output.partition("\nExamples:")[0]
    options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_text, re.MULTILINE)) - {"--help"}
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", reference, re.MULTILINE | re.DOTALL)
    assert section
    assert options or name == "dashboard"
    for option in options:
        assert re.search(rf"{option}\b", section[1]), option
        row = re.search(rf"^\| <code>(?:-\w, )?{option}\b.*\| (.*) \|$", reference, re.MULTILINE)
        assert row, option
        assert len(row[1]) > 5, option


def test_examples_and_help_are_in_the_reference(reference):
    for name, command in main.commands.items():
        assert f"bora-analysis {name}" in reference
        assert re.sub(r"\W", "", (command.help or "").splitlines()[0]) in re.sub(r"\W|code", "", reference)


@pytest.mark.parametrize("module", ["", "figures", "training", "notebook"])
def test_every_public_name_is_in_the_reference(module):
    package = importlib.import_module(f"bora_analysis.{module}".rstrip("."))
    pages = "\n".join([api.main(), api.figures(), api.training()])
    for name in set(package.__all__) - {"__version__", "figures"}:
        path = api.exported(module)[name]
        home, _, last = path.rpartition(".")
        found = getattr(importlib.import_module(home), last)
        assert found is getattr(package, name), path
        assert f"::: {path}\n" in pages, path
        assert found.__doc__ or not callable(found), path


def test_every_name_of_the_peft_methods_is_in_the_reference():
    """Told by the text: importing them takes seconds."""
    text = (hooks.ROOT / "bora_analysis" / "peft_methods" / "__init__.py").read_text(encoding="utf-8")
    names = re.findall(r'"(\w+)"', text.partition("__all__ = [")[2].partition("]")[0])
    assert len(names) > 8
    for name in names:
        assert f"::: {api.exported('peft_methods')[name]}\n" in api.training(), name


def test_no_name_is_documented_twice():
    entries = re.findall(r"^::: (\S+)", "\n".join([api.main(), api.figures(), api.training()]), re.MULTILINE)
    assert len(entries) == len(set(entries)) >= len(dir(bora_analysis)) + len(FIGURES)


def test_every_figure_is_in_the_gallery():
    shown = {command.split()[0] for command in gallery.COMMANDS.values()}
    assert shown | gallery.NOT_SHOWN == set(FIGURES)
    assert not shown & gallery.NOT_SHOWN
    page = gallery.page()
    for name, command in gallery.COMMANDS.items():
        with main.make_context("bora-analysis", ["figure"]) as parent:
            main.commands["figure"].make_context("figure", [*shlex.split(command), "-o", "x.png"], parent=parent)
        assert f"(gallery/{name}.png)" in page
    for name, (command, _) in gallery.OTHERS.items():
        own, *arguments = command.split()
        main.commands[own].make_context(own, [*arguments, "-o", "x.png"])
        assert f"(gallery/{name}.png)" in page
        assert f"bora-analysis {command} -o {name}.pdf" in page


def test_roles_become_links_and_words_descriptions():
    found = roles.Roles().markdown(
        "See :func:`bora_analysis.convert` and :data:`_X`.\n\n"
        "Parameters\n----------\na, b : a number,\n    or two.\n\nReturns\n-------\nx : int\n"
    )
    assert "[`bora_analysis.convert`][bora_analysis.analysis.conversion.convert] and `_X`." in found
    assert "a, b :\n    a number,\n    or two." in found
    assert found.endswith("x : int\n")


def test_a_notebook_is_a_page(tmp_path):
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n"]},
        {"output_type": "display_data", "data": {"image/png": "AAAA\n", "text/plain": ["<Figure>"]}},
        {"output_type": "execute_result", "data": {"text/html": ["<b>\n", "two</b>"], "text/plain": ["two"]}},
        {"output_type": "execute_result", "data": {"text/plain": ["3"]}},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ["1 + 2"], "outputs": outputs},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    page = tutorial.page(tmp_path / "a.ipynb")
    for part in (
        "# Title",
        "```python\n1 + 2\n```",
        "```text\none\n```",
        "base64,AAAA",
        "<b>two</b>",
        "```text\n3\n```",
    ):
        assert part in page


def test_links_of_the_repository_become_those_of_the_site():
    names = {"experiment.md", "checks.md", "images/spectra-light.png"}
    rewritten = hooks.rewritten("how-to/train.md", names)
    assert rewritten("[a](../../data/README.md#x)") == "[a](../experiment.md#x)"
    assert rewritten("![b](../../app/screenshots/spectra-light.png)") == "![b](../images/spectra-light.png)"
    assert rewritten("[c](../checks.md) `[d](../checks.md)`") == "[c](../checks.md) `[d](../checks.md)`"
    assert rewritten("[`e`](../../data/results.csv), [f](https://a.org)") == "`e`, [f](https://a.org)"
    assert rewritten("[g](../nowhere.md)") == "[g](../nowhere.md)"  # the build reports it
    assert hooks.rewritten("experiment.md", names)("[h](paper/README.md), [i](results.csv)") == "h, i"
