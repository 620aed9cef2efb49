"""Figures in a notebook: shown as a cell's value, drawn into the user's axes, under the user's labels."""

from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_cases import ADAPTERS, artist, gids, tables, ydata
from matplotlib import image
from matplotlib.figure import Figure

from bora_analysis import analyse, figures, read_adapter, similarity, write_adapter

NAMES = [name for name, *_ in ADAPTERS]
#: Figures of one axes → what a curve or point of an adapter is called in them.
ONE_AXES = {"spectra": "median:", "threshold_sweep": "mean:", "trajectory": "mean:", "pareto": "rank:"}


def python(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.mark.parametrize("name", ["figure1", "figure2", "spectra", "optimal_blocks"])
def test_a_notebook_shows_a_figure(name):
    figure: Any = figures.draw(name, **tables(layers=(0,)))
    picture = image.imread(BytesIO(figure._repr_png_()))
    assert picture.shape[1] == pytest.approx(5.5 * 150, abs=1)
    assert picture.std() > 0.05


SHOWN = "from bora_analysis import figures; print(figures.draw('figure2')._repr_png_()[1:4].decode())"


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "module://not_installed.backend", "no-such-backend", "svg"]
)
def test_figures_need_no_backend(backend, tmp_path):
    """As in a process that a notebook starts in an environment without Jupyter."""
    code = f"{SHOWN}; import os; print(os.environ['MPLBACKEND'])"
    assert python(code, MPLBACKEND=backend) == f"PNG\n{backend}"
    if backend == "no-such-backend":  # the command draws by the same function
        command = [sys.executable, "-m", "bora_analysis", "figure", "figure2", "-o", str(tmp_path / "a.pdf")]
        run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": backend})
        assert run.returncode == 0, run.stderr


def test_figures_look_the_same_after_pyplot():
    code = "import hashlib, bora_analysis.figures as f; print(hashlib.sha256(f.figure2()._repr_png_()).hexdigest())"
    plain = python(code)
    before = "import matplotlib.pyplot as plt; plt.rcParams.update({'font.size': 30, 'figure.dpi': 50}); plt.figure(); "
    assert python(before + code, MPLBACKEND="agg") == plain


@pytest.mark.parametrize("name", ONE_AXES)
def test_a_figure_is_drawn_into_given_axes(name):
    data = tables(steps=(0, 10))
    own = figures.draw(name, **data)
    paper = Figure(figsize=(9, 3), layout="constrained")
    left, right = paper.subplots(1, 2)
    assert figures.draw(name, **data, ax=right, title="A $title$") is paper
    assert tuple(paper.get_size_inches()) == (9, 3)
    assert not left.has_data()
    assert gids(paper, ONE_AXES[name]) == gids(own, ONE_AXES[name])
    for gid in gids(own, ONE_AXES[name]):
        assert ydata(paper, gid) == ydata(own, gid)
    assert right.get_title() == r"A \$title\$"
    legend = right.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [text.get_text() for text in own.legends[0].get_texts()]
    paper.draw_without_rendering()
    box, axes = legend.get_window_extent(), right.get_window_extent()
    assert box.y0 >= axes.y1
    assert box.y1 <= paper.bbox.y1


def test_optimal_blocks_keep_both_legends_in_given_axes():
    halves: Any = Figure(figsize=(9, 4), layout="constrained").subfigures(1, 2)
    paper = halves[0]
    axes = paper.subplots()
    assert figures.draw("optimal_blocks", ax=axes) is paper.figure
    texts = [text.get_text() for text in axes.findobj(lambda each: hasattr(each, "get_text"))]
    assert "open: b that divides m and n" in texts
    assert any(text.startswith("RoBERTa-Base") for text in texts)


def test_names_of_a_pareto_follow_given_axes():
    """They are placed from their points, not from the page."""
    paper = Figure(figsize=(10, 3))
    axes = paper.subplots()
    figures.draw("pareto", **tables(), ax=axes)
    note: Any = next(text for text in axes.texts if text.get_text() == "bora-b4")
    before = np.array(note.get_window_extent().p0) - axes.transData.transform(note.xy)
    axes.set_position((0.3, 0.2, 0.4, 0.5))
    paper.draw_without_rendering()
    np.testing.assert_allclose(np.array(note.get_window_extent().p0) - axes.transData.transform(note.xy), before)


def shown(figure: Figure) -> str:
    texts = figure.findobj(lambda each: hasattr(each, "get_text"))
    return "\n".join(text.get_text() for text in texts)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", [*ONE_AXES, "figure4", "heatmap"])
def test_labels_replace_the_names(name):
    data = tables(steps=(0, 10))
    one = shown(figures.draw(name, **data, labels={"mine": "Ours"}))
    assert "Ours" in one
    assert "lora-r4" in one
    every = shown(figures.draw(name, **data, labels=["one", "two", "three", "four"]))
    assert all(label in every for label in ("one", "two", "three", "four"))
    assert "lora-r4" not in every
    with pytest.raises(
        ValueError, match="label for 'other', which is not in the figure; there are lora-r4, melora-r2, "
    ):
        figures.draw(name, **data, labels={"other": "x"})
    with pytest.raises(ValueError, match="got 1 labels; expected 4, for lora-r4, melora-r2, bora-b4, mine"):
        figures.draw(name, **data, labels=["one"])


def test_labels_of_figures_without_a_table():
    figure = figures.draw("figure1", labels={"LoRA": "plain"})
    assert "plain" in shown(figure)
    assert "BoRA" in shown(figure)
    with pytest.raises(ValueError, match="label for 'x', which is not in the figure; there are LoRA, MELoRA, BoRA"):
        figures.draw("figure1", labels={"x": "y"})


def test_a_source_may_stand_behind_the_name():
    data = tables()
    figure = figures.draw("spectra", data["spectra"])
    assert gids(figure, "median:") == gids(figures.draw("spectra", **data), "median:")
    assert artist(figure, "threshold")
    with pytest.raises(
        ValueError, match="expected the table spectra, which has a column singular_value; the frame has"
    ):
        figures.spectra(data["layer_metrics"])
    with pytest.raises(ValueError, match="figure figure2 is drawn from its options alone"):
        figures.draw("figure2", data["spectra"])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[Path]:
    """Two small adapters on disk."""
    folder, rng = tmp_path_factory.mktemp("adapters"), np.random.default_rng(0)
    for name in ("one", "two"):
        modules = {
            f"layers.{k}.q_proj": {"B": rng.normal(size=(12, 3)), "A": rng.normal(size=(3, 16))} for k in range(2)
        }
        write_adapter(folder / name, "lora", modules, alpha=6)
    return [folder / "one", folder / "two"]


@pytest.mark.parametrize("name", ["figure4", "spectra", "threshold_sweep", "heatmap", "pareto"])
def test_figures_take_whatever_tables_are_made_from(name, adapters, tmp_path):
    read = [read_adapter(path) for path in adapters]
    tables = analyse(read)
    source = figures.FIGURES[name].source
    assert source is not None
    expected = figures.save(figures.draw(name, getattr(tables, source)), tmp_path / "a.svg").read_bytes()
    # What is given becomes tables in one place for all figures: each form for one of them.
    for given in (tables, read, adapters, [str(path) for path in adapters])[0 if name == "spectra" else 3 :]:
        assert figures.save(figures.draw(name, given), tmp_path / "b.svg").read_bytes() == expected
    assert figures.save(figures.draw(name, **{source: adapters}), tmp_path / "b.svg").read_bytes() == expected
    one = figures.draw(name, adapters[0])
    assert "two" not in shown(one)


def test_figures_of_factors_and_pairs_take_adapters(adapters):
    for given in (adapters, [read_adapter(path) for path in adapters]):
        assert {axes.get_gid() for axes in figures.figure1(given).axes} >= {"weights:one", "sigma:two"}
        figure = figures.similarity(given, labels=["ours", "theirs"])
        assert figure.axes[0].get_ylabel() == "i, ours"
    alone = figures.figure1(read_adapter(adapters[0])["layers.1.q_proj"])
    assert "weights:LoRA" in {axes.get_gid() for axes in alone.axes}
    whole = similarity(*adapters)
    assert artist(figures.similarity(whole), "phi:left").get_array().shape == (3, 3)
    with pytest.raises(ValueError, match="similarity shows two adapters; got 1"):
        figures.similarity(adapters[:1])
