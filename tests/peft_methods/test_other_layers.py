"""Embeddings and convolutions, what PEFT's configurations offer besides, vmap, and input that is not cast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from peft_cases import METHODS, adapted, base, get_peft_model, layers, load, output, randomise
from torch import Tensor, nn

from bora_analysis import convert, read_adapter
from bora_analysis.adapters import Adapter
from bora_analysis.peft_methods import BoraConfig, MeloraConfig

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")

IDS = torch.tensor([[3, 0, 11], [7, 3, 5]])
KINDS = {
    "embedding": (lambda: nn.Embedding(12, 8, padding_idx=0), IDS),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, padding=1), torch.randn(2, 4, 5)),
    "conv2d": (lambda: nn.Conv2d(4, 8, (3, 2), stride=2, padding=1, padding_mode="circular"), torch.randn(2, 4, 6, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 2, bias=False), torch.randn(2, 4, 3, 4, 3)),
}
CONFIGS = {
    "bora": lambda **options: BoraConfig(r=2, num_blocks=4, target_modules=["layer"], lora_alpha=5, **options),
    "bora-no-norm": lambda **options: BoraConfig(r=2, activation="no-norm", target_modules=["layer"], **options),
    "melora": lambda **options: MeloraConfig(r=2, num_minis=2, target_modules=["layer"], **options),
}


class One(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = KINDS[kind][0]()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def one(kind: str, config: Any) -> tuple[Any, Any]:
    adapter = get_peft_model(One(kind), config).eval()
    return adapter, layers(adapter)["layer"]


EVERY = [pytest.mark.parametrize("kind", KINDS), pytest.mark.parametrize("method", CONFIGS)]


def every(test: Any) -> Any:
    for mark in EVERY:
        test = mark(test)
    return test


@every
def test_start_gradients_and_merging(kind: str, method: str) -> None:
    adapter, layer = one(kind, CONFIGS[method]())
    x, untouched = KINDS[kind][1], One(kind)
    torch.testing.assert_close(adapter(x), untouched(x), rtol=0, atol=0)
    randomise(adapter)
    expected = adapter(x)
    assert (expected - untouched(x)).abs().max() > 0.1
    adapter.train()
    adapter(x).square().sum().backward()
    trained = {key: value for key, value in adapter.named_parameters() if value.requires_grad}
    assert {key.split(".")[-2] for key in trained} == set(layer.adapter_layer_names)
    for key, value in trained.items():
        assert value.grad is not None, key
        assert torch.isfinite(value.grad).all(), key
        assert value.grad.any(), key
    adapter.eval()
    before = layer.weight.clone()
    adapter.merge_adapter(safe_merge=True)
    torch.testing.assert_close(adapter(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.weight - before, layer.get_delta_weight("default"), rtol=1e-4, atol=1e-6)
    adapter.unmerge_adapter()
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=1e-6)
    torch.testing.assert_close(adapter.merge_and_unload()(x), expected, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_files_readers_and_the_conversion_to_lora(kind: str, method: str, tmp_path: Path) -> None:
    adapter, layer = one(kind, CONFIGS[method]())
    randomise(adapter)
    x = KINDS[kind][1]
    expected = adapter(x)
    adapter.save_pretrained(tmp_path / "own", save_embedding_layers=False)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = load(One(kind), tmp_path / "own", **options).eval()
        torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    read = read_adapter(tmp_path / "own")
    assert isinstance(read, Adapter)
    facts = read["layer"].facts
    assert (facts.out_features, facts.in_features, facts.r) == (layer.out_features, layer.in_features, 2)
    assert facts.kind == ("embedding" if kind == "embedding" else "conv")
    delta = layer.get_delta_weight("default")
    dense = delta.T if kind == "embedding" else delta.flatten(1)
    np.testing.assert_allclose(read["layer"].to_dense(), dense.detach().numpy(), rtol=1e-4, atol=1e-6)
    convert(tmp_path / "own", tmp_path / "lora")
    lora = load(One(kind), tmp_path / "lora").eval()
    assert lora.peft_config["default"].peft_type == "LORA"
    if kind == "conv2d":  # PEFT's LoRA does not know the padding mode until it is merged
        lora = lora.merge_and_unload()
    torch.testing.assert_close(lora(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_padding_token_and_a_scaled_embedding_as_in_lora(method: str) -> None:
    for config in (CONFIGS[method](), LoraConfig(r=2, target_modules=["layer"])):
        adapter = get_peft_model(One("embedding"), config)
        with torch.no_grad():
            for key, value in adapter.named_parameters():
                if "ora_" in key:
                    value.normal_(generator=torch.Generator().manual_seed(4))
        adapter(IDS).square().sum().backward()
        (A,) = (value for key, value in adapter.named_parameters() if "embedding_A" in key)
        assert A.grad is not None
        columns = A.grad.transpose(-1, -2).reshape(-1, 2)
        tokens = columns.abs().sum(1).nonzero().flatten().tolist()
        assert tokens == [3, 5, 7, 11]  # not 0, the padding
        plain = adapter(IDS) - One("embedding")(IDS)
        base_layer: Any = adapter.base_model.model.layer.base_layer  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        base_layer.embed_scale = 3.0
        torch.testing.assert_close(adapter(IDS) - One("embedding")(IDS), 3 * plain, rtol=1e-4, atol=1e-5)


def test_dropout_of_a_convolution() -> None:
    adapter, layer = one("conv2d", CONFIGS["bora"](lora_dropout=0.5))
    randomise(adapter)
    x = KINDS["conv2d"][1]
    exact = adapter(x)
    layer.train()
    torch.manual_seed(0)
    assert not torch.allclose(adapter(x), exact)


def test_blocks_that_do_not_divide_name_the_layer() -> None:
    with pytest.raises(ValueError, match=r"^layer: b = 5 does not divide m = 8 and n = 12; b may be 1, 2, 4"):
        one("embedding", BoraConfig(r=1, num_blocks=5, target_modules=["layer"]))
    # A mini has whole channels.
    with pytest.raises(ValueError, match=r"^layer: b = 8 does not divide m = 8 and n = 4"):
        one("conv1d", MeloraConfig(r=1, num_minis=8, target_modules=["layer"]))


def test_new_tokens_are_trained_beside_it(tmp_path: Path) -> None:
    adapter = adapted("llama", METHODS["bora"](trainable_token_indices=[1, 3], target_modules=["q_proj"]))
    with torch.no_grad():
        for key, value in adapter.named_parameters():
            if "trainable_tokens_delta" in key and "embed" in key:
                assert value.requires_grad
                value.add_(1.0)
    adapter.save_pretrained(tmp_path)
    loaded = load(base("llama"), tmp_path).eval()
    torch.testing.assert_close(output(loaded, "llama"), output(adapter, "llama"), rtol=0, atol=0)
    expected = output(adapter, "llama")
    assert not torch.allclose(expected, output(base("llama"), "llama"))
    read = read_adapter(tmp_path)
    assert isinstance(read, Adapter)
    assert set(read) == set(layers(adapter))
    torch.testing.assert_close(output(adapter.merge_and_unload(), "llama"), expected, rtol=1e-4, atol=1e-5)


def test_tied_heads_stay_tied() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))
    options: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    adapter = get_peft_model(model, BoraConfig(r=2, num_blocks=2, ensure_weight_tying=True, **options))
    inner = adapter.base_model.model
    head, tokens = (m.modules_to_save["default"] for m in (inner.lm_head, inner.model.embed_tokens))
    assert head.weight is tokens.weight
    assert head.weight.requires_grad


@pytest.mark.parametrize("method", ["bora", "melora", "sbora-fa"])
def test_vmap(method: str) -> None:
    adapter = adapted("plain", METHODS[method](target_modules=["first"]))
    (layer,) = layers(adapter).values()
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x), rtol=1e-4, atol=1e-5)
    gradient = torch.func.grad(lambda row: layer(row).square().sum())
    expected = torch.stack([gradient(row) for row in x])
    torch.testing.assert_close(torch.vmap(gradient)(x), expected, rtol=1e-4, atol=1e-5)


def test_input_that_is_not_cast() -> None:
    adapter = adapted("plain", METHODS["bora"](target_modules=["first"]))
    (layer,) = layers(adapter).values()
    seen: list[torch.dtype] = []
    layer.lora_dropout["default"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    layer.base_layer.to(torch.float64)
    x = torch.ones(2, 16, dtype=torch.float64)
    expected = layer(x)
    with disable_input_dtype_casting(adapter):
        torch.testing.assert_close(layer(x), expected)
    layer(x)
    assert seen == [torch.float32, torch.float64, torch.float32]
