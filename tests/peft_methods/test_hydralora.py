"""HydraLoRA, and MoELoRA, as PEFT methods: the training contract, and what it cannot do."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft_cases import TARGETS, base, get_peft_model, layers, load, output

from bora_analysis import AdapterError, read_adapter
from bora_analysis.peft_methods import HydraloraConfig, MoeloraConfig, convert

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
FACTORS = ("hydralora_A", "hydralora_B", "hydralora_route")


def adapted(name, seed=0, **options):
    torch.manual_seed(seed)
    return get_peft_model(base(name), HydraloraConfig(r=2, target_modules=set(TARGETS[name]), **options))


@pytest.mark.parametrize("name", TARGETS)
def test_step_0_is_the_base_model_and_gradients_reach_every_factor(name):
    model = adapted(name)
    assert torch.equal(output(model.eval(), name), output(base(name), name))
    model.train()
    for step in range(2):  # B = 0 keeps A's and the router's gradients at zero until B has moved
        output(model, name).square().mean().backward()
        grown = dict.fromkeys(FACTORS, False)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, key
                for factor in FACTORS:
                    grown[factor] |= factor in key and bool(parameter.grad.abs().max() > 0)
                with torch.no_grad():
                    parameter -= 0.1 * torch.sign(parameter.grad)
                    parameter.grad = None
        assert grown == {factor: factor == "hydralora_B" or step > 0 for factor in FACTORS}


@pytest.mark.parametrize("name", TARGETS)
def test_saved_and_loaded_it_gives_the_same_output(name, tmp_path):
    ranks = {"first": 3} if name == "plain" else {}
    model = adapted(name, init_lora_weights=False, num_experts=4, use_rslora=True, rank_pattern=ranks).eval()
    expected = output(model, name)
    model.save_pretrained(tmp_path)
    again = load(base(name), tmp_path).eval()
    assert torch.equal(output(again, name), expected)
    with again.disable_adapter():
        assert torch.equal(output(again, name), output(base(name), name))
    assert not torch.equal(expected, output(base(name), name))


def test_the_output_is_the_definition():
    model = adapted("plain", init_lora_weights=False, lora_alpha=6, num_experts=3).eval()
    layer, x = layers(model)["first"], torch.randn(4, 5, 16)
    A, B, route = (getattr(layer, factor)["default"] for factor in FACTORS)
    gates = (x @ route.T).softmax(-1)
    update = sum(gates[..., k : k + 1] * (x @ A.T @ B[k].T) for k in range(3))
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3 * update)


def test_one_expert_is_lora():
    hydra = adapted("plain", num_experts=1, lora_alpha=5)
    lora = get_peft_model(base("plain"), LoraConfig(r=2, lora_alpha=5, target_modules=TARGETS["plain"]))
    for key, layer in layers(hydra).items():
        other = lora.base_model.model.get_submodule(key)
        with torch.no_grad():
            layer.hydralora_B["default"].normal_()
            other.lora_A["default"].weight.copy_(layer.hydralora_A["default"])
            other.lora_B["default"].weight.copy_(layer.hydralora_B["default"][0])
    torch.testing.assert_close(output(hydra.eval(), "plain"), output(lora.eval(), "plain"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_the_base(dtype):
    model = adapted("plain", init_lora_weights=False).eval()
    exact = output(model, "plain")
    half = copy.deepcopy(model).to(dtype)
    assert output(half, "plain").dtype == dtype
    torch.testing.assert_close(output(half, "plain").float(), exact, rtol=0.1, atol=0.1)


def test_what_depends_on_the_token_is_neither_merged_nor_converted(tmp_path):
    model = adapted("plain", init_lora_weights=False).eval()
    before = output(model, "plain")
    with pytest.raises(ValueError, match="depends on the token and cannot be merged"):
        model.merge_and_unload()
    with pytest.raises(ValueError, match="depends on the token, so there is no single ΔW"):
        layers(model)["first"].get_delta_weight("default")
    assert torch.equal(output(model, "plain"), before)
    with pytest.raises(AdapterError, match="depends on the token"):
        convert(model, tmp_path / "lora")
    model.save_pretrained(tmp_path / "saved")
    assert getattr(read_adapter(tmp_path / "saved"), "method", None) == "hydralora"


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_wrong_counts(count):
    with pytest.raises(ValueError, match=r"num_experts is .*; expected a positive integer"):
        HydraloraConfig(num_experts=count)


# --- MoELoRA, whose experts have an A each


def moelora(**options):
    torch.manual_seed(0)
    config = MoeloraConfig(r=2, target_modules=set(TARGETS["plain"]), **options)
    return get_peft_model(base("plain"), config).eval()


def test_the_output_of_moelora_is_the_definition(tmp_path):
    model = moelora(init_lora_weights=False, lora_alpha=6, num_experts=3)
    layer, x = layers(model)["first"], torch.randn(4, 5, 16)
    A, B, route = (getattr(layer, f"moelora_{part}")["default"] for part in ("A", "B", "route"))
    gates = (x @ route.T).softmax(-1)
    update = sum(gates[..., k : k + 1] * (x @ A[k].T @ B[k].T) for k in range(3))
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 3 * update)
    assert torch.equal(output(moelora(), "plain"), output(base("plain"), "plain"))  # B = 0
    model.save_pretrained(tmp_path)
    assert torch.equal(output(load(base("plain"), tmp_path).eval(), "plain"), output(model, "plain"))
    each: Any = read_adapter(tmp_path, experts="each", modules="first")
    for k, update in enumerate(each.values()):
        np.testing.assert_allclose(update.to_dense(), 3 * (B[k] @ A[k]).detach().numpy(), atol=1e-6)
    adapter: Any = read_adapter(tmp_path)
    mean = adapter["first"]
    expected = torch.einsum("kmr,krn->mn", B, A).detach().numpy()
    np.testing.assert_allclose(mean.to_dense(), expected, atol=1e-6)
    assert mean.facts.parameters == A.numel() + B.numel() + route.numel()
    with pytest.raises(ValueError, match="MoELoRA's update depends on the token and cannot be merged"):
        model.merge_and_unload()
