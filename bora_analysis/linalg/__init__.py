"""Linear algebra of plain arrays: QR, solvers, counts, threads."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
