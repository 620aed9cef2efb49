"""Save a BoRA adapter, or load the other side's: ``python exchange.py FOLDER (upstream|here) (save|load)``.

Upstream is PEFT with the patch series, without this package; here is this package with PEFT as it is released.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import nn

CASES: dict[str, dict[str, Any]] = {
    "plain": {"r": 2, "num_blocks": 4, "lora_alpha": 5, "target_modules": ["first", "second"]},
    "auto": {"r": 3, "activation": "no-norm", "use_rslora": True, "target_modules": ["second"], "bias": "bora_only"},
    "others": {"r": 2, "num_blocks": 2, "target_modules": ["words", "image"], "modules_to_save": ["second"]},
    "padded": {"r": 2, "num_blocks": 5, "pad": True, "target_modules": ["first", "second", "words", "image"]},
    "patterns": {
        "r": 4,
        "num_blocks": {"first": 8},
        "rank_pattern": {"second": 1},
        "alpha_pattern": {"first": 3},
        "target_modules": "first|second",
    },
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.image = nn.Embedding(12, 16), nn.Conv2d(4, 16, 3)
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 8)

    def forward(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(self.words(ids) + self.image(pixels).mean((2, 3))[:, None])))


def main(folder: Path, side: str, action: str) -> None:
    if side == "here":
        from bora_analysis.peft_methods import BoraConfig
    else:
        assert "bora_analysis" not in sys.modules
        BoraConfig = peft.BoraConfig  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(1)
    inputs = (torch.arange(10).reshape(2, 5), torch.randn(2, 4, 5, 5))
    for name, settings in CASES.items():
        other = folder / ("upstream" if side == "here" else "here") / name
        if action == "save":
            made = peft.get_peft_model(Model(), BoraConfig(**settings, init_lora_weights=False))
            own = folder / side / name
        else:
            made = peft.PeftModel.from_pretrained(Model(), other)
            own = folder / f"{side}-again" / name
        made.save_pretrained(own, save_embedding_layers=False)  # pyright: ignore[reportArgumentType]
        output = made.eval()(*inputs)
        if action == "save":
            save_file({"output": output.detach()}, own / "output.safetensors")
            continue
        assert torch.equal(output, load_file(other / "output.safetensors")["output"]), name
        before, after = (load_file(place / "adapter_model.safetensors") for place in (other, own))
        assert before.keys() == after.keys(), name
        assert all(torch.equal(before[key], after[key]) for key in before), name


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
