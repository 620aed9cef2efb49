"""``adapter_names``: a batch whose samples have adapters of their own, as in PEFT's LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft_cases import METHODS, TOKENS, adapted, base, get_peft_model, layers, randomise

from bora_analysis.peft_methods import BoraConfig, HydraloraConfig

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")
NAMES = ["two", "__base__", "default", "two"]
BATCH = torch.arange(28).reshape(4, 7) % 11


def two_adapters(method: str) -> Any:
    make = METHODS.get(method, HydraloraConfig)
    adapter = adapted("llama", make(target_modules=["q_proj", "v_proj"]))
    adapter.add_adapter("two", make(target_modules=["v_proj", "up_proj"], lora_alpha=3))
    torch.manual_seed(2)
    with torch.no_grad():
        for key, parameter in adapter.named_parameters():
            if f"{method.split('-')[0]}_" in key:
                parameter.normal_(0, 0.3)
    return adapter.eval()


@pytest.mark.parametrize("method", ["bora", "melora", "sbora-fa", "sbora-fb", "hydralora"])
def test_each_sample_has_its_adapter(method: str) -> None:
    adapter = two_adapters(method)
    expected = []
    for name, sample in zip(NAMES, BATCH, strict=True):
        if name == "__base__":
            with adapter.disable_adapter():
                expected.append(adapter(sample[None]).logits)
        else:
            adapter.set_adapter(name)
            expected.append(adapter(sample[None]).logits)
    assert not torch.allclose(expected[0], expected[2])
    found = adapter(BATCH, adapter_names=NAMES).logits
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
    # The hooks are gone.
    torch.testing.assert_close(adapter(BATCH[3:]).logits, expected[3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generation_with_and_without_beams(dtype: torch.dtype) -> None:
    adapter = two_adapters("bora").to(dtype)
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    for beams in (1, 2):
        found = adapter.generate(input_ids=BATCH, num_beams=beams, adapter_names=NAMES, **options)
        adapter.set_adapter("default")
        alone = adapter.generate(input_ids=BATCH[2:3], num_beams=beams, **options)
        assert found[2].tolist()[: alone.shape[1]] == alone[0].tolist()


def test_an_embedding_and_modules_to_save() -> None:
    common: dict[str, Any] = {"r": 2, "num_blocks": 2, "modules_to_save": ["lm_head"]}
    adapter = get_peft_model(base("llama"), BoraConfig(target_modules=["embed_tokens"], **common))
    adapter.add_adapter("two", BoraConfig(target_modules=["q_proj"], **common))
    randomise(adapter)
    with torch.no_grad():
        adapter.base_model.model.lm_head.modules_to_save["two"].weight += 1
    adapter.eval()
    found = adapter(BATCH, adapter_names=NAMES).logits
    for row, name in ((0, "two"), (2, "default")):
        adapter.set_adapter(name)
        torch.testing.assert_close(found[row], adapter(BATCH[row][None]).logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Already unmerged")
def test_what_is_refused_as_by_lora() -> None:
    lora = adapted("llama", LoraConfig(target_modules=["q_proj"]), random=False)
    for adapter in (two_adapters("bora"), lora):
        with pytest.raises(ValueError, match="Length of `adapter_names` should be the same as the number of inputs"):
            adapter(TOKENS, adapter_names=["default"])
        with pytest.raises(ValueError, match="non-existing adapter\\(s\\): three"):
            adapter(TOKENS, adapter_names=["default", "three"])
        adapter.merge_adapter()
        with pytest.raises(ValueError, match="when there are merged adapters"):
            adapter(TOKENS, adapter_names=["default", "default"])
        adapter.unmerge_adapter()
        adapter.train()
        with pytest.raises(ValueError, match="training mode"):
            adapter(TOKENS, adapter_names=["default", "default"])
        # A refusal leaves no hook behind.
        assert not any(layer._forward_pre_hooks for layer in layers(adapter).values())
