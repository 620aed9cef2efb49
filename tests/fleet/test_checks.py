"""Every rule finds what it is for, and nothing where the fault is not."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bora_analysis import Adapter, AdapterError, check, lora, read_adapter, write_adapter
from bora_analysis.fleet.checks import RULES, Report, template
from bora_analysis.fleet.checks.limits import applied

LAYERS, M, N, R = 10, 24, 20, 4
MODULES = [f"model.layers.{k}.self_attn.{name}" for k in range(LAYERS) for name in ("q_proj", "v_proj")]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
STEM = "base_model.model."
THIRD = MODULES[6]  # q of layer 3


def sound(folder: Path, modules: list[str] = MODULES, **options: Any) -> Path:
    """An adapter without a fault: decaying spectra, whose sizes vary by a tenth over the layers."""
    rng = np.random.default_rng(0)
    factors = {}
    for module in modules:
        left, right = (np.linalg.qr(rng.standard_normal((size, R)))[0] for size in (M, N))
        values = 0.3 ** np.arange(R) * np.exp(0.1 * rng.standard_normal())
        factors[module] = {"B": (left * values).astype(np.float32), "A": right.T.astype(np.float32)}
    return write_adapter(folder, "lora", factors, alpha=2 * R, **options)


def tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> Path:
    content = load_file(folder / WEIGHTS)
    change(content)
    save_file(content, folder / WEIGHTS)
    return folder


def settings(folder: Path, **changes: Any) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def key(module: str, factor: str) -> str:
    return f"{STEM}{module}.lora_{factor}.weight"


def base_model(folder: Path, **shapes: tuple[int, int]) -> Path:
    """A base model whose matrices are far larger than ΔW in every direction; ``shapes`` by module, dots as __."""
    rng = np.random.default_rng(1)
    own = dict.fromkeys(MODULES, (M, N)) | {name.replace("__", "."): size for name, size in shapes.items()}
    weights = {}
    for module, (m, n) in own.items():
        left, right = (np.linalg.qr(rng.standard_normal((size, min(m, n))))[0] for size in (m, n))
        values = 200 * 0.9 ** np.arange(min(m, n))
        weights[f"{module}.weight"] = ((left * values) @ right.T).astype(np.float32)
    folder.mkdir()
    save_file({name: array for name, array in weights.items() if array.size > 1}, folder / "model.safetensors")
    return folder


def truncated(x: Path) -> Path:
    (x / WEIGHTS).write_bytes((x / WEIGHTS).read_bytes()[:-50])
    return x


def not_a_number(x: Path) -> Path:
    def change(content: dict[str, np.ndarray]) -> None:
        content[key(THIRD, "A")][1, 2] = np.nan
        content[key(THIRD, "A")][2, :2] = np.inf
        content["base_model.model.score.weight"] = np.full((2, 3), -np.inf, np.float32)

    return tensors(x, change)


def without(x: Path) -> Path:
    return tensors(x, lambda content: [content.pop(key(MODULES[7], factor)) for factor in "AB"])


def doubled(x: Path) -> Path:
    return tensors(x, lambda c: c.update({key(MODULES[10], f): c[key(MODULES[4], f)].copy() for f in "AB"}))


def tiny(x: Path) -> Path:
    """Factors that float32 holds and a product that it does not."""
    both = [key(THIRD, factor) for factor in "AB"]
    return tensors(x, lambda content: content.update({name: content[name] * np.float32(1e-24) for name in both}))


def scaled(x: Path, by: float, module: str = THIRD) -> Path:
    return tensors(x, lambda content: content.update({key(module, "B"): content[key(module, "B")] * np.float32(by)}))


def cancelling(folder: Path) -> Path:
    """B A of two nearly opposite pairs, in bfloat16: the rounding is not small beside what is left."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(N), rng.standard_normal(M)
    A, B = np.stack([a, a + 0.02 * rng.standard_normal(N)]), np.stack([b, -b], axis=1)
    return write_adapter(folder, "lora", {THIRD: {"A": A, "B": B}}, alpha=2, dtype="bfloat16")


def pickled(x: Path) -> Path:
    (x / "training_args.bin").write_bytes(pickle.dumps({"lr": 1e-3}))
    return x


def head(x: Path) -> Path:
    def change(content: dict[str, np.ndarray]) -> None:
        content["base_model.model.lm_head.weight"] = np.ones((400, N), np.float32)
        content["base_model.model.score.weight"] = np.ones((2, N), np.float32)  # too small to matter

    return tensors(x, change)


def flat(folder: Path) -> Path:
    factors = {"B": np.eye(M, R), "A": np.eye(R, N)}
    return write_adapter(folder, "lora", {THIRD: factors}, alpha=R)


def bare(folder: Path) -> Path:
    x = sound(folder)
    (x / CONFIG).unlink()
    return x


def biased(x: Path) -> Path:
    return tensors(x, lambda c: c.update({f"{STEM}{THIRD}.lora_B.bias": np.ones(M, np.float32)}))


DORA = Path(__file__).parents[2] / "data" / "trained-dora-r8"
#: Rule → how to make an adapter that breaks it, the modules found, the values.
CASES: dict[str, tuple[Callable[[Path], Path], list[str], list[Any]]] = {
    "unreadable": (lambda x: truncated(sound(x)), [""], [None]),
    "not-finite": (lambda x: not_a_number(sound(x)), [THIRD, "base_model.model.score.weight"], [3, 6]),
    "nothing-trained": (
        lambda x: tensors(sound(x), lambda c: c.update({k: 0 * v for k, v in c.items() if "lora_B" in k})), [""], [0],
    ),
    "rank": (lambda x: settings(sound(x), r=8, rank_pattern={"layers.[01].*": R}), MODULES[4:], [R] * 16),
    "alpha-sign": (lambda x: settings(sound(x), lora_alpha=-4), MODULES, [-1.0] * 20),
    "alpha-size": (lambda x: settings(sound(x), alpha_pattern={"layers.3.*q_proj": 4e4}), [THIRD], [1e4]),
    "alpha-missing": (bare, [""], [None]),
    "missing-layer": (lambda x: settings(without(sound(x)), target_modules=["q_proj", "v_proj"]), [MODULES[7]], [9]),
    "doubled-layer": (lambda x: doubled(sound(x)), [MODULES[10]], [MODULES[4]]),
    "dead-module": (lambda x: scaled(scaled(sound(x), 0), 1e-5, MODULES[1]), [THIRD, MODULES[1]], [0, 1e-5]),
    "sigma-spike": (lambda x: scaled(sound(x), 40), [THIRD], [40]),
    "underflow": (lambda x: tiny(sound(x)), [THIRD], [None]),
    "precision": (cancelling, [THIRD], [None]),
    "pickle": (lambda x: pickled(sound(x)), [""], ["training_args.bin"]),
    "whole-matrix": (lambda x: head(sound(x)), ["base_model.model.lm_head.weight"], [8000 / (8000 + 40 + 20 * R * 44)]),
    "exhausted": (flat, [THIRD], [1.0]),
    "unused-setting": (
        lambda x: settings(sound(x), target_modules=["q_proj", "v_proj", "o_proj"], rank_pattern={"layers.11.*": R}),
        ["", ""], ["layers.11.*", "o_proj"],
    ),
    "base-needed": (lambda x: DORA, [""], [None]),
    "reader": (lambda x: biased(sound(x)), [""], [None]),
}  # fmt: skip
WITH_BASE = ("base-mismatch", "intruders")
# What a fault brings with it.
ALSO = {"alpha-size": {"sigma-spike"}, "missing-layer": set(), "dead-module": set(), "underflow": {"dead-module"}}


def test_every_rule_has_a_case() -> None:
    assert {*CASES, *WITH_BASE} == {*RULES}
    assert all(row.words[-1] not in ".!" and row.mend.endswith(".") for row in RULES.values())


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_finds_its_fault_and_no_other_does(rule: str, tmp_path: Path) -> None:
    make, modules, values = CASES[rule]
    found = check(make(tmp_path / "mine")).findings
    assert {each.rule for each in found} - ALSO.get(rule, set()) == {rule}
    own = [each for each in found if each.rule == rule]
    assert sorted(each.module for each in own) == sorted(modules)
    for each in own:
        assert (each.severity, each.mend) == (RULES[rule].severity, RULES[rule].mend)
        expected = dict(zip(modules, values, strict=True))[each.module] if len(set(modules)) == len(modules) else None
        if isinstance(expected, int | float):
            assert each.value == pytest.approx(expected, rel=0.3)
        elif expected is not None:
            assert each.value == expected
    if rule == "unused-setting":
        assert [each.value for each in own] == values


@pytest.mark.parametrize("form", ["path", "adapter", "state", "rslora", "bfloat16", "float16"])
def test_nothing_is_found_in_a_sound_adapter(form: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dtype": form} if form.endswith("float16") else {"rslora": form == "rslora"}
    folder = sound(tmp_path / "mine", **options)
    given: Any = folder if form != "adapter" else read_adapter(folder)
    if form == "state":
        config = json.loads((folder / CONFIG).read_text())
        assert check(load_file(folder / WEIGHTS), config=config).findings == ()
        return
    report = check(given)
    assert report.findings == ()
    assert list(report.checked) == ["mine"]


def test_without_tensors_a_module_that_is_not_finite_is_unreadable() -> None:
    state = {key(module, "A"): np.ones((1, 4)) for module in MODULES[:2]}
    state |= {key(module, "B"): np.ones((3, 1)) for module in MODULES[:2]}
    state[key(MODULES[0], "A")][0, 0] = np.nan
    found = check(state, config={"peft_type": "LORA", "r": 1, "lora_alpha": 1}).at_least("error")
    assert [(each.rule, each.module) for each in found] == [("unreadable", MODULES[0])]


def test_the_base_model(tmp_path: Path) -> None:
    folder = sound(tmp_path / "mine")
    shapes = {MODULES[0].replace(".", "__"): (M, N + 1), MODULES[1].replace(".", "__"): (1, 1)}  # one is left out
    wrong = check(folder, base=str(base_model(tmp_path / "wrong", **shapes)))
    assert [(each.rule, each.module) for each in wrong.findings] == [("base-mismatch", name) for name in MODULES[:2]]
    assert "is it the model that was adapted?" in wrong.findings[0].message
    fitting = base_model(tmp_path / "base")
    assert check(folder, base=str(fitting)).findings == ()
    # Larger than all of W0: its directions come first in W0 + ΔW, and W0 has none like them.
    scaled(folder, 1000)
    found = [each for each in check(folder, base=str(fitting)).findings if each.rule == "intruders"]
    assert [(each.module, each.limit) for each in found] == [(THIRD, 0)]
    assert 1 <= float(found[0].value or 0) <= R
    W0 = load_file(fitting / "model.safetensors")[f"{THIRD}.weight"]
    adapter: Any = read_adapter(folder)
    new = np.linalg.svd(W0 + adapter[THIRD].to_dense())[0][:, :10]
    assert found[0].value == int((np.abs(np.linalg.svd(W0)[0].T @ new).max(axis=0) < 0.5).sum())
    with pytest.raises(AdapterError, match="no such folder"):
        check(folder, base="no/such/base/model")


def test_a_faulty_base_model_does_not_stop_the_other_rules(tmp_path: Path) -> None:
    folder, base = pickled(sound(tmp_path / "mine")), base_model(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights[f"{THIRD}.weight"][0, 0] = np.nan
    save_file(weights, base / "model.safetensors")
    found = {each.rule: each.message for each in check(folder, base=str(base)).findings}
    assert {*found} == {"pickle", "intruders"}
    assert "could not be checked" in found["intruders"]


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, "3"),
        ({"target_modules": r".*layers\.(?!3).*_proj"}, ""),  # layer 3 was left out by choice
        ({"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.3.self_attn.v_proj"]}, ""),
        ({"target_modules": MODULES[:7] + MODULES[8:]}, ""),
        ({"target_modules": "all-linear"}, "3"),
        ({"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 1, 2, 4, 5, 6, 7, 8, 9]}, ""),
    ],
)
def test_a_layer_that_was_left_out_by_choice_is_not_missing(changes: Any, missing: str, tmp_path: Path) -> None:
    settings(without(sound(tmp_path / "mine")), **changes)
    found = [each for each in check(tmp_path / "mine").findings if each.rule == "missing-layer"]
    assert [each.message.rpartition(" ")[2] for each in found] == [missing] * bool(missing)


STACKS = {
    "a dense layer before the mixtures": [
        *(f"model.layers.{k}.mlp.experts.{e}.up_proj" for k in range(1, 10) for e in range(2)),
        *(f"model.layers.{k}.self_attn.q_proj" for k in range(10)), "model.layers.0.mlp.up_proj",
    ],
    "attention in every fourth layer": [f"model.layers.{k}.self_attn.q_proj" for k in range(3, 40, 4)],
    "the last four layers": [f"model.layers.{k}.self_attn.q_proj" for k in range(20, 24)],
    "a UNet's blocks": [
        *(f"unet.down_blocks.{k}.attentions.0.proj_in" for k in range(3)),
        *(f"unet.down_blocks.{k}.resnets.0.conv1" for k in range(4)),
    ],
    "no numbers": ["lm_head", "embed"],
}  # fmt: skip


@pytest.mark.parametrize("kind", STACKS)
def test_architectures_without_a_missing_layer(kind: str, tmp_path: Path) -> None:
    sound(tmp_path / "mine", STACKS[kind])
    assert check(tmp_path / "mine").findings == ()


def test_a_whole_layer_that_is_missing(tmp_path: Path) -> None:
    sound(tmp_path / "mine", [module for module in MODULES if ".5." not in module])
    found = check(settings(tmp_path / "mine", target_modules=["q_proj", "v_proj"])).findings
    assert [(each.rule, each.value, each.limit) for each in found] == [("missing-layer", 9, 10)] * 2
    assert "q is present in 9 of 10 layers; missing in 5" in found[0].message


def test_pickles_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    folder = sound(tmp_path / "mine")
    header = 0x280  # a header of this length begins as a pickle of protocol 2 does
    (folder / "not.bin").write_bytes(header.to_bytes(8, "little") + b"{" + b" " * 700)
    (folder / "short.bin").write_bytes(b"\x80\x02")
    (folder / "notes.zip").write_bytes(b"PK\x03\x04 no archive")
    for protocol in range(2, 6):
        (folder / f"{protocol}.dat").write_bytes(pickle.dumps([1], protocol=protocol))
    found = check(folder).findings
    assert [each.value for each in found] == ["2.dat", "3.dat", "4.dat", "5.dat"]


def test_torch_files_are_pickles_of_both_kinds(tmp_path: Path) -> None:
    import torch

    state = {name: torch.from_numpy(array) for name, array in load_file(sound(tmp_path / "x") / WEIGHTS).items()}
    for name, new in (("new.bin", True), ("old.pt", False)):
        folder = tmp_path / name[:3]
        folder.mkdir()
        (folder / CONFIG).write_text((tmp_path / "x" / CONFIG).read_text())
        torch.save(state, folder / name, _use_new_zipfile_serialization=new)
        assert [(each.rule, each.value) for each in check(folder).findings] == [("pickle", name)]


def test_small_float16_numbers_lose_precision(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((M, R)) * 1e-6 * 0.3 ** np.arange(R), rng.standard_normal((R, N))
    write_adapter(tmp_path / "mine", "lora", {THIRD: {"B": B, "A": A}}, alpha=R, dtype="float16")
    (found,) = [each for each in check(tmp_path / "mine").findings if each.rule == "precision"]
    stored: Any = read_adapter(tmp_path / "mine")
    lost = np.linalg.norm(stored[THIRD].to_dense() - B @ A) / np.linalg.norm(B @ A)
    assert 0.5 * lost < float(found.value or 0) < 2 * lost  # the expected loss, and the one that happened
    write_adapter(tmp_path / "half", "lora", {THIRD: {"B": B, "A": A}}, alpha=R, dtype="bfloat16")
    assert not [each for each in check(tmp_path / "half").findings if each.rule == "precision"]


def test_float8_loses_more_than_a_hundredth(tmp_path: Path) -> None:
    state = load_file(sound(tmp_path / "mine") / WEIGHTS)
    save_file(
        {name: array.astype(ml_dtypes.float8_e4m3fn) for name, array in state.items()}, tmp_path / "mine" / WEIGHTS
    )
    found = check(tmp_path / "mine").findings
    assert {each.rule for each in found} == {"precision"}
    assert len(found) == len(MODULES)


def test_step_0_and_pruned_modules_are_no_fault(tmp_path: Path) -> None:
    for step, by in ((0, 0), (10, 1)):
        scaled(sound(tmp_path / "run" / f"checkpoint-{step}"), by)
    for module in MODULES:
        scaled(tmp_path / "run" / "checkpoint-0", 0, module)
    report = check(tmp_path / "run")
    assert report.findings == ()
    assert list(report.checked) == ["run step 0", "run step 10"]


def test_folders_of_adapters_and_those_at_fault(tmp_path: Path) -> None:
    sound(tmp_path / "a" / "one")
    sound(tmp_path / "b" / "one")
    truncated(sound(tmp_path / "b" / "two"))
    (tmp_path / "b" / "three").mkdir()
    (tmp_path / "b" / "three" / CONFIG).write_text("{}")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("nothing")
    for name in ("x", "y"):  # bare files without a configuration
        save_file(load_file(tmp_path / "a" / "one" / WEIGHTS), tmp_path / "c" / f"{name}.safetensors")
    report = check([tmp_path, tmp_path / "nothing", "no\0path"])
    assert list(report.checked) == ["one", "one (2)", "three", "two", "x", "y", "nothing", "no\0path"]
    assert {each.adapter: each.rule for each in report.findings} == {
        "three": "unreadable", "two": "unreadable", "x": "alpha-missing", "y": "alpha-missing",
        "nothing": "unreadable", "no\0path": "unreadable",
    }  # fmt: skip
    assert report.counts() == "4 errors, 2 warnings"
    assert repr(report) == "<Report on 8 adapters: 4 errors, 2 warnings>"
    assert [len(report.at_least(severity)) for severity in ("note", "warning", "error")] == [6, 6, 4]
    assert len(report.table()) == 6
    with pytest.raises(ValueError, match="severity 'bad' is unknown; expected note, warning, error"):
        report.at_least("bad")
    with pytest.raises(TypeError, match="which is no adapter"):
        check(3)


def test_patterns_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a sweep's sources; what only fits a pattern may hold no adapter."""
    monkeypatch.chdir(tmp_path)
    for name in ("run-1", "run-2", "other"):
        sound(tmp_path / "in" / name)
    truncated(tmp_path / "in/run-2")
    (tmp_path / "in/run-3").mkdir()
    (tmp_path / "in/run-4.md").write_text("no adapter")
    listing = tmp_path / "list.txt"
    listing.write_text("# mine\nin/o*\n./nothing\nlist.txt\ns3://bucket/adapter\nnone*\n")
    table = tmp_path / "list.csv"
    table.write_text("note,path\nbest,in/run-1\n")
    assert list(check("in/run-*").checked) == ["run-1", "run-2"]
    assert list(check(table).checked) == ["run-1"]
    report = check(["in/run-[1]", listing])
    assert list(report.checked) == ["run-1", "other", "nothing", "list.txt", "adapter", "none*"]
    assert [(each.adapter, each.rule) for each in report.findings] == [
        (name, "unreadable") for name in ("nothing", "list.txt", "adapter", "none*")
    ]
    told = [each.message for each in report.findings]
    assert [
        words in text
        for words, text in zip(
            ("no such file", "names itself", "a URL, which sweep reads", "fits no path"), told, strict=True
        )
    ] == [True] * 4


def test_limits(tmp_path: Path) -> None:
    folder = scaled(pickled(sound(tmp_path / "mine")), 40)
    file = tmp_path / "limits.toml"

    def rules(limits: Any) -> dict[str, str]:
        return {each.rule: each.severity for each in check(folder, limits=limits).findings}

    assert rules(None) == {"pickle": "warning", "sigma-spike": "warning"}
    assert rules({"pickle": {"severity": "off"}, "sigma-spike": {"severity": "error"}}) == {"sigma-spike": "error"}
    file.write_text("[sigma-spike]\ntimes = 50\n[pickle]\nseverity = 'note'")
    assert rules(file) == {"pickle": "note"}
    file.write_text(template(), encoding="utf-8")
    assert applied(file) == applied()
    for text, told in (
        ("[pikle]", r"limits.toml: rule 'pikle' is unknown; expected unreadable, .*; did you mean pickle\?"),
        ("[pickle]\nz = 3", r"\[pickle\]: setting 'z' is unknown; expected severity"),
        ("[sigma-spike]\nz = 'high'", r"\[sigma-spike\]: z is 'high'; expected a number"),
        ("[sigma-spike]\nz = nan", r"\[sigma-spike\]: z is nan; expected a number"),
        ("[pickle]\nseverity = 3", r"severity is 3; expected note, warning, error or off"),
        ("pickle = 3", r"pickle is 3; expected a table of limits: \[pickle\]"),
        ("[pickle", "limits.toml: is no TOML"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=told):
            check(folder, limits=str(file))
    with pytest.raises(FileNotFoundError):
        check(folder, limits="no/such/file.toml")


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern", "target_modules", "layers_to_transform", "r"])
@pytest.mark.parametrize("value", [3, "q[", ["q["], {"q[": 1}, [None], {}, -1, True])
def test_a_strange_configuration_is_a_finding_or_nothing(setting: str, value: Any, tmp_path: Path) -> None:
    report = check(settings(sound(tmp_path / "mine"), **{setting: value}))
    assert isinstance(report, Report)
    assert {each.rule for each in report.findings} <= {"unreadable", "unused-setting", "rank", "missing-layer"}


def test_the_bundled_adapters_have_no_warning() -> None:
    folders = sorted(path for path in DORA.parent.iterdir() if (path / CONFIG).exists())
    report = check(folders)
    assert len(report.checked) == len(folders)
    assert report.at_least("warning") == ()


def test_adapters_in_memory() -> None:
    rng = np.random.default_rng(0)
    updates = {module: lora(rng.standard_normal((M, R)) * 0.1 ** np.arange(R), np.eye(R, N)) for module in MODULES}
    updates[THIRD] = 0 * updates[THIRD]
    (found,) = check(Adapter.from_updates("mine", updates)).findings
    assert (found.rule, found.module, found.path) == ("dead-module", THIRD, "mine")
    assert check(Adapter.from_updates("mine", updates), modules="v_proj").findings == ()
