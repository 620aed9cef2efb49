"""The docstrings for the site: Sphinx's roles become links or code, ``name : words`` a name and its description.

What numpydoc has after the colon is the type; here the types stand in the signatures, and the words say what it is.
"""

from __future__ import annotations

import re
from typing import Any

import api
import griffe

_NAMED = re.compile(r"^(\s*)([\w*][\w*, ]*) : (.+)$", re.MULTILINE)
_SECTIONS = re.compile(
    r"^\s*(Parameters|Other Parameters|Attributes)\n\s*-+\n(.*?)(?=\n\n\s*[A-Z]\w+\n\s*-{3,}|\Z)",
    re.MULTILINE | re.DOTALL,
)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`<]+?)`")


class Roles(griffe.Extension):
    """:func:`x` is a link where x is on these pages, else code."""

    def __init__(self) -> None:
        self.known = {**api.exported("figures"), **api.exported("peft_methods"), **api.exported("")}
        self.known = {name: path for name, path in self.known.items() if path != "bora_analysis.figures"}

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        """Called for everything that is read."""
        if obj.docstring is not None:
            obj.docstring.value = self.markdown(obj.docstring.value)

    def markdown(self, text: str) -> str:
        """A docstring as the site has it."""
        text = _SECTIONS.sub(lambda section: _NAMED.sub(r"\1\2 :\n\1    \3", section[0]), text)
        return _ROLE.sub(self.link, text)

    def link(self, found: re.Match[str]) -> str:
        """The Markdown of one role."""
        words = found[1].lstrip(".")
        path = self.known.get(words.rpartition(".")[2])
        if path is not None and words.removeprefix("bora_analysis.") in (
            path.rpartition(".")[2],
            path.removeprefix("bora_analysis."),
            *(f"{part}.{path.rpartition('.')[2]}" for part in path.split(".")),
        ):
            return f"[`{words}`][{path}]"
        return f"`{words}`"
