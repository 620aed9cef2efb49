"""Has an adapter changed? A quick look at its files, their **stamp**, and their content's hash.

The stamp is made of name, size, time of change (mtime and ctime, in ns) and inode of each file, of an object in a store
of its size and what the store tells of its version (ETag, checksum, time). Programs can set mtime back, but not ctime,
so that every write to a file shows, except within one tick of the file system's clock. So a stamp is kept only where
the files were at rest for ``SETTLED`` seconds before they were read, and did not change while they were (as in git's
index). Otherwise the next sweep reads the files and compares their hashes, which always tells. (Windows has no ctime: a
file that is rewritten there in the same size, with its mtime set back, takes ``verify`` to be noticed.)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

#: Seconds. FAT counts in two of them, others in hundredths.
SETTLED = 2.5
_CHUNK = 1 << 20
# What stores tell of an object's version, by the name that fsspec has for it.
_VERSIONS = (
    "ETag", "etag", "version_id", "VersionId", "md5Hash", "generation", "content_md5", "sha256", "blob_id",
    "LastModified", "last_modified", "last_commit", "updated", "mtime", "created",
)  # fmt: skip


class Seen(NamedTuple):
    """A file without its content: bytes, what shows its version (empty: nothing), seconds of its last change."""

    size: int
    version: str
    changed: float


def local(status: os.stat_result) -> Seen:
    """Of a file on a file system."""
    version = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return Seen(status.st_size, version, max(status.st_mtime, status.st_ctime))


def remote(info: Mapping[str, Any]) -> Seen:
    """Of an object, by fsspec's ``info``. A store makes versions, so none can be missed."""
    told = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name) is not None]
    return Seen(int(info.get("size") or 0), " ".join(told), 0.0)


def stamp(files: Iterable[tuple[str, Seen]]) -> str:
    """One text for some files, by name; empty where the version of one is not known."""
    lines = []
    for name, seen in sorted(files):
        if not seen.version:
            return ""
        lines.append(f"{name}\0{seen.size}\0{seen.version}\n")
    return hashlib.blake2b("".join(lines).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def stamp_at_rest(files: Iterable[str], read_at: float) -> str:
    """The stamp of files on a file system; empty where it does not show a later change, see above.

    Parameters
    ----------
    read_at : time at which reading began, in seconds since 1970.
    """
    found = [(path, local(os.stat(path))) for path in files]  # noqa: PTH116  a text is all that is at hand
    return stamp(found) if at_rest(found, read_at) else ""


def at_rest(files: Iterable[tuple[str, Seen]], read_at: float) -> bool:
    """Whether the files were last changed long enough before reading began that their stamp shows a later change."""
    return all(seen.changed <= read_at - SETTLED for _, seen in files)


def content_hash(files: Iterable[Path], home: Path) -> tuple[str, int]:
    """SHA-256 over the files' names, relative to ``home``, and contents; and their bytes."""
    whole, size = hashlib.sha256(), 0
    for path in sorted(set(files)):
        content = hashlib.sha256()
        with path.open("rb") as handle:
            while chunk := handle.read(_CHUNK):
                content.update(chunk)
                size += len(chunk)
        inside = os.path.dirname(path) == str(home)  # noqa: PTH120  as texts: relpath takes ten times as long
        name = path.name if inside else os.path.relpath(path, home).replace(os.sep, "/")
        whole.update(f"{name}\0{content.hexdigest()}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest(), size
