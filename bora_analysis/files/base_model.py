"""The base model's weights: found by a module's path, read one matrix at a time.

A file is opened when one of its tensors is needed for the first time; then only its header is read.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..catalogue.dtypes import EPSILON
from ..patterns import late
from .errors import AdapterError
from .keys import module_path
from .tensors import Array, Raw, StoredTensors, open_file

CONFIG_NAME = "config.json"
_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")
_SUFFIXES = (".safetensors", ".bin")
_WEIGHT_NAMES = {f"{stem}{suffix}{end}" for stem in _STEMS for suffix in _SUFFIXES for end in ("", ".index.json")}
# kohya's and LyCORIS's names: the model's part, and the path with underscores for dots.
_UNDERSCORED = late(r"(lora_(unet|te\d?|transformer)|lycoris)_(?P<path>[^.]+)")
_HUB_ID = late(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
# transformers' Conv1D stores (in, out). These models use it, and in them the modules of these names.
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_encoder", "clvp_decoder")
_CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")


@dataclass(frozen=True)
class BaseMatrix:
    """One matrix of the base model, in the orientation of ΔW ∈ R^{m×n}; a convolution's kernel counts in n.

    Attributes
    ----------
    key : its name in the file. transposed : whether the file has it as (n, m).
    stored : its shape in the file. dtype : PyTorch's name.
    """

    weights: BaseWeights
    key: str
    transposed: bool
    stored: tuple[int, ...]
    dtype: str

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.stored[0], int(np.prod(self.stored[1:]))
        return (columns, rows) if self.transposed else (rows, columns)

    def read(self) -> Array:
        """The (m, n) matrix as stored; half precision becomes float32, exactly."""
        values = self.weights.read(self.key)
        matrix = values.reshape(values.shape[0], -1)
        matrix = matrix.astype(np.float32) if matrix.dtype == np.float16 else matrix
        return matrix.T if self.transposed else matrix


class BaseWeights:
    """The weights of a model folder: ``.safetensors`` or ``pytorch_model.bin``, in one file or in shards.

    Attributes
    ----------
    path : the folder, or the file.
    """

    # As of an open file, so that an adapter's reader can take it.
    unread: tuple[str, ...] = ()

    def __init__(self, place: Path):
        self.path = place
        self.metadata: dict[str, str] = {}
        self._files = _files(place)
        if not self._files:
            raise AdapterError(f"{place}: holds no tensors; expected a model")
        self._open: dict[Path, StoredTensors] = {}
        self._lock = threading.Lock()

    def keys(self) -> list[str]:
        return list(self._files)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._tensors(key).shape(key)

    def dtype(self, key: str) -> str:
        return self._tensors(key).dtype(key)

    def read(self, key: str) -> Array:
        return self._tensors(key).read(key)

    def raw(self, key: str) -> Raw:
        return self._tensors(key).raw(key)

    def find(self, module: str) -> str:
        """The key of a module's weight.

        The base model may have been saved with a head or without, so the paths may differ by the first name, such as
        ``model.`` or ``roberta.``, on either side.
        """
        if module in self._by_module:
            return self._by_module[module]
        found = [*self._by_tail.get(module, []), *filter(None, [self._by_module.get(module.partition(".")[2])])]
        layer, _, number = module.rpartition(".")
        if not found and number.isdigit() and layer in self._by_module:  # an expert, or a task of Poly's
            return self._by_module[layer]
        if not found and (kohya := _UNDERSCORED.fullmatch(module)):
            found = self._by_underscores.get(kohya["path"], [])
        if len(found) == 1:
            return found[0]
        if found:
            raise AdapterError(f"{self.path}: {module} fits several tensors of the base model: {', '.join(found[:4])}")
        keys = self.keys()
        example = next((key for key in keys if key.endswith(f".{module.rpartition('.')[2]}.weight")), min(keys))
        raise AdapterError(
            f"{self.path}: the base model has no {module}.weight ({len(keys)} tensors, such as {example}); "
            "is it the model that was adapted?"
        )

    def matrix(self, module: str, *, fan_in_fan_out: bool = False, embedding: bool = False) -> BaseMatrix:
        """The matrix of a module. An embedding's is (d, V), as its ΔW."""
        return self.matrix_of(self.find(module), fan_in_fan_out=fan_in_fan_out, embedding=embedding)

    def kernel(self, module: str, m: int, n: int) -> tuple[int, ...]:
        """The kernel of a convolution whose ΔW is (m, n); empty for anything else, such as a stack of experts."""
        try:
            shape = self.shape(self.find(module))
        except AdapterError:  # the update needs no such module
            return ()
        return shape[2:] if (shape[0], int(np.prod(shape[1:]))) == (m, n) else ()

    def matrix_of(self, key: str, *, fan_in_fan_out: bool = False, embedding: bool = False) -> BaseMatrix:
        """The matrix of a key."""
        shape, dtype = self.shape(key), self.dtype(key)
        if dtype not in EPSILON or f"{key}_scale_inv" in self._files:
            raise AdapterError(
                f"{self.path}: {key} is quantised ({dtype}, shape {shape}); expected the model before quantisation"
            )
        if len(shape) < 2 or 0 in shape:
            raise AdapterError(f"{self.path}: {key} has shape {shape}; expected a matrix or a convolution's kernel")
        transposed = embedding or (len(shape) == 2 and self._is_conv1d(key, fan_in_fan_out))
        return BaseMatrix(self, key, transposed, shape, dtype)

    def _is_conv1d(self, key: str, fan_in_fan_out: bool) -> bool:
        """Whether a weight lies as (in, out). The base model knows; the adapter has one setting for all modules."""
        if self.config.get("model_type") in _CONV1D_MODELS:
            return key.split(".")[-2:-1] in [[name] for name in _CONV1D_NAMES]
        return fan_in_fan_out

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The base model's config.json; empty where there is none."""
        path = _config(self.path)
        return _json(path) if path.exists() else {}

    @cached_property
    def _by_module(self) -> dict[str, str]:
        """Module → key of its weight. nn.MultiheadAttention has one without a module of its own."""
        return {re.sub(r"\.(in_proj_)?weight$", "", module_path(key)): key for key in self._files if _is_weight(key)}

    @cached_property
    def _by_tail(self) -> dict[str, list[str]]:
        """Module without its first name → keys."""
        tails: dict[str, list[str]] = defaultdict(list)
        for module, key in self._by_module.items():
            tails[module.partition(".")[2]].append(key)
        return tails

    @cached_property
    def _by_underscores(self) -> dict[str, list[str]]:
        """Module with underscores for dots → keys."""
        names: dict[str, list[str]] = defaultdict(list)
        for module, key in self._by_module.items():
            names[module.replace(".", "_")].append(key)
        return names

    def _tensors(self, key: str) -> StoredTensors:
        path = self._files[key]
        with self._lock:
            if path not in self._open:
                tensors = open_file(path)
                missing = {key for key, file in self._files.items() if file == path} - set(tensors.keys())
                if missing:
                    raise AdapterError(f"{path}: has no {min(missing)}, which the index puts there; fetch it again")
                self._open[path] = tensors
            return self._open[path]


def open_base(place: str | Path) -> BaseWeights:
    """Open a base model: a folder, a weight file, or an ``org/name`` of the Hugging Face Hub that is no path here.

    Raises
    ------
    AdapterError
        No such folder, no weights in it, a damaged index.
    """
    path = Path(place)
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise AdapterError(f"{place}: is no path: {error}") from None
    if not exists:
        if not _HUB_ID.fullmatch(str(place)):
            raise AdapterError(f"{place}: no such folder (the base model: a folder, or an org/name of the Hub)")
        path = _download(str(place))
    return BaseWeights(path)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a whole model: its configuration and weights by its own names, and no adapter."""
    return names_a_model({entry.name for entry in entries(folder)})


def names_a_model(names: Collection[str]) -> bool:
    """The same, by the names of the files in the folder."""
    if CONFIG_NAME not in names or _WEIGHT_NAMES.isdisjoint(names):
        return False
    return not any(name.startswith("adapter_") for name in names)


def model_paths(place: Path) -> Iterator[Path]:
    """The files that :class:`BaseWeights` opens, each before it is opened: config.json, index, weights."""
    if _config(place).exists():
        yield _config(place)
    found = _weights(place)
    yield found
    if _is_index(found):
        yield from dict.fromkeys(_shards(found).values())


def entries(folder: Path) -> list[Path]:
    """What lies in a folder; AdapterError if it cannot be listed."""
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise AdapterError(f"{folder}: cannot be opened: {error.strerror or error}") from None


def _is_weight(key: str) -> bool:
    return key.endswith((".weight", ".in_proj_weight"))


def _config(place: Path) -> Path:
    return (place if place.is_dir() else place.parent) / CONFIG_NAME


def _is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def _weights(place: Path) -> Path:
    """The weight file of a model, or the index of its shards."""
    if place.is_file():
        return place
    for suffix in _SUFFIXES:  # safetensors first, as transformers does
        for stem in _STEMS:
            for end in (".index.json", ""):
                if (place / f"{stem}{suffix}{end}").exists():
                    return place / f"{stem}{suffix}{end}"
    names = " or ".join(f"{stem}{suffix}" for stem, suffix in zip(_STEMS, _SUFFIXES, strict=False))
    raise AdapterError(f"{place}: holds no base model; expected {names}, or shards with their index")


def _files(place: Path) -> dict[str, Path]:
    """Key → file."""
    found = _weights(place)
    return _shards(found) if _is_index(found) else dict.fromkeys(open_file(found).keys(), found)


def _shards(index: Path) -> dict[str, Path]:
    """Key → file, as the index of a model's shards has it."""
    shards = _json(index).get("weight_map")
    if not isinstance(shards, Mapping) or not shards:
        raise AdapterError(f"{index}: has no weight_map; expected a dictionary from tensors to files")
    below = cache(partial(is_below, index.parent))
    for key, name in shards.items():
        if not isinstance(name, str) or not below(name):
            raise AdapterError(
                f"{index}: weight_map has {key} in {name!r}; expected a file in the folder of the index; "
                "put the shards there and correct the entry"
            )
    return {str(key): index.parent / name for key, name in shards.items()}


def is_below(folder: Path, name: str) -> bool:
    """Whether a name is that of a file in the folder or its subfolders.

    A subfolder may not be a link that leads out. A file may: the Hub's cache keeps the files of a snapshot elsewhere.
    """
    path = Path(name)
    if not name.isprintable() or path.anchor or not path.name or ".." in path.parts:
        return False
    return (folder / path).parent.resolve().is_relative_to(folder.resolve())


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # brackets may be nested too deeply
        raise AdapterError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise AdapterError(f"{path}: holds a {type(content).__name__}; expected a dictionary")
    return content


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # here: only Hub ids need it

    try:
        path = Path(snapshot_download(hub_id, allow_patterns=_patterns(".safetensors")))
        if not any(path.glob("*.safetensors")):  # both would double the download
            path = Path(snapshot_download(hub_id, allow_patterns=_patterns(".bin")))
    except Exception as error:  # offline, unknown, private, disk full …: its errors share no base class
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise AdapterError(
            f"{hub_id}: is no path here, and the Hugging Face Hub gave no such model: {reason}"
        ) from None
    return path


def _patterns(suffix: str) -> list[str]:
    return [*(f"{stem}*{suffix}" for stem in _STEMS), *(f"{stem}{suffix}.index.json" for stem in _STEMS), CONFIG_NAME]
