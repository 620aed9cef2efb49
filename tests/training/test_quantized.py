"""A quantised base model under ``train``: it learns on the CPU, and ``run.json`` says what it takes."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from training_models import reviews, save_encoder

from bora_analysis import read_adapter
from bora_analysis.training import Settings, TrainingError, train

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NF4 = pytest.param("nf4", marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    save_encoder(folder / "encoder")
    reviews(40).to_csv(folder / "reviews.csv", index=False)
    return folder


def settings(home: Path, method: str, quantize: str | None) -> Settings:
    return Settings(
        str(home / "encoder"), str(home / "reviews.csv"), label="label", method=method, quantize=quantize, r=4, steps=2,
        batch_size=4, checkpoints=(), learning_rate=1e-2, blocks=4 if method == "bora" else None,
    )  # fmt: skip


def linear_sizes(home: Path) -> tuple[int, list[tuple[int, int]]]:
    """Bytes of the whole model in float32, and the sizes of the layers that are quantised: all but the head."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(home / "encoder")
    whole = sum(value.nbytes for value in (*model.parameters(), *model.buffers()))
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    return whole, [(layer.out_features, layer.in_features) for name, layer in layers if name != "classifier"]


@pytest.mark.parametrize("kind", ["int8", NF4])
@pytest.mark.parametrize("method", ["lora", "bora", "sbora-fa"])
def test_it_learns_and_takes_less_memory(home: Path, tmp_path: Path, method: str, kind: str) -> None:
    record = train(settings(home, method, kind), tmp_path / "run", device="cpu")
    assert record == json.loads((tmp_path / "run/run.json").read_text())
    assert all(math.isfinite(entry["loss"]) for entry in record["history"] if "loss" in entry)
    adapter: Any = read_adapter(tmp_path / "run")
    assert all(update.to_dense().any() for update in adapter.values())
    whole, layers = linear_sizes(home)
    held = record["memory"]
    assert held["base_full"] == whole
    float_part = whole - sum(4 * m * n for m, n in layers)
    if kind == "int8":  # a byte each, and for each row a scale and a zero point
        numbers = float_part + sum(m * n + 4 * m for m, n in layers)
        assert numbers <= held["base"] <= numbers + sum(4 * m for m, _ in layers)
    else:  # half a byte each, and a few bytes for 64 of them; the table of the 16 values for each layer
        numbers = float_part + sum(m * n // 2 for m, n in layers)
        assert numbers < held["base"] < numbers + sum(m * n // 16 + 2000 for m, n in layers)
    assert held["peak"] > whole


@pytest.mark.parametrize("method", ["hira", "pissa"])  # in the first step, and before it
def test_a_method_that_works_on_the_weights_says_so(home: Path, tmp_path: Path, method: str) -> None:
    with pytest.raises(TrainingError, match=f"{method}: PEFT cannot adapt a base model in int8 by it") as told:
        train(settings(home, method, "int8"), tmp_path / "run", device="cpu")
    assert "\n" not in str(told.value)


def test_without_it_both_numbers_are_those_of_the_model(home: Path, tmp_path: Path) -> None:
    held = train(settings(home, "lora", None), tmp_path / "run", device="cpu")["memory"]
    assert held["base"] == held["base_full"] == linear_sizes(home)[0]


def test_what_trains_the_matrices_themselves_is_refused() -> None:
    with pytest.raises(TrainingError, match="quantize is int8, but full trains the matrices themselves"):
        Settings("m", "d", method="full", quantize="int8")
    with pytest.raises(TrainingError, match="quantize is 'int3'; expected one of int8, nf4"):
        Settings("m", "d", quantize="int3")


def test_a_package_that_is_not_there_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match="bitsandbytes is not installed; expected the extra quantize"):
        train(settings(home, "lora", "nf4"), tmp_path / "run", device="cpu")
