"""The verdict: right for every kind of adapter, by the numbers of the tables and by recommend's rules."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bora_analysis import (
    Adapter,
    Trajectory,
    analyse,
    dense,
    layer_metrics,
    lora,
    read_adapter,
    recommend,
    synthetic_adapter,
    verdict,
)
from bora_analysis.analysis.columns import Columns
from bora_analysis.analysis.verdict import JUDGED, KINDS, judged, short_modules, verdicts
from bora_analysis.bundled import bundled_adapters, data_folder
from bora_analysis.methods.adalora import _pruned


def update(*sigma: float, m: int = 32, n: int = 24) -> Any:
    """A LoRA with these singular values."""
    r = len(sigma)
    return lora(np.eye(m, r) * sigma, np.eye(r, n))


FLAT, STEEP, ENDS = update(1, 1, 1, 1), update(1, 0.01, 0.01, 0.01), update(1, 1, 1, 0.05)


def test_one_module() -> None:
    assert verdict({"h.3.q": FLAT}) == "99 % of the energy in 4 of 4 directions; rank short; next: recommend"
    assert verdict({"h.3.q": STEEP}) == "99 % of the energy in 1 of 4 directions; rank spare; next: recommend"
    assert verdict({"h.3.q": ENDS}) == "99 % of the energy in 3 of 4 directions; rank fits; next: capture"


def test_several_modules_and_which_are_the_ends() -> None:
    modules = {"h.0.attn.q_proj": STEEP, "h.1.attn.q_proj": FLAT, "h.1.attn.v_proj": STEEP, "lm_head": ENDS}
    assert verdict(modules) == (
        "99 % of the energy in 2.2 of 4 directions, from 1 (layer 0 q) to 4 (layer 1 q); rank spare in 2 of 4 modules, "
        "short in 1, fits in 1; next: recommend"
    )


def test_adapters_of_mixed_ranks() -> None:
    text = verdict({"h.0.q": STEEP, "h.1.q": update(*[1.0] * 12)})
    assert text.startswith(
        "99 % of the energy in 6.5 of 4–12 directions, from 1 of 4 (layer 0 q) to 12 of 12 (layer 1 q);"
    )


def test_modules_without_an_update() -> None:
    zero = _pruned(8, 6, 1.0, "float32")  # AdaLoRA prunes to r = 0
    still = lora(np.zeros((8, 2)), np.ones((2, 6)))
    text = verdict({"h.0.q": STEEP, "h.1.q": zero, "h.2.q": still})
    assert text == ("99 % of the energy in 1 of 4 directions; rank spare; ΔW = 0 in 2 of 3 modules; next: recommend")
    for nothing in (zero, still):
        assert verdict({"q": nothing}) == "ΔW = 0 in every module: nothing was trained; next: check"


def test_of_several_steps_the_last_one_of_each_adapter_counts() -> None:
    steps = [
        replace(Adapter.from_updates("run", {"h.0.q": update}), step=step)
        for step, update in ((0, update(0.0, 0.0)), (10, FLAT), (100, STEEP))
    ]
    lone = Adapter.from_updates("lone", {"h.0.q": ENDS})
    assert verdict(Trajectory("run", tuple(steps))) == verdict({"h.0.q": STEEP})
    found = verdicts(layer_metrics([*steps, lone]))
    assert [(each.adapter, each.step, str(each)) for each in found] == [
        ("run", 100, verdict({"h.0.q": STEEP})),
        ("lone", None, verdict({"h.0.q": ENDS})),
    ]
    assert verdict([*steps, lone]).splitlines()[1].startswith("lone: 99 % of the energy in 3 of 4 directions;")


def test_where_the_method_sets_no_bound() -> None:
    rng = np.random.default_rng(0)
    whole = Adapter.from_updates("w", {"h.0.q": dense(rng.standard_normal((24, 20)))})
    assert re.fullmatch(
        r"99 % of the energy in 1\d of 20 directions; any rank is allowed; next: recommend", verdict(whole)
    )
    dora = read_adapter(next(path for path in bundled_adapters() if path.name == "synthetic-lora-r8"))
    table = layer_metrics(dora).assign(method="dora", rank_bound=384)
    assert "any rank is allowed" in verdict(table)  # r = 8, bound 384: not "spare"


def test_a_quick_analysis_does_not_guess() -> None:
    whole = dense(np.random.default_rng(0).standard_normal((256, 260)))
    text = verdict(analyse({"h.0.q": whole}, quick=True))
    assert "99 %" not in text
    assert text.endswith("next: analyze")
    both = verdict(analyse({"h.0.q": whole, "h.1.q": STEEP}, quick=True))
    assert both.startswith("99 % of the energy in 1 of 4 directions; rank spare; 1 of 2 modules were only counted")


@given(st.lists(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), min_size=1, max_size=5))
def test_kinds_are_those_of_recommend(spectra: list[list[float]]) -> None:
    """Module by module, so that recommend's largest rank of a projection does not mix them."""
    modules = {f"h.{k}.q": update(*sigma) for k, sigma in enumerate(spectra)}
    (found,) = verdicts(layer_metrics(modules))
    names = {"wasted": "spare", "exhausted": "short", "fits": "fits"}
    theirs = [names[recommend({module: each}).table["verdict"].item()] for module, each in modules.items()]
    assert found.kinds == {kind: theirs.count(kind) for kind in found.kinds}
    assert sum(found.kinds.values()) == len(theirs)
    assert list(found.kinds.values()) == sorted(found.kinds.values(), reverse=True)
    assert found.next in KINDS.values()


@pytest.mark.parametrize("path", bundled_adapters(), ids=lambda path: path.name)
def test_of_every_bundled_adapter_it_is_one_line(path: Any) -> None:
    if "dora" not in path.name:  # which needs its base model
        text = verdict(path)
        assert "\n" not in text
        assert len(text) < 200
        assert text.startswith("99 % of the energy in ")


def test_short_names_tell_modules_apart() -> None:
    paths = [
        "model.layers.3.self_attn.q_proj", "model.layers.3.mlp.experts.0.w1", "model.layers.3.mlp.experts.1.w1",
        "vision.layers.0.q_proj", "text.layers.0.q_proj", "lm_head", "a.b", "c.b",
    ]  # fmt: skip
    found = short_modules(layer_metrics(dict.fromkeys(paths, FLAT)))
    assert found["model.layers.3.self_attn.q_proj"] == "layer 3 q"
    assert found["model.layers.3.mlp.experts.1.w1"] == "layer 3 gate (mlp.experts.1)"
    assert found["text.layers.0.q_proj"] == "layer 0 q (text.layers.0)"
    assert len(set(found.values())) == len(paths)


def test_synthetic_adapters_of_known_spectra() -> None:
    shapes = {f"layers.{k}.q_proj": (64, 32) for k in range(2)}
    table = layer_metrics(synthetic_adapter("bora", shapes, r=4, blocks=4, kind="gaussian"))
    (found,) = verdicts(table)
    assert f"in {table['energy_rank_99'].mean():.1f} of 16 directions" in found.sentence


def test_lists_say_what_the_frame_says() -> None:
    layers = layer_metrics(data_folder() / "trained-melora-r8-n4").astype({"energy_rank_99": float, "layer": object})
    layers.loc[layers.index[3], "energy_rank_99"] = np.nan
    layers.loc[layers.index[5], "spectral_norm"] = 0.0
    layers.loc[layers.index[0], "layer"] = None
    (expected,) = verdicts(layers)
    for missing in (None, float("nan")):
        columns = {name: [missing if pd.isna(cell) else cell for cell in layers[name]] for name in JUDGED}
        assert judged(expected.adapter, columns) == expected
    assert "1 of 11 modules were only counted; ΔW = 0 in 1 of 12 modules" in expected.sentence


def test_long_paths_are_cut_in_the_middle_and_stay_different():
    """Paths of 180 letters in a verdict made the first screen longer than a terminal."""
    paths = [f"{'trunk_' * 28}block_{k}_{name}" for k in range(3) for name in ("inner", "outer")]
    columns = {"module": paths, "layer": [None] * 6, "projection": [path[:170] + path[-12:] for path in paths]}
    found = list(short_modules(Columns(columns)).values())
    assert len(set(found)) == 6
    assert max(map(len, found)) <= 48
    usual = Columns({"module": ["h.0.q"], "layer": [0], "projection": ["q"]})
    assert list(short_modules(usual).values()) == ["layer 0 q"]
