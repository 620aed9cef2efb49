"""Every type of PEFT is read or refused by name, and methods that PEFT does not merge, against its forward pass."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft_models as models
import pytest
from adapter_files import CLOSE, one, write
from scipy.linalg import svdvals

from bora_analysis import base_metrics, convert, layer_metrics, singular_values
from bora_analysis.adapters import AdapterError, read_adapter
from bora_analysis.adapters.synthetic import Synthetic, write_synthetic
from bora_analysis.catalogue import METHODS
from bora_analysis.methods.unreadable import REFUSED

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")

TARGETS = {"target_modules": ["up", "down"]}


def linear() -> Any:
    return models.module(up=torch.nn.Linear(12, 18), down=torch.nn.Linear(18, 12, bias=False))


def adapted(name: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return models.adapted(linear(), getattr(peft, f"{name}Config")(**TARGETS, **options)).eval()


def saved(model: Any, folder: Path, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **options)
    return folder


def test_every_type_of_peft_is_read_or_refused() -> None:
    types = {kind.value for kind in (*peft.PeftType, *peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING)}
    read = {kind for row in METHODS.values() if row.module for kind in row.peft_types}
    assert not types - read - set(REFUSED)
    assert not read & set(REFUSED)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_named_with_the_reason(tmp_path: Path, kind: str) -> None:
    name, reason = REFUSED[kind]
    folder = write(tmp_path, {"x": np.ones((2, 3), "f4")}, {"peft_type": kind})
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder)
    assert f"peft_type {kind} ({name}) is not readable: {reason}" in str(caught.value)


def test_a_file_of_biases_is_refused_without_a_configuration_too(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.adapted(linear(), peft.BeftConfig(target_modules=["up"]))
    saved(model, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"BEFT is not readable: it trains biases alone.*\(key .*beft_bias\)"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("UniLora", {"r": 2, "theta_d_length": 30}, "has no unilora_indices beside it.*save_indices=True"),
        ("RandLora", {"r": 2, "save_projection": False}, "not in the file.*save_projection=True"),
        ("TinyLora", {"save_projection": False}, "no tinylora_P beside it.*save_projection=True"),
        ("Supertuning", {"save_precomputed_indices": False}, "no supertuning_indices.*save_precomputed_indices=True"),
        ("Frod", {"save_projection": False, "progressbar": False}, "no frod_V.*save_projection=True"),
    ],
)
def test_what_a_file_leaves_out_is_told(tmp_path: Path, name: str, options: dict[str, Any], told: str) -> None:
    from safetensors.torch import save_file

    saved(adapted(name, **options), tmp_path / "adapter")
    save_file(linear().state_dict(), tmp_path / "base.safetensors")
    with pytest.raises(AdapterError, match=told):
        read_adapter(tmp_path / "adapter", base=tmp_path / "base.safetensors")


@pytest.mark.parametrize(
    ("name", "options", "key", "shape"),
    [
        ("RandLora", {"r": 4}, "randlora_gamma", (2, 2)),
        ("WaveFT", {"n_frequency": 9}, "waveft_spectrum", (3, 3)),
        ("Supertuning", {"sparsity": 0.9}, "supertuning_indices", (2,)),
        ("Poly", {"r": 2}, "poly_lora_B", (1, 4, 3, 18)),
        ("Lily", {"r": 2}, "lily_B.weight", (3, 18)),
        ("Deft", {"r": 3}, "deft_R", (3, 5)),
        ("Psoft", {"r": 3}, "psoft_R.weight", (4,)),
        ("Frod", {"progressbar": False}, "frod_lambda_l", (5,)),
        ("OSF", {}, "osf_svd_params.V_low", (3, 3)),
        ("Glora", {"r": 2}, "glora_A.Xu", (3, 12)),
        ("Peanut", {"r": 2}, "peanut_B.weight", (18, 3)),
        ("Adamss", {"r": 4, "num_subspaces": 2, "subspace_rank": 2}, "adamss_newB", (4, 3)),
        ("Road", {"group_size": 6}, "road_theta", (5,)),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, name: str, options: dict[str, Any], key: str, shape: tuple[int, ...]
) -> None:
    from safetensors.torch import load_file, save_file

    file = saved(adapted(name, **options), tmp_path / "adapter") / "adapter_model.safetensors"
    tensors = load_file(file)
    full = f"base_model.model.up.{key}"
    tensors[full] = torch.ones(shape, dtype=tensors[full].dtype)
    save_file(tensors, file)
    save_file(linear().state_dict(), tmp_path / "base.safetensors")
    with pytest.raises(AdapterError) as caught:
        dict(one(tmp_path / "adapter", base=tmp_path / "base.safetensors"))
    message = str(caught.value)
    assert str(file) in message
    assert f"{key.removesuffix('.weight')}" in message
    assert f"{shape}" in message
    assert "\n" not in message


def test_projections_that_no_seed_gives_are_refused(tmp_path: Path) -> None:
    """With one vector for each layer TinyLoRA's file tells the layer by its projections alone."""
    folder = saved(adapted("TinyLora"), tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"projection_seed": 5}))
    with pytest.raises(AdapterError, match=r"tinylora_P.*drawn from no seed from projection_seed = 5 on"):
        _ = one(folder)["up"]


def test_tinylora_on_an_embedding(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.adapted(models.tiny_llama(), peft.TinyLoraConfig(target_modules=["embed_tokens"], r=3))
    deltas = models.save_and_merge(model, tmp_path, save_embedding_layers=False)
    (update,) = one(tmp_path).values()
    assert models.distance(update.to_dense(), deltas["model.embed_tokens.weight"]) < CLOSE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["TinyLora", "RandLora", "WaveFT", "Supertuning"])
def test_half_precision(tmp_path: Path, name: str, dtype: str) -> None:
    """The file in half precision gives what the same numbers give in single precision."""
    from safetensors.torch import load_file, save_file

    options = {"RandLora": {"r": 4}, "WaveFT": {"n_frequency": 9}, "Supertuning": {"sparsity": 0.9, "r": 2}}
    folder = saved(adapted(name, **options.get(name, {})), tmp_path / "whole")
    config, sizes = (folder / "adapter_config.json").read_text(), {"up": (18, 12), "down": (12, 18)}
    found = []
    for kind in (dtype, "float32"):
        tensors = {
            key: tensor.to(getattr(torch, dtype)).to(getattr(torch, kind)) if tensor.is_floating_point() else tensor
            for key, tensor in load_file(folder / "adapter_model.safetensors").items()
        }
        (tmp_path / kind).mkdir()
        save_file(tensors, tmp_path / kind / "adapter_model.safetensors")
        (tmp_path / kind / "adapter_config.json").write_text(config)
        found.append(one(tmp_path / kind, shapes=sizes))
    for module, update in found[0].items():
        assert update.facts.dtype == dtype
        np.testing.assert_allclose(update.to_dense(), found[1][module].to_dense(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("splits", [1, 2])
def test_poly(tmp_path: Path, splits: int) -> None:
    from safetensors.torch import save_file

    model = adapted("Poly", r=2, n_tasks=3, n_skills=4, n_splits=splits)
    adapter = one(saved(model, tmp_path))
    assert list(adapter) == [f"{module}.{task}" for module in ("down", "up") for task in range(3)]
    assert "each is a module of its own" in adapter.warnings[0]
    for module in ("up", "down"):
        layer = model.base_model.model.get_submodule(module)
        for task in range(3):
            x = torch.eye(layer.in_features)[None]
            with torch.no_grad():
                expected = (layer(x, task_ids=torch.tensor([task])) - layer.base_layer(x))[0].T.double().numpy()
            check(adapter[f"{module}.{task}"], expected)
    assert sum(update.facts.parameters for update in adapter.values()) == model.get_nb_trainable_parameters()[0]
    layer_metrics(adapter)
    base = tmp_path / "base.safetensors"
    save_file({"up.weight": torch.eye(18, 12), "down.weight": torch.eye(12, 18)}, base)
    assert base_metrics(adapter, base)["module"].nunique() == 6
    with pytest.raises(AdapterError, match=r"down\.0 is what one task of several makes of a layer"):
        convert(adapter, tmp_path / "lora")
    single = one(saved(adapted("Poly", r=2), tmp_path / "single"))
    assert (list(single), single.warnings) == (["down", "up"], ())
    convert(single, tmp_path / "lora")
    lora = one(tmp_path / "lora")
    for module, update in single.items():
        assert models.distance(lora[module].to_dense(), update.to_dense()) < CLOSE


def test_lily(tmp_path: Path) -> None:
    model = adapted("Lily", r=2, num_B=3, scaling=0.7)
    folder = saved(model, tmp_path)
    inputs = {name: np.random.default_rng(1).standard_normal((5, n)) for name, n in (("up", 12), ("down", 18))}
    routed = one(folder, experts=inputs)
    for module, x in inputs.items():
        layer = model.base_model.model.get_submodule(module)
        x = torch.from_numpy(x).float()[None]
        with torch.no_grad():
            expected = (layer(x) - layer.base_layer(x))[0].double().numpy()
        assert models.distance(x[0].double().numpy() @ routed[module].to_dense().T, expected) < CLOSE
        B = layer.lily_B["default"].weight.detach().double().numpy().reshape(3, 2, -1)
        A = layer.lily_A["default"].weight.detach().double().numpy()
        each = one(folder, experts="each")
        for k in range(3):
            check(each[f"{module}.{k}"], 0.7 * B[k].T @ A)
        check(one(folder)[module], 0.7 * B.mean(axis=0).T @ A)
        assert one(folder, experts="stacked")[module].facts.out_features == 3 * len(B[0].T)
    for wish in ("mean", "each"):
        found = one(folder, experts=wish)
        assert sum(update.facts.parameters for update in found.values()) == model.get_nb_trainable_parameters()[0]
    assert "Lily's update depends on its router" in one(folder).warnings[0]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_what_layers_of_lily_share_is_counted_once(tmp_path: Path, stride: int) -> None:
    config = peft.LilyConfig(r=2, num_B=2, stride_A=stride, target_modules=["q_proj", "down_proj"])
    model = models.adapted(models.tiny_llama(num_hidden_layers=12), config)
    saved(model, tmp_path)
    for wish in ("mean", "each"):
        found = one(tmp_path, experts=wish)
        assert sum(update.facts.parameters for update in found.values()) == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "alpha_pattern": {"up": 7}, "rank_pattern": {"down": 2}}])
def test_qalora(tmp_path: Path, options: dict[str, Any]) -> None:
    """PEFT has it for GPTQ's layers; its own forward pass on a plain layer is the oracle."""
    from peft.tuners.lora.variants import QALoraLinearVariant
    from safetensors.torch import save_file

    config = peft.LoraConfig(r=3, lora_alpha=5, use_qalora=True, qalora_group_size=6, **TARGETS, **options)
    model = adapted("Lora", r=3, lora_alpha=5, **options)
    expected, tensors = {}, {}
    for module in ("up", "down"):
        layer = model.base_model.model.get_submodule(module)
        QALoraLinearVariant.init(layer, "default", config)
        x = torch.eye(layer.in_features)
        with torch.no_grad():
            change = QALoraLinearVariant.forward(layer, "default", x, torch.zeros(len(x), layer.out_features))
        expected[module] = change.T.double().numpy()
        for side in "AB":
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = getattr(layer, f"lora_{side}")["default"].weight
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config.save_pretrained(tmp_path)
    adapter = one(tmp_path)
    assert (adapter.method, adapter.warnings) == ("qalora", ())
    for module, update in adapter.items():
        check(update, expected[module])
        assert update.facts.parameters == sum(t.numel() for key, t in tensors.items() if f".{module}." in key)


def test_a_synthetic_qalora_is_what_peft_computes(tmp_path: Path) -> None:
    """PEFT's forward pass, with the factors of the file."""
    from peft.tuners.lora.variants import QALoraLinearVariant
    from safetensors.torch import load_file

    folder = write_synthetic(tmp_path, Synthetic("qalora", {"up": (18, 32)}, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown entries of the configuration
        config = peft.LoraConfig.from_pretrained(folder)
    plain = peft.LoraConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=["up"])
    model = models.adapted(models.module(up=torch.nn.Linear(32, 18)), plain)
    layer = model.base_model.model.up
    QALoraLinearVariant.init(layer, "default", config)
    tensors = load_file(folder / "adapter_model.safetensors")
    for side in "AB":
        own = getattr(layer, f"lora_{side}")["default"].weight
        own.data = tensors[f"base_model.model.up.lora_{side}.weight"]
    with torch.no_grad():
        expected = QALoraLinearVariant.forward(layer, "default", torch.eye(32), torch.zeros(32, 18)).T
    check(one(folder)["up"], expected.double().numpy())


@pytest.mark.parametrize("method", ["poly", "lily"])
def test_peft_computes_what_a_synthetic_adapter_without_a_merge_says(tmp_path: Path, method: str) -> None:
    """Its forward pass; Lily's router sees the inputs."""
    shapes = {"layers.0.up": (18, 12), "layers.1.up": (18, 12)}
    folder = write_synthetic(tmp_path, Synthetic(method, shapes, 3, 2 if method == "lily" else 1))
    layers = [models.module(up=torch.nn.Linear(12, 18)) for _ in shapes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(models.module(layers=torch.nn.ModuleList(layers)), folder).eval()
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((5, 12)).astype(np.float32))
    options: dict[str, Any] = {"experts": dict.fromkeys(shapes, x.double().numpy())} if method == "lily" else {}
    told = {"task_ids": torch.tensor([0])} if method == "poly" else {}
    adapter = one(folder, **options)
    for module, update in adapter.items():
        layer = model.base_model.model.get_submodule(module)
        with torch.no_grad():
            expected = (layer(x[None], **told) - layer.base_layer(x[None]))[0].double().numpy()
        assert models.distance(x.double().numpy() @ update.to_dense().T, expected) < CLOSE
    trained = sum(update.facts.parameters for update in adapter.values())
    assert trained == sum(p.numel() for name, p in model.named_parameters() if model.base_model.prefix in name)


def test_an_expert_of_x_lora_is_a_lora(tmp_path: Path) -> None:
    """As PEFT saves it beside the router, with the weights of the base model."""
    from safetensors.numpy import save_file

    prefix, pair = "base_model.lora_model.model", {"A": np.ones((2, 3), "f4"), "B": np.ones((4, 2), "f4")}
    file = {f"{prefix}.layers.0.q.lora_{side}.weight": factor for side, factor in pair.items()}
    file[f"{prefix}.layers.0.q.base_layer.weight"] = np.ones((4, 3), "f4")
    file["base_model.internal_xlora_classifier.layers.weight"] = np.ones((8, 3), "f4")
    save_file(file, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    adapter = one(tmp_path)
    assert (list(adapter), len(adapter.passed_over)) == (["layers.0.q"], 2)
    np.testing.assert_array_equal(adapter["layers.0.q"].to_dense(), np.full((4, 3), 4.0))


def test_adamss_with_a_bias_and_another_base_model(tmp_path: Path) -> None:
    """The bias is a column of what PEFT clusters; another base model has other clusters."""
    from safetensors.torch import save_file

    base = linear()
    save_file({key: tensor.clone() for key, tensor in base.state_dict().items()}, tmp_path / "base.safetensors")
    model = models.adapted(base, peft.AdamssConfig(r=4, num_subspaces=3, subspace_rank=2, **TARGETS))
    deltas = models.save_and_merge(model, tmp_path / "adapter")
    adapter = one(tmp_path / "adapter", base=tmp_path / "base.safetensors")
    for module, update in adapter.items():
        check(update, deltas[f"{module}.weight"])
    save_file({key: torch.randn_like(t) for key, t in linear().state_dict().items()}, tmp_path / "other.safetensors")
    with pytest.raises(AdapterError, match=r"adamss_newB.*the base model is another one"):
        _ = one(tmp_path / "adapter", base=tmp_path / "other.safetensors")["up"]


def check(update: Any, expected: np.ndarray) -> None:
    assert models.distance(update.to_dense(), expected) < CLOSE
    found, dense = singular_values(update).values, svdvals(expected)
    assert np.abs(found - dense[: len(found)]).max() < CLOSE * dense[0]
    assert np.max(dense[len(found) :], initial=0.0) < CLOSE * dense[0]
