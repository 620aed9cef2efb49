"""What is written is read back, by us and by PEFT."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft_models as models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bora_analysis.adapters import Adapter, AdapterError, read_adapter, write_adapter
from bora_analysis.adapters.synthetic import Synthetic, write_synthetic
from bora_analysis.catalogue import METHODS as CATALOGUE
from bora_analysis.updates.blocks import BlockProduct, bora, lora, melora
from bora_analysis.updates.contract import Update

RNG = np.random.default_rng(11)


def one(path: Path, **options: Any) -> Adapter:
    adapter = read_adapter(path, **options)
    assert isinstance(adapter, Adapter)
    return adapter


@st.composite
def modules(draw: st.DrawFn) -> tuple[str, dict[str, dict[str, Any]]]:
    method = draw(st.sampled_from(["lora", "rslora", "melora", "bora"]))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    numbers = st.floats(-8, 8, width=16)

    def array(*shape: int) -> np.ndarray:
        return draw(arrays(dtype, shape, elements=numbers))

    out = {}
    for name in draw(st.sets(st.sampled_from(["q", "layers.1.q", "layers.10.q", "a+b", "weight", "lora"]), min_size=1)):
        b, p, q = (draw(st.integers(1, 3)) for _ in range(3))
        r = draw(st.integers(1, b * max(p, q) if method != "melora" else max(p, q)))
        if method == "melora":
            out[name] = {"A": array(b, r, q), "B": array(b, p, r)}
        else:
            out[name] = {"A": array(r, b * q), "B": array(b * p, r)}
        if method == "bora":
            out[name]["sigma"] = array(b, b, r)
    return method, out


@given(modules(), st.floats(0.25, 64))
@settings(max_examples=80, deadline=None)
def test_round_trip(drawn: tuple[str, dict[str, dict[str, Any]]], alpha: float) -> None:
    method, made = drawn
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(folder, method, made, alpha=alpha, activation="no-exp")
        adapter = one(Path(folder))
        assert (adapter.method, adapter.warnings, set(adapter)) == (method, (), set(made))
        for module, factors in made.items():
            r = factors["A"].shape[-2]
            scaling = alpha / (r**0.5 if method == "rslora" else r)
            if method == "bora":
                expected: Update = bora(**factors, scaling=scaling, activation="no-exp")
            elif method == "melora":
                expected = melora(list(factors["B"]), list(factors["A"]), scaling=scaling)
            else:
                expected = lora(**factors, scaling=scaling, method=method)
            assert adapter[module].facts == expected.facts
            np.testing.assert_array_equal(adapter[module].to_dense(), expected.to_dense())


@given(arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
@settings(max_examples=80, deadline=None)
def test_bfloat16_rounds_as_torch_does(values: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(folder, "lora", {"q": {"A": values, "B": np.ones((4, 3))}}, alpha=3, dtype="bfloat16")
        adapter = one(Path(folder))
        update = adapter["q"]
        assert isinstance(update, BlockProduct)
        assert update.facts.dtype == "bfloat16"
        np.testing.assert_array_equal(update.A[0], torch.from_numpy(values).bfloat16().float().numpy())


def test_torch_tensors_are_accepted(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    A = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    write_adapter(tmp_path, "lora", {"q": {"A": A, "B": torch.ones(3, 2)}}, alpha=2, dtype="bfloat16")
    np.testing.assert_array_equal(one(tmp_path)["q"].to_dense()[0], A.double().sum(0).numpy())


PEFT_HAS = ("adalora", "loha", "lokr", "gralora", "krona", "delora", "vera", "vblora", "miss", "c3a", "fourierft")
REST = ("pvera", "shira", "tinylora", "unilora", "randlora", "supertuning", "supra")


@pytest.mark.parametrize("method", [*PEFT_HAS, *REST, "bdlora-a", "bdlora-b"])
def test_peft_loads_the_other_methods_too(tmp_path: Path, method: str) -> None:
    """Two projections of different sizes, through patterns where the method's settings depend on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        # SHiRA's entries do not fit into a smaller layer.
        model = models.tiny_llama(**({"hidden_size": 80, "intermediate_size": 96} if method == "shira" else {}))
    before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    shapes = {
        name.removesuffix(".weight"): tuple(p.shape)
        for name, p in model.named_parameters()
        if "q_proj" in name or "down_proj" in name
    }
    assert len(set(shapes.values())) == 2
    recipe = CATALOGUE[method]
    r = 1 if method == "lokr" or not recipe.ranked else 2
    raw = Synthetic(method, shapes, r, 2 if recipe.blocks else 1, 5 if recipe.scaled else None)
    write_synthetic(tmp_path, raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = peft.PeftModel.from_pretrained(model, tmp_path).merge_and_unload()
    adapter = one(tmp_path)
    after = dict(merged.named_parameters())
    for module, update in adapter.items():
        added = after[f"{module}.weight"].detach().double().numpy() - before[f"{module}.weight"]
        assert models.distance(update.to_dense(), added) < 1e-5


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_peft_loads_what_is_written(tmp_path: Path, method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")
        model = models.tiny_llama()
    before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    made = {
        name.removesuffix(".weight"): {
            "A": RNG.standard_normal((1 + layer, p.shape[1]), dtype=np.float32),
            "B": RNG.standard_normal((p.shape[0], 1 + layer), dtype=np.float32),
        }
        for layer in range(2)
        for name, p in model.named_parameters()
        if f"layers.{layer}." in name and ("q_proj" in name or "down_proj" in name)
    }
    write_adapter(tmp_path, method, made, alpha=5)
    adapter = one(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(model, tmp_path)
    merged = {name: p.detach().double().numpy() for name, p in loaded.merge_and_unload().named_parameters()}
    changed = {name.removesuffix(".weight") for name in before if (before[name] != merged[name]).any()}
    assert changed == set(adapter) == set(made)
    for module, update in adapter.items():
        assert models.distance(update.to_dense(), merged[f"{module}.weight"] - before[f"{module}.weight"]) < 1e-5


class Lazy(Mapping[str, Mapping[str, Any]]):
    """Makes a module when it is asked for, and counts."""

    def __init__(self) -> None:
        self.made = 0

    def __getitem__(self, module: str) -> dict[str, np.ndarray]:
        self.made += 1
        return {"A": np.full((1, 3), self.made, np.float32), "B": np.ones((2, 1), np.float32)}

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b", "c"])

    def __len__(self) -> int:
        return 3


def test_modules_are_made_one_at_a_time(tmp_path: Path) -> None:
    lazy = Lazy()
    write_adapter(tmp_path, "lora", lazy, alpha=1)
    assert lazy.made == 3
    assert [update.to_dense()[0, 0] for update in one(tmp_path).values()] == [1, 2, 3]


def test_configuration(tmp_path: Path) -> None:
    made = {"q": {"A": np.ones((2, 6)), "B": np.ones((4, 2)), "sigma": np.ones((2, 2, 2))}}
    folder = write_adapter(
        tmp_path / "new" / "folder",
        "bora",
        made,
        alpha=4,
        rslora=True,
        base_model="org/base",
        extra_config={"note": "é"},
    )
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "BORA"
    assert (config["num_blocks"], config["activation"], config["use_rslora"]) == (2, "exp-norm", True)
    assert (config["base_model_name_or_path"], config["note"], config["target_modules"]) == ("org/base", "é", ["q"])
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert one(folder)["q"].facts.scaling == 4 / 2**0.5


ONES = {"A": np.ones((2, 6)), "B": np.ones((4, 2))}
VERA = {**ONES, "lambda_b": np.ones(4), "lambda_d": np.ones(2), "shape": np.array([4, 6])}


def test_sizes_in_the_configuration(tmp_path: Path) -> None:
    """What our writer puts there; the caller's go before, and what is no size is refused."""
    write_adapter(tmp_path, "vera", {"q": {**VERA, "shape": np.array([4, 5])}, "k": VERA}, alpha=None)
    adapter = one(tmp_path)
    assert [adapter[module].facts.in_features for module in ("q", "k")] == [5, 6]
    assert not adapter.warnings
    assert one(tmp_path, shapes={"q": (4, 3), "k": (4, 6)})["q"].facts.in_features == 3
    place = tmp_path / "adapter_config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    for wrong in ([4], [4, 0], [4, "6"], "4x6"):
        place.write_text(json.dumps(config | {"bora_analysis_shapes": {"q": wrong, "k": [4, 6]}}), encoding="utf-8")
        with pytest.raises(AdapterError, match=r"bora_analysis_shapes gives q .*expected \[m, n\]"):
            one(tmp_path)["q"]
    place.write_text(json.dumps(config | {"bora_analysis_shapes": [4, 6]}), encoding="utf-8")
    with pytest.raises(AdapterError, match="bora_analysis_shapes"):
        one(tmp_path)


@pytest.mark.parametrize(
    ("method", "made", "options", "expected"),
    [
        ("full", {"q": ONES}, {}, "'full' cannot be written"),
        ("dora", {"q": ONES}, {}, "q: factors are A, B; expected A, B, magnitude, W0"),
        ("lora", {}, {}, "no modules"),
        ("lora", {"q": {"A": np.ones((2, 6))}}, {}, "q: .*expected A, B"),
        ("lora", {"q": {**ONES, "sigma": np.ones((1, 1, 2))}}, {}, "q: .*expected A, B"),
        ("lora", {"q": {**ONES, "A": np.ones((3, 6))}}, {}, "q: B has shape"),
        ("lora", {"q": {**ONES, "A": np.full((2, 6), np.nan)}}, {}, "q: A holds NaN"),
        ("bora", {"q": {**ONES, "sigma": np.ones((3, 3, 2))}}, {}, "q: blocks b = 3"),
        ("bora", {"q": {**ONES, "sigma": np.ones((2, 2, 2))}}, {"activation": "relu"}, "'relu' is unknown"),
        ("melora", {"q": ONES}, {}, "q: A has shape"),
        (
            "miss",
            {"q": {"block": np.ones((2, 4)), "shape": np.array([5, 6])}},
            {"alpha": None},
            "q: block .*expected m = 5",
        ),
        ("vera", {"q": {**VERA, "lambda_b": np.ones(9)}}, {"alpha": None}, "q: lambda_b .*expected m = 4"),
        ("vera", {"q": {**VERA, "shape": np.array([4, 8])}}, {"alpha": None}, "q: lambda_b .*in_features is 8"),
        ("vera", {"q": VERA, "k": {**VERA, "B": np.zeros((4, 2))}}, {"alpha": None}, "k: B is not that of the modules"),
        ("vera", {"q": VERA}, {}, "vera has no α"),
        ("vera", {"q": {**VERA, "shape": np.array([4, 6, 2])}}, {"alpha": None}, "q: factors do not fit .*shape .3"),
        ("bdlora-a", {"q": {**ONES, "nblocks": np.array([3])}}, {}, "q: factors do not fit together: A .2, 6"),
        (
            "vblora",
            {"q": {"A": np.ones((2, 3, 4)), "B": np.ones((2, 3, 4)), "bank": np.ones((4, 2))}},
            {"alpha": None},
            "q: B has shape",
        ),
        ("delora", {"q": {**ONES, "bound": np.ones(1), "norm": np.ones(5)}}, {"alpha": None}, "q: factors do not fit"),
        ("melora", {"q": {"A": np.ones((2, 1, 3)), "B": np.ones((2, 2, 3))}}, {}, "q: "),
        ("lora", {"q": {**ONES, "A": np.ones((2, 6), "f4")}}, {}, "pass dtype="),
        ("lora", {"q": ONES}, {"dtype": "int8"}, "dtype int8"),
        ("lora", {"q": {**ONES, "A": np.full((2, 6), 1e5)}}, {"dtype": "float16"}, "q: A .*range of float16"),
        ("lora", {"q": {**ONES, "A": np.full((2, 6), 3.4e38)}}, {"dtype": "bfloat16"}, "q: A .*range of bfloat16"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, method: str, made: Any, options: dict[str, Any], expected: str) -> None:
    write_adapter(tmp_path, "lora", {"old": ONES}, alpha=1)
    options = {"alpha": 1, **options}
    with pytest.raises(AdapterError, match=f"^[^\n]*{expected}[^\n]*$"):
        write_adapter(tmp_path, method, made, **options)
    assert list(one(tmp_path)) == ["old"]  # what was there is still there, whole
    assert len(list(tmp_path.iterdir())) == 2
