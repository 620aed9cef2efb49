"""What every function on adapters takes, as tables."""

from __future__ import annotations

from typing import Any

from .tables import Tables, analyse


def tables_of(given: Any, **options: Any) -> Tables:
    """The tables of whatever stands for adapters; :class:`Tables` are taken as they are.

    Parameters
    ----------
    given : see :func:`bora_analysis.read_adapter`; or a list of these.
    options : of :func:`bora_analysis.analyse`.
    """
    return given if isinstance(given, Tables) else analyse(given, **options)
