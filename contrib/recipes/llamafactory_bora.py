"""LLaMA-Factory with BoRA where its options ask for a LoRA: ``python llamafactory_bora.py train.yaml``.

``finetuning_type: lora``, ``lora_rank``, ``lora_alpha``, ``lora_target`` and the others mean what they mean for a LoRA.
The ranks go to ``ranks.parquet`` in the working folder. LLaMA-Factory 0.9.5 asks for an older PEFT than BoRA needs:
``DISABLE_VERSION_CHECK=1``.
"""

from __future__ import annotations

from typing import Any

from from_lora import bora_config
from peft import LoraConfig

from bora_analysis.peft_methods import BoraConfig, RankCallback


def use_bora(**own: Any) -> None:
    """Let LLaMA-Factory make a BoRA; ``own`` are settings of ``BoraConfig``, such as ``num_blocks``."""
    from llamafactory.model import adapter  # pyright: ignore[reportMissingImports]

    def make(**settings: Any) -> BoraConfig:
        return bora_config(LoraConfig(**settings), **own)

    adapter.LoraConfig = make


def main() -> None:
    use_bora(num_blocks="auto")
    from llamafactory.train.tuner import run_exp  # pyright: ignore[reportMissingImports]

    run_exp(callbacks=[RankCallback("ranks.parquet")])


if __name__ == "__main__":
    main()
