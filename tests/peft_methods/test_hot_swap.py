"""PEFT's hot swap with BoRA and MELoRA: the model computes what a freshly loaded adapter computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import hotswap
from peft_cases import METHODS, TARGETS, adapted, base, get_peft_model, layers, load, output, randomise
from torch import Tensor, nn

from bora_analysis.peft_methods import BoraConfig, SboraConfig, register

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")


def other(name: str, config: Any, folder: Path, seed: int = 8) -> Any:
    """A second adapter, saved."""
    model = adapted(name, config)
    randomise(model, seed)
    model.save_pretrained(folder)
    return model


def swap(model: Any, folder: Path) -> None:
    hotswap.hotswap_adapter(model, str(folder), adapter_name="default", torch_device="cpu")


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("method", ["bora", "bora-no-exp", "melora"])
def test_as_a_fresh_adapter(model: str, method: str, tmp_path: Path) -> None:
    first = adapted(model, METHODS[method](lora_alpha=4))
    before = output(first, model)
    places = {name: value.data_ptr() for name, value in first.named_parameters()}
    scale = {"lora_alpha": 7, "use_rslora": True, "alpha_pattern": {TARGETS[model][0]: 3.0}}
    expected = output(other(model, METHODS[method](**scale), tmp_path / "new"), model)
    assert not torch.allclose(before, expected)
    swap(first, tmp_path / "new")
    close(output(first, model), expected)
    assert {name: value.data_ptr() for name, value in first.named_parameters()} == places  # in place
    first.save_pretrained(tmp_path / "again")  # with the new α
    close(output(load(base(model), tmp_path / "again").eval(), model), expected)


@pytest.mark.parametrize(("layer", "x"), [
    (nn.Embedding(12, 8), torch.arange(12)),
    (nn.Conv2d(4, 8, 3), torch.linspace(-1, 1, 400).view(4, 4, 5, 5)),
])  # fmt: skip
@pytest.mark.parametrize("method", ["bora", "melora"])
def test_other_layers(layer: nn.Module, x: Tensor, method: str, tmp_path: Path) -> None:
    def made(seed: int) -> Any:
        model = get_peft_model(nn.Sequential(copy.deepcopy(layer)), METHODS[method](target_modules=["0"])).eval()
        randomise(model, seed)
        return model

    first, second = made(1), made(2)
    second.save_pretrained(tmp_path)
    assert not torch.allclose(first(x), second(x))
    swap(first, tmp_path)
    close(first(x), second(x))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, in its compiler
def test_a_compiled_model_is_right_with_another_alpha(tmp_path: Path) -> None:
    first = adapted("plain", METHODS["bora"](lora_alpha=4))
    compiled: Any = torch.compile(first, backend="eager")
    output(compiled, "plain")
    expected = output(other("plain", METHODS["bora"](lora_alpha=6), tmp_path), "plain")
    swap(compiled, tmp_path)
    close(output(compiled, "plain"), expected)
    with pytest.raises(ValueError, match="BoRA and MELoRA are swapped without it"):
        hotswap.prepare_model_for_compiled_hotswap(first, target_rank=4)


@pytest.mark.parametrize("method", ["bora", "melora"])
def test_a_layer_that_one_of_them_lacks(method: str, tmp_path: Path) -> None:
    whole = adapted("plain", METHODS[method]())
    whole.save_pretrained(tmp_path / "whole")
    part = other("plain", METHODS[method](target_modules=["second"]), tmp_path / "part")
    expected = output(part, "plain")
    swap(whole, tmp_path / "part")
    close(output(whole, "plain"), expected)
    assert not layers(whole)["first"].get_delta_weight("default").any()
    with pytest.raises(RuntimeError, match=f"unexpected keys found: base_model.model.first.{method}_A.default"):
        swap(part, tmp_path / "whole")


@pytest.mark.parametrize(("method", "change", "message"), [
    ("bora", {"num_blocks": 8}, r"first.bora_sigma.default has shape \(8, 8, 2\), the loaded one"),
    ("bora", {"num_blocks": 2}, r"has shape \(2, 2, 2\), the loaded one \(4, 4, 2\)"),
    ("bora", {"r": 1}, r"has shape \(1, 16\), the loaded one \(2, 16\)"),
    ("bora", {"rank_pattern": {"second": 3}}, r"second.bora_A.default has shape \(3, 24\)"),
    ("bora", {"activation": "no-exp"}, "activation, exp-norm != no-exp"),
    ("melora", {"num_minis": 2}, r"has shape \(2, 2, 8\), the loaded one \(4, 2, 4\)"),
    ("melora", {"lora_dropout": 0.1}, "lora_dropout, 0.0 != 0.1"),
])  # fmt: skip
def test_another_shape_is_refused_and_nothing_changes(
    method: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    first = adapted("plain", METHODS[method]())
    before = output(first, "plain")
    config = METHODS[method]()
    for setting, value in change.items():
        setattr(config, setting, value)
    other("plain", config, tmp_path)
    with pytest.raises(ValueError, match=message):
        swap(first, tmp_path)
    close(output(first, "plain"), before)


def test_merged_adapters_other_methods_and_peft_own(tmp_path: Path) -> None:
    first = adapted("plain", METHODS["bora"]())
    second = other("plain", METHODS["bora"](), tmp_path / "bora")
    first.merge_adapter()
    with pytest.raises(ValueError, match="it is merged; call unmerge_adapter first"):
        swap(first, tmp_path / "bora")
    other("plain", METHODS["melora"](), tmp_path / "melora")
    with pytest.raises(ValueError, match="Incompatible PEFT types found: BORA and MELORA"):
        swap(second, tmp_path / "melora")
    sbora = other("plain", SboraConfig(r=3), tmp_path / "sbora")
    with pytest.raises(ValueError, match="only supports LORA, BORA, MELORA but SBORA was passed"):
        swap(sbora, tmp_path / "sbora")
    lora = adapted("plain", LoraConfig(r=2))
    hotswap.prepare_model_for_compiled_hotswap(lora, target_rank=4)
    expected = output(other("plain", LoraConfig(r=4, lora_alpha=3), tmp_path / "lora"), "plain")
    register()
    swap(lora, tmp_path / "lora")
    torch.testing.assert_close(output(lora, "plain"), expected)
    assert isinstance(first.active_peft_config, BoraConfig)


def test_half_a_layer_is_refused_and_loading_one_warns(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    first = adapted("plain", METHODS["bora"]())
    other("plain", METHODS["bora"](), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "first.bora_B" not in key}, file)
    with pytest.raises(RuntimeError, match=r"missing keys: base_model.model.first.bora_B.default"):
        swap(first, tmp_path)
    with pytest.warns(UserWarning, match=r"missing adapter keys .*first\.bora_B\.default"):
        load(base("plain"), tmp_path)
