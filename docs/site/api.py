"""The Python reference: every public name, from the docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "bora_analysis"
#: What the names of ``bora_analysis`` do, by the part of the package that defines them; the others come last.
PARTS = {
    "adapters": "Read and write adapters",
    "analysis": "Analyse adapters",
    "training": "Measure what the task needs",
    "fleet": "Many adapters",
    "updates": "Updates from arrays",
}


def exported(module: str) -> dict[str, str]:
    """Public name → full path of what it names, of a package: what its ``__init__`` imports under its own name.

    >>> exported("")["read_adapter"]
    'bora_analysis.adapters.locate.read_adapter'
    """
    home = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    stub = home / "__init__.pyi"
    tree = ast.parse((stub if stub.exists() else home / "__init__.py").read_text(encoding="utf-8"))
    public = _public(tree)
    found = {}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        for name in node.names:
            own = name.asname or name.name
            if (public is None and name.asname) or (public is not None and own in public):
                found[own] = _resolved(module, node, name.name)
    for node in tree.body:
        own = getattr(node, "name", None) or ast.unparse(getattr(node, "target", node))
        if own in (public or ()):
            found[own] = ".".join(filter(None, ("bora_analysis", module, own)))
    return found


def _public(tree: ast.Module) -> set[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return None


def _resolved(module: str, node: ast.ImportFrom, name: str) -> str:
    parts = module.split(".") if module else []
    source = [*parts[: len(parts) - node.level + 1], *(node.module.split(".") if node.module else [])]
    if source and PACKAGE.joinpath(*source).is_dir():  # a package that imports it in its turn
        deeper = exported(".".join(source))
        if name in deeper:
            return deeper[name]
    return ".".join(["bora_analysis", *source, name])


def _entries(names: dict[str, str], prefix: str) -> list[str]:
    return [f"::: {path}\n    options:\n      heading: {prefix}.{name}\n" for name, path in names.items()]


def main() -> str:
    """The names of ``bora_analysis``, by what they do."""
    names = {name: path for name, path in exported("").items() if path != "bora_analysis.figures"}
    blocks = []
    for part, title in {**PARTS, "": "Settings"}.items():
        own = {name: path for name, path in names.items() if path.split(".")[1] == part or not part}
        blocks += [f"## {title}\n", *_entries(own, "bora_analysis")]
        names = {name: path for name, path in names.items() if name not in own}
    return "\n".join(blocks)


def figures() -> str:
    """The names of ``bora_analysis.figures``."""
    names = dict(sorted(exported("figures").items()))
    return "\n".join(_entries(names, "figures"))


def training() -> str:
    """The names of ``peft_methods``, ``training`` and ``notebook``, and how a method is registered."""
    blocks = []
    for module in ("peft_methods", "training"):
        blocks += [f"## bora_analysis.{module}\n", *_entries(exported(module), module)]
    blocks += ["## bora_analysis.notebook\n", *_entries(exported("notebook"), "notebook")]
    own = exported("catalogue")
    blocks += ["## bora_analysis.catalogue\n", *_entries({"register": own["register"]}, "catalogue")]
    return "\n".join(blocks)
