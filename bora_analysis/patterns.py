"""Regular expressions that are compiled when they are first used: to compile all at the start took 15 ms of it."""

from __future__ import annotations

import re
from typing import Any, cast


class _Late:
    def __init__(self, text: str, flags: int):
        self._text, self._flags = text, flags

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(re.compile(self._text, self._flags), name)
        setattr(self, name, found)  # the next time it is found without a detour
        return found


def late(text: str, flags: int = 0) -> re.Pattern[str]:
    """``re.compile(text, flags)``, done when the pattern is used. Its errors come then, too.

    Examples
    --------
    >>> late(r"(\\d+)\\.q").fullmatch("12.q")[1]
    '12'
    """
    return cast("re.Pattern[str]", _Late(text, flags))
