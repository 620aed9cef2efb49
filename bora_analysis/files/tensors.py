"""Weight files, read one tensor at a time.

A format is a row of ``OPENERS``, suffix → class. :func:`open_tensors` reads names, shapes and dtypes only. ``read`` is
safe to call from several threads.
"""

from __future__ import annotations

import json
import threading
import warnings
import zipfile
from collections.abc import Callable
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16 and float8
import numpy as np
from safetensors import SafetensorError, safe_open

from ..extras import require
from ..linalg import Array
from ..patterns import late
from .errors import AdapterError

# safetensors' name → PyTorch's name and the NumPy type that has the same bytes.
_SAFETENSORS_DTYPES = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "bfloat16"),
    "F8_E4M3": ("float8_e4m3fn", "float8_e4m3fn"),
    "F8_E5M2": ("float8_e5m2", "float8_e5m2"),
    "I64": ("int64", "<i8"),
    "I32": ("int32", "<i4"),
    "I16": ("int16", "<i2"),
    "I8": ("int8", "i1"),
    "U64": ("uint64", "<u8"),
    "U32": ("uint32", "<u4"),
    "U16": ("uint16", "<u2"),
    "U8": ("uint8", "u1"),
    "BOOL": ("bool", "?"),
}
#: llama.cpp's blocks of 32 numbers: a scale, and 32 whole multiples of it.
Q8_0, BLOCK = "q8_0", 32
# Types that are read as float32.
_NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
#: One of several files that hold the weights together.
SHARD = late(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
#: A folder that torch.distributed.checkpoint wrote (FSDP): any of its files stands for all.
DISTCP, DISTCP_INDEX = ".distcp", ".metadata"
_WEIGHTS = ("state_dict", "model")  # of several dictionaries in a checkpoint the one that is read
# What it holds beside the weights, in lower case.
_BESIDE = late(r"(optim|sched|lr_|ema|callbacks|loops|rng|scaler|args|hyper_parameters)")
# A mapped file is mapped anew after this many bytes, or its pages would add up to the whole file in memory.
_REMAP_BYTES = 64 * 2**20


class Raw(NamedTuple):
    """A tensor as it lies in a file."""

    dtype: str  # safetensors' name
    itemsize: int
    shape: tuple[int, ...]
    read: Callable[[], bytes]


class Tensors(Protocol):
    """A weight file that is open for reading."""

    path: Path
    metadata: dict[str, str]
    unread: tuple[str, ...]  # entries that are no tensors

    def keys(self) -> list[str]: ...

    def shape(self, key: str) -> tuple[int, ...]: ...

    def dtype(self, key: str) -> str:
        """PyTorch's name, ``"bfloat16"`` …"""
        ...

    def read(self, key: str) -> Array:
        """The tensor, a copy. bfloat16 and float8 become float32, exactly; other types stay as they are."""
        ...


class StoredTensors(Tensors, Protocol):
    """A file itself, whose tensors can be copied as they are."""

    def raw(self, key: str) -> Raw:
        """The tensor as its bytes, whatever they mean, to be copied."""
        ...


def open_tensors(path: Path) -> StoredTensors:
    """Open a ``.safetensors`` file or one that ``torch.save`` wrote, without reading tensor data.

    A shard, ``…-00001-of-00002.safetensors``, is opened together with the others beside it.
    """
    files = shards(path)
    return (
        open_file(path)
        if len(files) == 1 or path.suffix == DISTCP
        else Shards(path, [open_file(file) for file in files])
    )


def shards(path: Path) -> list[Path]:
    """The files of which a weight file is one shard; the file alone if it is none. Nothing is opened."""
    if path.suffix == DISTCP:
        return [path.with_name(DISTCP_INDEX), *sorted(path.parent.glob(f"*{DISTCP}"))]
    hit = SHARD.fullmatch(path.name)
    if not hit:
        return [path]
    count = int(hit["count"])
    return [path.with_name(f"{hit['stem']}-{k:05d}-of-{count:05d}{hit['suffix']}") for k in range(1, count + 1)]


def open_file(path: Path) -> StoredTensors:
    """Open one file, whole or a shard."""
    try:
        with path.open("rb") as handle:
            start = handle.read(64)
    except OSError as error:
        hint = "; the weights lie in several files, and all of them are needed" if SHARD.fullmatch(path.name) else ""
        raise AdapterError(f"{path}: cannot be opened: {error.strerror or error}{hint}") from None
    if not start:
        raise AdapterError(f"{path}: is empty (0 bytes); fetch or save it again")
    if start.startswith(b"version https://git-lfs"):
        raise AdapterError(f"{path}: is a git-lfs pointer, not the weights; run `git lfs pull`")
    return OPENERS.get(path.suffix, TorchFile)(path)


class Shards:
    """Several files as one."""

    def __init__(self, path: Path, files: list[StoredTensors]):
        self.path = path
        self.metadata: dict[str, str] = {name: value for file in files for name, value in file.metadata.items()}
        self.unread = tuple(name for file in files for name in file.unread)
        self._files: dict[str, StoredTensors] = {}
        for file in files:
            for key in file.keys():  # noqa: SIM118  no mapping
                if key in self._files:
                    raise AdapterError(
                        f"{file.path}: {key} is in {self._files[key].path} too; expected it in one shard"
                    )
                self._files[key] = file

    def keys(self) -> list[str]:
        return list(self._files)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._files[key].shape(key)

    def dtype(self, key: str) -> str:
        return self._files[key].dtype(key)

    def read(self, key: str) -> Array:
        return self._files[key].read(key)

    def raw(self, key: str) -> Raw:
        return self._files[key].raw(key)


class Entry(NamedTuple):
    """Where a tensor lies in a file. ``stored`` is the NumPy type of its bytes, None for one that cannot be read."""

    dtype: str
    stored: str | np.dtype[Any] | None
    shape: tuple[int, ...]
    offset: int


class MappedFile:
    """A file whose tensors lie at known offsets, each in one piece.

    They are read here and not by the format's library, because NumPy knows neither bfloat16 nor float8 there, and
    because the pages of a memory map stay in the resident set: a 10 GB file would count as 10 GB.
    """

    unread: tuple[str, ...] = ()

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, str] = {}
        self._entries: dict[str, Entry] = {}
        self._name = str(path)

    def keys(self) -> list[str]:
        return list(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key].shape

    def dtype(self, key: str) -> str:
        return self._entries[key].dtype

    def read(self, key: str) -> Array:
        entry = self._entries[key]
        return widen(self._stored(key)).reshape(entry.shape)

    def raw(self, key: str) -> Raw:
        return as_stored(self, key, lambda: self._stored(key).tobytes())

    def _stored(self, key: str) -> Array:
        dtype, stored, shape, offset = self._entries[key]
        if stored is None:
            raise AdapterError(f"{self.path}: {key} has dtype {dtype}, which cannot be read")
        count = prod(shape) // (BLOCK if dtype == Q8_0 else 1)
        content = np.empty(count * np.dtype(stored).itemsize, dtype=np.uint8)
        missing = content.data
        try:  # a handle of its own per read: threads do not share a file position
            with FileIO(self._name) as handle:  # without a buffer, and np.fromfile takes twice as long for few numbers
                handle.seek(offset)
                while missing and (size := handle.readinto(missing)):  # a read ends after 2 GB at the latest
                    missing = missing[size:]
        except OSError as error:
            raise AdapterError(f"{self.path}: cannot be read: {error.strerror or error}") from None
        if missing:
            raise AdapterError(f"{self.path}: {key} ends early: the file has changed since it was opened")
        return content.view(stored)


class SafetensorsFile(MappedFile):
    """A ``.safetensors`` file, which the library checks."""

    def __init__(self, path: Path):
        super().__init__(path)
        try:
            with safe_open(path, framework="np") as checked:
                self.metadata = dict(checked.metadata() or {})
            with path.open("rb") as handle:
                length = int.from_bytes(handle.read(8), "little")
                header = json.loads(handle.read(length))
        except SafetensorError as error:
            raise AdapterError(f"{path}: is no complete safetensors file ({error}); fetch or save it again") from None
        except (OSError, ValueError) as error:
            raise AdapterError(f"{path}: cannot be read: {error}") from None
        header.pop("__metadata__", None)
        for key, entry in header.items():
            dtype, stored = _SAFETENSORS_DTYPES.get(entry["dtype"], (entry["dtype"].lower(), None))
            self._entries[key] = Entry(dtype, stored, tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])


class TorchFile:
    """A file that ``torch.save`` wrote. Only tensors are unpickled, so a hostile file runs no code."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, str] = {}
        self._lock = threading.Lock()
        with warnings.catch_warnings():  # PyTorch warns of the pickle before it refuses it
            warnings.simplefilter("ignore")
            self._tensors, self.unread = self._load()
        self._shapes = {key: tuple(value.shape) for key, value in self._tensors.items()}
        self._dtypes = {key: str(value.dtype).removeprefix("torch.") for key, value in self._tensors.items()}
        self._bytes_read = 0

    def _load(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        import pickle

        require("torch", f"{self.path}: reading a file of torch.save", "torch", error=AdapterError)
        import torch  # here: it costs seconds, and safetensors files do without

        try:  # mmap needs the zip format, torch.save's since PyTorch 1.6
            content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path))
        except pickle.UnpicklingError:
            # PyTorch's own message says how to switch its protection off; this one must not.
            raise AdapterError(
                f"{self.path}: holds Python objects other than tensors, or is no PyTorch file; only tensors are read, "
                "so save the state dict by itself"
            ) from None
        except Exception as error:  # a damaged file fails anywhere inside the unpickler
            reason = type(error).__name__
            raise AdapterError(f"{self.path}: is no complete PyTorch file ({reason}); fetch or save it again") from None
        if isinstance(content, list):  # cloneofsimo/lora's layout
            content = {f"[{position}]": value for position, value in enumerate(content)}
        if not isinstance(content, dict):
            raise AdapterError(f"{self.path}: holds a {type(content).__name__}; expected a dictionary of named tensors")
        if isinstance(content.get("metadata"), dict):
            self.metadata = {str(name): str(value) for name, value in content["metadata"].items()}
        return self._sorted(content, torch.Tensor)

    def _sorted(self, content: dict[Any, Any], kind: type) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The weights in a checkpoint, and the names of what is no tensor beside them."""
        beside = [str(name) for name, value in content.items() if str(name) not in _WEIGHTS and _is_model(name, value)]
        beside = beside if any(name in content for name in _WEIGHTS) else []
        content = self._weights(content)
        tensors = {str(key): value for key, value in content.items() if isinstance(value, kind)}
        if not tensors:
            raise AdapterError(f"{self.path}: holds no tensors; expected a dictionary of named tensors")
        return tensors, (*beside, *(str(key) for key in content if str(key) not in tensors))

    def _weights(self, content: dict[Any, Any]) -> dict[Any, Any]:
        """The weights in a checkpoint: one or more levels down, or a dictionary for every layer."""
        inner = {name: found for name, value in content.items() if (found := _with_tensors(name, value))}
        for name in _WEIGHTS:
            if name in inner:
                return self._weights(inner[name])
        if not inner or any(hasattr(value, "dtype") for value in content.values()):
            return content
        if len(inner) == 1 and not str(next(iter(inner))).startswith("layer_"):
            return self._weights(next(iter(inner.values())))
        if any("." in str(key) for found in inner.values() for key in found):  # each has the paths of a whole model
            names = ", ".join(map(str, inner))
            raise AdapterError(f"{self.path}: holds the weights of several models ({names}); save one of them alone")
        return _flat(inner)

    def keys(self) -> list[str]:
        return list(self._shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def dtype(self, key: str) -> str:
        return self._dtypes[key]

    def _tensor(self, key: str) -> Any:
        if self._bytes_read > _REMAP_BYTES:
            self._tensors, _ = self._load()
            self._bytes_read = 0
        tensor = self._tensors[key].detach().cpu()
        self._bytes_read += tensor.numel() * tensor.element_size()
        return tensor

    def read(self, key: str) -> Array:
        with self._lock:
            try:
                tensor = self._tensor(key)
                if self.dtype(key) in _NARROW:
                    return tensor.float().numpy()
                return np.array(tensor.numpy())  # a copy, or the map would live as long as the array
            except (TypeError, RuntimeError) as error:  # no array: sparse, quantised, or of no device
                raise AdapterError(f"{self.path}: {key} has dtype {self.dtype(key)}: {error}") from None

    def raw(self, key: str) -> Raw:
        def read() -> bytes:
            import torch

            return self._tensor(key).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

        return as_stored(self, key, read)


def _is_model(name: Any, value: Any) -> bool:
    """Whether it is another model's weights, or the averages of the same one's."""
    return bool(_with_tensors("" if str(name).lower().startswith("ema") else name, value))


def _with_tensors(name: Any, value: Any) -> dict[Any, Any]:
    """A dictionary with tensors somewhere in it, that is no optimizer's; an empty one otherwise."""
    if not isinstance(value, dict) or _BESIDE.match(str(name).lower()):
        return {}
    held = any(hasattr(inner, "dtype") or _with_tensors(key, inner) for key, inner in value.items())
    return value if held else {}


def _flat(content: dict[Any, Any]) -> dict[str, Any]:
    """Dictionaries in dictionaries as one, with paths."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        within = {f"{name}.{key}": inner for key, inner in _flat(value).items()} if isinstance(value, dict) else None
        flat |= {str(name): value} if within is None else within
    return flat


def as_stored(tensors: Tensors, key: str, read: Callable[[], bytes]) -> Raw:
    """The tensor as its bytes; AdapterError for a type that safetensors does not have."""
    names = {torch: (name, np.dtype(stored).itemsize) for name, (torch, stored) in _SAFETENSORS_DTYPES.items()}
    dtype = tensors.dtype(key)
    if dtype not in names:
        raise AdapterError(f"{tensors.path}: {key} has dtype {dtype}, which cannot be copied")
    return Raw(*names[dtype], tensors.shape(key), read)


def widen(values: Array) -> Array:
    """Narrow numbers as float32, exactly."""
    if values.dtype.isbuiltin == 1:  # NumPy's own; to ask for a type's name takes longer than a small read
        return values
    if values.dtype.names:  # blocks of a scale and its multiples
        return (values["scale"].astype(np.float32)[:, None] * values["multiples"]).ravel()
    if values.dtype.name not in _NARROW:
        return values
    if values.itemsize > 1:
        return values.astype(np.float32)
    # Looked up in a table of all 256 values, twice as fast as converting them one by one.
    return np.arange(256, dtype=np.uint8).view(values.dtype).astype(np.float32)[values.view(np.uint8)]


def _other(name: str) -> Callable[[Path], StoredTensors]:
    def opener(path: Path) -> StoredTensors:
        from . import formats  # here: few files need it

        return getattr(formats, name)(path)

    return opener


#: Suffix → what opens its files. In this order: of one file in two formats, the first is read.
OPENERS: dict[str, Callable[[Path], StoredTensors]] = {
    ".safetensors": SafetensorsFile,
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".lora"), TorchFile),
    ".npz": _other("NpzFile"),
    ".gguf": _other("GgufFile"),
    ".h5": _other("HdfFile"),
    DISTCP: _other("DistributedCheckpoint"),
}
