"""Where results lie: a folder, or anything that fsspec reaches. Files appear whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..adapters import AdapterError
from ..patterns import late

if TYPE_CHECKING:
    import pyarrow as pa

_URL = late(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: C:\ is a drive
#: Stores whose writes are whole or nothing, so that no second name is needed.
_ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "az", "hf"}
_UNFINISHED = ".tmp"
_MEND = "`sweep --verify` makes it again"
#: The first and the last bytes of a Parquet file.
_MARK = b"PAR1"
#: Up to so many rows a file has no dictionaries, and statistics of its ids alone. They are for readers that pass over
#: parts of a file; in one of a few kB they took a third of its bytes and a quarter of the time to write it.
_FEW = 256
T = TypeVar("T")


def is_url(text: object) -> bool:
    """Whether fsspec, not the file system, knows the place.

    >>> is_url("s3://bucket/adapters"), is_url("C:/adapters"), is_url("org/name")
    (True, False, False)
    """
    return isinstance(text, str) and _URL.match(text) is not None


class StorageError(AdapterError):
    """Results that cannot be written: no fault of an adapter, and the end of a sweep."""


def opened(url: str) -> tuple[Any, str]:
    """fsspec's file system and its own name for a URL; AdapterError where the URL's kind is not installed."""
    from fsspec.core import url_to_fs  # here: few places are URLs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise AdapterError(f"{url}: fsspec cannot open this kind of URL: {error}") from None


def reason(error: Exception) -> str:
    """Why a place could not be reached, in a line: what the system says, or a store's client."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or (str(error).splitlines() or [""])[0] or type(error).__name__


def _plainly(function: Callable[..., T]) -> Callable[..., T]:
    """Errors of stores, which share no base class, as one."""

    @wraps(function)
    def call(self: Storage, *arguments: Any) -> T:
        try:
            return function(self, *arguments)
        except Exception as error:
            if isinstance(error, AdapterError):
                raise
            raise StorageError(f"{self}: {reason(error)}") from None

    return call


@dataclass(frozen=True)
class Storage:
    """A place with files in folders of one level: ``adapters/part.parquet``.

    Attributes
    ----------
    place : as it was named.
    """

    place: str

    @classmethod
    def at(cls, place: Any) -> Storage:
        text = os.fspath(place)
        return cls(text.rstrip("/") if is_url(text) else str(Path(text).absolute()))

    def __str__(self) -> str:
        return self.place

    def names(self, folder: str) -> list[str]:
        """The files in a folder; none where there is no such folder."""
        return [name for name in self._all(folder) if not name.endswith(_UNFINISHED)]

    def unfinished(self, folder: str) -> list[str]:
        """What writers that were killed left in a folder."""
        return [name for name in self._all(folder) if name.endswith(_UNFINISHED)]

    @_plainly
    def _all(self, folder: str) -> list[str]:
        if not is_url(self.place):
            path = Path(self.place, folder)
            return [entry.name for entry in os.scandir(path)] if path.is_dir() else []
        files, root = opened(self.place)
        files.invalidate_cache()
        inside = f"{root}/{folder}"
        return [name.rsplit("/", 1)[-1] for name in files.ls(inside, detail=False)] if files.isdir(inside) else []

    @_plainly
    def write(self, name: str, content: bytes) -> None:
        """Write a file; nobody sees it before it is whole."""
        temporary = f"{name}.{secrets.token_hex(4)}{_UNFINISHED}"
        if not is_url(self.place):
            path, target = Path(self.place, temporary), Path(self.place, name)
            try:
                try:
                    path.write_bytes(content)
                except FileNotFoundError:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                path.replace(target)
            except BaseException:  # half a file on a full disk would keep it full
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise
            return
        files, root = opened(self.place)
        if not _ATOMIC.isdisjoint([files.protocol] if isinstance(files.protocol, str) else files.protocol):
            files.pipe_file(f"{root}/{name}", content)
            return
        files.makedirs(f"{root}/{name}".rsplit("/", 1)[0], exist_ok=True)
        files.pipe_file(f"{root}/{temporary}", content)
        files.mv(f"{root}/{temporary}", f"{root}/{name}")

    @_plainly
    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is no such file."""
        try:
            if not is_url(self.place):
                return Path(self.place, name).read_bytes()
            files, root = opened(self.place)
            return files.cat_file(f"{root}/{name}")
        except FileNotFoundError:
            return None

    @_plainly
    def remove(self, names: Sequence[str]) -> None:
        """Remove files; those that are not there are passed over."""
        if not is_url(self.place):
            for name in names:
                Path(self.place, name).unlink(missing_ok=True)
            return
        files, root = opened(self.place)
        there = [path for name in names if files.exists(path := f"{root}/{name}")]
        if there:
            files.rm(there)

    @_plainly
    def read_table(self, name: str, columns: Sequence[str] | None = None, mend: str = _MEND) -> pa.Table:
        """A table, or some of its columns; ``mend`` is what to do where it cannot be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        content = self.read(name)
        if content is None:
            raise AdapterError(f"{self}/{name}: no such file")
        try:
            # Not read_table: it would import pyarrow's datasets, which take as long as the rows of 10,000 adapters.
            file = pq.ParquetFile(pa.BufferReader(content))
            if missing := set(columns or ()) - set(file.schema_arrow.names):
                raise pa.ArrowInvalid(f"it has no column {min(missing)}")
            # Nor by Arrow's threads: one that lets go of the content a moment late, when this process is ending, needs
            # Python for that and aborts it.
            return file.read(columns=None if columns is None else list(columns), use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            why = (str(error).splitlines() or [""])[0]
            raise AdapterError(f"{self}/{name}: is no Parquet file of a sweep ({why}); {mend}") from None

    @_plainly
    def torn(self, folder: str) -> list[str]:
        """The Parquet files in a folder that do not end as they should: half of one, or an empty one."""
        found = []
        for name in self.names(folder):
            if is_url(self.place):
                files, root = opened(self.place)
                start, end = (files.cat_file(f"{root}/{folder}/{name}", *ends) for ends in ((0, 4), (-4, None)))
            else:
                with Path(self.place, folder, name).open("rb") as handle:
                    start = handle.read(4)
                    end = handle.seek(max(0, handle.seek(0, os.SEEK_END) - 4)) >= 4 and handle.read(4)
            if not start == end == _MARK:
                found.append(name)
        return found

    @_plainly
    def write_table(self, name: str, table: pa.Table) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        few = table.num_rows <= _FEW
        sink = pa.BufferOutputStream()
        told: Any = ["id"] if few else True
        pq.write_table(table, sink, use_dictionary=not few, write_statistics=told)
        self.write(name, sink.getvalue().to_pybytes())
