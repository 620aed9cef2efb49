"""A terminal of a given width and encoding, or pipes, in the process of the test."""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

from bora_analysis.cli import main
from bora_analysis.cli.plain_text import cells_wide


class Screen(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_screen(*arguments: object, width: int = 80, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in a terminal, without the codes of colours and of the progress bar."""
    with mock.patch.dict("os.environ", {"COLUMNS": str(width)}):
        code, *texts = _printed(arguments, Screen, encoding)
    plain, told = (re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text) for text in texts)
    told = "\n".join(line.rpartition("\r")[2] for line in told.split("\n"))
    return code, plain, told


def in_pipe(*arguments: object, encoding: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in pipes of this encoding."""
    return _printed(arguments, io.TextIOWrapper, encoding)


def _printed(arguments: tuple[object, ...], kind: type[io.TextIOWrapper], encoding: str) -> tuple[int, str, str]:
    out, err = kind(io.BytesIO(), encoding), kind(io.BytesIO(), encoding)
    with redirect_stdout(out), redirect_stderr(err):
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    texts = [stream.buffer.getvalue().decode(encoding) for stream in (out, err)]  # pyright: ignore[reportAttributeAccessIssue]
    return code, texts[0], texts[1]


def too_wide(text: str, width: int) -> list[str]:
    """The lines of a text that do not fit into a terminal, other than words of a command, which a shell must read."""
    lines = text.splitlines()
    typed = {k + 1 for k, line in enumerate(lines) if line.endswith(" \\")}  # behind a line that goes on
    return [
        line
        for k, line in enumerate(lines)
        if cells_wide(line) > width and not (k in typed and " " not in line.strip().removesuffix(" \\"))
    ]
