"""HydraLoRA and MoELoRA files, ours and their authors', against the forward pass of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import one, write
from hypothesis import given
from hypothesis import strategies as st

from bora_analysis import singular_values
from bora_analysis.adapters import AdapterError, read_adapter
from bora_analysis.updates.contract import FactorError
from bora_analysis.updates.mixture import mixed, routing

RNG = np.random.default_rng(3)
M, N, R, K = 9, 7, 2, 3
A = RNG.standard_normal((R, N), dtype=np.float32)
B = RNG.standard_normal((K, M, R), dtype=np.float32)
ROUTE = RNG.standard_normal((K, N), dtype=np.float32)
X = RNG.standard_normal((20, N))
HYDRA = {"peft_type": "LORA", "r": R, "lora_alpha": 5, "lora_nums": K}
OURS = {"hydralora_A": A, "hydralora_B": B, "hydralora_route": ROUTE}
THEIRS = {"lora_A.weight": A, "lora_route.weight": ROUTE} | {f"lora_B{k}.weight": B[k] for k in range(K)}
SCALING = 5 / R

EACH_A = RNG.standard_normal((K, R, N), dtype=np.float32)
GATE = RNG.standard_normal((K, 4), dtype=np.float32)
TASKS = RNG.standard_normal((5, 4), dtype=np.float32)
MOE = {"peft_type": "MMOELORAS", "r": R * K, "lora_alpha": 4, "expert_num": K, "task_num": 4, "task_embedding_dim": 4}


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def forward(x: np.ndarray) -> np.ndarray:
    """HydraLoRA's output for one token, by its definition."""
    gates = softmax(ROUTE.astype(float) @ x)
    return SCALING * np.sum([gates[k] * (B[k].astype(float) @ (A.astype(float) @ x)) for k in range(K)], axis=0)


@pytest.mark.parametrize("layout", ["ours", "ours named", "theirs"])
def test_hydralora(tmp_path: Path, layout: str) -> None:
    content = {"ours": OURS, "theirs": THEIRS, "ours named": {f"{key}.default": value for key, value in OURS.items()}}
    config = HYDRA if layout == "theirs" else HYDRA | {"peft_type": "HYDRALORA", "num_experts": K}
    folder = write(tmp_path, content[layout] | {"head.weight": np.ones((2, 2), "f4")}, config)
    mean = one(folder)
    assert (mean.method, list(mean)) == ("hydralora", ["l.q"])
    assert "uniform mean" in mean.warnings[0]
    assert len(mean.passed_over) == 1
    expected = SCALING * B.astype(float).mean(axis=0) @ A
    np.testing.assert_allclose(mean["l.q"].to_dense(), expected, rtol=1e-12)
    facts = mean["l.q"].facts
    assert (facts.rank_bound, facts.r, facts.parameters) == (R, R, N * R + K * (M * R + N))
    each = one(folder, experts="each")
    assert list(each) == [f"l.q.{k}" for k in range(K)]
    for k in range(K):
        np.testing.assert_allclose(each[f"l.q.{k}"].to_dense(), SCALING * B[k].astype(float) @ A, rtol=1e-12)
    assert sum(update.facts.parameters for update in each.values()) == facts.parameters
    stacked = one(folder, experts="stacked")["l.q"]
    np.testing.assert_allclose(
        stacked.to_dense(), np.concatenate([each[module].to_dense() for module in each]), rtol=1e-12
    )


def test_the_routed_mean_is_the_mean_of_the_tokens_updates(tmp_path: Path) -> None:
    """For one token it is the forward pass itself."""
    folder = write(tmp_path, OURS, HYDRA | {"peft_type": "HYDRALORA"})
    for x in X[:3]:
        update = one(folder, experts={"l.q": x[None]})["l.q"]
        np.testing.assert_allclose(update.to_dense() @ x, forward(x), rtol=1e-12)
    gates = np.stack([softmax(ROUTE.astype(float) @ x) for x in X])
    expected = SCALING * sum(gates[:, k].mean() * B[k].astype(float) @ A for k in range(K))
    np.testing.assert_allclose(one(folder, experts={"l.q": X})["l.q"].to_dense(), expected, rtol=1e-12)
    with pytest.raises(AdapterError, match=r"no inputs for l\.q"):
        read_adapter(folder, experts={"other": X})
    with pytest.raises(AdapterError, match=r"inputs have shape \(20, 6\)"):
        _ = one(folder, experts={"l.q": X[:, 1:]})["l.q"]
    with pytest.raises(AdapterError, match="experts 'all' is unknown"):
        read_adapter(folder, experts="all")


@given(seed=st.integers(0, 2**32 - 1), shared=st.booleans())
def test_the_stack_bounds_every_mixture(seed: int, shared: bool) -> None:
    rng = np.random.default_rng(seed)
    left = list(rng.standard_normal((K, M, R)))
    right = list(rng.standard_normal((1 if shared else K, R, N)))
    weights = softmax(3 * rng.standard_normal(K))
    mixture = singular_values(mixed(left, right, weights)).values
    stack = singular_values(mixed(left, right, "stacked")).values
    assert (mixture <= np.linalg.norm(weights) * stack[: len(mixture)] + 1e-12).all()
    dense = sum(w * b @ right[0 if shared else k] for k, (w, b) in enumerate(zip(weights, left, strict=True)))
    np.testing.assert_allclose(mixed(left, right, weights).to_dense(), dense, atol=1e-12)
    np.testing.assert_allclose(mixture, np.linalg.svd(dense, compute_uv=False)[: len(mixture)], atol=1e-12)


def moelora(folder: Path) -> Path:
    """The authors' file: torch.save, every factor under two names, the router of all layers at the top."""
    import json

    tensors: dict[str, Any] = {}
    for k in range(K):
        for side, stack in (("A", EACH_A), ("B", B)):
            tensor = torch.from_numpy(stack[k])
            tensors[f"base_model.model.l.q.lora_{side}.lora{side}.{k}.mlp.weight"] = tensor
            tensors[f"base_model.model.l.q.lora_{side}.lora{side}.{k}.weight"] = tensor
    tensors["base_model.model.l.q.lora_task_embedding.weight"] = torch.from_numpy(TASKS)
    tensors["base_model.model.l.q.lora_gate.GateL.weight"] = torch.from_numpy(GATE)
    torch.save(tensors, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(MOE))
    return folder


def test_moelora(tmp_path: Path) -> None:
    folder = moelora(tmp_path)
    parts = [4 / (R * K) * B[k].astype(float) @ EACH_A[k] for k in range(K)]
    mean = one(folder)
    assert (mean.method, list(mean), mean.passed_over) == ("moelora", ["l.q"], ())
    np.testing.assert_allclose(mean["l.q"].to_dense(), np.mean(parts, axis=0), rtol=1e-11, atol=1e-12)
    facts = mean["l.q"].facts
    # The second name of a tensor is no second tensor.
    assert facts.parameters == K * R * (M + N) + GATE.size + TASKS.size
    assert facts.rank_bound == K * R
    each = one(folder, experts="each")
    for k in range(K):
        np.testing.assert_allclose(each[f"l.q.{k}"].to_dense(), parts[k], rtol=1e-11, atol=1e-12)
    assert sum(update.facts.parameters for update in each.values()) == facts.parameters
    np.testing.assert_allclose(
        one(folder, experts="stacked")["l.q"].to_dense(), np.concatenate(parts), rtol=1e-11, atol=1e-12
    )
    gates = softmax(GATE.astype(float) @ TASKS[2])
    task = one(folder, experts={"l.q": TASKS[2:3]})["l.q"].to_dense()
    np.testing.assert_allclose(
        task, sum(g * part for g, part in zip(gates, parts, strict=True)), rtol=1e-11, atol=1e-12
    )


def test_experts_that_do_not_fit() -> None:
    with pytest.raises(FactorError, match="2 experts and A has 3"):
        mixed([np.ones((3, 1))] * 2, [np.ones((1, 3))] * 3)
    with pytest.raises(FactorError, match="several shapes"):
        mixed([np.ones((3, 1)), np.ones((2, 1))], [np.ones((1, 3))])
    with pytest.raises(FactorError, match="expected 2 weights"):
        mixed([np.ones((3, 1))] * 2, [np.ones((1, 3))], np.ones(3))
    with pytest.raises(FactorError, match=r"\(T, 2\)"):
        routing(np.ones((3, 2)), np.ones((4, 3)))
