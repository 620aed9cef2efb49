"""Adapters that a page writes for its visitor: the command line's files, in a zip that the server keeps for a while."""

from __future__ import annotations

import atexit
import re
import shutil
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import streamlit as st

from app.explain import asked_for, take_back
from app.jobs import Told, aside
from app.safe_markdown import markdown
from app.uploads import UPLOAD_MB
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis.conversion import Conversion
from bora_analysis.files.configuration import CONFIG_NAME

#: Bytes of the weights of one, at most: what is written could be uploaded again.
WRITTEN_BYTES = UPLOAD_MB * 1_000_000
#: Zips that one server process keeps; the oldest goes when another comes.
KEPT = 8
#: Types of the factors, and their bytes.
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, eq=False)
class Written:
    """A zip, and what is told of it.

    Attributes
    ----------
    place : the zip; gone when others have taken its room.
    name : under which it is downloaded.
    table : of the conversion: one row per module.
    config : the text of the configuration in it.
    left_behind : what the adapter holds beside ΔW and the zip does not.
    """

    place: Path
    name: str
    table: Any
    config: str
    left_behind: tuple[str, ...]


@dataclass
class Shelf:
    """The last zips that this process wrote, in a private folder that is removed when it ends."""

    kept: int = KEPT
    zips: OrderedDict[Path, None] = field(default_factory=OrderedDict)
    guard: threading.Lock = field(default_factory=threading.Lock)
    home: TemporaryDirectory[str] = field(default_factory=lambda: TemporaryDirectory(prefix="bora-analysis-written-"))

    def write(self, name: str, writing: Callable[[Path], Conversion]) -> Written:
        """The zip of the folder that the function writes; AdapterError without the place where that lies."""
        with TemporaryDirectory(dir=self.home.name) as folder:
            target = Path(folder) / name
            try:
                done = writing(target)
            except (AdapterError, OSError) as error:
                raise AdapterError(str(error).replace(str(target), name)) from None
            place = Path(self.home.name) / f"{Path(folder).name}.zip"
            try:
                with zipfile.ZipFile(place, "x", zipfile.ZIP_STORED) as archive:
                    for file in sorted(target.iterdir()):
                        # With the time of zip's beginning, so that the same adapter is the same zip.
                        entry = zipfile.ZipInfo(f"{name}/{file.name}")
                        with file.open("rb") as content, archive.open(entry, "w") as out:
                            shutil.copyfileobj(content, out, 1 << 20)
            except BaseException:
                place.unlink(missing_ok=True)
                raise
            config = target / CONFIG_NAME
            told = config.read_text(encoding="utf-8") if config.exists() else ""
        with self.guard:
            self.zips[place] = None
            gone = [self.zips.popitem(last=False)[0] for _ in range(len(self.zips) - self.kept)]
        for old in gone:
            old.unlink(missing_ok=True)
        return Written(place, f"{name}.zip", done.table, told, done.left_behind)


@cache
def shelf() -> Shelf:
    """The shelf of this process."""
    made = Shelf()
    atexit.register(made.home.cleanup)
    return made


def file_name(text: str) -> str:
    """A name for a folder and a download, from any text.

    >>> file_name("runs/my lora <b>, 99 %"), file_name("…")
    ('runs-my-lora-b-99', 'adapter')
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:80].strip("-.") or "adapter"


def bytes_of(size: int) -> str:
    """A size as people say it.

    >>> bytes_of(1_234_567), bytes_of(999)
    ('1.23 MB', '0.999 kB')
    """
    return f"{size / 1e6:,.2f} MB" if size >= 1e6 else f"{size / 1e3:.3g} kB"


def offer_written(
    stem: str, key: Hashable, name: str, size: int, writing: Callable[[Path, Told], Conversion]
) -> Written | None:
    """A button that writes an adapter beside the page, and then one that downloads it; what was written, or None.

    Parameters
    ----------
    stem : of the widgets, once in the pages.
    key : what the adapter depends on: for another one it is written anew.
    name : of the folder in the zip.
    size : bytes of the weights.
    writing : writes the folder, and tells its progress.
    """
    if size > WRITTEN_BYTES:
        st.caption(f"{bytes_of(size)}: this page writes up to {UPLOAD_MB} MB. The command line has no such limit.")
        return None
    words = f"About {bytes_of(size)}. This server keeps the last {KEPT} until it stops."
    if not asked_for(stem, key, "Write it", ":material/save:", words):
        return None
    found = aside(stem, key, lambda told: shelf().write(name, lambda folder: writing(folder, told)), markdown(name))
    if found is None:
        return None
    if not found.place.exists():
        take_back(stem)
        st.session_state["_jobs"][stem] = None
        st.rerun()
    st.download_button(
        f"Download {markdown(found.name)}",
        lambda: found.place.open("rb"),
        found.name,
        "application/zip",
        key=f"download:{stem}:zip",
        on_click="ignore",
        icon=":material/download:",
        type="primary",
    )
    if found.left_behind:
        st.caption(f"{len(found.left_behind):,} tensors beside ΔW are left out.")
    return found
