"""Conversion to a plain LoRA that PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import convert_to_lora, save_as_lora
from peft_cases import METHODS, TARGETS, adapted, base, layers, load, output, randomise

from bora_analysis import read_adapter, write_adapter
from bora_analysis.adapters import Adapter, AdapterError
from bora_analysis.peft_methods import convert

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")

EVERY = [(model, method) for model in TARGETS for method in ("bora", "melora", "sbora-fa", "sbora-fb")]


@pytest.mark.parametrize(("model", "method"), [*EVERY, ("llama", "bora-no-exp"), ("bert", "bora-auto")])
def test_peft_loads_it_and_computes_the_same(model: str, method: str, tmp_path: Path) -> None:
    adapter = adapted(model, METHODS[method](lora_alpha=5))
    assert convert(adapter, tmp_path) == tmp_path
    # Any key that PEFT misses or does not know would be a warning, and so an error.
    lora = load(base(model), tmp_path).eval()
    torch.testing.assert_close(output(lora, model), output(adapter, model), rtol=1e-4, atol=1e-5)
    read = read_adapter(tmp_path)
    assert isinstance(read, Adapter)
    for key, layer in layers(adapter).items():
        peer = lora.base_model.model.get_submodule(key)
        exact = layer.get_delta_weight("default")
        reach = exact.abs().max().item()
        torch.testing.assert_close(peer.get_delta_weight("default"), exact, rtol=0, atol=1e-6 * reach)
        blocks = layer.num_blocks["default"] if method.startswith("bora") else 4 if method == "melora" else 1
        bound = min(layer.out_features, layer.in_features, blocks * layer.r["default"])
        assert peer.r["default"] == read[key].facts.r == bound  # random factors reach it
        assert peer.scaling["default"] == 1.0


def test_several_ranks_names_and_heads(tmp_path: Path) -> None:
    config = METHODS["bora"](modules_to_save=["head"], rank_pattern={"second": 1}, target_modules=["first", "second"])
    adapter = adapted("plain", config)
    adapter.add_adapter("two", METHODS["bora"](target_modules=["second"]))
    randomise(adapter)
    with torch.no_grad():
        adapter.base_model.model.head.modules_to_save["default"].weight += 1
    lora = load(base("plain"), convert(adapter, tmp_path / "one")).eval()
    torch.testing.assert_close(output(lora, "plain"), output(adapter, "plain"), rtol=1e-4, atol=1e-5)
    assert lora.base_model.model.first.r["default"] == 8
    assert lora.base_model.model.second.r["default"] == 4
    adapter.set_adapter("two")
    lora = load(base("plain"), convert(adapter, tmp_path / "two", adapter_name="two")).eval()
    torch.testing.assert_close(output(lora, "plain"), output(adapter, "plain"), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no adapter 'three'; it has default, two"):
        convert(adapter, tmp_path, adapter_name="three")


def test_from_a_folder_and_in_another_dtype(tmp_path: Path) -> None:
    adapter = adapted("llama", METHODS["bora"](task_type="CAUSAL_LM"))
    adapter.save_pretrained(tmp_path / "bora")
    convert(tmp_path / "bora", tmp_path / "lora", dtype="float64")
    told = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (told["peft_type"], told["task_type"]) == ("LORA", "CAUSAL_LM")
    before, after = read_adapter(tmp_path / "bora"), read_adapter(tmp_path / "lora")
    assert isinstance(before, Adapter)
    assert isinstance(after, Adapter)
    for key, update in before.items():
        exact = update.to_dense()
        np.testing.assert_allclose(after[key].to_dense(), exact, atol=1e-13 * np.abs(exact).max())
        assert after[key].facts.dtype == "float64"


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    adapter = adapted("plain", METHODS["bora"](bias="all"))
    with pytest.raises(ValueError, match=r"first\.base_layer\.bias .* is a trained bias"):
        convert(adapter, tmp_path)
    factors = {"B": np.ones((4, 1)), "A": np.ones((1, 4)), "sigma": np.ones((2, 2, 1))}
    for step in (1, 2):
        write_adapter(tmp_path / f"checkpoint-{step}", "bora", {"l": factors}, alpha=1)
    with pytest.raises(AdapterError, match="checkpoints"):
        convert(tmp_path, tmp_path / "out")


def test_a_fresh_adapter_becomes_a_lora_of_zeros(tmp_path: Path) -> None:
    adapter = adapted("plain", METHODS["bora"](), random=False)
    lora = load(base("plain"), convert(adapter, tmp_path))
    assert lora.base_model.model.first.r["default"] == 1
    torch.testing.assert_close(output(lora, "plain"), output(base("plain"), "plain"), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # PEFT's converter forgets it for Conv1D
@pytest.mark.parametrize(("model", "method"), EVERY)
def test_peft_converts_it_too(model: str, method: str, tmp_path: Path) -> None:
    adapter = adapted(model, METHODS[method]())
    assert adapter.supports_lora_conversion()
    config, state = convert_to_lora(adapter, rank=8)
    assert config.r == 8
    assert len(state) == 2 * len(layers(adapter))
    save_as_lora(tmp_path, adapter, rank=8)
    lora = load(base(model), tmp_path).eval()
    torch.testing.assert_close(output(lora, model), output(adapter, model), rtol=1e-3, atol=1e-4)
