"""The spectra of adapters under a threshold that a slider, the mouse or Python moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import pandas as pd
import traitlets

from ..analysis.given import tables_of
from ..analysis.summary import summary
from ..analysis.tables import recounted
from ..style import looks
from ..threshold import Threshold

_HERE = Path(__file__).parent


class LiveThreshold(anywidget.AnyWidget):
    """Spectra, median and range over the modules, with a threshold to be moved; below, how many σ lie above it.

    The browser counts while the line moves; Python counts again when it is asked.

    Parameters
    ----------
    adapters : what :func:`bora_analysis.read_adapter` takes, a list of it, or the tables of
        :func:`bora_analysis.analyse`.
    threshold : where the line begins, a number above 0.
    options : of :func:`bora_analysis.analyse`.

    Attributes
    ----------
    threshold : where the line is; a number that is set moves it.

    Raises
    ------
    ValueError
        A threshold that is no number above 0; adapters without a singular value above 0.

    Examples
    --------
    >>> from bora_analysis import synthetic_adapter
    >>> from bora_analysis.notebook import LiveThreshold
    >>> adapter = synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4, kind="decay")
    >>> live = LiveThreshold(adapter)
    >>> live.layer_metrics["effective_rank"].item()
    4
    >>> live.threshold = 0.08
    >>> live.summary()["effective_rank"].iloc[0].item()
    2.0
    """

    _esm = _HERE / "live_threshold.js"
    _css = _HERE / "live_threshold.css"
    threshold = traitlets.Float(0.005).tag(sync=True)
    _adapters = traitlets.List().tag(sync=True)

    def __init__(self, adapters: Any, threshold: float = 0.005, **options: Any) -> None:
        tables = tables_of(adapters, **options)
        found = tables.spectra["singular_value"].to_numpy()
        if not (found > 0).any():
            raise ValueError("no singular value is above 0, and no line could be drawn")
        self.tables = tables
        super().__init__(threshold=threshold, _adapters=series(tables.spectra, tables.layer_metrics))

    def __repr__(self) -> str:
        return f"<LiveThreshold at {self.threshold:g}: {', '.join(each['name'] for each in self._adapters)}>"

    @traitlets.validate("threshold")
    def _positive(self, proposal: Any) -> float:
        value = Threshold.of(proposal["value"]).value
        if not 0 < value < np.inf:
            raise ValueError(f"threshold is {value}; expected a number above 0")
        return value

    @property
    def layer_metrics(self) -> pd.DataFrame:
        """The table of :func:`bora_analysis.layer_metrics`, with this threshold."""
        return recounted(self.tables, self.threshold)

    def summary(self) -> pd.DataFrame:
        """The table of :func:`bora_analysis.summary`, with this threshold."""
        return summary(self.layer_metrics)


def series(spectra: pd.DataFrame, layers: pd.DataFrame) -> list[dict[str, Any]]:
    """What is drawn: for each adapter, and each step of it, name, colour, dashes, and the σ of every module."""
    styles = looks(layers[["adapter", "method"]].itertuples(index=False, name=None))
    found = []
    step: Any
    for (adapter, step), own in spectra.groupby(["adapter", "step"], sort=False, dropna=False):
        look = styles[str(adapter)]
        modules = own.groupby("module", sort=False)["singular_value"].agg(list).tolist()
        name = str(adapter) if pd.isna(step) else f"{adapter}, step {step}"
        found.append({"name": name, "colour": look.colour, "dash": list(look.dash), "modules": modules})
    return found
