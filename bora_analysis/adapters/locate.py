"""Where the adapters at a path lie: the files of a folder, of its checkpoints, of the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..files.base_model import entries, is_model, model_paths
from ..files.configuration import CONFIG_NAME, configuration_files
from ..files.errors import AdapterError
from ..files.keys import natural

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".lora")
# PEFT's, MLX's and diffusers' names. In this order: PEFT prefers safetensors where both lie in a folder.
_WEIGHT_NAMES = (
    "adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt",
    "adapters.safetensors", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin",
)  # fmt: skip
# What a trainer leaves beside the weights.
NOT_WEIGHTS = re.compile(r"(optimizer|scheduler|scaler|rng_state\w*|training_args)\.\w+")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def paths_read(place: Path, *, steps: bool = False) -> Iterator[Path]:
    """Every folder and file that :func:`read_adapter` looks into at a path, each before it is looked into.

    Who checks them as they come has checked all of what the reader opens. The base model and the initial adapter,
    which are no part of the path, are not among them.

    Raises
    ------
    AdapterError
        There is nothing to read, as the reader says.
    """
    for home in homes(place, steps):
        if home != place:
            yield home
        found = located(home)
        if found.config is None:
            yield from model_paths(found.weights)
            continue
        yield found.weights
        yield from configuration_files(found.config.parent)


class Located(NamedTuple):
    """One adapter, or one whole model, found by the names of its files.

    Attributes
    ----------
    weights : the weight file; the folder of a whole model.
    config : the configuration beside the weights, which may be missing; None for a whole model.
    folder : the folder that gives the name; None where the weight file does.
    """

    weights: Path
    config: Path | None
    folder: Path | None


def homes(place: Path, steps: bool) -> list[Path]:
    """Where the adapters at a path lie: in itself, or else in its ``checkpoint-N`` folders, in their order."""
    if place.is_file():
        return [place]
    runs = checkpoint_folders(place)
    if is_model(place) or (not (steps and runs) and _weights_in(place)):
        return [place]
    if not runs:
        raise AdapterError(_nothing_in(place))
    return list(runs)


def located(home: Path) -> Located:
    if home.is_file():
        if home.suffix and home.suffix not in SUFFIXES:
            raise AdapterError(f"{home}: is no weight file; expected {', '.join(SUFFIXES)}, or the adapter's folder")
        return Located(home, home.parent / CONFIG_NAME, home.parent if home.name in _WEIGHT_NAMES else None)
    if is_model(home):
        return Located(home, None, home)
    weights = _weights_in(home)
    if weights is None:
        raise AdapterError(_nothing_in(home))
    return Located(weights, home / CONFIG_NAME, home)


def checkpoint_folders(place: Path) -> dict[Path, int]:
    """The ``checkpoint-N`` folders and their steps, in the order of these."""
    runs = {folder: int(hit[1]) for folder in _folders(place) if (hit := CHECKPOINT.fullmatch(folder.name))}
    return dict(sorted(runs.items(), key=lambda run: run[1]))


def _folders(place: Path) -> list[Path]:
    return sorted((entry for entry in entries(place) if entry.is_dir()), key=lambda entry: natural(entry.name))


def _weights_in(folder: Path) -> Path | None:
    """The weight file of a folder: PEFT's, or the only one that could be."""
    for name in _WEIGHT_NAMES:
        if (folder / name).exists():
            if (folder / name).is_file():
                return folder / name
            raise AdapterError(f"{folder / name}: is a folder; expected the weight file")
    others = sorted(
        entry.name
        for entry in entries(folder)
        if entry.suffix in SUFFIXES and entry.is_file() and not NOT_WEIGHTS.fullmatch(entry.name)
    )
    if len(others) > 1:
        raise AdapterError(f"{folder}: holds {len(others)} weight files; name one: {some(others)}")
    return folder / others[0] if others else None


def _nothing_in(folder: Path) -> str:
    if (folder / CONFIG_NAME).exists():
        return f"{folder}: holds {CONFIG_NAME} but no weights; expected {' or '.join(_WEIGHT_NAMES[:2])}"
    inside = [entry.name for entry in _folders(folder) if any((entry / name).exists() for name in _WEIGHT_NAMES)]
    if inside:
        return f"{folder}: holds no adapter itself; name one of its folders: {some(inside)}"
    return f"{folder}: holds no adapter; expected {CONFIG_NAME} and {' or '.join(_WEIGHT_NAMES[:2])}"


def named(folder: Path) -> Path:
    """The folder by a path that ends in its name. Links stay: the Hub's cache links each file to a nameless one."""
    folder = folder.absolute()
    return folder.resolve() if ".." in folder.parts else folder


def some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download  # here: only Hub ids need it

    names = (CONFIG_NAME, *_WEIGHT_NAMES)
    patterns = [*names, *(f"checkpoint-*/{name}" for name in names)]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # offline, unknown, private, disk full …: its errors share no base class
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise AdapterError(
            f"{hub_id}: is no path here, and the Hugging Face Hub gave no such adapter: {reason}"
        ) from None
