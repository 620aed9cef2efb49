"""For Jupyter: the threshold as a line to be moved over the spectra (extra ``notebook``)."""

from ..extras import require

require("notebook", "bora_analysis.notebook", "anywidget")

from .live_threshold import LiveThreshold  # noqa: E402  after the check

__all__ = ["LiveThreshold"]
