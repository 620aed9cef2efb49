"""Parts of this package's source text, and one class out of a base class and its heir."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Module:
    """The top-level statements of a file."""

    text: str

    @classmethod
    def read(cls, path: Path) -> Module:
        return cls(path.read_text())

    def nodes(self) -> list[ast.stmt]:
        return ast.parse(self.text).body

    def part(self, name: str) -> str:
        """The definition of a name, with its decorators and the comments above it."""
        for node in self.nodes():
            if name in bound(node):
                return statement(self.text, node)
        raise KeyError(f"no definition of {name}")

    def imports(self, used: str) -> list[str]:
        """The absolute imports of names that a text uses, one import for each name."""
        found = []
        for node in self.nodes():
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
                origin = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
                for alias in node.names:
                    name = alias.asname or alias.name.split(".")[0]
                    if re.search(rf"\b{name}\b", used) and origin != "from __future__ ":
                        found.append(f"{origin}import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
        return found


def bound(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def statement(text: str, node: ast.stmt) -> str:
    lines = text.splitlines()
    first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))]) - 1
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return "\n".join(lines[first : node.end_lineno])


def one_class(name: str, base: str, heir: str) -> str:
    """Base class and heir in one: the heir's docstring, both bodies, the heir's where both define a name."""
    texts = [textwrap.dedent(base), textwrap.dedent(heir)]
    old, new = (_class(text) for text in texts)
    _joined(old, new, texts)
    own = {bound_name for node in new.body for bound_name in bound(node)}
    parts = [statement(texts[0], node) for node in old.body[1:] if not own & set(bound(node))]
    parts += [statement(texts[1], node) for node in new.body[1:]]
    parents = ", ".join(ast.unparse(parent) for parent in old.bases)
    decorators = "".join(f"@{ast.unparse(item)}\n" for item in new.decorator_list)
    fields = [part for part in parts if not part.lstrip().startswith(("def ", "@"))]
    methods = [part for part in parts if part not in fields]
    first = statement(texts[1], new.body[0])
    return f"{decorators}class {name}({parents}):\n{first}\n\n" + "\n".join(fields) + "\n\n" + "\n\n".join(methods)


def _class(text: str) -> ast.ClassDef:
    node = ast.parse(text).body[-1]
    assert isinstance(node, ast.ClassDef)
    return node


def _joined(old: ast.ClassDef, new: ast.ClassDef, texts: list[str]) -> None:
    """The class that both make has to be the class that the heir was: the base is its only parent."""
    assert [ast.unparse(parent) for parent in new.bases] == [old.name], f"{new.name} has other parents than {old.name}"


def arguments(docstrings: Iterable[str]) -> str:
    """The lines ``name : text`` of the attributes in numpy's style as an ``Args:`` section in PEFT's."""
    lines = []
    for docstring in docstrings:
        section = re.search(r"Attributes\n-+\n(.*?)(\n\n|\Z)", inspect.cleandoc(docstring), re.DOTALL)
        assert section, "a docstring without attributes"
        for names, text in re.findall(r"^(\S[^:\n]*?) : (.*?)(?=^\S|\Z)", section[1] + "\n", re.DOTALL | re.MULTILINE):
            flat = " ".join(text.split())
            lines += textwrap.wrap(f"{names}: {flat}", 111, subsequent_indent="    ", break_on_hyphens=False)
    return "Args:\n" + textwrap.indent("\n".join(lines), "    ")
