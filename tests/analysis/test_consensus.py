"""What the advice of several runs has in common, and which method capture names."""

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from bora_analysis import Adapter, consensus, lora, recommend, synthetic_adapter, write_adapter
from bora_analysis.analysis.consensus import sentence
from bora_analysis.analysis.method_advice import in_words, method_advice
from bora_analysis.cli import main

SHAPES = {f"layers.{k}.{name}_proj": (48, 40) for k in range(4) for name in "qv"}


def run_of(name: str, needed: Any, r: int = 16, seed: int = 0) -> Adapter:
    """A LoRA whose module needs so many directions for 99 % of Σσ²: that many are equal, the rest nearly 0."""
    rng = np.random.default_rng(seed)
    updates = {}
    for module in SHAPES:
        k: Any = needed(module) if callable(needed) else needed
        B, A = np.linalg.qr(rng.standard_normal((48, r))).Q, np.linalg.qr(rng.standard_normal((40, r))).Q.T
        updates[module] = lora(B * np.where(np.arange(r) < k, 1.0, 1e-3), A)
    return Adapter.from_updates(name, updates)


def row(found, projection="q", method="lora"):
    table = found.table
    return table[(table["projection"] == projection) & (table["method"] == method)].iloc[0]


def test_seeds_that_need_the_same_are_stable():
    found = consensus([run_of("a", 4, seed=1), run_of("b", 5, seed=2), run_of("c", 6, seed=3)])
    q = row(found)
    assert (q["adapters"], q["exhausted"]) == (3, 0)
    assert (q["needed_least"], q["needed_median"], q["needed_most"]) == (4, 5, 6)
    assert (q["agreement"], q["rank"]) == ("stable", 6)
    assert sentence(found) == "LoRA: q needs rank 4–6, v needs rank 4–6 in every run."


def test_what_the_next_seed_overturns_varies():
    q = row(consensus([run_of("a", 3), run_of("b", 9)]))
    assert (q["agreement"], q["rank"]) == ("varies", 9)
    near = row(consensus([run_of("a", 1), run_of("b", 2)]))
    assert near["agreement"] == "stable"  # twice as much, but only by one


@pytest.mark.parametrize(
    ("short", "agreement", "rank"),
    [(4, "stable", 8), (8, "stable", 8), (14, "varies", 28)],
)
def test_an_exhausted_spectrum_is_a_lower_bound(short, agreement, rank):
    q = row(consensus([run_of("long", 8), run_of("short", short, r=short)]))
    assert (q["exhausted"], q["needed_least"], q["needed_most"]) == (1, 8, 8)
    assert (q["agreement"], q["rank"]) == (agreement, rank)


def test_where_every_spectrum_is_exhausted_the_rank_is_open():
    q = row(consensus([run_of("a", 4, r=4), run_of("b", 8, r=8)]))
    assert (q["agreement"], q["rank"], q["exhausted"]) == ("open", 16, 2)
    assert q.isna()["needed_median"]


def test_layers_that_stand_out_in_every_run_are_named():
    deep = run_of("a", lambda module: 12 if module == "layers.3.q_proj" else 4)
    also = run_of("b", lambda module: {"layers.3.q_proj": 12, "layers.0.q_proj": 1}.get(module, 4))
    q = row(consensus([deep, also]))
    assert q["above"] == "layers.3.q_proj"
    assert q["below"] == ""


def test_methods_stand_apart_and_together():
    bora = synthetic_adapter("bora", SHAPES, r=2, blocks=8, name="bora")
    found = consensus([run_of("a", 4), run_of("b", 4, seed=5), bora])
    assert found.table["method"].tolist() == ["lora", "bora", "all", "lora", "bora", "all"]
    assert row(found, method="lora")["agreement"] == "stable"
    assert row(found, method="bora")["agreement"] in ("one run", "open")
    assert row(found, method="all")["adapters"] == 3


def test_it_counts_what_recommend_says_of_each():
    runs = [run_of("a", 4), run_of("b", 7)]
    modules = consensus(runs).modules
    for adapter in runs:
        alone = recommend(adapter).table
        own = modules[modules["adapter"] == adapter.name]
        assert own.groupby("projection")["needed"].max().to_dict() == dict(
            zip(alone["projection"], alone["needed"], strict=True)
        )


def test_what_cannot_be_compared_is_said():
    with pytest.raises(ValueError, match="there is one adapter"):
        consensus(run_of("a", 4))
    other = synthetic_adapter("lora", {"elsewhere.q_proj": (8, 8)}, r=2, name="other")
    with pytest.raises(ValueError, match="no module with ΔW ≠ 0 is in all"):
        consensus([run_of("a", 4), other])
    with pytest.raises(ValueError, match="energy is 2"):
        consensus([run_of("a", 4), run_of("b", 4)], energy=2)
    with pytest.raises(ValueError, match=r"bora_analysis\.consensus compares them"):
        recommend([run_of("a", 4), run_of("b", 4)])


# The method, by capture


def test_a_target_names_its_own_set_and_says_that_this_favours_it():
    gralora = synthetic_adapter("gralora", {"layers.0.q_proj": (48, 40)}, r=8, blocks=2, name="target")
    found = method_advice([gralora], share=1.0)
    assert found[["method", "own"]].values.tolist() == [["gralora", True]]
    assert found["captured"].item() == pytest.approx(1.0)
    assert "it was trained in that set" in in_words(found)[0]


def test_a_foreign_target_is_a_witness():
    melora = synthetic_adapter("melora", {"layers.0.q_proj": (48, 48)}, r=4, blocks=2, kind="decay", name="target")
    found = method_advice([melora, run_of("b", 2, r=4)])
    words = in_words(found)
    assert found["own"].tolist()[1]
    assert ("Of 1 adapter trained in another set" in words[-1]) == (not found["own"].iloc[0])
    assert (found["captured"] >= found["second_captured"] - 1e-4).all()
    assert (found["parameters"] <= found["budget"]).all()


def test_nothing_is_advised_on_nothing():
    zero = Adapter.from_updates("zero", {"q": lora(np.zeros((8, 2)), np.ones((2, 8)))})
    with pytest.raises(ValueError, match="ΔW = 0 in every module"):
        method_advice([zero])


# The command


@pytest.fixture
def folders(tmp_path):
    for name, seed in (("one", 1), ("two", 2)):
        adapter = run_of(name, 4, seed=seed)
        raw = {module: dict(zip("BA", adapter[module].factors(), strict=True)) for module in SHAPES}
        write_adapter(tmp_path / name, "lora", raw, alpha=16)
    return [str(tmp_path / name) for name in ("one", "two")]


def run(*args):
    return CliRunner().invoke(main, ["recommend", *args])


def test_several_adapters_end_with_what_they_agree_on(folders):
    done = run(*folders)
    assert done.exit_code == 0, done.output
    for words in (
        "one: LoRA",
        "two: LoRA",
        "What 2 adapters agree on",
        "LoRA: q needs rank 4, v needs rank 4 in every run.",
    ):
        assert words in done.stdout
    assert "agree on" not in run(folders[0]).stdout


def test_the_consensus_alone(folders):
    done = run(*folders, "--consensus", "--format", "json")
    assert done.exit_code == 0, done.output
    assert {row["agreement"] for row in json.loads(done.stdout)} == {"stable"}
    alone = run(folders[0], "--consensus")
    assert alone.exit_code == 1
    assert "there is one adapter" in alone.stderr


def test_capture_names_the_method_on_request(folders):
    done = run(folders[0], "--capture", "--modules", "layers.0.q")
    assert done.exit_code == 0, done.output
    assert "one: at most 704 parameters keep most as" in done.stdout
    assert "not what training finds" in " ".join(done.stdout.split())
    assert run(folders[0], "--capture", "--pattern").exit_code == 2
