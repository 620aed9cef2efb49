"""Weight files of other libraries: NumPy's archives, llama.cpp's GGUF, HDF5.

``.npz``: a zip of arrays, MLX's format before safetensors. bfloat16 lies there as two bytes without a type.

``.gguf`` (ggml, ``docs/gguf.md``): a header of settings, then the tensors, each with its dimensions in reverse order.

``.h5``: Keras's. A tensor's key is its path in the file.

``.distcp``: torch.distributed.checkpoint's, in a folder with ``.metadata``, a pickle that says which piece of which
tensor lies where. Each piece is a file of torch.save by itself.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from ..extras import require
from ..linalg import Array
from .errors import AdapterError
from .tensors import BLOCK, DISTCP_INDEX, Q8_0, Entry, MappedFile, Raw, TorchFile, as_stored, widen

# Number of a GGUF type → its name and the NumPy type of its bytes, of one block for a quantised type.
_GGUF_TENSORS: dict[int, tuple[str, str | np.dtype[Any]]] = {
    0: ("float32", "<f4"),
    1: ("float16", "<f2"),
    8: (Q8_0, np.dtype([("scale", "<f2"), ("multiples", "i1", BLOCK)])),
    24: ("int8", "i1"),
    25: ("int16", "<i2"),
    26: ("int32", "<i4"),
    27: ("int64", "<i8"),
    28: ("float64", "<f8"),
    30: ("bfloat16", "bfloat16"),
}
# Number of a setting's type → its letter for struct; 8 is text, 9 a list.
_GGUF_VALUES = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _LIST = 8, 9
_MOST_DIMENSIONS = 4


class NpzFile:
    """A ``.npz`` archive. Arrays of Python objects, which only unpickling reads, are refused."""

    unread: tuple[str, ...] = ()

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, str] = {}
        self._headers: dict[str, tuple[tuple[int, ...], str]] = {}
        try:
            self._archive = zipfile.ZipFile(path)
            entries = {entry.filename.removesuffix(".npy"): entry for entry in self._archive.infolist()}
            for key, entry in entries.items():
                shape, dtype = self._header(entry)
                if dtype.hasobject:
                    raise AdapterError(
                        f"{path}: {key} holds Python objects, which are not unpickled, for they may run code; save "
                        "arrays of numbers"
                    )
                self._headers[key] = shape, "bfloat16" if dtype.str[1:] == "V2" else dtype.name
        except _BROKEN as error:
            self._damaged(error)
        self._entries = entries

    def _header(self, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self._archive.open(entry) as member:
            version = np.lib.format.read_magic(member)
            first = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
        return shape, dtype

    def _damaged(self, error: Exception) -> NoReturn:
        if isinstance(error, AdapterError):
            raise error
        raise AdapterError(
            f"{self.path}: is no complete NumPy archive ({type(error).__name__}); fetch or save it again"
        ) from None

    def keys(self) -> list[str]:
        return list(self._headers)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._headers[key][0]

    def dtype(self, key: str) -> str:
        return self._headers[key][1]

    def read(self, key: str) -> Array:
        return widen(self._stored(key))

    def raw(self, key: str) -> Raw:
        def little() -> bytes:
            values = self._stored(key)
            return values.astype(values.dtype.newbyteorder("<")).tobytes()

        return as_stored(self, key, little)

    def _stored(self, key: str) -> Array:
        try:
            with self._archive.open(self._entries[key]) as member:
                values = np.lib.format.read_array(member, allow_pickle=False)
        except _BROKEN as error:
            self._damaged(error)
        return values.view("bfloat16") if self.dtype(key) == "bfloat16" else values


# What a damaged zip or array raises.
_BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, KeyError)


class GgufFile(MappedFile):
    """A ``.gguf`` file of version 2 or 3. The numbers and texts of its header are its metadata."""

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            with path.open("rb") as handle:
                self._read_header(handle, path.stat().st_size)
        except AdapterError:
            raise
        except (struct.error, ValueError, OverflowError, RecursionError, MemoryError, OSError):
            raise AdapterError(f"{path}: is no complete GGUF file; fetch or save it again") from None

    def _read_header(self, handle: BinaryIO, size: int) -> None:
        def number(letter: str) -> Any:
            return struct.unpack(f"<{letter}", handle.read(struct.calcsize(f"<{letter}")))[0]

        def text() -> str:
            length = number("Q")
            if length > size:
                raise struct.error
            return handle.read(length).decode("utf-8")

        def value(kind: int) -> Any:
            if kind == _TEXT:
                return text()
            if kind == _LIST:
                kind, count = number("I"), number("Q")
                if kind in _GGUF_VALUES:
                    handle.seek(count * struct.calcsize(_GGUF_VALUES[kind]), 1)
                    return "a list"
                for _ in range(count):  # each takes bytes, so that a false count ends with the file
                    value(kind)
                return "a list"
            if kind not in _GGUF_VALUES:
                raise struct.error
            return number(_GGUF_VALUES[kind])

        if handle.read(4) != b"GGUF":
            raise AdapterError(f"{self.path}: is no GGUF file; it does not begin with GGUF")
        version = number("I")
        if version not in (2, 3):
            other = "its numbers are big-endian" if version in (2 << 24, 3 << 24) else f"is GGUF version {version}"
            raise AdapterError(f"{self.path}: {other}; expected a little-endian file of version 2 or 3; convert again")
        tensors, settings = number("Q"), number("Q")
        for _ in range(settings):
            name = text()
            self.metadata[name] = str(value(number("I")))
        for _ in range(tensors):
            key, count = text(), number("I")
            if count > _MOST_DIMENSIONS or key in self._entries:
                raise struct.error
            shape = tuple(number("Q") for _ in range(count))[::-1]
            kind = number("I")
            dtype, stored = _GGUF_TENSORS.get(kind, (f"GGML type {kind}", None))
            self._entries[key] = Entry(dtype, stored, shape, number("Q"))
        step = int(self.metadata.get("general.alignment", "32"))
        if step < 1:
            raise struct.error
        start = -(-handle.tell() // step) * step
        for key, (dtype, stored, shape, offset) in self._entries.items():
            self._entries[key] = Entry(dtype, stored, shape, start + offset)
            if stored is not None:
                length = prod(shape) // (BLOCK if dtype == Q8_0 else 1) * np.dtype(stored).itemsize
                if start + offset + length > size or (dtype == Q8_0 and (not shape or shape[-1] % BLOCK)):
                    raise struct.error


class HdfFile(MappedFile):
    """An ``.h5`` file, as Keras writes it: each tensor in one piece."""

    def __init__(self, path: Path):
        super().__init__(path)
        require("h5", f"{path}: reading HDF5, Keras's format", "h5py", error=AdapterError)
        import h5py  # here: few files need it

        def visit(name: str | bytes, found: Any) -> None:
            if not isinstance(found, h5py.Dataset):
                return
            name = name if isinstance(name, str) else name.decode("utf-8", "replace")
            offset, dtype = found.id.get_offset(), found.dtype
            narrow = dtype.itemsize == 2 and str(found.attrs.get("dtype", "")) == "bfloat16"
            # Chunks, empty space and other files, which a name in this one may lead to, are not followed.
            fits = dtype.kind in "fiu" or narrow
            stored = "bfloat16" if narrow else dtype if offset is not None and fits else None
            self._entries[name] = Entry(np.dtype(stored or dtype).name, stored, found.shape or (), offset or 0)
            if stored is None and fits:
                raise AdapterError(
                    f"{path}: {name} does not lie in the file in one piece; expected it without compression, as Keras "
                    "saves it"
                )

        try:
            with h5py.File(path, "r") as file:
                file.visititems(visit)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(
                f"{path}: is no complete HDF5 file ({type(error).__name__}); fetch or save it again"
            ) from None


class _Inert:
    """What stands for every class and function that a pickle names: it keeps its state and does nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _InertUnpickler(pickle.Unpickler):
    """Imports and runs nothing. A size is a tuple, and a type of PyTorch its name."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch":
            return tuple if name == "Size" else name
        return dict if (module, name) == ("collections", "OrderedDict") else _Inert


class _Pieces(NamedTuple):
    """A tensor in a distributed checkpoint: where each piece belongs, its size, file, offset and length."""

    dtype: str
    shape: tuple[int, ...]
    pieces: list[tuple[tuple[int, ...], tuple[int, ...], str, int, int]]


class DistributedCheckpoint(TorchFile):
    """The checkpoint of a folder, by any of its ``.distcp`` files."""

    def _load(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        require("torch", f"{self.path}: reading a checkpoint of torch.distributed", "torch", error=AdapterError)
        index = self.path.with_name(DISTCP_INDEX)
        try:
            with index.open("rb") as handle:
                told = _InertUnpickler(handle).load()
            places = {(at.fqn, getattr(at, "offset", None)): where for at, where in told.storage_data.items()}
            content: dict[str, Any] = {}
            for key, tensor in told.state_dict_metadata.items():
                inner, (*path, name) = content, (told.planner_data or {}).get(key) or (key,)
                for step in path:
                    inner = inner.setdefault(str(step), {})
                inner[str(name)] = self._pieces(key, tensor, places) if hasattr(tensor, "chunks") else None
        except OSError as error:
            raise AdapterError(
                f"{index}: cannot be opened: {error.strerror or error}; it belongs to the checkpoint"
            ) from None
        except Exception as error:  # whatever a damaged pickle builds
            if isinstance(error, AdapterError):
                raise
            raise AdapterError(
                f"{index}: is no complete index of torch.distributed.checkpoint ({type(error).__name__}); fetch or "
                "save it again"
            ) from None
        return self._sorted(content, _Pieces)

    def _pieces(self, key: str, tensor: Any, places: dict[Any, Any]) -> _Pieces:
        pieces = []
        for chunk in tensor.chunks:
            where = places[key, chunk.offsets]
            name = where.relative_path
            if where.__dict__.get("transform_descriptors") or Path(name).name != name:
                raise AdapterError(
                    f"{self.path}: a piece of {key} is compressed, or in another folder ({name}); expected the plain "
                    "files of torch.distributed.checkpoint"
                )
            pieces.append((chunk.offsets, chunk.sizes, name, where.offset, where.length))
        return _Pieces(tensor.properties.state[0], tensor.size, pieces)

    def _tensor(self, key: str) -> Any:
        import torch

        dtype, shape, pieces = self._tensors[key]
        path, filled = self.path, 0
        try:
            whole = torch.empty(shape, dtype=getattr(torch, dtype))
            for offsets, sizes, name, offset, length in pieces:
                path = self.path.with_name(name)
                with path.open("rb") as handle:
                    handle.seek(offset)
                    piece = torch.load(io.BytesIO(handle.read(length)), map_location="cpu", weights_only=True).detach()
                whole[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] = piece
                filled += piece.numel()
        except OSError as error:
            raise AdapterError(
                f"{path}: cannot be opened: {error.strerror or error}; all files of the checkpoint are needed"
            ) from None
        except Exception as error:  # whatever a damaged index or piece leads to
            raise AdapterError(f"{path}: the piece of {key} is damaged ({type(error).__name__})") from None
        if filled != whole.numel():
            raise AdapterError(f"{self.path}: {key} has {filled} of its {whole.numel()} numbers in the checkpoint")
        return whole
