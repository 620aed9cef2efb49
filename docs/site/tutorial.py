"""The tutorial: a notebook as a page, with its words, its code, and what the code printed and drew.

``python docs/site/tutorial.py`` runs docs/tutorial.ipynb again and keeps what came out; with ``--check`` it says where
that differs from what the notebook has.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "tutorial.ipynb"
#: Begins the text of the widget, which a page shows alive.
LIVE = "<LiveThreshold"


def page(notebook: Path, live: str = "") -> str:
    """The Markdown of a notebook; ``live`` stands where a widget is shown."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell, live)) + "\n"


def _cell(cell: dict[str, Any], live: str) -> list[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [text]
    parts = [f"```python\n{text}\n```"]
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        plain = "".join(output.get("text", data.get("text/plain", "")))
        if "image/png" in data:
            picture = "".join(data["image/png"]).strip()
            parts.append(f'<img alt="What the code above draws." src="data:image/png;base64,{picture}">')
        elif "text/html" in data:
            lines = "".join(data["text/html"]).splitlines()
            parts.append("<div class='output'>" + "".join(line.strip() for line in lines) + "</div>")
        elif plain.startswith(LIVE) and live:
            parts.append(live)
        elif plain:
            parts.append("```text\n" + plain.rstrip("\n") + "\n```")
    return parts


def executed(notebook: Path) -> Any:
    """The notebook after a run of all its cells in an empty folder, with what is the same in each run.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    found = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(IPYTHONDIR=f"{folder}/.ipython", JUPYTER_RUNTIME_DIR=f"{folder}/.runtime")
        NotebookClient(found, timeout=600, resources={"metadata": {"path": folder}}).execute()
    found.metadata.pop("widgets", None)
    for cell in found.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [kept for output in cell.outputs if (kept := _kept(output)) is not None]
    return found


def _kept(output: Any) -> Any:
    """An output without what changes from run to run: warnings of other packages, counts, the widgets' names."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    output.metadata = {}
    widget = output.data.pop("application/vnd.jupyter.widget-view+json", None)
    if output.output_type == "execute_result":
        output.execution_count = None
    elif widget:  # a bar of progress
        return None
    if "image/png" in output.data or "text/html" in output.data:
        output.data.pop("text/plain", None)
    return output


def main(check: bool) -> int:
    """Run the notebook; write what came out, or say where it differs."""
    import nbformat

    fresh = executed(NOTEBOOK)
    if not check:
        nbformat.write(fresh, NOTEBOOK)
        return 0
    kept = nbformat.read(NOTEBOOK, as_version=4)
    differing = [
        f"cell {number}: {cell.source.splitlines()[-1]}\n  has   {_shown(cell)}\n  gives {_shown(own)}"
        for number, (cell, own) in enumerate(zip(kept.cells, fresh.cells, strict=True))
        if _without_pictures(cell) != _without_pictures(own)
    ]
    print("\n".join(differing))
    return 1 if differing else 0


def _without_pictures(cell: Any) -> Any:
    """A cell whose pictures only have to be there: other tests look at figures."""
    cell = copy.deepcopy(cell)
    for output in cell.get("outputs", []):
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = ""
    return cell


def _shown(cell: Any) -> str:
    return str([output.get("text", output.get("data")) for output in cell.get("outputs", [])])[:2000]


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
