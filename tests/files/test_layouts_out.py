"""Layouts out: what is written has the same ΔW, for us and for the program that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import one

from bora_analysis import Adapter, convert, write_adapter
from bora_analysis.catalogue import LAYOUTS
from bora_analysis.files.layouts import OUT

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402

RNG = np.random.default_rng(0)
# Modules of a U-Net, in diffusers' names, and of its text encoder.
UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (8, 6),
    "mid_block.attentions.0.proj_in": (6, 6),
    "up_blocks.1.resnets.0.time_emb_proj": (5, 9),
}
TEXT = {"text_model.encoder.layers.0.self_attn.q_proj": (6, 8), "text_model.encoder.layers.0.mlp.fc1": (9, 4)}


def factors(shapes: dict[str, tuple[int, int]], r: int = 3) -> dict[str, dict[str, Any]]:
    return {
        module: {"B": RNG.standard_normal((m, r)).astype("f4"), "A": RNG.standard_normal((r, n)).astype("f4")}
        for module, (m, n) in shapes.items()
    }


def product(pair: dict[str, Any], scaling: float = 1.0) -> np.ndarray:
    B, A = (pair[name].reshape(len(pair[name]), -1).astype(np.float64) for name in "BA")
    return scaling * B @ A


def close(adapter: Adapter, exact: dict[str, np.ndarray]) -> None:
    assert set(adapter) == set(exact)
    for module, dense in exact.items():
        np.testing.assert_allclose(adapter[module].to_dense(), dense, atol=1e-6 * max(np.abs(dense).max(), 1e-30))


def kohya(path: Path, pairs: dict[str, dict[str, Any]], alpha: float, **metadata: str) -> Path:
    """A file as sd-scripts saves it."""
    content = {}
    for module, pair in pairs.items():
        content[f"{module}.lora_down.weight"] = torch.tensor(pair["A"])
        content[f"{module}.lora_up.weight"] = torch.tensor(pair["B"])
        content[f"{module}.alpha"] = torch.tensor(alpha)
    save_file(content, path, metadata=metadata)
    return path


def test_every_layout_is_in_the_menu() -> None:
    assert ("same", *sorted(OUT, key=LAYOUTS.index)) == LAYOUTS


@pytest.mark.parametrize("layout", OUT)
def test_a_file_of_every_layout_has_the_same_updates(layout: str, tmp_path: Path) -> None:
    pairs = factors({"model.layers.0.self_attn.q_proj": (8, 6), "model.layers.10.mlp.down_proj": (6, 12)})
    pairs["model.layers.10.mlp.down_proj"]["B"][:, 1:] = 0  # another rank
    source = write_adapter(tmp_path / "a", "lora", pairs, alpha=5, base_model="org/base")
    exact = {module: product(pair, 5 / 3) for module, pair in pairs.items()}
    done = convert(source, tmp_path / "b", layout=layout)
    assert (done.layout, {module: cut.rank for module, cut in done.cuts.items()}) == (
        layout,
        dict(zip(exact, (3, 1), strict=True)),
    )
    written = one(tmp_path / "b")
    assert written.layout == ("peft" if layout == "per-expert" else layout)
    close(written, dict(zip(written, exact.values(), strict=True)))
