"""PEFT files against PEFT's own merge."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft_models as models
import pytest
from adapter_files import CLOSE, one

from bora_analysis import singular_values
from bora_analysis.adapters import Adapter, AdapterError, read_adapter
from bora_analysis.files import tensors
from bora_analysis.files.adapter_file import Source, match_pattern

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")


def check(adapter: Adapter, deltas: dict[str, np.ndarray], transposed: bool = False) -> None:
    """Every changed weight of the model is in the adapter, and is the same."""
    changed = {name.removesuffix(".weight") for name, value in deltas.items() if value.ndim > 1 and value.any()}
    assert set(adapter) == changed
    for module, update in adapter.items():
        expected = deltas[f"{module}.weight"]
        expected = expected.T if transposed else expected.reshape(expected.shape[0], -1)
        assert models.distance(update.to_dense(), expected) < CLOSE, module


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "proj",
        "layers.1.q_proj",
        "1.q_proj",
        "^q_proj",
        r"layers\.1",
        r"^model.*",
        "q",
        "(q|v)_proj",
        "model.layers.1.q_proj",
    ],
)
@pytest.mark.parametrize(
    "module",
    ["q_proj", "model.layers.1.q_proj", "model.layers.11.q_proj", "model.layers.1.xq_proj", "layers.1.q_proj.x"],
)
def test_a_pattern_fits_where_peft_says_so(pattern: str, module: str) -> None:
    from peft.utils.other import get_pattern_key

    weights = tensors.open_tensors(Path(__file__).parents[2] / "data/synthetic-lora-r8/adapter_model.safetensors")
    patterns = {"nothing": 1, pattern: 2}
    theirs = patterns.get(get_pattern_key(list(patterns), module))
    assert match_pattern(Source(weights, {}), patterns, module) == theirs


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_by_pattern(tmp_path: Path, rslora: bool) -> None:
    """Patterns are regular expressions with PEFT's anchoring, and the first that fits counts."""
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2, r"^model.*v_proj": 3, "v_proj": 5, r".*\.0\.mlp.down_proj": 1},
        alpha_pattern={"proj_q": 100, "q_proj": 32, r"^layers.*": 7, r"model\.layers\.1\.mlp\..*": 0.5},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deltas = models.saved(models.tiny_llama(), config, tmp_path)
    adapter = one(tmp_path)
    check(adapter, deltas)
    ranks = {module: adapter[module].facts.r for module in adapter}
    assert ranks["model.layers.1.self_attn.q_proj"] == 2
    assert ranks["model.layers.0.self_attn.q_proj"] == 4
    assert ranks["model.layers.0.self_attn.v_proj"] == 3
    assert ranks["model.layers.0.mlp.down_proj"] == 1
    assert adapter["model.layers.1.mlp.down_proj"].facts.scaling == 0.5 / (2 if rslora else 4)
    assert adapter.method == ("rslora" if rslora else "lora")
    assert adapter.name == tmp_path.name
    assert not adapter.warnings


def test_what_is_no_update_is_listed(tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], bias="all", modules_to_save=["lm_head"], trainable_token_indices=[1, 2]
    )
    deltas = models.saved(models.tiny_llama(attention_bias=True), config, tmp_path)
    adapter = one(tmp_path)
    attention = {name: value for name, value in deltas.items() if "q_proj" in name}
    check(adapter, attention)
    for part in ("lm_head.weight", "v_proj.bias", "trainable_tokens_delta"):
        assert any(part in key for key in adapter.passed_over), part


def test_lora_bias_is_passed_over(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["lin"], lora_bias=True)
    deltas = models.saved(models.module(lin=torch.nn.Linear(6, 5)), config, tmp_path)
    adapter = one(tmp_path)
    check(adapter, deltas)
    assert adapter.passed_over == ("base_model.model.lin.lora_B.bias",)


def test_conv1d_of_gpt2(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    deltas = models.saved(models.tiny_gpt2(), config, tmp_path)
    check(one(tmp_path), deltas, transposed=True)


def test_embeddings(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, target_modules=["emb"])
    deltas = models.saved(models.module(emb=torch.nn.Embedding(11, 7)), config, tmp_path)
    adapter = one(tmp_path)
    check(adapter, deltas, transposed=True)
    facts = adapter["emb"].facts
    assert (facts.out_features, facts.in_features, facts.parameters, facts.macs_per_token) == (7, 11, 54, 21)


def test_resized_embeddings_store_the_base(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, target_modules=["embed_tokens", "lm_head"])
    deltas = models.saved(models.tiny_llama(), config, tmp_path, save_embedding_layers=True)
    adapter = one(tmp_path)
    assert models.distance(adapter["model.embed_tokens"].to_dense(), deltas["model.embed_tokens.weight"].T) < CLOSE
    assert models.distance(adapter["lm_head"].to_dense(), deltas["lm_head.weight"]) < CLOSE
    assert any(key.endswith("embed_tokens.base_layer.weight") for key in adapter.passed_over)


@pytest.mark.parametrize(
    ("layer", "kernel"),
    [("Conv1d", 3), ("Conv2d", 1), ("Conv2d", 3), ("Conv2d", (1, 3)), ("Conv3d", 2)],
)
def test_convolutions(tmp_path: Path, layer: str, kernel: Any) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=3, target_modules=["conv"])
    deltas = models.saved(models.module(conv=getattr(torch.nn, layer)(6, 8, kernel)), config, tmp_path)
    check(one(tmp_path), deltas)


def test_grouped_convolution(tmp_path: Path) -> None:
    """PEFT cannot merge it (its A sees all channels, the base's groups do not), so the oracle is its forward."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["conv"])
    model = models.adapted(models.module(conv=torch.nn.Conv2d(6, 8, 3, groups=2)), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
    adapter = one(tmp_path)
    conv = model.base_model.model.conv
    x = torch.randn(1, 6, 5, 5, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = conv.lora_B["default"](conv.lora_A["default"](x)) * conv.scaling["default"]
        weight = torch.from_numpy(adapter["conv"].to_dense()).reshape(8, 6, 3, 3).float()
        found = torch.nn.functional.conv2d(x, weight)
    assert models.distance(found.numpy(), expected.numpy()) < CLOSE
    assert adapter["conv"].facts.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_multihead_attention(tmp_path: Path) -> None:
    """PEFT wraps out_proj inside the attention, with the attention's settings."""
    config = peft.LoraConfig(r=2, target_modules=["attn"], rank_pattern={"attn": 3}, alpha_pattern={"attn": 5})
    model = models.adapted(models.module(attn=torch.nn.MultiheadAttention(8, 2)), config)
    attention = model.base_model.model.attn
    # Not from merge_and_unload: PEFT 0.21.2 merges out_proj twice there, once with the attention and once by itself.
    inner = attention.base_layer.out_proj.get_delta_weight("default").detach().double().numpy()
    deltas = models.save_and_merge(model, tmp_path)
    adapter = one(tmp_path)
    assert set(adapter) == {"attn", "attn.out_proj"}
    assert models.distance(adapter["attn"].to_dense(), deltas["attn.in_proj_weight"]) < CLOSE
    assert models.distance(adapter["attn.out_proj"].to_dense(), inner) < CLOSE
    assert models.distance(2 * inner, deltas["attn.out_proj.weight"]) < CLOSE  # the note is true
    assert "out_proj in nn.MultiheadAttention twice" in adapter.warnings[0]


@pytest.mark.parametrize("make", [models.tiny_mixtral, models.tiny_gpt_oss])
@pytest.mark.parametrize("targets", [["down_proj"], ["gate_up_proj"], ["gate_up_proj", "down_proj"]])
def test_experts(tmp_path: Path, make: Any, targets: list[str]) -> None:
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj"],
        target_parameters=[f"mlp.experts.{name}" for name in targets],
        rank_pattern={"layers.1.mlp.experts.down_proj": 3},
    )
    deltas = models.saved(make(), config, tmp_path)
    adapter = one(tmp_path)
    assert not adapter.warnings
    assert len(adapter) == 2 + 2 * 3 * len(targets)
    for module, update in adapter.items():
        if "experts" not in module:
            continue
        parameter, _, expert = module.rpartition(".")
        expected = deltas[parameter][int(expert)]
        if make is models.tiny_gpt_oss:  # stored as (experts, in, out)
            expected = expected.T
        assert models.distance(update.to_dense(), expected) < CLOSE, module


def test_a_parameter_that_is_a_matrix(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["lin.weight"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deltas = models.saved(models.module(lin=torch.nn.Linear(6, 5)), config, tmp_path)
    adapter = one(tmp_path)
    assert models.distance(adapter["lin.weight"].to_dense(), deltas["lin.weight"]) < CLOSE


class Experts(torch.nn.Module):
    """Parameters whose names do not tell the order in which they are registered."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.w2 = torch.nn.Parameter(torch.randn(3, 8, 6, generator=generator))
        self.w1 = torch.nn.Parameter(torch.randn(3, 6, 8, generator=generator))
        self.w3 = torch.nn.Parameter(torch.randn(3, 6, 8, generator=generator))


def test_experts_of_unknown_order(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["experts.w1", "experts.w2", "experts.w3"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deltas = models.saved(models.module(experts=Experts()), config, tmp_path)
    adapter = one(tmp_path)
    assert "w1, w2, w3" in adapter.warnings[0]
    for k, name in enumerate(("w2", "w1", "w3")):
        for e in range(3):
            found = adapter[f"experts.parameter_{k}.{e}"].to_dense()
            assert models.distance(found, deltas[f"experts.{name}"][e]) < CLOSE
    edit(tmp_path, alpha_pattern={"w1": 3})
    with pytest.raises(AdapterError, match="differs between w1, w2, w3"):
        read_adapter(tmp_path)
    edit(tmp_path, alpha_pattern={}, target_parameters=[])
    with pytest.raises(AdapterError, match="target_parameters"):
        read_adapter(tmp_path)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path: Path, dtype: str) -> None:
    config = peft.LoraConfig(r=2, target_modules=["lin"])
    model = models.adapted(models.module(lin=torch.nn.Linear(6, 5)), config)
    model.to(getattr(torch, dtype))
    factors = {n: p.detach().double().numpy() for n, p in model.named_parameters() if "lora_" in n}
    expected = (
        factors["base_model.model.lin.lora_B.default.weight"] @ factors["base_model.model.lin.lora_A.default.weight"]
    )
    model.save_pretrained(tmp_path)
    update = one(tmp_path)["lin"]
    assert update.facts.dtype == dtype
    np.testing.assert_allclose(update.to_dense(), expected * 4, rtol=1e-14)  # α = 8, r = 2


def test_keys_in_their_other_spellings(tmp_path: Path) -> None:
    """An adapter's name, torch.compile's wrapper, no prefix, a torch.save file: all the same adapter."""
    from safetensors.torch import load_file, save_file

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    models.saved(models.tiny_llama(), config, tmp_path / "plain", save_embedding_layers=False)
    plain = one(tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    text = (tmp_path / "plain" / "adapter_config.json").read_text()
    named = {
        key.replace(".lora_A.weight", ".lora_A.default.weight")
        .replace(".lora_B.weight", ".lora_B.default.weight")
        .replace("embedding_A", "embedding_A.default")
        .replace("embedding_B", "embedding_B.default"): value
        for key, value in tensors.items()
    }
    spellings = {
        "named": named,
        "digit": {key.replace(".default", ".0"): value for key, value in named.items()},
        "bare": {key.removeprefix("base_model.model."): value for key, value in tensors.items()},
        "compiled": {
            key.replace("base_model.model.", "base_model.model._orig_mod."): value for key, value in tensors.items()
        },
        "compiled_layer": {key.replace("layers.0.", "layers.0._orig_mod."): value for key, value in tensors.items()},
        "compiled_outside": {f"_orig_mod.{key}": value for key, value in tensors.items()},
    }
    for spelling, content in spellings.items():
        folder = tmp_path / spelling
        folder.mkdir()
        (folder / "adapter_config.json").write_text(text)
        save_file(content, folder / "adapter_model.safetensors")
        adapter = one(folder)
        assert list(adapter) == list(plain), spelling
        for module in plain:
            np.testing.assert_array_equal(adapter[module].to_dense(), plain[module].to_dense())
    for protocol, zipped in (("zip", True), ("legacy", False)):
        folder = tmp_path / protocol
        folder.mkdir()
        (folder / "adapter_config.json").write_text(text)
        torch.save(
            {"state_dict": tensors, "step": 3}, folder / "adapter_model.bin", _use_new_zipfile_serialization=zipped
        )
        adapter = one(folder)
        assert list(adapter) == list(plain)
        for module in plain:
            np.testing.assert_array_equal(adapter[module].to_dense(), plain[module].to_dense())
    save_file(
        {**named, **{key.replace(".default", ".other"): value.clone() for key, value in named.items()}},
        tmp_path / "named" / "adapter_model.safetensors",
    )
    with pytest.raises(AdapterError, match="2 adapters: default, other"):
        read_adapter(tmp_path / "named")


def test_dora_is_refused(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["lin"], use_dora=True)
    models.saved(models.module(lin=torch.nn.Linear(6, 5)), config, tmp_path)
    with pytest.raises(AdapterError, match="DoRA needs the base model"):
        read_adapter(tmp_path)
    edit(tmp_path, use_dora=False)
    with pytest.raises(AdapterError, match="lora_magnitude_vector"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("init", "warned"),
    [("pissa", True), ("pissa_niter_4", True), ("olora", True), ("orthogonal", False), ("gaussian", False)],
)
def test_changed_base_models_are_warned_of(tmp_path: Path, init: str, warned: bool) -> None:
    config = peft.LoraConfig(r=2, target_modules=["lin"], init_lora_weights=init)
    models.saved(models.module(lin=torch.nn.Linear(6, 5)), config, tmp_path)
    adapter = one(tmp_path)
    assert [init in note for note in adapter.warnings] == [True] * warned


def test_a_converted_pissa_adapter_is_the_update(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["lin"], init_lora_weights="pissa")
    model = models.module(lin=torch.nn.Linear(6, 5))
    original = model.lin.weight.detach().double().numpy().copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config)
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(tmp_path / "initial")
        adapted.peft_config["default"].init_lora_weights = "pissa"
        torch.manual_seed(5)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data += torch.randn_like(parameter)
        adapted.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
        merged = adapted.merge_and_unload().lin.weight.detach().double().numpy()
    adapter = one(tmp_path / "done")
    assert not adapter.warnings
    assert adapter["lin"].facts.r == 4
    assert models.distance(adapter["lin"].to_dense(), merged - original) < CLOSE


@pytest.mark.parametrize("init", ["pissa", "olora", "lora_ga"])
def test_the_initial_adapter_makes_the_update_that_of_the_original_model(tmp_path: Path, init: str) -> None:
    model = models.module(lin=torch.nn.Linear(9, 8))
    original = model.lin.weight.detach().double().numpy().copy()
    # LoRA-GA needs gradients to start from; what is read is the same as PiSSA's.
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["lin"], init_lora_weights=init.replace("lora_ga", "pissa")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config)
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(tmp_path / "initial")
        adapted.peft_config["default"].init_lora_weights = init
        torch.manual_seed(5)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data += torch.randn_like(parameter)
        adapted.save_pretrained(tmp_path / "trained")
        merged = adapted.merge_and_unload().lin.weight.detach().double().numpy()
    assert init in one(tmp_path / "trained").warnings[0]
    adapter = one(tmp_path / "trained", initial=tmp_path / "initial")
    assert not adapter.warnings
    assert adapter.method == adapter["lin"].facts.method == {"lora_ga": "lora-ga"}.get(init, init)
    facts = adapter["lin"].facts
    assert (facts.r, facts.rank_bound, facts.parameters, facts.scaling) == (2, 4, 34, 1.5)
    assert models.distance(adapter["lin"].to_dense(), merged - original) < CLOSE
    found = singular_values(adapter["lin"]).values
    expected = np.linalg.svd(merged - original, compute_uv=False)
    assert np.abs(found - expected[:4]).max() < CLOSE * expected[0]
    models.saved(models.module(other=torch.nn.Linear(9, 8)), peft.LoraConfig(target_modules=["other"]), tmp_path / "o")
    with pytest.raises(AdapterError, match="no lin"):
        read_adapter(tmp_path / "trained", initial=tmp_path / "o")
    models.saved(models.module(lin=torch.nn.Linear(9, 7)), peft.LoraConfig(target_modules=["lin"]), tmp_path / "p")
    with pytest.raises(AdapterError, match="8×9, 7×9"):
        _ = one(tmp_path / "trained", initial=tmp_path / "p")["lin"]


def test_alora_is_warned_of(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[1, 2], task_type="CAUSAL_LM")
    models.adapted(models.tiny_llama(), config).save_pretrained(tmp_path)
    assert "invocation tokens" in one(tmp_path).warnings[0]
