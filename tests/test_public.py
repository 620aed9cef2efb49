"""The public names: each explains itself, and each that takes an adapter takes all that stands for one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft_models import tiny_llama

import bora_analysis
from bora_analysis import (
    Adapter,
    AdapterError,
    Null,
    Similarity,
    Spectrum,
    Trajectory,
    analyse,
    analyze,
    base_metrics,
    bora,
    compare,
    consensus,
    convert,
    dense,
    factor_table,
    layer_metrics,
    lora,
    melora,
    merge,
    null,
    read_adapter,
    recommend,
    similarity,
    singular_values,
    spectra,
    summary,
    synthetic_adapter,
    verdict,
    write_adapter,
)  # fmt: skip
from bora_analysis.analysis.given import adapters_of, layers_of, tables_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]
CONFIG: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


@pytest.mark.parametrize("name", dir(bora_analysis))
def test_every_public_name_explains_itself(name: str) -> None:
    thing = getattr(bora_analysis, name)
    text = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert "Examples\n--------\n" in text
        assert ">>> " in text
    if inspect.isfunction(thing):
        assert "Returns\n-------\n" in text


def test_the_import_costs_nothing() -> None:
    code = "import sys; import bora_analysis; print(*sys.modules)"  # what it imports is what it costs
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert not {"numpy", "pandas", "torch", "peft"} & modules
    assert [name for name in modules if name.startswith("bora_analysis")] == ["bora_analysis"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One adapter in every form, by the name of the form."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), LoraConfig(**CONFIG))
    model.save_pretrained(str(folder / "mine"))
    base: Any = tiny_llama()
    base.save_pretrained(str(folder / "base"))
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    native: Any = tiny_llama()
    native.add_adapter(LoraConfig(**CONFIG))
    for key, value in get_peft_model_state_dict(native, save_embedding_layers=False).items():
        value.data.copy_(state[f"base_model.model.{key}"])
    adapter: Any = read_adapter(folder / "mine")
    return {
        "str": str(folder / "mine"),
        "path": folder / "mine",
        "adapter": adapter,
        "trajectory": Trajectory("mine", (adapter,)),
        "mapping": dict(adapter.items()),
        "torch": state,
        "numpy": {key: value.numpy() for key, value in state.items()},
        "peft": model,
        "data-parallel": torch.nn.DataParallel(model),
        "compiled": torch.compile(model),
        "transformers": native,
        "list": [folder / "mine"],
        "iterator": [adapter],
    }


FORMS = (
    "str", "path", "adapter", "trajectory", "mapping", "torch", "numpy", "peft", "data-parallel", "compiled",
    "transformers", "list", "iterator",
)  # fmt: skip


def frame(table: pd.DataFrame) -> pd.DataFrame:
    """Without the adapters' names, which differ by form."""
    return table.drop(columns=[name for name in table if str(name).startswith("adapter")]).reset_index(drop=True)


def values(found: dict[str, Spectrum]) -> pd.DataFrame:
    return pd.DataFrame([(module, sigma) for module, spectrum in found.items() for sigma in spectrum.values])


FUNCTIONS: dict[str, Any] = {
    "analyse": lambda x, _, **o: frame(analyse(x, **o).spectra),
    "layer_metrics": lambda x, _, **o: frame(layer_metrics(x, **o)),
    "spectra": lambda x, _, **o: frame(spectra(x, **o)),
    "summary": lambda x, _, **o: frame(summary(x, **o)),
    "recommend": lambda x, _, **o: frame(recommend(x, **o).table),
    "similarity": lambda x, _, **o: frame(similarity(x, x, **o).grid),
    "factor_table": lambda x, _, **o: frame(factor_table(x, **o)),
    "convert": lambda x, folder, **o: frame(convert(x, folder / "lora", force=True, **o).table),
    "merge": lambda x, _, **o: frame(layer_metrics(merge(x if isinstance(x, list) else [x], **o))),
    "base_metrics": lambda x, folder, **o: frame(base_metrics(x, folder / "base", **o)),
    "singular_values": lambda x, _, **o: values(singular_values(x, **o)),
    "verdict": lambda x, _, **o: pd.DataFrame([verdict(x, **o)]),
    "tables_of": lambda x, _, **o: frame(tables_of(x, **o).layer_metrics),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_takes_every_form(function: str, form: str, given: dict[str, Any]) -> None:
    call, folder = FUNCTIONS[function], given["path"].parent
    expected = call(given["adapter"], folder, modules="q_proj")
    source = iter(given[form]) if form == "iterator" and function not in ("similarity", "merge") else given[form]
    state = {"config": {"peft_type": "LORA", **CONFIG}} if form in ("torch", "numpy") else {}
    found = call(source, folder, modules="q_proj", **state)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)
    assert len(found)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_stands_for_no_adapter_is_said(function: str, given: dict[str, Any]) -> None:
    call, folder = FUNCTIONS[function], given["path"].parent
    wrong = (None, 5, {}, {"q": 1}, [], [None], tiny_llama(), torch.nn.Sequential(torch.nn.Linear(2, 2)))
    for thing in (*wrong, pd.DataFrame({"module": ["q"], "rank": [1]})):
        with pytest.raises(TypeError, match=r"^got .*; expected .*") as told:
            call(thing, folder)
        assert "state dict" in str(told.value) or "layer_metrics" in str(told.value)
    with pytest.raises(AdapterError, match=r"^nonsense/path/x: no such file or folder"):
        call("nonsense/path/x", folder)
    with pytest.raises(TypeError, match=r"unknown option 'alhpa'.*did you mean alpha\?"):
        call(given["path"], folder, alhpa=4)
    with pytest.raises(TypeError, match=r"^alpha is an option of reading, and .* has been read already"):
        call(given["adapter"], folder, alpha=4)


def test_options_of_reading_pass_through_every_function(given: dict[str, Any]) -> None:
    assert layer_metrics(given["path"], alpha=12)["scaling"].unique().tolist() == [6.0]
    assert read_adapter(given["numpy"], alpha=12)["layers.0.self_attn.q_proj"].facts.scaling == 6.0
    assert layer_metrics([given["adapter"], given["path"]], alpha=12)["scaling"].unique().tolist() == [3.0, 6.0]
    settings = {"peft_type": "LORA", **CONFIG, "lora_alpha": 2}
    assert layer_metrics(given["path"], config=settings)["scaling"].unique().tolist() == [1.0]
    assert read_adapter(given["peft"], name="now").name == read_adapter(given["mapping"], name="now").name
    with pytest.raises(AdapterError, match="has no adapter 'other'; it has default"):
        read_adapter(given["peft"], adapter="other")


def test_tables_frames_and_other_spellings(given: dict[str, Any]) -> None:
    tables = analyze(given["adapter"])
    assert analyze is analyse
    assert compare is summary
    pd.testing.assert_frame_equal(summary(tables.layer_metrics), compare(tables))
    assert recommend(tables).config == recommend(given["path"]).config
    assert verdict(tables) == verdict(layers_of(tables.layer_metrics))
    found = similarity(given["path"], given["peft"])
    grid, table = found
    assert isinstance(found, Similarity)
    assert grid is found.grid
    assert table is found.table


def test_adapters_of_one_name_are_told_apart(given: dict[str, Any]) -> None:
    metrics = layer_metrics([given["peft"], given["transformers"]])
    assert metrics["adapter"].unique().tolist() == ["default", "default (2)"]


def test_a_model_with_several_active_adapters_wants_a_name() -> None:
    model: Any = tiny_llama()
    for name in ("one", "two"):
        model.add_adapter(LoraConfig(**CONFIG), adapter_name=name)
    model.set_adapter(["one", "two"])
    with pytest.raises(AdapterError, match=r"2 active adapters \(one, two\); name one"):
        read_adapter(model)
    assert read_adapter(model, adapter="two").name == "two"


def test_bfloat16_arrays_and_what_is_no_tensor(given: dict[str, Any]) -> None:
    half = {key: value.bfloat16() for key, value in given["torch"].items()}
    arrays = {key: value.astype("bfloat16") for key, value in given["numpy"].items()}
    config = {"peft_type": "LORA", **CONFIG}
    one, two = (adapters_of(state | {"step": 3}, config=config)[0] for state in (half, arrays))
    assert one.passed_over == two.passed_over == ("step",)
    pd.testing.assert_frame_equal(layer_metrics(one), layer_metrics(two))
    assert next(iter(two.values())).facts.dtype == "bfloat16"


SHAPES = {f"model.layer.{k}.self.{name}": (32, 24) for k in (0, 1, 10) for name in ("query", "value")}


def test_modules_by_the_ends_of_their_paths() -> None:
    adapter = synthetic_adapter("lora", SHAPES, r=2)
    for asked in ("model.layer.1.self.query", "layer.1.self.query", "1.self.query", "layer.1.query"):
        assert (adapter[asked].to_dense() == adapter["model.layer.1.self.query"].to_dense()).all()
    with pytest.raises(KeyError, match=r"self\.query fits 3 modules of lora-r2: model.layer.0.self.query, "):
        adapter["self.query"]
    with pytest.raises(KeyError, match=r"has no module layer\.1.qeury; close to it: model.layer.1.self.query"):
        adapter["layer.1.qeury"]
    with pytest.raises(KeyError, match="has no module uery"):
        adapter["uery"]
    assert "layer.1.query" not in adapter
    assert adapter.get("nothing") is None


def test_reprs_are_one_short_line(tmp_path: Path, given: dict[str, Any]) -> None:
    adapter = synthetic_adapter("bora", SHAPES, r=2, blocks=4)
    things = [adapter, Trajectory("run", (adapter,)), adapter["1.self.query"], analyse(adapter), recommend(adapter)]
    things += [singular_values(adapter["1.self.query"]), convert(adapter, tmp_path / "lora"), given["adapter"]]
    things += [null(adapter, draws=2), consensus([adapter, synthetic_adapter("bora", SHAPES, r=4, blocks=4)])]
    things += [dense(np.ones((3, 2))), melora([np.ones((2, 1))] * 2, [np.ones((1, 3))] * 2)]
    for thing in things:
        assert len(repr(thing)) < 160
        assert "\n" not in repr(thing)
    for thing in things:
        if hasattr(thing, "_repr_html_"):
            html = thing._repr_html_()
            assert html.count("<tr") <= 9
            assert "<table" in html
    assert repr(things[2]) == "BoRA 32×24, r = 2, b = 4, rank ≤ 8"
    assert verdict(adapter) in adapter._repr_html_()
    assert verdict(adapter) in analyse(adapter)._repr_html_()
    assert all(hasattr(thing, "_repr_html_") for thing in things if hasattr(thing, "table") or isinstance(thing, Null))


def test_cards_are_escaped_and_never_fail() -> None:
    hostile = Adapter.from_updates("<script>", {"<b>": lora(np.eye(4)[:, :2], np.eye(2, 4))})
    assert "<script>" not in hostile._repr_html_()
    assert "<b><b>" not in hostile._repr_html_()

    def fail() -> Any:
        raise AdapterError("gone")

    broken = Adapter("broken", "lora", None, None, {"q": fail})
    assert broken._repr_html_() == "<b>&lt;Adapter broken: LoRA, 1 module&gt;</b>"
    many = Adapter("m", "lora", None, None, {f"{k}": fail for k in range(501)})
    for heavy in (Adapter("d", "dora", None, None, {"q": fail}), many):
        assert "<table" not in heavy._repr_html_()
    assert Trajectory("empty", ())._repr_html_() == "<b>&lt;Trajectory empty: 0 checkpoints&gt;</b>"


def test_views_of_an_adapter() -> None:
    adapter = synthetic_adapter("lora", SHAPES, r=2)
    run = Trajectory("run", (adapter,))
    for thing in (adapter, run):
        pd.testing.assert_frame_equal(thing.metrics(threshold=1.0), layer_metrics(adapter, threshold=1.0))
        pd.testing.assert_frame_equal(thing.spectra(modules="query"), spectra(adapter, modules="query"))
        pd.testing.assert_frame_equal(thing.summary(), summary(adapter))
        assert thing.plot("spectra", projection="q").axes
        assert thing.plot().axes


def test_arithmetic_of_updates() -> None:
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((8, 2)), rng.standard_normal((2, 6))
    updates = [lora(B, A), bora(B, A, rng.standard_normal((2, 2, 2))), dense(rng.standard_normal((8, 6)))]
    for one in updates:
        assert one.shape == (8, 6)
        for two in updates:
            for found, exact in (
                (one + two, one.to_dense() + two.to_dense()),
                (one - 2 * two, one.to_dense() - 2 * two.to_dense()),
                (-one * np.float64(3) + two / 2, -3 * one.to_dense() + two.to_dense() / 2),
                (np.float32(0.5) * one, one.to_dense() / 2),
            ):
                np.testing.assert_allclose(found.to_dense(), exact, atol=1e-12)
    with pytest.raises(ValueError, match="cannot add updates of shapes 8×6, 2×2"):
        _ = updates[0] + dense(np.eye(2))
    for wrong in (lambda: updates[0] + 1, lambda: updates[0] * "2", lambda: updates[0] * updates[1]):
        with pytest.raises(TypeError):
            wrong()


def test_verdicts(tmp_path: Path) -> None:
    still = write_adapter(tmp_path / "x", "lora", {"q": {"B": np.zeros((8, 1)), "A": np.ones((1, 8))}}, alpha=1)
    assert verdict(still).startswith("ΔW = 0 in every module")
    flat = lora(np.eye(32, 4), np.eye(4, 32))
    assert verdict({"q": flat}) == "99 % of the energy in 4 of 4 directions; rank short; next: recommend"


class Terminal:
    """A standard error that says it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_a_bar_in_terminals_only_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm.auto

    adapter = synthetic_adapter("lora", SHAPES, r=2)
    bars: list[Any] = []

    class Recorded(tqdm.auto.tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            bars.append(options)
            super().__init__(*args, **options)

    monkeypatch.setattr(tqdm.auto, "tqdm", Recorded)
    layer_metrics(adapter)
    assert not bars
    monkeypatch.setattr(sys, "stderr", Terminal())
    calls = []
    layer_metrics(adapter, on_module=lambda: calls.append(1))
    assert (bars, len(calls)) == ([], 6)
    layer_metrics(adapter)
    assert (bars[0]["total"], bars[0]["delay"]) == (6, 1)


def test_arrays_and_paths_need_neither_torch_nor_peft(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "x", "lora", {"q": {"B": np.ones((8, 1)), "A": np.ones((1, 8))}}, alpha=1)
    code = (
        "import sys, numpy as np; from bora_analysis import layer_metrics\n"
        "state = {'q.lora_A.weight': np.ones((1, 3)), 'q.lora_B.weight': np.ones((4, 1))}\n"
        f"print(len(layer_metrics([state, {str(folder)!r}])), {{'torch', 'peft'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 set()\n"
