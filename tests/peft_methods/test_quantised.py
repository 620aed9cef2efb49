"""Merging into weights that torchao quantised, int8 on the CPU, through PEFT's own backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend, TorchaoBackend
from peft_cases import METHODS, base, get_peft_model, layers, output, randomise
from torch import Tensor
from transformers import LlamaForCausalLM, TorchAoConfig

from bora_analysis.peft_methods import HydraloraConfig

torchao = pytest.importorskip("torchao.quantization")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MERGED = ("bora", "melora", "sbora-fa", "sbora-fb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    base("llama").save_pretrained(path)
    return path


def quantised(folder: Path) -> Any:
    config = TorchAoConfig(quant_type=torchao.Int8WeightOnlyConfig(version=2))
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=config).eval()


def dequantised(layer: Any) -> Tensor:
    return layer.get_base_layer().weight.dequantize()


def adapted(folder: Path, method: str) -> Any:
    make = METHODS.get(method, HydraloraConfig)
    adapter = get_peft_model(quantised(folder), make(target_modules=["q_proj", "v_proj", "down_proj"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.05)
    return adapter.eval()


@pytest.mark.parametrize("method", MERGED)
@pytest.mark.parametrize("safe", [True, False])
def test_merging_quantises_the_sum(folder: Path, method: str, safe: bool) -> None:
    adapter = adapted(folder, method)
    assert "quantization_backend='torchao'" in repr(adapter)
    before = {key: dequantised(layer) for key, layer in layers(adapter).items()}
    expected = output(adapter, "llama")
    adapter.merge_adapter(safe_merge=safe)
    for key, layer in layers(adapter).items():
        assert isinstance(layer.quantization_backend, TorchaoBackend)
        exact = before[key] + layer.get_delta_weight("default")
        step = exact.abs().amax(1, keepdim=True) / 127  # int8, a scale for each row
        assert ((dequantised(layer) - exact).abs() <= 0.51 * step).all()
        assert not torch.equal(dequantised(layer), before[key])
    torch.testing.assert_close(output(adapter, "llama"), expected, rtol=0, atol=0.05 * expected.abs().max().item())
    adapter.unmerge_adapter()
    for key, layer in layers(adapter).items():
        step = (before[key].abs() + layer.get_delta_weight("default").abs()).amax(1, keepdim=True) / 127
        assert ((dequantised(layer) - before[key]).abs() <= 1.01 * step).all()
    merged = adapter.merge_and_unload(safe_merge=safe)
    assert type(merged.model.layers[0].self_attn.q_proj) is torch.nn.Linear
    torch.testing.assert_close(output(merged, "llama"), expected, rtol=0, atol=0.07 * expected.abs().max().item())


def test_a_refused_safe_merge_changes_nothing(folder: Path) -> None:
    adapter = adapted(folder, "bora")
    first, *_, last = layers(adapter).values()
    last.bora_B["default"].data[0, 0] = float("nan")
    before = dequantised(first)
    with pytest.raises(ValueError, match=r"^NaNs detected in the merged weights.*nothing was changed"):
        adapter.merge_adapter(safe_merge=True)
    torch.testing.assert_close(dequantised(first), before, rtol=0, atol=0)


def test_hydralora_says_that_it_is_the_token_and_not_the_weight(folder: Path) -> None:
    adapter = adapted(folder, "hydralora")
    with pytest.raises(ValueError, match="HydraLoRA's update depends on the token and cannot be merged; keep the"):
        adapter.merge_adapter()


def test_quantised_without_transformers_trains_but_is_not_merged() -> None:
    """Only transformers keeps how torchao quantised, which PEFT needs to do it again."""
    model = base("plain")
    torchao.quantize_(model.first, torchao.Int8WeightOnlyConfig(version=2))
    untouched = model(torch.ones(2, 16))
    adapter = get_peft_model(model, METHODS["bora"](target_modules=["first"]))
    (layer,) = layers(adapter).values()
    assert isinstance(layer.quantization_backend, ForwardOnlyQuantizationBackend)
    randomise(adapter)
    assert not torch.allclose(adapter(torch.ones(2, 16)), untouched)
    with pytest.raises(ValueError, match=r"^first: ΔW cannot be merged into a Linear with a quantised weight"):
        adapter.merge_adapter()
