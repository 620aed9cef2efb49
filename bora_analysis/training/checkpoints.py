"""Which checkpoints of a run are kept, and which of their files.

The Trainer writes adapter, optimiser and random state together. The analysis reads the adapters. Only the newest
checkpoint needs the state, to continue after a kill.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from ..patterns import late

_CHECKPOINT = late(r"checkpoint-(\d+)")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
#: All that is trained, exactly; PEFT's file of an adapter may leave some out.
TRAINED = "trained.pt"
_STATE = (TRAINED, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def newest_state(folder: Path) -> Path | None:
    """The newest checkpoint from which a run can continue; its last file, the Trainer's state, shows it is complete."""
    return next((found for _, found in sorted(_found(folder), reverse=True) if _is_complete(found)), None)


def discard_after(folder: Path, step: int) -> None:
    """Remove the checkpoints after ``step``, which a killed process may have left incomplete."""
    for number, found in _found(folder):
        if number > step:
            shutil.rmtree(found)


def prune(folder: Path, kept: Collection[int], state_of: int | None) -> None:
    """Keep the adapters of the ``kept`` steps and the whole checkpoint ``state_of``; remove the rest."""
    for number, found in _found(folder):
        if number not in (*kept, state_of):
            shutil.rmtree(found)
        elif number != state_of:
            keep_adapter(found)


def keep_adapter(folder: Path) -> None:
    """Remove everything but the adapter: state, model card, pickled arguments."""
    for file in folder.iterdir():
        if file.is_file() and file.name not in _ADAPTER:
            file.unlink()


def set_base_name(folder: Path, name: str) -> None:
    """Write the base model's name into an adapter trained from a folder with another name."""
    path = folder / _ADAPTER[0]
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _found(folder: Path) -> list[tuple[int, Path]]:
    entries = folder.iterdir() if folder.is_dir() else ()
    return [(int(hit[1]), entry) for entry in entries if entry.is_dir() and (hit := _CHECKPOINT.fullmatch(entry.name))]


def _is_complete(folder: Path) -> bool:
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((folder / name).is_file() for name in (*_ADAPTER, *_STATE))
