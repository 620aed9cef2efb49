"""convert --to: any adapter as the nearest adapter of another method."""

import numpy as np
import pytest
from click.testing import CliRunner

from bora_analysis import Adapter, AdapterError, lora, read_adapter, synthetic_adapter
from bora_analysis.adapters.given import one_of
from bora_analysis.adapters.synthetic import Synthetic, write_synthetic
from bora_analysis.analysis.capture import capture
from bora_analysis.analysis.members import capturing
from bora_analysis.analysis.representation import represent
from bora_analysis.catalogue import METHODS
from bora_analysis.cli import main

SHAPES = {f"layers.{k}.q_proj": (48, 32) for k in range(2)}


@pytest.fixture
def target():
    return synthetic_adapter("lora", SHAPES, r=12, kind="decay", decay=0.5, name="target")


@pytest.mark.parametrize("method", capturing())
def test_the_file_keeps_what_the_table_says(method, target, tmp_path):
    row = METHODS[method]
    r = {"lokr": 2, "melora": 4}.get(method, 8)  # no more than their small factors have
    member = (method, r, row.blocks.default if row.blocks else 1)
    table = represent(target, tmp_path, member, starts=1)
    read = one_of(tmp_path)
    assert METHODS[read.method].module == row.module
    for module, error in zip(target, table["error_relative"], strict=True):
        whole = target[module].to_dense()
        lost = np.linalg.norm(whole - read[module].to_dense()) / np.linalg.norm(whole)
        assert error == pytest.approx(lost, abs=2e-6)
    found = capture(target, [member], starts=1)
    np.testing.assert_allclose(table["captured"], found["captured"], atol=1e-6)


def test_a_zero_update_stays_zero(tmp_path):
    adapter = Adapter.from_updates("mine", {"q": lora(np.zeros((24, 2)), np.ones((2, 18)))})
    assert represent(adapter, tmp_path, ("bora", 2, 3))["error_relative"].tolist() == [0.0]
    assert not read_adapter(tmp_path)["q"].to_dense().any()


def test_what_cannot_be_written_is_said(target, tmp_path):
    with pytest.raises(ValueError, match="BoRA has an r"):
        represent(target, tmp_path, "bora")
    with pytest.raises(ValueError, match="the nearest DoRA"):
        represent(target, tmp_path, ("dora", 2))
    represent(target, tmp_path, ("lora", 2))
    with pytest.raises(AdapterError, match="--force"):
        represent(target, tmp_path, ("lora", 2))
    represent(target, tmp_path, ("lora", 2), force=True)


def test_the_command(tmp_path):
    folder = write_synthetic(tmp_path / "target", Synthetic("lora", SHAPES, 12))

    def run(*args):
        return CliRunner().invoke(main, ["convert", str(folder), "-o", str(tmp_path / "out"), *args])

    done = run("--to", "bora", "-r", "4", "--blocks", "4")
    assert done.exit_code == 0, done.output
    assert "The nearest BoRA r = 4, b = 4" in done.stdout
    facts = read_adapter(tmp_path / "out")["layers.0.q_proj"].facts
    assert (facts.method, facts.r, facts.blocks) == ("bora", 4, 4)
    for wrong in (["-r", "4"], ["--to", "bora", "-r", "4", "--rank", "3"], ["--to", "bora"]):
        assert run(*wrong, "--force").exit_code == 2
