"""Adapters and zips for the tests of the dashboard."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bora_analysis import write_adapter

APP = Path(__file__).parents[1] / "app"
PAGES = ("spectra", "layers", "training", "capture", "compare", "relative", "trim", "merge", "lab", "budget", "paper")


class Named(io.BytesIO):
    """An uploaded file, as Streamlit hands it over."""

    def __init__(self, name: str, content: bytes):
        super().__init__(content)
        self.name = name


def adapter(folder: Path, seed: int = 0, rank: int = 3, layers: int = 2) -> Path:
    """A small LoRA adapter in the format of a trained one; queries and values."""
    rng = np.random.default_rng(seed)
    modules = {
        f"model.layers.{layer}.self_attn.{name}_proj": {
            "B": rng.standard_normal((12, rank)),
            "A": rng.standard_normal((rank, 16)),
        }
        for layer in range(layers)
        for name in "qv"
    }
    write_adapter(folder, "lora", modules, alpha=2 * rank)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path → bytes of every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def zipped(entries: Mapping[str, bytes] | list[tuple[str | zipfile.ZipInfo, bytes]], **options: int) -> bytes:
    """A zip of these entries, under exactly these names."""
    buffer = io.BytesIO()
    listed = list(entries.items()) if isinstance(entries, Mapping) else entries
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in listed:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.compress_type = options.get("method", zipfile.ZIP_DEFLATED)
            archive.writestr(info, content)
    return buffer.getvalue()
