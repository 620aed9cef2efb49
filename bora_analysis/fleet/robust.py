"""Which values of a family stand out: median and MAD, with the trend over depth removed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..catalogue.module_names import projection
from ..linalg import Array
from ..patterns import late

#: Φ⁻¹(3/4): the MAD of normal values is this many standard deviations.
NORMAL_MAD = 0.6744897501960817
# A number that stands alone between dots or underscores.
_NUMBER = late(r"(?<![^._])\d+(?![^._])")


class Standing(NamedTuple):
    """Where the values of a family stand.

    Attributes
    ----------
    expected : (n,) the trend at each value. z : (n,) robust z-scores; NaN where they are not defined.
    """

    expected: Array
    z: Array


def standing(values: ArrayLike, depth: ArrayLike | None = None) -> Standing:
    """Robust z-scores of a family's values, with their trend over depth removed.

    The trend is the line of Theil and Sen: the median of the slopes between all pairs (P. K. Sen, "Estimates of the
    regression coefficient based on Kendall's tau", JASA 63, 1968), which 29 % of wild values do not move. Then
    z = Φ⁻¹(3/4) · (residual − median) / MAD (Iglewicz & Hoaglin, "How to detect and handle outliers", 1993).

    Parameters
    ----------
    values : (n,) numbers; NaN and infinite ones are left out, and have z = NaN.
    depth : (n,) where each stands; by default 0, 1, 2, ….

    Returns
    -------
    Standing
        z is 0 where a value lies on the trend, and ±∞ where all the others do.

    Examples
    --------
    >>> import numpy as np
    >>> found = standing([1.0, 2.1, 2.9, 4.0, 50.0, 6.1, 7.0, 7.9])
    >>> int(np.argmax(found.z)), bool(found.z.max() > 100), float(found.expected[4].round(1))
    (4, True, 5.0)
    """
    y = np.asarray(values, dtype=np.float64)
    x = np.arange(y.size, dtype=np.float64) if depth is None else np.asarray(depth, dtype=np.float64)
    known = np.isfinite(y) & np.isfinite(x)
    if not known.any():
        return Standing(np.full(y.size, np.nan), np.full(y.size, np.nan))
    rise, run = np.subtract.outer(y[known], y[known]), np.subtract.outer(x[known], x[known])
    apart = run > 0
    slope = float(np.median(rise[apart] / run[apart])) if apart.any() else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        rest = y - slope * x
        middle = np.median(rest[known])
        expected = middle + slope * x
        spread = np.median(np.abs(rest[known] - middle))
        # What rounding leaves of a value that lies on the line is no deviation.
        least = 1e-12 * float(np.max(np.abs(y[known]), initial=0.0))
        z = np.where(np.abs(rest - middle) <= least, 0.0, NORMAL_MAD * (rest - middle) / spread)
    return Standing(np.where(known, expected, np.nan), np.where(known, z, np.nan))


def family(module: str) -> str:
    """What a module has in common with those of other layers: its path, with a star for every number in it.

    >>> family("model.layers.31.mlp.experts.5.w1"), family("lora_unet_down_blocks_1_attentions_0_proj_in")
    ('model.layers.*.mlp.experts.*.w1', 'lora_unet_down_blocks_*_attentions_*_proj_in')
    >>> family("h.0.mlp.fc1")
    'h.*.mlp.fc1'
    """
    return _NUMBER.sub("*", module)


def family_name(module: str) -> str:
    """A family in a word or two, for messages: the projection."""
    return projection(module)
