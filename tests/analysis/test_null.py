"""The null against brute force: dense random updates made factor by factor."""

from __future__ import annotations

from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from figure_cases import artist, legend_texts, ydata
from method_lists import ALONE
from scipy.stats import ks_2samp

from bora_analysis import (
    Adapter,
    analyse,
    bora,
    dense,
    figures,
    layer_metrics,
    lora,
    melora,
    null,
    summary,
    synthetic_adapter,
)  # fmt: skip
from bora_analysis.adapters.synthetic import Synthetic
from bora_analysis.analysis.null import NULL_METRICS_COLUMNS, NULL_SPECTRA_COLUMNS, unit_draws
from bora_analysis.bundled import data_folder
from bora_analysis.catalogue import METHODS
from bora_analysis.cli import main
from bora_analysis.linalg.gaussian import gaussian_triangle, gaussian_values
from bora_analysis.methods import form
from bora_analysis.methods.bora import moments
from bora_analysis.methods.random_factors import Sizes, kaiming
from bora_analysis.metrics import METRICS, effective_rank
from bora_analysis.updates.blocks import activate


def alike(one: Any, other: Any) -> bool:
    """Whether two samples may be of one law."""
    found: Any = ks_2samp(one, other)
    return found.pvalue > 1e-4


@pytest.mark.parametrize(("rows", "columns"), [(9, 4), (4, 4), (3, 5)])
def test_the_triangle_has_the_law_of_a_gaussian_matrix_after_qr(rows, columns):
    rng = np.random.default_rng(1)
    made = gaussian_triangle(rng, rows, columns, 2000)
    whole = np.linalg.qr(rng.standard_normal((2000, rows, columns))).R
    assert made.shape == whole.shape
    assert (np.tril(made, -1) == 0).all()
    for i, j in zip(*np.triu_indices(min(rows, columns), m=columns), strict=True):
        assert alike(np.abs(made[:, i, j]), np.abs(whole[:, i, j]))
    values, expected = (np.linalg.svd(each, compute_uv=False) for each in (made, whole))
    for one, other in zip(values.T, expected.T, strict=True):
        assert alike(one, other)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (6, 6), (3, 1)])
def test_two_diagonals_have_the_singular_values_of_a_gaussian_matrix(shape):
    rng = np.random.default_rng(2)
    values = np.stack([gaussian_values(rng, *shape) for _ in range(1500)])
    expected = np.linalg.svd(rng.standard_normal((1500, *shape)), compute_uv=False)
    assert (np.diff(values) <= 0).all()
    for one, other in zip(values.T, expected.T, strict=True):
        assert alike(one, other)


def test_eq_5_begins_with_a_gain_of_sinh_4_over_4():
    """σ/Mav(σ) is uniform on (−2, 2): E[s] = sinh(2)/2, E[s²] = sinh(4)/4 = 6.82 (reference, "The null")."""
    s = activate(kaiming(np.random.default_rng(0), (100, 100, 8)), "exp-norm")
    assert s.mean() == pytest.approx(np.sinh(2) / 2, rel=0.01) == pytest.approx(1.81, abs=0.005)
    assert (s**2).mean() == pytest.approx(np.sinh(4) / 4, rel=0.02) == pytest.approx(6.82, abs=0.005)
    assert moments("exp-norm", 64) == pytest.approx((np.sinh(2) / 2, np.sinh(4) / 4))
    assert moments("no-norm", 64) == pytest.approx((1.0026, 1.0105), abs=1e-3)
    # BoRA's Σσ² beside that of LoRA with the same factors.
    shapes = {f"layers.{k}.q_proj": (256, 256) for k in range(20)}
    sums = [
        layer_metrics(synthetic_adapter(method, shapes, 8, blocks, alpha=8))["energy"].sum()
        for method, blocks in (("bora", 16), ("lora", 1))
    ]
    assert sums[0] / sums[1] == pytest.approx(6.82, rel=0.03)


def brute(name: str, m: int, n: int, r: int, blocks: int, rng: np.random.Generator, activation: str) -> Any:
    """A random update made of whole factors, on its own."""
    B, A = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    if name == "lora":
        return lora(B, A)
    if name == "melora":
        pairs = [(rng.standard_normal((m // blocks, r)), rng.standard_normal((r, n // blocks))) for _ in range(blocks)]
        return melora(*map(list, zip(*pairs, strict=True)))
    if name == "full":
        return dense(rng.standard_normal((m, n)))
    bound = (blocks * r) ** -0.5
    return bora(B, A, rng.uniform(-bound, bound, (blocks, blocks, r)), activation=activation)


@pytest.mark.parametrize(
    ("name", "r", "blocks", "activation"),
    [
        ("lora", 6, 1, ""), ("melora", 4, 4, ""), ("full", 48, 1, ""), ("bora", 4, 4, "exp-norm"),
        ("bora", 4, 4, "no-exp"), ("bora", 4, 4, "no-norm"), ("bora", 20, 4, "exp-norm"),
    ],
)  # fmt: skip
def test_draws_have_the_law_of_updates_made_of_whole_factors(name, r, blocks, activation):
    m, n = 64, 48
    rng = np.random.default_rng(5)
    updates = [brute(name, m, n, r, blocks, rng, activation) for _ in range(150)]
    facts = updates[0].facts
    sizes = Sizes(name, m, n, facts.r, facts.blocks, facts.parameters, facts.rank_bound, facts.activation)
    assert facts.activation == activation
    found = unit_draws(sizes, 150, 0)
    assert not isinstance(found, str)
    dense_values = np.stack([np.linalg.svd(update.to_dense(), compute_uv=False) for update in updates])
    dense_values /= np.linalg.norm(dense_values, axis=1, keepdims=True)
    assert found.spectra.shape == (150, facts.rank_bound)
    for one, other in zip(found.spectra.T, dense_values.T, strict=False):
        assert alike(one, other)
    entropy = [METRICS["entropy_rank"].value(s[s > 1e-12], facts.rank_bound, 0.0) for s in dense_values]
    assert found.metrics["entropy_rank"].mean() == pytest.approx(np.mean(entropy), rel=0.02)


def test_factors_that_begin_uniform_make_the_same_spectrum_as_gaussian_ones():
    """LoRA's A at the start, at the sizes of a layer."""
    rng = np.random.default_rng(0)
    kinds = {"uniform": lambda: rng.uniform(-1, 1, (8, 768)), "gaussian": lambda: rng.standard_normal((8, 768))}
    means = []
    for make in kinds.values():
        s = np.stack([np.linalg.svd(gaussian_triangle(rng, 768, 8) @ make(), compute_uv=False) for _ in range(150)])
        means.append((s / np.linalg.norm(s, axis=1, keepdims=True)).mean(axis=0))
    np.testing.assert_allclose(*means, rtol=0.01)


def test_of_each_method_that_can_be_made():
    """The null has the sizes' rank and norm, and its own recipe's spectrum where that is Gaussian too."""
    unlike = {"adalora", "kasa", "lokr", "krona", "delora", "vblora"}  # whose recipe is not what training begins with
    for method in ALONE:
        if method == "supra":  # two parts in shares that are free
            continue
        row = METHODS[method]
        blocks = 4 if row.blocks else 1
        shapes = {"q": (96, 64)}
        if method == "vblora":
            shapes = {"q": (128, 128)}
        elif method == "qalora":  # whose A sees means of groups
            shapes = {"q": (96, 256)}
        elif method.startswith("bdlora"):  # where the number of parameters tells the blocks
            shapes = {"q": (80, 80)}
        spectra, adapter = [], None
        for seed in range(8):
            raw = Synthetic(method, shapes, 4, blocks, kind="gaussian", seed=seed)
            update = form(method).build(raw["q"], raw.scaling, "exp-norm")
            adapter = Adapter.from_updates("one", {"q": update})
            spectra.append(np.linalg.svd(update.to_dense(), compute_uv=False)[: update.facts.rank_bound])
        found = null(adapter)
        assert found.missing == (), method
        norm = np.linalg.norm(spectra[-1])
        mean = found.spectra["null_mean"].to_numpy()
        assert len(mean) == len(spectra[-1]), method
        assert np.linalg.norm(mean) == pytest.approx(norm, rel=0.05), method
        if method in unlike:
            continue
        size = len(spectra[-1])  # of a sparse update the bound depends on where its entries lie
        stack = np.stack([np.pad(s / np.linalg.norm(s), (0, size))[:size] for s in spectra])
        gap = np.abs(mean / norm - stack.mean(axis=0)).max()
        assert gap < 0.05, (method, gap)


def test_methods_without_a_null_say_why():
    wide = np.random.default_rng(0).standard_normal((8, 6))
    uneven = melora([wide[:5, :2], wide[5:, :1]], [wide[:2, :3], wide[2:3, :3]])
    both = lora(wide[:, :2], wide[:2]) + bora(wide[:, :2], wide[:2], np.ones((2, 2, 2)))
    adapter = Adapter.from_updates("mine", {"a": uneven, "b": lora(wide[:, :2], wide[:2])})
    found = null(adapter)
    assert found.missing == ("mine: no null: trains 22 numbers and not 28: its sizes do not tell its structure",)
    assert set(found.spectra["module"]) == {"b"}
    sums = null(Adapter.from_updates("sum", {"a": both}))
    assert sums.missing[0].startswith("sum: no null: lora+bora is no method, or a sum of several")
    assert sums.spectra.empty
    assert tuple(sums.layer_metrics.columns) == NULL_METRICS_COLUMNS
    scaled = Adapter.from_updates("dora", {"a": dense(wide, method="dora")})
    assert null(scaled).missing == ("dora: no null: ΔW of DoRA is made from the base model's weights",)
    few = null(synthetic_adapter("supra", {"q": (24, 16)}, 2))
    assert few.missing == ("supra-r2: no null: adds entries to B A, in shares that its sizes do not tell",)
    still = null(Adapter.from_updates("still", {"a": lora(np.zeros((8, 2)), wide[:2])}))
    assert (len(still.spectra), still.missing) == (0, ())


def test_the_frames():
    tables = analyse([data_folder() / "trained-lora-r8", data_folder() / "trained-bora-r8-b8-no-exp"])
    found = null(tables, draws=7, seed=3)
    assert tuple(found.spectra.columns) == NULL_SPECTRA_COLUMNS
    assert tuple(found.layer_metrics.columns) == NULL_METRICS_COLUMNS
    assert found.spectra[["adapter", "module", "index"]].equals(tables.spectra[["adapter", "module", "index"]])
    assert set(found.spectra["draws"]) == {7}
    assert (found.spectra["null_low"] <= found.spectra["null_mean"]).all()
    assert (found.spectra["null_mean"] <= found.spectra["null_high"]).all()
    again = null(tables.layer_metrics, draws=7, seed=3)
    assert again.spectra.equals(found.spectra)
    assert not null(tables, draws=7, seed=4).spectra["null_mean"].equals(found.spectra["null_mean"])
    rows = found.layer_metrics.set_index(["adapter", "module", "metric"]).sort_index()
    assert (rows["learned"] == rows["value"] - rows["null_mean"]).all()
    for adapter, module in tables.layer_metrics[["adapter", "module"]].itertuples(index=False, name=None):
        of: Any = rows.loc[adapter, module]
        assert of.loc["energy", "value"] == pytest.approx(of.loc["energy", "null_mean"])
        own: Any = tables.layer_metrics.query("adapter == @adapter and module == @module").iloc[0]
        assert of.loc["entropy_rank", "value"] == own["entropy_rank"]
    assert null(tables.layer_metrics.iloc[:0]).spectra.empty


@pytest.mark.parametrize("threshold", [0.05, "30%", "0.1 at norm 1"])
def test_counts_of_the_null_are_against_the_threshold_of_each_row(threshold):
    layers = layer_metrics(data_folder() / "trained-bora-r8-b8", threshold=threshold)
    found = null(layers, draws=5)
    rows = found.layer_metrics.query("metric == 'effective_rank'")
    for (_, row), (_, own) in zip(rows.iterrows(), layers.iterrows(), strict=True):
        sizes = Sizes("bora", 384, 384, 8, 8, own["parameters"], 64, "exp-norm")
        draws: Any = unit_draws(sizes, 5, 0)
        counts = [effective_rank(s * own["frobenius_norm"], threshold) for s in draws.spectra]
        assert (row["null_mean"], row["null_low"], row["null_high"]) == (np.mean(counts), min(counts), max(counts))


def test_bundled_adapters_beside_their_null():
    """Entropy ranks of the null 41 and 80, of the trained 29 and 55 (reference, "The null")."""
    tables = analyse([data_folder() / name for name in ("trained-bora-r8-b8", "trained-bora-r8-b16")])
    rows = null(tables).layer_metrics.query("metric == 'entropy_rank'")
    means = rows.groupby("adapter", sort=False)[["value", "null_mean"]].mean()
    np.testing.assert_allclose(means, [[29, 41.5], [55, 80]], atol=0.6)


def test_equal_modules_cost_one_null(monkeypatch):
    shapes = {f"layers.{k}.{name}_proj": (4096, 4096) for k in range(112) for name in "qv"}
    layers = layer_metrics(synthetic_adapter("lora", {"layers.0.q_proj": (4096, 4096)}, r=16))
    many = pd.concat([layers.assign(module=module) for module in shapes], ignore_index=True)
    unit_draws.cache_clear()
    found = null(many)
    assert unit_draws.cache_info().misses == 1
    assert len(found.spectra) == 224 * 16


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"seed": -1}])
def test_wrong_draws(wrong):
    with pytest.raises(ValueError, match="expected draws ≥ 1 and seed ≥ 0"):
        null(synthetic_adapter("lora", {"q": (8, 8)}, r=2), **wrong)


def test_the_summary_has_the_null_beside_the_ranks():
    folder = data_folder()
    tables = analyse([folder / "runs" / "lora-r8", folder / "trained-bora-r8-b8"])
    found = null(tables, draws=5)
    frame = summary(tables.layer_metrics, null=found)
    plain = summary(tables.layer_metrics)
    assert frame[[*plain.columns]].equals(plain)
    for _, row in frame.iterrows():
        rows: Any = found.layer_metrics.query("metric == 'entropy_rank' and adapter == @row.adapter")
        rows = rows[(rows["step"] == row["step"]) | (rows["step"].isna() & pd.isna(row["step"]))]
        rows = rows if row["projection"] == "all" else rows[rows["projection"] == row["projection"]]
        if rows.empty:  # step 0: ΔW = 0
            assert np.isnan(row["null_entropy_rank"])
            continue
        assert row["null_entropy_rank"] == pytest.approx(rows["null_mean"].mean())
        assert row["null_entropy_rank_low"] == pytest.approx(rows["null_low"].mean())


def test_compare_and_figures_on_the_command_line(tmp_path):
    folder = data_folder()
    paths = [str(folder / name) for name in ("trained-lora-r8", "trained-bora-r8-b8")]
    shown = CliRunner().invoke(main, ["compare", *paths, "--null"])
    assert shown.exit_code == 0, shown.output
    assert "entropy null" in shown.stdout
    rows = pd.read_csv(StringIO(CliRunner().invoke(main, ["compare", *paths, "--null", "--format", "csv"]).stdout))
    expected = summary(analyse(paths).layer_metrics, null=null(analyse(paths)))
    np.testing.assert_allclose(rows["null_effective_rank"], expected["null_effective_rank"])
    assert "null_effective_rank" not in CliRunner().invoke(main, ["compare", *paths, "--format", "csv"]).stdout
    for name, path in (("spectra", paths[1]), ("figure4", paths[1]), ("trajectory", str(folder / "runs" / "lora-r8"))):
        done = CliRunner().invoke(main, ["figure", name, path, "--null", "-o", str(tmp_path / f"{name}.svg")])
        assert done.exit_code == 0, done.output
        assert (
            "null: random factors" in (tmp_path / f"{name}.svg").read_text(encoding="utf-8") or "null:" in done.output
        )
    wrong = CliRunner().invoke(main, ["figure", "heatmap", paths[0], "--null", "-o", str(tmp_path / "x.svg")])
    assert wrong.exit_code == 2
    assert "heatmap has no --null; it has " in wrong.output


def test_figures_draw_the_null_of_what_they_show():
    tables = analyse(data_folder() / "trained-bora-r8-b8")
    found = null(tables)
    figure = figures.spectra(tables.spectra, null=found, projection="v")
    rows = found.spectra[found.spectra["projection"] == "v"]
    expected = rows.groupby("index")["null_mean"].median()
    name = "trained-bora-r8-b8"
    np.testing.assert_allclose(ydata(figure, f"null:{name}:64"), expected)
    assert artist(figure, f"null band:{name}:64")
    assert "null: random factors" in legend_texts(figure)
    lower = figures.figure4(tables.spectra, null=found)
    ranks = found.layer_metrics.query("metric == 'effective_rank' and projection == 'q'").sort_values("layer")
    np.testing.assert_allclose(ydata(lower, f"null:{name}"), ranks["null_mean"])
    run = analyse(data_folder() / "runs" / "bora-r8-b8")
    over = figures.trajectory(run.layer_metrics, null=True)
    means = null(run).layer_metrics.query("metric == 'entropy_rank'").groupby("step")["null_mean"].mean()
    np.testing.assert_allclose(ydata(over, "null:bora-r8-b8"), means)
    made = figures.spectra(data_folder() / "trained-bora-r8-b8", null=True, projection="v")
    np.testing.assert_allclose(ydata(made, f"null:{name}:64"), expected)
    with pytest.raises(ValueError, match="null=True needs adapters"):
        figures.spectra(tables.spectra, null=True)
    with pytest.raises(ValueError, match="rank_bound has no null; expected one of"):
        figures.trajectory(run.layer_metrics, null=True, metric="rank_bound")
