"""What a plain installation leaves out: PyTorch, the dashboard's packages, those of training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec


def require(extra: str, what: str, *packages: str, error: Callable[[str], Exception] = ImportError) -> None:
    """Raise one line that says what to install, unless all packages are there; none of them is loaded for that.

    Parameters
    ----------
    extra : the extra of this distribution that brings the packages.
    what : what needs them, the beginning of the line.
    packages : the names by which they are imported.
    error : makes the exception from the line.

    Examples
    --------
    >>> require("train", "training", "json", "absent")
    Traceback (most recent call last):
    ImportError: training: absent is not installed; expected the extra train: pip install "bora_analysis[train]"
    """
    for package in packages:
        if not available(package):
            raise error(
                f"{what}: {package} is not installed; expected the extra {extra}: "
                f'pip install "bora_analysis[{extra}]"'  # double quotes, which every shell takes
            )


def available(package: str) -> bool:
    """Whether a package can be imported, without loading it.

    >>> available("json"), available("absent")
    (True, False)
    """
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return find_spec(package) is not None
    except ImportError:
        return False
