"""BoRA as a part of PEFT, made from this package's source in contrib/peft; ``make patch-peft`` checks the whole."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bora_analysis.analysis.optimal_blocks import optimal_blocks
from bora_analysis.catalogue.sizes import cheapest_blocks
from bora_analysis.peft_methods import BoraConfig
from bora_analysis.peft_methods.models import BoraModel

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


@pytest.mark.parametrize("case", ["plain", "auto", "others", "padded", "patterns"])
def test_the_exported_tuner_computes_what_ours_does(
    export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Outputs, gradients, merged weights and files, to the bit; ``make patch-peft`` does it with an installed PEFT."""
    package = tmp_path / "exported_bora"
    package.mkdir()
    for name, text in export.files().items():
        (package / name).write_text("" if name == "__init__.py" else text)  # which registers it, as ours is already
    monkeypatch.setattr("peft.utils.TRANSFORMERS_MODELS_TO_BORA_TARGET_MODULES_MAPPING", {}, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        exchange = importlib.import_module("exchange")
        theirs = importlib.import_module("exported_bora.model"), importlib.import_module("exported_bora.config")
        settings = {**exchange.CASES[case], "init_lora_weights": False}
        found = []
        for model_class, config_class in ((BoraModel, BoraConfig), (theirs[0].BoraModel, theirs[1].BoraConfig)):
            torch.manual_seed(1)
            model = model_class(exchange.Model(), config_class(**settings), "default")
            torch.manual_seed(2)
            inputs = torch.arange(10).reshape(2, 5), torch.randn(2, 4, 5, 5)
            output = model(*inputs)
            output.square().sum().backward()
            gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
            states = {name: each.detach().clone() for name, each in model.named_parameters()}
            merged = model.merge_and_unload(safe_merge=True)
            found.append((output.detach(), gradients, states, dict(merged.named_parameters())))
        assert type(model) is not BoraModel
        (ours, *rest), (other, *others) = found
        assert torch.equal(ours, other)
        for mine, own in zip(rest, others, strict=True):
            assert mine.keys() == own.keys()
            assert mine
            assert all(torch.equal(mine[name], own[name]) for name in mine)
    finally:
        for name in [name for name in sys.modules if name.startswith("exported_bora")]:
            del sys.modules[name]


def test_every_new_file_has_the_licence_and_the_configurations_are_read(export: Any, tmp_path: Path) -> None:
    for text in export.files().values():
        assert text.startswith(export.LICENCE)
    export.documents(tmp_path)
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(made) == 5
    for path in made:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            assert text.startswith(export.LICENCE)
        elif path.name == "bora.md":
            assert text.startswith("<!--Copyright")
            assert "Licensed under the Apache License, Version 2.0" in text
        elif path.suffix == ".json":
            assert vars(BoraConfig.from_pretrained(str(path.parent)))["target_modules"] == {"q_proj", "v_proj"}
