"""Thresholds that depend on the scale of ΔW, and those that do not."""

from __future__ import annotations

from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bora_analysis import Adapter, Threshold, analyse, compare, convert, dense, lora, read_adapter
from bora_analysis.analysis import views
from bora_analysis.analysis.tables import join, recounted
from bora_analysis.bundled import data_folder
from bora_analysis.cli import main
from bora_analysis.metrics import effective_rank

SCALE_FREE = ("1%", "0.005 at norm 1", "0.02 at norm 3")


def adapter(scale: float = 1.0, name: str = "one") -> Adapter:
    rng = np.random.default_rng(3)
    parts = [rng.standard_normal((12, 6)) * 0.5 ** np.arange(6) ** 2 for _ in range(3)]
    modules = {f"layers.{k}.q_proj": lora(B * scale, rng.standard_normal((6, 10))) for k, B in enumerate(parts)}
    return Adapter.from_updates(name, {**modules, "layers.3.q_proj": lora(np.zeros((12, 2)), np.ones((2, 10)))})


@given(st.floats(0, 1e9, allow_nan=False), st.sampled_from(["absolute", "share", "norm"]), st.floats(1e-6, 1e6))
def test_its_text_gives_it_back(value, kind, norm):
    value = float(f"{value:.6g}")
    tau = {
        "absolute": Threshold(value),
        "share": Threshold(min(value, 1.0), relative=True),
        "norm": Threshold(value, norm=float(f"{norm:.6g}")),
    }[kind]
    again = Threshold.of(str(tau))
    assert (again.relative, again.norm) == (tau.relative, tau.norm)
    assert again.value == pytest.approx(tau.value, rel=1e-12)
    assert Threshold.of(tau.cell).value == pytest.approx(tau.value, rel=1e-12)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("x", "threshold is 'x'; expected a number such as 0.005, a share of σ₁ such as 1%"),
        ("1 at norm", "threshold is '1 at norm'"),
        ("%", "threshold is '%'"),
        ("1% at norm 1", "threshold is '1% at norm 1'"),
        ("-1%", "threshold is -0.01; expected a number ≥ 0"),
        (-1.0, "threshold is -1.0; expected a number ≥ 0"),
        (float("nan"), "threshold is nan"),
        ("101%", "threshold is 101% of σ₁; expected at most 100%"),
        ("0.1 at norm 0", "the norm of the threshold is 0.0; expected a number above 0"),
    ],
)
def test_what_it_cannot_be(wrong, words):
    with pytest.raises(ValueError, match="threshold") as error:
        Threshold.of(wrong)
    assert words in str(error.value)
    with pytest.raises(ValueError, match="threshold"):
        analyse(adapter(), threshold=wrong)
    with pytest.raises(ValueError, match="threshold"):
        convert(adapter(), "nowhere", threshold=wrong)


def test_a_share_has_no_norm():
    with pytest.raises(ValueError, match="which no norm changes"):
        Threshold(0.01, relative=True, norm=1.0)


@pytest.mark.parametrize("threshold", [0.005, "0.3", *SCALE_FREE])
def test_counts_are_those_of_the_dense_singular_values(threshold):
    tables = analyse(adapter(), threshold=threshold)
    for module, update in adapter().items():
        s = np.linalg.svd(update.to_dense(), compute_uv=False)
        s[s < 1e-12] = 0  # beyond the rank
        size = float(np.linalg.norm(s))
        wished = {"0.3": s > 0.3, "1%": s > 0.01 * s[0], 0.005: s > 0.005}
        if size:
            wished |= {"0.005 at norm 1": s / size > 0.005, "0.02 at norm 3": 3 * s / size > 0.02}
        row: Any = tables.layer_metrics.set_index("module").loc[module]
        count = int(wished.get(threshold, np.zeros(1)).sum())
        assert row["effective_rank"] == count == effective_rank(s, threshold)
        assert row["rank_utilisation"] == count / row["rank_bound"]
    counted = views.counted(tables.spectra, threshold)
    assert counted["effective_rank"].tolist() == tables.layer_metrics["effective_rank"].tolist()


@pytest.mark.parametrize("scale", [1e-170, 1e-3, 1e3, 1e120])
def test_the_scale_of_an_update_changes_only_absolute_counts(scale):
    one, other = adapter(), adapter(scale)
    for threshold in SCALE_FREE:
        before, after = (analyse(each, threshold=threshold) for each in (one, other))
        ranks = before.layer_metrics["effective_rank"]
        assert ranks.tolist() == after.layer_metrics["effective_rank"].tolist()
        assert views.counted(after.spectra, threshold)["effective_rank"].tolist() == ranks.tolist()
        assert 0 < ranks.sum() < 18
    counts = [analyse(each).layer_metrics["effective_rank"].sum() for each in (one, other)]
    assert counts[0] != counts[1]


def test_the_column_says_which(tmp_path):
    absolute, share = analyse(adapter(), threshold="0.005"), analyse(adapter(name="two"), threshold="1 %")
    assert absolute.layer_metrics["threshold"].dtype == "float64"
    assert (absolute.layer_metrics["threshold"] == 0.005).all()
    assert set(share.layer_metrics["threshold"]) == {"1%"}
    assert set(analyse(adapter(), threshold=Threshold(0.005, norm=1.0)).layer_metrics["threshold"]) == {
        "0.005 at norm 1"
    }
    both = join([absolute, share]).layer_metrics
    assert both["threshold"].tolist() == ["0.005"] * 4 + ["1%"] * 4
    again = recounted(join([absolute, share]), 0.005)
    pd.testing.assert_series_equal(
        again["effective_rank"].iloc[:4], absolute.layer_metrics["effective_rank"], check_names=False
    )
    both.to_parquet(tmp_path / "both.parquet")
    assert pd.read_parquet(tmp_path / "both.parquet")["threshold"].tolist() == both["threshold"].tolist()


def test_the_table_of_the_bundled_adapters():
    """Means over the 12 modules; the reference computed them on its own (expressiveness, scale-free thresholds)."""
    expected = {
        "trained-lora-r8": (8, 7.4, 6.1, 4.8, 7.5),
        "trained-lora-r32": (32, 29.0, 17.4, 8.7, 29.8),
        "trained-melora-r8-n4": (31.8, 29.2, 21.7, 15.7, 30.0),
        "trained-bora-r8-b8": (60.4, 49.6, 31.2, 21.2, 51.8),
        "trained-bora-r8-b16": (118.9, 92.0, 51.0, 30.9, 95.6),
    }
    tables = analyse([data_folder() / name for name in expected])
    for k, threshold in enumerate(("0.005", "1%", "5%", "10%", "0.005 at norm 1")):
        means = recounted(tables, threshold).groupby("adapter", sort=False)["effective_rank"].mean()
        np.testing.assert_allclose(means, [row[k] for row in expected.values()], atol=0.051)


@pytest.mark.parametrize("threshold", SCALE_FREE)
def test_a_quick_count_is_exact(threshold):
    rng = np.random.default_rng(5)
    whole = Adapter.from_updates(
        "full", {"q_proj": dense(rng.standard_normal((256, 40)) @ rng.standard_normal((40, 300)) * 1e-4)}
    )
    tables = analyse(whole, threshold=threshold, quick=True)
    expected = analyse(whole, threshold=threshold).layer_metrics
    assert tables.layer_metrics["nuclear_norm"].isna().all()
    assert tables.layer_metrics["effective_rank"].tolist() == expected["effective_rank"].tolist() == [40]
    assert recounted(tables, threshold) is tables.layer_metrics
    assert recounted(tables, 0.005)["effective_rank"].isna().all()


def run(*words: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_line_takes_both(tmp_path):
    path = data_folder() / "trained-lora-r8"
    for words, cell, head in (
        (("--threshold", "5%"), "5%", "σ>5%σ₁"),
        (("--threshold", "0.005", "--at-norm", "1"), "0.005 at norm 1", "σ>0.005‖ΔW‖"),
        (("--at-norm", "2"), "0.005 at norm 2", "σ>0.005‖ΔW‖/2"),
        (("--threshold", "0.005 at norm 1"), "0.005 at norm 1", "σ>0.005‖ΔW‖"),
    ):
        expected = analyse(read_adapter(path), threshold=cell).layer_metrics
        rows = pd.read_csv(StringIO(run("analyze", path, *words, "--format", "csv").stdout))
        assert set(rows["threshold"]) == {cell}
        assert rows["effective_rank"].tolist() == expected["effective_rank"].tolist()
        assert head in run("analyze", path, *words).stdout
        shown = run("compare", path, *words).stdout
        assert head in shown
        assert f"{compare(expected)['effective_rank'].iloc[0]:.2f}" in shown
    rows = pd.read_csv(StringIO(run("analyze", path, "--format", "csv").stdout))
    assert (rows["threshold"] == 0.005).all()
    done = run("analyze", path, "--threshold", "1%", "-o", tmp_path / "t", "--format", "parquet")
    assert done.exit_code == 0, done.output
    assert set(pd.read_parquet(tmp_path / "t" / "layer_metrics.parquet")["threshold"]) == {"1%"}


@pytest.mark.parametrize(
    "words",
    [("--threshold", "1%", "--at-norm", "1"), ("--threshold", "x"), ("--at-norm", "0"), ("--threshold", "200%")],
)
def test_wrong_usage_is_one_line(words):
    done = run("compare", data_folder() / "trained-lora-r8", *words)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in done.output


def test_convert_cuts_at_a_share(tmp_path):
    path = data_folder() / "trained-lora-r8"
    for words, threshold in (
        (("--threshold", "10%"), "10%"),
        (("--threshold", "0.2", "--at-norm", "1"), "0.2 at norm 1"),
    ):
        done = run("convert", path, "-o", tmp_path / threshold[:3], *words, "--format", "csv")
        assert done.exit_code == 0, done.output
        ranks = pd.read_csv(StringIO(done.stdout))["rank"]
        assert ranks.tolist() == analyse(path, threshold=threshold).layer_metrics["effective_rank"].tolist()
    assert run("convert", path, "-o", tmp_path / "x", "--at-norm", "1").exit_code == 2


def test_the_note_on_the_noise_floor_compares_each_module_with_its_own_limit():
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((8, 2)), rng.standard_normal((2, 8))
    updates = {"q": lora(*factors, dtype="bfloat16"), "v": lora(factors[0] * 1e-3, factors[1], dtype="bfloat16")}
    floors = analyse(Adapter.from_updates("a", updates)).layer_metrics
    share = (floors["noise_floor"] / floors["spectral_norm"]).iloc[0]
    told = analyse(Adapter.from_updates("a", updates), threshold=Threshold(share / 2, relative=True)).provenance
    assert any("lies below the noise floor of 2 of 2 modules" in line for line in told)
    told = analyse(Adapter.from_updates("a", updates), threshold=Threshold(share * 2, relative=True)).provenance
    assert not any("noise floor" in line for line in told)
