"""Methods that need the base model, against PEFT's own merge, and full fine-tuning against the difference itself."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft_models as models
import pytest
from method_lists import ON_BASE
from scipy.linalg import svdvals

from bora_analysis import singular_values, synthetic_adapter
from bora_analysis.adapters import Adapter, AdapterError, read_adapter
from bora_analysis.adapters.synthetic import Synthetic, write_synthetic
from bora_analysis.catalogue import METHODS
from bora_analysis.files import tensors

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")

CLOSE = 1e-5  # float32 rounding in PEFT's merge

LINEAR = ["q_proj", "down_proj"]
GPT2 = ["c_attn", "attn.c_proj", "mlp.c_proj"]
OFT: dict[str, Any] = {"r": 0, "oft_block_size": 4}
CASES = {
    "dora": (models.tiny_llama, "Lora", {"r": 3, "lora_alpha": 6, "use_dora": True, "target_modules": LINEAR}),
    "dora-rslora-patterns": (
        models.tiny_llama,
        "Lora",
        {
            "r": 4, "use_dora": True, "use_rslora": True, "target_modules": LINEAR,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 5},
        },
    ),
    "dora-conv1d": (models.tiny_gpt2, "Lora", {"r": 3, "use_dora": True, "target_modules": GPT2}),
    "dora-embedding": (models.tiny_llama, "Lora", {"r": 3, "use_dora": True, "target_modules": ["embed_tokens"]}),
    "hira": (models.tiny_llama, "Hira", {"r": 3, "target_modules": LINEAR}),
    "hira-conv1d": (models.tiny_gpt2, "Hira", {"r": 3, "target_modules": GPT2}),
    "hira-embedding": (models.tiny_llama, "Hira", {"r": 3, "target_modules": ["embed_tokens"]}),
    "hra": (models.tiny_llama, "HRA", {"r": 5, "target_modules": LINEAR}),
    "hra-gram-schmidt": (models.tiny_llama, "HRA", {"r": 4, "apply_GS": True, "target_modules": LINEAR}),
    "oft": (models.tiny_llama, "OFT", {**OFT, "target_modules": LINEAR}),
    "oft-cayley": (models.tiny_llama, "OFT", {**OFT, "use_cayley_neumann": False, "target_modules": LINEAR}),
    "oft-terms": (models.tiny_llama, "OFT", {**OFT, "num_cayley_neumann_terms": 7, "target_modules": LINEAR}),
    "oft-shared": (models.tiny_llama, "OFT", {**OFT, "block_share": True, "target_modules": LINEAR}),
    "oft-constrained": (models.tiny_llama, "OFT", {**OFT, "coft": True, "eps": 0.5, "target_modules": LINEAR}),
    "oft-embedding": (models.tiny_llama, "OFT", {**OFT, "target_modules": ["embed_tokens"]}),
    "boft": (models.tiny_llama, "BOFT", {"boft_block_size": 4, "target_modules": LINEAR}),
    "ia3": (models.tiny_llama, "IA3", {"target_modules": LINEAR, "feedforward_modules": ["down_proj"]}),
    "ia3-conv1d": (models.tiny_gpt2, "IA3", {"target_modules": GPT2, "feedforward_modules": ["mlp.c_proj"]}),
    "deft": (models.tiny_llama, "Deft", {"r": 3, "target_modules": LINEAR}),
    "deft-qr-alpha": (
        models.tiny_llama,
        "Deft",
        {"r": 40, "alpha": 6, "decomposition_method": "qr", "init_weights": False, "target_modules": LINEAR},
    ),
    "deft-para": (models.tiny_llama, "Deft", {"r": 3, "para": True, "target_modules": LINEAR}),
    "deft-conv1d": (models.tiny_gpt2, "Deft", {"r": 3, "target_modules": GPT2}),
    "psoft": (models.tiny_llama, "Psoft", {"r": 5, "target_modules": LINEAR}),
    "psoft-rotation": (
        models.tiny_llama, "Psoft", {"r": 5, "psoft_mag_a": False, "psoft_mag_b": False, "target_modules": LINEAR},
    ),
    "psoft-free": (
        models.tiny_llama,
        "Psoft",
        {"r": 4, "psoft_orth": False, "psoft_alpha": 9, "ab_svd_init": "pissa_init", "target_modules": ["q_proj"]},
    ),
    "psoft-series": (
        models.tiny_llama,
        "Psoft",
        {"r": 6, "use_cayley_neumann": True, "cayley_neumann_eps": 0.9, "psoft_mag_b": False, "target_modules": LINEAR},
    ),
    "psoft-lowrank": (
        models.tiny_llama,
        "Psoft",
        {"r": 3, "psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 2, "random_seed": 4, "target_modules": LINEAR},
    ),
    "frod": (models.tiny_llama, "Frod", {"progressbar": False, "sparse_rate": 0.1, "target_modules": LINEAR}),
    "frod-diagonal": (models.tiny_llama, "Frod", {"progressbar": False, "sparse_rate": 0, "target_modules": LINEAR}),
    "frod-conv1d": (models.tiny_gpt2, "Frod", {"progressbar": False, "target_modules": GPT2}),
    "osf": (models.tiny_llama, "OSF", {"target_modules": LINEAR}),
    "osf-ranks": (
        models.tiny_llama, "OSF", {"effective_rank": 13, "rank_pattern": {"down_proj": 0.25}, "target_modules": LINEAR},
    ),
    "glora": (models.tiny_llama, "Glora", {"r": 3, "target_modules": LINEAR}),
    "glora-vector": (models.tiny_llama, "Glora", {"config_A_B": "vector", "target_modules": LINEAR}),
    "glora-constant": (models.tiny_llama, "Glora", {"config_A_B": "constant", "target_modules": LINEAR}),
    "road": (models.tiny_llama, "Road", {"group_size": 8, "target_modules": LINEAR}),
    "road-2": (models.tiny_llama, "Road", {"group_size": 4, "variant": "road_2", "target_modules": LINEAR}),
    "road-4": (models.tiny_llama, "Road", {"group_size": 16, "variant": "road_4", "target_modules": LINEAR}),
    "peanut": (models.tiny_llama, "Peanut", {"r": 3, "scaling": 0.5, "target_modules": LINEAR}),
    "peanut-deep": (
        models.tiny_llama, "Peanut", {"r": 4, "depth": 2, "act_fn": "gelu_new", "target_modules": LINEAR},
    ),
    "adamss": (
        models.tiny_llama, "Adamss", {"r": 6, "num_subspaces": 3, "subspace_rank": 2, "target_modules": LINEAR},
    ),
    "miss-bat": (models.tiny_llama, "Miss", {"r": 4, "init_weights": "bat", "target_modules": LINEAR}),
}  # fmt: skip
CONVOLUTIONS = {
    "dora": ("Lora", {"r": 3, "use_dora": True}),
    "hira": ("Hira", {"r": 3}),
    "hra": ("HRA", {"r": 3}),
    "oft": ("OFT", {"r": 0, "oft_block_size": 9}),
    "boft": ("BOFT", {"boft_block_size": 6}),
    "ia3-out": ("IA3", {"feedforward_modules": []}),
    "ia3-in": ("IA3", {"feedforward_modules": ["conv"]}),
}


def one(path: Path, **options: Any) -> Adapter:
    adapter = read_adapter(path, **options)
    assert isinstance(adapter, Adapter)
    return adapter


def save(model: Any, folder: Path) -> None:
    """The base model, by its own means, or the weights alone."""
    from safetensors.torch import save_file

    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        folder.mkdir()
        save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / "model.safetensors")


def trained(model: Any, config: Any) -> Any:
    """The model with an adapter whose parameters are moved at random from where PEFT starts them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config)
    torch.manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return adapted


def merged_change(adapted: Any) -> dict[str, np.ndarray]:
    """What merging adds to each weight, float64."""
    before = {}
    for name, parameter in adapted.base_model.model.named_parameters():
        before[name.replace("base_layer.", "")] = parameter.detach().double().numpy().copy()
    after = adapted.merge_and_unload()
    return {
        name.removesuffix(".weight"): parameter.detach().double().numpy() - before[name]
        for name, parameter in after.named_parameters()
        if parameter.ndim > 1
    }


def check(adapter: Adapter, changes: dict[str, np.ndarray], *, transposed: bool = False) -> None:
    assert set(adapter) == {name for name, change in changes.items() if change.any()}
    for module, update in adapter.items():
        expected = changes[module].T if transposed else changes[module].reshape(len(changes[module]), -1)
        assert models.distance(update.to_dense(), expected) < CLOSE, module
        assert (update.facts.out_features, update.facts.in_features) == expected.shape
        found, oracle = singular_values(update).values, svdvals(expected)
        assert len(found) == update.facts.rank_bound
        assert np.abs(found - oracle[: len(found)]).max() < CLOSE * oracle[0]
        assert np.max(oracle[len(found) :], initial=0.0) < CLOSE * oracle[0]
        left, right = update.factors()
        assert models.distance(left @ right, update.to_dense()) < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_the_update_is_what_peft_merges(tmp_path: Path, case: str) -> None:
    build, kind, options = CASES[case]
    model = build()
    save(model, tmp_path / "base")
    adapted = trained(model, getattr(peft, f"{kind}Config")(**options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(tmp_path / "adapter")
        changes = merged_change(adapted)
    adapter = one(tmp_path / "adapter", base=tmp_path / "base")
    assert adapter.method == case.split("-")[0]
    assert not adapter.warnings
    check(adapter, changes, transposed="conv1d" in case or "embedding" in case)
    with pytest.raises(AdapterError, match="needs the base model: --base"):
        read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("method", [name for name in ON_BASE if METHODS[name].peft_types])
def test_peft_loads_and_merges_a_synthetic_adapter(tmp_path: Path, method: str) -> None:
    from safetensors.torch import load_file

    shapes = {"first": (24, 16), "second": (32, 24)}
    folder = write_synthetic(tmp_path, Synthetic(method, shapes, 4, scale=1.0))
    model = models.module(**{name: torch.nn.Linear(n, m, bias=False) for name, (m, n) in shapes.items()})
    model.load_state_dict(load_file(folder / "base" / "model.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown entries of the configuration, HRA of an odd r
        adapted = peft.PeftModel.from_pretrained(model, folder)
        changes = merged_change(adapted)
    memory = synthetic_adapter(method, shapes, 4, scale=1.0)
    for adapter in (one(folder), memory):
        for module, update in adapter.items():
            found, expected = update.to_dense(), changes[module]
            if method == "psoft":  # the signs of singular vectors, which LAPACKs choose apart, turn ΔW
                found, expected = (np.asarray(svdvals(each))[:, None] for each in (found, expected))
            assert models.distance(found, expected) < CLOSE, module


@pytest.mark.parametrize("spectrum", ["mp", "flat"])
def test_layers_of_a_kind_share_the_projection_that_peft_finds(tmp_path: Path, spectrum: str) -> None:
    """PEFT keeps its own U beside the V of a file, so V must be PEFT's to the sign of every column."""
    from safetensors.torch import load_file

    shapes = {"layers.0.q": (24, 16), "layers.0.v": (8, 16), "layers.1.q": (24, 16), "layers.1.v": (4, 16)}
    raw = Synthetic("frod", shapes, 1, scale=1.0, base_spectrum=spectrum)
    folder = write_synthetic(tmp_path, raw)
    layers = [
        models.module(**{own: torch.nn.Linear(16, shapes[f"layers.{k}.{own}"][0], bias=False) for own in "qv"})
        for k in range(2)
    ]
    model = models.module(layers=torch.nn.ModuleList(layers))
    model.load_state_dict(load_file(folder / "base" / "model.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = peft.get_peft_model(copy.deepcopy(model), peft.FrodConfig(target_modules=["q", "v"], progressbar=False))
        adapted = peft.PeftModel.from_pretrained(model, folder)
    shared = load_file(folder / "adapter_model.safetensors")
    for kind in "qv":
        np.testing.assert_array_equal(shared[f"base_model.frod_V.{kind}"], fresh.base_model.frod_V[kind]["default"])
    changes = merged_change(adapted)
    for module, update in one(folder).items():
        assert models.distance(update.to_dense(), changes[module]) < CLOSE, module


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(tmp_path: Path, case: str) -> None:
    kind, options = CONVOLUTIONS[case]
    model = models.module(conv=torch.nn.Conv2d(4, 5, 3, padding=1))
    save(model, tmp_path / "base")
    adapted = trained(model, getattr(peft, f"{kind}Config")(target_modules=["conv"], **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(tmp_path / "adapter")
        changes = merged_change(adapted)
    check(one(tmp_path / "adapter", base=tmp_path / "base"), changes)


def test_ia3_on_the_inputs_of_a_grouped_convolution(tmp_path: Path) -> None:
    model = models.module(conv=torch.nn.Conv2d(4, 6, 3, groups=2))
    save(model, tmp_path / "base")
    adapted = trained(model, peft.IA3Config(target_modules=["conv"], feedforward_modules="conv"))
    adapted.save_pretrained(tmp_path / "adapter")
    check(one(tmp_path / "adapter", base=tmp_path / "base"), merged_change(adapted))


def test_a_butterfly_of_several_factors(tmp_path: Path) -> None:
    """PEFT has them on CUDA only; its permutations and its transform are the oracle."""
    from peft.tuners.boft.layer import BOFTLayer
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    W, R, s = rng.standard_normal((5, 16)), rng.standard_normal((3, 4, 4, 4)), rng.standard_normal((5, 1))
    save_file({"lin.weight": W}, tmp_path / "base.safetensors")
    prefix = "base_model.model.lin"
    save_file({f"{prefix}.boft_R": R, f"{prefix}.boft_s": s}, tmp_path / "adapter_model.safetensors")
    tools: Any = BOFTLayer.__new__(BOFTLayer)
    rotation = torch.eye(16, dtype=torch.float64)
    for level in range(3):
        blocks = torch.from_numpy(R[level])
        skew = 0.5 * (blocks - blocks.mT)
        eye = torch.eye(4, dtype=torch.float64).expand(4, 4, 4)
        turned = torch.block_diag(*torch.linalg.solve(eye + skew, eye - skew, left=False))
        P = tools.perm2mat(tools.block_butterfly_perm(16, 4 // 2**level, 2, 2)).double()
        rotation = P @ turned @ P.T @ rotation
    expected = W @ rotation.numpy().T * s - W
    adapter = one(tmp_path / "adapter_model.safetensors", base=tmp_path / "base.safetensors")
    np.testing.assert_allclose(adapter["lin"].to_dense(), expected, atol=1e-12)


def test_dora_of_its_authors(tmp_path: Path) -> None:
    """Magnitudes (m, 1), and modules that have nothing else."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(1)
    W = {name: rng.standard_normal((6, 4)).astype(np.float32) for name in ("q_proj", "up_proj")}
    B, A, g, h = (rng.standard_normal(shape) for shape in ((6, 2), (2, 4), (6, 1), (6, 1)))
    save_file({f"model.{name}.weight": value for name, value in W.items()}, tmp_path / "base.safetensors")
    keys = {"q_proj.lora_A": A, "q_proj.lora_B": B, "q_proj.weight_m_wdecomp": g, "up_proj.weight_m_wdecomp": h}
    folder = tmp_path / "adapter"
    folder.mkdir()
    file = {f"base_model.model.{key}.weight": value for key, value in keys.items()}
    save_file(file, folder / "adapter_model.safetensors")
    config = {"peft_type": "DORA", "r": 2, "lora_alpha": 8, "Wdecompose_target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    adapter = one(folder, base=tmp_path / "base.safetensors")
    V = W["q_proj"] + 4 * B @ A
    expected = g * V / np.linalg.norm(V, axis=1, keepdims=True) - W["q_proj"]
    np.testing.assert_allclose(adapter["q_proj"].to_dense(), expected, atol=1e-12)
    expected = h * W["up_proj"] / np.linalg.norm(W["up_proj"].astype(float), axis=1, keepdims=True) - W["up_proj"]
    np.testing.assert_allclose(adapter["up_proj"].to_dense(), expected, atol=1e-6)
    assert adapter["q_proj"].facts.parameters == 2 * 4 + 6 * 2 + 6
    assert adapter["up_proj"].facts.parameters == 6


@pytest.mark.parametrize("random", [False, True])
def test_hira_of_its_authors(tmp_path: Path, random: bool) -> None:
    """peft_type LORA, r_ab in the configuration, no α; with rand_R a stored random matrix takes W0's place."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(2)
    W, R = rng.standard_normal((6, 4)), rng.standard_normal((6, 4))
    B, A = rng.standard_normal((6, 2)), rng.standard_normal((2, 4))
    save_file({"q_proj.weight": W}, tmp_path / "base.safetensors")
    keys = {"lora_A": A, "lora_B": B} | ({"lora_R": R} if random else {})
    folder = tmp_path / "adapter"
    folder.mkdir()
    file = {f"base_model.model.q_proj.{key}": value for key, value in keys.items()}
    save_file(file, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r_ab": 2, "lora_alpha": 99}))
    adapter = one(folder, base=None if random else tmp_path / "base.safetensors")
    assert adapter.method == "hira"
    np.testing.assert_allclose(adapter["q_proj"].to_dense(), (R if random else W) * (B @ A), atol=1e-12)


def test_magnitudes_of_columns(tmp_path: Path) -> None:
    """LyCORIS's default: the norms are those of an input channel, over outputs and kernel."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(3)
    W = rng.standard_normal((6, 4, 3, 3))
    B, A, g = rng.standard_normal((6, 2, 1, 1)), rng.standard_normal((2, 4, 3, 3)), rng.standard_normal((1, 4, 1, 1))
    save_file({"conv.weight": W}, tmp_path / "base.safetensors")
    keys = {"lora_A.weight": A, "lora_B.weight": B, "lora_magnitude_columns": g}
    save_file({f"conv.{key}": value for key, value in keys.items()}, tmp_path / "adapter_model.safetensors")
    V = torch.from_numpy(W + np.einsum("or,rckl->ockl", B[:, :, 0, 0], A))
    norm = V.transpose(0, 1).reshape(4, -1).norm(dim=1).reshape(1, 4, 1, 1)
    expected = (V * torch.from_numpy(g) / norm).numpy() - W
    adapter = one(tmp_path / "adapter_model.safetensors", base=tmp_path / "base.safetensors", alpha=2)
    np.testing.assert_allclose(adapter["conv"].to_dense(), expected.reshape(6, -1), atol=1e-12)


def test_the_base_is_read_one_matrix_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.tiny_llama()
    model.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    adapted = trained(model, peft.HiraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    read: list[str] = []
    original = tensors.SafetensorsFile.read

    def counting(self: Any, key: str) -> Any:
        read.append(key)
        return original(self, key)

    monkeypatch.setattr(tensors.SafetensorsFile, "read", counting)
    adapter = one(tmp_path / "adapter", base=tmp_path / "base")
    assert not read
    first = next(iter(adapter))
    update = adapter[first]
    assert sorted(key.rpartition(".")[2] for key in read) == ["hira_A", "hira_B"]
    read.clear()
    singular_values(update)
    assert read == [f"{first}.weight"]


def test_full_fine_tuning_is_the_difference(tmp_path: Path) -> None:
    model = models.tiny_llama()
    save(model, tmp_path / "base")
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "layers.0" in name or "embed" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "tuned", max_shard_size="8KB")
    with pytest.raises(AdapterError, match="is a whole model; its update needs the base model: --base"):
        read_adapter(tmp_path / "tuned")
    adapter = one(tmp_path / "tuned", base=tmp_path / "base")
    assert adapter.method == "full"
    assert len(adapter) == 2 * 7
    assert any("embeddings and heads are passed over" in note for note in adapter.warnings)
    before = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    for module, update in adapter.items():
        expected = (model.state_dict()[f"{module}.weight"].double() - before[f"{module}.weight"].double()).numpy()
        np.testing.assert_array_equal(update.to_dense(), expected)
        np.testing.assert_allclose(singular_values(update).values, svdvals(expected), atol=1e-12)
        assert bool(singular_values(update).values.any()) == ("layers.0" in module)
