"""The configuration beside a weight file: PEFT's, or LitGPT's two files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import AdapterError

CONFIG_NAME = "adapter_config.json"
#: Entry of the configuration that stands for LitGPT's files.
LITGPT = "litgpt"
_MODEL, _RUN = "model_config.yaml", "hyperparameters.yaml"


def configuration_files(folder: Path) -> Iterator[Path]:
    """The files that :func:`read_configuration` opens."""
    if (folder / CONFIG_NAME).exists():
        yield folder / CONFIG_NAME
    else:
        yield from (path for name in (_MODEL, _RUN) if (path := folder / name).is_file())


def read_configuration(folder: Path) -> dict[str, Any] | None:
    """The settings of an adapter, None where nothing is there.

    LitGPT's are ``{"litgpt": {…}}``, the model's and the run's together.
    """
    files = list(configuration_files(folder))
    if not files:
        return None
    if files[0].name == CONFIG_NAME:
        return _read(files[0])
    return {LITGPT: {name: value for path in files for name, value in _read(path).items()}}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path}: cannot be read: {error}") from None
    try:
        settings = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except ValueError as error:
        raise AdapterError(f"{path}: is no {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(settings, dict):
        raise AdapterError(f"{path}: holds a {type(settings).__name__}; expected a dictionary of settings")
    return settings


def _yaml(text: str) -> Any:
    import yaml  # here: LitGPT's files alone need it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from None
