"""BoraConfig(init="svd", target=…): training starts near a known update."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft_cases import TARGETS, adapted, base, get_peft_model, layers, load, output
from torch import nn

from bora_analysis import capture, read_adapter, synthetic_adapter
from bora_analysis.adapters import Adapter
from bora_analysis.analysis.capture import nearest
from bora_analysis.catalogue import ACTIVATIONS
from bora_analysis.peft_methods import BoraConfig, RankCallback, read_model
from bora_analysis.updates.contract import Update

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")


def target_for(model: str, r: int = 4) -> dict[str, Update]:
    """Updates of other sizes of singular values for each module that is adapted."""
    found = layers(adapted(model, BoraConfig(r=1, num_blocks=1), random=False))
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in found.items()}
    adapter = synthetic_adapter("lora", shapes, r=r, kind="decay", decay=0.5)
    return {module: adapter[module] for module in adapter}


@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_starts_at_the_nearest_member_and_the_base_weight_stays(model: str, activation: Any) -> None:
    target = target_for(model)
    config = BoraConfig(r=2, num_blocks=4, lora_alpha=3, activation=activation, init="svd", target=target)
    made = adapted(model, config, random=False)
    for name, layer in layers(made).items():
        parts = nearest(target[name], ("bora", 2, 4), bora_activation=activation, starts=1)
        whole = read_model(made)[name].to_dense()
        lost = np.linalg.norm(target[name].to_dense() - whole) ** 2 / np.linalg.norm(target[name].to_dense()) ** 2
        best = np.linalg.svd(target[name].to_dense(), compute_uv=False) ** 2
        assert 1 - lost >= best[:2].sum() / best.sum() - 1e-5  # never below a LoRA of its r
        assert parts["sigma"].shape == (4, 4, 2)
        delta = layer.get_delta_weight("default")
        np.testing.assert_allclose((delta.T if layer.is_transposed else delta).numpy(), whole, atol=1e-6)
    with made.disable_adapter():
        torch.testing.assert_close(output(made, model), output(base(model), model), rtol=0, atol=0)


def test_a_target_of_the_set_is_reproduced_and_training_starts_at_w0_plus_it(tmp_path: Path) -> None:
    target = {name: matrix * 0.1 for name, matrix in (("first", torch.ones(24, 16)), ("second", torch.ones(8, 24)))}
    config = BoraConfig(r=2, num_blocks=4, init="svd", target=target, target_modules=["first", "second"])
    made = get_peft_model(base("plain"), config)
    plain = base("plain")
    with torch.no_grad():
        for name, delta in target.items():
            getattr(plain, name).weight.add_(delta)
    torch.testing.assert_close(output(made.eval(), "plain"), output(plain, "plain"), rtol=1e-5, atol=1e-6)
    output(made.train(), "plain").square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.any()
        for parameter in made.parameters()
        if parameter.requires_grad
    )


def test_it_is_saved_as_any_other_adapter_and_loads_without_its_target(tmp_path: Path) -> None:
    config = BoraConfig(r=2, num_blocks=4, init="svd", target=target_for("llama"))
    made = adapted("llama", config, random=False)
    made.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not {"init", "target", "near"} & set(told)
    again = load(base("llama"), tmp_path)
    torch.testing.assert_close(output(again.eval(), "llama"), output(made.eval(), "llama"), rtol=0, atol=0)
    read = read_adapter(tmp_path)
    for name in layers(made):
        np.testing.assert_allclose(read[name].to_dense(), read_model(made)[name].to_dense())
    trained = load(base("llama"), tmp_path, is_trainable=True)
    assert trained.peft_config["default"].near is None


def test_a_path_is_a_target_and_a_first_name_may_differ(tmp_path: Path) -> None:
    made = adapted("llama", BoraConfig(r=2, num_blocks=4))
    made.save_pretrained(tmp_path / "one")
    config = BoraConfig(r=2, num_blocks=4, activation="identity", init="svd", target=tmp_path / "one")
    again = adapted("llama", config, random=False)
    shares = [
        1 - np.linalg.norm((old := read_model(made)[name].to_dense()) - read_model(again)[name].to_dense()) ** 2
        / np.linalg.norm(old) ** 2
        for name in layers(made)
    ]  # fmt: skip
    assert min(shares) > 0.5
    target = {f"other.{name}": update for name, update in target_for("plain").items()}
    get_peft_model(base("plain"), BoraConfig(r=2, num_blocks=4, init="svd", target=target, target_modules=["first"]))


def test_the_start_is_as_near_as_capture_says() -> None:
    target = Adapter.from_updates("target", target_for("plain"))
    table = capture(target, [("bora", 2, 4)], starts=1)
    made = adapted("plain", BoraConfig(r=2, num_blocks=4, init="svd", target=target), random=False)
    for row in table.itertuples():
        old, new = target[str(row.module)].to_dense(), read_model(made)[str(row.module)].to_dense()
        share = 1 - np.linalg.norm(old - new) ** 2 / np.linalg.norm(old) ** 2
        assert share == pytest.approx(row.captured, abs=1e-5)


def test_the_callback_sees_the_rank_at_step_0(tmp_path: Path) -> None:
    made = adapted("plain", BoraConfig(r=2, num_blocks=4, init="svd", target=target_for("plain")), random=False)
    callback = RankCallback(tmp_path / "ranks.parquet", every=1)
    state: Any = SimpleNamespace(global_step=0, is_world_process_zero=True, log_history=[], epoch=0.0)
    callback.on_train_begin(SimpleNamespace(), state, SimpleNamespace(), model=made)
    rows = pd.read_parquet(tmp_path / "ranks.parquet")
    assert rows["step"].tolist() == [0, 0]
    assert (rows["effective_rank"] >= 2).all()


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(4, 8, 3), nn.Embedding(12, 8)


def test_convolutions_and_embeddings() -> None:
    rng = np.random.default_rng(0)
    target = {"conv": rng.standard_normal((8, 36)), "table": rng.standard_normal((8, 12))}
    config = BoraConfig(r=4, num_blocks=2, init="svd", target=target, target_modules=["conv", "table"])
    for name, layer in layers(get_peft_model(Mixed(), config)).items():
        delta = layer.get_delta_weight("default").detach().numpy()
        found = delta.reshape(8, -1) if name == "conv" else delta.T
        share = 1 - np.linalg.norm(target[name] - found) ** 2 / np.linalg.norm(target[name]) ** 2
        best = np.linalg.svd(target[name], compute_uv=False) ** 2
        assert share >= best[:4].sum() / best.sum() - 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "svd"}, "init is 'svd' and target None"),
        ({"target": {"first": np.ones((24, 16))}}, "init is 'default' and target is given"),
        ({"init": "pissa"}, "init is 'pissa'; expected 'default' or 'svd'"),
        ({"init": "svd", "target": {}}, "target is empty"),
        ({"init": "svd", "target": {"first": np.ones((16, 24))}}, r"first: target has an update of shape \(16, 24\)"),
        ({"init": "svd", "target": {"second": np.ones((8, 24))}}, r"first: target has no such module \(second\)"),
        ({"init": "svd", "target": {"first": np.full((24, 16), np.nan)}}, "NaN"),
        ({"init": "svd", "target": {"first": np.ones((24, 16))}, "lora_alpha": 0}, "lora_alpha is 0"),
        (
            {"init": "svd", "target": {"first": np.ones((24, 16))}, "r": 30},
            "first: BoRA r = 30, b = 4: r is at most 24",
        ),
        ({"init": "svd", "target": {"first": np.ones((24, 16))}, "init_lora_weights": False}, "expected one of them"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(base("plain"), BoraConfig(**{"r": 2, "num_blocks": 4, "target_modules": ["first"], **options}))


def test_a_zero_target_starts_at_zero_and_can_be_trained() -> None:
    config = BoraConfig(r=2, num_blocks=4, init="svd", target={"first": np.zeros((24, 16))}, target_modules=["first"])
    (layer,) = layers(get_peft_model(base("plain"), config)).values()
    assert not layer.get_delta_weight("default").any()
    assert layer.bora_A["default"].any()
