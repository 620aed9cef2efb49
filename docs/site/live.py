"""The widget of the tutorial, alive on the page: its own script, and the spectra of the adapters that it shows."""

from __future__ import annotations

import json
from pathlib import Path

from bora_analysis import analyse
from bora_analysis.notebook import live_threshold

ROOT = Path(__file__).parents[2]
SHOWN = ("trained-lora-r8", "trained-melora-r8-n4", "trained-bora-r8-b8", "trained-bora-r8-b16")
STYLE = Path(live_threshold.__file__).with_suffix(".css")
#: Where the widget stands on a page.
PLACE = '<div id="live-threshold"></div>\n<script src="javascripts/live.js"></script>'
_EXPORT = "export default { render };"
_MODEL = """
const heard = {};
const model = {
  get: name => state[name],
  set: (name, value) => { state[name] = value; (heard[`change:${name}`] ?? []).forEach(told => told()); },
  save_changes: () => {},
  on: (name, told) => { (heard[name] ??= []).push(told); },
  off: () => {},
};
render({ model, el: document.getElementById("live-threshold") });
"""


def script() -> str:
    """The widget, with a model in the place of a kernel; no module, which a page from a folder cannot load."""
    tables = analyse([ROOT / "data" / name for name in SHOWN])
    series = live_threshold.series(tables.spectra, tables.layer_metrics)
    for each in series:  # a page shows them, and nobody computes with them
        each["modules"] = [[float(f"{value:.6g}") for value in values] for values in each["modules"]]
    state = json.dumps({"threshold": 0.005, "_adapters": series})
    widget = Path(live_threshold.__file__).with_suffix(".js").read_text(encoding="utf-8")
    if _EXPORT not in widget:
        raise ValueError(f"the widget's script no longer has the line {_EXPORT!r}")
    return f"(() => {{\n{widget.replace(_EXPORT, '')}\nconst state = {state};\n{_MODEL}\n}})();\n"
