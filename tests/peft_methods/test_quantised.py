"""Merging into quantised weights on the CPU, through PEFT's own backends: torchao, and bitsandbytes if it is there."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend
from peft_cases import METHODS, base, get_peft_model, layers, output, randomise
from torch import Tensor
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

from bora_analysis.peft_methods import HydraloraConfig

torchao = pytest.importorskip("torchao.quantization")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MERGED = ("bora", "melora", "sbora-fa", "sbora-fb")
#: bitsandbytes multiplies rows in blocks of 32 on a CPU with AVX-512, so the sizes are multiples of it.
SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


def by_rows(weight: Tensor) -> Tensor:
    """The largest error of int8 with a scale for each row: half a step."""
    return 0.51 * weight.abs().amax(1, keepdim=True) / 127


def by_rows_in_half(weight: Tensor) -> Tensor:
    """bitsandbytes rounds the weight to float16 first."""
    return by_rows(weight) + weight.abs() * 2**-11


def by_64(weight: Tensor) -> Tensor:
    """The largest error of NF4 with a scale for 64 numbers: half of the widest gap, between -1 and -0.696."""
    return (0.153 * weight.reshape(-1, 64).abs().amax(1, keepdim=True)).expand(-1, 64).reshape(weight.shape)


#: Name of PEFT's backend → how transformers quantises, and the largest error of a weight.
KINDS: dict[str, tuple[Callable[[], Any], Callable[[Tensor], Tensor]]] = {
    "torchao": (lambda: TorchAoConfig(quant_type=torchao.Int8WeightOnlyConfig(version=2)), by_rows),
    "bnb 8bit": (lambda: BitsAndBytesConfig(load_in_8bit=True), by_rows_in_half),
    "bnb 4bit": (lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), by_64),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=2)).save_pretrained(path)
    return path


def quantised(folder: Path, kind: str) -> Any:
    if kind.startswith("bnb") and find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=KINDS[kind][0]()).eval()


def dequantised(layer: Any) -> Tensor:
    return layer.get_base_weight().float()


def adapted(folder: Path, method: str, kind: str = "torchao") -> Any:
    make = METHODS.get(method, HydraloraConfig)
    adapter = get_peft_model(quantised(folder, kind), make(target_modules=["q_proj", "v_proj", "down_proj"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.05)
    return adapter.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", MERGED)
@pytest.mark.parametrize("safe", [True, False])
def test_merging_quantises_the_sum(folder: Path, method: str, safe: bool, kind: str) -> None:
    adapter, largest = adapted(folder, method, kind), KINDS[kind][1]
    assert f"quantization_backend='{kind}'" in repr(adapter)
    kind_of_layer = type(next(iter(layers(adapter).values())).get_base_layer())
    before = {key: dequantised(layer) for key, layer in layers(adapter).items()}
    adapter.train()  # see test_a_reordered_weight_is_refused; the model has no dropout
    expected = output(adapter, "llama")
    adapter.merge_adapter(safe_merge=safe)
    for key, layer in layers(adapter).items():
        assert layer.quantization_backend.backend_name == kind
        exact = before[key] + layer.get_delta_weight("default")
        assert ((dequantised(layer) - exact).abs() <= largest(exact)).all()
        assert not torch.equal(dequantised(layer), before[key])
    reach = expected.abs().max().item() * (0.3 if largest is by_64 else 0.05)
    torch.testing.assert_close(output(adapter, "llama"), expected, rtol=0, atol=reach)
    adapter.unmerge_adapter()
    for key, layer in layers(adapter).items():
        both = largest(before[key].abs() + layer.get_delta_weight("default").abs())
        assert ((dequantised(layer) - before[key]).abs() <= 2 * both).all()
    merged = adapter.merge_and_unload(safe_merge=safe)
    assert type(merged.model.layers[0].self_attn.q_proj) is kind_of_layer
    torch.testing.assert_close(output(merged, "llama"), expected, rtol=0, atol=1.5 * reach)


def test_a_reordered_weight_is_refused(folder: Path) -> None:
    """PEFT's own LoRA adds ΔW to a wrong weight there."""
    adapter = adapted(folder, "bora", "bnb 4bit").train()
    adapter.merge_adapter()
    adapter.eval()
    with torch.no_grad():
        expected = output(adapter, "llama")
    layer = next(iter(layers(adapter).values()))
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("needs a processor with AVX512-BF16")
    with pytest.raises(ValueError, match=r"q_proj: bitsandbytes has reordered the 4-bit weight"):
        adapter.unmerge_adapter()
    with torch.no_grad():
        torch.testing.assert_close(output(adapter, "llama"), expected, rtol=0, atol=0)
    adapter = adapted(folder, "bora", "bnb 4bit")
    with torch.no_grad():
        expected = output(adapter, "llama")
    with pytest.raises(ValueError, match=r"q_proj: bitsandbytes has reordered the 4-bit weight"):
        adapter.merge_adapter()
    with torch.no_grad():
        torch.testing.assert_close(output(adapter, "llama"), expected, rtol=0, atol=0)


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
