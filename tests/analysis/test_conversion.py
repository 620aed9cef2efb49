"""A LoRA of the best approximation: its error is what Eckart and Young say, through PEFT too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import peft_models as models
import pytest
import scipy.linalg
import torch
from cases import STRUCTURES, exact_rank, updates
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from peft_cases import METHODS, adapted, base, layers, load
from safetensors.torch import load_file, save_file

from bora_analysis import (
    Adapter,
    AdapterError,
    bora,
    convert,
    dense,
    lora,
    melora,
    merge,
    read_adapter,
    recommend,
    write_adapter,
)
from bora_analysis.analysis.conversion import shared_settings, truncated
from bora_analysis.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")


def one(path: Path) -> Adapter:
    adapter = read_adapter(path)
    assert isinstance(adapter, Adapter)
    return adapter


@pytest.mark.parametrize("structure", STRUCTURES)
@given(data=st.data())
@settings(max_examples=30)
def test_whole_it_is_the_update(structure: str, data: st.DataObject) -> None:
    update, exact = data.draw(updates(structure))
    B, A, cut = truncated(update)
    assert len(A) == max(1, cut.rank)
    assert cut.rank == cut.rank_before <= update.facts.rank_bound
    left, middle, right = update.expanded()  # pyright: ignore[reportAttributeAccessIssue]
    reach = np.linalg.norm(left, 2) * np.linalg.norm(middle, 2) * np.linalg.norm(right, 2)
    assert np.linalg.norm(B @ A - exact, 2) <= 1e-12 * reach


@pytest.mark.parametrize("structure", STRUCTURES)
@given(data=st.data())
@settings(max_examples=30)
def test_the_error_is_that_of_eckart_and_young(structure: str, data: st.DataObject) -> None:
    update, exact = data.draw(updates(structure))
    rank = data.draw(st.integers(1, 6))
    B, A, cut = truncated(update, rank=rank)
    assert len(A) == max(1, cut.rank)
    assert cut.rank <= rank
    left, middle, right = update.expanded()  # pyright: ignore[reportAttributeAccessIssue]
    reach = float(np.linalg.norm(left, 2) * np.linalg.norm(middle, 2) * np.linalg.norm(right, 2))
    s: Any = scipy.linalg.svdvals(exact)
    lost, norm = exact - B @ A, float(np.linalg.norm(s))
    for told, found, dense_svd in (
        (cut.error_spectral, np.linalg.norm(lost, 2), s[cut.rank : cut.rank + 1].sum()),
        (cut.error_frobenius, np.linalg.norm(lost), np.linalg.norm(s[cut.rank :])),
    ):
        np.testing.assert_allclose([told, float(found)], float(dense_svd), rtol=1e-9, atol=1e-11 * reach)
    if cut.rank:
        np.testing.assert_allclose(cut.error_relative, np.linalg.norm(s[cut.rank :]) / norm, atol=1e-9 * reach / norm)
        np.testing.assert_allclose(cut.energy_kept, np.sum(s[: cut.rank] ** 2) / norm**2, atol=1e-9 * reach / norm)
    else:
        assert (cut.energy_kept, cut.error_relative) == (1.0, 0.0)  # ΔW = 0 is kept whole


def test_energy_and_threshold_choose_the_rank() -> None:
    update = lora(np.eye(8)[:, :4] * [4.0, 2.0, 1.0, 0.5], np.eye(4, 6))
    assert [truncated(update, energy=e)[2].rank for e in (0.7, 0.9, 0.95, 0.99, 1.0)] == [1, 2, 3, 4, 4]
    assert [truncated(update, threshold=t)[2].rank for t in (0.0, 0.5, 1.0, 5.0)] == [4, 3, 2, 0]
    B, A, cut = truncated(update, threshold=5.0)
    assert (B.shape, A.shape, np.abs(B @ A).max()) == ((8, 1), (1, 6), 0.0)
    assert (cut.energy_kept, cut.error_relative, cut.error_spectral) == (0.0, 1.0, 4.0)
    assert truncated(dense(np.diag([3.0, 2.0, 1.0])), rank=2)[2].error_spectral == pytest.approx(1.0)
    wrong: Any
    for wrong in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.1}, {"threshold": -1}, {"rank": 1, "energy": 0.5}):
        with pytest.raises(ValueError, match="expected"):
            truncated(update, **wrong)


def test_the_rank_is_no_larger_than_needed() -> None:
    rng = np.random.default_rng(0)
    B, A = rng.integers(-3, 4, (12, 2)), rng.integers(-3, 4, (2, 16))
    for sigma in (np.ones((4, 4, 2)), rng.integers(-3, 4, (4, 4, 2)), np.eye(4)[:, :, None].repeat(2, axis=2)):
        update = bora(B, A, sigma, activation="identity")
        assert truncated(update)[2].rank == exact_rank(np.rint(update.to_dense()))


@pytest.mark.parametrize("wish", [{}, {"rank": 3}, {"energy": 0.8}, {"threshold": 0.9}, {"rank": 3, "pad": True}])
@pytest.mark.parametrize(("model", "method"), [("llama", "bora"), ("gpt2", "melora"), ("bert", "bora-no-exp")])
def test_peft_merges_it_within_the_bound(model: str, method: str, wish: dict[str, Any], tmp_path: Path) -> None:
    """Written, loaded and merged by PEFT: (merged − base) differs from the original's by what the report says."""
    adapter = adapted(model, METHODS[method](lora_alpha=5))
    adapter.save_pretrained(tmp_path / "before")
    done = convert(tmp_path / "before", tmp_path / "after", **wish)
    exact = {key: layer.get_delta_weight("default").detach().double() for key, layer in layers(adapter).items()}
    plain = {name: value.detach() for name, value in base(model).named_parameters()}
    with_lora = load(base(model), tmp_path / "after")
    ranks = {key: with_lora.base_model.model.get_submodule(key).r["default"] for key in exact}
    merged = {name: value.detach() for name, value in with_lora.merge_and_unload().named_parameters()}
    assert set(done.cuts) == set(exact)
    for key, cut in done.cuts.items():
        lost = exact[key] - (merged[f"{key}.weight"].double() - plain[f"{key}.weight"].double())
        reach = float(torch.linalg.matrix_norm(exact[key], 2) + torch.linalg.matrix_norm(plain[f"{key}.weight"], 2))
        rounding = 1e-5 * reach
        assert float(torch.linalg.matrix_norm(lost, 2)) == pytest.approx(cut.error_spectral, abs=rounding)
        assert float(torch.linalg.norm(lost)) == pytest.approx(cut.error_frobenius, abs=4 * rounding)
        expected = torch.linalg.svdvals(exact[key])
        assert cut.error_frobenius == pytest.approx(float(torch.linalg.norm(expected[cut.rank :])), abs=rounding)
        assert ranks[key] == max(max(1, cut.rank), *(c.rank if "pad" in wish else 1 for c in done.cuts.values()))
    assert any(cut.error_relative > 0.01 for cut in done.cuts.values()) == bool(wish)


def test_one_rank_and_one_alpha_for_servers_that_know_no_patterns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"a": 5, "b": 2, "c": 2}
    made = {name: lora(rng.standard_normal((8, r)), rng.standard_normal((r, 6))) for name, r in sizes.items()}
    adapter = Adapter.from_updates("mixed", made)
    for pad, ranks in ((False, sizes), (True, dict.fromkeys(sizes, 5))):
        folder = convert(adapter, tmp_path / str(pad), pad=pad).folder
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == 5  # the largest: a server allots by it, and scales by α/r = 1
        assert config["rank_pattern"] == config["alpha_pattern"] == {f"^{k}": r for k, r in ranks.items() if r != 5}
        read = one(folder)
        for name, update in made.items():
            assert (read[name].facts.r, read[name].facts.scaling) == (ranks[name], 1.0)
            np.testing.assert_allclose(read[name].to_dense(), update.to_dense(), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("LoHa", {"r": 2, "alpha": 3}, False),
        ("LoHa", {"r": 2, "alpha": 3, "use_effective_conv2d": True}, True),
        ("LoKr", {"r": 1, "alpha": 3}, False),
        ("LoKr", {"r": 9, "alpha": 3}, True),
        ("LoKr", {"r": 2, "alpha": 3, "use_effective_conv2d": True}, True),
    ],
)
def test_convolutions_of_other_methods(kind: str, options: dict[str, Any], told: bool, tmp_path: Path) -> None:
    """PEFT loads them, the kernel known from the tensors or else from the base model."""
    model, plain = (models.module(conv=torch.nn.Conv2d(12, 24, (3, 2))) for _ in range(2))
    plain.load_state_dict(model.state_dict())
    save_file({"conv.weight": model.conv.weight.detach().clone()}, tmp_path / "base.safetensors")
    config = getattr(peft, f"{kind}Config")(target_modules=["conv"], init_weights=False, **options)
    exact = models.saved(model, config, tmp_path / "before")["conv.weight"]
    adapter = read_adapter(tmp_path / "before", base=None if told else tmp_path / "base.safetensors")
    assert isinstance(adapter, Adapter)
    assert (adapter["conv"].facts.kind, adapter["conv"].facts.kernel) == ("conv", (3, 2))
    convert(adapter, tmp_path / "after", energy=1.0)
    before = plain.conv.weight.detach().double().numpy().copy()
    with models.warnings.catch_warnings():
        models.warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(plain, tmp_path / "after").merge_and_unload()
    assert models.distance(merged.conv.weight.detach().double().numpy() - before, exact) < 1e-5


@pytest.mark.parametrize("rank", [None, 2])
def test_embeddings_convolutions_and_conv1d(rank: int | None, tmp_path: Path) -> None:
    from transformers.pytorch_utils import Conv1D

    def layers_of_every_kind() -> Any:
        conv, one = torch.nn.Conv2d(3, 6, (3, 2)), torch.nn.Conv1d(4, 6, 3)
        return models.module(emb=torch.nn.Embedding(12, 8), conv=conv, one=one, old=Conv1D(6, 8))

    model, plain = layers_of_every_kind(), layers_of_every_kind()
    plain.load_state_dict(model.state_dict())
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["emb", "conv", "one", "old"], fan_in_fan_out=True)
    exact = models.saved(model, config, tmp_path / "before")
    done = convert(tmp_path / "before", tmp_path / "after", rank=rank)
    before = {name: value.detach().double().numpy().copy() for name, value in plain.named_parameters()}
    with models.warnings.catch_warnings():
        models.warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(plain, tmp_path / "after").merge_and_unload()
    after = {name: value.detach().double().numpy() for name, value in merged.named_parameters()}
    assert {name.removesuffix(".weight") for name in exact if np.abs(exact[name]).max() > 0} == set(done.cuts)
    for name, cut in done.cuts.items():
        lost = exact[f"{name}.weight"] - (after[f"{name}.weight"] - before[f"{name}.weight"])
        assert np.linalg.norm(lost) == pytest.approx(cut.error_frobenius, abs=1e-4)
        assert cut.rank == (rank or 4)
        assert (cut.error_relative > 0.01) == (rank == 2)


def test_heads_and_embeddings_go_along_from_either_format(tmp_path: Path) -> None:
    config = METHODS["bora"](modules_to_save=["head"], target_modules=["first"])
    adapter = adapted("plain", config)
    with torch.no_grad():
        adapter.base_model.model.head.modules_to_save["default"].weight += 1
    adapter.save_pretrained(tmp_path / "safe")
    tensors = load_file(tmp_path / "safe" / "adapter_model.safetensors")
    tensors |= {"wide": torch.ones(3, dtype=torch.float64), "odd": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "safe" / "adapter_model.safetensors")
    (tmp_path / "bin").mkdir()
    torch.save(tensors, tmp_path / "bin" / "adapter_model.bin")
    (tmp_path / "bin" / "adapter_config.json").write_text((tmp_path / "safe" / "adapter_config.json").read_text())
    for name in ("safe", "bin"):
        assert convert(tmp_path / name, tmp_path / f"{name}-lora", dtype="float16").left_behind == ()
        written = load_file(tmp_path / f"{name}-lora" / "adapter_model.safetensors")
        for key in ("base_model.model.head.weight", "base_model.model.head.bias", "wide", "odd"):
            assert written[key].dtype == tensors[key].dtype
            assert torch.equal(written[key], tensors[key])
        assert written["base_model.model.first.lora_A.weight"].dtype == torch.float16
    (tmp_path / "safe-lora" / "adapter_model.safetensors").unlink()
    save_file({k: v for k, v in written.items() if k not in ("wide", "odd")}, tmp_path / "safe-lora" / "x.safetensors")
    (tmp_path / "safe-lora" / "x.safetensors").rename(tmp_path / "safe-lora" / "adapter_model.safetensors")
    lora_model = load(base("plain"), tmp_path / "safe-lora")
    weight = lora_model.base_model.model.head.modules_to_save["default"].weight
    assert torch.equal(weight, adapter.base_model.model.head.modules_to_save["default"].weight)


def test_what_another_layout_holds_beside_is_left_behind_and_listed(tmp_path: Path) -> None:
    """PEFT would not find a tensor under kohya's name, and would not say so."""
    torch.manual_seed(0)
    beside = {"lora_unet_n.w_norm": torch.ones(6), "lora_unet_n.diff": torch.ones(6), "x.diff": torch.ones(())}
    factors = {"lora_unet_q.lora_down.weight": torch.randn(2, 8), "lora_unet_q.lora_up.weight": torch.randn(6, 2)}
    save_file(factors | beside | {"lora_unet_q.alpha": torch.tensor(1.0)}, tmp_path / "kohya.safetensors")
    done = convert(tmp_path / "kohya.safetensors", tmp_path / "lora")
    assert set(done.left_behind) == set(beside)
    assert list(done.cuts) == ["lora_unet_q"]
    assert set(load_file(tmp_path / "lora" / "adapter_model.safetensors")) == {
        f"base_model.model.q.lora_{side}.weight" for side in "AB"
    }
    dense_update = factors["lora_unet_q.lora_up.weight"] @ factors["lora_unet_q.lora_down.weight"] / 2
    np.testing.assert_allclose(one(tmp_path / "lora")["q"].to_dense(), dense_update, atol=1e-6)
    result = CliRunner().invoke(main, ["convert", str(tmp_path / "kohya.safetensors"), "-o", str(tmp_path / "again")])
    assert result.exit_code == 0, result.stderr
    assert "3 tensors beside ΔW are left out (lora_unet_" in result.stderr


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("base_model.model.l.lora_B.bias", {}),
        ("base_model.model.l.lora_B.bias", {"lora_bias": True}),
        ("base_model.model.l.base_layer.bias", {"bias": "lora_only"}),
        ("base_model.model.other.bias", {"bias": "all"}),
        ("l.diff_b", None),
    ],
)
def test_trained_biases_are_refused_by_their_key(key: str, told: dict[str, Any] | None, tmp_path: Path) -> None:
    factors = {"l": {"B": np.ones((4, 1)), "A": np.ones((1, 4))}}
    folder = write_adapter(tmp_path / "a", "lora", factors, alpha=1, extra_config=told)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file) | {key: torch.ones(4)}
    if told is None:
        tensors = {name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): x for name, x in tensors.items()}
    save_file(tensors, file)
    for words in (["convert", str(folder)], ["merge", str(folder), str(folder)]):
        result = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "out")])
        assert (result.exit_code, result.stdout) == (1, "")
        assert f"{key} is a trained bias" in result.stderr
        assert ("--layout same" in result.stderr) == (words[0] == "convert")  # a sum has no file to keep them from
    with pytest.raises(AdapterError, match="is a trained bias"):
        convert(merge([folder, folder]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.base_model.model.head.weight",
        "_orig_mod.module.base_model.model.head.weight",
        "base_model.model._orig_mod.head.weight",
        "base_model.model.base_model.model.head.weight",
        "base_model.model._fsdp_wrapped_module.head.weight",
        "base_model.model.head.modules_to_save.weight",
        "module.base_model.model.head.modules_to_save.default.weight",
    ],
)
def test_a_head_goes_along_under_pefts_name_whatever_wraps_it(wrapped: str, tmp_path: Path) -> None:
    factors = {"l": {"B": np.ones((4, 1)), "A": np.ones((1, 4))}}
    folder = write_adapter(tmp_path / "a", "lora", factors, alpha=1)
    file = folder / "adapter_model.safetensors"
    front = wrapped.partition("head")[0]
    tensors = {key.replace("base_model.model.", front): value for key, value in load_file(file).items()}
    save_file(tensors | {wrapped: torch.arange(3.0)}, file)
    assert convert(folder, tmp_path / "out").left_behind == ()
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert torch.equal(written["base_model.model.head.weight"], torch.arange(3.0))
    save_file(tensors | {wrapped: torch.arange(3.0), "base_model.model.head.weight": torch.ones(3)}, file)
    with pytest.raises(AdapterError, match="two tensors for one name of PEFT's"):
        convert(folder, tmp_path / "twice")


def test_cards_show_the_base_model(tmp_path: Path) -> None:
    factors = {"l": {"B": np.eye(4)[:, :1], "A": np.eye(1, 4)}}
    folder = write_adapter(tmp_path / "a", "lora", factors, alpha=1, base_model="org/<base>")
    for shown in (convert(folder, tmp_path / "b"), recommend(folder), recommend(read_adapter(folder))):
        assert "base model: org/&lt;base&gt;" in shown._repr_html_()


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    def refused(adapter: Any, part: str, **wish: Any) -> None:
        with pytest.raises(AdapterError, match=part):
            convert(adapter, tmp_path / "out", **wish)
        assert not (tmp_path / "out" / "adapter_config.json").exists()
        assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True

    full = Adapter.from_updates("dora-7b", {"q": dense(np.eye(4), method="dora")})
    refused(full, "q: the update of dora has full rank; choose a rank")
    assert convert(full, tmp_path / "cut", rank=2).cuts["q"].error_spectral == 1.0
    model = models.module(conv=torch.nn.Conv2d(4, 8, 3, groups=2))
    models.adapted(model, LoraConfig(r=4, target_modules=["conv"])).save_pretrained(tmp_path / "grouped")
    refused(tmp_path / "grouped", "conv is a grouped convolution.*kohya", layout="kohya")
    refused(tmp_path / "grouped", "conv: ΔW is of a grouped convolution", cap_sigma=1.0)
    refused(tmp_path / "grouped", "conv: ΔW is of a convolution in 2 groups", rank=1)
    model = models.tiny_mixtral()
    config = LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.gate_up_proj"])
    models.adapted(model, config).save_pretrained(tmp_path / "experts")
    refused(tmp_path / "experts", "an expert's parameter.*diffusers", layout="diffusers")
    refused(tmp_path / "experts", r"has the experts \[1\]", modules=r"proj\.1$")
    model = models.module(attn=torch.nn.MultiheadAttention(8, 2))
    models.adapted(model, LoraConfig(r=2, target_modules=["attn"])).save_pretrained(tmp_path / "attention")
    refused(tmp_path / "attention", "a part of nn.MultiheadAttention.*mlx", layout="mlx")
    refused(tmp_path / "attention", "attn.out_proj is a part of attn", modules="out_proj")
    model = models.module(l=torch.nn.Linear(8, 8))
    models.save_and_merge(
        models.adapted(model, LoraConfig(r=2, target_modules=["l"], lora_bias=True)), tmp_path / "bias"
    )
    refused(tmp_path / "bias", "l.lora_B.bias is a trained bias")
    half = Adapter.from_updates("large", {"q": lora(np.full((4, 1), 1e6), np.full((1, 4), 1e6))})
    refused(half, "beyond the range of float16", dtype="float16")


def test_it_never_overwrites_its_source(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", "lora", {"l": {"B": np.ones((4, 1)), "A": np.ones((1, 4))}}, alpha=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "link").symlink_to(folder)
    for target in (folder, tmp_path / "b" / ".." / "a", tmp_path / "link"):
        with pytest.raises(AdapterError, match="is the folder of a itself"):
            convert(folder, target)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_settings_of_the_base_model_are_taken_over_and_must_agree(tmp_path: Path) -> None:
    factors = {"l": {"B": np.ones((4, 1)), "A": np.ones((1, 4))}}
    told = {"task_type": "CAUSAL_LM", "fan_in_fan_out": True}
    write_adapter(tmp_path / "a", "lora", factors, alpha=1, base_model="org/one", extra_config=told)
    write_adapter(tmp_path / "b", "lora", factors, alpha=1, base_model="org/two")
    write_adapter(tmp_path / "c", "lora", factors, alpha=1)
    convert(tmp_path / "a", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {key: config[key] for key in told} == told
    assert config["base_model_name_or_path"] == "org/one"
    a, b, c = (one(tmp_path / name) for name in "abc")
    assert shared_settings([a, c]) == {"base_model_name_or_path": "org/one", **told}
    with pytest.raises(AdapterError, match="'org/two', another adapter has 'org/one'"):
        shared_settings([a, b])


def test_melora_stays_a_direct_sum_of_few_numbers() -> None:
    """The truncated SVD of minis takes the largest σ wherever they are."""
    update = melora([np.eye(3)[:, :1] * 5, np.eye(3)[:, :1]], [np.eye(1, 2), np.eye(1, 2)])
    B, A, cut = truncated(update, rank=1)
    assert cut.error_spectral == pytest.approx(1.0)
    np.testing.assert_allclose(B @ A, np.diag([5.0, 0, 0, 0, 0, 0])[:, :4], atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("wish", [{}, {"rank": 3}, {"rank": 64}])
def test_the_error_is_that_of_the_file_as_written(dtype: str, wish: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    B, A, sigma = rng.standard_normal((24, 4)), rng.standard_normal((4, 36)), rng.standard_normal((4, 4, 4))
    made: dict[str, Any] = {
        "bora": bora(B / 9, A, sigma),
        "lora": lora(B, A),
        "melora": melora([B, B], [A, 2 * A]),
        "zero": lora(0 * B, A),
        "large": lora(30 * B, 30 * A),
        "thin": lora(B[:1, :1], A[:1]),
    }
    if wish:
        made["dense"] = dense(B @ A + rng.standard_normal((24, 36)))
    done = convert(Adapter.from_updates("a", made), tmp_path / "out", dtype=dtype, **wish)
    written = one(tmp_path / "out")
    expected = {"float64": (0, 1e-15), "float32": (1e-9, 6e-8), "float16": (1e-5, 5e-4), "bfloat16": (1e-4, 4e-3)}
    for module, cut in done.cuts.items():
        exact = made[module].to_dense()
        lost, size = exact - written[module].to_dense(), float(np.linalg.norm(exact))
        assert cut.error_frobenius == pytest.approx(np.linalg.norm(lost), rel=1e-7, abs=1e-13 * size)
        assert cut.error_spectral == pytest.approx(np.linalg.norm(lost, 2), rel=1e-7, abs=1e-13 * size)
        assert cut.error_relative == pytest.approx(np.linalg.norm(lost) / max(size, 1e-300), rel=1e-7, abs=1e-13)
        if size and not wish:
            low, high = expected[dtype]
            assert low <= cut.error_relative <= high


def test_numbers_out_of_the_range_of_a_dtype_are_refused_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((24, 4)), rng.standard_normal((4, 36))
    for dtype, size, part in (
        ("float16", 1e-12, r"small: q: B holds values below the range of float16 \(the largest is .*bfloat16"),
        ("float32", 1e-90, "q: B holds values below the range of float32"),
        ("bfloat16", 1e90, "q: B holds values beyond the range of bfloat16"),
        ("float16", 1e12, "q: B holds values beyond the range of float16"),
    ):
        adapter = Adapter.from_updates("small", {"q": lora(size * B, A)})
        with pytest.raises(AdapterError, match=part):
            convert(adapter, tmp_path / "out", dtype=dtype)
        assert not list((tmp_path / "out").glob("*"))
        assert convert(adapter, tmp_path / dtype / str(size), dtype="float64").cuts["q"].error_relative < 1e-14
    scattered = lora(B * np.geomspace(1, 1e-7, 24)[:, None], A)  # a few entries underflow: the error says how much
    cut = convert(Adapter.from_updates("a", {"q": scattered}), tmp_path / "scattered", dtype="float16").cuts["q"]
    assert 1e-5 < cut.error_relative < 1e-3


def test_an_adapter_is_not_replaced_without_force(tmp_path: Path) -> None:
    factors = {"l": {"B": np.ones((4, 1)), "A": np.ones((1, 4))}}
    source = write_adapter(tmp_path / "a", "lora", factors, alpha=1)
    for held in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        folder = tmp_path / held
        folder.mkdir()
        (folder / "notes.txt").touch()
        (folder / held).write_text("mine")
        for words in (["convert", str(source)], ["merge", str(source), f"{source}@2"]):
            told = CliRunner().invoke(main, [*words, "-o", str(folder)])
            assert (told.exit_code, told.stdout) == (1, "")
            assert f"holds {held}; give another folder, or replace it (--force" in told.stderr
            assert (folder / held).read_text() == "mine"
        assert CliRunner().invoke(main, ["convert", str(source), "-o", str(folder), "--force"]).exit_code == 0
        assert list(one(folder)) == ["l"]


def test_an_empty_head_is_refused(tmp_path: Path) -> None:
    """Sharded weights that were not gathered have shape [0]; PEFT would fail on them."""
    folder = write_adapter(tmp_path / "a", "lora", {"l": {"B": np.ones((4, 1)), "A": np.ones((1, 4))}}, alpha=1)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.head.weight"] = torch.zeros(0)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors: base_model.model.head.weight has shape \[0\]"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out/adapter_config.json").exists()
