"""Layouts out: what is written has the same ΔW, for us and for the program that it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft_models as models
import pytest
from adapter_files import one
from click.testing import CliRunner
from peft import LoraConfig, PeftModel

from bora_analysis import Adapter, AdapterError, base_metrics, convert, lora, merge, read_adapter, write_adapter
from bora_analysis.analysis.conversion import shared_settings
from bora_analysis.catalogue import LAYOUTS
from bora_analysis.cli import main
from bora_analysis.files.layouts import OUT
from bora_analysis.files.layouts.gguf import row_order
from bora_analysis.files.layouts.names import names_of

torch = pytest.importorskip("torch")
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

RNG = np.random.default_rng(0)
# Modules of a U-Net, in diffusers' names, and of its text encoder.
UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (8, 6),
    "mid_block.attentions.0.proj_in": (6, 6),
    "up_blocks.1.resnets.0.time_emb_proj": (5, 9),
}
TEXT = {"text_model.encoder.layers.0.self_attn.q_proj": (6, 8), "text_model.encoder.layers.0.mlp.fc1": (9, 4)}


def factors(shapes: dict[str, tuple[int, int]], r: int = 3) -> dict[str, dict[str, Any]]:
    return {
        module: {"B": RNG.standard_normal((m, r)).astype("f4"), "A": RNG.standard_normal((r, n)).astype("f4")}
        for module, (m, n) in shapes.items()
    }


def product(pair: dict[str, Any], scaling: float = 1.0) -> np.ndarray:
    B, A = (pair[name].reshape(len(pair[name]), -1).astype(np.float64) for name in "BA")
    return scaling * B @ A


def close(adapter: Adapter, exact: dict[str, np.ndarray]) -> None:
    assert set(adapter) == set(exact)
    for module, dense in exact.items():
        np.testing.assert_allclose(adapter[module].to_dense(), dense, atol=1e-6 * max(np.abs(dense).max(), 1e-30))


def kohya(path: Path, pairs: dict[str, dict[str, Any]], alpha: float, **metadata: str) -> Path:
    """A file as sd-scripts saves it."""
    content = {}
    for module, pair in pairs.items():
        content[f"{module}.lora_down.weight"] = torch.tensor(pair["A"])
        content[f"{module}.lora_up.weight"] = torch.tensor(pair["B"])
        content[f"{module}.alpha"] = torch.tensor(alpha)
    save_file(content, path, metadata=metadata)
    return path


def test_every_layout_is_in_the_menu() -> None:
    assert ("same", *sorted(OUT, key=LAYOUTS.index)) == LAYOUTS


@pytest.mark.parametrize("layout", sorted(OUT.keys() - {"gguf"}))
def test_a_file_of_every_layout_has_the_same_updates(layout: str, tmp_path: Path) -> None:
    pairs = factors({"model.layers.0.self_attn.q_proj": (8, 6), "model.layers.10.mlp.down_proj": (6, 12)})
    pairs["model.layers.10.mlp.down_proj"]["B"][:, 1:] = 0  # another rank
    source = write_adapter(tmp_path / "a", "lora", pairs, alpha=5, base_model="org/base")
    exact = {module: product(pair, 5 / 3) for module, pair in pairs.items()}
    done = convert(source, tmp_path / "b", layout=layout)
    assert (done.layout, {module: cut.rank for module, cut in done.cuts.items()}) == (
        layout,
        dict(zip(exact, (3, 1), strict=True)),
    )
    written = one(tmp_path / "b")
    assert written.layout == ("peft" if layout == "per-expert" else layout)
    close(written, dict(zip(written, exact.values(), strict=True)))
    assert [line for line in written.warnings if "α" in line and layout != "comfyui"] == []
    again = convert(tmp_path / "b", tmp_path / "c", layout="same", rank=1)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        p.name for p in (tmp_path / "c").iterdir()
    )
    assert list(again.cuts) == list(written)
    same = one(tmp_path / "c")
    for module, update in same.items():
        best = np.linalg.svd(written[module].to_dense())
        np.testing.assert_allclose(update.to_dense(), best[1][0] * np.outer(best[0][:, 0], best[2][0]), atol=1e-6)
        assert update.facts.scaling == pytest.approx(written[module].facts.scaling)


def test_kohya_stays_kohya_with_its_scaling_its_metadata_and_its_biases(tmp_path: Path) -> None:
    names = {f"lora_unet_{module.replace('.', '_')}": shape for module, shape in UNET.items()}
    conv = {"B": RNG.standard_normal((6, 3, 1, 1)).astype("f4"), "A": RNG.standard_normal((3, 4, 3, 2)).astype("f4")}
    deep = {
        "B": RNG.standard_normal((6, 3, 1, 1, 1)).astype("f4"),
        "A": RNG.standard_normal((3, 2, 3, 2, 2)).astype("f4"),
    }
    pairs = factors(names) | {"lora_unet_conv_in": conv, "lora_unet_conv_out": deep}
    told = {"ss_network_dim": "3", "ss_network_alpha": "1.5", "ss_tag": "x", "sshash_model_hash": "y"}
    path = kohya(tmp_path / "style.safetensors", pairs, 1.5, **told)
    content = load_file(path) | {"lora_unet_norm.w_norm": torch.ones(4), "lora_unet_conv_in.diff_b": torch.ones(6)}
    save_file(content, path, metadata=told)
    done = convert(path, tmp_path / "small.safetensors", layout="same", rank=2)
    assert done.left_behind == ()
    written = load_file(tmp_path / "small.safetensors")
    assert torch.equal(written["lora_unet_conv_in.diff_b"], torch.ones(6))
    for module, pair in pairs.items():
        up, down, alpha = (
            written[f"{module}.{part}"].double() for part in ("lora_up.weight", "lora_down.weight", "alpha")
        )
        assert (alpha.item(), down.shape[0], up.ndim) == (1.0, 2, pair["A"].ndim)
        U, s, V = np.linalg.svd(product(pair, 0.5), full_matrices=False)
        found = alpha / 2 * up.reshape(len(up), -1) @ down.reshape(2, -1)
        np.testing.assert_allclose(found, U[:, :2] * s[:2] @ V[:2], atol=1e-6 * s[0])
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        assert file.metadata() == {
            "format": "pt", "ss_tag": "x", "ss_network_dim": "2", "ss_network_alpha": "1.0",
            "ss_network_module": "networks.lora",
        }  # fmt: skip
    with pytest.raises(AdapterError, match=r"small\.safetensors; give another folder, or replace it"):
        convert(path, tmp_path / "small.safetensors", layout="same")


@pytest.mark.parametrize("layout", ["diffusers", "comfyui", "peft"])
def test_kohyas_underscores_become_the_right_dots(layout: str, tmp_path: Path) -> None:
    """The names of a U-Net and of text encoders, from kohya's and back."""
    pairs = factors({f"lora_unet_{module.replace('.', '_')}": shape for module, shape in UNET.items()})
    text = factors({f"lora_te{n}_{module.replace('.', '_')}": shape for module, shape in TEXT.items() for n in "12"})
    path = kohya(tmp_path / "style.safetensors", pairs | text, 2.0)
    if layout == "peft":
        with pytest.raises(
            AdapterError, match=r"holds 3 models \(text_encoder, text_encoder_2, unet\), and peft holds"
        ):
            convert(path, tmp_path / "out")
        convert(path, tmp_path / "out", modules="^lora_unet_")
        assert set(one(tmp_path / "out")) == set(UNET)
        return
    convert(path, tmp_path / "out", layout=layout)
    found = one(tmp_path / "out")
    if layout == "diffusers":
        parts = {f"text_encoder{n}.{module}" for module in TEXT for n in ("", "_2")}
        assert set(found) == {f"unet.{module}" for module in UNET} | parts
    convert(tmp_path / "out", tmp_path / "back", layout="kohya")
    exact = {module: product(pair, 2 / 3) for module, pair in (pairs | text).items()}
    close(one(tmp_path / "back"), exact)


@pytest.mark.parametrize(
    ("underscored", "dotted"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "double_blocks.0.img_attn.qkv"),
        ("lora_unet_single_blocks_12_modulation_lin", "single_blocks.12.modulation.lin"),
        ("lora_unet_down_blocks_1_downsamplers_0_conv", "down_blocks.1.downsamplers.0.conv"),
        ("lora_unet_input_blocks_4_1_proj_in", "input_blocks.4.1.proj_in"),
        ("lora_unet_transformer_blocks_3_attn_to_add_out", "transformer_blocks.3.attn.to_add_out"),
        ("lora_unet_blocks_0_cross_attn_k_img", "blocks.0.cross_attn.k_img"),
        ("lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0", "encoder.block.0.layer.1.DenseReluDense.wi_0"),
        ("lora_unet_transformer_blocks_0_img_mlp_net_0_proj", "transformer_blocks.0.img_mlp.net.0.proj"),
        ("lora_te_layers_0_mlp_gate_proj", "layers.0.mlp.gate_proj"),
        ("lora_unet_txtfusion_layerwise_blocks_0_attn_wk", "txtfusion.layerwise_blocks.0.attn.wk"),
        ("lora_unet_blocks_0_my_own_name", None),
    ],
)  # fmt: skip
def test_names(underscored: str, dotted: str | None) -> None:
    assert names_of([underscored])[underscored].path == dotted
    hunyuan = ["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_0_img_mlp_fc1"]
    assert [name.path for name in names_of(hunyuan).values()] == [None, "double_blocks.0.img_mlp.fc1"]


def test_names_that_are_not_known_come_from_the_base_model(tmp_path: Path) -> None:
    pairs = factors({"lora_unet_my_own_name": (4, 6)})
    path = kohya(tmp_path / "style.safetensors", pairs, 3.0)
    with pytest.raises(AdapterError, match=r"lora_unet_my_own_name: which of its underscores are dots.*--base"):
        convert(path, tmp_path / "out")
    save_file({"my.own_name.weight": torch.ones(4, 6)}, tmp_path / "base.safetensors")
    command = ["convert", str(path), "-o", str(tmp_path / "out"), "--base", str(tmp_path / "base.safetensors")]
    assert CliRunner().invoke(main, command).exit_code == 0
    close(one(tmp_path / "out"), {"my.own_name": product(pairs["lora_unet_my_own_name"])})


def test_a_layout_refuses_names_and_files_that_it_has_not(tmp_path: Path) -> None:
    path = kohya(tmp_path / "flux.safetensors", factors({"lora_unet_double_blocks_0_img_mlp_0": (4, 6)}), 1.0)
    with pytest.raises(AdapterError, match="lora_unet_double_blocks_0_img_mlp_0 is a name of the original model"):
        convert(path, tmp_path / "out", layout="diffusers")
    with pytest.raises(ValueError, match="layout is 'gg'; expected one of same, peft"):
        convert(path, tmp_path / "out", layout="gg")
    with pytest.raises(AdapterError, match="its layout is read, and not written; choose another"):
        convert(Adapter.from_updates("a", {"q": lora(np.eye(3), np.eye(3))}), tmp_path / "out", layout="same")
    done = convert(merge([path, path]), tmp_path / "sum", layout="same")
    assert (done.layout, list(one(tmp_path / "sum"))) == ("kohya", ["lora_unet_double_blocks_0_img_mlp_0"])


def peft_delta(plain: Any, folder: Path) -> dict[str, np.ndarray]:
    """What PEFT adds to each parameter of a model."""
    before = {name: value.detach().double().numpy().copy() for name, value in plain.named_parameters()}
    with models.warnings.catch_warnings():
        models.warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(plain, folder).merge_and_unload()
    return {name: value.detach().double().numpy() - before[name] for name, value in merged.named_parameters()}


@pytest.mark.parametrize("wish", [{}, {"rank": 2}])
def test_convolutions_and_attention_through_peft(wish: dict[str, Any], tmp_path: Path) -> None:
    def layers() -> Any:
        two, three = torch.nn.Conv2d(4, 6, (3, 2)), torch.nn.Conv3d(2, 5, (2, 1, 3))
        return models.module(two=two, three=three, attn=torch.nn.MultiheadAttention(8, 2))

    model, plain = layers(), layers()
    plain.load_state_dict(model.state_dict())
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["two", "three", "attn"], init_lora_weights=False)
    exact = models.saved(model, config, tmp_path / "before")
    source = one(tmp_path / "before")
    convert(tmp_path / "before", tmp_path / "after", **wish)
    added = peft_delta(plain, tmp_path / "after")
    for module in source:
        key = {"attn": "attn.in_proj_weight"}.get(module, f"{module}.weight")
        dense = exact[key].reshape(len(exact[key]), -1)
        U, s, V = np.linalg.svd(dense, full_matrices=False)
        k = wish.get("rank", len(s))
        found = added[key].reshape(dense.shape)
        np.testing.assert_allclose(found, U[:, :k] * s[:k] @ V[:k], atol=2e-6)
    assert one(tmp_path / "after")["attn.out_proj"].facts.kind == "attention"


@pytest.mark.parametrize("wish", [{}, {"rank": 2}, {"energy": 0.8}, {"threshold": 0.5}])
def test_grouped_convolutions_through_peft(wish: dict[str, Any], tmp_path: Path) -> None:
    """Each group's rows are the best approximation of their own, and PEFT's forward pass has them."""
    torch.manual_seed(0)
    model, plain = (models.module(conv=torch.nn.Conv2d(4, 6, 3, groups=2, bias=False)) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    adapted = models.adapted(model, LoraConfig(r=4, lora_alpha=5, target_modules=["conv"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "before")
    before = one(tmp_path / "before")["conv"]
    done = convert(tmp_path / "before", tmp_path / "after", **wish)
    after, cut = one(tmp_path / "after")["conv"], done.cuts["conv"]
    lost = before.to_dense() - after.to_dense()
    assert cut.error_frobenius == pytest.approx(np.linalg.norm(lost), abs=1e-6)
    assert cut.error_spectral == pytest.approx(np.linalg.norm(lost, 2), abs=1e-6)
    k = cut.rank // 2
    for rows, dense in zip(np.split(after.to_dense(), 2), np.split(before.to_dense(), 2), strict=True):
        U, s, V = np.linalg.svd(dense, full_matrices=False)
        np.testing.assert_allclose(rows, U[:, :k] * s[:k] @ V[:k], atol=1e-6)
    if not wish:
        x = torch.randn(2, 4, 5, 5)
        with models.warnings.catch_warnings():
            models.warnings.simplefilter("ignore")
            loaded: Any = PeftModel.from_pretrained(plain, tmp_path / "after")
        with torch.no_grad():
            torch.testing.assert_close(
                loaded.base_model.model.conv(x), adapted.base_model.model.conv(x), atol=1e-5, rtol=1e-5
            )


def test_experts_fused_alone_and_stacked(tmp_path: Path) -> None:
    """One parameter of all experts, in PEFT; each expert a module; MLX's stacks."""
    model, plain = models.tiny_mixtral(), models.tiny_mixtral()
    plain.load_state_dict(model.state_dict())
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = LoraConfig(
        r=2, lora_alpha=3, target_modules=["q_proj"], target_parameters=targets, init_lora_weights=False
    )
    models.adapted(model, config).save_pretrained(tmp_path / "fused")
    source = one(tmp_path / "fused")
    exact = {module: update.to_dense() for module, update in source.items()}
    convert(tmp_path / "fused", tmp_path / "again", layout="same")
    close(one(tmp_path / "again"), exact)
    twin = models.tiny_mixtral()
    twin.load_state_dict(plain.state_dict())
    first, second = peft_delta(plain, tmp_path / "fused"), peft_delta(twin, tmp_path / "again")
    assert any("gate_up_proj" in name and np.abs(delta).max() > 0 for name, delta in first.items())
    for name, delta in first.items():
        np.testing.assert_allclose(second[name], delta, atol=2e-6)

    apart = {}
    for module, dense in exact.items():
        stem, _, expert = module.rpartition(".")
        if module.endswith("q_proj"):
            apart[module] = dense
        elif stem.endswith("down_proj"):
            apart[f"{stem.removesuffix('.down_proj')}.{expert}.down_proj"] = dense
        else:
            for name, half in zip(("gate_proj", "up_proj"), np.split(dense, 2), strict=True):
                apart[f"{stem.removesuffix('.gate_up_proj')}.{expert}.{name}"] = half
    convert(tmp_path / "fused", tmp_path / "single", layout="per-expert")
    close(one(tmp_path / "single"), apart)
    config = json.loads((tmp_path / "single" / "adapter_config.json").read_text())
    assert "target_parameters" not in config
    for path in ("fused", "single"):
        convert(tmp_path / path, tmp_path / f"{path}-mlx", layout="mlx")
        stacks = load_file(tmp_path / f"{path}-mlx" / "adapters.safetensors")
        name = next(key for key in stacks if key.endswith("switch_mlp.gate_proj.lora_b"))
        assert stacks[name].ndim == 3
        back = convert(tmp_path / f"{path}-mlx", tmp_path / f"{path}-back")
        assert all(cut.rank <= 2 for cut in back.cuts.values())
        close(one(tmp_path / f"{path}-back"), apart)


def test_peft_keeps_its_biases_in_its_own_layout(tmp_path: Path) -> None:
    """lora_bias, scaled as B A is, through PEFT; a sum has no place for them."""
    model, plain = (models.module(l=torch.nn.Linear(8, 6), m=torch.nn.Linear(6, 6)) for _ in range(2))
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["l", "m"], lora_bias=True, init_lora_weights=False)
    exact = models.saved(model, config, tmp_path / "before")
    assert np.abs(exact["l.bias"]).max() > 0.1
    convert(tmp_path / "before", tmp_path / "after", layout="same")
    added = peft_delta(plain, tmp_path / "after")
    for name, delta in exact.items():
        np.testing.assert_allclose(added[name], delta, atol=1e-5)
    for source in (merge([tmp_path / "before"]), tmp_path / "before"):
        with pytest.raises(AdapterError, match="is a trained bias"):
            convert(source, tmp_path / "sum", layout="same" if isinstance(source, Adapter) else "kohya")
    # A head's copy in the base model, which old versions of PEFT saved with bias="all", is not trained.
    file = tmp_path / "before" / "adapter_model.safetensors"
    content = load_file(file) | {f"base_model.model.h.{name}.bias": torch.ones(2) for name in ("original_module", "x")}
    save_file(content, file)
    done = convert(tmp_path / "before", tmp_path / "later", layout="same")
    assert done.left_behind == ("base_model.model.h.original_module.bias",)


@pytest.mark.parametrize("setting", ["layer_replication", "alora_invocation_tokens"])
def test_settings_that_a_layout_has_not_are_refused(setting: str, tmp_path: Path) -> None:
    told = {setting: [1, 2]}
    source = write_adapter(tmp_path / "a", "lora", factors({"l": (4, 6)}), alpha=3, extra_config=told)
    with pytest.raises(AdapterError, match=f"its configuration has {setting}, which mlx cannot hold"):
        convert(source, tmp_path / "b", layout="mlx")
    convert(source, tmp_path / "c")
    assert json.loads((tmp_path / "c" / "adapter_config.json").read_text())[setting] == [1, 2]


def test_a_source_is_not_replaced_and_a_folder_is_no_file(tmp_path: Path) -> None:
    path = kohya(tmp_path / "a.safetensors", factors({"lora_te_text_model_encoder_layers_0_mlp_fc1": (4, 6)}), 1.0)
    with pytest.raises(AdapterError, match="is the folder of a itself"):
        convert(path, path, layout="same", force=True)
    with pytest.raises(AdapterError, match=r"peft is a folder with adapter_model.safetensors and adapter_config"):
        convert(path, tmp_path / "b.safetensors")
    convert(path, tmp_path / "peft")
    convert(tmp_path / "peft", tmp_path / "back.safetensors", layout="kohya")
    assert list(one(tmp_path / "back.safetensors")) == ["lora_te_text_model_encoder_layers_0_mlp_fc1"]


def test_original_names_alone_are_comfyuis(tmp_path: Path) -> None:
    """Flux control's own, with trained biases, which stay in the same layout."""
    pairs = factors({"double_blocks.0.img_attn.qkv": (6, 4)})
    content = {f"{m}.lora_{side}.weight": torch.tensor(pair[side]) for m, pair in pairs.items() for side in "AB"}
    bias = {"double_blocks.0.img_attn.qkv.lora_B.bias": torch.ones(6)}
    save_file(content | bias, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=r"qkv.lora_B.bias is a trained bias"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", layout="kohya")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", layout="same")
    written = load_file(tmp_path / "b.safetensors")
    assert set(written) == set(content | bias)
    close(one(tmp_path / "b.safetensors"), {module: product(pair) for module, pair in pairs.items()})


def test_mixtral_has_the_names_of_its_checkpoint_and_of_mlx(tmp_path: Path) -> None:
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    shapes = {f"model.layers.0.mlp.experts.0.{name}": (6, 4) for name in names.values()}
    source = write_adapter(tmp_path / "a", "lora", factors(shapes), alpha=3, base_model="mistralai/Mixtral-8x7B-v0.1")
    convert(source, tmp_path / "single", layout="per-expert")
    stem = "model.layers.0.block_sparse_moe"
    assert set(one(tmp_path / "single")) == {f"{stem}.experts.0.{name}" for name in names}
    convert(tmp_path / "single", tmp_path / "mlx", layout="mlx")
    written = one(tmp_path / "mlx")
    assert set(written) == {f"{stem}.switch_mlp.{name}.0" for name in names.values()}
    for short, name in names.items():
        expected = one(tmp_path / "single")[f"{stem}.experts.0.{short}"].to_dense()
        np.testing.assert_allclose(written[f"{stem}.switch_mlp.{name}.0"].to_dense(), expected, atol=1e-6)
    convert(tmp_path / "mlx", tmp_path / "back")
    assert set(one(tmp_path / "back")) == set(one(tmp_path / "single"))
    oss = write_adapter(
        tmp_path / "b",
        "lora",
        factors({"x.mlp.experts.gate_up_proj.0": (6, 4)}),
        alpha=3,
        base_model="openai/gpt-oss-20b",
    )
    with pytest.raises(AdapterError, match="the rows of gate and up alternate in gpt-oss; mlx has them apart"):
        convert(oss, tmp_path / "oss", layout="mlx")


def test_mlx_has_one_rank_one_scale_and_the_names_of_modules(tmp_path: Path) -> None:
    pairs = factors({"model.layers.0.self_attn.q_proj": (8, 6), "lm_head": (9, 6)})
    pairs["lm_head"]["B"][:, 1:] = 0
    embedding = {"embedding_A": RNG.standard_normal((3, 12)), "embedding_B": RNG.standard_normal((6, 3))}
    source = write_adapter(tmp_path / "a", "lora", pairs | {"model.embed_tokens": embedding}, alpha=6, dtype="float32")
    convert(source, tmp_path / "mlx", layout="mlx")
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert config["num_layers"] == -1
    assert config["lora_parameters"] == {
        "rank": 3, "scale": 1.0, "dropout": 0.0, "keys": ["lm_head", "model.embed_tokens", "self_attn.q_proj"],
    }  # fmt: skip
    written = load_file(tmp_path / "mlx" / "adapters.safetensors")
    assert {tuple(value.shape) for key, value in written.items() if key.endswith("lora_a")} == {(6, 3), (12, 3)}
    for module, dense in {
        **{module: product(pair, 2.0) for module, pair in pairs.items()},
        "model.embed_tokens": 2 * embedding["embedding_B"] @ embedding["embedding_A"],
    }.items():
        a, b = (written[f"{module}.lora_{side}"].double().numpy() for side in "ab")
        np.testing.assert_allclose((a @ b).T, dense, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_capped_singular_values(dtype: str, tmp_path: Path) -> None:
    values = np.array([9.0, 4.0, 1.5, 0.5])
    Q, _ = np.linalg.qr(RNG.standard_normal((8, 4)))
    P, _ = np.linalg.qr(RNG.standard_normal((6, 4)))
    made = {"spiky": lora(Q * values, P.T), "calm": lora(Q * 0.5, P.T)}
    done = convert(Adapter.from_updates("a", made), tmp_path / "out", cap_sigma=2.0, rank=3, dtype=dtype)
    cut, written = done.cuts["spiky"], one(tmp_path / "out")
    found = written["spiky"].to_dense()
    np.testing.assert_allclose(np.linalg.svd(found)[1][:4], [2, 2, 1.5, 0], atol=2e-2 if dtype == "bfloat16" else 1e-6)
    total = np.sum(values**2)
    assert (cut.rank, cut.capped, done.cuts["calm"].capped) == (3, 2, 0)
    assert cut.energy_capped == pytest.approx((81 - 4 + 16 - 4) / total)
    assert cut.energy_kept == pytest.approx(10.25 / total)
    lost = made["spiky"].to_dense() - found
    assert cut.error_frobenius == pytest.approx(np.linalg.norm(lost), rel=1e-6)
    assert cut.error_spectral == pytest.approx(np.linalg.norm(lost, 2), rel=1e-6)
    source = write_adapter(tmp_path / "a", "lora", {"q": {"B": Q * values, "A": P.T}}, alpha=4)
    result = CliRunner().invoke(main, ["convert", str(source), "-o", str(tmp_path / "cli"), "--cap-sigma", "2"])
    assert result.stdout.splitlines()[0].split()[5:7] == ["capped", "removed"]
    assert result.stdout.splitlines()[1].split()[5:7] == ["2", "89.45%"]
    assert "note: capped: how many σ above 2 were set to it, in 1 modules; removed: share of Σσ²" in result.stderr
    with pytest.raises(ValueError, match="cap_sigma is 0"):
        convert(source, tmp_path / "x", cap_sigma=0)


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def gguf_file(pairs: dict[str, dict[str, Any]], model_type: str, home: Path, **wish: Any) -> Any:
    """What llama.cpp's own reader finds in a file made of an adapter."""
    (home / "base").mkdir(parents=True, exist_ok=True)
    (home / "base" / "config.json").write_text(json.dumps({"model_type": model_type, **HEADS}))
    save_file({"model.norm.weight": torch.ones(2)}, home / "base" / "model.safetensors")
    source = write_adapter(home / "a", "lora", pairs, alpha=6, dtype="float32")
    convert(source, home / "lora.gguf", layout="gguf", base=home / "base", **wish)
    return pytest.importorskip("gguf").GGUFReader(home / "lora.gguf")


@pytest.mark.parametrize(("model_type", "arch"), [("llama", "LLAMA"), ("qwen2", "QWEN2"), ("gemma3_text", "GEMMA3")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_gguf_through_its_own_reader(model_type: str, arch: str, dtype: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch), 12)
    shapes = {f"layers.11.self_attn.{part}_proj": (16, 8) for part in "qvo"} | {"layers.0.self_attn.k_proj": (8, 8)}
    shapes |= {f"layers.0.mlp.{part}_proj": (12, 8) for part in ("gate", "up", "down")}
    pairs = factors({f"model.{module}": shape for module, shape in shapes.items()})
    pairs["model.layers.0.mlp.up_proj"]["B"][:, 1:] = 0
    embedding = {"embedding_A": RNG.standard_normal((3, 10)), "embedding_B": RNG.standard_normal((8, 3))}
    read = gguf_file(pairs | {"model.embed_tokens": embedding}, model_type, tmp_path, dtype=dtype)
    fields = {key: field.contents() for key, field in read.fields.items() if not key.startswith("GGUF.")}
    assert fields == {
        "general.architecture": arch.lower(), "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": 3.0,
    }  # fmt: skip
    found = {}
    for tensor in read.tensors:
        kind = "bfloat16" if tensor.tensor_type.name == "BF16" else tensor.data.dtype
        found[tensor.name] = tensor.data.view(kind).astype("f8").reshape(tuple(tensor.shape)[::-1])
    precision = {"float16": 3e-3, "bfloat16": 3e-2}.get(dtype, 1e-6)
    for module, pair in pairs.items():
        key = f"{names.get_name(module)}.weight"
        dense, exact = found[f"{key}.lora_b"] @ found[f"{key}.lora_a"], product(pair, 2.0)
        assert found[f"{key}.lora_a"].shape[0] == 3  # α is divided by it
        if module.endswith(("q_proj", "k_proj")) and model_type == "llama":
            dense = dense.reshape(4 if "q_proj" in module else 2, -1, 2, 8).swapaxes(1, 2).reshape(exact.shape)
        np.testing.assert_allclose(dense, exact, atol=precision * np.abs(exact).max())
    a, b = (found[f"token_embd.weight.lora_{side}"] for side in "ab")
    exact = 2 * embedding["embedding_B"] @ embedding["embedding_A"]
    assert a.shape == (10, 3)
    np.testing.assert_allclose(b @ a.T, exact, atol=precision * np.abs(exact).max())


def test_the_order_of_rows_is_that_of_llama_cpps_rotation() -> None:
    """Scores of rotated queries and keys are the same: pairs half a head apart, and neighbours."""
    rows, angles = row_order(HEADS, "blk.0.attn_q", 32), RNG.standard_normal((2, 4))
    q, k = RNG.standard_normal((2, 4, 8))

    def apart(x: Any, angle: Any) -> Any:
        one, two = x[:, :4], x[:, 4:]
        return np.concatenate([one * np.cos(angle) - two * np.sin(angle), two * np.cos(angle) + one * np.sin(angle)], 1)

    def neighbours(x: Any, angle: Any) -> Any:
        one, two = x[:, ::2], x[:, 1::2]
        both = one * np.cos(angle) - two * np.sin(angle), two * np.cos(angle) + one * np.sin(angle)
        return np.stack(both, axis=2).reshape(4, 8)

    expected = np.sum(apart(q, angles[0]) * apart(k, angles[1]), axis=1)
    moved = (x.ravel()[rows].reshape(4, 8) for x in (q, k))
    found = np.sum(np.multiply(*(neighbours(x, angle) for x, angle in zip(moved, angles, strict=True))), axis=1)
    np.testing.assert_allclose(found, expected)


def test_what_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    pairs = factors({"model.layers.0.self_attn.q_proj": (16, 8)})
    source = write_adapter(tmp_path / "a", "lora", pairs, alpha=6)
    with pytest.raises(AdapterError, match=r"needs to know the base model's architecture: give --base"):
        convert(source, tmp_path / "out", layout="gguf")
    with pytest.raises(AdapterError, match=r"model_type = 'mamba'; known are llama, mistral"):
        gguf_file(pairs, "mamba", tmp_path / "b")
    with pytest.raises(AdapterError, match=r"model.layers.0.self_attn.x is no module whose name in llama.cpp is known"):
        gguf_file(factors({"model.layers.0.self_attn.x": (16, 8)}), "llama", tmp_path / "c")
    with pytest.raises(AdapterError, match=r"blk.0.attn_q has 12 rows, and the base model's config.json says 4 heads"):
        gguf_file(factors({"model.layers.0.self_attn.q_proj": (12, 8)}), "llama", tmp_path / "d")
    assert not list(tmp_path.glob("*/*.gguf"))


def test_gguf_and_stacks_of_experts_are_read_back(tmp_path: Path) -> None:
    """By ours, and written again in the same layout, with all experts in one tensor."""
    pairs = factors({"model.layers.0.self_attn.q_proj": (16, 8), "model.layers.0.mlp.up_proj": (12, 8)})
    gguf_file(pairs, "qwen2", tmp_path)
    exact = {
        "blk.0.attn_q": product(pairs["model.layers.0.self_attn.q_proj"], 2.0),
        "blk.0.ffn_up": product(pairs["model.layers.0.mlp.up_proj"], 2.0),
    }
    close(one(tmp_path / "lora.gguf"), exact)
    convert(tmp_path / "lora.gguf", tmp_path / "again.gguf", layout="same")
    close(one(tmp_path / "again.gguf"), exact)
    stack = {"B": RNG.standard_normal((3, 6, 2)), "A": RNG.standard_normal((3, 2, 8))}
    state = {f"base_model.model.x.experts.gate_up_proj.lora_{side}.weight": stack[side] for side in "AB"}
    adapter: Any = read_adapter(state, config={"peft_type": "LORA", "r": 2, "lora_alpha": 2})
    convert(adapter, tmp_path / "single")
    assert list(one(tmp_path / "single"))[:2] == ["x.experts.0.gate_proj", "x.experts.0.up_proj"]
    for name, tokens in (("moe", []), ("alora", [1, 2])):
        writer = pytest.importorskip("gguf").GGUFWriter(tmp_path / f"{name}.gguf", "qwen3moe")
        writer.add_type("adapter")
        writer.add_name("mine")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 3.0)
        if tokens:
            writer.add_array("adapter.alora.invocation_tokens", tokens)
        for side in "AB":
            writer.add_tensor(f"blk.0.ffn_up_exps.weight.lora_{side.lower()}", stack[side].astype("f4"))
        for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
            getattr(writer, step)()
    with pytest.raises(AdapterError, match=r"adapter.alora.invocation_tokens of the file would be lost"):
        convert(tmp_path / "alora.gguf", tmp_path / "lost.gguf", layout="same")
    with pytest.raises(AdapterError, match=r"adapter.alora.invocation_tokens of the file would be lost"):
        convert(tmp_path / "alora.gguf", tmp_path / "lost")
    convert(tmp_path / "moe.gguf", tmp_path / "moe-again.gguf", layout="same")
    close(
        one(tmp_path / "moe-again.gguf"),
        {f"blk.0.ffn_up_exps.{e}": 1.5 * stack["B"][e] @ stack["A"][e] for e in range(3)},
    )


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3"])
def test_from_gguf_back_to_peft(model_type: str, tmp_path: Path) -> None:
    shapes = {"self_attn.q_proj": (16, 8), "self_attn.k_proj": (8, 8), "mlp.down_proj": (8, 12)}
    shapes |= {"mlp.gate_up_proj": (24, 8)} if model_type == "phi3" else {"mlp.up_proj": (12, 8)}
    pairs = factors({f"model.layers.3.{name}": shape for name, shape in shapes.items()} | {"lm_head": (9, 8)})
    gguf_file(pairs, model_type, tmp_path)
    if model_type == "llama":
        with pytest.raises(AdapterError, match=r"blk.3.attn_k of llama: .* depends on the heads; give --base"):
            convert(tmp_path / "lora.gguf", tmp_path / "back")
    convert(tmp_path / "lora.gguf", tmp_path / "back", base=tmp_path / "base")
    close(one(tmp_path / "back"), {module: product(pair, 2.0) for module, pair in pairs.items()})
    W0 = {f"{module}.weight": torch.randn(len(pair["B"]), pair["A"].shape[1]) for module, pair in pairs.items()}
    save_file(W0, tmp_path / "base" / "model.safetensors")
    both = [base_metrics(tmp_path / place, tmp_path / "base") for place in ("lora.gguf", "back")]  # against W0's rows
    columns = ["module", "amplification", "intruder_dimensions"]
    one_way, other = (frame[columns].sort_values("module", ignore_index=True) for frame in both)
    pd.testing.assert_frame_equal(one_way, other, rtol=1e-5)
    as_it_is = {module: update.to_dense() for module, update in one(tmp_path / "lora.gguf").items()}
    for k, base in enumerate((None, tmp_path / "base")):  # its rows are in llama.cpp's order already
        convert(tmp_path / "lora.gguf", tmp_path / f"{k}.gguf", layout="gguf", base=base)
        close(one(tmp_path / f"{k}.gguf"), as_it_is)


def test_an_alora_and_a_plain_lora_have_no_sum(tmp_path: Path) -> None:
    pairs = factors({"model.layers.0.self_attn.q_proj": (16, 8)})
    source = write_adapter(tmp_path / "a", "lora", pairs, alpha=3, extra_config={"alora_invocation_tokens": [1, 2]})
    plain = write_adapter(tmp_path / "b", "lora", pairs, alpha=3)
    for order in ([source, plain], [plain, source]):
        with pytest.raises(AdapterError, match=r"alora_invocation_tokens is .*, another adapter has"):
            shared_settings([one(path) for path in order])


@pytest.mark.parametrize("wish", [{}, {"energy": 0.7}])
def test_diffusers_loads_what_kohya_trained(wish: dict[str, Any], tmp_path: Path) -> None:
    """Its own loader, on a U-Net, of every linear layer and convolution that the model has."""
    with models.warnings.catch_warnings():
        models.warnings.simplefilter("ignore")
        diffusers: Any = pytest.importorskip("diffusers")
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            in_channels=4, out_channels=4, layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
            block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
    layers = {
        name: layer for name, layer in unet.named_modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    before = {name: layer.weight.detach().double().numpy().copy() for name, layer in layers.items()}
    pairs = {}
    for name, weight in before.items():
        B, A = RNG.standard_normal((len(weight), 3)), RNG.standard_normal((3, *weight.shape[1:]))
        B = B.reshape(len(weight), 3, *(1 for _ in weight.shape[2:]))
        pairs[f"lora_unet_{name.replace('.', '_')}"] = {"B": B.astype("f4"), "A": A.astype("f4")}
    path = kohya(tmp_path / "style.safetensors", pairs, 1.5)
    done = convert(path, tmp_path / "out", layout="diffusers", **wish)
    assert (len({cut.rank for cut in done.cuts.values()}) > 1) == bool(wish)
    with models.warnings.catch_warnings():
        models.warnings.simplefilter("ignore")
        unet.load_lora_adapter(str(tmp_path / "out"), prefix="unet", weight_name="pytorch_lora_weights.safetensors")
        unet.fuse_lora()
    convert(tmp_path / "out", tmp_path / "back.safetensors", layout="kohya")
    rename = diffusers.loaders.lora_conversion_utils._convert_non_diffusers_lora_to_diffusers
    state, alphas = rename(load_file(tmp_path / "back.safetensors"))  # it refuses a key that is not kohya's
    assert (len(state), len(alphas)) == (2 * len(pairs), len(pairs))
    after = {name.replace(".base_layer", ""): value for name, value in unet.named_parameters()}
    written = one(tmp_path / "out")
    for name, weight in before.items():
        added = (after[f"{name}.weight"].detach().double().numpy() - weight).reshape(len(weight), -1)
        np.testing.assert_allclose(added, written[f"unet.{name}"].to_dense(), atol=1e-5)


def test_torchtunes_keys_are_not_peft_s_whatever_the_configuration_says(tmp_path: Path) -> None:
    """torchtune writes PEFT's configuration beside its own names, which "same" cannot keep."""
    rng = np.random.default_rng(0)
    pair = {"a": rng.standard_normal((2, 6), dtype=np.float32), "b": rng.standard_normal((4, 2), dtype=np.float32)}
    save_file(
        {f"layers.0.attn.q_proj.lora_{side}.weight": torch.from_numpy(factor) for side, factor in pair.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    with pytest.raises(AdapterError, match="its layout is read, and not written"):
        convert(tmp_path, tmp_path / "out", layout="same")
    convert(tmp_path, tmp_path / "out")
    np.testing.assert_allclose(
        one(tmp_path / "out")["layers.0.attn.q_proj"].to_dense(), 2 * pair["b"] @ pair["a"], atol=1e-5
    )
