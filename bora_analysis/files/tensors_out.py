"""A safetensors file, written one tensor at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import ml_dtypes  # noqa: F401  NumPy then knows bfloat16
import numpy as np

from ..updates.checks import is_finite
from .errors import AdapterError
from .tensors import Array, Raw

#: Types of factors that can be written, and safetensors' names.
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DTYPES = DTYPES | {"int64": "I64"}


class TensorsOut(ExitStack):
    """Tensors, collected beside the file that they will be in. The widest lie first, so that each is aligned."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder
        self._by_width: dict[int, IO[bytes]] = {}
        self._entries: dict[str, tuple[str, tuple[int, ...], int, int, int]] = {}  # dtype, shape, width, start, end

    def __enter__(self) -> Self:
        return self

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def add(self, key: str, array: Array, dtype: str) -> None:
        """A tensor, rounded to nearest even; OverflowError where the dtype has not the range."""
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<")).reshape(array.shape)
        if array.dtype.kind not in "iu" and not is_finite(rounded):
            raise OverflowError(f"holds values beyond the range of {dtype}")
        self._put(key, _DTYPES[dtype], array.shape, rounded.itemsize, rounded.tobytes())

    def copy(self, key: str, raw: Raw) -> None:
        """A tensor as it lies in another file."""
        self._put(key, raw.dtype, raw.shape, raw.itemsize, raw.read())

    def _put(self, key: str, dtype: str, shape: tuple[int, ...], width: int, content: bytes) -> None:
        if key in self._entries:
            raise AdapterError(f"{self._folder}: {key} would be written twice; rename one of the modules")
        if width not in self._by_width:
            self._by_width[width] = self.enter_context(TemporaryFile(dir=self._folder))  # noqa: SIM115  the stack closes it
        data = self._by_width[width]
        start = data.tell()
        data.write(content)
        self._entries[key] = dtype, shape, width, start, data.tell()

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the file."""
        header: dict[str, Any] = {"__metadata__": dict(metadata)}
        offset = {}
        end = 0
        for width in sorted(self._by_width, reverse=True):
            offset[width] = end
            end += self._by_width[width].tell()
        for key, (dtype, shape, width, start, stop) in self._entries.items():
            places = [start + offset[width], stop + offset[width]]
            header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": places}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
        with path.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for width in offset:
                self._by_width[width].seek(0)
                shutil.copyfileobj(self._by_width[width], out, 2**24)
