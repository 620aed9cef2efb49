"""BoRA as a part of PEFT, made from this package's source in contrib/peft; ``make patch-peft`` checks the whole."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bora_analysis.analysis.optimal_blocks import optimal_blocks
from bora_analysis.catalogue.sizes import cheapest_blocks
from bora_analysis.peft_methods import BoraConfig

CONTRIB = Path(__file__).parents[2] / "contrib" / "peft"


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(CONTRIB))
    return importlib.import_module("export")


def test_the_files_stand_on_their_own(export: Any, tmp_path: Path) -> None:
    for name, text in export.files().items():
        assert text.startswith("# Copyright"), name
        assert "bora_analysis" not in text
        assert "# pyright" not in text
        ast.parse(text)
        (tmp_path / name).write_text(text)
    # Names that are undefined, imported twice or unused.
    ruff = [str(Path(sys.executable).with_name("ruff")), "check", "--isolated", "--select", "F", str(tmp_path)]
    found = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_configuration_keeps_every_setting(export: Any) -> None:
    text = export.files()["config.py"]
    (made,) = (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef))
    fields = [
        node.target.id for node in made.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    own = [name for name in BoraConfig.__dataclass_fields__ if name in fields]
    assert own == fields
    told = ast.get_docstring(made) or ""
    assert "Args:\n    r: rank of one factor pair (the rank of ΔW is at most br)." in told
    for name in fields:
        assert name in told, name


def test_the_cheapest_number_of_blocks_is_that_of_the_analysis() -> None:
    for m, n in ((4096, 4096), (1024, 4096), (12, 18), (7, 11), (768, 50257), (3072, 768)):
        assert cheapest_blocks(m, n) == optimal_blocks(m, n).best[0]
