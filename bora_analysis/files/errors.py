"""The one error of the readers and the writer."""

from __future__ import annotations


class AdapterError(ValueError):
    """An adapter that cannot be read or written.

    The message is one line: the file, the key or module, what was found, what was expected, and what to do.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))
