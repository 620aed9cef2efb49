"""BoRA in Axolotl, as a plugin. With this folder in PYTHONPATH, in the YAML file:

.. code-block:: yaml

    plugins: [axolotl_bora.BoraPlugin]
    adapter: bora
    lora_r: 8          # lora_* and peft_* mean what they mean for a LoRA
    lora_alpha: 16
    lora_target_linear: true
    bora: {num_blocks: auto, every: 50}

The ranks go to ``ranks.parquet`` in ``output_dir``, and their means to every reporter of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin  # pyright: ignore[reportMissingImports]
from from_lora import bora_config
from peft import PeftModel, get_peft_model
from pydantic import BaseModel, Field

from bora_analysis.peft_methods import RankCallback


class BoraOptions(BaseModel):
    """BoRA's own settings, those of ``BoraConfig``, and the steps between two records of the ranks."""

    num_blocks: int | str | dict[str, int | str] = "auto"
    activation: str = "exp-norm"
    every: int = 50


class BoraArgs(BaseModel):
    """The block ``bora`` in the YAML file."""

    bora: BoraOptions = Field(default_factory=BoraOptions)


class BoraPlugin(BasePlugin):
    """The adapter ``bora``."""

    def get_input_args(self) -> str:
        return f"{__name__}.BoraArgs"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        return [AdapterCapabilities(name="bora")]

    def load_adapter(self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False) -> Any:
        if cfg.adapter != "bora":
            return None
        if cfg.load_in_4bit or cfg.load_in_8bit:  # Axolotl quantises for its own adapters only
            raise ValueError("load_in_4bit, load_in_8bit: Axolotl ignores them for adapter: bora; expected neither")
        from axolotl.loaders.adapter import load_lora  # pyright: ignore[reportMissingImports]

        _, lora = load_lora(model, cfg, config_only=True)
        config = bora_config(lora, num_blocks=cfg.bora.num_blocks, activation=cfg.bora.activation)
        if config_only:
            return None, config
        cast = cfg.peft_autocast_adapter_dtype
        told = {} if cast is None else {"autocast_adapter_dtype": cast}
        if cfg.lora_model_dir:
            adapted = PeftModel.from_pretrained(model, cfg.lora_model_dir, is_trainable=not inference, **told)
        else:
            adapted = get_peft_model(model, config, **told)
        return adapted, config

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        if cfg.adapter != "bora":
            return []
        return [RankCallback(Path(cfg.output_dir) / "ranks.parquet", cfg.bora.every, log=trainer.log)]
