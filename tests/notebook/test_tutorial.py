"""The tutorial runs from an empty folder, and gives what it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CELLS = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]


def test_the_tutorial_gives_what_it_shows():
    """``python docs/site/tutorial.py`` when this fails, and look at what has changed."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "docs" / "site" / "tutorial.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_outputs_are_clean():
    """No warnings, no addresses, no folders of the machine on which it was run, and little to download."""
    text = json.dumps(CELLS)
    assert len(text) < 400_000
    for cell in CELLS:
        assert cell["metadata"] == {}
        for output in cell.get("outputs", []):
            assert output["output_type"] in ("execute_result", "display_data") or output["name"] == "stdout"
            shown = json.dumps({kind: data for kind, data in output.get("data", {}).items() if kind != "image/png"})
            assert not any(word in shown for word in (" at 0x", "/home", "/tmp", "/root", str(ROOT)))


def test_every_kind_of_output_is_there():
    kinds = {kind for cell in CELLS for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert {"image/png", "text/html", "text/plain"} <= kinds
