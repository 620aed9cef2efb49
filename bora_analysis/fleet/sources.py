"""Which adapters a sweep is about: paths, globs, lists, Hub ids and URLs → items, one per adapter.

Folders are searched to the bottom. In a folder, files with an adapter's usual names are one adapter, named by the
folder; other weight files (a collection of kohya's, say) are one adapter each, shards of one together. Checkpoints
beside a final adapter are passed over, and so are whole models, as in :func:`bora_analysis.read_adapter`.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..adapters import AdapterError
from ..adapters.locate import (
    CHECKPOINT,
    HUB_ID,
    NOT_WEIGHTS,
    STEP_FILE,
    SUFFIXES,
    WEIGHT_NAMES,
    homes,
    named,
    whole_name,
)
from ..files.base_model import names_a_model
from ..files.configuration import CONFIG_NAME as ADAPTER_CONFIG
from ..files.configuration import CONFIGURATIONS
from ..files.errors import readable
from ..files.keys import natural
from ..files.tensors import DISTCP_INDEX
from .stamps import Seen, local, remote, stamp
from .storage import is_url, opened
from .tasks import HUB, PATH, URL, Item

_LISTS = (".txt", ".csv")
#: Headings of a CSV file's column of sources; without any of them it is the first column.
_HEADINGS = ("source", "path", "id", "url", "adapter")


@dataclass
class Found:
    """What :func:`find` found: the adapters in it, sources that gave none with the reason, whole models passed over."""

    items: dict[str, Item] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    models: int = 0


class _Folder(NamedTuple):
    """A folder as it is listed, of a file system or a store."""

    path: str
    files: dict[str, Callable[[], Seen]]
    folders: list[str]  # their names


class _Unit(NamedTuple):
    """An adapter in a folder: the weight file that is read, empty for the folder itself, and its files."""

    name: str
    files: list[str]
    whole: bool = False


class _Owners(NamedTuple):
    """A folder's files, which adapter each is of, and the settings of one that is of none."""

    files: dict[str, Callable[[], Seen]]
    units: dict[str, _Unit]
    settings: list[str]


def find(sources: Iterable[str | os.PathLike[str]], *, steps: bool = False, whole: bool = False) -> Found:
    """The adapters of all sources, each once, in the order in which they are found.

    Parameters
    ----------
    sources : paths of weight files and of folders, patterns such as ``runs/**/final``, lists (``.txt``, one source a
        line; ``.csv``, a column ``source``, ``path``, ``id``, ``url`` or ``adapter``, or the first), Hub ids
        ``org/name`` and ``org/name@revision``, URLs that fsspec knows. What a list names is relative to the current
        folder, as on the command line.
    steps : checkpoints in place of the final adapter beside them.
    whole : folders with a whole model too, whose update is its difference to a base model.
    """
    search = _Search(steps, whole)
    for source in sources:
        search.add(os.fspath(source))
    return search.found


class _Search:
    def __init__(self, steps: bool, whole: bool):
        self.steps, self.whole = steps, whole
        self.found = Found()
        self.links: set[str] = set()  # where links to folders led
        self.root = ""  # the folder that is searched
        self.owners: dict[str, _Owners] = {}  # of folders whose files are named one by one

    def add(self, source: str) -> None:
        for each in spread(source):
            try:
                if each.error is not None:
                    raise each.error
                for item in self._of(each):
                    self.found.items.setdefault(item.id, item)
            except AdapterError as error:
                self.found.errors.append(str(error))

    def _of(self, source: Source) -> Iterator[Item]:
        text = source.text
        if is_url(text):
            yield from self._of_url(text)
        elif Path(text).exists():
            yield from self._of_path(named(Path(text)), expected=not source.fits)
        elif hit := HUB_ID.fullmatch(text):
            fixed = re.fullmatch(r"[0-9a-f]{40}", hit["revision"] or "")  # a commit never changes
            yield Item(text, HUB, text, stamp=text if fixed else "")
        else:
            raise AdapterError(f"{text}: no such file or folder")

    def _of_path(self, place: Path, *, expected: bool = True) -> Iterator[Item]:
        only = place.name if place.is_file() else None
        top = str(place if only is None else place.parent)
        self.root = os.path.realpath(top)
        models, told = self.found.models, len(self.found.errors)
        count = yield from self._items(self._local, top, only, PATH, os.sep)
        if not count and expected and (models, told) == (self.found.models, len(self.found.errors)):
            homes(place, self.steps)  # says what is there instead
            yield Item(readable(str(place)), PATH, str(place))

    def _of_url(self, text: str) -> Iterator[Item]:
        files, path = opened(text)
        try:
            tops = sorted(files.glob(path), key=natural) if glob.has_magic(path) else [path]
            for top in tops:
                yield from self._of_store(files, top.rstrip("/"))
        except Exception as error:  # the errors of stores share no base class
            if isinstance(error, AdapterError):
                raise
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise AdapterError(f"{text}: cannot be listed: {reason}") from None
        if not tops:
            raise AdapterError(f"{text}: fits no path")

    def _of_store(self, files: Any, top: str) -> Iterator[Item]:
        url = files.unstrip_protocol
        above, _, name = top.rpartition("/")
        known = self.owners.get(url(above))
        only = name if above and ((known is not None and name in known.files) or files.isfile(top)) else None
        root = top if only is None else above
        there: dict[str, _Folder] = defaultdict(lambda: _Folder("", {}, []))
        listed_before = only is not None and known is not None
        listing = {} if listed_before else files.find(root, maxdepth=None if only is None else 1, detail=True)
        for path, info in listing.items():
            folder, _, name = path.rpartition("/")
            there[folder].files[name] = lambda info=info: remote(info)
            while folder != root and folder.startswith(f"{root}/"):
                above, _, name = folder.rpartition("/")
                if name in there[above].folders:
                    break
                there[above].folders.append(name)
                folder = above

        def read(folder: str) -> _Folder:
            return there[folder]._replace(path=folder)

        count = yield from self._items(read, root, only, URL, "/", url)
        if not count and not self.found.models:
            raise AdapterError(f"{url(top)}: holds no adapter; expected weights such as {WEIGHT_NAMES[0]}")

    def _items(
        self,
        read: Callable[[str], _Folder],
        top: str,
        only: str | None,
        kind: str,
        mark: str,
        written: Callable[[str], str] = str,
    ) -> Generator[Item, None, int]:
        """The adapters in a folder and below, or the one of a file there; their number when all are told."""
        count = 0
        units = self._units(read, top, mark) if only is None else self._owner(read, top, only, written(top))
        for count, (folder, unit, seen) in enumerate(units, 1):  # noqa: B007
            inside = f"{folder.rstrip(mark)}{mark}"
            path = written(f"{inside}{unit.name}" if unit.name else folder)
            yield _item(path, kind, path, [f"{inside}{name}" for name in unit.files], seen, unit.whole)
        return count

    def _owner(
        self, read: Callable[[str], _Folder], top: str, name: str, key: str
    ) -> Iterator[tuple[str, _Unit, dict[str, Seen]]]:
        """The adapter that a file belongs to; its folder is listed once, however many of its files are named."""
        if key not in self.owners:
            folder = read(top)
            units: dict[str, _Unit] = {}
            for unit in _units_in(folder.files, folder.folders, self.steps):
                for each in unit.files:
                    units.setdefault(each, unit)
            self.owners[key] = _Owners(folder.files, units, _settings_in(folder.files))
        owners = self.owners[key]
        files = owners.units[name].files if name in owners.units else [name, *owners.settings]
        seen = self._seen(top, _Unit(name, files), owners.files)
        if seen is not None:
            yield top, _Unit(name, files), seen

    def _units(
        self, read: Callable[[str], _Folder], top: str, mark: str
    ) -> Iterator[tuple[str, _Unit, dict[str, Seen]]]:
        """The adapters in a folder and below. What cannot be looked at below is an error beside the others."""
        folder = read(top)
        units = _units_in(folder.files, folder.folders, self.steps)
        runs = [name for name in folder.folders if CHECKPOINT.fullmatch(name)]
        final = bool(units) and not (self.steps and runs)
        for unit in units if final else ():
            if unit.whole and not self.whole:
                self.found.models += 1
            elif (seen := self._seen(top, unit, folder.files)) is not None:
                yield top, unit, seen
        within: list[tuple[str, _Unit, dict[str, Seen]]] = []
        for name in sorted(folder.folders, key=natural):
            if final and name in runs:
                continue
            found = self._below(read, f"{top.rstrip(mark)}{mark}{name}", mark)
            if units or not CHECKPOINT.fullmatch(top.rsplit(mark, 1)[-1]):
                yield from found
            elif not name.startswith("optimizer"):
                within += found
        if len(within) == 1 and not within[0][1].name:  # PEFT's adapter with a name, or FSDP's shards, in a checkpoint
            ((inner, unit, seen),) = within
            files = {f"{inner[len(top) + 1 :]}{mark}{name}": each for name, each in seen.items()}
            yield top, _Unit("", list(files), unit.whole), files
        else:
            yield from within

    def _below(
        self, read: Callable[[str], _Folder], top: str, mark: str
    ) -> Iterator[tuple[str, _Unit, dict[str, Seen]]]:
        try:
            yield from self._units(read, top, mark)
        except AdapterError as error:
            self.found.errors.append(str(error))

    def _seen(self, top: str, unit: _Unit, files: Mapping[str, Callable[[], Seen]]) -> dict[str, Seen] | None:
        """A look at each of an adapter's files; None, and an error told, where one went away since it was listed."""
        try:
            return {name: files[name]() for name in unit.files}
        except OSError as error:
            self.found.errors.append(f"{error.filename or top}: cannot be opened: {error.strerror or error}")
            return None

    def _local(self, path: str) -> _Folder:
        files: dict[str, Callable[[], Seen]] = {}
        folders = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if _leads(entry, "is_dir"):
                        if not entry.is_symlink() or self._is_new(entry.path):
                            folders.append(entry.name)
                    elif _leads(entry, "is_file"):
                        files[entry.name] = lambda path=entry.path: local(os.stat(path))  # noqa: PTH116
        except OSError as error:
            raise AdapterError(f"{path}: cannot be opened: {error.strerror or error}") from None
        return _Folder(path, files, folders)

    def _is_new(self, link: str) -> bool:
        """Whether nothing else leads to the same folder: no other link, and no way without links.

        So each adapter is found once, by its own path, and links cannot make a circle.
        """
        target = os.path.realpath(link)
        inside = f"{target}{os.sep}".startswith(f"{self.root.rstrip(os.sep)}{os.sep}")
        above = f"{self.root}{os.sep}".startswith(f"{target.rstrip(os.sep)}{os.sep}")
        new = not inside and not above and target not in self.links
        self.links.add(target)
        return new


class Source(NamedTuple):
    """What a list or a pattern stands for, or a source that is neither.

    Attributes
    ----------
    text : a path, a Hub id or a URL.
    fits : whether it only fits a pattern, so that it may hold no adapter.
    error : why the text stands for nothing.
    """

    text: str
    fits: bool = False
    error: AdapterError | None = None


def spread(text: str, within: tuple[str, ...] = ()) -> Iterator[Source]:
    """The lines of a list, the folders and weight files that fit a pattern; anything else as it is.

    Parameters
    ----------
    within : the lists in which it is named.
    """
    place = Path(text)
    try:
        if is_url(text):
            yield Source(text)
        elif place.exists():
            if place.suffix not in _LISTS or not place.is_file():
                yield Source(text)
                return
            here = os.path.realpath(place)
            if here in within:
                raise AdapterError(f"{text}: a list that names itself")
            for line in listed(place):
                yield from spread(line, (*within, here))
        elif glob.has_magic(text):
            hits = sorted(glob.glob(text, recursive=True), key=natural)  # noqa: PTH207  absolute patterns too
            if not hits:
                raise AdapterError(f"{text}: fits no path")
            yield from (Source(hit, True) for hit in hits if Path(hit).is_dir() or Path(hit).suffix in SUFFIXES)
        else:
            yield Source(text)
    except AdapterError as error:
        yield Source(text, error=error)
    except (OSError, ValueError) as error:
        yield Source(text, error=AdapterError(f"{text}: is no path: {error}"))


def listed(place: Path) -> list[str]:
    """The sources in a list: lines of a text that are neither empty nor comments (#), a column of a CSV file."""
    try:
        with place.open(encoding="utf-8-sig", newline="") as handle:
            if place.suffix == ".csv":
                rows = [row for row in csv.reader(handle) if row]
                heads = [name.strip().lower() for name in rows[0]] if rows else []
                column = next((heads.index(name) for name in _HEADINGS if name in heads), None)
                lines = [row[column or 0] for row in rows[column is not None :] if len(row) > (column or 0)]
            else:
                lines = [line for line in handle.read().splitlines() if not line.lstrip().startswith("#")]
    except (OSError, ValueError, csv.Error) as error:
        raise AdapterError(f"{place}: cannot be read as a list of adapters: {error}") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise AdapterError(f"{place}: lists no adapters")
    return found


def _item(id: str, kind: str, place: str, files: list[str], seen: dict[str, Seen], whole: bool) -> Item:
    id = readable(id)
    mark = stamp(zip(files, seen.values(), strict=True))
    return Item(id, kind, place, tuple(files), sum(each.size for each in seen.values()), mark, whole)


def _units_in(names: Collection[str], folders: Collection[str], steps: bool) -> list[_Unit]:
    """The adapters among a folder's files, as :mod:`bora_analysis.adapters.locate` would find them by their names."""
    weights = [name for name in names if _suffix(name) in SUFFIXES and not NOT_WEIGHTS.fullmatch(name)]
    settings = _settings_in(names)
    if not weights:
        torn = ADAPTER_CONFIG in names and not any(CHECKPOINT.fullmatch(name) for name in folders)
        return [_Unit("", settings)] if torn else []
    earlier = sorted((name for name in weights if STEP_FILE.fullmatch(name)), key=natural)
    last = {name: whole_name(name) for name in sorted(weights) if name not in earlier}
    if earlier and (steps or not last):
        return [_Unit(name, [name, *settings]) for name in earlier]
    if DISTCP_INDEX in names or any(whole in WEIGHT_NAMES for whole in last.values()):
        return [_Unit("", [*last, *settings])]
    if names_a_model(names):
        return [_Unit("", [*last, *settings], whole=True)]
    stems: dict[str, list[str]] = defaultdict(list)
    for name, whole in last.items():
        stems[whole.removesuffix(_suffix(whole))].append(name)
    # Of several formats one, and of several shards.
    firsts = {min(group, key=lambda name: (SUFFIXES.index(_suffix(name)), name)): group for group in stems.values()}
    return [_Unit(first, [*group, *settings]) for first, group in firsts.items()]


def _settings_in(names: Collection[str]) -> list[str]:
    return [name for name in names if name in CONFIGURATIONS or name == DISTCP_INDEX or name.endswith(".index.json")]


def _leads(entry: os.DirEntry[str], ask: str) -> bool:
    """Whether it is a folder, or a file, or a link to one; a link that leads to itself is neither."""
    try:
        return getattr(entry, ask)()
    except OSError:
        return False


def _suffix(name: str) -> str:
    return f".{name.rpartition('.')[2]}"
