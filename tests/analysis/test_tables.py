"""The two frames: frozen columns, names, order, and numbers equal to those of the engine and of dense ΔW."""

from __future__ import annotations

import dataclasses
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.linalg

from bora_analysis import (
    Adapter,
    AdapterError,
    Trajectory,
    analyse,
    dense,
    layer_metrics,
    read_adapter,
    spectra,
    summary,
    synthetic_adapter,
)
from bora_analysis.analysis.summary import equal_budgets
from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS, join, recounted
from bora_analysis.bundled import bundled_adapters
from bora_analysis.catalogue.architectures import architecture, chosen
from bora_analysis.catalogue.module_names import layer, projection
from bora_analysis.methods.adalora import _pruned

SHAPES = {
    f"model.layers.{i}.self_attn.{name}": size
    for i in range(11)
    for name, size in {"q_proj": (24, 16), "v_proj": (8, 16)}.items()
}


@pytest.fixture(scope="module")
def adapters():
    return [
        synthetic_adapter("lora", SHAPES, r=2, seed=1, scale=0.01),
        synthetic_adapter("melora", SHAPES, r=2, blocks=4, seed=1, scale=0.01),
        synthetic_adapter("bora", SHAPES, r=2, blocks=4, seed=1, scale=0.01, kind="decay"),
    ]


@pytest.fixture(scope="module")
def tables(adapters):
    return analyse(adapters)


@pytest.mark.parametrize("method", ["lora", "melora", "bora", "loha", "vera"])
@pytest.mark.parametrize("step", [None, 0, 400])
def test_an_adapter_that_learned_nothing_is_told(method, step):
    """Only the first checkpoint of a run begins with ΔW = 0."""
    adapter = dataclasses.replace(synthetic_adapter(method, {"layers.0.q_proj": (8, 6)}, 2, kind="init"), step=step)
    told = [line for line in analyse(adapter).provenance if "ΔW = 0 in every module: nothing was trained" in line]
    assert len(told) == (step != 0)


def test_columns_are_frozen(tables):
    """The product's interface: a change here breaks other people's scripts."""
    assert tuple(tables.spectra.columns) == SPECTRA_COLUMNS == (
        "adapter", "method", "step", "module", "layer", "projection", "index", "singular_value",
    )  # fmt: skip
    assert tuple(tables.layer_metrics.columns) == LAYER_COLUMNS == (
        "adapter", "method", "step", "module", "layer", "projection",
        "out_features", "in_features", "r", "blocks", "scaling", "parameters", "macs_per_token", "threshold",
        "effective_rank", "energy", "frobenius_norm", "spectral_norm", "nuclear_norm",
        "stable_rank", "entropy_rank", "participation_ratio", "numerical_rank", "rank_above_rounding",
        "energy_rank_90", "energy_rank_95", "energy_rank_99", "condition", "top_share", "rank_bound",
        "rank_utilisation", "support_rows", "support_columns", "noise_floor", "activation",
    )  # fmt: skip


def test_types(tables):
    for frame in (tables.spectra, tables.layer_metrics):
        for name in ("adapter", "method", "module", "projection"):
            assert isinstance(frame[name].dtype, pd.StringDtype), name
        assert frame["step"].dtype == frame["layer"].dtype == "Int64"
    assert tables.spectra["index"].dtype == "int64"
    assert tables.spectra["singular_value"].dtype == "float64"
    whole = ["r", "blocks", "parameters", "rank_bound", "effective_rank", "numerical_rank", "energy_rank_90"]
    assert all(tables.layer_metrics[name].dtype == "int64" for name in whole)


def test_numbers_equal_the_dense_ones(adapters, tables):
    for adapter in adapters:
        own = tables.spectra.query("adapter == @adapter.name")
        for module, update in adapter.items():
            dense = np.asarray(scipy.linalg.svdvals(update.to_dense()))
            rows = own[own["module"] == module]
            found = rows["singular_value"].to_numpy()
            assert rows["index"].tolist() == list(range(1, len(found) + 1))
            np.testing.assert_allclose(found, dense[: len(found)], atol=1e-12)
            metrics = tables.layer_metrics.query("adapter == @adapter.name")
            row = metrics[metrics["module"] == module].iloc[0]
            assert row["rank_bound"] == len(found) == update.facts.rank_bound
            assert row["effective_rank"] == (dense > 0.005).sum()
            assert row["energy"] == pytest.approx((update.to_dense() ** 2).sum())
            assert (row["out_features"], row["in_features"]) == update.to_dense().shape
            assert row["parameters"] == update.facts.parameters


def test_rows_keep_the_order_of_adapters_and_layers(adapters, tables):
    assert list(tables.layer_metrics["adapter"].unique()) == [adapter.name for adapter in adapters]
    layers = tables.layer_metrics.loc[tables.layer_metrics["adapter"] == adapters[0].name, "layer"]
    assert layers.tolist() == sorted(layers)


def test_threshold_and_modules(adapters):
    some = layer_metrics(adapters[0], threshold=1e-9, modules=r"layers\.1\..*q_proj")
    assert some["module"].tolist() == ["model.layers.1.self_attn.q_proj"]
    assert some["threshold"].tolist() == [1e-9]
    assert some["effective_rank"].tolist() == [2]
    with pytest.raises(AdapterError, match=r"k_proj.*22 modules.*q, v"):
        layer_metrics(adapters[0], modules="k_proj")
    with pytest.raises(ValueError, match="regular expression"):
        layer_metrics(adapters[0], modules="(")
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            layer_metrics(adapters[0], threshold=bad)


def test_a_trajectory_gives_rows_per_step(adapters):
    steps = tuple(dataclasses.replace(adapters[0], name="run", step=step) for step in (10, 200))
    frame = layer_metrics(Trajectory("run", steps))
    assert frame["step"].unique().tolist() == [10, 200]
    both = join([analyse(steps[0]), analyse(adapters[1])])
    assert both.layer_metrics["step"].isna().sum() == len(adapters[1])
    assert both.layer_metrics.dtypes.equals(frame.dtypes)


def test_nothing_gives_empty_frames_with_the_columns():
    empty = analyse(Adapter.from_updates("empty", {}))
    assert tuple(empty.spectra.columns) == SPECTRA_COLUMNS
    assert tuple(empty.layer_metrics.columns) == LAYER_COLUMNS
    assert len(empty.spectra) == len(empty.layer_metrics) == 0


def test_both_functions_are_views_of_one_analysis(adapters, tables):
    pd.testing.assert_frame_equal(spectra(adapters), tables.spectra)
    pd.testing.assert_frame_equal(layer_metrics(adapters), tables.layer_metrics)


def test_provenance_says_how(tables):
    assert tables.provenance[0] == (
        "lora-r2: 22 modules, factors stored in float32, singular values in float64 by svd on cpu"
    )


def test_progress_is_told_of_every_module(adapters):
    calls = []
    analyse(adapters, on_module=lambda: calls.append(1))
    assert len(calls) == 66


@pytest.fixture(scope="module")
def every(adapters):
    """Adapters, a run, the bundled ones, and AdaLoRA's with modules that were pruned to nothing."""
    steps = tuple(dataclasses.replace(adapters[0], name="run", step=step) for step in (10, 200))
    pruned = {
        name: partial(_pruned, 24, 16, 1.0, "float32") if at in (0, 4, 5, 21) else load
        for at, (name, load) in enumerate(adapters[1].loaders.items())
    }
    cut = Adapter("cut", "adalora", None, None, pruned)
    synthetic = [folder for folder in bundled_adapters() if folder.name.startswith("synthetic-")]
    return [cut, *adapters, Trajectory("run", steps), *map(read_adapter, synthetic)]


class TestRecounted:
    """Counting anew from the spectra equals analysing anew."""

    @pytest.mark.parametrize("threshold", [0.0, 1e-6, 0.005, 0.3, 5.0, 100.0, "1%", "0.1 at norm 1"])
    def test_equals_analysing_anew(self, every, threshold):
        tables = analyse(every)
        found = recounted(tables, threshold)
        pd.testing.assert_frame_equal(found, analyse(every, threshold=threshold).layer_metrics)
        none = found[found["rank_bound"] == 0]
        assert len(none) == 4
        assert not none[["effective_rank", "rank_utilisation"]].to_numpy().any()

    def test_only_pruned_modules_and_none(self):
        nothing = Adapter("cut", "adalora", None, None, {"q": partial(_pruned, 4, 3, 1.0, "float32")})
        for adapters in ([nothing], [Adapter.from_updates("empty", {})]):
            found = recounted(analyse(adapters), 1.0)
            pd.testing.assert_frame_equal(found, analyse(adapters, threshold=1.0).layer_metrics)

    def test_what_a_quick_analysis_counted_is_missing_at_another_threshold(self, adapters):
        rng = np.random.default_rng(0)
        whole = Adapter.from_updates("whole", {"q_proj": dense(rng.standard_normal((256, 260)))})
        tables = analyse([adapters[0], whole, adapters[1]], threshold=1.5, quick=True)
        both = ["effective_rank", "rank_utilisation"]
        before = tables.layer_metrics[tables.layer_metrics["adapter"] == "whole"]
        assert before["nuclear_norm"].isna().all()
        assert before[both].notna().all(axis=None)
        pd.testing.assert_frame_equal(recounted(tables, 1.5), tables.layer_metrics)
        found = recounted(tables, 0.005)
        assert found.loc[found["adapter"] == "whole", both].isna().all(axis=None)
        rest = found[found["adapter"] != "whole"].reset_index(drop=True)
        expected = analyse(adapters[:2], threshold=0.005).layer_metrics
        pd.testing.assert_frame_equal(rest, expected, check_dtype=False)
        mixed = join([tables, analyse(adapters[2], threshold=0.005)])  # counted with the threshold that is asked for
        again = recounted(mixed, 1.5)
        assert again[again["adapter"] == "whole"][both].equals(before[both].astype(float))

    def test_a_threshold_that_is_none(self, tables):
        with pytest.raises(ValueError, match="threshold is -1"):
            recounted(tables, -1.0)

    def test_a_large_adapter_takes_milliseconds(self):
        """224 modules of 128 values, as a click in the dashboard asks for: about 2 ms."""
        modules = {f"layers.{k}.q_proj": (160, 128) for k in range(224)}
        tables = analyse(synthetic_adapter("lora", modules, r=128))
        assert len(tables.spectra) == 224 * 128
        start = time.process_time()
        recounted(tables, 0.5)
        assert time.process_time() - start < 0.1


class TestSummary:
    def test_rows_add_up_to_the_adapter(self, tables):
        frame = summary(tables.layer_metrics)
        for name, part in frame.groupby("adapter"):
            whole, rest = part[part["projection"] == "all"].iloc[0], part[part["projection"] != "all"]
            for column in ("modules", "parameters", "macs_per_token"):
                assert whole[column] == rest[column].sum(), (name, column)
            assert whole["energy"] == pytest.approx(rest["energy"].sum())
        assert frame["projection"].tolist() == ["all", "q", "v"] * 3

    def test_ranks_are_means(self, tables):
        frame = summary(tables.layer_metrics).query("adapter == 'lora-r2' and projection == 'v'").iloc[0]
        modules = tables.layer_metrics.query("adapter == 'lora-r2' and projection == 'v'")
        for column in ("effective_rank", "entropy_rank", "stable_rank", "rank_utilisation"):
            assert frame[column] == pytest.approx(modules[column].mean())

    def test_equal_budgets_are_marked(self, tables):
        marks = summary(tables.layer_metrics).drop_duplicates("adapter").set_index("adapter")["equal_budget"]
        assert marks["lora-r2"] == marks["melora-r2-b4"] == "a"
        assert marks["bora-r2-b4"] == ""  # b² r is a third of (m + n) r at these sizes

    def test_groups_do_not_chain(self):
        """100 ~ 104 ~ 108, but 100 and 108 are more than 5 % apart."""
        assert equal_budgets({"x": 100, "y": 104, "z": 108, "w": 110}) == {"x": "a", "y": "a", "z": "b", "w": "b"}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.0.self_attn.q_proj", "q"),
        ("roberta.encoder.layer.3.attention.self.query", "q"),
        ("distilbert.transformer.layer.2.attention.k_lin", "k"),
        ("roberta.encoder.layer.3.attention.output.dense", "o"),
        ("roberta.encoder.layer.3.intermediate.dense", "up"),
        ("roberta.encoder.layer.3.output.dense", "down"),
        ("roberta.pooler.dense", "dense"),
        ("transformer.h.0.attn.c_attn", "qkv"),
        ("transformer.h.0.attn.c_proj", "o"),
        ("transformer.h.0.mlp.c_fc", "up"),
        ("transformer.h.0.mlp.c_proj", "down"),
        ("gpt_neox.layers.0.attention.query_key_value", "qkv"),
        ("gpt_neox.layers.0.attention.dense", "o"),
        ("gpt_neox.layers.0.mlp.dense_4h_to_h", "down"),
        ("model.decoder.layers.0.self_attn.out_proj", "o"),
        ("model.decoder.layers.0.fc1", "up"),
        ("encoder.block.0.layer.0.SelfAttention.o", "o"),
        ("encoder.block.0.layer.1.DenseReluDense.wo", "down"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0", "gate"),
        ("model.layers.0.mlp.gate_proj", "gate"),
        ("model.layers.0.mlp.gate", "router"),
        ("model.layers.0.mlp.experts.gate_up_proj.3", "gate_up_proj"),
        ("model.layers.0.block_sparse_moe.experts.5.w2", "down"),
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0", "o"),
        ("blocks.0.attn.proj", "o"),
        ("patch_embed.proj", "proj"),
        ("model.embed_tokens", "embed_tokens"),
        ("score", "score"),
        ("0", "0"),
    ],
)
def test_projection_is_canonical_across_families(module, expected):
    assert projection(module) == expected


def test_layer_is_the_first_number():
    assert layer("h.10.attn.c_attn") == 10
    assert layer("encoder.block.3.layer.1.DenseReluDense.wo") == 3
    assert layer("lm_head") is None


def test_paper_shapes_give_the_paper_parameters():
    """#Params of tables 1–3 for LoRA r = 8 and BoRA r = 8, b = 16, to the digits printed."""
    printed = {
        ("roberta-base", "qv"): ("0.29", "0.34"),
        ("roberta-large", "qv"): ("0.79", "0.88"),
        ("gemma-7b", "qkv"): ("4.82", "4.99"),
        ("llama-3-8b", "qkv"): ("4.72", "4.92"),
        ("qwen2.5-14b", "qkv"): ("8.65", "8.95"),
    }
    for (name, target), (lora, bora) in printed.items():
        model = architecture(name)
        shapes = model.modules(chosen(target, model.projections)).values()
        assert f"{sum((m + n) * 8 for m, n in shapes) / 1e6:.2f}" == lora
        assert f"{sum((m + n + 16**2) * 8 for m, n in shapes) / 1e6:.2f}" == bora


def test_unknown_models_and_targets_are_listed():
    with pytest.raises(ValueError, match=r"gpt-9.*llama-3-8b"):
        architecture("gpt-9")
    with pytest.raises(ValueError, match=r"'qg': gate.*Q \(q\)"):
        chosen("qg", architecture("roberta-base").projections)


def test_in_memory_and_lone_modules():
    from bora_analysis import lora

    adapter = Adapter.from_updates("one", {"score": lora(np.ones((3, 1)), np.ones((1, 4)))})
    row = layer_metrics(adapter).iloc[0]
    assert pd.isna(row["layer"])
    assert pd.isna(row["step"])
    assert row["projection"] == "score"
