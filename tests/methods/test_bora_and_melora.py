"""BoRA and MELoRA files, ours and their authors'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import one, write

from bora_analysis.adapters import AdapterError, read_adapter
from bora_analysis.catalogue import ACTIVATIONS
from bora_analysis.updates.blocks import bora, melora

RNG = np.random.default_rng(7)
A, B, SIGMA = (RNG.standard_normal(shape, dtype=np.float32) for shape in ((4, 12), (6, 4), (3, 3, 4)))
MINI_A = [RNG.standard_normal((r, 4), dtype=np.float32) for r in (2, 2, 2)]
MINI_B = [RNG.standard_normal((2, r), dtype=np.float32) for r in (2, 2, 2)]


OURS = {"bora_A": A, "bora_B": B, "bora_sigma": SIGMA}
BORA = {"peft_type": "BORA", "r": 4, "lora_alpha": 6}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("blocks", [None, 3, "auto", {"q": 3}, {"other": 9}])
def test_bora(tmp_path: Path, activation: str, blocks: Any) -> None:
    adapter = one(write(tmp_path, OURS, {**BORA, "activation": activation, "num_blocks": blocks}))
    expected = bora(B, A, SIGMA, scaling=1.5, activation=activation)
    assert (adapter.method, adapter.warnings, list(adapter)) == ("bora", (), ["l.q"])
    np.testing.assert_array_equal(adapter["l.q"].to_dense(), expected.to_dense())
    assert adapter["l.q"].facts == expected.facts
    other = one(tmp_path, activation="no-exp")
    np.testing.assert_array_equal(
        other["l.q"].to_dense(), bora(B, A, SIGMA, scaling=1.5, activation="no-exp").to_dense()
    )


def test_bora_by_pattern_and_rank_stabilised(tmp_path: Path) -> None:
    config = {**BORA, "r": 8, "rank_pattern": {"q": 4}, "alpha_pattern": {r"l\.q": 10}, "use_rslora": True}
    adapter = one(write(tmp_path, OURS, config))
    assert adapter["l.q"].facts.scaling == 5.0
    assert adapter.method == "bora"
    named = {f"{key}.default": value for key, value in OURS.items()}
    np.testing.assert_array_equal(
        one(write(tmp_path / "n", named, config))["l.q"].to_dense(), adapter["l.q"].to_dense()
    )


@pytest.mark.parametrize(
    "key", ["lora_sigma.weight", "lora_S.default.weight", "lora_Sigma", "sigma", "lora_lambda.default.weight"]
)
@pytest.mark.parametrize("configured", [True, False])
def test_bora_in_its_authors_likely_layout(tmp_path: Path, key: str, configured: bool) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6} if configured else None
    adapter = one(write(tmp_path, {"lora_A.weight": A, "lora_B.weight": B, key: SIGMA}, config))
    assert adapter.method == "bora"
    assert any("raw σ" in note and "--activation" in note for note in adapter.warnings)
    scaling = 1.5 if configured else 1.0
    expected = bora(B, A, SIGMA, scaling=scaling)
    np.testing.assert_array_equal(adapter["l.q"].to_dense(), expected.to_dense())
    stored = one(tmp_path, activation="identity")
    assert not any("raw σ" in note for note in stored.warnings)
    expected = bora(B, A, SIGMA, scaling=scaling, activation="identity")
    np.testing.assert_array_equal(stored["l.q"].to_dense(), expected.to_dense())


@pytest.mark.parametrize(
    ("content", "config", "expected"),
    [
        ({**OURS, "bora_sigma": SIGMA[:2]}, BORA, ["bora_sigma", "(2, 3, 4)", "(b, b, r)"]),
        ({**OURS, "bora_sigma": SIGMA[:, :, :3]}, BORA, ["bora_sigma", "r = 4"]),
        ({**OURS, "bora_sigma": SIGMA[0]}, BORA, ["bora_sigma", "(3, 4)"]),
        ({**OURS, "bora_sigma": np.ones((4, 4, 4), "f4")}, BORA, ["bora_sigma", "b = 4 does not divide", "1, 2, 3, 6"]),
        ({**OURS, "bora_sigma": np.ones((3, 3, 4), "i4")}, BORA, ["bora_sigma", "int32"]),
        ({**OURS, "bora_A": A[:3]}, BORA, ["bora_B", "(6, 4)"]),
        ({"bora_A": A, "bora_B": B}, BORA, ["bora_A", "no bora_sigma"]),
        (OURS, {**BORA, "r": 2}, ["bora_A", "rank 4", "r = 2"]),
        (OURS, {**BORA, "num_blocks": 2}, ["bora_sigma", "3 blocks", "num_blocks = 2"]),
        (OURS, {**BORA, "num_blocks": {"l.*": 6}}, ["num_blocks = 6"]),
        (OURS, {**BORA, "activation": "softmax"}, ["'softmax'", "exp-norm"]),
        (OURS, {"peft_type": "BORA", "r": 4}, ["no lora_alpha"]),
        (OURS | {"bora_A.other": A}, BORA, ["several adapters"]),
        ({"lora_A.weight": A, "lora_B.weight": B}, BORA, ["BORA", "lora"]),
        (
            {"lora_A.weight": A, "lora_B.weight": B, "lora_S.weight": SIGMA, "lora_T.weight": SIGMA},
            None,
            ["two σ"],
        ),
        ({"lora_A.weight": A, "lora_B.weight": B, "lora_S.weight": SIGMA[:2]}, None, ["lora_S", "(b, b, r)"]),
        ({"melora_A": np.stack(MINI_A)}, {**BORA, "peft_type": "MELORA"}, ["melora_A", "no melora_B"]),
        ({"melora_A": A, "melora_B": B}, {**BORA, "peft_type": "MELORA"}, ["melora_A", "(N, r, n/N)"]),
        (
            {"melora_A": np.stack(MINI_A), "melora_B": np.stack(MINI_B)[:2]},
            {**BORA, "r": 2, "peft_type": "MELORA"},
            ["melora_B", "(3, m/N, 2)"],
        ),
        (
            {"melora_A": np.stack(MINI_A), "melora_B": np.stack(MINI_B)},
            {**BORA, "r": 2, "peft_type": "MELORA", "num_minis": 4},
            ["3 blocks", "num_minis = 4"],
        ),
        (
            {"lora_A.0.weight": MINI_A[0], "lora_B.0.weight": MINI_B[0], "lora_A.2.weight": MINI_A[1],
             "lora_B.2.weight": MINI_B[1]},
            {"peft_type": "MELORA", "r": [2, 2], "lora_alpha": [1, 1]},
            ["minis 0, 2"],
        ),
        (
            {"lora_A.0.weight": MINI_A[0], "lora_B.0.weight": MINI_B[0], "lora_A.1.weight": MINI_A[1]},
            {"peft_type": "MELORA", "r": [2, 2], "lora_alpha": [1, 1]},
            ["lora_A.1.weight", "no lora_B"],
        ),
        (
            {"lora_A.0.weight": MINI_A[0], "lora_B.0.weight": MINI_B[0]},
            {"peft_type": "MELORA", "r": [3], "lora_alpha": [1]},
            ["[2]", "[3]"],
        ),
        (
            {"lora_A.0.weight": MINI_A[0], "lora_B.0.weight": MINI_B[0]},
            {"peft_type": "MELORA", "r": [2], "lora_alpha": []},
            ["lora_alpha = []"],
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, content: dict[str, np.ndarray], config: dict[str, Any] | None, expected: list[str]
) -> None:
    write(tmp_path, content, config)
    with pytest.raises(AdapterError) as caught:
        read_adapter(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "adapter_model.safetensors") in message
    for part in expected:
        assert part in message


def test_an_unknown_activation_is_refused_for_any_file(tmp_path: Path) -> None:
    write(tmp_path, {"lora_A.weight": A, "lora_B.weight": B}, {"peft_type": "LORA", "r": 4, "lora_alpha": 4})
    with pytest.raises(AdapterError, match="'softmax' is unknown"):
        read_adapter(tmp_path, activation="softmax")


def test_melora(tmp_path: Path) -> None:
    content = {"melora_A": np.stack(MINI_A), "melora_B": np.stack(MINI_B)}
    config = {"peft_type": "MELORA", "r": 2, "lora_alpha": 3, "num_minis": 3}
    adapter = one(write(tmp_path, content, config))
    expected = melora(MINI_B, MINI_A, scaling=1.5)
    assert adapter.method == "melora"
    assert adapter["l.q"].facts == expected.facts
    np.testing.assert_array_equal(adapter["l.q"].to_dense(), expected.to_dense())
    write(tmp_path, content, {**config, "use_rslora": True})
    assert one(tmp_path)["l.q"].facts.scaling == 3 / 2**0.5


@pytest.mark.parametrize("configured", [True, False])
def test_melora_of_its_authors(tmp_path: Path, configured: bool) -> None:
    ranks = (2, 3, 1) if configured else (2, 2, 2)
    left = [RNG.standard_normal((2, r), dtype=np.float32) for r in ranks]
    right = [RNG.standard_normal((r, 4), dtype=np.float32) for r in ranks]
    content = {f"lora_A.{i}.weight": value for i, value in enumerate(right)}
    content |= {f"lora_B.{i}.weight": value for i, value in enumerate(left)}
    content["head.weight"] = np.ones((2, 2), np.float32)
    config = {"peft_type": "MELORA", "mode": "melora", "r": list(ranks), "lora_alpha": [16, 16, 8]}
    adapter = one(write(tmp_path, content, config if configured else None))
    scaling = [8, 16 / 3, 8] if configured else 1.0
    np.testing.assert_array_equal(adapter["l.q"].to_dense(), melora(left, right, scaling=scaling).to_dense())
    assert adapter.method == "melora"
    assert adapter.passed_over == ("base_model.model.l.q.head.weight",)


def test_more_than_ten_minis_keep_their_order(tmp_path: Path) -> None:
    left = [np.full((1, 1), i + 1, np.float32) for i in range(12)]
    content = {f"lora_{side}.{i}.weight": left[i] for i in range(12) for side in "AB"}
    adapter = one(write(tmp_path, content, {"peft_type": "MELORA", "r": [1] * 12, "lora_alpha": [1] * 12}))
    np.testing.assert_array_equal(np.diag(adapter["l.q"].to_dense()), np.arange(1, 13.0) ** 2)


def test_a_single_number_is_an_adapters_name_unless_the_type_says_melora(tmp_path: Path) -> None:
    content = {"lora_A.0.weight": MINI_A[0], "lora_B.0.weight": MINI_B[0]}
    assert one(write(tmp_path, content, {"peft_type": "LORA", "r": 2, "lora_alpha": 2})).method == "lora"
    assert one(write(tmp_path, content, {"peft_type": "MELORA", "r": [2], "lora_alpha": [2]})).method == "melora"
