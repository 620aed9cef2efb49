"""Sums and differences of adapters, through PEFT and dense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import STRUCTURES, updates
from hypothesis import given, settings
from hypothesis import strategies as st
from peft_cases import METHODS, adapted, base, layers, load

from bora_analysis import Adapter, AdapterError, convert, dense, lora, merge, read_adapter, similarity, singular_values
from bora_analysis.adapters.synthetic import synthetic_adapter
from bora_analysis.analysis.conversion import truncated
from bora_analysis.methods.sbora import build
from bora_analysis.updates.contract import Facts, Update

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")
SHAPES = {f"layers.{k}.q_proj": (48, 32) for k in (0, 2, 10)}


@pytest.mark.parametrize("structure", STRUCTURES)
@given(data=st.data())
@settings(max_examples=25)
def test_the_sum_is_that_of_the_dense_updates(structure: str, data: st.DataObject) -> None:
    one, exact = data.draw(updates(structure))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    other = rng.standard_normal(exact.shape)
    weights = data.draw(st.lists(st.sampled_from([1.0, -1.0, 0.5, 0.0, -3.0]), min_size=3, max_size=3))
    parts = [one, dense(other), lora(other[:, :1], other[:1], any_rank=True)]
    total = merge([Adapter.from_updates(str(k), {"q": part}) for k, part in enumerate(parts)], weights)["q"]
    expected = weights[0] * exact + weights[1] * other + weights[2] * other[:, :1] @ other[:1]
    scale = sum(abs(w) * np.linalg.norm(part.to_dense()) for w, part in zip(weights, parts, strict=True))
    assert np.linalg.norm(total.to_dense() - expected) <= 1e-13 * max(scale, 1e-300)
    assert total.facts.parameters == sum(part.facts.parameters for part in parts)
    assert total.facts.rank_bound == min(exact.shape)  # the dense one alone has it
    assert (total.facts.scaling, total.facts.method) == (1.0, "sum")


def test_two_adapters_through_peft(tmp_path: Path) -> None:
    """A BoRA and a MELoRA of one model, merged by PEFT one after the other, and our LoRA of 1·BoRA − 0.5·MELoRA."""
    exact: dict[str, Any] = {}
    for name, weight in (("bora", 1.0), ("melora", -0.5)):
        model = adapted("llama", METHODS[name](lora_alpha=5))
        model.save_pretrained(tmp_path / name)
        for key, layer in layers(model).items():
            exact[key] = exact.get(key, 0) + weight * layer.get_delta_weight("default").detach().double().numpy()
    parts: list[Any] = [read_adapter(tmp_path / name) for name in ("bora", "melora")]
    done = convert(merge(parts, [1, -0.5]), tmp_path / "sum")
    plain = {name: value.detach().numpy() for name, value in base("llama").named_parameters()}
    merged = load(base("llama"), tmp_path / "sum").merge_and_unload()
    after = {name: value.detach().numpy() for name, value in merged.named_parameters()}
    for key, value in exact.items():
        found = after[f"{key}.weight"].astype(np.float64) - plain[f"{key}.weight"]
        np.testing.assert_allclose(found, value, atol=1e-5 * np.abs(value).max())
        assert done.cuts[key].rank == np.linalg.matrix_rank(value, tol=1e-5)


def test_an_adapter_less_itself_is_zero_and_relora_is_the_sum_of_its_stages() -> None:
    stages = [synthetic_adapter("lora", SHAPES, r=3, seed=seed) for seed in range(3)]
    total = merge(stages)
    assert total.name == "lora-r3+lora-r3+lora-r3"
    assert list(total) == list(SHAPES)
    for module in SHAPES:
        exact = sum(stage[module].to_dense() for stage in stages)
        found = singular_values(total[module]).values
        np.testing.assert_allclose(found, np.linalg.svd(exact, compute_uv=False)[:9], rtol=1e-10)
        assert total[module].facts.rank_bound == 9
        nothing = merge([stages[0], stages[0]], [1, -1])[module]
        assert np.abs(nothing.to_dense()).max() <= 1e-16
        assert truncated(nothing)[2].rank == 0  # what is left is rounding, however it compares with itself
        other: Any = stages[1][module]
        almost = lora(other.B[0] * 1e-9, other.A[0])
        small = merge([stages[0], Adapter.from_updates("e", {module: almost}), stages[0]], [1, 1, -1])[module]
        assert truncated(small)[2].rank == 3


def test_the_sum_keeps_what_is_known_of_its_parts() -> None:
    """Rows and columns that can change, the kind of layer, the dtype; a part that can change all of them decides."""
    rng = np.random.default_rng(0)
    known = {"dtype": "float16", "size": 6, "scaling": 2.0}
    one = build(rng.standard_normal((5, 2)), side="B", index=np.array([0, 3]), **known)
    two = build(rng.standard_normal((5, 3)), side="B", index=np.array([1, 2, 3]), **known)
    whole = lora(rng.standard_normal((5, 1)), rng.standard_normal((1, 6)))

    def total(*parts: Update) -> Facts:
        return merge([Adapter.from_updates(str(k), {"q": part}) for k, part in enumerate(parts)])["q"].facts

    assert (total(one).support_rows, total(one).support_columns) == (None, 2)
    assert (total(one, two).support_columns, total(one, two, two).support_columns) == (5, 6)
    assert (total(one, two).r, total(one, two).dtype) == (5, "float16")
    assert total(one, whole).support_columns is None
    kernel = {"kind": "conv", "kernel": (3, 1)}
    assert total(*[replace(whole, facts=replace(whole.facts, **kernel))] * 2).kernel == (3, 1)


@pytest.mark.parametrize("stages", [2, 4])
def test_a_sum_of_full_rank_can_be_converted(tmp_path: Path, stages: int) -> None:
    """r = 3 each, and a layer of four rows: no rank has to be chosen, and rounding is not taken for rank."""
    adapters = [synthetic_adapter("lora", {"q_proj": (4, 32)}, r=3, seed=seed) for seed in range(stages)]
    exact = sum(adapter["q_proj"].to_dense() for adapter in adapters)
    done = convert(merge(adapters), tmp_path / "sum", dtype="float64")
    assert done.cuts["q_proj"].rank == 4
    found: Any = read_adapter(tmp_path / "sum")
    np.testing.assert_allclose(found["q_proj"].to_dense(), exact, rtol=1e-12, atol=1e-15)
    nothing = merge([*adapters, *adapters], [1.0] * stages + [-1.0] * stages)
    assert truncated(nothing["q_proj"])[2].rank == 0


def test_a_missing_module_is_zero_and_said() -> None:
    one, two = synthetic_adapter("lora", SHAPES, r=2, name="one"), synthetic_adapter("bora", SHAPES, r=2, blocks=2)
    few = Adapter("few", two.method, None, None, {"layers.2.q_proj": two.loaders["layers.2.q_proj"]})
    total = merge([one, few], [1, 2], name="both")
    assert total.name == "both"
    assert total.warnings == ("few lacks 2 of 3 modules; its update there is zero (layers.0.q_proj, layers.10.q_proj)",)
    np.testing.assert_allclose(total["layers.0.q_proj"].to_dense(), one["layers.0.q_proj"].to_dense(), rtol=1e-12)
    expected = one["layers.2.q_proj"].to_dense() + 2 * two["layers.2.q_proj"].to_dense()
    np.testing.assert_allclose(total["layers.2.q_proj"].to_dense(), expected, rtol=1e-9, atol=1e-15)


def test_what_cannot_be_added() -> None:
    one = Adapter.from_updates("one", {"q": lora(np.ones((4, 1)), np.ones((1, 4)))})
    two = Adapter.from_updates("two", {"q": lora(np.ones((4, 1)), np.ones((1, 5)))})
    with pytest.raises(AdapterError, match=r"q differs in shape or kind: one 4×4 \(linear\), two 4×5"):
        merge([one, two])["q"]
    for adapters, weights, part in (
        ([one], [1, 2], "1 adapters and 2 weights"),
        ([one], [np.nan], "finite"),
    ):
        with pytest.raises(AdapterError, match=part):
            merge(adapters, weights)
    with pytest.raises(TypeError, match=r"an empty list; expected a path or Hub id, .* or a list of these$"):
        merge([])


def test_adapters_of_several_base_models_are_added_only_by_force(tmp_path: Path) -> None:
    q, k = {"q": lora(np.ones((4, 1)), np.ones((1, 4)))}, {"k": lora(np.ones((4, 1)), np.ones((1, 4)))}
    one, two = (replace(Adapter.from_updates(name, q), base_model=f"org/{name}") for name in ("one", "two"))
    alone = replace(Adapter.from_updates("alone", k), base_model="org/one")
    for pair, part in (([one, two], "have 2 base models: one of org/one, two of org/two"), ([one, alone], "in common")):
        for act in (merge, lambda pair: similarity(*pair)):
            with pytest.raises(AdapterError, match=f"{part}.*force"):
                act(pair)
        total = merge(pair, force=True)
        assert part in total.warnings[0]
    assert similarity(one, two, force=True).table["phi_left"].item() == pytest.approx(1)
    with pytest.raises(AdapterError, match="no module in common"):
        similarity(one, alone, force=True)
    assert (merge([one, one]).base_model, merge([one, two], force=True).base_model) == ("org/one", None)
    assert convert(merge([one, one]), tmp_path).base_model == "org/one"
