"""What every function on adapters takes, as adapters or as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from ..adapters.given import adapters_of, one_of
from .columns import Columns
from .tables import LAYER_COLUMNS, Analysis, Tables, analyse

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["adapters_of", "columns_of", "layers_of", "one_of", "tables_of"]


def tables_of(given: Any, **options: Unpack[Analysis]) -> Tables:
    """The tables of whatever stands for adapters; :class:`Tables` are taken as they are.

    Parameters
    ----------
    given, options : as for :func:`bora_analysis.analyse`.
    """
    return given if isinstance(given, Tables) else analyse(given, **options)


def layers_of(given: Any, **options: Unpack[Analysis]) -> pd.DataFrame:
    """The same for ``layer_metrics``; such a frame is taken as it is. TypeError for another frame."""
    if isinstance(given, Columns):
        return given.frame()
    return _checked(given) if _is_frame(given) else tables_of(given, **options).layer_metrics


def columns_of(given: Any, **options: Unpack[Analysis]) -> Columns:
    """The same as columns, which need no pandas."""
    if isinstance(given, Columns):
        return given
    return Columns.of(_checked(given)) if _is_frame(given) else tables_of(given, **options).layers


def _is_frame(given: Any) -> bool:
    return type(given).__name__ == "DataFrame"


def _checked(frame: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in LAYER_COLUMNS if name not in frame]
    if missing:
        raise TypeError(
            f"got a DataFrame without {', '.join(missing[:3])}; expected layer_metrics, Tables, "
            "or what read_adapter takes"
        )
    return frame
