"""SBoRA files, ours and their authors'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import one, write

from bora_analysis import layer_metrics, singular_values
from bora_analysis.adapters import AdapterError, read_adapter
from bora_analysis.catalogue.cost import cost
from bora_analysis.updates.blocks import lora

RNG = np.random.default_rng(11)
M, N, R = 6, 9, 3
INDEX = np.array([7, 0, 4])
B, A = RNG.standard_normal((M, R), dtype=np.float32), RNG.standard_normal((R, N), dtype=np.float32)
ROWS = np.array([5, 0, 2])
CONFIG = {"peft_type": "SBORA", "r": R, "lora_alpha": 6}
OURS = {"sbora_B": B, "sbora_index": INDEX, "sbora_size": np.array([N])}


def dense(variant: str) -> np.ndarray:
    """2·ΔW by its definition: columns or rows set one by one."""
    out = np.zeros((M, N))
    for k in range(R):
        if variant == "fa":
            out[:, INDEX[k]] += 2.0 * B[:, k]
        else:
            out[ROWS[k], :] += 2.0 * A[k]
    return out


@pytest.mark.parametrize("variant", ["fa", "fb"])
@pytest.mark.parametrize("named", ["", ".default"])
def test_ours(tmp_path: Path, variant: str, named: str) -> None:
    content = OURS if variant == "fa" else {"sbora_A": A, "sbora_index": ROWS, "sbora_size": np.array([M])}
    content = {f"{key}{named}": value for key, value in content.items()} | {"head.weight": np.ones((2, 2), "f4")}
    adapter = one(write(tmp_path, content, CONFIG))
    assert (adapter.method, adapter.warnings, list(adapter)) == (f"sbora-{variant}", (), ["l.q"])
    assert adapter.passed_over == ("base_model.model.l.q.head.weight",)
    update = adapter["l.q"]
    np.testing.assert_allclose(update.to_dense(), dense(variant), rtol=1e-15)
    price = cost(f"sbora-{variant}", M, N, R)
    facts = update.facts
    assert (facts.method, facts.out_features, facts.in_features, facts.r) == (f"sbora-{variant}", M, N, R)
    assert (facts.parameters, facts.macs_per_token, facts.rank_bound) == (price.parameters, price.macs_per_token, R)
    assert facts.parameters == R * (M if variant == "fa" else N)
    assert (facts.scaling, facts.dtype) == (2.0, "float32")
    np.testing.assert_allclose(
        singular_values(update).values, np.linalg.svd(dense(variant), compute_uv=False)[:R], rtol=1e-12
    )


@pytest.mark.parametrize("variant", ["fa", "fb"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("configured", [True, False])
def test_its_authors(tmp_path: Path, variant: str, suffix: str, configured: bool) -> None:
    content = {"lora_A": INDEX, "lora_B.weight": B} if variant == "fa" else {"lora_A.weight": A, "lora_B": ROWS}
    write(tmp_path, content, CONFIG if configured else None)
    if suffix == ".bin":
        (tmp_path / "adapter_model.safetensors").unlink()
        tensors = {f"base_model.model.l.q.{key}": torch.from_numpy(value) for key, value in content.items()}
        torch.save(tensors, tmp_path / "adapter_model.bin")
    adapter = one(tmp_path)
    assert adapter.method == f"sbora-{variant}"
    assert any("stored nowhere" in note and "spectrum is right" in note for note in adapter.warnings)
    found, expected = adapter["l.q"].to_dense(), dense(variant) / (1 if configured else 2)
    cut = expected[:, : INDEX.max() + 1] if variant == "fa" else expected[: ROWS.max() + 1]
    np.testing.assert_allclose(found, cut, rtol=1e-15)
    np.testing.assert_allclose(
        singular_values(adapter["l.q"]).values, np.linalg.svd(expected, compute_uv=False)[:R], rtol=1e-12
    )


def test_both_variants_in_one_file_and_rank_stabilised(tmp_path: Path) -> None:
    content = OURS | {"k.sbora_A": A, "k.sbora_index": ROWS, "k.sbora_size": np.array([M])}
    adapter = one(write(tmp_path, content, {**CONFIG, "use_rslora": True}))
    assert adapter.method == "sbora-fa+sbora-fb"
    np.testing.assert_allclose(adapter["l.q"].to_dense(), dense("fa") * 3**0.5, rtol=1e-15)
    np.testing.assert_allclose(adapter["l.q.k"].to_dense(), dense("fb") * 3**0.5, rtol=1e-15)


def test_the_table_says_which_part_of_the_update_can_change(tmp_path: Path) -> None:
    content = OURS | {"k.sbora_A": A, "k.sbora_index": ROWS, "k.sbora_size": np.array([M])}
    found = layer_metrics(one(write(tmp_path, content, CONFIG)))
    assert found[["support_rows", "support_columns"]].values.tolist() == [[M, R], [R, N]]


def test_sbora_is_lora_with_a_one_hot_factor(tmp_path: Path) -> None:
    update = one(write(tmp_path, OURS, CONFIG))["l.q"]
    same = lora(B, np.eye(N)[INDEX], scaling=2.0)
    np.testing.assert_array_equal(update.to_dense(), same.to_dense())
    # Alike but for the name, for what is trained, and for the columns that can change.
    trained = {"parameters": M * R, "macs_per_token": M * R, "support_columns": R}
    changed = replace(same.facts, method="sbora-fa", dtype="float32", **trained)
    assert update.facts == changed


@pytest.mark.parametrize(
    ("content", "config", "expected"),
    [
        ({"sbora_B": B}, CONFIG, ["sbora_B", "expected an index"]),
        ({"sbora_index": INDEX}, CONFIG, ["sbora_index", "one of A and B"]),
        ({**OURS, "sbora_A": A}, CONFIG, ["A, B, index, size", "one of A and B"]),
        ({**OURS, "sbora_index": INDEX.astype("f4")}, CONFIG, ["sbora_index", "float32", "whole numbers (3,)"]),
        ({**OURS, "sbora_index": INDEX[:2]}, CONFIG, ["sbora_index", "(2,)", "whole numbers (3,)"]),
        ({**OURS, "sbora_B": B[0]}, CONFIG, ["sbora_B", "(3,)", "(m, r)"]),
        (OURS, {**CONFIG, "r": 2}, ["sbora_B", "rank 3", "r = 2"]),
        (OURS | {"sbora_B.other": B}, CONFIG, ["several adapters"]),
        ({"lora_A.weight": A, "lora_B.weight": B}, CONFIG, ["SBORA", "those of lora"]),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, content: dict[str, np.ndarray], config: dict[str, Any], expected: list[str]
) -> None:
    write(tmp_path, content, config)
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "adapter_model.safetensors") in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize("index", [[7, 7, 4], [7, -1, 4], [9, 0, 4]])
def test_indices_that_are_no_basis(tmp_path: Path, index: list[int]) -> None:
    adapter = one(write(tmp_path, {**OURS, "sbora_index": np.array(index)}, CONFIG))
    with pytest.raises(AdapterError, match="expected 3 different indices from 0 to 8"):
        adapter["l.q"]
