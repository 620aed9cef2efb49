"""What the README shows is what one gets: its transcripts are run again, its Python too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS
from bora_analysis.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [TEXT, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]
TRANSCRIPTS = [
    found
    for text in DOCUMENTS
    for found in re.findall(r"```console\n\$ bora-analysis ([^\n]*)\n(.*?)```", text, re.DOTALL)
]


@pytest.mark.parametrize(("command", "shown"), TRANSCRIPTS)
def test_transcripts_are_real(command, shown, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(ROOT / "data")  # what a command writes stays out of the repository
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, shlex.split(command))
    assert result.exit_code == 0
    assert result.stdout == shown


def test_python_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    rng = np.random.default_rng(0)
    names: dict[str, Any] = {
        "B": rng.standard_normal((12, 2)),
        "A": rng.standard_normal((2, 8)),
        "sigma": rng.standard_normal((4, 4, 2)),
    }
    exec(code, names)
    assert names["update"].facts.rank_bound == 8


def test_every_column_is_explained():
    section = TEXT[TEXT.index("## The tables") : TEXT.index("## What it reads")]
    for column in {*LAYER_COLUMNS, *SPECTRA_COLUMNS}:
        name = f"_{column.removeprefix('energy_rank_')}" if column in ("energy_rank_95", "energy_rank_99") else column
        assert name in section, column
