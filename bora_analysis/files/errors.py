"""The error of the readers and the writer, and the words of its messages."""

from __future__ import annotations

import re


class AdapterError(ValueError):
    """An adapter that cannot be read or written.

    The message is one line: the file, the key or module, what was found, what was expected, and what to do.

    Examples
    --------
    >>> from bora_analysis import AdapterError, read_adapter
    >>> try:
    ...     read_adapter("no/such/folder")
    ... except AdapterError as error:
    ...     print(error)
    no/such/folder: no such file or folder
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class BaseNeededError(AdapterError):
    """An adapter that is not at fault: its update depends on the base model, which was not given.

    Attributes
    ----------
    need : the message without the options by which a caller gives it, for who asks for it in another way.
    """

    def __init__(self, need: str, options: str = ""):
        super().__init__(f"{need}{options}")
        self.need = need


class RankError(AdapterError):
    """Tensors of another rank than the configuration's.

    Attributes
    ----------
    module : its path. found : the rank of the tensors. expected : the configuration's.
    """

    def __init__(self, message: str, module: str, found: int, expected: int):
        super().__init__(message)
        self.module = module
        self.found = found
        self.expected = expected


def counted(count: int, one: str, many: str = "") -> str:
    """``1 module``, ``2 modules``: for messages."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def readable(text: str) -> str:
    r"""A text that every file takes: bytes of a name that are no UTF-8, which Python keeps as surrogates, spelled out.

    >>> readable("caf\udce9")
    'caf\\udce9'
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def as_named(text: str) -> str:
    r"""The name that :func:`readable` spelled out.

    >>> as_named("caf\\udce9") == "caf\udce9"
    True
    """
    return re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda hit: chr(int(hit[1], 16)), text)
