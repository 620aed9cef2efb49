"""What PEFT and a trainer expect of a method: start, gradients, saving, loading, merging, several adapters."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft_cases import FACTORS, METHODS, TARGETS, adapted, base, get_peft_model, layers, load, output, randomise
from safetensors.torch import load_file
from torch import nn

from bora_analysis import read_adapter
from bora_analysis.adapters import Adapter
from bora_analysis.peft_methods import BoraConfig, MeloraConfig, SboraConfig

# PEFT asks transformers 5 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")

EVERY = pytest.mark.parametrize(
    ("model", "method"),
    [(model, method) for model in TARGETS for method in ("bora", "melora", "sbora-fa", "sbora-fb")]
    + [("llama", method) for method in METHODS if method.startswith("bora-")],
)


def factors(method: str) -> tuple[str, ...]:
    return FACTORS["bora" if method.startswith("bora") else method]


@EVERY
def test_the_start_is_the_base_model_exactly(model: str, method: str) -> None:
    adapter = adapted(model, METHODS[method](), random=False)
    torch.testing.assert_close(output(adapter, model), output(base(model), model), rtol=0, atol=0)
    for layer in layers(adapter).values():
        assert not layer.get_delta_weight("default").any()


@EVERY
def test_gradients_reach_every_factor_and_nothing_else(model: str, method: str) -> None:
    torch.manual_seed(0)
    adapter = adapted(model, METHODS[method](), random=False)
    trained = {key: value for key, value in adapter.named_parameters() if value.requires_grad}
    kinds = {key.split(".")[-2] for key in trained}
    prefix = method.split("-")[0]
    assert kinds == {f"{prefix}_{factor}" for factor in factors(method)}
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    for step in range(2):
        optimizer.zero_grad()
        output(adapter, model).square().sum().backward()
        for key, value in trained.items():
            assert value.grad is not None, key
            assert torch.isfinite(value.grad).all(), key
            # B is zero at the start, so that its own gradient alone is not.
            if step or len(factors(method)) == 1 or "_B." in key:
                assert value.grad.abs().max() > 0, key
        optimizer.step()
    for key, value in adapter.named_parameters():
        assert key in trained or value.grad is None, key


@EVERY
def test_save_and_load(model: str, method: str, tmp_path: Path) -> None:
    adapter = adapted(model, METHODS[method]())
    adapter.save_pretrained(tmp_path)
    expected = output(adapter, model)
    loaded = load(base(model), tmp_path).eval()
    torch.testing.assert_close(output(loaded, model), expected, rtol=0, atol=0)
    assert type(loaded.peft_config["default"]) is type(adapter.peft_config["default"])
    assert not any(value.requires_grad for value in loaded.parameters())
    on_meta = load(base(model), tmp_path, low_cpu_mem_usage=True).eval()
    torch.testing.assert_close(output(on_meta, model), expected, rtol=0, atol=0)
    other = load(base(model), tmp_path, adapter_name="other", is_trainable=True).eval()
    torch.testing.assert_close(output(other, model), expected, rtol=0, atol=0)
    assert any(value.requires_grad for value in other.parameters())


@EVERY
def test_keys_and_shapes(model: str, method: str, tmp_path: Path) -> None:
    adapter = adapted(model, METHODS[method]())
    adapter.save_pretrained(tmp_path)
    found = load_file(tmp_path / "adapter_model.safetensors")
    expected: dict[str, tuple[int, ...]] = {}
    for module, layer in layers(adapter).items():
        m, n, r = layer.out_features, layer.in_features, layer.r["default"]
        place = f"base_model.model.{module}"
        if method.startswith("bora"):
            b = layer.num_blocks["default"]
            shapes = {"bora_A": (r, n), "bora_B": (m, r), "bora_sigma": (b, b, r)}
        elif method == "melora":
            shapes = {"melora_A": (4, r, n // 4), "melora_B": (4, m // 4, r)}
        else:
            shapes = {"sbora_B": (m, r)} if method == "sbora-fa" else {"sbora_A": (r, n)}
            shapes |= {"sbora_index": (r,), "sbora_size": (1,)}
            assert found[f"{place}.sbora_index"].dtype == torch.int64
            assert found[f"{place}.sbora_size"].item() == (n if method == "sbora-fa" else m)
        expected |= {f"{place}.{key}": shape for key, shape in shapes.items()}
    assert {key: tuple(value.shape) for key, value in found.items()} == expected
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["peft_type"] == method.split("-")[0].upper()


@EVERY
def test_the_reader_and_merging_agree(model: str, method: str, tmp_path: Path) -> None:
    """ΔW by the reader, in NumPy from the file, is what merging adds to the weights."""
    config = METHODS[method](lora_alpha=5, use_rslora=method == "bora")
    adapter = adapted(model, config)
    adapter.save_pretrained(tmp_path)
    read = read_adapter(tmp_path)
    assert isinstance(read, Adapter)
    assert set(read) == set(layers(adapter))
    expected, before = output(adapter, model), {key: layer.weight.clone() for key, layer in layers(adapter).items()}
    transposed = {key: layer.is_transposed for key, layer in layers(adapter).items()}
    adapter.merge_adapter(safe_merge=method == "melora")
    torch.testing.assert_close(output(adapter, model), expected, rtol=1e-4, atol=1e-5)
    for key, layer in layers(adapter).items():
        added = (layer.weight - before[key]).detach().double().numpy()
        np.testing.assert_allclose(added.T if transposed[key] else added, read[key].to_dense(), atol=2e-6)
        assert np.linalg.norm(added) > 0.1
    adapter.unmerge_adapter()
    for key, layer in layers(adapter).items():
        reach = (before[key].abs() + np.abs(read[key].to_dense()).max()).max().item()
        torch.testing.assert_close(layer.weight, before[key], rtol=0, atol=reach * 2**-23)
    merged = adapter.merge_and_unload()
    torch.testing.assert_close(output(merged, model), expected, rtol=1e-4, atol=1e-5)
    assert not layers(merged)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["bora", "melora", "sbora-fa", "sbora-fb"])
@pytest.mark.parametrize("cast", [True, False])
def test_merging_in_half_precision_rounds_once(method: str, dtype: torch.dtype, cast: bool) -> None:
    config = METHODS[method](target_modules=["first"])
    adapter = get_peft_model(base("plain").to(dtype), config, autocast_adapter_dtype=cast)
    randomise(adapter)
    (layer,) = layers(adapter).values()
    assert layer.trained_dtype("default") == (torch.float32 if cast else dtype)
    before = layer.weight.detach().clone()
    exact = before.double() + layer.dense_delta("default").double()
    adapter.merge_adapter()
    assert layer.weight.dtype == dtype
    torch.testing.assert_close(layer.weight.double(), exact.to(dtype).double(), rtol=0, atol=0)
    adapter.unmerge_adapter()
    # One rounding on the way there and one on the way back, each of half a unit in the last place.
    unit = torch.finfo(dtype).eps * torch.maximum(exact.abs(), before.double().abs())
    assert ((layer.weight.double() - before.double()).abs() <= unit).all()


@pytest.mark.parametrize("method", ["bora", "melora", "sbora-fa", "sbora-fb"])
@pytest.mark.parametrize("tokens", [1, 64])
def test_half_precision_and_autocast(method: str, tokens: int) -> None:
    torch.manual_seed(1)
    x = torch.randn(tokens, 16)
    adapter = adapted("plain", METHODS[method](target_modules=["first"]))
    (layer,) = layers(adapter).values()
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    reach = exact.abs().max().item()
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.02 * reach)
    found.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    found = half(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.04 * reach)


@pytest.mark.parametrize("method", ["bora", "melora", "sbora-fa", "sbora-fb"])
def test_several_adapters(method: str, tmp_path: Path) -> None:
    adapter = adapted("llama", METHODS[method](target_modules=["q_proj", "v_proj"]))
    one = output(adapter, "llama")
    adapter.add_adapter("two", METHODS[method](target_modules=["v_proj", "up_proj"], lora_alpha=3))
    torch.testing.assert_close(output(adapter, "llama"), one, rtol=0, atol=0)
    randomise(adapter, seed=8)
    one = output(adapter, "llama")
    adapter.set_adapter("two")
    two = output(adapter, "llama")
    assert not torch.allclose(one, two)
    trained = {key for key, value in adapter.named_parameters() if value.requires_grad}
    assert trained
    assert all(key.endswith(".two") for key in trained)
    with adapter.disable_adapter():
        torch.testing.assert_close(output(adapter, "llama"), output(base("llama"), "llama"), rtol=0, atol=0)
    torch.testing.assert_close(output(adapter, "llama"), two, rtol=0, atol=0)
    adapter.base_model.set_adapter(["default", "two"])
    both = output(adapter, "llama")
    weights = {key: layer.weight.clone() for key, layer in layers(adapter).items()}
    adapter.merge_adapter()
    torch.testing.assert_close(output(adapter, "llama"), both, rtol=1e-4, atol=1e-5)
    for key, layer in layers(adapter).items():
        deltas = [layer.get_delta_weight(name) for name in ("default", "two") if name in layer.scaling]
        torch.testing.assert_close(layer.weight - weights[key], sum(deltas), rtol=1e-4, atol=1e-6)
    adapter.unmerge_adapter()
    adapter.save_pretrained(tmp_path)
    loaded = load(base("llama"), tmp_path / "two").eval()
    torch.testing.assert_close(output(loaded, "llama"), two, rtol=0, atol=0)
    adapter.set_adapter("default")
    adapter.delete_adapter("two")
    torch.testing.assert_close(output(adapter, "llama"), one, rtol=0, atol=1e-5)  # merged and unmerged meanwhile
    assert not any("two" in key for key in adapter.state_dict())


def test_both_variants_of_sbora_on_one_model() -> None:
    adapter = adapted("plain", METHODS["sbora-fa"]())
    adapter.add_adapter("rows", METHODS["sbora-fb"](target_modules=["first"]))
    randomise(adapter)
    adapter.set_adapter("rows")
    expected = output(adapter, "plain")
    torch.testing.assert_close(output(adapter.merge_and_unload(), "plain"), expected)


def test_merging_one_of_two_and_merging_again() -> None:
    adapter = adapted("plain", METHODS["bora"]())
    adapter.add_adapter("two", METHODS["bora"](target_modules=["first"]))
    randomise(adapter, seed=9)
    alone = output(adapter, "plain")
    adapter.merge_adapter(["default"])
    torch.testing.assert_close(output(adapter, "plain"), alone)
    with pytest.warns(UserWarning, match="additionally merging two"):
        adapter.merge_adapter(["two"])
    with pytest.warns(UserWarning, match="nothing to do"):
        adapter.merge_adapter(["default"])
    with adapter.disable_adapter():  # unmerges
        torch.testing.assert_close(output(adapter, "plain"), output(base("plain"), "plain"))
    with pytest.warns(UserWarning, match="Already unmerged"):
        adapter.unmerge_adapter()


def test_safe_merging_refuses_infinity_and_changes_nothing() -> None:
    adapter = adapted("plain", METHODS["bora"]())
    first, second = layers(adapter).values()
    before = first.weight.clone()
    second.bora_B["default"].data[0, 0] = float("inf")  # the later one of the two
    for merge in (adapter.merge_adapter, adapter.merge_and_unload, second.merge):
        # PEFT's own words, then ours.
        message = r"^NaNs detected in the merged weights. The adapter default seems to be broken: second would have NaN"
        with pytest.raises(ValueError, match=message):
            merge(safe_merge=True)
        torch.testing.assert_close(first.weight, before, rtol=0, atol=0)
        assert not first.merged
        assert not second.merged


def test_dropout_drops_inputs_in_training_alone() -> None:
    for method in ("bora", "melora", "sbora-fa", "sbora-fb"):
        adapter = adapted("plain", METHODS[method](target_modules=["first"], lora_dropout=0.5))
        (layer,) = layers(adapter).values()
        x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(1))
        exact, plain = layer(x[:1]), layer.get_base_layer()(x[:1])
        layer.train()
        torch.manual_seed(2)
        found = layer(x[:1].expand(4000, -1))
        assert not torch.allclose(found[0], found[1])
        spread = (found - plain).std(0) / 4000**0.5
        assert ((found.mean(0) - exact[0]).abs() <= 5 * spread + 1e-5).all()  # the mean over draws is ΔW x


def test_modules_to_save(tmp_path: Path) -> None:
    for method in ("bora", "melora", "sbora-fb"):
        adapter = adapted("plain", METHODS[method](modules_to_save=["head"]))
        assert adapter.base_model.model.head.weight.requires_grad
        with torch.no_grad():
            adapter.base_model.model.head.modules_to_save["default"].weight += 1
        adapter.save_pretrained(tmp_path / method)
        loaded = load(base("plain"), tmp_path / method).eval()
        torch.testing.assert_close(output(loaded, "plain"), output(adapter, "plain"), rtol=0, atol=0)


@pytest.mark.parametrize("which", ["all", "only"])
def test_biases(which: str, tmp_path: Path) -> None:
    bias = which if which == "all" else "bora_only"
    adapter = adapted("plain", METHODS["bora"](bias=bias))
    trained = {key for key, value in adapter.named_parameters() if value.requires_grad and key.endswith("bias")}
    place = "base_model.model"
    assert trained == {f"{place}.first.base_layer.bias"} | ({f"{place}.head.bias"} if which == "all" else set())
    with torch.no_grad():
        for key in trained:
            adapter.get_parameter(key).add_(1.0)
    adapter.save_pretrained(tmp_path)
    loaded = load(base("plain"), tmp_path).eval()
    torch.testing.assert_close(output(loaded, "plain"), output(adapter, "plain"), rtol=0, atol=0)


def test_patterns_match_as_in_peft() -> None:
    """r and scaling of each module are those that PEFT's own LoRA takes from the same patterns."""
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 2, "^model.layers.1.mlp.down_proj": 8, "v_proj": 1},
        "alpha_pattern": {"q_proj": 3, r"model\..*1.*v_proj": 5},
        "target_modules": TARGETS["llama"],
    }
    lora = get_peft_model(base("llama"), LoraConfig(**settings)).base_model.model
    for config in (BoraConfig(**settings), MeloraConfig(**settings), SboraConfig(**settings)):
        found = layers(get_peft_model(base("llama"), copy.deepcopy(config)))
        assert len(found) == 6
        for key, layer in found.items():
            peer = lora.get_submodule(key)
            assert (layer.r, layer.scaling) == (peer.r, peer.scaling)
        assert len({layer.r["default"] for layer in found.values()}) == 4


class Quantised(nn.Module):
    """A stand-in for a quantised linear layer: whole numbers and one step per row, its own forward pass."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.step = layer.weight.detach().abs().amax(1) / 127
        self.weight = nn.Parameter((layer.weight.detach() / self.step[:, None]).round().char(), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.step[:, None], self.bias)


@pytest.mark.parametrize("method", ["bora", "melora", "sbora-fa", "sbora-fb"])
def test_a_quantised_base_layer(method: str) -> None:
    model = base("plain")
    model.second = Quantised(model.second)
    untouched = output(model, "plain")
    adapter = get_peft_model(model, METHODS[method](target_modules=["first", "second"])).eval()
    torch.testing.assert_close(output(adapter, "plain"), untouched, rtol=0, atol=0)
    randomise(adapter)
    first, second = layers(adapter).values()
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(4), requires_grad=True)
    expected = second.get_base_layer()(x) + x @ second.get_delta_weight("default").T
    torch.testing.assert_close(second(x), expected, rtol=1e-4, atol=1e-5)
    output(adapter, "plain").sum().backward()
    assert all(value.grad is not None for value in adapter.parameters() if value.requires_grad)
    before = first.weight.clone()
    for merge in (adapter.merge_adapter, adapter.merge_and_unload):
        with pytest.raises(ValueError, match=r"^second: ΔW cannot be merged into a Quantised.*unquantised"):
            merge()
        # Nothing is merged in part.
        torch.testing.assert_close(first.weight, before, rtol=0, atol=0)
        assert not first.merged


def test_a_copied_model_is_its_own() -> None:
    adapter = adapted("plain", METHODS["bora"]())
    twin = copy.deepcopy(adapter)
    expected = output(adapter, "plain")
    torch.testing.assert_close(output(twin, "plain"), expected, rtol=0, atol=0)
    randomise(twin, seed=1)
    assert not torch.allclose(output(twin, "plain"), expected)
    torch.testing.assert_close(output(adapter, "plain"), expected, rtol=0, atol=0)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for checkpointing in (False, True):
        adapter = adapted("llama", METHODS["bora"]())
        adapter.train()
        if checkpointing:
            adapter.enable_input_require_grads()
            adapter.gradient_checkpointing_enable({"use_reentrant": False})
        output(adapter, "llama").square().sum().backward()
        found.append({key: value.grad for key, value in adapter.named_parameters() if value.requires_grad})
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value)
