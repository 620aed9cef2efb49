"""An update that was trained and that is too small for its dtype is not said to be untrained."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from click.testing import CliRunner

from bora_analysis import Adapter, analyse, bora, layer_metrics, lora, melora, verdict, write_adapter
from bora_analysis.analysis.telling import telling
from bora_analysis.analysis.verdict import verdicts
from bora_analysis.cli import main
from bora_analysis.fleet.checks import check
from bora_analysis.updates.hadamard import loha
from bora_analysis.updates.kronecker import lokr

MODULES = [f"layers.{k}.q_proj" for k in range(3)]
TINY = 1e-170
RNG = np.random.default_rng(0)
FACTORS = {
    "lora": [RNG.standard_normal(size) for size in ((8, 2), (2, 6))],
    "melora": [RNG.standard_normal(size) for size in ((2, 4, 2), (2, 2, 3))],
    "bora": [RNG.standard_normal(size) for size in ((8, 2), (2, 6))],
    "loha": [RNG.standard_normal(size) for size in ((8, 2), (2, 6), (8, 2), (2, 6))],
    "lokr": [RNG.standard_normal(size) for size in ((2, 2), (4, 3))],
}
SIGMA = RNG.standard_normal((2, 2, 2))
MAKE = {
    "lora": lora,
    "melora": lambda B, A: melora([*B], [*A]),
    "bora": lambda B, A: bora(B, A, SIGMA),
    "loha": loha,
    "lokr": lokr,
}


def made(kind: str, size: float):
    """The update whose factors are of that size, in float64."""
    return MAKE[kind](*(size * each for each in FACTORS[kind]))


@pytest.mark.parametrize("kind", FACTORS)
def test_what_underflows_was_trained_and_what_is_zero_was_not(kind):
    tiny = made(kind, TINY)
    assert not tiny.to_dense().any()  # in float64
    first, second = (np.longdouble(TINY) * np.asarray(each, np.longdouble).ravel()[0] for each in FACTORS[kind][:2])
    assert first * second != 0  # in a type whose numbers go down to 1e-4950
    zero = MAKE[kind](*(0 * each for each in FACTORS[kind][:1]), *FACTORS[kind][1:])
    usual = made(kind, 1.0)
    half = verdict(Adapter.from_updates("a", dict(zip(MODULES, (tiny, zero, usual), strict=True))))
    assert "; ΔW = 0 in 1 of 3 modules; trained, but ΔW is below what float64 can hold in 1 of 3 modules" in half
    for update, told in ((tiny, "trained, but ΔW is below what float64 can hold in 1 of 1 module"), (zero, "nothing")):
        adapter = Adapter.from_updates("a", {MODULES[0]: update})
        tables = analyse(adapter)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (found,), words = verdicts(tables.layers), telling(tables.layers)
        assert ("nothing was trained" in found.sentence) == (update is zero)
        assert told in found.sentence
        assert found.next == "check"
        assert ("nothing was trained" in words[0].reason) == (update is zero)
        assert any("nothing was trained" in line for line in tables.provenance) == (update is zero)
        assert any("below what float64 can hold" in line for line in tables.provenance) == (update is tiny)
        assert [each.rule for each in check(adapter).findings if each.rule in ("nothing-trained", "underflow")] == [
            "nothing-trained" if update is zero else "underflow"
        ]


@pytest.mark.parametrize("kind", FACTORS)
def test_sizes_of_an_underflow_are_zero_and_its_ranks_are_missing(kind):
    row = layer_metrics(Adapter.from_updates("a", {MODULES[0]: made(kind, TINY)})).iloc[0]
    assert row[["spectral_norm", "frobenius_norm", "energy", "effective_rank"]].tolist() == [0, 0, 0, 0]
    assert row[["stable_rank", "entropy_rank", "numerical_rank", "energy_rank_99"]].isna().all()
    assert row["rank_bound"] == made(kind, 1.0).facts.rank_bound


def test_what_cancels_is_zero():
    """The difference to the start of an adapter that was never trained, however small both are."""
    tiny = made("lora", TINY)
    assert "nothing was trained" in verdict(Adapter.from_updates("a", {MODULES[0]: tiny - tiny}))
    assert "nothing was trained" in verdict(Adapter.from_updates("a", {MODULES[0]: made("lora", 1.0) * 0}))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e-23), ("float16", 3e-5), ("bfloat16", 1e-21)])
def test_numbers_that_no_entry_of_the_dtype_holds_are_a_finding(tmp_path, dtype, size):
    """Factors that the file holds, with a product that rounds to 0 in its dtype: PyTorch is the oracle."""
    import torch

    of = getattr(torch, dtype)
    for name, factor, lost in (("small", size, True), ("usual", 1e-2, False)):
        pair = {"B": factor * FACTORS["lora"][0], "A": factor * FACTORS["lora"][1]}
        write_adapter(tmp_path / name, "lora", dict.fromkeys(MODULES, pair), alpha=2, dtype=dtype)
        stored = [torch.from_numpy(each).to(of).double() for each in pair.values()]
        assert ((stored[0] @ stored[1]).to(of) == 0).all() == lost
        found = [each for each in check(tmp_path / name).findings if each.rule == "underflow"]
        assert [each.module for each in found] == MODULES * lost
        shown = CliRunner().invoke(main, ["analyze", str(tmp_path / name)])
        assert (f"trained, but ΔW is below what {dtype} can hold in 3 of 3 modules" in shown.stderr) == lost
        assert "nothing was trained" not in shown.stdout + shown.stderr


def test_an_energy_below_the_range_is_no_fault_of_the_training(tmp_path):
    """σ₁ is a number, Σσ² is 0: every face says what it says of a larger one."""
    small, usual = (Adapter.from_updates("a", {name: made("lora", s) for name in MODULES}) for s in (1e-90, 1.0))
    frame = layer_metrics(small)
    assert (frame["energy"] == 0).all()
    assert (frame["spectral_norm"] > 0).all()
    assert verdict(small) == verdict(usual)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert telling(frame) == telling(layer_metrics(usual))
    assert not [each for each in check(small).findings if each.rule in ("nothing-trained", "dead-module")]
