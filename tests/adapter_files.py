"""Adapter folders of a few tensors, and their readers, for several tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bora_analysis.adapters import Adapter, read_adapter

CLOSE = 1e-5  # float32 rounding in PEFT's merge


def write(folder: Path, content: dict[str, np.ndarray], config: dict[str, Any] | None) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    save_file(
        {f"base_model.model.l.q.{key}": value for key, value in content.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").unlink(missing_ok=True)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def one(path: Path, **options: Any) -> Adapter:
    adapter = read_adapter(path, **options)
    assert isinstance(adapter, Adapter)
    return adapter
