"""Every list of methods comes from the catalogue: a method is one file and one row."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bora_analysis import catalogue, documentation, metrics
from bora_analysis.catalogue import METHODS, Method
from bora_analysis.methods import form, implementation, readers, recipe

ROOT = Path(__file__).parents[2]

TOY = '''
"""A method in one file: ΔW = s B B_fixed, with A fixed to the first rows of the identity."""

import numpy as np

from bora_analysis import catalogue, lora
from bora_analysis.catalogue import Formula, Method, Training
from bora_analysis.catalogue.formulas import Cost
from bora_analysis.files.adapter_file import Found
from bora_analysis.files.parts import collect
from bora_analysis.methods.file_form import Form
from bora_analysis.methods.random_factors import Recipe, pair

catalogue.register(Method(
    "toy", "ToyRA", "#123456", "8", __name__, ("TOYRA",), "s B I", "r×r", "this test", made=True,
    cost=Formula(lambda s: Cost(s.m * s.r, s.m * s.r, min(s.m, s.n, s.r)), "mr", "min(m, n, r)"),
    training=Training("peft.LoraConfig"),
))


def build(B, n, scaling):
    return lora(B, np.eye(B.shape[1], n), scaling=scaling, method="toy", any_rank=True)


def read(source):
    found, rest = collect(source, "toy_B")
    if not found:
        return None
    def loader(module, key):
        r, n = source.tensors.shape(key)[1], source.shape_of(module, key)[1]
        return lambda: build(source.tensors.read(key), n, source.scaling(module, r))
    return Found("toy", {module: loader(module, parts["toy_B"]) for module, parts in found.items()}, rest, [])


FORMS = {"toy": Form(
    {"B": "toy_B"}, lambda a, s, _: build(a["B"], int(a["shape"][1]), s), lambda a: a["B"].shape[1], told=("shape",),
)}
RECIPES = {"toy": Recipe(lambda spec, rng, m, n: {"B": pair(spec, rng, m, n)[0], "shape": np.array([m, n])})}
'''

USE = """
import toy_method  # the one file, before anything else
from click.testing import CliRunner
from bora_analysis import read_adapter, style
from bora_analysis.analysis.budget import within_budget
from bora_analysis.cli import main
from bora_analysis.documentation import method_table
from bora_analysis.training import Settings
from app.lab_model import OTHERS

def run(*words):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    return result.output

assert "toy" in run("synth", "--help") and "toy" in run("cost", "--help") and "toy" in run("train", "--help")
assert "ToyRA" in run("cost", "--model", "roberta-base", "--method", "all")
run("synth", "--method", "toy", "--shape", "8x6", "-r", "2", "-o", "toy")
adapter = read_adapter("toy")
assert adapter.method == "toy" and next(iter(adapter.values())).facts.rank_bound == 2
assert "toy: ToyRA" in run("analyze", "toy")
assert style.method_look("toy").colour == "#123456"
assert "toy" in OTHERS and "toy" in {choice.method for choice in within_budget([(8, 6)], 1000, at_least=0)}
assert "| ToyRA | s B I |" in method_table()
assert Settings("model", "data", method="toy").method == "toy"
"""


def test_a_method_in_one_file_is_found_everywhere(tmp_path):
    (tmp_path / "toy_method.py").write_text(TOY, encoding="utf-8")
    (tmp_path / "use.py").write_text(USE, encoding="utf-8")
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]; import use"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="method 'bora' exists already"):
        catalogue.register(Method("bora", "Another", "#000000", "o"))


def test_each_row_has_the_code_that_it_promises():
    for name, row in METHODS.items():
        if row.module:
            assert callable(implementation(name).read)
        if row.made:
            assert callable(form(name).build)
            assert callable(recipe(name).make)
    for module in readers():
        for name in {*getattr(module, "FORMS", ()), *getattr(module, "RECIPES", ())}:
            assert METHODS[name].made


def test_a_method_registered_after_a_first_read_has_its_reader(monkeypatch):
    """As in a notebook. A name of another package stands for what it stands for now; LoRA's reader stays the last."""
    before = list(readers())
    for _ in range(2):
        late = ModuleType("late_method")
        monkeypatch.setitem(sys.modules, "late_method", late)
        monkeypatch.setitem(METHODS, "late", Method("late", "Late", "#123456", "8", "late_method"))
        assert [module for module in readers() if module not in before] == [late]
        assert list(readers())[-1] is before[-1] is implementation("lora")


def sources():
    for folder in ("bora_analysis", "app"):
        yield from (ROOT / folder).rglob("*.py")


def test_no_second_list_of_methods_or_metrics_is_left():
    """No literal in the code has four names of methods, or of metrics, in it; data of the paper apart."""
    labels = {row.label for row in METHODS.values()} | set(METHODS)
    for path in sources():
        if path.parts[-3:-1] == ("bora_analysis", "catalogue") or path.name == "metrics.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            words = {str(item.value) for item in items if isinstance(item, ast.Constant)}
            assert len(words & labels) < 4, f"{path}:{getattr(node, 'lineno', 0)} lists {sorted(words & labels)}"


def test_the_documentation_has_the_tables_as_they_are():
    pages = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")}
    for name, text in pages.items():
        assert text == documentation.renewed(text), f"{name}: python -m bora_analysis.documentation docs"
    for name in documentation.TABLES:
        assert sum(f"<!-- {name} -->" in text for text in pages.values()) == 1, name
    assert all(f"| {name} |" in pages["tables.md"] for name in metrics.METRICS)
