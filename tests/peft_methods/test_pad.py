"""BoRA on layers that b does not divide: what is left of the padded product, as the dense core has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft_cases import get_peft_model, layers, load, randomise
from torch import nn

from bora_analysis import Adapter, bora, read_adapter
from bora_analysis.catalogue import ACTIVATIONS
from bora_analysis.catalogue.sizes import padded_bound
from bora_analysis.peft_methods import BoraConfig, MeloraConfig, convert, read_model

#: Layer, its input, and b. The last: blocks of one row, of which one is empty, and smaller ones.
KINDS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(7, 11), torch.randn(2, 3, 7, dtype=torch.float64), 4),
    "rows": (lambda: nn.Linear(8, 11, bias=False), torch.randn(5, 8, dtype=torch.float64), 4),
    "columns": (lambda: nn.Linear(7, 12), torch.randn(5, 7, dtype=torch.float64), 4),
    "empty": (lambda: nn.Linear(9, 5), torch.randn(5, 9, dtype=torch.float64), 6),
    "embedding": (lambda: nn.Embedding(13, 7), torch.tensor([[3, 0, 12], [7, 3, 5]]), 4),
    "conv2d": (lambda: nn.Conv2d(3, 7, (3, 2), padding=1), torch.randn(2, 3, 5, 5, dtype=torch.float64), 4),
}
EVERY = pytest.mark.parametrize("kind", KINDS)


class One(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = KINDS[kind][0]().double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def one(kind: str, **options: Any) -> tuple[Any, Any]:
    """A model with a trained adapter, as it were, in float64."""
    config = BoraConfig(r=2, num_blocks=KINDS[kind][2], pad=True, lora_alpha=5, target_modules=["layer"], **options)
    adapter = get_peft_model(One(kind), config).eval().double()
    randomise(adapter)
    return adapter, layers(adapter)["layer"]


def dense(layer: Any) -> np.ndarray:
    """ΔW (m, n) by the core, from the layer's own factors."""
    A, B, sigma = (factors["default"].detach().numpy() for factors in (layer.bora_A, layer.bora_B, layer.bora_sigma))
    how = layer.activation["default"]
    return bora(B, A.reshape(2, -1), sigma, scaling=layer.scaling["default"], activation=how, pad=True).to_dense()


def close(found: Any, expected: Any) -> None:
    """To 10⁻¹² of the whole."""
    difference = np.linalg.norm(np.asarray(found) - np.asarray(expected))
    assert difference < 1e-12 * np.linalg.norm(np.asarray(expected))


@EVERY
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_forward_pass_is_that_of_the_core(kind: str, activation: Any) -> None:
    adapter, layer = one(kind, activation=activation)
    x, delta = KINDS[kind][1], torch.from_numpy(dense(layer))
    with torch.no_grad():
        y = adapter(x)
        added = y - One(kind)(x)
    assert y.is_contiguous()
    if kind == "embedding":
        expected = delta.T[x]
    elif kind == "conv2d":
        expected = nn.functional.conv2d(x, delta.view(layer.weight.shape), padding=1)
    else:
        expected = x @ delta.T
    close(added, expected)
    found = layer.get_delta_weight("default")
    close(found.T if kind == "embedding" else found.flatten(1), delta)


@EVERY
def test_gradients_are_those_of_the_dense_update(kind: str) -> None:
    """By the chain rule through the dense ΔW, which the padded forward pass does not form for a linear layer."""
    adapter, layer = one(kind)
    x = KINDS[kind][1]
    adapter(x).square().sum().backward()
    factors = [own["default"] for own in (layer.bora_A, layer.bora_B, layer.bora_sigma)]
    found = [factor.grad.clone() for factor in factors]
    assert all(torch.isfinite(each).all() and each.any() for each in found)
    b, shape = KINDS[kind][2], (layer.out_features, layer.in_features)
    A, B, sigma = (factor.detach().clone().requires_grad_() for factor in factors)
    mixed = (sigma / sigma.abs().mean()).exp() * layer.scaling["default"]
    each = [-(-size // b) for size in shape]
    rows, columns = (torch.arange(size) // own for size, own in zip(shape, each, strict=True))
    delta = torch.einsum("ik,ijk,kj->ij", B, mixed[rows][:, columns], A.flatten(1))
    base = One(kind).layer
    if kind == "embedding":
        y = base(x) + delta.T[x]
    elif kind == "conv2d":
        y = base(x) + nn.functional.conv2d(x, delta.view(base.weight.shape), padding=1)
    else:
        y = base(x) + x @ delta.T
    y.square().sum().backward()
    for own, expected in zip(found, (A.grad, B.grad, sigma.grad), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9)


@EVERY
def test_files_merging_and_the_conversion_to_lora(kind: str, tmp_path: Path) -> None:
    adapter, layer = one(kind)
    x, delta = KINDS[kind][1], dense(layer)
    with torch.no_grad():
        expected = adapter(x)
    adapter.save_pretrained(tmp_path / "own", save_embedding_layers=False)
    loaded = load(One(kind), tmp_path / "own", autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)
    for read in (read_adapter(tmp_path / "own"), read_model(adapter)):
        assert isinstance(read, Adapter)
        close(read["layer"].to_dense(), delta)
        facts = read["layer"].facts
        m, n = delta.shape
        assert facts.rank_bound == padded_bound(m, n, 2, KINDS[kind][2])
        assert facts.parameters == sum(own.numel() for own in adapter.parameters() if own.requires_grad)
    saved = convert(adapter, tmp_path / "lora", dtype="float64")
    close(read_adapter(saved)["layer"].to_dense(), delta)
    before = layer.weight.clone()
    adapter.merge_adapter(safe_merge=True)
    torch.testing.assert_close(adapter(x), expected, rtol=1e-10, atol=1e-12)
    adapter.unmerge_adapter()
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=1e-14)


DIVIDED: dict[str, Any] = {
    "linear": (lambda: nn.Linear(8, 12), torch.ones(3, 8)),
    "conv2d": (lambda: nn.Conv2d(3, 6, 2), torch.ones(2, 3, 5, 5)),
    "embedding": (lambda: nn.Embedding(14, 6), torch.tensor([[3, 0, 12]])),
}


@pytest.mark.parametrize("kind", DIVIDED)
def test_where_b_divides_pad_changes_no_bit(kind: str) -> None:
    make, x = DIVIDED[kind]
    found = []
    for pad in (False, True):
        torch.manual_seed(1)
        config = BoraConfig(r=2, num_blocks=2, pad=pad, init_lora_weights=False, target_modules=["layer"])
        (layer,) = layers(get_peft_model(nn.ModuleDict({"layer": make()}), config)).values()
        y = layer(x)
        y.square().sum().backward()
        found.append([y, layer.get_delta_weight("default"), layer.bora_sigma["default"].grad])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kind", ["linear", "empty", "conv2d", "embedding"])
def test_it_starts_near_a_target(kind: str) -> None:
    """At a member of the padded set where the target is one; never below a LoRA of its r."""
    _, layer = one(kind)
    member = dense(layer)
    other = np.random.default_rng(4).standard_normal(member.shape)
    for target in (member, other):
        config: dict[str, Any] = {"r": 2, "num_blocks": KINDS[kind][2], "pad": True, "target_modules": ["layer"]}
        made = get_peft_model(One(kind), BoraConfig(**config, init="svd", target={"layer": target}))
        started = read_model(made)["layer"].to_dense()
        lost = np.linalg.norm(started - target) ** 2 / np.linalg.norm(target) ** 2
        energies = np.linalg.svd(target, compute_uv=False) ** 2
        assert lost <= energies[2:].sum() / energies.sum() + 1e-5


def test_the_error_names_the_option() -> None:
    with pytest.raises(ValueError, match=r"^layer: b = 4 does not divide m = 11 and n = 7; b may be 1; or pad .*pad=T"):
        get_peft_model(One("linear"), BoraConfig(num_blocks=4, target_modules=["layer"]))
    with pytest.raises(ValueError, match=r"b may be 1$"):
        get_peft_model(One("linear"), MeloraConfig(num_minis=4, target_modules=["layer"]))
    with pytest.raises(ValueError, match="pad is 1; expected True or False"):
        BoraConfig(pad=1)  # pyright: ignore[reportArgumentType]
