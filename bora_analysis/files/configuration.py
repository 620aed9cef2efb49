"""The configuration beside a weight file: PEFT's, LitGPT's two files, or OpenDelta's config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import AdapterError

CONFIG_NAME = "adapter_config.json"
#: Entry of the configuration that stands for LitGPT's files.
LITGPT = "litgpt"
_LITGPT_FILES = ("model_config.yaml", "hyperparameters.yaml")
_MODEL_CONFIG = "config.json"  # OpenDelta's, and a whole model's
#: The names of the files that may be read.
CONFIGURATIONS = (CONFIG_NAME, *_LITGPT_FILES, _MODEL_CONFIG)


def configuration_files(folder: Path) -> Iterator[Path]:
    """The files that :func:`read_configuration` opens."""
    if (folder / CONFIG_NAME).exists():
        yield folder / CONFIG_NAME
    else:
        yield from (path for name in (*_LITGPT_FILES, _MODEL_CONFIG) if (path := folder / name).is_file())


def read_configuration(folder: Path) -> dict[str, Any] | None:
    """The settings of an adapter, None where nothing is there.

    LitGPT's are ``{"litgpt": {…}}``, the model's and the run's together.
    """
    found = {path.name: _read(path) for path in configuration_files(folder)}
    if CONFIG_NAME in found:
        return found[CONFIG_NAME]
    if _LITGPT_FILES[0] in found or _LITGPT_FILES[1] in found:
        return {LITGPT: {name: value for file in _LITGPT_FILES for name, value in found.get(file, {}).items()}}
    model = found.get(_MODEL_CONFIG, {})
    return model if "delta_type" in model else None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{path}: cannot be read: {error}") from None
    try:
        settings = json.loads(text) if path.suffix == ".json" else _yaml(text)
    except ValueError as error:
        raise AdapterError(f"{path}: is no {path.suffix[1:].upper()}: {error}") from None
    except RecursionError:
        raise AdapterError(f"{path}: is nested too deeply; expected a dictionary of settings") from None
    if not isinstance(settings, dict):
        raise AdapterError(f"{path}: holds a {type(settings).__name__}; expected a dictionary of settings")
    return settings


def _yaml(text: str) -> Any:
    import yaml  # here: LitGPT's files alone need it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from None
