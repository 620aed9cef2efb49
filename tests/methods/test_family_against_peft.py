"""Every method of PEFT that needs no base model, against PEFT's own merge: ΔW and singular values."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft_models as models
import pytest
from adapter_files import CLOSE, one
from scipy.linalg import svdvals

from bora_analysis import layer_metrics, singular_values
from bora_analysis.adapters import AdapterError, read_adapter

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")


class Case(NamedTuple):
    """One method with options on one model.

    ``sizes`` says that the file lacks the sizes of the layers. ``counted`` is the share of PEFT's trained numbers that
    belongs to no module.
    """

    config: str
    options: dict[str, Any]
    model: Callable[[], Any]
    method: str
    sizes: bool = False
    counted: int = 0


def linear() -> Any:
    return models.module(up=torch.nn.Linear(12, 18), down=torch.nn.Linear(18, 12, bias=False))


def wide() -> Any:
    return models.module(up=torch.nn.Linear(48, 36), down=torch.nn.Linear(36, 48))


def odd() -> Any:
    return models.module(up=torch.nn.Linear(11, 14), down=torch.nn.Linear(14, 7))


def square() -> Any:
    return models.module(up=torch.nn.Linear(16, 16), down=torch.nn.Linear(16, 16))


def conv() -> Any:
    return models.module(up=torch.nn.Conv2d(12, 16, 3, groups=2), down=torch.nn.Conv1d(6, 8, 3))


def large_conv() -> Any:
    return models.module(up=torch.nn.Conv2d(24, 36, 3), down=torch.nn.Conv1d(24, 36, 3))


def layers() -> Any:
    return models.tiny_llama()


BOTH = {"target_modules": ["up", "down"]}
PATTERNS = {
    "target_modules": ["q_proj", "down_proj"],
    "r": 4,
    "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 3},
    "alpha_pattern": {"^model.*q_proj": 7, "down_proj": 5},
}
GPT2 = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
VB = {"r": 3, "num_vectors": 9, "vector_length": 6}
BD = {"target_modules_bd_a": ["up"], "target_modules_bd_b": ["down"], "nblocks": 2}

CASES = {
    "lora": Case("LoraConfig", BOTH | {"r": 3, "lora_alpha": 5, "bias": "all"}, linear, "lora"),
    "rslora": Case("LoraConfig", PATTERNS | {"use_rslora": True}, layers, "rslora"),
    "adalora": Case("AdaLoraConfig", BOTH | {"init_r": 5, "lora_alpha": 7, "total_step": 9}, linear, "adalora"),
    "adalora-conv1d": Case("AdaLoraConfig", GPT2 | {"total_step": 9}, models.tiny_gpt2, "adalora"),
    "loha": Case("LoHaConfig", BOTH | {"r": 2, "alpha": 3}, linear, "loha"),
    "loha-wide": Case("LoHaConfig", BOTH | {"r": 3, "alpha": 3}, wide, "loha"),
    "loha-patterns": Case("LoHaConfig", PATTERNS | {"alpha": 6}, layers, "loha"),
    "loha-conv": Case("LoHaConfig", BOTH | {"r": 2, "alpha": 3}, conv, "loha"),
    "loha-tucker": Case("LoHaConfig", BOTH | {"r": 2, "alpha": 3, "use_effective_conv2d": True}, conv, "loha"),
    "lokr": Case("LoKrConfig", BOTH | {"r": 2, "alpha": 3}, wide, "lokr"),
    "lokr-both": Case("LoKrConfig", BOTH | {"r": 1, "alpha": 3, "decompose_both": True}, wide, "lokr"),
    "lokr-factor": Case("LoKrConfig", BOTH | {"r": 2, "alpha": 3, "decompose_factor": 2}, wide, "lokr"),
    "krona": Case("LoKrConfig", BOTH | {"r": 30, "alpha": 3}, wide, "lokr"),
    "lokr-patterns": Case("LoKrConfig", PATTERNS | {"alpha": 6}, layers, "lokr"),
    "lokr-conv": Case("LoKrConfig", BOTH | {"r": 1, "alpha": 3}, conv, "lokr"),
    "lokr-conv-whole": Case("LoKrConfig", BOTH | {"r": 9, "alpha": 3}, conv, "lokr"),
    "lokr-tucker": Case("LoKrConfig", BOTH | {"r": 2, "alpha": 3, "use_effective_conv2d": True}, large_conv, "lokr"),
    "vera": Case("VeraConfig", BOTH | {"r": 8}, square, "vera"),
    "vera-sizes": Case("VeraConfig", BOTH | {"r": 5}, linear, "vera", sizes=True),
    "vera-drawn": Case("VeraConfig", BOTH | {"r": 5, "save_projection": False}, linear, "vera", sizes=True),
    "vera-drawn-large": Case(
        "VeraConfig", BOTH | {"r": 16, "save_projection": False, "projection_prng_key": 3}, wide, "vera", sizes=True
    ),
    "vera-conv1d": Case("VeraConfig", GPT2 | {"r": 4}, models.tiny_gpt2, "vera", sizes=True),
    "pvera": Case("PveraConfig", BOTH | {"r": 5}, square, "pvera"),
    "vblora": Case("VBLoRAConfig", BOTH | VB, linear, "vblora", counted=54),
    "vblora-topk": Case(
        "VBLoRAConfig", BOTH | VB | {"topk": 3, "save_only_topk_weights": True}, linear, "vblora", counted=54
    ),
    "delora": Case("DeloraConfig", BOTH | {"r": 3}, linear, "delora"),
    "gralora": Case("GraloraConfig", BOTH | {"r": 6, "alpha": 5, "gralora_k": 3}, wide, "gralora"),
    "gralora-hybrid": Case("GraloraConfig", BOTH | {"r": 4, "alpha": 5, "hybrid_r": 3}, wide, "gralora"),
    "gralora-conv1d": Case("GraloraConfig", GPT2 | {"r": 4, "gralora_k": 2}, models.tiny_gpt2, "gralora"),
    "miss": Case("MissConfig", BOTH | {"r": 3}, linear, "miss", sizes=True),
    "miss-remainder": Case("MissConfig", BOTH | {"r": 5}, linear, "miss", sizes=True),
    "miss-mini": Case("MissConfig", BOTH | {"r": 3, "init_weights": "mini", "mini_r": 6}, linear, "miss", sizes=True),
    "c3a": Case("C3AConfig", BOTH | {"block_size": 6}, linear, "c3a"),
    "c3a-odd": Case("C3AConfig", BOTH | {"block_size": 3}, wide, "c3a"),
    "fourierft": Case("FourierFTConfig", BOTH | {"n_frequency": 20, "scaling": 30.0}, linear, "fourierft", sizes=True),
    "fourierft-seed": Case(
        "FourierFTConfig",
        BOTH | {"n_frequency": 9, "random_loc_seed": 5, "n_frequency_pattern": {"up": 60}},
        linear,
        "fourierft",
        sizes=True,
    ),
    "fourierft-conv1d": Case("FourierFTConfig", GPT2 | {"n_frequency": 20}, models.tiny_gpt2, "fourierft", sizes=True),
    "shira": Case("ShiraConfig", BOTH | {"r": 1}, linear, "shira", sizes=True),
    "bdlora": Case("LoraConfig", BOTH | {"r": 4, "lora_alpha": 5, "use_bdlora": BD}, linear, "bdlora"),
    "kasa": Case("LoraConfig", BOTH | {"r": 3, "lora_alpha": 5, "kasa_config": {"beta": 0.1}}, linear, "kasa"),
    "kasa-patterns": Case("LoraConfig", PATTERNS | {"use_rslora": True, "kasa_config": {}}, layers, "kasa"),
    "tinylora": Case("TinyLoraConfig", BOTH | {"r": 3, "u": 5}, linear, "tinylora"),
    "tinylora-tied": Case(
        "TinyLoraConfig",
        {"target_modules": ["q_proj", "down_proj", "o_proj"], "r": 3, "u": 5, "weight_tying": 0.5},
        layers,
        "tinylora",
    ),
    "tinylora-seed": Case(
        "TinyLoraConfig", BOTH | {"r": 99, "u": 2, "projection_seed": 7, "bias": "all"}, linear, "tinylora"
    ),
    "tinylora-conv1d": Case("TinyLoraConfig", GPT2 | {"r": 3, "weight_tying": 1.0}, models.tiny_gpt2, "tinylora"),
    "unilora": Case("UniLoraConfig", BOTH | {"r": 3, "theta_d_length": 30, "save_indices": True}, linear, "unilora"),
    "unilora-conv1d": Case(
        "UniLoraConfig", GPT2 | {"theta_d_length": 99, "save_indices": True}, models.tiny_gpt2, "unilora"
    ),
    "randlora": Case("RandLoraConfig", BOTH | {"r": 5}, linear, "randlora", sizes=True),
    "randlora-sparse": Case(
        "RandLoraConfig", BOTH | {"r": 4, "sparse": True, "randlora_alpha": 3}, wide, "randlora", sizes=True
    ),
    "randlora-conv1d": Case("RandLoraConfig", GPT2 | {"r": 3}, models.tiny_gpt2, "randlora", sizes=True),
    "supertuning": Case("SupertuningConfig", BOTH | {"sparsity": 0.9}, linear, "supertuning", sizes=True),
    "supertuning-few": Case(
        "SupertuningConfig", BOTH | {"sparsity": 0.98, "select_top": False}, linear, "supertuning", sizes=True
    ),
    "supra": Case("SupertuningConfig", BOTH | {"sparsity": 0.95, "r": 2, "lora_alpha": 3}, linear, "supra"),
    "waveft": Case("WaveFTConfig", BOTH | {"n_frequency": 9}, linear, "waveft", sizes=True),
    "waveft-odd": Case("WaveFTConfig", BOTH | {"n_frequency": 30, "random_loc_seed": 3}, odd, "waveft", sizes=True),
    "waveft-db3": Case(
        "WaveFTConfig",
        BOTH | {"n_frequency": 40, "wavelet_family": "db3", "scaling": 3.0},
        linear,
        "waveft",
        sizes=True,
    ),
    "waveft-sym4": Case(
        "WaveFTConfig", BOTH | {"n_frequency": 300, "wavelet_family": "sym4"}, wide, "waveft", sizes=True
    ),
    "waveft-sparse": Case(
        "WaveFTConfig",
        BOTH | {"n_frequency": 9, "use_idwt": False, "n_frequency_pattern": {"up": 50}},
        linear,
        "waveft",
        sizes=True,
    ),
    "waveft-conv1d": Case("WaveFTConfig", GPT2 | {"n_frequency": 20}, models.tiny_gpt2, "waveft", sizes=True),
}


def prepare(case: Case) -> Any:
    options = dict(case.options)
    if "use_bdlora" in options:
        options["use_bdlora"] = peft.tuners.lora.BdLoraConfig(**options["use_bdlora"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(peft, case.config)(**options)
    return models.adapted(case.model(), config)


@pytest.mark.parametrize("name", CASES)
def test_the_update_is_what_merging_adds(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    model = prepare(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and not n.endswith(".bias"))
    deltas = models.save_and_merge(model, tmp_path)
    turned = case.options.get("fan_in_fan_out", False)
    expected = {}
    for key, value in deltas.items():
        if value.ndim > 1 and value.any():
            expected[key.removesuffix(".weight")] = value.T if turned else value.reshape(value.shape[0], -1)
    if case.method in ("miss", "fourierft", "randlora", "supertuning", "waveft"):
        with pytest.raises(AdapterError, match="does not store the size"):
            read_adapter(tmp_path)
    sizes = {module: value.shape for module, value in expected.items()} if case.sizes else None
    adapter = one(tmp_path, shapes=sizes)
    assert adapter.method == case.method
    assert set(adapter) == set(expected)
    assert not [key for key in adapter.passed_over if not key.endswith(".bias")]
    for module, update in adapter.items():
        assert models.distance(update.to_dense(), expected[module]) < CLOSE, module
        found, dense = singular_values(update).values, np.asarray(svdvals(expected[module]))
        bound = update.facts.rank_bound
        assert len(found) == bound
        # Weyl: singular values move by at most the rounding of the merge.
        assert np.abs(found - dense[:bound]).max() < CLOSE * np.linalg.norm(dense), module
        assert dense[bound:].max(initial=0) < CLOSE * np.linalg.norm(dense), module
        left, right = update.factors()
        assert models.distance(left @ right, update.to_dense()) < 1e-12, module
    assert sum(update.facts.parameters for update in adapter.values()) + case.counted == trained
    layer_metrics(adapter)  # every column is defined


@pytest.mark.parametrize("name", ["vera-drawn", "miss", "fourierft-seed", "shira", "randlora", "waveft"])
def test_the_base_model_tells_the_sizes(tmp_path: Path, name: str) -> None:
    from safetensors.torch import save_file

    case = CASES[name]
    save_file(case.model().state_dict(), tmp_path / "base.safetensors")
    deltas = models.save_and_merge(prepare(case), tmp_path / "adapter")
    adapter = one(tmp_path / "adapter", base=tmp_path / "base.safetensors")
    assert not adapter.warnings
    for module, update in adapter.items():
        assert models.distance(update.to_dense(), deltas[f"{module}.weight"]) < CLOSE, module


def test_adalora_after_pruning(tmp_path: Path) -> None:
    """PEFT drops what the budget took and keeps the scaling of init_r; a module may lose every direction."""
    config = peft.AdaLoraConfig(init_r=5, lora_alpha=7, total_step=9, target_modules=["up", "down"])
    model = models.adapted(linear(), config)
    kept = {"up.lora_E.default": [True, False, True, True, False], "down.lora_E.default": [False] * 5}
    for name, mask in kept.items():
        energy = model.get_parameter(f"base_model.model.{name}")
        energy.data[~torch.tensor(mask)] = 0  # as the rank allocator does
    model.peft_config["default"].rank_pattern = kept
    deltas = models.save_and_merge(model, tmp_path)
    adapter = one(tmp_path)
    up, down = adapter["up"], adapter["down"]
    assert (up.facts.r, up.facts.rank_bound, up.facts.parameters) == (3, 3, 3 * (12 + 18 + 1))
    assert models.distance(up.to_dense(), deltas["up.weight"]) < CLOSE
    assert (down.facts.r, down.facts.rank_bound, down.facts.parameters) == (0, 0, 0)
    assert not down.to_dense().any()
    assert not deltas["down.weight"].any()
    assert len(singular_values(down)) == 0
    row = next(row for row in layer_metrics(adapter).to_dict("records") if row["module"] == "down")
    assert [row[column] for column in ("effective_rank", "rank_utilisation", "energy")] == [0, 0, 0]


@pytest.mark.parametrize("method", ["MISS", "FOURIERFT"])
def test_a_wrong_peft_type_is_an_error(tmp_path: Path, method: str) -> None:
    models.save_and_merge(prepare(CASES["delora"]), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": method}))
    with pytest.raises(AdapterError, match=f"peft_type is {method} but the keys are those of delora"):
        read_adapter(tmp_path)


def test_vera_without_sizes_says_what_it_took(tmp_path: Path) -> None:
    models.save_and_merge(prepare(CASES["vera-sizes"]), tmp_path)
    (note,) = one(tmp_path).warnings
    assert "18, the largest, stands for all" in note
    models.save_and_merge(prepare(CASES["vera-drawn"]), tmp_path / "drawn")
    with pytest.raises(AdapterError, match="does not store the size of"):
        read_adapter(tmp_path / "drawn")


@pytest.mark.parametrize(
    ("name", "key", "shape", "parts"),
    [
        ("loha", "up.hada_w2_b", (2, 11), ["hada_w2_b", "(2, 11)", "(2, 12)"]),
        ("loha", "up.hada_w2_b", None, ["up.hada_w", "no hada_w2_b"]),
        ("loha", "up.hada_w1_b", (3, 12), ["hada_w1_b", "rank 3", "r = 2"]),
        ("lokr", "up.lokr_w2_b", None, ["no lokr_w2_b"]),
        ("lokr", "up.lokr_w1", (4,), ["lokr_w1", "(4,)", "(p, q)"]),
        ("adalora", "up.lora_B", (18, 4), ["lora_B", "(18, 4)", "(m, 5)"]),
        ("vera", "up.vera_lambda_d", (7,), ["vera_lambda_d", "rank 7", "r = 8"]),
        ("vera", "up.vera_lambda_b", (17,), ["vera_lambda_b", "(17,)", "(16, 8)"]),
        ("vblora", "up.vblora_logits_B", None, ["no vblora_logits_B"]),
        ("vblora", "up.vblora_logits_A", (3, 2, 8), ["vblora_logits_A", "(3, 2, 8)", "bank's h"]),
        ("delora", "up.delora_w_norm", None, ["no delora_w_norm"]),
        ("delora", "up.delora_w_norm", (11,), ["delora_w_norm", "(11,)", "(12,)"]),
        ("gralora", "up.gralora_B", (3, 5, 12), ["gralora_B", "(3, 5, 12)", "(3, 6, m/3)"]),
        ("c3a", "up.c3a_kernel", (3, 6), ["c3a_kernel", "(3, 6)", "(m/b, n/b, b)"]),
        ("bdlora", "up.lora_B.weight", (18, 3), ["lora_B", "(18, 3)", "(m, 4)"]),
        ("kasa", "up.lora_diag", (4,), ["lora_diag", "(4,)", "(3,)"]),
        ("tinylora", "up.tinylora_P", (5, 3, 2), ["tinylora_P", "(5, 3, 2)", "3, 3)"]),
        ("tinylora", "up.tinylora_B", None, ["no tinylora_B"]),
        ("unilora", "up.unilora_scales_B", (18, 4), ["unilora_scales_B", "(18, 4)", "(m, 3)"]),
        ("supra", "up.supertuning_lora_B.weight", (18, 3), ["supertuning_lora_B", "(18, 3)", "(m, 2)"]),
        ("supra", "up.supertuning_lora_B.weight", (2, 2), ["supertuning_", "places up to row"]),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, name: str, key: str, shape: tuple[int, ...] | None, parts: list[str]
) -> None:
    from safetensors.torch import load_file, save_file

    models.save_and_merge(prepare(CASES[name]), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[f"base_model.model.{key}"]
    save_file(tensors if shape is None else tensors | {f"base_model.model.{key}": torch.ones(shape)}, path)
    with pytest.raises(AdapterError) as caught:
        dict(one(tmp_path))  # reads every module
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert all(part in message for part in parts), message
