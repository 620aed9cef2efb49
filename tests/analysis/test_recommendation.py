"""The advice: what it keeps, what it saves, and that PEFT builds the ranks it names."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from peft_cases import METHODS, adapted, base, get_peft_model, layers, randomise

from bora_analysis import Adapter, Tables, analyse, lora, melora, read_adapter, recommend, verdict
from bora_analysis.adapters.synthetic import Synthetic, synthetic_adapter, write_synthetic
from bora_analysis.analysis.recommendation import patterns
from bora_analysis.catalogue.cost import cost
from bora_analysis.catalogue.sizes import common_divisors
from bora_analysis.cli import main
from bora_analysis.peft_methods import BoraConfig

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")


def of_spectra(spectra: dict[str, list[float]], size: int = 64, name: str = "made") -> Tables:
    """An adapter of LoRAs with these singular values."""
    updates = {}
    for module, s in spectra.items():
        updates[module] = lora(np.eye(size)[:, : len(s)] * s, np.eye(len(s), size))
    return analyse(Adapter.from_updates(name, updates))


def test_the_rank_keeps_the_energy_in_every_module_and_no_less_would():
    shapes = {f"layers.{k}.{p}_proj": (48, 32) for k in range(5) for p in "qv"}
    for method, r, b in (("lora", 16, 1), ("bora", 4, 4), ("melora", 4, 4)):
        adapter = synthetic_adapter(method, shapes, r, b, kind="decay", decay=2.0, seed=2)
        for share in (0.9, 0.99):
            found = recommend(analyse(adapter), energy=share)
            rows: Any = found.table.itertuples()
            for row in rows:
                assert row.verdict != "exhausted"
                kept = {}
                for module in (m for m in shapes if m.split(".")[2][0] == row.projection):
                    s = np.linalg.svd(adapter[module].to_dense(), compute_uv=False) ** 2
                    kept[module] = s.cumsum() / s.sum()
                mine = [c for m, c in kept.items() if found.ranks[m] == row.rank]
                assert min(c[row.rank - 1] for c in mine) == pytest.approx(row.kept)
                assert row.kept >= share - 1e-12
                assert min(c[row.rank - 2] for c in mine) < share or row.rank == 1


def test_wasted_fits_exhausted():
    flat, falling, dropping = [1.0] * 8, [1.0, 0.7, 0.5, 0.4, 0.3, 0.2, 0.05, 0.01], [1.0, 0.5, 0.2] + [0.001] * 5
    found = recommend(of_spectra({"l.0.q_proj": dropping, "l.0.k_proj": falling, "l.0.v_proj": flat}))
    table: Any = found.table.set_index("projection")
    assert table["verdict"].to_dict() == {"q": "wasted", "k": "fits", "v": "exhausted"}
    assert table["rank"].to_dict() == {"q": 3, "k": 6, "v": 16}  # 16 = 2R, to try
    assert table["needed"].to_dict() == {"q": 3, "k": 6, "v": 8}
    assert np.isnan(table.loc["v", "kept"])
    assert table.loc["v", "tail"] == 1.0
    assert found.parameters == 3 * 8 * 128
    assert found.advised_parameters == (3 + 6 + 16) * 128 == table["advised_parameters"].sum()
    # A full-rank spectrum cannot be longer.
    small = recommend(of_spectra({"l.0.q_proj": [1.0] * 8}, size=8))
    assert (small.table["verdict"][0], small.table["rank"][0]) == ("fits", 8)


def test_layers_that_differ_much_have_a_rank_of_their_own():
    few, many = [1.0, 0.3, 0.01, 0.01, 0.0, 0, 0, 0], [1.0, 0.9, 0.8, 0.6, 0.4, 0.3, 0.01, 0]
    spectra = {f"m.layers.{k}.q_proj": many if k in (2, 5) else few for k in range(8)}
    found = recommend(of_spectra(spectra))
    assert found.table[["layers", "rank", "modules"]].values.tolist() == [["0-1, 3-4, 6-7", 2, 6], ["2, 5", 6, 2]]
    pattern = {r"layers\.(2|5)\.q_proj": 6}
    assert found.config == {"r": 2, "lora_alpha": 2, "rank_pattern": pattern, "alpha_pattern": pattern}


def test_nothing_is_said_about_nothing():
    fresh = analyse(synthetic_adapter("bora", {"l.q_proj": (8, 8)}, 2, 2, kind="init"))
    with pytest.raises(ValueError, match=r"bora-r2-b2: ΔW = 0 in every module, as before the first step"):
        recommend(fresh)
    found = recommend(of_spectra({"l.0.q_proj": [1.0, 0.1], "l.1.q_proj": [0.0, 0.0]}))
    assert found.unused == ("l.1.q_proj",)
    assert set(found.ranks) == {"l.0.q_proj"}
    with pytest.raises(ValueError, match=r"between 0 and 1"):
        recommend(of_spectra({"q": [1.0]}), energy=1.0)
    with pytest.raises(ValueError, match=r"2 adapters \(a, b\)"):
        recommend(analyse([Adapter.from_updates(x, {"q": lora(np.ones((2, 1)), np.ones((1, 2)))}) for x in "ab"]))


def test_bora_and_melora_are_advised_in_r_and_b():
    shapes = {f"l.{k}.q_proj": (96, 64) for k in range(3)}
    for method in ("bora", "melora"):
        found = recommend(analyse(synthetic_adapter(method, shapes, 4, 8, kind="decay", decay=2.0)))
        row = found.table.iloc[0]
        assert row["blocks"] == 8
        assert row["r"] == -(-row["rank"] // 8)
        assert row["advised_parameters"] == 3 * cost(method, 96, 64, row["r"], blocks=8).parameters
        prices = {
            b: 3 * cost(method, 96, 64, -(-row["rank"] // b), blocks=b).parameters for b in common_divisors([96, 64])
        }
        assert row["best_parameters"] == min(prices.values()) == prices[row["best_blocks"]]
        assert row["best_r"] * row["best_blocks"] >= row["rank"]
        assert found.config["r"] == row["r"]
        assert found.config["num_blocks" if method == "bora" else "num_minis"] == 8


def test_the_last_step_counts():
    updates = [{"q": lora(np.eye(8)[:, :4] * s, np.eye(4, 8))} for s in ([1, 1, 1, 1.0], [1, 0.01, 0, 0.0])]
    run = [Adapter.from_updates("run", each, step=step) for each, step in zip(updates, (10, 20), strict=True)]
    found = recommend(analyse(run))
    assert (found.table["step"][0], found.table["rank"][0]) == (20, 1)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_builds_the_advised_ranks_and_scalings(rslora, tmp_path):
    config = LoraConfig(r=6, lora_alpha=3, use_rslora=rslora, rank_pattern={"v_proj": 5}, alpha_pattern={"v_proj": 7})
    model = adapted("llama", config)
    factors = [value for name, value in model.named_parameters() if "lora_B" in name]
    for k, value in enumerate(factors):  # columns of falling size, at another speed in each module
        value.data *= (0.05 + 0.14 * k) ** torch.arange(value.shape[1])
    model.save_pretrained(tmp_path)
    found = recommend(analyse(read_adapter(tmp_path)))
    assert len(set(found.ranks.values())) > 1
    targets = ["q_proj", "v_proj", "down_proj"]
    built = get_peft_model(base("llama"), LoraConfig(target_modules=targets, **found.config))
    for module, rank in found.ranks.items():
        layer, before = (m.base_model.model.get_submodule(module) for m in (built, model))
        assert layer.r["default"] == rank
        assert layer.scaling["default"] == pytest.approx(before.scaling["default"])
    trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert trained == found.advised_parameters


def test_peft_builds_an_advised_bora(tmp_path):
    model = adapted("llama", METHODS["bora"](lora_alpha=6))
    randomise(model)
    model.save_pretrained(tmp_path)
    found = recommend(analyse(read_adapter(tmp_path)), energy=0.7)
    built = get_peft_model(base("llama"), BoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], **found.config))
    for module, layer in layers(built).items():
        assert layer.r["default"] * layer.num_blocks["default"] >= found.ranks[module]
        assert layer.r["default"] == -(-found.ranks[module] // 4)
        assert layer.scaling["default"] == pytest.approx(3.0)
    assert built.get_nb_trainable_parameters()[0] == found.advised_parameters


def test_melora_of_unequal_minis_has_no_alpha():
    rng = np.random.default_rng(0)
    B, A = [rng.standard_normal((4, 2))] * 2, [rng.standard_normal((2, 4))] * 2
    found = recommend(analyse(Adapter.from_updates("m", {"l.0.q": melora(B, A, scaling=[1.0, 2.0])})))
    assert "lora_alpha" not in found.config


NAMES = st.lists(
    st.sampled_from(["q_proj", "v", "0", "1", "12", "layers", "h", "self_attn", "q", "a+b", "x[0]"]),
    min_size=1,
    max_size=5,
).map(".".join)


@given(st.dictionaries(NAMES, st.integers(1, 4), min_size=1, max_size=14))
def test_patterns_say_what_they_should_by_pefts_own_rule(values):
    default, found = patterns(values)
    for module, value in values.items():
        key = get_pattern_key(list(found), module)
        assert found.get(key, default) == value, (module, found)
    assert default in Counter(values.values())


def test_patterns_are_short():
    values = {f"model.layers.{k}.self_attn.{p}_proj": 4 if p == "q" else 2 for k in range(32) for p in "qkv"}
    values["model.layers.7.self_attn.q_proj"] = values["model.layers.30.self_attn.q_proj"] = 9
    assert patterns(values) == (2, {r"layers\.(7|30)\.self_attn\.q_proj": 9, "q_proj": 4})
    two = {f"encoder.h.{k}.attention.output.dense": 3 for k in range(4)} | {
        f"encoder.h.{k}.output.dense": 5 for k in range(6)
    }
    default, found = patterns(two)
    assert (default, found) == (5, {r"attention\.output\.dense": 3})


def test_no_more_is_advised_where_less_is_offered():
    """7 of 8 directions are needed: 7, whatever the last one's size. Only where all are needed may more be."""
    tail = [1.0, 0.9, 0.8, 0.7, 0.5, 0.4, 0.3]
    whole = of_spectra({"l.0.q_proj": [*tail, 0.12]})
    assert recommend(whole).table[["needed", "rank", "verdict"]].values.tolist() == [[7, 7, "fits"]]
    assert "rank fits" in verdict(whole)
    for bound in range(1, 13):
        values = [*tail, 0.12, 0.1, 0.1, 0.05, 0.01][:bound]
        row = recommend(of_spectra({"l.0.q_proj": values})).table.iloc[0]
        assert (row["verdict"] == "exhausted") == (row["needed"] == bound)
        assert row["rank"] == (2 * bound if row["needed"] == bound else row["needed"])


@pytest.mark.parametrize("method", ["lora", "rslora"])
@pytest.mark.parametrize("scaling", [1e19, 3e-7, 1e-12, 1e-200, 1e-300, -2.0, 1 / 3])
def test_any_alpha_is_kept(method, scaling):
    B, A = np.eye(16)[:, :4] * [1.0, 0.5, 0.2, 0.001], np.eye(4, 12)
    updates = {f"l.0.{p}_proj": lora(B, A, scaling=s * scaling, method=method) for p, s in (("q", 1), ("v", 2))}
    config = recommend(Adapter.from_updates("a", updates)).config
    root = config["r"] ** (0.5 if method == "rslora" else 1)
    assert config["r"] == 3
    assert config["lora_alpha"] / root == pytest.approx(scaling, rel=1e-9)
    assert config["alpha_pattern"]["v_proj"] / root == pytest.approx(2 * scaling, rel=1e-9)


def test_an_alpha_out_of_range_is_refused():
    update = lora(np.eye(8, 2) * 1e-250, np.eye(2, 8) * 1e-200, scaling=1e308)
    with pytest.raises(ValueError, match=r"q: the scaling 1e\+308 times 4 is beyond the range of float64 .* check α"):
        recommend(Adapter.from_updates("a", {"q": update}))


@pytest.mark.parametrize("method", ["lora", "bora", "melora"])
def test_simple_advice_has_one_rank(method):
    shapes = {f"l.{k}.{p}_proj": (48, 96 if p == "q" else 48) for k in range(12) for p in "qv"}
    adapter = synthetic_adapter(method, shapes, 4, 1 if method == "lora" else 4, kind="decay", decay=2.0)
    plain = recommend(adapter, energy=0.95)
    each, whole = (recommend(adapter, energy=0.95, simple=simple) for simple in ("projection", "all"))
    assert each.table["layers"].tolist() == whole.table["layers"].tolist() == ["all", "all"]
    for projection, rank in zip(each.table["projection"], each.table["rank"], strict=True):
        mine = {rank for module, rank in plain.ranks.items() if f".{projection}_" in module}
        assert max(mine) == rank
    assert len(each.config["rank_pattern"]) <= 1
    assert whole.table["rank"].tolist() == [max(plain.ranks.values())] * 2
    assert set(whole.ranks.values()) == {max(plain.ranks.values())}
    assert not whole.config["rank_pattern"]
    assert whole.table["kept"].min() >= 0.95
    with pytest.raises(ValueError, match=r"simple is 'some'; expected 'projection', 'all' or None"):
        recommend(adapter, simple="some")


def test_the_command_names_its_columns_and_takes_simple(tmp_path):
    shapes = {f"l.{k}.q_proj": (48, 32) for k in range(6)}
    write_synthetic(tmp_path, Synthetic("bora", shapes, 4, 4, None, "decay"))
    shown = CliRunner().invoke(main, ["recommend", str(tmp_path), "--simple"])
    heads = re.split(r"  +", next(line for line in shown.stdout.splitlines() if line.startswith("projection")))
    assert len(set(heads)) == len(heads)
    assert "→" not in shown.stdout
    told = CliRunner().invoke(main, ["recommend", str(tmp_path), "--simple-all", "--pattern"]).stdout
    assert json.loads(told)["rank_pattern"] == {}
