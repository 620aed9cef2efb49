"""Imports matplotlib, also where MPLBACKEND names a backend that is not installed.

Jupyter sets MPLBACKEND for all processes that a notebook starts, and matplotlib refuses to be imported where that
backend is missing. No figure here needs a backend: matplotlib is imported without one, and takes the named one if it
can, so that plots of the user's own appear as before.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module

if "matplotlib" not in sys.modules and (_named := os.environ.pop("MPLBACKEND", None)):
    try:
        _matplotlib = import_module("matplotlib")
    finally:
        os.environ["MPLBACKEND"] = _named
    with suppress(ValueError):
        _matplotlib.rcParams["backend"] = _named
