"""Every decomposition of every command runs under the limit of one BLAS thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bora_analysis.cli import main
from bora_analysis.linalg.threads import BlasLimit

DATA = Path(__file__).parents[2] / "data"
LORA, BORA = (str(DATA / name) for name in ("trained-lora-r8", "trained-bora-r8-b8"))
ROUTINES = ("qr", "svd", "cholesky", "eigvalsh", "eigh", "inv", "solve", "lstsq", "pinv", "matrix_rank")


@pytest.mark.parametrize(
    "command",
    [
        ["analyze", BORA],
        ["factors", BORA],
        ["compare", LORA, BORA],
        ["recommend", LORA],
        ["similarity", LORA, BORA],
        ["check", LORA],
        ["convert", BORA, "-o", "out", "--energy", "0.9"],
        ["convert", LORA, "-o", "out", "--to", "melora", "-r", "8", "--blocks", "4"],
        [
            "capture",
            LORA,
            *(f"--method={name}" for name in ("bora", "loha", "lokr", "vera")),
            "-r",
            "2",
            "--starts",
            "1",
        ],
        ["merge", LORA, BORA, "-o", "out"],
        ["synth", "--method", "loha", "-o", "out"],
        ["synth", "--method", "delora", "-o", "out"],
        ["paper", "--claims"],
    ],
    ids=lambda command: " ".join(word for word in command if "/" not in word),
)
def test_no_decomposition_outside_the_limit(command, monkeypatch, tmp_path):
    """On busy cores two threads made a decomposition 20 to 50 times slower."""
    outside, calls = set(), 0

    def watched(name):
        real = getattr(np.linalg, name)

        def routine(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if not BlasLimit.users:
                outside.add(name)
            return real(*arguments, **keywords)

        return routine

    for name in ROUTINES:
        monkeypatch.setattr(np.linalg, name, watched(name))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert calls
    assert not outside
