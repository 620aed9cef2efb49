"""What the site has beside the pages: files from elsewhere in the repository, and the pages that are made of code.

A link on a page is that of the repository, so that it works on a page read there too; here it becomes the site's.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import api
import commands
import gallery
import live
import tutorial
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
#: Pages of the site that stand elsewhere, by their path in the repository.
ELSEWHERE = {
    "data/README.md": "experiment.md",
    "data/paper/README.md": "paper-tables.md",
    "contrib/peft/README.md": "peft.md",
    "contrib/recipes/README.md": "recipes.md",
    "docs/tutorial.ipynb": "tutorial.md",
}
#: What a mark on a page is replaced by.
MADE = {
    "commands": commands.reference,
    "python": api.main,
    "python-figures": api.figures,
    "python-training": api.training,
    "gallery": gallery.page,
}
_LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what stands elsewhere."""
    for source, name in ELSEWHERE.items():
        path = ROOT / source
        text = tutorial.page(path, live.PLACE) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    for picture in (ROOT / "app" / "screenshots").glob("*.png"):
        files.append(File.generated(config, f"images/{picture.name}", abs_src_path=str(picture)))
    for picture in gallery.drawn(ROOT / "out" / "gallery"):
        files.append(File.generated(config, f"gallery/{picture.name}", abs_src_path=str(picture)))
    style = Path(__file__).with_name("own.css").read_text(encoding="utf-8") + live.STYLE.read_text(encoding="utf-8")
    files.append(File.generated(config, "stylesheets/own.css", content=style))
    files.append(File.generated(config, "javascripts/live.js", content=live.script()))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Make what a mark stands for, and the repository's links the site's."""
    markdown = re.sub(r"<!-- made: (\S+) -->", lambda mark: MADE[mark[1]](), markdown)
    return rewritten(page.file.src_uri, {file.src_uri for file in files})(markdown)


def rewritten(page: str, names: set[str]) -> Callable[[str], str]:
    """How the links on a page of the site become the site's; ``names`` are its files."""
    source = next((own for own, name in ELSEWHERE.items() if name == page), f"docs/{page}")
    here, place = posixpath.dirname(source), posixpath.dirname(page) or "."

    def link(found: re.Match[str]) -> str:
        path, mark, anchor = found[3].partition("#")
        if not path or ":" in path:
            return found[0]
        target = posixpath.normpath(posixpath.join(here, path))
        name = ELSEWHERE.get(target) or target.removeprefix("docs/")
        if target.startswith("app/screenshots/"):
            name = f"images/{posixpath.basename(target)}"
        if name in names:
            return f"{found[1]}[{found[2]}]({posixpath.relpath(name, place)}{mark}{anchor})"
        # What is in the repository alone is named; what is nowhere is a broken link, which the build reports.
        return found[2] if (ROOT / target).exists() else found[0]

    def rewrite(text: str) -> str:
        parts = re.split(r"(```.*?```|(?<!\[)`[^`\n]*`)", text, flags=re.DOTALL)
        return "".join(part if part.startswith("`") else _LINK.sub(link, part) for part in parts)

    return rewrite


def on_post_build(*, config: MkDocsConfig) -> None:
    """No page may load anything from elsewhere: neither a reader's address nor a missing network matters."""
    loads = re.compile(
        r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?(https?:[^\"'\s>]*)|<link[^>]*rel=[\"']?stylesheet[^>]*https?:"
    )
    for page in Path(config.site_dir).rglob("*.html"):
        if found := loads.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.name} loads from elsewhere: {found[0]}")
