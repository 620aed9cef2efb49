"""The recipes for other programs, with stand-ins for what they import, and transformers' own reporters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel
from peft_cases import base, get_peft_model, layers
from transformers import Trainer, TrainingArguments
from transformers.integrations import integration_utils

from bora_analysis.peft_methods import BoraConfig, RankCallback

RECIPES = Path(__file__).parents[2] / "contrib" / "recipes"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Import a recipe afresh."""
    monkeypatch.syspath_prepend(RECIPES)

    def load(name: str) -> Any:
        for known in ("from_lora", name):
            monkeypatch.delitem(sys.modules, known, raising=False)
        return import_module(name)

    return load


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    for end in [i for i, letter in enumerate(name) if letter == "."]:
        if name[:end] not in sys.modules:
            monkeypatch.setitem(sys.modules, name[:end], ModuleType(name[:end]))
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    if "." in name:
        parent, _, own = name.rpartition(".")
        monkeypatch.setattr(sys.modules[parent], own, module, raising=False)
    return module


def test_a_bora_has_the_settings_of_the_lora(recipe: Callable[[str], Any]) -> None:
    settings: dict[str, Any] = {
        "r": 3, "lora_alpha": 5, "target_modules": ["q_proj"], "lora_dropout": 0.1, "use_rslora": True,
        "rank_pattern": {"q_proj": 4}, "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM",
        "target_parameters": [],
    }  # fmt: skip
    found = recipe("from_lora").bora_config(LoraConfig(**settings, bias="lora_only"), num_blocks=2)
    expected = BoraConfig(**settings, bias="bora_only", num_blocks=2)
    assert found == expected
    assert recipe("from_lora").bora_config(LoraConfig()) == BoraConfig()


@pytest.mark.parametrize(
    ("settings", "named"), [({"use_dora": True}, "use_dora"), ({"init_lora_weights": "pissa"}, "init_lora_weights")]
)
def test_what_only_a_lora_has_is_refused(recipe: Callable[[str], Any], settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: only a LoRA has such a setting"):
        recipe("from_lora").bora_config(LoraConfig(**settings))


def test_axolotl_makes_a_bora(recipe: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"])
    stand_in(monkeypatch, "axolotl.loaders.adapter", load_lora=lambda model, cfg, config_only: (None, lora))
    stand_in(
        monkeypatch,
        "axolotl.integrations.base",
        BasePlugin=object,
        AdapterCapabilities=lambda name: SimpleNamespace(name=name),
    )
    module = recipe("axolotl_bora")
    plugin = module.BoraPlugin()
    assert [known.name for known in plugin.get_adapter_capabilities()] == ["bora"]
    assert plugin.get_input_args() == "axolotl_bora.BoraArgs"
    usual = {"peft_autocast_adapter_dtype": None, "lora_model_dir": None, "load_in_4bit": None, "load_in_8bit": None}
    cfg = SimpleNamespace(
        **usual, adapter="bora", output_dir=str(tmp_path), bora=module.BoraArgs(bora={"num_blocks": 2, "every": 7}).bora
    )
    adapted, config = plugin.load_adapter(base("llama"), cfg)
    assert config == BoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], num_blocks=2)
    assert {layer.num_blocks["default"] for layer in layers(adapted).values()} == {2}
    assert plugin.load_adapter(base("llama"), cfg, config_only=True) == (None, config)
    (callback,) = plugin.add_callbacks_post_trainer(cfg, SimpleNamespace(log=print))
    assert (callback.path, callback.every) == (tmp_path / "ranks.parquet", 7)
    adapted.save_pretrained(tmp_path)
    cfg.lora_model_dir = str(tmp_path)
    loaded, _ = plugin.load_adapter(base("llama"), cfg)
    assert isinstance(loaded, PeftModel)
    torch.testing.assert_close(
        [layer.bora_A["default"] for layer in layers(loaded).values()],
        [layer.bora_A["default"] for layer in layers(adapted).values()],
    )
    cfg.load_in_4bit = True
    with pytest.raises(ValueError, match="load_in_4bit"):
        plugin.load_adapter(base("llama"), cfg)
    cfg.adapter = "lora"
    assert plugin.load_adapter(base("llama"), cfg) is None
    assert plugin.add_callbacks_post_trainer(cfg, None) == []


def test_llamafactory_makes_a_bora(recipe: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: Any = stand_in(monkeypatch, "llamafactory.model.adapter", LoraConfig=LoraConfig)
    recipe("llamafactory_bora").use_bora(num_blocks=2)
    made = theirs.LoraConfig(r=4, target_modules=["q_proj"], use_dora=False, use_rslora=False, modules_to_save=None)
    assert made == BoraConfig(r=4, target_modules=["q_proj"], num_blocks=2)


class Scalars(MagicMock):
    """In place of a program's module, and of TensorBoard's writer."""

    __version__ = "3.0"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.__spec__ = ModuleSpec("stand_in", None)

    def series(self, key: str) -> dict[int, float]:
        """Step → value, from whichever of the programs' calls was made."""
        told = [(call.kwargs["step"], call.kwargs["metrics"]) for call in self.log_metrics.call_args_list]
        logs = [call.args[0] for call in self.log.call_args_list]
        told += [(entry["train/global_step"], entry) for entry in logs]
        told += [(step, {name: value}) for name, value, step in (call.args for call in self.add_scalar.call_args_list)]
        return {step: entry[key] for step, entry in told if key in entry}


def _tensorboard(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Scalars]:
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=None)
    writer = Scalars()
    return integration_utils.TensorBoardCallback(writer), writer


def _reporter(monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> tuple[Any, Scalars]:
    module: Any = Scalars()
    module.utils.validation = SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)  # MLflow's
    monkeypatch.setitem(sys.modules, name, module)
    if name == "wandb":
        stand_in(monkeypatch, "wandb.sdk.lib.config_util", ConfigError=ValueError)
    monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: True)
    return getattr(integration_utils, kind)(), module


#: Reporter → how it is made, and what it puts before a name.
REPORTERS: dict[str, tuple[Callable[[pytest.MonkeyPatch], tuple[Any, Scalars]], str]] = {
    "tensorboard": (_tensorboard, "train/"),
    "wandb": (lambda patch: _reporter(patch, "wandb", "WandbCallback"), "train/"),
    "mlflow": (lambda patch: _reporter(patch, "mlflow", "MLflowCallback"), ""),
    "trackio": (lambda patch: _reporter(patch, "trackio", "TrackioCallback"), "train/"),
}


@pytest.mark.parametrize("name", REPORTERS)
def test_rank_curves_reach_the_reporters(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through transformers' own callback of each program; contrib/recipes says with which of them it was run."""
    make, before = REPORTERS[name]
    callback, seen = make(monkeypatch)
    model = get_peft_model(base("llama"), BoraConfig(r=2, num_blocks=2, target_modules=["q_proj", "v_proj"]))
    tokens = torch.arange(8) % 4
    settings: dict[str, Any] = {"max_steps": 4, "logging_steps": 1, "learning_rate": 0.05, "save_strategy": "no"}
    arguments = TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True, **settings)
    run = Trainer(model, arguments, train_dataset=[{"input_ids": tokens, "labels": tokens}] * 8)  # pyright: ignore[reportArgumentType]
    run.add_callback(callback)
    run.add_callback(RankCallback(tmp_path / "ranks.parquet", 2, log=run.log, budget=None))
    run.train()
    rows = pd.read_parquet(tmp_path / "ranks.parquet")
    for (projection, column), values in {
        (projection, column): part.groupby("step")[column].mean()
        for projection, part in rows.groupby("projection")
        for column in ("effective_rank", "entropy_rank", "energy")
    }.items():
        assert values.index.tolist() == [0, 2, 4]
        assert seen.series(f"{before}rank/{projection}/{column}") == pytest.approx(values.to_dict(), rel=1e-12)
    assert rows["energy"].iloc[-1] > 0
    assert set(seen.series(f"{before}loss")) == {1, 2, 3, 4}
