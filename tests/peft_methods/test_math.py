"""The arithmetic of the layers, against NumPy's ΔW and against PEFT's own LoRA."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft_cases import Plain, base, get_peft_model, layers, output, randomise
from torch import nn

from bora_analysis.analysis.optimal_blocks import optimal_blocks
from bora_analysis.catalogue import ACTIVATIONS
from bora_analysis.peft_methods import BoraConfig, MeloraConfig, contraction
from bora_analysis.updates.blocks import activate, bora, melora

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    b=st.integers(1, 5),
    p=st.integers(1, 6),
    q=st.integers(1, 6),
    r=st.integers(1, 5),
    tokens=st.integers(0, 40),
    seed=st.integers(0, 999),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_the_contraction_is_eq_4(b: int, p: int, q: int, r: int, tokens: int, seed: int, activation: str) -> None:
    m, n = b * p, b * q
    B, A, sigma = numbers(m, r, seed=seed), numbers(r, n, seed=seed + 1), numbers(b, b, r, seed=seed + 2)
    x, y = numbers(tokens, n, seed=seed + 3), numbers(tokens, m, seed=seed + 4)
    if r <= max(m, n):  # above, NumPy's side suspects swapped factors
        update = bora(B, A, sigma, scaling=1.5, activation=activation)
        expected = y + x @ torch.from_numpy(update.to_dense()).T
    else:
        spread = torch.from_numpy(activate(sigma.numpy(), activation)) * 1.5
        dense = torch.einsum("ipk,ijk,kjq->ipjq", B.view(b, p, r), spread, A.view(r, b, q)).reshape(m, n)
        expected = y + x @ dense.T
    factors = (B.view(b, p, r), contraction.effective_sigma(sigma, activation, 1.5), A.view(r, b, q).transpose(0, 1))
    found = contraction.add_bora(y, x, *factors)
    reach = expected.abs().max().item() if tokens else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * reach)
    torch.testing.assert_close(y + x @ contraction.dense_bora(*factors).T, expected, rtol=0, atol=1e-12 * reach)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_eq_4_is_eq_6_is_eq_8_forwards_and_backwards(dtype: torch.dtype, activation: str) -> None:
    """Of the stored numbers in every dtype: eq. 8 written out in float64, with autograd's derivatives of it."""
    b, p, q, r = 3, 4, 5, 2
    shapes = [(b * p, r), (b, b, r), (r, b * q), (6, b * q), (6, b * p)]
    stored = [numbers(*shape, seed=k).div(2).to(dtype) for k, shape in enumerate(shapes)]
    exact = [value.double().clone().requires_grad_() for value in stored]
    B, sigma, A, x, y = exact
    Sigma = contraction.effective_sigma(sigma, activation, 0.5)
    cut_B, cut_A, cut_x = B.split(p), A.split(q, dim=1), x.split(q, dim=1)
    middle = [sum(cut_A[k] @ cut_x[k].T * Sigma[j, k][:, None] for k in range(b)) for j in range(b)]
    eighth = y + torch.cat([cut_B[j] @ middle[j] for j in range(b)]).T  # Y_j = B_j Σ_k Σ_jk (A_k X_k)
    eighth.square().sum().backward()

    update = bora(B.detach(), A.detach(), sigma.detach(), scaling=0.5, activation=activation)
    left, between, right = update.expanded()
    fourth, sixth = (y + x @ torch.from_numpy(dense).T for dense in (update.to_dense(), left @ between @ right))
    torch.testing.assert_close(fourth, eighth, rtol=0, atol=1e-12)
    torch.testing.assert_close(sixth, eighth, rtol=0, atol=1e-12)

    leaves = [value.clone().requires_grad_() for value in stored]
    B, sigma, A, x, y = leaves
    factors = B.view(b, p, r), contraction.effective_sigma(sigma, activation, 0.5), A.view(r, b, q).transpose(0, 1)
    factors = factors[0], factors[1].to(dtype), factors[2]
    found = contraction.add_bora(y, x, *factors)
    found.square().sum().backward()
    near = 30 * torch.finfo(dtype).eps
    reach = eighth.abs().max().item()
    torch.testing.assert_close(found.double(), eighth, rtol=0, atol=near * reach)
    for own, known in zip(leaves, exact, strict=True):
        assert own.grad is not None
        assert known.grad is not None
        torch.testing.assert_close(own.grad.double(), known.grad, rtol=0, atol=near * known.grad.abs().max().item())


def test_the_contraction_of_melora() -> None:
    B, A, x, y = numbers(3, 4, 2), numbers(3, 2, 5, seed=1), numbers(2, 7, 15, seed=2), numbers(2, 7, 12, seed=3)
    expected = y + x @ torch.from_numpy(melora(list(B), list(A)).to_dense()).T
    torch.testing.assert_close(contraction.add_melora(y, x, B, A), expected)
    torch.testing.assert_close(y + x @ contraction.dense_melora(B, A).T, expected)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "melora"])
def test_both_derivatives_are_those_of_finite_differences(activation: str) -> None:
    shapes = [(2, 2, 6), (2, 2, 6), (2, 3, 2), (2, 2, 2), (2, 2, 3)]
    inputs = [numbers(*shape, seed=k).requires_grad_() for k, shape in enumerate(shapes)]

    def work(y: Any, x: Any, B: Any, sigma: Any, A: Any) -> torch.Tensor:
        if activation == "melora":
            return contraction.add_melora(y, x, B, A) + 0 * sigma.sum()
        return contraction.add_bora(y, x, B, contraction.effective_sigma(sigma, activation, 0.5), A)

    assert torch.autograd.gradcheck(work, inputs)
    assert torch.autograd.gradgradcheck(work, inputs)


def test_frozen_inputs_get_no_gradient_and_change_no_other() -> None:
    shapes = [(4, 6), (4, 6), (2, 3, 2), (2, 2, 2), (2, 2, 3)]
    values = [numbers(*shape, seed=k) for k, shape in enumerate(shapes)]
    leaves = [value.clone().requires_grad_() for value in values]
    contraction.add_bora(*leaves).square().sum().backward()
    for k in range(len(values)):
        one = [value.clone().requires_grad_(i == k) for i, value in enumerate(values)]
        contraction.add_bora(*one).square().sum().backward()
        assert [value.grad is not None for value in one] == [i == k for i in range(len(values))]
        torch.testing.assert_close(one[k].grad, leaves[k].grad)


def test_inputs_that_do_not_lie_in_rows() -> None:
    """A transposed input, an expanded output gradient and a result in another dtype, as a frozen layer may give."""
    B, sigma, A = numbers(2, 3, 2), numbers(2, 2, 2, seed=1), numbers(2, 2, 4, seed=2)
    x, y = numbers(8, 5, seed=3).T.requires_grad_(), numbers(6, 5, seed=4).float().T.requires_grad_()
    found = contraction.add_bora(y, x, B, sigma, A)
    assert found.dtype == torch.float64
    dense = contraction.dense_bora(B, sigma, A)
    torch.testing.assert_close(found, y + x @ dense.T)
    found.sum().backward()
    torch.testing.assert_close(x.grad, dense.sum(0).expand(5, -1))
    assert y.grad is not None
    assert y.grad.dtype == torch.float32


# torch's tracer does what it warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_the_contraction_compiles() -> None:
    """What torch.compile traces, forwards and backwards, is the same; without its code generation, which needs g++."""
    inputs = [numbers(*shape, seed=k) for k, shape in enumerate([(4, 6), (4, 6), (2, 3, 2), (2, 2, 2), (2, 2, 3)])]
    found = []
    for work in (contraction.add_bora, torch.compile(contraction.add_bora, backend="aot_eager", fullgraph=True)):
        leaves = [value.clone().requires_grad_() for value in inputs]
        work(*leaves).square().sum().backward()
        found.append([value.grad for value in leaves])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("method", ["bora", "melora"])
def test_compiled_code_keeps_no_more_than_x_of_the_tokens(method: str) -> None:
    """The partitioner that code generation has, too, would keep the values between the factors, b times LoRA's."""
    tokens, kept = 50, []
    leaves = [numbers(*shape).requires_grad_() for shape in [(tokens, 6), (tokens, 6), (2, 3, 2), (2, 2, 2), (2, 2, 3)]]
    work: Any = contraction.add_bora if method == "bora" else lambda y, x, B, _, A: contraction.add_melora(y, x, B, A)
    called = torch.compile(work, backend="aot_eager_decomp_partition", fullgraph=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        called(*leaves).square().sum().backward()
    values = [value.numel() for value in kept if tokens in value.shape]
    assert values == [leaves[0].numel()] * 2  # x, and what squaring keeps


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sigma_is_the_analysis_sigma(activation: str, dtype: torch.dtype) -> None:
    sigma = numbers(3, 3, 2).to(dtype)
    found = contraction.effective_sigma(sigma, activation, 1.0)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = activate(sigma.double().numpy(), activation)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sigma_zero_has_no_nan_backwards(activation: str) -> None:
    sigma = torch.zeros(2, 2, 3, requires_grad=True)
    found = contraction.effective_sigma(sigma, activation, 1.0)
    ones = activation in ("exp-norm", "no-norm")
    torch.testing.assert_close(found, torch.full((2, 2, 3), float(ones)))
    found.sum().backward()
    assert sigma.grad is not None
    assert torch.isfinite(sigma.grad).all()


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama", "plain"])
def test_sigma_zero_is_peft_lora(model: str) -> None:
    """Σ = I: the same numbers in PEFT's LoRA give the same output and the same gradients of A and B."""
    targets = {"bert": ["query"], "gpt2": ["c_attn"], "llama": ["q_proj"], "plain": ["first"]}[model]
    settings: dict[str, Any] = {"r": 2, "lora_alpha": 3, "target_modules": targets}
    lora = get_peft_model(base(model), LoraConfig(**settings, fan_in_fan_out=model == "gpt2")).eval()
    bora = get_peft_model(base(model), BoraConfig(**settings, num_blocks=4)).eval()
    randomise(lora)
    for key, layer in layers(bora).items():
        peer = lora.base_model.model.get_submodule(key)
        layer.bora_A["default"].data = peer.lora_A["default"].weight.data.clone()
        layer.bora_B["default"].data = peer.lora_B["default"].weight.data.clone()
        layer.bora_sigma["default"].data.zero_()
        torch.testing.assert_close(layer.get_delta_weight("default"), peer.get_delta_weight("default"))
    expected, found = output(lora, model), output(bora, model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    expected.square().sum().backward()
    found.square().sum().backward()
    for key, layer in layers(bora).items():
        peer = lora.base_model.model.get_submodule(key)
        for own, other in ((layer.bora_A, peer.lora_A), (layer.bora_B, peer.lora_B)):
            torch.testing.assert_close(own["default"].grad, other["default"].weight.grad, rtol=1e-3, atol=1e-5)


def test_melora_is_bora_with_sigma_one_on_the_diagonal() -> None:
    settings: dict[str, Any] = {"r": 2, "target_modules": ["first"]}
    melora = get_peft_model(base("plain"), MeloraConfig(**settings, num_minis=4))
    bora = get_peft_model(base("plain"), BoraConfig(**settings, num_blocks=4, activation="identity"))
    randomise(melora)
    (mini,), (layer,) = layers(melora).values(), layers(bora).values()
    A, B = mini.melora_A["default"], mini.melora_B["default"]
    layer.bora_A["default"].data = A.data.transpose(0, 1).reshape(2, 16).clone()
    layer.bora_B["default"].data = B.data.reshape(24, 2).clone()
    layer.bora_sigma["default"].data = torch.eye(4)[:, :, None].expand(4, 4, 2).clone()
    torch.testing.assert_close(output(bora, "plain"), output(melora, "plain"))


def test_one_mini_is_peft_lora() -> None:
    settings: dict[str, Any] = {"r": 3, "lora_alpha": 2, "target_modules": ["first"]}
    melora = get_peft_model(base("plain"), MeloraConfig(**settings, num_minis=1))
    lora = get_peft_model(base("plain"), LoraConfig(**settings))
    randomise(melora)
    (mini,), peer = layers(melora).values(), lora.base_model.model.first
    peer.lora_A["default"].weight.data = mini.melora_A["default"].data[0].clone()
    peer.lora_B["default"].weight.data = mini.melora_B["default"].data[0].clone()
    torch.testing.assert_close(output(melora, "plain"), output(lora, "plain"))


def test_the_start_is_that_of_the_paper() -> None:
    """A and σ Kaiming-uniform with a = √5: within 1/√fan_in, and spread evenly up to it. B zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512))
    layer: Any = get_peft_model(model, BoraConfig(r=16, num_blocks=32, target_modules=["0"])).base_model.model[0]
    assert not layer.bora_B["default"].any()
    for factor, fan_in in ((layer.bora_A["default"], 256), (layer.bora_sigma["default"], 32 * 16)):
        bound = fan_in**-0.5
        assert factor.abs().max() <= bound
        assert factor.abs().max() > 0.99 * bound
        assert factor.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    layer = get_peft_model(
        nn.Sequential(nn.Linear(64, 48)), MeloraConfig(r=8, num_minis=4, target_modules=["0"])
    ).base_model.model[0]
    assert 0.99 / 4 < layer.melora_A["default"].abs().max() <= 1 / 4  # each mini has 16 inputs


@pytest.mark.parametrize("variant", ["fa", "fb"])
def test_sbora_changes_r_columns_or_rows(variant: str) -> None:
    from bora_analysis.peft_methods import SboraConfig

    found = set()
    for seed in range(3):
        model = base("plain")
        torch.manual_seed(seed)
        model = get_peft_model(model, SboraConfig(r=5, variant=variant, target_modules=["first"]))  # pyright: ignore[reportArgumentType]
        randomise(model)
        (layer,) = layers(model).values()
        moved = layer.get_delta_weight("default").abs().sum(0 if variant == "fa" else 1) > 0
        assert moved.sum() == 5
        torch.testing.assert_close(moved.nonzero().ravel(), layer.sbora_index["default"])
        found.add(tuple(layer.sbora_index["default"].tolist()))
    assert len(found) == 3  # chosen at random


def test_auto_is_the_best_common_divisor() -> None:
    model = get_peft_model(Plain(), BoraConfig(r=1, target_modules=["first", "second"]))
    for key, chosen in {"first": 8, "second": 4}.items():
        layer = layers(model)[key]
        m, n = layer.out_features, layer.in_features
        price = {b: (m + n) / b + b for b in range(1, 100) if m % b == n % b == 0}
        assert price[chosen] == min(price.values())
        assert layer.num_blocks["default"] == optimal_blocks(m, n).best[0] == chosen  # "second" ties: the smaller


def test_blocks_by_pattern() -> None:
    blocks = {"q_proj": 2, r".*layers\.0\..*down_proj": "auto", "down_proj": 4}
    settings: dict[str, Any] = {"r": 1, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    found = layers(get_peft_model(base("llama"), BoraConfig(**settings, num_blocks=blocks)))
    for (key, layer), name in itertools.product(found.items(), ("q_proj", "v_proj", "down_proj")):
        if key.endswith(name):
            auto = optimal_blocks(layer.out_features, layer.in_features).best[0]
            expected = {"q_proj": 2, "v_proj": auto, "down_proj": auto if ".0." in key else 4}[name]
            assert layer.num_blocks["default"] == expected
    minis = {"q_proj": 2, "v_proj|down_proj": 4}
    found = layers(get_peft_model(base("llama"), MeloraConfig(**settings, num_minis=minis)))
    assert {key.rpartition(".")[2]: layer.num_minis["default"] for key, layer in found.items()} == {
        "q_proj": 2,
        "v_proj": 4,
        "down_proj": 4,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_sigma_is_multiplied_in_float32_where_halves_would_be_slow(dtype: torch.dtype, autocast: bool) -> None:
    """Forwards and backwards, on a CPU; under autocast, too, which would make halves of it again."""
    from torch.utils._python_dispatch import TorchDispatchMode

    b, r, tokens = 4, 2, 6
    of_sigma: list[torch.dtype] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.bmm.default and args[0].shape[0] == r:
                of_sigma.extend(value.dtype for value in args)
            return func(*args, **(kwargs or {}))

    own = torch.float32 if autocast else dtype
    B, A, sigma = (
        numbers(*shape, seed=seed).to(own).requires_grad_()
        for seed, shape in enumerate([(b, 3, r), (b, r, 3), (b, b, r)])
    )
    x = numbers(tokens, 3 * b, seed=3).to(own)
    with Watch():
        with torch.autocast("cpu", dtype, enabled=autocast):
            y = contraction.add_bora(torch.zeros(tokens, 3 * b, dtype=dtype), x, B, sigma.float(), A)
        y.sum().backward()
    assert y.dtype == dtype
    assert of_sigma == [torch.float32] * 8  # forwards; backwards Σ' twice, and its own gradient
