"""Which adapters there are to look at, and their tables: analysed once per process; tables are kept, never tensors."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from app.bounded import bounded
from app.limits import timed
from app.safe_markdown import one_line
from bora_analysis.adapters import Adapter, AdapterError, Trajectory, checkpoints, read_adapter
from bora_analysis.adapters.locate import CHECKPOINT, SUFFIXES, checkpoints_in, paths_read
from bora_analysis.analysis.tables import Tables, analyse, join
from bora_analysis.bundled import bundled_adapters, bundled_runs, data_folder
from bora_analysis.files.errors import BaseNeededError
from bora_analysis.files.keys import natural
from bora_analysis.style import shortened

T = TypeVar("T")
#: Tables beyond this are dropped, the least recently used first.
TABLE_BYTES = 256 << 20
#: The same for the rows of several adapters in one frame.
JOINED_BYTES = 128 << 20
#: The same for the checkpoints of runs, each by itself.
CHECKPOINT_BYTES = 64 << 20
#: Seconds for which a checkpoint that cannot be read may be one that is being written.
GROWING = 120.0
#: Analyses at a time. Each holds a few layers; a twentieth tab that waits is better than twenty at once.
ANALYSES = 2

#: Path of an adapter → the base model with which visitors wish to read it.
BASES: dict[Path, str] = {}

#: What is shown at first, where it is there: the methods at about the same budget.
USUAL = ("trained-lora-r8", "trained-melora-r8-n4", "trained-bora-r8-b8", "trained-bora-r8-b16")


@dataclass(frozen=True)
class Source:
    """An adapter that can be chosen. ``key`` tells it from the others; ``label`` is its name on the page and in tables.

    ``origin`` is ``"bundled"``, ``"given"`` on the command line, ``"path"`` or ``"hub"`` typed by a visitor, or
    ``"upload"``.
    """

    key: str
    label: str
    path: Path
    origin: str

    @property
    def word(self) -> str:
        """The key without its origin: what stands in a link."""
        return self.key.partition(":")[2]


class TableStore:
    """Tables by file, time stamp and label, shared by all sessions of the process and bounded in bytes.

    Nothing is pickled: every session reads the same frames, which nobody changes. An adapter that cannot be read is
    kept as its error, or one with NaN in its last layer would be analysed again with each click.
    """

    def __init__(self, limit: int = TABLE_BYTES):
        self.kept = bounded(limit, _bytes, table_key)(self._made)
        self.turns = threading.Semaphore(ANALYSES)

    def get(self, source: Source, on_module: Callable[[int, int], None] | None = None) -> Tables:
        """The tables of a source, or the AdapterError of the reader with the label in place of the path.

        ``on_module(done, total)`` is called with the progress of an analysis.
        """
        try:
            check(source)
            found = self.kept(source, on_module)
            if isinstance(found, AdapterError):
                raise type(found)(str(found))
        except AdapterError:
            before = self.before(source)
            if before is None:
                raise
            return before
        return found

    def has(self, source: Source) -> bool:
        """Whether ``get`` would return at once."""
        return table_key(source) in self.kept.cache

    def before(self, source: Source) -> Tables | None:
        """What was shown of a run that grows before its files changed; None of any other source."""
        if not is_growing(source.path):
            return None
        with self.kept.cache_lock:
            kept = [found for key, found in self.kept.cache.items() if key[::2] == (str(source.path), source.label)]
        return next((found for found in reversed(kept) if isinstance(found, Tables)), None)

    def drop(self, source: Source) -> None:
        """Forget the tables of a source."""
        with self.kept.cache_lock:
            for key in [key for key in self.kept.cache if key[0] == str(source.path)]:
                del self.kept.cache[key]

    def _made(self, source: Source, on_module: Callable[[int, int], None] | None) -> Tables | AdapterError:
        try:
            with self.turns:
                return _analyse(source, timed(source.label, on_module))
        except MemoryError:
            return AdapterError(f"{source.label}: needs more memory than this server has left")
        except RecursionError:  # JSON of ten thousand brackets
            return AdapterError(f"{source.label}: its configuration is nested too deeply")
        except (AdapterError, OSError) as error:
            kind = BaseNeededError if isinstance(error, BaseNeededError) else AdapterError
            return kind(told(source, error))


@cache
def table_store() -> TableStore:
    """The store of this process."""
    return TableStore()


def joined(tables: Sequence[Tables]) -> Tables:
    """The rows of several analyses; the same choice in another tab, or after a click, has the same frames."""
    return tables[0] if len(tables) == 1 else _joined(tables)


@cache
def arguments() -> argparse.Namespace:
    """What ``bora-analysis dashboard`` (or ``streamlit run app/streamlit_app.py --``) was given."""
    parser = argparse.ArgumentParser(prog="dashboard", add_help=False)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--root", action="append", type=Path)
    parser.add_argument("--base")
    parser.add_argument("--fleet")
    parser.add_argument("--public", action="store_true")
    program, *words = sys.argv
    if Path(program).name == "server.py" and "--" in words:  # before Streamlit has taken its own away
        ours = words[words.index("--") + 1 :]
    else:  # under another program (a test runner) the arguments are that program's
        ours = words if Path(program).name == "streamlit_app.py" else []
    known, _ = parser.parse_known_args(ours)
    known.root = [root.resolve() for root in known.root or ([] if known.public else [Path.cwd()])]
    known.hub = not known.public
    return known


@cache
def bundled() -> list[Source]:
    """The adapters that come with the toolkit: trained, those of the second task after the first, then synthetic."""
    found = _readable(bundled_adapters())
    return sorted(
        found, key=lambda one: (not one.label.startswith("trained-"), one.label.startswith("trained-rating-"))
    )


@cache
def runs() -> list[Source]:
    """The training runs that come with the toolkit, each a folder of checkpoints."""
    return _readable(bundled_runs())


def usual() -> list[Source]:
    """Those of the bundled adapters that a visitor sees first."""
    known = {source.label: source for source in bundled()}
    return [known[name] for name in USUAL if name in known] or [
        source for name, source in known.items() if name.startswith("synthetic-")
    ]


def _readable(folders: Iterable[Path]) -> list[Source]:
    """The bundled ones that can be read, some with ``--base`` alone, in natural order."""
    found = []
    for folder in folders:
        name = folder.relative_to(data_folder()).as_posix()
        with suppress(AdapterError):
            read(folder)
            found.append(Source(f"bundled:{name}", name, folder, "bundled"))
    return sorted(found, key=lambda source: natural(source.label))


def read(path: Path) -> Adapter | Trajectory:
    """The adapter at a path, with the base model of its own or that the operator named, for methods that need one."""
    return read_adapter(path, base=BASES.get(path) or arguments().base)


def given() -> list[Source]:
    """The adapters on the command line; the operator may name any path, or a Hub id."""
    found = {}
    for path in arguments().paths:
        place = path.resolve() if path.exists() else path
        found[f"given:{place}"] = Source(f"given:{place}", title(place), place, "given")
    return list(found.values())


def place_within_roots(text: str) -> tuple[Path, str]:
    """A path typed by a visitor, links followed, if it lies within a root, and the word of it in a link."""
    roots, shown = arguments().root, one_line(text, 200)
    opened = ", ".join(map(str, roots))
    try:
        inside = [place for root in roots if _within(place := (root / text.strip()).resolve(), roots)]
        place = next((place for place in inside if place.exists()), None)
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links, a null byte
        raise AdapterError(f"{shown}: is not a path ({type(error).__name__})") from None
    if not roots:
        raise AdapterError(f"{shown}: this server opens no paths; upload the adapter")
    if not inside:
        raise AdapterError(f"{shown}: lies outside {opened}; this server opens nothing else (--root)")
    if place is None:
        raise AdapterError(f"{shown}: no such file or folder in {opened}")
    # As short as it can be and still lead here, whichever root it was found by.
    return place, str(place.relative_to(roots[0])) if place.is_relative_to(roots[0]) else str(place)


def within_roots(text: str) -> Source:
    """An adapter's path typed by a visitor, if it and what is read there lie within a root; or AdapterError."""
    place, word = place_within_roots(text)
    source = Source(f"path:{word}", title(place), place, "path")
    check(source)
    return source


def check(source: Source) -> None:
    """Raise :class:`AdapterError` if reading a visitor's path would look into anything outside of the roots."""
    if source.origin != "path":
        return
    try:
        within(paths_read(source.path), source.label)
    except (AdapterError, OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise AdapterError(told(source, error)) from None


def within(places: Iterable[Path], label: str) -> None:
    """Raise :class:`AdapterError` if one of the files or folders lies outside of the roots, links followed."""
    for place in places:
        if not _within(place.resolve(), arguments().root):
            raise AdapterError(f"{label}: {place.name} leads out of the folders that this server opens")
        if not (place.is_file() or place.is_dir()):
            raise AdapterError(f"{label}: {place.name} is not a regular file")


def title(place: Path) -> str:
    """A path's name on the page: of a folder, or of a file its own, with the folder where that says nothing."""
    name = place.stem if place.suffix in SUFFIXES else place.name
    if name == "adapter_model":
        place, name = place.parent, place.parent.name
    if CHECKPOINT.fullmatch(name):
        name = f"{place.parent.name}/{name}"
    return shortened([one_line(name)], 60)[0] or "adapter"


def named_apart(fixed: Iterable[Source], added: Iterable[Source]) -> dict[str, Source]:
    """Sources by key, with labels of their own: tables and links know an adapter by its label alone.

    Of the fixed ones those of one name all get as much of their path as tells them apart. Added ones come later, and
    a label that is in use, perhaps in a link, must not change: only the new one is qualified.
    """
    places: dict[Path, Source] = {}
    for source in fixed:  # an adapter that is given and bundled is one adapter
        places.setdefault(source.path, source)
    counts = Counter(source.label for source in places.values())
    # What comes with the toolkit keeps its name, which the documentation uses.
    kept = {key for key in places if counts[places[key].label] == 1 or places[key].origin == "bundled"}
    taken = {places[key].label for key in kept}
    out = {source.key: source if key in kept else _apart(source, taken) for key, source in places.items()}
    for source in added:
        if source.key not in out and source.path not in places:
            out[source.key] = _apart(source, taken) if source.label in taken else source
            taken.add(out[source.key].label)
    return out


def shielded(source: Source, work: Callable[..., T]) -> Callable[..., T]:
    """The work on a source's files, whose AdapterErrors have the label in place of the path."""

    def shown(*given: Any) -> T:
        try:
            return work(*given)
        except (AdapterError, OSError) as error:
            raise AdapterError(told(source, error)) from None

    return shown


def told(source: Source, error: Exception) -> str:
    """An error's line, without options of the command line where a page has a field for them.

    Where a visitor's adapter lies on this machine is not the visitor's business.
    """
    words = error.need if isinstance(error, BaseNeededError) else str(error)
    if source.origin not in ("path", "upload"):
        return words
    return words.replace(str(source.path), source.label).replace(f"{source.path.parent}{os.sep}", "")


def _within(path: Path, roots: Iterable[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _apart(source: Source, taken: set[str]) -> Source:
    parts = [] if source.origin == "upload" else list(source.path.parts)
    candidates = [one_line("/".join(parts[-depth:])) for depth in range(2, len(parts) + 1)]
    candidates += [f"{source.label} ({number})" for number in range(2, len(taken) + 3)]
    label = next(name for name in candidates if name not in taken)
    taken.add(label)
    return replace(source, label=label)


def _analyse(source: Source, on_module: Callable[[int, int], None] | None) -> Tables:
    adapters = [replace(adapter, name=source.label) for adapter in checkpoints(read(source.path))]
    total, done = sum(map(len, adapters)), count(1)

    def told() -> None:
        if on_module is not None:
            on_module(next(done), total)

    if len(adapters) == 1:
        return analyse(adapters[0], on_module=told)
    return join([_checkpoint(adapter, told) for adapter in adapters])


def is_growing(path: Path) -> bool:
    """Whether a run's last checkpoint is so new that it may not be whole yet."""
    try:
        steps = list(checkpoints_in(path)) if path.is_dir() else []
        return bool(steps) and time.time() - steps[-1].stat().st_mtime < GROWING
    except (AdapterError, OSError):
        return False


def stamp(path: Path) -> int:
    """Changes when a file of the adapter does, so that an analysis is not shown after its file was replaced."""
    marks: list[Any] = [BASES.get(path)]
    try:
        for place in paths_read(path) if path.exists() else ():
            about = place.stat()
            marks.append((str(place), about.st_mtime_ns, about.st_size))
    except (AdapterError, OSError) as error:  # the reader will say so
        marks.append(str(error))
    return hash(tuple(marks))


def table_key(source: Source, _: object = None) -> tuple[str, int, str]:
    """Changes when a source's files do."""
    return str(source.path), stamp(source.path), source.label


def _bytes(tables: Tables | AdapterError) -> int:
    if isinstance(tables, AdapterError):
        return len(str(tables))
    return int(tables.spectra.memory_usage(deep=True).sum() + tables.layer_metrics.memory_usage(deep=True).sum())


_joined = bounded(JOINED_BYTES, _bytes, tuple)(join)


@bounded(CHECKPOINT_BYTES, _bytes, lambda adapter, _: (str(adapter.path), stamp(adapter.path), adapter.name))
def _checkpoint(adapter: Adapter, on_module: Callable[[], object]) -> Tables:
    """The tables of one checkpoint: a run that grows is not analysed from its beginning again."""
    return analyse(adapter, on_module=on_module)
