"""Where the adapters at a path lie: the files of a folder, of its checkpoints, of the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..files.base_model import entries, is_below, is_model, model_paths, names_a_model
from ..files.configuration import CONFIG_NAME, configuration_files, read_configuration
from ..files.errors import AdapterError, counted
from ..files.keys import natural
from ..files.tensors import DISTCP, DISTCP_INDEX, OPENERS, SHARD, shards
from ..patterns import late
from .initialisation import changes_base

SUFFIXES = tuple(OPENERS)
# PEFT's, MLX's, diffusers' and AdapterHub's names. In this order: PEFT prefers safetensors where both lie in a folder.
WEIGHT_NAMES = (
    "adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt",
    "adapters.safetensors", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin",
    "adapter.safetensors", "pytorch_adapter.bin", "adapters.npz",
)  # fmt: skip
# Files of other kinds, and what to do with them.
_OTHER_KINDS = {
    ".zip": "is a zip archive; unpack it, and name the folder",
    ".gz": "is an archive; unpack it, and name the folder",
    ".tar": "is an archive; unpack it, and name the folder",
}
# What a trainer leaves beside the weights.
NOT_WEIGHTS = late(r"(optimizer|scheduler|scaler|rng_state\w*|training_args)\.\w+")
CHECKPOINT = late(r"checkpoint-(\d+)")
# mlx-lm's checkpoints, files beside the last one.
STEP_FILE = late(r"(\d+)_adapters\.(safetensors|npz)")
#: ``org/name``, or ``org/name@revision``: a branch, a tag, a commit.
HUB_ID = late(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)


def paths_read(place: Path, *, steps: bool = False) -> Iterator[Path]:
    """Every folder and file that :func:`read_adapter` opens at a path, each before it is opened.

    A caller that checks each as it comes has checked all that the reader opens. A base model or an initial adapter that
    the caller names, and which is no part of the path, is not among them.

    Raises
    ------
    AdapterError
        There is nothing to read, as the reader says.
    """
    for home in homes(place, steps, below=False):
        if home != place:
            yield home
        found = located(home)
        if found.config is None:
            yield from model_paths(found.weights)
            continue
        if found.weights.parent not in (home, home.parent):
            yield found.weights.parent
        yield from shards(found.weights)
        yield from configuration_files(found.config.parent)
        config = read_configuration(found.config.parent)
        if base := base_beside(found.config.parent, config):
            yield base
            yield from model_paths(base)
        first = first_step(found)
        if first is not None and changes_base(config or {}):
            yield first.folder or first.weights.parent
            yield from shards(first.weights)
            yield from configuration_files(first.weights.parent)


def base_beside(folder: Path, config: Mapping[str, Any] | None) -> Path | None:
    """The base model in an adapter's own folder that its configuration names as ``./NAME``; None where there is none.

    Another name is never looked up here: it may be any model's, or a path of another machine.
    """
    name = (config or {}).get("base_model_name_or_path")
    if not isinstance(name, str) or not name.startswith("./") or not is_below(folder, name):
        return None
    place = folder / name
    inside = place.is_dir() and place.resolve().is_relative_to(folder.resolve())  # a link may lead out
    return place if inside and is_model(place) else None


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


def homes(place: Path, steps: bool, *, below: bool = True) -> list[Path]:
    """Where the adapters at a path lie: in itself, or else in its checkpoints, in their order.

    ``below`` is whether the error may look into the folders below for the runs that were meant.
    """
    return homes_and_runs(place, steps, below=below)[0]


def homes_and_runs(place: Path, steps: bool, *, below: bool = True) -> tuple[list[Path], list[Path]]:
    """The :func:`homes`, and all :func:`checkpoints_in` the place; one look at a folder for both."""
    if place.is_file():
        return [place], []
    listed = entries(place)
    runs = list(_checkpoints_among(place, listed))
    if names_a_model({entry.name for entry in listed}) or (not (steps and runs) and _weights_in(place)):
        return [place], runs
    if not runs and _named_adapter(place):
        return [place], runs
    if not runs:
        raise AdapterError(_nothing_in(place, below))
    return runs, runs


def located(home: Path) -> Located:
    """The files of the adapter, or of the whole model, at one of the :func:`homes`."""
    if home.is_file():
        if home.suffix in _OTHER_KINDS:
            raise AdapterError(f"{home}: {_OTHER_KINDS[home.suffix]}")
        if home.suffix and home.suffix not in SUFFIXES:
            raise AdapterError(f"{home}: is no weight file; expected {', '.join(SUFFIXES)}, or the adapter's folder")
        named = home.suffix == DISTCP or whole_name(home.name) in WEIGHT_NAMES
        return Located(home, home.parent / CONFIG_NAME, home.parent if named else None)
    if is_model(home):
        return Located(home, None, home)
    weights = _weights_in(home)
    if weights is None and (inner := _named_adapter(home)):
        weights = _weights_in(inner)
    if weights is None:
        raise AdapterError(_nothing_in(home))
    return Located(weights, weights.parent / CONFIG_NAME, home)


def first_step(found: Located) -> Located | None:
    """The adapter of the same run before its first step: ``checkpoint-0`` in its folder, or beside a checkpoint."""
    folder = found.folder
    if folder is None:
        return None
    try:
        run = folder.parent if CHECKPOINT.fullmatch(folder.name) else folder
        first = run / "checkpoint-0"
        return located(first) if first.is_dir() else None
    except AdapterError:
        return None


def adapters_below(folder: Path, steps: bool = False, depth: int = 6) -> list[Path]:
    """The adapters in the folders below one that is none: folders, runs, and files where several lie side by side.

    Hidden folders and whole models are left out, links to folders are not followed.
    """
    found: list[Path] = []
    for entry in sorted(entries(folder), key=lambda entry: natural(entry.name)):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            try:
                inside = [] if is_model(entry) else [entry][: len(homes(entry, steps, below=False))]
            except AdapterError:
                faulty = (entry / CONFIG_NAME).exists()  # an adapter: its error is to be told
                inside = [entry] if faulty else adapters_below(entry, steps, depth - 1) if depth else []
            found += inside
        elif entry.suffix in SUFFIXES and entry.is_file() and not NOT_WEIGHTS.fullmatch(entry.name):
            found.append(entry)
    return found


def is_other(place: Path) -> bool:
    """Whether it is there and no adapter by its kind, such as README.md or a folder of tables."""
    if place.is_file():
        return place.suffix not in (*SUFFIXES, *_OTHER_KINDS)
    if not place.is_dir() or (place / CONFIG_NAME).exists():
        return False
    return not any(entry.suffix in (*SUFFIXES, *_OTHER_KINDS) for entry in entries(place))


def near(text: str) -> str:
    """``; did you mean PATH?`` for a path that is not there, where one that is there is called nearly so."""
    from difflib import get_close_matches  # here: a miss is rare

    place = Path(Path(text).anchor)
    for part in Path(text).parts[len(place.parts) :]:
        if (place / part).exists():
            place /= part
            continue
        try:
            close = get_close_matches(part, [entry.name for entry in entries(place)], 1, 0.7)
        except AdapterError:
            close = []
        if not close:
            return ""
        place /= close[0]
    return f"; did you mean {place}?"


def _named_adapter(home: Path) -> Path | None:
    """The folder in a checkpoint into which PEFT puts an adapter with a name, or FSDP its shards; None without one."""
    if not CHECKPOINT.fullmatch(home.name):
        return None
    names = (*WEIGHT_NAMES, DISTCP_INDEX)
    inner = [folder for folder in _folders(home) if any((folder / name).is_file() for name in names)]
    inner = [folder for folder in inner if not folder.name.startswith("optimizer")]
    if len(inner) > 1:
        names = some([folder.name for folder in inner])
        raise AdapterError(f"{home}: holds {len(inner)} adapters: {names}; name the folder of one")
    return inner[0] if inner else None


def checkpoints_in(place: Path) -> dict[Path, int]:
    """The checkpoints of a run and their steps, in the order of these: folders ``checkpoint-N``, or mlx-lm's files."""
    return _checkpoints_among(place, entries(place))


def _checkpoints_among(place: Path, listed: Iterable[Path]) -> dict[Path, int]:
    steps = {entry: step for entry in listed if (step := step_of(entry)) is not None}  # few others are looked at
    folders = {entry: steps[entry] for entry in sorted(steps, key=lambda entry: natural(entry.name)) if entry.is_dir()}
    files = {entry: step for entry, step in steps.items() if entry.is_file()}
    if folders and files:
        raise AdapterError(
            f"{place}: holds the checkpoints of two runs, {some(_names(folders), 2)} and {some(_names(files), 2)}; "
            "name one of them, or put the runs into folders of their own"
        )
    return dict(sorted((folders or files).items(), key=lambda run: run[1]))


def step_of(place: Path) -> int | None:
    """N of ``checkpoint-N`` and of ``N_adapters.safetensors``."""
    hit = CHECKPOINT.fullmatch(place.name) or STEP_FILE.fullmatch(place.name)
    return int(hit[1]) if hit else None


def _folders(place: Path) -> list[Path]:
    return sorted((entry for entry in entries(place) if entry.is_dir()), key=lambda entry: natural(entry.name))


def _weights_in(folder: Path) -> Path | None:
    """The weight file of a folder: PEFT's, or the only one that could be."""
    for name in WEIGHT_NAMES:
        place = folder / name
        if place.is_file():
            return place
        if place.exists():
            raise AdapterError(f"{place}: is a folder; expected the weight file")
    others = sorted(
        entry.name
        for entry in entries(folder)
        if entry.suffix in SUFFIXES and entry.is_file() and not NOT_WEIGHTS.fullmatch(entry.name)
        if not STEP_FILE.fullmatch(entry.name)
    )
    if len({Path(whole_name(name)).stem for name in others}) == 1:  # of two formats, safetensors
        return folder / min(others, key=lambda name: (SUFFIXES.index(Path(name).suffix), name))
    if others:
        raise AdapterError(f"{folder}: holds {len(others)} weight files; name one: {some(others)}")
    return None


def twins(weights: Path) -> list[str]:
    """Names of the files beside a weight file that differ by their suffix alone: the same weights in other formats."""
    stem = str(weights.with_suffix(""))  # texts, which cost a tenth of paths
    there = [Path(stem + suffix) for suffix in SUFFIXES if os.path.isfile(stem + suffix)]  # noqa: PTH113
    return [file.name for file in there if file != weights]


def whole_name(name: str) -> str:
    """The name that a weight file would have in one piece."""
    if name.endswith(DISTCP):
        return f"checkpoint{DISTCP}"
    hit = SHARD.fullmatch(name)
    return f"{hit['stem']}{hit['suffix']}" if hit else name


def _nothing_in(folder: Path, below: bool = True) -> str:
    if (folder / CONFIG_NAME).exists():
        return f"{folder}: holds {CONFIG_NAME} but no weights; expected {' or '.join(WEIGHT_NAMES[:2])}"
    inside = [shown for entry in _folders(folder) if (shown := _shown(entry, below))]
    if inside:
        return f"{folder}: holds no adapter itself; name one of its folders: {some(inside)}"
    for entry in sorted(entries(folder)):
        if entry.suffix in _OTHER_KINDS:
            return f"{folder}: holds no adapter but {entry.name}, which {_OTHER_KINDS[entry.suffix]}"
    return f"{folder}: holds no adapter; expected {CONFIG_NAME} and {' or '.join(WEIGHT_NAMES[:2])}"


def _shown(folder: Path, below: bool) -> str:
    """A folder's name where adapters lie in it, or in its checkpoints; empty where none do."""
    if any((folder / name).exists() for name in (*WEIGHT_NAMES, DISTCP_INDEX)):
        return folder.name
    if not below:
        return ""
    try:
        count = sum(CHECKPOINT.fullmatch(entry.name) is not None for entry in _folders(folder))
    except AdapterError:  # it may not be listed
        return ""
    return f"{folder.name} ({counted(count, 'checkpoint')})" if count else ""


def _names(places: Iterable[Path]) -> list[str]:
    return sorted((place.name for place in places), key=natural)


def named(folder: Path) -> Path:
    """The folder by a path that ends in its name. Links stay: the Hub's cache links each file to a nameless one."""
    folder = folder.absolute()
    return folder.resolve() if ".." in folder.parts else folder


def some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def download(hub_id: str, cache: Path | None = None) -> Path:
    """The adapter's files of a :data:`HUB_ID`, in the usual cache of the Hub or in another folder."""
    from huggingface_hub import snapshot_download  # here: only Hub ids need it

    names = (CONFIG_NAME, *WEIGHT_NAMES)
    names += ("adapter_model-*-of-*.*", "adapter_model.*.index.json", "*.lora.h5")
    patterns = [*names, *(f"checkpoint-*/{name}" for name in names)]
    hit = HUB_ID.fullmatch(hub_id)
    repo, revision = hit.group("repo", "revision") if hit else (hub_id, None)
    options = {"revision": revision, "cache_dir": cache}
    try:
        given = {name: value for name, value in options.items() if value is not None}
        return Path(snapshot_download(repo, allow_patterns=patterns, **given))
    except Exception as error:  # offline, unknown, private, disk full …: its errors share no base class
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise AdapterError(
            f"{hub_id}: is no path here, and the Hugging Face Hub gave no such adapter: {reason}{near(hub_id)}"
        ) from None
