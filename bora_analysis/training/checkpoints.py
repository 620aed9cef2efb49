"""Which checkpoints a run keeps, and what of them.

The Trainer writes adapter, optimiser and random state together. The state is needed for the newest checkpoint alone,
to go on after a kill; the adapters are what the analysis reads.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def newest_state(folder: Path) -> Path | None:
    """The newest checkpoint from which a run can go on. The Trainer writes its state last, so that it tells."""
    return next((found for _, found in sorted(_found(folder), reverse=True) if _is_complete(found)), None)


def discard_after(folder: Path, step: int) -> None:
    """Remove what a killed process had begun after ``step``."""
    for number, found in _found(folder):
        if number > step:
            shutil.rmtree(found)


def prune(folder: Path, kept: Iterable[int], state_of: int | None) -> None:
    """Leave the adapters of the ``kept`` steps, and all of the checkpoint ``state_of``."""
    wanted = set(kept)
    for number, found in _found(folder):
        if number == state_of:
            continue
        if number not in wanted:
            shutil.rmtree(found)
            continue
        keep_adapter(found)


def keep_adapter(folder: Path) -> None:
    """Remove everything but the adapter: state, model card, pickled arguments."""
    for file in folder.iterdir():
        if file.is_file() and file.name not in _ADAPTER:
            file.unlink()


def set_base_name(folder: Path, name: str) -> None:
    """Record the base model's name, where it was trained from a folder of another name."""
    path = folder / _ADAPTER[0]
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _found(folder: Path) -> list[tuple[int, Path]]:
    entries = folder.iterdir() if folder.is_dir() else ()
    return [(int(hit[1]), entry) for entry in entries if entry.is_dir() and (hit := _CHECKPOINT.fullmatch(entry.name))]


def _is_complete(folder: Path) -> bool:
    if not all((folder / name).is_file() for name in (*_ADAPTER, *_STATE)):
        return False
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
