"""The adapters in a folder and in the folders below it."""

from __future__ import annotations

import os
from pathlib import Path

from ...adapters import AdapterError
from ...adapters.locate import NOT_WEIGHTS, SUFFIXES, homes
from ...files.base_model import entries
from ...files.configuration import CONFIG_NAME
from ...files.keys import natural


def places(place: Path, steps: bool = False, *, expected: bool = True) -> list[Path]:
    """Where adapters lie: in the place itself, in its checkpoints, or else in the folders below it.

    Several weight files in one folder without a configuration are an adapter each. Hidden folders are left out, links
    to folders are not followed.

    Raises
    ------
    AdapterError
        There are none, and there should be (``expected``).
    """
    try:
        return homes(place, steps)
    except AdapterError:
        below = _below(place, steps) if place.is_dir() else []
        if expected and not below:
            raise
        return below


def _below(folder: Path, steps: bool) -> list[Path]:
    if (folder / CONFIG_NAME).exists():  # one adapter, at fault: its error is a finding
        return [folder]
    found = []
    for entry in sorted(entries(folder), key=lambda entry: natural(entry.name)):
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():
            try:
                found += homes(entry, steps, below=False)
            except AdapterError:
                found += _below(entry, steps) if os.access(entry, os.R_OK | os.X_OK) else [entry]
        elif entry.suffix in SUFFIXES and not NOT_WEIGHTS.fullmatch(entry.name):
            found.append(entry)
    return found
