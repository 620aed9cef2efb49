"""How PEFT comes to know the methods, their configurations, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft_cases import METHODS, adapted, base, get_peft_model, layers, load, randomise
from torch import nn

from bora_analysis import peft_methods
from bora_analysis.peft_methods import BoraConfig, HydraloraConfig, MeloraConfig, SboraConfig, register

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("name", ["BORA", "MELORA", "SBORA"])
def test_the_added_members_are_as_peft_own(name: str) -> None:
    """The guard of the one trick here: every way in which PEFT and Python use a member."""
    member = PeftType(name)
    assert member is PeftType[name] is getattr(PeftType, name)
    assert isinstance(member, PeftType)
    assert (member.name, member.value, str(member.value)) == (name, name, name)
    assert member == name
    assert name in list(PeftType)
    assert name in PeftType.__members__
    assert list(PeftType).count(member) == 1
    assert copy.deepcopy(member) is member
    assert pickle.loads(pickle.dumps(member)) is member
    assert json.loads(json.dumps({"peft_type": member})) == {"peft_type": name}
    assert {member: 1}[member] == 1
    assert hash(member) == hash(PeftType(name))
    assert repr(member) == repr(PeftType.LORA).replace("LORA", name)
    assert dir(member) == dir(PeftType.LORA)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[name].__name__.upper() == f"{name}CONFIG"  # pyright: ignore[reportArgumentType]  # by the plain string of a file, too
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == f"{name.lower()}_"
    assert PEFT_TYPE_TO_TUNER_MAPPING[member].prefix == f"{name.lower()}_"


def test_registering_again_changes_nothing() -> None:
    members, configs = list(PeftType), dict(PEFT_TYPE_TO_CONFIG_MAPPING)
    register()
    register()
    assert list(PeftType) == members
    assert configs == PEFT_TYPE_TO_CONFIG_MAPPING


def test_a_method_of_that_name_in_peft_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEFT_TYPE_TO_CONFIG_MAPPING, PeftType("BORA"), peft.LoraConfig)
    with pytest.raises(RuntimeError, match=r"its own method bora \(peft\.tuners\.lora\.config\.LoraConfig\)"):
        register()


def test_one_import_is_enough_to_load(tmp_path: Path) -> None:
    adapted("plain", METHODS["bora"]()).save_pretrained(tmp_path)
    code = (
        "import sys; from torch import nn; from peft import PeftModel; import bora_analysis.peft_methods\n"
        "model = nn.Module(); model.first = nn.Linear(16, 24); model.second = nn.Linear(24, 8)\n"
        "print(type(PeftModel.from_pretrained(model, sys.argv[1]).base_model).__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout == "BoraModel\n"


@pytest.mark.parametrize("missing", ["peft", "transformers"])
def test_without_peft_one_line_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None\nimport bora_analysis.peft_methods"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: bora_analysis.peft_methods")
    assert missing in last
    assert 'pip install "bora_analysis[train]"' in last


def test_an_old_peft_is_refused_in_one_line() -> None:
    code = (
        "import importlib.metadata as m; own = m.version\n"
        "m.version = lambda name: '0.20.1' if name == 'peft' else own(name)\n"
        "import bora_analysis.peft_methods"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: bora_analysis.peft_methods: peft 0.20.1 is installed; expected 0.21 or later")


def test_the_package_itself_does_without_peft() -> None:
    code = "import sys; sys.modules['peft'] = None; import bora_analysis; bora_analysis.read_adapter"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_public_has_an_example() -> None:
    for name in peft_methods.__all__:
        assert ">>>" in (getattr(peft_methods, name).__doc__ or ""), name


@pytest.mark.parametrize("method", METHODS)
def test_configurations_survive_a_file(method: str, tmp_path: Path) -> None:
    config = METHODS[method](target_modules=["q", "v"], lora_dropout=0.1, rank_pattern={"q": 1})
    config.save_pretrained(str(tmp_path))
    loaded: Any = PeftConfig.from_pretrained(str(tmp_path))
    assert type(loaded) is type(config)
    found, expected = loaded.to_dict(), config.to_dict()
    assert found == expected
    assert loaded.target_modules == {"q", "v"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoraConfig(r=0), "r is 0; expected a positive integer"),
        (lambda: BoraConfig(rank_pattern={"q": 2.0}), r"rank_pattern\['q'\] is 2.0; expected a positive integer"),  # pyright: ignore[reportArgumentType]
        (lambda: BoraConfig(lora_alpha=float("nan")), "lora_alpha is nan; expected a number"),
        (lambda: BoraConfig(alpha_pattern={"q": "8"}), r"alpha_pattern\['q'\] is '8'"),  # pyright: ignore[reportArgumentType]
        (lambda: BoraConfig(lora_dropout=1.0), "lora_dropout is 1.0; expected a probability below 1"),
        (lambda: BoraConfig(bias="lora_only"), "bias is 'lora_only'; expected 'none', 'all' or 'bora_only'"),
        (lambda: BoraConfig(num_blocks=0), "num_blocks is 0; expected a positive integer, 'auto'"),
        (lambda: BoraConfig(num_blocks="best"), "num_blocks is 'best'"),
        (lambda: BoraConfig(num_blocks={"q": True}), "num_blocks is True"),
        (lambda: BoraConfig(activation="softmax"), "activation is 'softmax'; expected one of exp-norm, "),  # pyright: ignore[reportArgumentType]
        (lambda: MeloraConfig(num_minis="auto"), "num_minis is 'auto'; expected a positive integer"),  # pyright: ignore[reportArgumentType]
        (lambda: SboraConfig(variant="fc"), "variant is 'fc'; expected 'fa' or 'fb'"),  # pyright: ignore[reportArgumentType]
        (lambda: BoraConfig(target_modules="q.*", layers_pattern="h"), "layers_pattern is 'h'; expected None"),
        (
            lambda: BoraConfig(target_parameters=["w"]),
            r"target_parameters is \['w'\]; expected None: BORA adapts layers",
        ),
        (lambda: BoraConfig(target_modules="q.*", layers_to_transform=1), "layers_to_transform is 1"),
    ],
)
def test_settings_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BoraConfig(num_blocks=5, target_modules=["second"]),
            r"^second: b = 5 does not divide m = 8 and n = 24; b",
        ),
        (MeloraConfig(num_minis=16, target_modules=["first"]), r"^first: b = 16 does not divide m = 24 and n = 16"),
        (MeloraConfig(num_minis={"first": 2}, target_modules=["second"]), r"^second: no pattern of num_minis"),
        (SboraConfig(r=17, target_modules=["first"]), r"^first: r = 17 exceeds the 16 basis vectors"),
    ],
)
def test_what_the_model_does_not_allow(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_peft_model(base("plain"), config)


@pytest.mark.parametrize(
    ("config", "layer", "expected"),
    [
        (SboraConfig, nn.Embedding(4, 4), r"an Embedding cannot be adapted; expected a linear layer \(.*\): change"),
        (HydraloraConfig, nn.Conv1d(4, 4, 1), "a Conv1d cannot be adapted; expected a linear layer"),
        (BoraConfig, nn.Conv2d(4, 4, 1, groups=2), "a Conv2d .*, or nn.Embedding, or nn.Conv1d, .* without groups"),
        (BoraConfig, nn.ConvTranspose2d(4, 4, 1), "a ConvTranspose2d cannot be adapted"),
        (MeloraConfig, nn.MultiheadAttention(4, 2).out_proj, "a NonDynamicallyQuantizableLinear cannot be adapted"),
    ],
)
def test_layers_of_other_kinds_are_refused(config: Any, layer: nn.Module, expected: str) -> None:
    model = nn.ModuleDict({"odd": layer})
    with pytest.raises(TypeError, match=f"^odd: {expected}"):
        get_peft_model(model, config(r=1, target_modules=["odd"]))


def test_targets_as_in_peft() -> None:
    def targeted(**settings: Any) -> list[str]:
        return list(layers(get_peft_model(base("llama"), BoraConfig(r=1, num_blocks=2, **settings))))

    def peer(**settings: Any) -> list[str]:
        model: Any = get_peft_model(base("llama"), peft.LoraConfig(r=1, **settings)).base_model.model
        return [key for key, value in model.named_modules() if isinstance(value, peft.tuners.lora.LoraLayer)]

    for settings in (
        {},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.1\..*_proj", "exclude_modules": ["up_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    ):
        assert targeted(**settings) == peer(**settings) != []


@pytest.mark.parametrize("method", [*METHODS, "hydralora"])
def test_all_linear_finds_layers_that_are_adapted_already(method: str) -> None:
    """PEFT knows them by the name of their class."""
    make = METHODS.get(method, HydraloraConfig)
    adapter = adapted("llama", make(target_modules=["q_proj", "down_proj"]), random=False)
    adapter.add_adapter("two", make(target_modules="all-linear"))
    found = layers(adapter)
    linear = [key for key, value in base("llama").named_modules() if isinstance(value, nn.Linear) and "head" not in key]
    assert sorted(key for key, layer in found.items() if "two" in layer.scaling) == sorted(linear)


def test_a_name_within_the_prefix_is_a_name_like_others(tmp_path: Path) -> None:
    """PEFT warns of it (warnings are errors here), because older versions mistook the keys."""
    adapter = get_peft_model(base("plain"), BoraConfig(r=2, target_modules=["first"]), adapter_name="b")
    adapter.add_adapter("bora", BoraConfig(r=2, target_modules=["second"]))
    randomise(adapter)
    adapter.save_pretrained(tmp_path)
    for name, layer in (("b", "first"), ("bora", "second")):
        loaded = load(base("plain"), tmp_path / name, adapter_name=name)
        (found,) = layers(loaded).values()
        expected = layers(adapter)[layer].get_delta_weight(name)
        torch.testing.assert_close(found.get_delta_weight(name), expected, rtol=0, atol=0)
    with pytest.warns(UserWarning, match="should not be contained in the prefix"):
        get_peft_model(base("plain"), BoraConfig(r=2, target_modules=["first"]), adapter_name="bora_")


def test_the_text_of_a_layer_tells_its_settings() -> None:
    (layer,) = layers(adapted("plain", BoraConfig(r=2, num_blocks=4, target_modules=["first"]))).values()
    first = repr(layer).splitlines()[1].strip()
    assert first == (
        "r={'default': 2}, lora_alpha={'default': 8}, scaling={'default': 4.0}, num_blocks={'default': 4}, "
        "activation={'default': 'exp-norm'}"
    )


def test_a_sum_of_adapters_is_refused_with_the_way_out() -> None:
    adapter = adapted("plain", METHODS["melora"]())
    with pytest.raises(NotImplementedError, match=r"^MeloraModel: a sum of adapters is not.* Convert each to a LoRA"):
        adapter.add_weighted_adapter(["default"], [1.0], "sum")


@pytest.mark.parametrize(("model", "transposed"), [("gpt2", True), ("bert", False)])
def test_fan_in_fan_out_is_known_from_the_layers(model: str, transposed: bool) -> None:
    assert adapted(model, METHODS["bora"]()).peft_config["default"].fan_in_fan_out is transposed


def test_adapters_go_where_the_base_layer_is() -> None:
    adapter = get_peft_model(base("plain").double(), METHODS["sbora-fa"](target_modules=["first"]))
    (layer,) = layers(adapter).values()
    assert layer.sbora_B["default"].dtype == torch.float64
    assert layer.sbora_index["default"].dtype == torch.int64
    meta = get_peft_model(nn.Sequential(nn.Linear(4, 4, device="meta")), BoraConfig(r=1, target_modules=["0"]))
    assert {value.device.type for value in meta.parameters()} == {"meta"}
