"""The bundled adapters are what data/README.md says they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from bora_analysis import Adapter, read_adapter, singular_values
from bora_analysis.adapters import checkpoints
from bora_analysis.cli import main

DATA = Path(__file__).parents[1] / "data"
COMMANDS = re.findall(r"`bora-analysis (synth [^`]*-o data/(\S+))`", (DATA / "README.md").read_text(encoding="utf-8"))


def bundled(name: str) -> Adapter:
    (adapter,) = checkpoints(read_adapter(DATA / name))
    return adapter


def test_every_synthetic_folder_has_its_command():
    assert {name for _, name in COMMANDS} == {folder.name for folder in DATA.glob("synthetic-*")}
    assert {bundled(name).method for _, name in COMMANDS} == {"lora", "melora", "bora"}


@pytest.mark.parametrize(("command", "name"), COMMANDS)
def test_the_command_makes_the_same_adapter(command, name, tmp_path):
    """To float32 rounding: another processor's LAPACK may round a factor's last bit the other way."""
    arguments = shlex.split(command)
    arguments[-1] = str(tmp_path / name)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    made, shipped = (load_file(home / name / "adapter_model.safetensors") for home in (tmp_path, DATA))
    assert made.keys() == shipped.keys()
    for key, tensor in shipped.items():
        np.testing.assert_allclose(made[key], tensor, rtol=1e-5, atol=1e-7)
    config = "adapter_config.json"
    assert (tmp_path / name / config).read_bytes() == (DATA / name / config).read_bytes()


def test_the_spectra_are_the_ones_promised():
    expected = 0.2 * np.arange(1, 9) ** -2.0
    for name, times in (("synthetic-lora-r8", 1), ("synthetic-melora-r8-b4", 4)):
        for update in bundled(name).values():
            np.testing.assert_allclose(singular_values(update).values, np.repeat(expected, times), rtol=1e-5)
