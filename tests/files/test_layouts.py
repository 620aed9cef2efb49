"""Layouts of other programs: ΔW against the dense formula that each program's code states, in float64."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from bora_analysis import singular_values
from bora_analysis.adapters import Adapter, AdapterError, read_adapter
from bora_analysis.adapters.locate import paths_read
from bora_analysis.catalogue.module_names import layer, projection
from bora_analysis.cli import main
from bora_analysis.files import tensors
from bora_analysis.files.keys import module_path
from bora_analysis.files.layouts import translate

SHARED = Path(__file__).resolve().parents[3] / "shared" / "adapters"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the adapters that other people trained are not here")


def one(path: Path, **options: Any) -> Adapter:
    adapter = read_adapter(path, **options)
    assert isinstance(adapter, Adapter)
    return adapter


def made(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def number(value: float, dtype: Any = "f4") -> np.ndarray:
    return np.array(value, dtype)


def saved(folder: Path, content: dict[str, Any], config: Any = None, **metadata: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "some_file.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in content.items()}, path, metadata or None)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return path


def equal(adapter: Adapter, module: str, dense: np.ndarray) -> None:
    np.testing.assert_allclose(adapter[module].to_dense(), dense, rtol=1e-12, atol=1e-12 * np.abs(dense).max())


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return left.astype(np.float64) @ right.astype(np.float64)


# --- kohya, LyCORIS, diffusers ---------------------------------------------------------------------------------------

UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


def test_kohya(tmp_path: Path) -> None:
    """A module's own α, of any dtype; keys that are no part of ΔW are listed."""
    down, up = made(4, 10), made(6, 4)
    te = "lora_te_text_model_encoder_layers_11_mlp_fc1"
    content = {
        f"{UNET}.lora_down.weight": down,
        f"{UNET}.lora_up.weight": up,
        f"{UNET}.alpha": number(2, "f2"),
        f"{te}.lora_down.weight": made(2, 5),
        f"{te}.lora_up.weight": made(7, 2),
        f"{te}.alpha": np.array([3], "f4"),
        f"{te}.diff_b": made(7),
        "lora_unet_norm.w_norm": made(7),
        "bundle_emb.token.string_to_param.*": made(1, 7),
        "lora_te_gone.alpha": number(1),
    }
    adapter = one(saved(tmp_path, content))
    assert (adapter.method, list(adapter)) == ("lora", [te, UNET])
    assert adapter.warnings == ("1 trained bias, no part of ΔW: lora_te_text_model_encoder_layers_11_mlp_fc1.diff_b",)
    equal(adapter, UNET, 2 / 4 * product(up, down))
    equal(adapter, te, 3 / 2 * product(content[f"{te}.lora_up.weight"], content[f"{te}.lora_down.weight"]))
    assert adapter[UNET].facts.scaling == 0.5
    assert set(adapter.passed_over) == {
        f"{te}.diff_b", "lora_unet_norm.w_norm", "bundle_emb.token.string_to_param.*", "lora_te_gone.alpha"
    }  # fmt: skip
    equal(one(tmp_path / "some_file.safetensors", alpha=8), UNET, 8 / 4 * product(up, down))


def test_kohya_without_an_alpha_is_scaled_by_one(tmp_path: Path) -> None:
    content = {f"{UNET}.lora_down.weight": made(4, 10), f"{UNET}.lora_up.weight": made(6, 4)}
    adapter = one(saved(tmp_path, content))
    assert adapter[UNET].facts.scaling == 1
    assert "set it with alpha" in adapter.warnings[0]


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_lycoris_convolutions(tmp_path: Path, alpha: float | None) -> None:
    """Plain (a kernel in `down`) and Tucker (`mid` between two 1×1 kernels), by the convolutions' own definition."""
    plain, tucker = "lora_unet_conv1", "lora_unet_conv2"
    down, up = made(4, 3, 3, 3), made(5, 4, 1, 1)
    inner, outer, mid = made(4, 3, 1, 1, seed=1), made(5, 4, 1, 1, seed=1), made(4, 4, 3, 3, seed=1)
    content: dict[str, Any] = {
        f"{plain}.lora_down.weight": down, f"{plain}.lora_up.weight": up,
        f"{tucker}.lora_down.weight": inner, f"{tucker}.lora_up.weight": outer, f"{tucker}.lora_mid.weight": mid,
    }  # fmt: skip
    if alpha is not None:
        content |= {f"{plain}.alpha": number(alpha), f"{tucker}.alpha": number(alpha)}
    adapter = one(saved(tmp_path, content))
    scale = 1 if alpha is None else alpha / 4
    equal(adapter, plain, scale * product(up[:, :, 0, 0], down.reshape(4, -1)))
    dense = np.zeros((5, 3, 3, 3))
    for p in range(4):
        for q in range(4):
            for o in range(5):
                for i in range(3):
                    dense[o, i] += float(outer[o, p, 0, 0]) * float(inner[q, i, 0, 0]) * mid[p, q].astype(np.float64)
    equal(adapter, tucker, scale * dense.reshape(5, -1))
    facts = adapter[tucker].facts
    assert facts.parameters == inner.size + outer.size + mid.size
    assert (facts.r, facts.rank_bound, facts.in_features) == (4, 4, 27)
    assert adapter[plain].facts.parameters == down.size + up.size


def kron(w1: np.ndarray, w2: np.ndarray) -> np.ndarray:
    """ΔW (m, n·kernel) by the definition: entry (i, j) of w1 times all of w2, kernel last."""
    (p, q), (u, v) = w1.shape, w2.shape[:2]
    out = np.zeros((p * u, q * v, *w2.shape[2:]))
    for i in range(p):
        for j in range(q):
            out[i * u : (i + 1) * u, j * v : (j + 1) * v] = float(w1[i, j]) * w2.astype(np.float64)
    return out.reshape(p * u, -1)


def test_lycoris_lokr(tmp_path: Path) -> None:
    """Factored, whole and Tucker halves. Two whole ones are not scaled, whatever their α says."""
    w1, w2 = made(3, 2), made(4, 5)
    w1_a, w1_b, w2_a, w2_b = made(3, 2, seed=1), made(2, 2, seed=1), made(4, 2, seed=1), made(2, 5, seed=1)
    t2, in_a, in_b = made(2, 2, 3, 3), made(2, 4), made(2, 5)
    names = {
        "both": {"lokr_w1": w1, "lokr_w2": w2, "alpha": number(9e9)},
        "kernel": {"lokr_w1": w1, "lokr_w2": made(4, 5, 3, 3), "alpha": number(1)},
        "one": {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "alpha": number(1)},
        "none": {"lokr_w1_a": w1_a, "lokr_w1_b": w1_b, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "alpha": number(4)},
        "tucker": {"lokr_w1": w1, "lokr_t2": t2, "lokr_w2_a": in_a, "lokr_w2_b": in_b, "alpha": number(1)},
    }
    content = {f"lora_unet_{module}.{key}": value for module, keys in names.items() for key, value in keys.items()}
    adapter = one(saved(tmp_path, content))
    assert (adapter.method, len(adapter), adapter.warnings, adapter.passed_over) == ("lokr", 5, (), ())
    equal(adapter, "lora_unet_both", kron(w1, w2))
    equal(adapter, "lora_unet_kernel", kron(w1, made(4, 5, 3, 3)))
    equal(adapter, "lora_unet_one", kron(w1, product(w2_a, w2_b)) / 2)
    equal(adapter, "lora_unet_none", kron(product(w1_a, w1_b), product(w2_a, w2_b)) * 2)
    # lycoris/functional/general.py:rebuild_tucker
    rebuilt = np.einsum("ijkl,ip,jr->prkl", *(X.astype(np.float64) for X in (t2, in_a, in_b)))
    equal(adapter, "lora_unet_tucker", kron(w1, rebuilt) / 2)


def test_lycoris_loha(tmp_path: Path) -> None:
    """Linear layers, flattened convolutions, and Tucker halves; α of each module."""
    tucker = [[made(2, 2, 3, 3, seed=seed), made(2, 6, seed=seed), made(2, 5, seed=seed)] for seed in (0, 1)]
    content = {"lora_unet_q.alpha": number(1), "lora_unet_conv.alpha": number(4)}
    for half, seed in ((1, 0), (2, 1)):
        content[f"lora_unet_q.hada_w{half}_a"] = made(6, 2, seed=seed)
        content[f"lora_unet_q.hada_w{half}_b"] = made(2, 10, seed=seed)
        for name, value in zip((f"t{half}", f"w{half}_a", f"w{half}_b"), tucker[seed], strict=True):
            content[f"lora_unet_conv.hada_{name}"] = value
    adapter = one(saved(tmp_path, content))
    assert (adapter.method, list(adapter), adapter.warnings) == ("loha", ["lora_unet_conv", "lora_unet_q"], ())
    halves = [product(made(6, 2, seed=seed), made(2, 10, seed=seed)) for seed in (0, 1)]
    equal(adapter, "lora_unet_q", halves[0] * halves[1] / 2)
    one_half, other = (
        np.einsum("ijkl,ip,jr->prkl", *(X.astype(np.float64) for X in parts)).reshape(6, -1) for parts in tucker
    )
    equal(adapter, "lora_unet_conv", one_half * other * 2)


def test_several_algorithms_in_one_file(tmp_path: Path) -> None:
    """Whole differences beside LoRA, as a preset of LyCORIS makes them; those of norms and biases are listed."""
    diff = made(5, 3, 3, 3)
    content = {
        f"{UNET}.lora_down.weight": made(4, 10),
        f"{UNET}.lora_up.weight": made(6, 4),
        f"{UNET}.alpha": number(4),
        "lora_unet_conv_in.diff": diff,
        "lora_unet_conv_in.diff_b": made(5),
        "lora_unet_norm.diff": made(5),
        "lora_unet_down_blocks_0_conv.lokr_w1": made(2, 2),
        "lora_unet_down_blocks_0_conv.lokr_w2": made(3, 4),
        "lora_unet_down_blocks_0_conv.alpha": number(2),
    }
    adapter = one(saved(tmp_path / "both", content))
    modules = ["lora_unet_conv_in", "lora_unet_down_blocks_0_conv", UNET]
    assert (adapter.method, list(adapter)) == ("full+lokr+lora", modules)
    assert adapter.warnings == ("1 trained bias, no part of ΔW: lora_unet_conv_in.diff_b",)
    equal(adapter, "lora_unet_down_blocks_0_conv", kron(made(2, 2), made(3, 4)))
    assert set(adapter.passed_over) == {"lora_unet_conv_in.diff_b", "lora_unet_norm.diff"}
    equal(adapter, "lora_unet_conv_in", diff.reshape(5, -1).astype(np.float64))
    equal(adapter, UNET, product(made(6, 4), made(4, 10)))
    facts = adapter["lora_unet_conv_in"].facts
    assert (facts.method, facts.parameters, facts.rank_bound) == ("full", diff.size, 5)
    alone = one(saved(tmp_path / "alone", {"lora_unet_conv_in.diff": diff}))
    assert (alone.method, alone.warnings) == ("full", ())
    np.testing.assert_allclose(
        singular_values(alone["lora_unet_conv_in"]).values,
        np.linalg.svd(diff.reshape(5, -1).astype(np.float64), compute_uv=False),
        rtol=1e-12,
    )


# The module's path in the file → the one that is shown.
DIFFUSERS = {
    "unet.down_blocks.0.attn1.processor.to_q_lora.{}.weight": "unet.down_blocks.0.attn1.to_q",
    "up_blocks.0.attn1.processor.to_out_lora.{}.weight": "up_blocks.0.attn1.to_out",
    "unet.down_blocks.0.proj_in.lora.{}.weight": "unet.down_blocks.0.proj_in",
    "text_encoder.layers.3.self_attn.q_proj.lora_linear_layer.{}.weight": "text_encoder.layers.3.self_attn.q_proj",
    "transformer.blocks.0.attn.to_k.lora_{}.weight": "transformer.blocks.0.attn.to_k",
    "double_blocks.0.processor.qkv_lora1.{}.weight": "double_blocks.0.qkv_lora1",
}


@pytest.mark.parametrize("pattern", DIFFUSERS)
def test_diffusers_before_peft(tmp_path: Path, pattern: str) -> None:
    down, up = made(2, 10), made(6, 2)
    adapter = one(saved(tmp_path, {pattern.format("down"): down, pattern.format("up"): up}))
    assert list(adapter) == [DIFFUSERS[pattern]]
    equal(adapter, DIFFUSERS[pattern], product(up, down))
    alpha = {pattern.format("x").removesuffix(".x.weight").removesuffix("_x.weight") + ".alpha": number(6)}
    if pattern == "transformer.blocks.0.attn.to_k.lora_{}.weight":
        alpha = {"transformer.blocks.0.attn.to_k.alpha": number(6)}
    adapter = one(saved(tmp_path, {pattern.format("down"): down, pattern.format("up"): up} | alpha))
    equal(adapter, DIFFUSERS[pattern], 3 * product(up, down))


def test_diffusers_with_peft_names_and_alphas(tmp_path: Path) -> None:
    """A module's own α goes before the configuration in the header, and that before none."""
    A, B = made(2, 10), made(6, 2)
    pair = {f"unet.mid.{name}.lora_{side}.weight": X for name in ("a", "b") for side, X in (("A", A), ("B", B))}
    header = json.dumps({"unet.r": 2, "unet.lora_alpha": 8})
    adapter = one(saved(tmp_path, pair | {"unet.mid.a.alpha": number(1)}, lora_adapter_metadata=header))
    assert not adapter.warnings
    assert [update.facts.scaling for update in adapter.values()] == [0.5, 4]


# --- MLX -------------------------------------------------------------------------------------------------------------


def mlx(scale: Any = 20.0, **more: Any) -> dict[str, Any]:
    return {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": scale}} | more


def test_mlx(tmp_path: Path) -> None:
    """Transposed linear layers and embeddings, stacked experts in both layouts; the scale as it is."""
    a, b = made(10, 2), made(2, 6)
    stack_a, stack_b = made(3, 2, 5), made(3, 4, 2)
    content = {
        "model.layers.1.self_attn.q_proj.lora_a": a,
        "model.layers.1.self_attn.q_proj.lora_b": b,
        "model.embed_tokens.lora_a": made(30, 2),
        "model.embed_tokens.lora_b": made(2, 7),
        "model.layers.0.mlp.switch_mlp.up_proj.lora_a": stack_a,
        "model.layers.0.mlp.switch_mlp.up_proj.lora_b": stack_b,
        "model.layers.1.mlp.switch_mlp.up_proj.lora_a": stack_a.reshape(6, 5),
        "model.layers.1.mlp.switch_mlp.up_proj.lora_b": stack_b,
    }
    adapter = one(saved(tmp_path, content, mlx()))
    assert (adapter.method, len(adapter), adapter.warnings) == ("lora", 8, ())
    equal(adapter, "model.layers.1.self_attn.q_proj", 20 * product(a, b).T)
    embedding = adapter["model.embed_tokens"]
    equal(adapter, "model.embed_tokens", 20 * product(made(30, 2), made(2, 7)).T)  # (d, V), as for PEFT's
    assert (embedding.facts.macs_per_token, embedding.facts.parameters) == (14, 74)
    for block in (0, 1):
        for e in range(3):
            equal(adapter, f"model.layers.{block}.mlp.switch_mlp.up_proj.{e}", 20 * product(stack_b[e], stack_a[e]))


@pytest.mark.parametrize(
    ("config", "scaling", "warned"),
    [
        (mlx(), 20.0, False),
        (mlx(lora_parameters={"rank": 2, "alpha": 16, "scale": 10.0}), 10.0, False),  # a default that was not used
        ({"lora_layers": 4, "lora_parameters": {"rank": 2, "alpha": 16, "scale": 10.0}}, 10.0, True),
        (None, 1.0, True),
        (mlx(lora_parameters={"rank": 2}), 1.0, True),
        (mlx(lora_parameters={"rank": 2, "alpha": 8}), 4.0, False),  # α/rank, as mlx-lm did
        ({"rank": 2, "alpha": 8}, 4.0, False),
    ],
)
def test_what_mlx_scales_by(tmp_path: Path, config: Any, scaling: float, warned: bool) -> None:
    adapter = one(saved(tmp_path, {"q.lora_a": made(10, 2), "q.lora_b": made(2, 6)}, config))
    assert adapter["q"].facts.scaling == scaling
    divided = ["taken as alpha/rank" in line for line in adapter.warnings]
    assert any(divided) == (scaling == 4)
    assert not any("stored nowhere" in line for line in adapter.warnings if any(divided))
    assert any("--alpha" in line for line in adapter.warnings) == warned


def test_mlx_vlm_scales_by_alpha_itself(tmp_path: Path) -> None:
    A, B = made(10, 2), made(2, 6)
    adapter = one(saved(tmp_path, {"language_model.q.A": A, "language_model.q.B": B}, {"rank": 2, "alpha": 0.1}))
    equal(adapter, "language_model.q", 0.1 * product(A, B).T)
    assert adapter.warnings == ()


# --- layouts without module names ------------------------------------------------------------------------------------


def test_cloneofsimo(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    up, down = made(6, 2), made(2, 10)
    content = {"unet:0:up": up, "unet:0:down": down, "text_encoder:11:up": up, "text_encoder:11:down": down}
    path = saved(tmp_path, content | {"<s1>": made(10)}, None, unet='["CrossAttention"]')
    adapter = one(path)
    assert list(adapter) == ["text_encoder.11", "unet.0"]
    assert adapter.passed_over == ("<s1>",)
    assert ["name" in line for line in adapter.warnings] == [True]
    equal(adapter, "unet.0", product(up, down))
    torch.save([torch.tensor(X) for X in (up, down, made(5, 1), made(1, 4))], tmp_path / "lora.pt")
    listed = one(tmp_path / "lora.pt")
    assert list(listed) == ["module.0", "module.1"]
    equal(listed, "module.0", product(up, down))
    equal(listed, "module.1", product(made(5, 1), made(1, 4)))


def test_sam(tmp_path: Path) -> None:
    content = {f"w_{side}_{i:03d}": made(*shape, seed=i) for i in range(4) for side, shape in
               (("a", (2, 8)), ("b", (8, 2)))}  # fmt: skip
    adapter = one(saved(tmp_path, content | {"fc_8in_8out": made(8, 8)}))
    assert list(adapter) == [f"image_encoder.blocks.{block}.attn.{part}" for block in (0, 1) for part in "qv"]
    assert adapter.passed_over == ("fc_8in_8out",)
    equal(adapter, "image_encoder.blocks.1.attn.q", product(content["w_b_002"], content["w_a_002"]))
    equal(adapter, "image_encoder.blocks.0.attn.v", product(content["w_b_001"], content["w_a_001"]))


# --- loralib ---------------------------------------------------------------------------------------------------------


def by_groups(A: np.ndarray, B: np.ndarray, heights: list[int], places: list[int], m: int) -> np.ndarray:
    """ΔW (m, n) by its definition: part g is rows g of B times rows g of A, at its place; zeros elsewhere."""
    dense, r, start = np.zeros((m, A.shape[1])), B.shape[1], 0
    for g, (height, place) in enumerate(zip(heights, places, strict=True)):
        dense[place : place + height] = product(B[start : start + height], A[g * r : (g + 1) * r])
        start += height
    return dense


def test_merged_layers_of_loralib(tmp_path: Path) -> None:
    """Square parts, which are equal. The file does not say which parts of the layer they are."""
    A, B = made(6, 10), made(30, 2)
    stored = {"h.0.attn.c_attn.lora_A": A, "h.0.attn.c_attn.lora_B": B}
    plain = {"h.0.mlp.c_fc.lora_A": made(2, 10), "h.0.mlp.c_fc.lora_B": made(7, 2)}
    adapter = one(saved(tmp_path, stored | plain), alpha=6)
    equal(adapter, "h.0.attn.c_attn", 6 / 2 * by_groups(A, B, [10, 10, 10], [0, 10, 20], 30))
    equal(adapter, "h.0.mlp.c_fc", 6 / 2 * product(made(7, 2), made(2, 10)))
    facts = adapter["h.0.attn.c_attn"].facts
    assert (facts.parameters, facts.rank_bound, facts.scaling) == (A.size + B.size, 6, 3)
    assert ["left out" in line for line in adapter.warnings] == [True]


@pytest.mark.parametrize(("enabled", "places"), [([1, 0, 1], [0, 6]), ([1, 1, 0], [0, 3]), ([0, 0, 1], [6])])
def test_merged_layers_with_their_configuration(tmp_path: Path, enabled: list[int], places: list[int]) -> None:
    """Parts that were not adapted are rows of zeros, so that ΔW is the whole layer's."""
    A, B = made(2 * len(places), 10), made(3 * len(places), 2)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "enable_lora": [bool(flag) for flag in enabled]}
    pair = {"q.lora_A.weight": A, "q.lora_B.weight": B[..., None], "o.lora_A.weight": made(2, 5)}
    adapter = one(saved(tmp_path, pair | {"o.lora_B.weight": made(4, 2)}, config))
    equal(adapter, "q", 3 * by_groups(A, B, [3] * len(places), places, 9))
    equal(adapter, "o", 3 * product(made(4, 2), made(2, 5)))
    facts = adapter["q"].facts
    assert (facts.kind, facts.parameters, facts.scaling, adapter.warnings) == ("linear", A.size + B.size, 3, ())


MODEL = {"n_embd": 8, "n_head": 4, "n_query_groups": 2, "head_size": 3}
#: Which of query, key and value are adapted → rows of each, and where they begin.
QKV: dict[tuple[int, ...], tuple[list[int], list[int]]] = {
    (1, 1, 1): ([12, 6, 6], [0, 12, 18]),
    (1, 0, 1): ([12, 6], [0, 18]),
    (0, 1, 1): ([6, 6], [12, 18]),
    (0, 0, 1): ([6], [18]),
}


def litgpt(folder: Path, flags: tuple[int, ...], model: dict[str, Any] | None, run: dict[str, Any] | None) -> Path:
    torch = pytest.importorskip("torch")
    count = sum(flags)
    content = {"qkv.lora_A": made(2 * count, 8), "qkv.lora_B": made(sum(QKV[flags][0]), 2)}
    content |= {"proj.lora_A": made(2, 12), "proj.lora_B": made(8, 2)}
    folder.mkdir(exist_ok=True)
    tensors = {f"transformer.h.0.attn.{key}": torch.tensor(value) for key, value in content.items()}
    torch.save({"model": tensors}, folder / "lit_model.pth.lora")
    for name, told in (("model_config.yaml", model), ("hyperparameters.yaml", run)):
        if told is not None:
            (folder / name).write_text("".join(f"{key}: {value}\n" for key, value in told.items()))
    return folder


@pytest.mark.parametrize("flags", QKV)
def test_litgpt_splits_by_heads(tmp_path: Path, flags: tuple[int, ...]) -> None:
    run = {"lora_r": 2, "lora_alpha": 6}
    run |= {f"lora_{name}": bool(flag) for name, flag in zip(("query", "key", "value"), flags, strict=True)}
    heights, places = QKV[flags]
    A, B = made(2 * len(heights), 8), made(sum(heights), 2)
    folder = litgpt(tmp_path / "run", flags, MODEL, run)
    names = ("lit_model.pth.lora", "model_config.yaml", "hyperparameters.yaml")
    assert list(paths_read(folder)) == [folder / name for name in names]
    for path in (folder, folder / "lit_model.pth.lora"):
        adapter = one(path)
        equal(adapter, "transformer.h.0.attn.qkv", 3 * by_groups(A, B, heights, places, 24))
        equal(adapter, "transformer.h.0.attn.proj", 3 * product(made(8, 2), made(2, 12)))
        assert (adapter.warnings, adapter["transformer.h.0.attn.qkv"].facts.parameters) == ((), A.size + B.size)


@pytest.mark.parametrize(
    ("flags", "model", "run", "expected"),
    [
        ((1, 1, 1), None, None, "model_config.yaml"),
        ((1, 0, 1), None, {"lora_alpha": 6}, "n_head"),
        ((1, 0, 1), MODEL, None, "lora_query"),
        ((1, 1, 1), MODEL | {"n_query_groups": 4}, None, "12 + 12 + 12 rows"),
        ((1, 1, 1), MODEL, {"lora_alpha": "six"}, "lora_alpha = 'six'"),
        ((1, 1, 1), MODEL | {"n_head": "[1"}, None, "is no YAML"),
    ],
)
def test_a_split_that_nothing_proves_is_refused(
    tmp_path: Path, flags: tuple[int, ...], model: Any, run: Any, expected: str
) -> None:
    with pytest.raises(AdapterError, match=re.escape(expected)) as caught:
        read_adapter(litgpt(tmp_path / "run", flags, model, run))
    assert "\n" not in str(caught.value)


# --- DoRA, which needs the base model --------------------------------------------------------------------------------


def dora(W: np.ndarray, product_: np.ndarray, magnitude: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    V = W.astype(np.float64) + product_.reshape(W.shape)
    change = V / np.sqrt((V**2).sum(axis=axes, keepdims=True)) * magnitude.astype(np.float64) - W
    return change.reshape(len(W), -1)


def test_lycoris_dora(tmp_path: Path) -> None:
    """Magnitudes of columns, LyCORIS's default, and of rows; for a convolution over its kernel too."""
    W = {
        "down_blocks.1.to_q": made(6, 10),
        "mid_block.conv1": made(5, 3, 3, 3),
        "up_blocks.0.to_k": made(6, 10, seed=1),
    }
    base = tmp_path / "base"
    base.mkdir()
    save_file({f"{module}.weight": value for module, value in W.items()}, base / "model.safetensors")
    q, conv, k = "lora_unet_down_blocks_1_to_q", "lora_unet_mid_block_conv1", "lora_unet_up_blocks_0_to_k"
    content = {
        f"{q}.lora_down.weight": made(2, 10), f"{q}.lora_up.weight": made(6, 2), f"{q}.alpha": number(1),
        f"{q}.dora_scale": made(1, 10),
        f"{k}.lora_down.weight": made(2, 10), f"{k}.lora_up.weight": made(6, 2), f"{k}.dora_scale": made(6, 1),
        f"{conv}.lora_down.weight": made(2, 3, 3, 3), f"{conv}.lora_up.weight": made(5, 2, 1, 1),
        f"{conv}.dora_scale": made(1, 3, 1, 1),
    }  # fmt: skip
    adapter = one(saved(tmp_path / "adapter", content), base=base)
    assert (adapter.method, list(adapter)) == ("dora", [q, conv, k])
    low = product(made(6, 2), made(2, 10))
    equal(adapter, q, dora(W["down_blocks.1.to_q"], low / 2, made(1, 10), (0,)))
    equal(adapter, k, dora(W["up_blocks.0.to_k"], low, made(6, 1), (1,)))
    kernel = product(made(5, 2, 1, 1)[:, :, 0, 0], made(2, 3, 3, 3).reshape(2, -1))
    equal(adapter, conv, dora(W["mid_block.conv1"], kernel, made(1, 3, 1, 1), (0, 2, 3)))


def test_lycoris_t_lora(tmp_path: Path) -> None:
    """ΔW = s (P diag(λ) Q − U_r S_r V_rᵀ) with W0 = U S Vᵀ; at the start it is zero."""
    W = {"a.q": made(7, 9), "a.k": made(9, 5)}
    save_file({f"{module}.weight": value for module, value in W.items()}, tmp_path / "model.safetensors")
    U, sigma, Vh = np.linalg.svd(W["a.k"].astype(float), full_matrices=False)
    start = {"q_layer.weight": Vh[:2], "p_layer.weight": U[:, :2], "lambda_layer": sigma[None, :2], "alpha": number(2)}
    Q, P, weights = made(3, 9), made(7, 3), made(1, 3)
    own = {"q_layer.weight": Q, "p_layer.weight": P, "lambda_layer": weights, "alpha": number(6)}
    content = {f"lora_te_a_{name}.{key}": value for name, of in (("q", own), ("k", start)) for key, value in of.items()}
    path = saved(tmp_path / "adapter", content)
    adapter = one(path, base=tmp_path)
    U, sigma, Vh = np.linalg.svd(W["a.q"].astype(float))
    dense = 2 * (product(P.astype(float) * weights, Q) - (U[:, :3] * sigma[:3]) @ Vh[:3])
    equal(adapter, "lora_te_a_q", dense)
    np.testing.assert_allclose(singular_values(adapter["lora_te_a_q"]).values, np.linalg.svd(dense)[1][:6], rtol=1e-11)
    assert np.abs(adapter["lora_te_a_k"].to_dense()).max() < 1e-12
    assert (adapter.method, adapter["lora_te_a_q"].facts.r, adapter["lora_te_a_q"].facts.rank_bound) == ("tlora", 3, 6)
    assert "began elsewhere" in adapter.warnings[0]
    with pytest.raises(AdapterError, match="T-LoRA needs the base model"):
        one(path)
    with pytest.raises(AdapterError, match=r'starts elsewhere.*"sig_type": "last"'):
        one(saved(tmp_path / "adapter", content, ss_network_args=json.dumps({"sig_type": "last"})), base=tmp_path)


def test_lycoris_dora_over_lokr_and_loha(tmp_path: Path) -> None:
    """``dora_scale`` beside LoKr, whole (unscaled), factored and of a convolution, and beside LoHa, in one file."""
    shapes = {"a": (6, 8), "b": (6, 8), "c": (4, 6, 3, 3), "d": (6, 8), "e": (5, 7)}
    W = {module: made(*shape, seed=k) for k, (module, shape) in enumerate(shapes.items())}
    save_file({f"{module}.weight": value for module, value in W.items()}, tmp_path / "model.safetensors")
    w1, w2, w2_a, w2_b, kernel = made(2, 2), made(3, 4), made(3, 1), made(1, 4), made(2, 3, 3, 3)
    halves = {f"hada_w{k}_{side}": made(*s, seed=k) for k in (1, 2) for side, s in (("a", (6, 2)), ("b", (2, 8)))}
    content = {
        "a.lokr_w1": w1, "a.lokr_w2": w2, "a.alpha": number(7), "a.dora_scale": made(1, 8),
        "b.lokr_w1": w1, "b.lokr_w2_a": w2_a, "b.lokr_w2_b": w2_b, "b.alpha": number(3), "b.dora_scale": made(6, 1),
        "c.lokr_w1": w1, "c.lokr_w2": kernel, "c.dora_scale": made(1, 6, 1, 1),
        **{f"d.{key}": value for key, value in halves.items()}, "d.alpha": number(4), "d.dora_scale": made(1, 8),
        "e.lora_down.weight": made(2, 7), "e.lora_up.weight": made(5, 2), "e.dora_scale": made(1, 7),
    }  # fmt: skip
    adapter = one(saved(tmp_path / "adapter", content), base=tmp_path)
    assert (adapter.method, list(adapter)) == ("dora", list("abcde"))
    equal(adapter, "a", dora(W["a"], np.kron(w1, w2.astype(float)), made(1, 8), (0,)))
    equal(adapter, "b", dora(W["b"], 3 * np.kron(w1, product(w2_a, w2_b)), made(6, 1), (1,)))
    deep = np.einsum("ij,abkl->iajbkl", w1.astype(float), kernel.astype(float)).reshape(4, -1)
    equal(adapter, "c", dora(W["c"], deep, made(1, 6, 1, 1), (0, 2, 3)))
    low = [product(halves[f"hada_w{k}_a"], halves[f"hada_w{k}_b"]) for k in (1, 2)]
    equal(adapter, "d", dora(W["d"], 2 * low[0] * low[1], made(1, 8), (0,)))
    equal(adapter, "e", dora(W["e"], product(made(5, 2), made(2, 7)), made(1, 7), (0,)))
    with pytest.raises(AdapterError, match=r"a\.dora_scale: the update beside it is 4×4; expected 6×8"):
        one(saved(tmp_path / "adapter", content | {"a.lokr_w2": made(2, 2)}), base=tmp_path)["a"]


@pytest.mark.parametrize("layout", ["mlx", "qsbora", "authors"])
def test_dora_of_other_programs(tmp_path: Path, layout: str) -> None:
    W, A, B, m = made(6, 10), made(2, 10), made(6, 2), made(6)
    base = tmp_path / "base"
    base.mkdir()
    save_file({"model.layers.0.q.weight": W}, base / "model.safetensors")
    peft = {"peft_type": "DORA" if layout == "authors" else "LORA", "r": 2, "lora_alpha": 40}
    content, config = {
        "mlx": ({"lora_a": A.T, "lora_b": B.T, "m": m}, mlx(fine_tune_type="dora")),
        "qsbora": ({"lora_A.weight": A, "lora_B.weight": B, "magnitude.weight": m[:, None]}, peft),
        "authors": ({"lora_A.weight": A, "lora_B.weight": B, "weight_m_wdecomp.weight": m[:, None]}, peft),
    }[layout]
    path = saved(tmp_path / "adapter", {f"model.layers.0.q.{key}": value for key, value in content.items()}, config)
    adapter = one(path, base=base)
    assert adapter.method == "dora"
    equal(adapter, "model.layers.0.q", dora(W, 20 * product(B, A), m[:, None], (1,)))


# --- what the caller says --------------------------------------------------------------------------------------------


def test_the_method_that_a_file_leaves_open(tmp_path: Path) -> None:
    A, B = made(4, 10), made(6, 4)
    path = saved(tmp_path / "pair", {"q.lora_A.weight": A, "q.lora_B.weight": B})
    told = one(path, alpha=8, method="rslora")
    assert (told.method, told["q"].facts.method) == ("rslora", "rslora")
    equal(told, "q", 8 / np.sqrt(4) * product(B, A))
    assert one(path, alpha=8, method="lora")["q"].facts.scaling == 2
    path = saved(tmp_path / "numbered", {"q.lora_A.0.weight": A, "q.lora_B.0.weight": B})
    assert one(path).method == "lora"  # 0 may be an adapter's name
    assert one(path, method="melora")["q"].facts.method == "melora"
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False}
    path = saved(tmp_path / "plain", {"q.lora_A.weight": A, "q.lora_B.weight": B}, plain)
    for method in ("bora", "rslora"):
        with pytest.raises(AdapterError, match=rf"are those of lora; method \(--method\) says {method}"):
            read_adapter(path, method=method)


def test_the_method_on_the_command_line(tmp_path: Path) -> None:
    path = saved(tmp_path, {"q.lora_A.weight": made(4, 10), "q.lora_B.weight": made(6, 4)})
    arguments = ["analyze", str(path), "--alpha", "8", "--format", "csv"]
    for method, scaling in (("rslora", "4.0"), ("lora", "2.0")):
        result = CliRunner().invoke(main, [*arguments, "--method", method])
        assert result.exit_code == 0, result.output
        assert next(csv.DictReader(io.StringIO(result.stdout)))["scaling"] == scaling
    result = CliRunner().invoke(main, [*arguments, "--method", "bora"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("name", ["", ".SB_FA_add", ".SB_FA_sampleMul"])
def test_qsbora_with_its_adapter_names(tmp_path: Path, name: str) -> None:
    """As PEFT saves it, without the name, and as a raw state dict has it."""
    index, B = np.array([7, 0, 3]), made(6, 3)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    adapter = one(saved(tmp_path, {f"q.lora_A{name}": index, f"q.lora_B{name}.weight": B}, config))
    assert adapter.method == "sbora-fa"
    dense = np.zeros((6, 8))
    dense[:, index] = 2.0 * B
    equal(adapter, "q", dense)


# --- errors ----------------------------------------------------------------------------------------------------------

PAIR = {"te_q.lora_down.weight": made(2, 8), "te_q.lora_up.weight": made(6, 2)}
BAD: dict[str, tuple[dict[str, np.ndarray], Any, list[str]]] = {
    "half a kohya pair": ({"te_q.lora_up.weight": made(6, 2)}, None, ["te_q.lora_up.weight"]),
    "a kohya factor twice": (PAIR | {"te_q.lora.up.weight": made(6, 2)}, None, ["te_q.lora.up.weight", "two factors"]),
    "a factor in two layouts": (
        PAIR | {"te_q.lora_A.weight": made(2, 8)}, None, ["te_q.lora_down.weight", "te_q.lora_A.weight", "two factors"],
    ),
    "two α": (PAIR | {"te_q.alpha": number(1), "te_q.lora.alpha": number(2)}, None, ["te_q.lora.alpha", "two α"]),
    "SAM, a number twice": ({"w_a_000": made(2, 6), "w_a_0": made(2, 6)}, None, ["w_a_0", "two factors"]),
    "cloneofsimo, a number twice": ({"u:0:up": made(6, 2), "u:00:up": made(6, 2)}, None, ["u:00:up", "two factors"]),
    "kohya's sizes differ": (PAIR | {"te_q.lora_up.weight": made(6, 3)}, None, ["te_q.lora_up.weight", "(6, 3)"]),
    "α a vector": (PAIR | {"te_q.alpha": made(2)}, None, ["te_q.alpha", "(2,)", "expected a number"]),
    "α not a number": (PAIR | {"te_q.alpha": number(np.nan)}, None, ["te_q.alpha", "nan"]),
    "mid without down": (
        {"te_q.lora_mid.weight": made(2, 2, 3, 3), "te_q.lora_up.weight": made(6, 2, 1, 1)},
        None, ["te_q.lora_mid.weight", "no lora_down"],
    ),
    "mid of another rank": (
        {"te_q.lora_mid.weight": made(2, 3, 3, 3), "te_q.lora_up.weight": made(6, 2, 1, 1),
         "te_q.lora_down.weight": made(2, 5, 1, 1)},
        None, ["te_q.lora_mid.weight", "(2, 3, 3, 3)"],
    ),
    "experts in stacks (Tinker)": (
        {"q.lora_A.weight": made(4, 2, 8), "q.lora_B.weight": made(4, 6, 2)}, None, ["q.lora_A.weight", "4 experts"],
    ),
    "experts in stacks (Megatron)": (
        {"q.lora_A.weight": made(4, 2, 8), "q.lora_B.weight": made(6, 2, 4)}, None, ["q.lora_B.weight", "4 experts"],
    ),
    "scaled OFT": (
        {"q.oft_R.weight": made(4, 3), "q.oft_R.scaled_oft": made(1)}, None, ["scaled OFT", "q.oft_R.scaled_oft"],
    ),
    "OFT of the old LyCORIS": ({"lora_te_q.oft_diag": made(2, 4, 4)}, None, ["old LyCORIS", "lora_te_q.oft_diag"]),
    "an unknown kohya tensor": (PAIR | {"lora_te_q.lora_x": made(2)}, None, ["lora_te_q.lora_x"]),
    "DoRA of LyCORIS": (PAIR | {"te_q.dora_scale": made(6, 1)}, None, ["DoRA", "te_q.dora_scale"]),
    "DoRA over LoKr": (
        {"te_q.lokr_w1": made(2, 2), "te_q.lokr_w2": made(3, 4), "te_q.dora_scale": made(1, 8)},
        None, ["te_q.dora_scale", "DoRA needs the base model"],
    ),
    "DoRA over OFT": (
        {"te_q.oft_R.weight": made(4, 3), "te_q.dora_scale": made(1, 8)}, None, ["te_q.dora_scale", "another update"],
    ),
    "OFT of LyCORIS": ({"lora_te_q.oft_blocks": made(2, 4, 4), "lora_te_q.alpha": number(1)}, None, ["OFT"]),
    "GLoRA of LyCORIS": ({"lora_te_q.a1.weight": made(2, 4)}, None, ["GLoRA"]),
    "IA³ of LyCORIS": ({"lora_te_q.weight": made(1, 4), "lora_te_q.on_input": number(1)}, None, ["IA³"]),
    "a NaN-free difference of integers": ({"lora_te_q.diff": np.ones((2, 2), "i4")}, None, ["lora_te_q.diff", "int32"]),
    "SVDQuant": ({"q.proj_down": made(8, 2), "q.proj_up": made(6, 2), "q.qweight": made(6, 8)}, None, ["SVDQuant"]),
    "SVDQuant's LoRA": ({"q.lora_down": made(8, 2), "q.lora_up": made(6, 2)}, None, ["SVDQuant"]),
    "MLX, half a pair": ({"q.lora_a": made(8, 2)}, mlx(), ["q.lora_a", "incomplete"]),
    "MLX, sizes differ": ({"q.lora_a": made(8, 2), "q.lora_b": made(3, 6)}, mlx(), ["q.lora_b"]),
    "MLX, quantised": (
        {"q.lora_a": made(8, 2), "q.lora_b": made(2, 6), "q.lora_a_scales": made(8, 1)}, mlx(), ["q.lora_a_scales"],
    ),
    "MLX, experts differ": (
        {"q.lora_a": made(3, 2, 8), "q.lora_b": made(2, 6, 2)}, mlx(), ["q.lora_a", "(3, 2, 8)", "2 experts"],
    ),
    "MLX, DoRA": ({"q.lora_a": made(8, 2), "q.lora_b": made(2, 6), "q.m": made(6)}, mlx(), ["DoRA", "q.m"]),
    "MLX, whole weights": ({"q.weight": made(8, 2)}, mlx(fine_tune_type="full"), ["fine_tune_type full"]),
    "MLX, scale a text": ({"q.lora_a": made(8, 2), "q.lora_b": made(2, 6)}, mlx("10"), ["scale = '10'"]),
    "MLX, parameters a list": (
        {"q.lora_a": made(8, 2), "q.lora_b": made(2, 6)}, mlx(lora_parameters=[1]), ["lora_parameters"],
    ),
    "cloneofsimo, half a pair": ({"unet:0:up": made(6, 2)}, None, ["unet:0:up"]),
    "SAM, half a pair": ({"w_a_000": made(2, 6)}, None, ["w_a_000 stands alone: another factor"]),
    "PEFT, half a pair": ({"q.lora_A.weight": made(2, 6)}, None, ["q.lora_A.weight has no lora_B beside it"]),
    "kohya's key with a slip": (
        {"lora_unet_q_lora_down.weight": made(2, 6), "lora_unet_q_lora_up.weight": made(4, 2)},
        None, ["lora_unet_q_lora_down.weight", "end in .lora_down.weight"],
    ),
    "a prompt": ({"prompt_embeddings": made(2, 6)}, {"peft_type": "PROMPT_TUNING"}, ["(prompt tuning)"]),
    "a prefix": ({"prompt_embeddings": made(2, 6)}, {"peft_type": "PREFIX_TUNING"}, ["(prefix tuning)"]),
    "P-tuning": ({"prompt_embeddings": made(2, 6)}, {"peft_type": "P_TUNING"}, ["(P-tuning)"]),
    "QSBoRA with a magnitude": (
        {"q.lora_A.weight": made(2, 8), "q.lora_B.weight": made(6, 2), "q.magnitude.weight": made(6, 1)},
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4}, ["DoRA", "q.magnitude.weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line(tmp_path: Path, case: str) -> None:
    """The message names the file and the key as it stands in the file."""
    content, config, expected = BAD[case]
    path = saved(tmp_path, content, config)
    with pytest.raises(AdapterError) as caught:
        read_adapter(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for part in expected:
        assert part in message


def test_bad_numbers_are_named_as_the_file_names_them(tmp_path: Path) -> None:
    adapter = one(saved(tmp_path, {"q.lora_a": made(8, 2), "q.lora_b": made(2, 6) * np.inf}, mlx()))
    with pytest.raises(AdapterError, match=r"q\.lora_b: B holds NaN or Inf"):
        adapter["q"].to_dense()


LAYOUTS: list[dict[str, np.ndarray]] = [
    {"lora_unet_q.lora_down.weight": made(2, 8), "lora_unet_q.lora_up.weight": made(6, 2), "lora_unet_q.alpha": made()},
    {
        "c.lora_down.weight": made(2, 3, 1, 1),
        "c.lora_up.weight": made(5, 2, 1, 1),
        "c.lora_mid.weight": made(2, 2, 3, 3),
    },
    {
        "k.lokr_w1": made(2, 2),
        "k.lokr_w2_a": made(3, 2),
        "k.lokr_w2_b": made(2, 4),
        "k.alpha": made(1),
        "d.diff": made(3, 4),
    },
    {"m.lora_a": made(8, 2), "m.lora_b": made(2, 6), "e.lora_a": made(3, 2, 8), "e.lora_b": made(3, 6, 2)},
    {"unet:0:up": made(6, 2), "unet:0:down": made(2, 8), "<s1>": made(8)},
    {"w_a_000": made(2, 8), "w_b_000": made(6, 2)},
    {"g.lora_A": made(4, 8), "g.lora_B": made(6, 2)},
]
CONFIGS = (
    None,
    {},
    mlx(),
    {"lora_parameters": None},
    {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "enable_lora": [1]},
)


@given(
    content=st.sampled_from(LAYOUTS),
    other=st.sampled_from([{}, *LAYOUTS]),
    config=st.sampled_from(CONFIGS),
    victim=st.integers(0, 9),
    harm=st.sampled_from(["drop", "rename", "transpose", "type", "nan"]) | st.lists(st.integers(0, 3), max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_damaged_files_are_read_or_refused_in_one_line(
    content: dict[str, Any], other: dict[str, Any], config: Any, victim: int, harm: Any
) -> None:
    """Nothing but AdapterError, whatever is lost, renamed, turned or of another shape, and layouts in one file."""
    content = content | other
    key = sorted(content)[victim % len(content)]
    value = content.pop(key)
    if harm != "drop":
        changed = {"transpose": value.T, "type": np.ones(value.shape, "i4"), "nan": value * np.nan, "rename": value}
        content[f"{key}.x" if harm == "rename" else key] = made(*harm) if isinstance(harm, list) else changed[harm]
    with TemporaryDirectory() as folder:
        path = saved(Path(folder), content, config)
        message = f"{path}:"
        try:
            for update in one(path).values():
                assert np.isfinite(update.to_dense()).all()
        except AdapterError as error:
            message = str(error)
        assert str(path) in message
        assert "\n" not in message


@pytest.mark.parametrize("content", [["a", 1], [], ["tensor", "tensor", "tensor"]])
def test_a_bad_list_is_one_line(tmp_path: Path, content: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    torch.save([torch.ones(2, 2) if item == "tensor" else item for item in content], tmp_path / "lora.pt")
    with pytest.raises(AdapterError, match=r"lora\.pt"):
        read_adapter(tmp_path / "lora.pt")


# --- adapters that other people trained ------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("name", ["mlx-qwen2.5-0.5b", "mlx-qwen2.5-0.5b/adapters.safetensors"])
def test_a_real_mlx_adapter(name: str) -> None:
    adapter = one(SHARED / name)
    stored = load_file(SHARED / "mlx-qwen2.5-0.5b/adapters.safetensors")
    assert (adapter.method, len(adapter), adapter.warnings, adapter.passed_over) == ("lora", 8, (), ())
    for module in ("model.layers.20.self_attn.q_proj", "model.layers.23.self_attn.v_proj"):
        equal(adapter, module, 10.0 * product(stored[f"{module}.lora_a"], stored[f"{module}.lora_b"]).T)


@real
@pytest.mark.parametrize("rank", [2, 8])
def test_a_real_sam_adapter(rank: int) -> None:
    path = SHARED / f"sam-lora/lora_rank{rank}.safetensors"
    adapter, stored = one(path), load_file(path)
    assert (adapter.method, len(adapter), adapter.passed_over) == ("lora", 24, ())
    assert [(layer(module), projection(module)) for module in adapter] == [(k // 2, "qv"[k % 2]) for k in range(24)]
    equal(adapter, "image_encoder.blocks.11.attn.v", product(stored["w_b_023"], stored["w_a_023"]))


@real
def test_real_cloneofsimo_adapters() -> None:
    torch = pytest.importorskip("torch")
    path = SHARED / "cloneofsimo-sd15/lora_disney.safetensors"
    adapter, stored = one(path), load_file(path)
    assert (adapter.method, len(adapter), adapter.passed_over) == ("lora", 192, ("<s1>", "<s2>"))
    equal(adapter, "unet.143", product(stored["unet:143:up"], stored["unet:143:down"]))
    path = SHARED / "cloneofsimo-sd15/lora_kiriko2.text_encoder.pt"
    adapter, listed = one(path), torch.load(path, weights_only=True, map_location="cpu")
    assert (adapter.method, len(adapter)) == ("lora", 48)
    equal(adapter, "module.47", product(listed[94].detach().numpy(), listed[95].detach().numpy()))


@real
def test_a_real_lokr() -> None:
    path = SHARED / "kohya-lokr-sd1/smart_falcon_4_lokr.safetensors"
    adapter, stored = one(path), load_file(path)
    assert (adapter.method, len(adapter), adapter.warnings, adapter.passed_over) == ("lokr", 350, (), ())
    for module in ("lora_te_text_model_encoder_layers_11_self_attn_v_proj", [*adapter][-1]):
        w1_a, w1_b, w2_a, w2_b = (stored[f"{module}.lokr_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        scale = float(stored[f"{module}.alpha"]) / len(w1_b)
        equal(adapter, module, scale * np.kron(product(w1_a, w1_b), product(w2_a, w2_b)))


# Every file that the folders hold: method and number of modules, or the word with which it is refused.
EVERY: dict[str, tuple[str, int] | str] = {
    "loralib-roberta-mnli/roberta_base_lora_mnli.bin": ("lora", 24),
    "peft-roberta-portuguese/checkpoint-500/adapter_model.safetensors": ("lora", 24),
    "peft-roberta-portuguese/checkpoint-2000/adapter_model.safetensors": ("lora", 24),
    "peft-roberta-portuguese/checkpoint-6000/adapter_model.safetensors": ("lora", 24),
    "peft-roberta-agnews-bias-all/adapter_model.safetensors": ("lora", 36),
    "peft-open-calm-1b-rank1/adapter_model.safetensors": ("lora", 24),
    "mlx-qwen2.5-0.5b/adapters.safetensors": ("lora", 8),
    "kohya-lokr-sd1/smart_falcon_4_lokr.safetensors": ("lokr", 350),
    "sam-lora/lora_rank2.safetensors": ("lora", 24),
    "sam-lora/lora_rank8.safetensors": ("lora", 24),
    "cloneofsimo-sd15/lora_disney.safetensors": ("lora", 192),
    "cloneofsimo-sd15/lora_kiriko2.text_encoder.pt": ("lora", 48),
    "peft-synthetic-random/adapter_model.safetensors": ("lora", 12),
    "peft-controls/monteclora-roberta-mrpc/adapter_model.safetensors": ("lora", 24),
    "peft-controls/random-init-lora_opt-350m/adapter_model.bin": ("lora", 48),
    "peft-controls/random-init-lora_conv2d/adapter_model.bin": ("lora", 1),
    "peft-controls/random-init-lora_emb_conv1d/adapter_model.bin": ("lora", 2),
    "peft-controls/random-init-lora_mlp_modules_to_save/adapter_model.bin": ("lora", 1),
    "peft-controls/random-init-adalora_mlp/adapter_model.bin": ("adalora", 1),
    "peft-controls/random-init-ia3_opt-350m/adapter_model.bin": "IA³",
    "peft-controls/unilora-unsupported/adapter_model.safetensors": "Uni-LoRA",
}


@real
def test_every_real_file_reads_or_is_refused_by_name() -> None:
    found = [path for suffix in ("safetensors", "bin", "pt") for path in SHARED.rglob(f"*.{suffix}")]
    assert {str(path.relative_to(SHARED)) for path in found} == set(EVERY)
    for name, expected in EVERY.items():
        if isinstance(expected, str):
            with pytest.raises(AdapterError, match=expected) as caught:
                read_adapter(SHARED / name)
            assert "\n" not in str(caught.value)
        else:
            adapter = one(SHARED / name)
            assert (adapter.method, len(adapter)) == expected, name


# --- what must not be lost or counted twice --------------------------------------------------------------------------


def test_one_module_under_two_names_is_counted_once(tmp_path: Path) -> None:
    """Copies for a server and tied modules; not copies of layers, other numbers, or another scaling."""
    A, B = made(2, 8), made(6, 2)

    def pair(module: str, A: np.ndarray = A, B: np.ndarray = B) -> dict[str, np.ndarray]:
        return {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}

    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    content = pair("model.layers.0.q") | pair("model.language_model.layers.0.q") | pair("model.layers.1.q")
    content |= pair("model.layers.0.k") | pair("model.vision.layers.0.q", A, made(6, 2, seed=1))
    adapter = one(saved(tmp_path / "copies", content, config))
    kept = ["model.layers.0.k", "model.layers.0.q", "model.layers.1.q", "model.vision.layers.0.q"]
    assert list(adapter) == kept
    assert [("language_model" in line, "1 module" in line) for line in adapter.warnings] == [(True, True)]
    config |= {"alpha_pattern": {".*language_model.*": 8}}
    assert len(one(saved(tmp_path / "scaled", content, config))) == 5
    constant = pair("encoder.q", np.ones((2, 8), "f4"), np.zeros((6, 2), "f4"))
    constant |= {key.replace("encoder", "decoder"): value for key, value in constant.items()}
    assert len(one(saved(tmp_path / "constant", constant, config))) == 2


@pytest.mark.parametrize("key", ["q.lora_B.bias", "q.base_layer.bias", "norm.bias", "q.diff_b"])
def test_trained_biases_are_listed(tmp_path: Path, key: str) -> None:
    content = {"q.lora_A.weight": made(2, 8), "q.lora_B.weight": made(6, 2), key: made(6)}
    content |= {"classifier.weight": made(2, 6), "classifier.bias": made(2)}  # a head, which is no bias alone
    adapter = one(saved(tmp_path, content, {"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    assert {key, "classifier.bias"} <= set(adapter.passed_over)
    assert [line for line in adapter.warnings if "bias" in line] == [f"1 trained bias, no part of ΔW: {key}"]


def test_differences_of_norms_alone_are_listed(tmp_path: Path) -> None:
    content = PAIR | {"lora_unet_norm.diff": made(6), "lora_unet_gain.diff": number(1)}
    adapter = one(saved(tmp_path, content))
    assert (list(adapter), set(adapter.passed_over)) == (["te_q"], {"lora_unet_norm.diff", "lora_unet_gain.diff"})


@pytest.mark.parametrize(("alpha", "dim", "noted"), [(1, "32", True), (32, "32", False), (1, "", False)])
def test_whole_lokr_notes_another_alpha(tmp_path: Path, alpha: float, dim: str, noted: bool) -> None:
    content = {"lora_unet_q.lokr_w1": made(2, 2), "lora_unet_q.lokr_w2": made(3, 4), "lora_unet_q.alpha": number(alpha)}
    adapter = one(saved(tmp_path, content, None, **({"ss_network_dim": dim} if dim else {})))
    assert adapter["lora_unet_q"].facts.scaling == 1
    assert any("1/32" in line for line in adapter.warnings) == noted


# --- names, places and speed -----------------------------------------------------------------------------------------


def test_keys_print_as_in_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, PAIR)
    keys = translate(tensors.open_tensors(path), None).tensors.keys()
    assert set(keys) == {"te_q.lora_A.weight", "te_q.lora_B.weight"}
    assert {f"{key}" for key in keys} == {str(key) for key in keys} == set(PAIR)
    assert {repr(key) for key in keys} == {repr(key) for key in PAIR}


WRAPPED = {
    "module.base_model.model.{}": "DDP",
    "_orig_mod.module.base_model.model.{}": "DDP in torch.compile",
    "module._orig_mod.base_model.model.{}": "torch.compile in DDP",
    "base_model.model._checkpoint_wrapped_module.{}": "activation checkpointing",
    "base_model.model._fsdp_wrapped_module._checkpoint_wrapped_module.{}": "FSDP with it",
    "base_model.model.base_model.model.{}": "PEFT twice",
    "base_model.model._orig_mod.{}": "PEFT around torch.compile",
    "base_model.model.module.{}": "PEFT around DDP",
    "model.base_model.model.{}": "a LightningModule's model",
    "_forward_module.net.base_model.model.{}": "the same in Lightning's Fabric",
}
WRAPPED_PATTERNS = [
    "^model.layers.0.q", r"^module\.base_model\.model\.model\.layers\.\d+\.q", "_orig_mod.module.model.layers.0.q",
    r"(^_fsdp_wrapped_module\.model|other)\.layers\.0\.q", ".*q",
]  # fmt: skip


@pytest.mark.parametrize("pattern", WRAPPED)
def test_wrappers_are_no_part_of_a_path(tmp_path: Path, pattern: str) -> None:
    """Names, patterns and the base model's matrices are as without the wrappers, wherever these stand."""
    pair = {"lora_A.weight": made(2, 8), "lora_B.weight": made(6, 2), "lora_magnitude_vector": made(6)}
    base = tmp_path / "base"
    base.mkdir()
    save_file({"model.layers.0.q.weight": made(6, 8)}, base / "model.safetensors")
    inner = [pattern.format("model.layers.0.q."), pattern.format("model.layers.0._checkpoint_wrapped_module.q.")]
    for k, (module, wrapped) in enumerate((m, w) for m in inner for w in WRAPPED_PATTERNS):
        config = {"peft_type": "LORA", "r": 5, "lora_alpha": 1, "rank_pattern": {wrapped: 2}}
        config["alpha_pattern"] = {wrapped: 6}
        plain = {f"{module}{name}": value for name, value in pair.items() if name != "lora_magnitude_vector"}
        adapter = one(saved(tmp_path / f"plain{k}", plain, config))
        assert {name: update.facts.scaling for name, update in adapter.items()} == {"model.layers.0.q": 3}
    dora = {f"{inner[1]}{name}": value for name, value in pair.items()}
    adapter = one(saved(tmp_path / "dora", dora, {"peft_type": "LORA", "r": 2, "lora_alpha": 2}), base=base)
    assert (adapter.method, list(adapter)) == ("dora", ["model.layers.0.q"])
    assert adapter["model.layers.0.q"].to_dense().shape == (6, 8)


def test_wrappers_in_other_layouts(tmp_path: Path) -> None:
    content = {f"_fsdp_wrapped_module.unet._orig_mod.{key}": value for key, value in PAIR.items()}
    content["_fsdp_wrapped_module.unet._orig_mod.te_q.alpha"] = number(1)
    adapter = one(saved(tmp_path, content))
    assert {module: update.facts.scaling for module, update in adapter.items()} == {"unet.te_q": 0.5}


def test_what_only_looks_like_a_wrapper_stays() -> None:
    for path in ("module.0.lora_A", "encoder.module.layer.0.q", "my_module.q", "base_model.vera_A", "submodule.q"):
        assert module_path(path) == path


@pytest.mark.parametrize("name", ["adapters.safetensors", "pytorch_lora_weights.safetensors"])
def test_other_programs_names_of_the_weight_file(tmp_path: Path, name: str) -> None:
    """The folder names the adapter; checkpoints of the run beside the file do not hide it."""
    folder = tmp_path / "mine"
    saved(folder, PAIR).rename(folder / name)
    saved(folder, PAIR).rename(folder / f"0000100_{name}")
    for path in (folder, folder / name):
        assert one(path).name == "mine"
    assert one(folder / f"0000100_{name}").name == f"0000100_{name}".removesuffix(".safetensors")


def test_names_of_two_thousand_modules_take_less_than_a_second(tmp_path: Path) -> None:
    content = {}
    for k in range(2000):
        module = f"lora_unet_down_blocks_{k % 4}_attentions_{k}_transformer_blocks_0_attn1_to_q"
        content |= {
            f"{module}.lora_down.weight": np.ones((1, 4), "f2"),
            f"{module}.lora_up.weight": np.ones((4, 1), "f2"),
        }
        content[f"{module}.alpha"] = np.ones((), "f2")
    path = saved(tmp_path, content)
    start = time.process_time()
    assert len(one(path)) == 2000
    assert time.process_time() - start < 1


PROJECTIONS: list[tuple[str, str, int | None]] = [
    (UNET, "q", 1),
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0", "o", 1),
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj", "up", 1),
    ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_ff_net_2", "down", 1),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj", "up", 1),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2", "down", 1),
    ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", "o", 1),
    ("lora_te1_text_model_encoder_layers_10_self_attn_q_proj", "q", 10),
    ("lora_te_text_model_encoder_layers_0_self_attn_out_proj", "o", 0),
    ("lora_te_text_model_encoder_layers_0_mlp_fc2", "down", 0),
    ("lora_te_encoder_layer_3_output_dense", "down", 3),
    ("lora_unet_mid_block_attentions_0_proj_in", "proj_in", 0),
    ("lora_unet_mid_block_resnets_0_time_emb_proj", "time_emb_proj", 0),
    ("lora_unet_double_blocks_12_img_attn_qkv", "qkv", 12),
    ("lora_unet_double_blocks_12_img_attn_proj", "o", 12),
    ("lora_unet_blocks_3_cross_attn_k", "k", 3),
    ("lycoris_conv_in", "lycoris_conv_in", None),
    ("text_encoder.layers.3.self_attn.q_proj", "q", 3),
    ("my_q", "my_q", None),
]


@pytest.mark.parametrize(("module", "name", "number"), PROJECTIONS)
def test_projections_and_layers(module: str, name: str, number: int | None) -> None:
    assert (projection(module), layer(module)) == (name, number)
