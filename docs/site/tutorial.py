"""A notebook as a page: its words, its code, and what the code printed and drew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def page(notebook: Path) -> str:
    """The Markdown of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell)) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [text]
    parts = [f"```python\n{text}\n```"]
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            parts.append(_plain(output["text"]))
            continue
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).strip()
            parts.append(f'<img alt="What the code above draws." src="data:image/png;base64,{picture}">')
        elif "text/html" in data:
            lines = "".join(data["text/html"]).splitlines()
            parts.append("<div class='output'>" + "".join(line.strip() for line in lines) + "</div>")
        elif "text/plain" in data:
            parts.append(_plain(data["text/plain"]))
    return parts


def _plain(text: str | list[str]) -> str:
    return "```text\n" + "".join(text).rstrip("\n") + "\n```"
