"""Adapters that visitors upload: taken out of a zip, or weights and configuration, into a private temporary folder.

A visitor's file is hostile until shown otherwise. Of a zip only the entries that an adapter consists of are unpacked,
to names that stand here and never to names from the zip, with a cap on the bytes that come out rather than on those
that the zip declares. Nothing is unpickled (:mod:`bora_analysis.adapters`).
"""

from __future__ import annotations

import atexit
import re
import secrets
import shutil
import stat
import threading
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any, BinaryIO

import streamlit as st

from app.limits import OWN, Rate, limits
from app.safe_markdown import markdown, one_line
from app.sources import Source, table_store
from bora_analysis.adapters import AdapterError, locate
from bora_analysis.adapters.locate import NOT_WEIGHTS
from bora_analysis.files.configuration import CONFIG_NAME
from bora_analysis.files.tensors import DISTCP
from bora_analysis.style import shortened

#: Limit of one uploaded file in MB; ``server.maxUploadSize`` in ``.streamlit/config.toml`` is the same.
UPLOAD_MB = OWN.upload_mb
#: What the used entries of one zip may come to, in bytes.
UNPACKED_BYTES = OWN.unpacked
#: Entries of one zip, used or not: some 200 checkpoints with all that a trainer leaves beside the weights.
ENTRIES = 2000
#: Adapters of one zip.
MEMBERS = 50
#: An adapter's configuration has a few kB; beyond this, in bytes, it is something else.
CONFIG_BYTES = 1 << 20

# A distributed checkpoint is a folder of files, which an upload is not.
SUFFIXES = tuple(suffix for suffix in locate.SUFFIXES if suffix != DISTCP)
_STEM = "adapter_model"
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})", re.ASCII)
_CHUNK = 1 << 16
# The one read that is longer than a chunk is that of the zip's directory: 46 bytes and a name for each entry.
_DIRECTORY_BYTES = 1 << 20


@dataclass
class UploadStore:
    """The uploads of this process, each in a folder of its own below a private temporary one.

    The oldest goes where they are more than ``kept``, by default what this server's limits say.
    """

    kept: int | None = None
    rate: Rate = field(default_factory=Rate)
    ends: dict[str, float] = field(default_factory=dict)  # token → when its time is over
    uploads: OrderedDict[str, list[Source]] = field(default_factory=OrderedDict)
    guard: threading.Lock = field(default_factory=threading.Lock)
    # Readable by this user alone, and removed when the process ends.
    home: TemporaryDirectory[str] = field(default_factory=lambda: TemporaryDirectory(prefix="bora-analysis-"))

    def add(self, files: Sequence[BinaryIO], address: str = "") -> list[Source]:
        """A zip or a folder of one adapter or several, or one weight file with or without its configuration.

        The oldest upload may go. After an AdapterError nothing of the upload is left.
        """
        most = limits().upload_mb << 20
        for file in files:  # the browser keeps to this; others may not
            if file.seek(0, 2) > most:
                raise AdapterError(f"{label(file.name)}: is larger than {limits().upload_mb} MB, the most that is read")
            file.seek(0)
        self.rate.count(address)
        token = secrets.token_urlsafe(9)
        folder = Path(self.home.name) / token
        folder.mkdir(mode=0o700)
        try:
            if _is_folder(files):
                named = take_folder(files, folder)
            else:
                named = unpack(files[0], folder) if _suffix(files[0]) == ".zip" else {"": _place(files, folder)}
            _check_archives(folder, files[0].name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        words = [f"{token}{inside and '.'}{inside}" for inside in named]
        added = [
            Source(f"upload:{word}", label(name), folder / inside, "upload")
            for word, (inside, name) in zip(words, named.items(), strict=True)
        ]
        minutes = limits().minutes
        kept = limits().kept if self.kept is None else self.kept
        with self.guard:
            self.uploads[token] = added
            if minutes is not None:
                self.ends[token] = time.monotonic() + 60 * minutes
            gone = list(self.uploads)[: max(0, len(self.uploads) - kept)]
        self.drop(gone)
        if minutes is not None:
            timer = threading.Timer(60 * minutes + 1, self.expire)
            timer.daemon = True
            timer.start()
        return added

    def find(self, word: str) -> Source:
        """The upload of that word; AdapterError if it is gone: a link to an upload lives as long as the upload."""
        self.expire()
        members = self.uploads.get(word.partition(".")[0], ())
        if source := next((each for each in members if each.word == word), None):
            return source
        raise AdapterError("The uploaded adapter of this link is no longer kept; upload it again")

    def expire(self) -> None:
        """Remove the uploads whose time is over."""
        now = time.monotonic()
        self.drop([token for token, end in list(self.ends.items()) if end <= now])

    def drop(self, tokens: Sequence[str]) -> None:
        """Remove uploads, their tables and their files."""
        for token in tokens:
            with self.guard:
                members = self.uploads.pop(token, [])
                self.ends.pop(token, None)
            for source in members:
                table_store().drop(source)
            shutil.rmtree(Path(self.home.name) / token, ignore_errors=True)


@cache
def upload_store() -> UploadStore:
    """The store of this process, gone when it ends."""
    store = UploadStore()
    atexit.register(store.home.cleanup)
    return store


def upload_box(folders: bool = False) -> tuple[list[Source], dict[str, str]]:
    """The uploader, of files or of a folder, and what was uploaded by it since the last run of the page.

    Errors are shown in place, while the uploader keeps its files. It is emptied where something was good: then what is
    wrong with the others, by their names, comes second.
    """
    # A number in the key: the next one is a new, empty uploader, and the bytes of the old one are let go.
    turns = "_folder_turn" if folders else "_upload_turn"
    turn, own = st.session_state.setdefault(turns, 0), limits()
    until = f"for {own.minutes:g} minutes" if own.minutes else "until it stops"
    files = st.file_uploader(
        "Drop a folder: of an adapter, a run, or several" if folders else "Drop files or zips",
        type=[*([] if folders else ["zip"]), *(suffix[1:] for suffix in SUFFIXES), "json"],
        accept_multiple_files="directory" if folders else True,
        key=f"{'folder' if folders else 'upload'}-{turn}",
        max_upload_size=own.upload_mb,
        help=f"A zip of PEFT folders (checkpoints too), or the weights and their {CONFIG_NAME}, up to {own.upload_mb} "
        f"MB per file and {own.unpacked >> 20:,} MB unpacked. This server keeps the last {own.kept} uploads {until}.",
    )
    if folders:
        groups = [list(files)] if files else []
        return _added(groups, turns)
    groups: list[list[Any]] = [[file] for file in files if _suffix(file) == ".zip"]
    loose = [file for file in files if _suffix(file) != ".zip"]
    if loose:
        configs = [file for file in loose if _suffix(file) == ".json"]
        if len(configs) == len(loose):
            st.caption(f"Add the weights: one file of {', '.join(SUFFIXES)}.")
        elif configs or st.button("Read without a configuration", help="α is then unknown; the scaling is taken as 1."):
            groups.append(loose)
        else:
            st.caption(f"Add their `{CONFIG_NAME}`, which holds α.")
    return _added(groups, turns)


def _added(groups: Sequence[Sequence[Any]], turns: str) -> tuple[list[Source], dict[str, str]]:
    added, refused = [], {}
    for group in groups:
        tried = "+".join(file.file_id for file in group)
        errors = st.session_state.setdefault("_upload_errors", {})
        if tried not in errors:  # a run of the page with a bad file still in the box unpacks nothing again
            try:
                with st.spinner("Unpacking …"):
                    added += upload_store().add(group, st.context.ip_address or "")
                continue
            except AdapterError as error:
                errors[tried] = str(error)
        st.error(markdown(errors[tried]), icon=":material/error:")
        refused[one_line(group[0].name, 60)] = errors[tried]
    if not added:
        return [], {}
    st.session_state[turns] += 1
    st.session_state.pop("_upload_errors", None)
    return added, refused


def unpack(file: BinaryIO, folder: Path) -> dict[str, str]:
    """Write the adapters in a zip to fixed names in ``folder``, and return where each lies in it, and its name.

    ``adapter_model`` with the weights' suffix and ``adapter_config.json``, at the top or in ``checkpoint-N``; of
    several adapters each in a folder ``0``, ``1`` …
    """
    name = label(file.name)
    try:
        with zipfile.ZipFile(_Guarded(file)) as archive:  # pyright: ignore[reportArgumentType]
            entries = archive.infolist()
            if len(entries) > ENTRIES:
                raise AdapterError(f"{name}: holds {len(entries)} entries; at most {ENTRIES} are read")
            return _written(file.name, _chosen(name, entries), folder, archive.open)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{name}: is not a complete zip file ({one_line(str(error), 80)}); zip it again") from None


def _is_folder(files: Sequence[BinaryIO]) -> bool:
    """Whether the browser sent a folder: then every name is a path within it. Other names are not to be trusted."""
    paths = [PurePosixPath(file.name) for file in files]
    inside = all(len(path.parts) > 1 and not path.is_absolute() and ".." not in path.parts for path in paths)
    return inside and not (len(files) == 1 and _suffix(files[0]) == ".zip")


def take_folder(files: Sequence[BinaryIO], folder: Path) -> dict[str, str]:
    """The same of a folder as the browser sends it: files whose names are paths."""
    top = PurePosixPath(files[0].name).parts[0]
    if len(files) > ENTRIES:
        raise AdapterError(f"{label(top)}: holds {len(files)} files; at most {ENTRIES} are read")
    entries = {}
    for file in files:
        entry = zipfile.ZipInfo(file.name)
        entry.file_size = file.seek(0, 2)
        file.seek(0)
        entries[entry.filename] = entry, file
    members = _chosen(label(top), [entry for entry, _ in entries.values()])
    return _written(top, members, folder, lambda entry: nullcontext(entries[entry.filename][1]))


def _written(
    name: str,
    members: Mapping[str, tuple[str, Mapping[str, zipfile.ZipInfo]]],
    folder: Path,
    opened: Callable[[zipfile.ZipInfo], AbstractContextManager[Any]],
) -> dict[str, str]:
    """Write the chosen entries to their targets; where each adapter lies, and its name."""
    left = _unpacked()
    for inside, (_, chosen) in members.items():
        for target, entry in sorted(chosen.items()):
            place = folder / inside / target
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            limit = min(left, CONFIG_BYTES) if place.name == CONFIG_NAME else left
            with opened(entry) as packed, place.open("xb") as out:
                left -= _copy(packed, out, limit, label(name), target)
    return {inside: own or name for inside, (own, _) in members.items()}


def label(name: str) -> str:
    """A name for the page from that of an uploaded file: plain text of at most 40 characters, no path, no suffix.

    >>> label("C:\\\\runs\\\\my <b>run</b>.zip")
    'b>'
    >>> label("my\\nrun-8.zip"), label("..")
    ('my run-8', 'upload')
    """
    last = one_line(name).replace("\\", "/").rpartition("/")[2].strip()
    stem, dot, suffix = last.rpartition(".")
    if dot and f".{suffix.lower()}" in (".zip", *SUFFIXES):
        last = stem
    return shortened([last.strip(". ")], 40)[0] or "upload"


def _chosen(name: str, entries: Sequence[zipfile.ZipInfo]) -> dict[str, tuple[str, dict[str, zipfile.ZipInfo]]]:
    """Folder → the adapter's own name and its entries by their targets, from the fixed names.

    One adapter has the folder "" and no name. AdapterError for anything but an honest zip of adapters.
    """
    weights: dict[PurePosixPath, list[zipfile.ZipInfo]] = {}
    configs: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for entry in entries:
        path = _path(entry)
        shown = one_line(entry.filename, 80)
        if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", entry.filename):
            raise AdapterError(f"{name}: its entry {shown} leads out of the folder; zip the adapter's folder again")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise AdapterError(f"{name}: its entry {shown} is a link or a device; zip the files themselves")
        if entry.is_dir() or "__MACOSX" in path.parts or path.name.startswith("."):
            continue
        if path.name == CONFIG_NAME:
            if configs.setdefault(path.parent, entry) is not entry:
                raise AdapterError(f"{name}: holds {shown} twice; expected one")
        elif path.suffix in SUFFIXES and not NOT_WEIGHTS.fullmatch(path.name):
            weights.setdefault(path.parent, []).append(entry)
        else:
            continue
        if entry.flag_bits & 1:
            raise AdapterError(f"{name}: its entry {shown} is encrypted; zip it without a password")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks these without a bound on the bytes that one read makes.
            raise AdapterError(f"{name}: its entry {shown} is packed by an unusual method; zip it with deflate")
    if not weights:
        raise AdapterError(f"{name}: holds no adapter; expected {_STEM}.safetensors or .bin, and {CONFIG_NAME}")
    homes: dict[PurePosixPath, list[PurePosixPath]] = {}
    for parent in weights:
        run = _CHECKPOINT.fullmatch(parent.name) is not None
        # Beside an adapter its checkpoints are left out, as the reader does with a folder.
        if not (run and parent.parent in weights):
            homes.setdefault(parent.parent if run else parent, []).append(parent)
    if len(homes) > MEMBERS:
        raise AdapterError(f"{name}: holds {len(homes)} adapters; at most {MEMBERS} are read")
    found = {home: _targets(name, used, weights, configs) for home, used in homes.items()}
    declared = sum(entry.file_size for chosen in found.values() for entry in chosen.values())
    if declared > _unpacked():
        raise AdapterError(f"{name}: unpacks to {declared:,} bytes; at most {_unpacked():,} are read")
    if len(found) == 1:
        return {"": ("", next(iter(found.values())))}
    return {str(k): (home.name or name, chosen) for k, (home, chosen) in enumerate(found.items())}


def _targets(
    name: str,
    used: Sequence[PurePosixPath],
    weights: Mapping[PurePosixPath, list[zipfile.ZipInfo]],
    configs: Mapping[PurePosixPath, zipfile.ZipInfo],
) -> dict[str, zipfile.ZipInfo]:
    """Of one adapter, whose weights lie in these folders: itself, or its checkpoints."""
    chosen: dict[str, zipfile.ZipInfo] = {}
    for parent in used:
        hit = _CHECKPOINT.fullmatch(parent.name)
        home = f"checkpoint-{int(hit[1])}/" if hit else ""
        entry = _the_weights(name, weights[parent])
        for target, found in ((home + _weights_name(entry.filename), entry), (home + CONFIG_NAME, configs.get(parent))):
            if target in chosen:
                raise AdapterError(f"{name}: holds {one_line(target)} twice; expected one")
            if found is not None:
                chosen[target] = found
    return chosen


def _the_weights(name: str, entries: list[zipfile.ZipInfo]) -> zipfile.ZipInfo:
    """PEFT's file, safetensors first, or the only one that could be: the reader's own rule."""
    for suffix in SUFFIXES[:3]:
        entries = [entry for entry in entries if _path(entry).name == _STEM + suffix] or entries
    if len(entries) > 1:
        raise AdapterError(f"{name}: holds {len(entries)} weight files in one folder; expected {_STEM}.safetensors")
    return entries[0]


def _place(files: Sequence[BinaryIO], folder: Path) -> str:
    """Write one weight file, and its configuration if given, to fixed names in ``folder``; return the weights' name."""
    configs = [file for file in files if _suffix(file) == ".json"]
    weights = [file for file in files if _suffix(file) in SUFFIXES]
    names = ", ".join(one_line(file.name, 60) for file in files)
    if len(weights) != 1 or len(configs) > 1 or len(weights) + len(configs) != len(files):
        raise AdapterError(f"{names}: expected a zip, or one weight file ({', '.join(SUFFIXES)}) and its {CONFIG_NAME}")
    chosen = [(weights[0], _weights_name(weights[0].name), _unpacked())]
    chosen += [(file, CONFIG_NAME, CONFIG_BYTES) for file in configs]
    for file, target, limit in chosen:
        file.seek(0)
        with (folder / target).open("xb") as out:
            _copy(file, out, limit, label(weights[0].name), target)
    return weights[0].name


def _copy(packed: Any, out: IO[bytes], limit: int, name: str, target: str) -> int:
    """Copy until the end, or until there is more than the limit: what a header declares is not believed."""
    done = 0
    while chunk := packed.read(_CHUNK):
        done += len(chunk)
        if done > limit:
            raise AdapterError(f"{name}: its {target} unpacks to more than {limit:,} bytes, the most that is read")
        out.write(chunk)
    return done


def _path(entry: zipfile.ZipInfo) -> PurePosixPath:
    return PurePosixPath(entry.filename.replace("\\", "/"))


def _check_archives(folder: Path, name: str) -> None:
    """Refuse a NumPy archive, itself a zip, whose arrays are too large; zipfile reads no more than it declares."""
    for path in filter(zipfile.is_zipfile, folder.rglob("*.npz")):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > UNPACKED_BYTES:
            raise AdapterError(f"{label(name)}: its arrays come to {size:,} bytes; at most {UNPACKED_BYTES:,} are read")


def _unpacked() -> int:
    return min(UNPACKED_BYTES, limits().unpacked)


def _weights_name(name: str) -> str:
    return _STEM + PurePosixPath(name).suffix.lower()


def _suffix(file: BinaryIO) -> str:
    return PurePosixPath(file.name).suffix.lower()


class _Guarded:
    """An uploaded file that gives no more than ``_DIRECTORY_BYTES`` at a time.

    zipfile reads the whole directory of a zip before anyone can count its entries: ten million of them, 460 MB, would
    become gigabytes of Python objects.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.seek, self.tell, self.seekable = file, file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(_DIRECTORY_BYTES + 1 if size < 0 else min(size, _DIRECTORY_BYTES + 1))
        if len(data) > _DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of entries is over {_DIRECTORY_BYTES:,} bytes")
        return data
