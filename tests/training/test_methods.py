"""Every method that ``train`` takes: it trains, resumes exactly, is followed, read, and loaded by PEFT."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from training_models import reviews, save_encoder

from bora_analysis import read_adapter
from bora_analysis.adapters import Adapter
from bora_analysis.adapters.locate import paths_read
from bora_analysis.catalogue import METHODS, trained
from bora_analysis.cli import main
from bora_analysis.documentation import method_table
from bora_analysis.peft_methods import RankCallback
from bora_analysis.training import Settings, TrainingError, train
from bora_analysis.training.peft_configs import check_settings, config_class
from bora_analysis.training.plan import read_plan
from bora_analysis.training.procedures import PROCEDURES

#: What a layer of 32×32 needs of the methods whose defaults are for large ones.
TINY: dict[str, dict[str, Any]] = {
    "miss": {"r": 4},
    "c3a": {"peft": {"block_size": 16}},
    "fourierft": {"peft": {"n_frequency": 20}},
    "waveft": {"peft": {"n_frequency": 20}},
    "vblora": {"peft": {"vector_length": 16, "num_vectors": 8}},
    "unilora": {"peft": {"theta_d_length": 64}},
    "randlora": {"r": 4},
    "adamss": {"r": 8},
    "road": {"peft": {"group_size": 16}},
    "oft": {"peft": {"oft_block_size": 4}},
    "ia3": {"peft": {"feedforward_modules": []}},
    "adalora": {"r": 4},
    "bora": {"blocks": 4},
    "relora": {"blocks": 2},
    "vera": {"r": 8},
    "shira": {"peft": {"r": 4}},
}
STEPS = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    save_encoder(folder / "encoder")
    reviews(40).to_csv(folder / "reviews.csv", index=False)
    return folder


def settings(home: Path, method: str, **changes: Any) -> Settings:
    defaults: dict[str, Any] = {
        "model": str(home / "encoder"), "data": str(home / "reviews.csv"), "label": "label", "method": method,
        "batch_size": 4, "steps": STEPS, "learning_rate": 1e-2, "checkpoints": (0,), "resume_every": 2, "warmup": 0.0,
    }  # fmt: skip
    return Settings(**(defaults | TINY.get(method, {}) | changes))


#: They change the bias too, which is no part of ΔW.
BIASED = ("glora",)
#: ΔW is that of the base model without its small singular values, which the method drops.
OF_ANOTHER_BASE = ("kasa",)
#: Their start is computed from data, which PEFT does not have when it loads them: they are converted first.
FROM_DATA = ("lora-ga", "corda")

#: Their files are those of another method.
READ_AS = {"lora+": "lora", "relora": "lora", "krona": "lokr", "bdlora-a": "bdlora", "bdlora-b": "bdlora"}


def copier(run: Path, step: int) -> Any:
    """Copies the folder of a run before a step: what a kill would leave there."""
    from transformers import TrainerCallback

    class Copier(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                shutil.copytree(run, run.with_name("broken"))

    return Copier()


TOKENS = torch.arange(5, 17).reshape(2, 6)


def outcome(model: Any) -> Any:
    inputs = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    configs = getattr(model, "peft_config", {})
    if "default" in configs and configs["default"].peft_type == "POLY":
        inputs["task_ids"] = torch.zeros(len(TOKENS), dtype=torch.long)
    with torch.no_grad():
        return model.eval()(**inputs).logits


def watcher(found: list[Any]) -> Any:
    """Keeps what the model says at the end of the training."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            found.append(outcome(model))

    return Watcher()


def base(home: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(home / "encoder").eval()


def loaded(home: Path, folder: Path) -> Any:
    """The adapter in PEFT, on the model as it was."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base(home), folder)


def with_updates(home: Path, adapter: Any, folder: Path) -> Any:
    """The model as it was, with our ΔW added to its weights, and with the trained head."""
    model = base(home)
    state = model.state_dict()
    for module, update in adapter.items():
        name = next(key for key in state if key.endswith(f"{module}.weight"))
        state[name] += torch.from_numpy(update.to_dense()).to(state[name].dtype)
    for key, value in weights(folder).items():
        if "classifier" in key:
            state[key.removeprefix("base_model.model.")].copy_(torch.from_numpy(value))
    model.load_state_dict(state)
    return model


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter_model.safetensors")


def losses(record: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in record["history"] if "loss" in entry]


@pytest.mark.parametrize("method", trained())
def test_a_method_is_trained_resumed_followed_and_read(home: Path, tmp_path: Path, method: str) -> None:
    told = settings(home, method, log_every=1)
    ranks = tmp_path / "ranks.parquet"
    said: list[Any] = []
    follow = (
        watcher(said),
        copier(tmp_path / "run", 3),
        *(() if method == "full" else (RankCallback(ranks, every=1, budget=None),)),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="RankCallback stands aside")
        record = train(told, tmp_path / "run", device="cpu", callbacks=follow)
    assert len(losses(record)) == STEPS
    assert all(map(math.isfinite, losses(record)))

    # It resumes to the same bits.
    again = train(told, tmp_path / "broken", device="cpu", resume=True)
    whole, broken = weights(tmp_path / "run"), weights(tmp_path / "broken")
    assert whole.keys() == broken.keys()
    for key, value in whole.items():
        np.testing.assert_array_equal(value, broken[key], err_msg=key)
    assert losses(again) == losses(record)

    # The adapter has moved, in every module, and is read.
    start: Any = read_adapter(tmp_path / "run/checkpoint-0", base=home / "encoder")
    end: Any = read_adapter(tmp_path / "run", base=home / "encoder")
    assert len(end) == 4
    assert list(start) == list(end)
    assert end.method == READ_AS.get(method, method)
    for module, update in end.items():
        assert np.abs(update.to_dense() - start[module].to_dense()).max() > 1e-6, module
    if method != "full":
        frame = pd.read_parquet(ranks)
        assert sorted(set(frame["step"])) == list(range(STEPS + 1))
        last = frame[frame["step"] == STEPS].set_index("module")["energy"]
        for module, update in end.items():
            (row,) = [value for name, value in last.items() if str(name).endswith(module)]
            assert row == pytest.approx(np.square(update.to_dense()).sum(), rel=1e-4), module
    # On the model as it was it says what the trained model said: loaded by PEFT, and with our ΔW.
    if method not in FROM_DATA and method != "full":
        torch.testing.assert_close(outcome(loaded(home, tmp_path / "run")), said[0], rtol=0, atol=1e-5)
    if not METHODS[method].experts and method not in (*BIASED, *OF_ANOTHER_BASE):
        torch.testing.assert_close(
            outcome(with_updates(home, end, tmp_path / "run")), said[0], rtol=0, atol=1e-3 if method == "full" else 1e-4
        )


def test_every_method_of_the_catalogue_is_trained_or_its_reason_is_told() -> None:
    for name, row in METHODS.items():
        assert bool(row.training) != bool(row.untrained), name
        if row.untrained:
            with pytest.raises(TrainingError, match="is not trained here: ") as told:
                Settings("m", "d", method=name)
            assert row.untrained in str(told.value)


def test_the_table_of_methods_tells_what_is_trained() -> None:
    """The column of the documentation has a mark for just the methods that the test above goes through."""
    lines = [line.split("|") for line in method_table().splitlines()[2:]]
    assert {line[1].strip() for line in lines if "✔" in line[6]} == {METHODS[name].label for name in trained()}


def test_peft_on_qalora_without_gptq() -> None:
    """Why QALoRA is not trained: the same shapes as LoRA's, with no groups. If this fails, it can be."""
    from peft import LoraConfig, get_peft_model

    model: Any = torch.nn.Sequential(torch.nn.Linear(32, 32))
    adapted: Any = get_peft_model(model, LoraConfig(use_qalora=True, qalora_group_size=4, target_modules=["0"], r=2))
    assert adapted.base_model.model[0].lora_A["default"].weight.shape == (2, 32)


# --- Settings


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (
            "ia3",
            {"r": 4},
            "r is 4, but ia3 has no r; leave it out; its settings in PEFT are exclude_modules, feedforward_",
        ),
        ("ia3", {"alpha": 4.0}, "alpha is 4.0, but ia3 has no alpha"),
        ("hira", {"alpha": 4.0}, "it has r, dropout, rank_pattern"),
        ("full", {"r": 4}, "r is 4, but full has no r"),
        ("lora", {"experts": 2}, "experts is 2, but lora has no experts"),
        ("dora", {"blocks": 2}, "blocks is 2, but dora has no blocks"),
        ("lora", {"b_learning_rate_ratio": 4.0}, "lora has no b_learning_rate_ratio"),
        ("fourierft", {"dropout": 0.1}, "dropout is 0.1, but fourierft has no dropout"),
        ("full", {"peft": {"r": 1}}, "full is no method of PEFT"),
        ("lora", {"peft": {"a": {1, 2}}}, "expected values that JSON has"),
        ("relora", {"blocks": 0}, "blocks is 0; expected at least 1"),
        ("lora+", {"b_learning_rate_ratio": -1.0}, "b_learning_rate_ratio is -1.0; expected a positive number"),
    ],
)
def test_an_option_that_the_method_lacks(method: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as told:
        Settings("m", "d", method=method, **changes)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("method", "peft", "message"),
    [
        ("fourierft", {"n_frequenzy": 3}, "FourierFTConfig has no setting 'n_frequenzy'; did you mean n_frequency?"),
        ("fourierft", {"zzz": 3}, "has no setting 'zzz'; expected one of n_frequency, scaling,"),
        ("fourierft", {"n_frequency": "3"}, "n_frequency is '3'; expected a whole number"),
        ("fourierft", {"scaling": True}, "scaling is True; expected a number"),
        ("fourierft", {"target_modules": ["q"]}, "target_modules is not set so; give --target"),
        ("vera", {"r": 4}, "r comes from the option r"),
        ("gralora", {"gralora_k": 4}, "gralora_k comes from the option blocks"),
        ("lora", {"use_dora": True}, "use_dora = True makes it DoRA; give --method dora"),
        ("lora", {"init_lora_weights": "pissa_niter_4"}, "makes it PiSSA; give --method pissa"),
        ("lora", {"kasa_config": {"rank": 2}}, "makes it KaSA; give --method kasa"),
        ("pissa", {"init_lora_weights": "olora"}, "makes it OLoRA; give --method olora"),
        ("pissa", {"init_lora_weights": False}, "init_lora_weights is 'pissa', which makes it PiSSA; leave it out"),
        ("lora", {"init_lora_weights": "eva"}, "cannot be trained here: EVA needs"),
        ("lora-ga", {"lora_ga_config.directoin": "ArB2r"}, "LoraGAConfig has no setting 'directoin'; did you mean dir"),
        ("lora-ga", {"lora_ga_config": {"direction": 3}}, "lora_ga_config: direction is 3; expected 'ArBr' or"),
        ("rslora", {"use_rslora": False}, "use_rslora comes from the option rslora"),
    ],
)  # fmt: skip
def test_a_wrong_setting_of_the_configuration(method: str, peft: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as told:
        check_settings(Settings("m", "d", method=method, peft=peft))
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("method", [name for name in trained() if name != "full"])
def test_the_rows_name_settings_that_peft_has(method: str) -> None:
    training = METHODS[method].training
    assert training is not None
    known = {field.name for field in fields(config_class(training))}
    assert {key.partition(".")[0] for key in (*training.passed, *training.fixed)} <= known
    assert training.procedure in PROCEDURES


# --- What single methods do


def test_lora_plus_gives_b_a_higher_rate(home: Path, tmp_path: Path) -> None:
    """In the first step Adam moves every number that has a gradient by the rate: B's by 8 times the head's."""
    told = settings(home, "lora+", b_learning_rate_ratio=8.0, steps=1, learning_rate=1e-4, r=4)
    train(told, tmp_path / "run", device="cpu")
    start, end = weights(tmp_path / "run/checkpoint-0"), weights(tmp_path / "run")
    for key, value in end.items():
        moved = np.abs(value - start[key]).max()
        if "lora_A" in key:
            assert moved == 0, key  # B was zero
        elif key.endswith("classifier.weight"):
            assert moved == pytest.approx(1e-4, rel=1e-2)
        elif "lora_B" in key:
            assert moved == pytest.approx(8e-4, rel=1e-2)


def test_relora_trains_one_pair_after_the_other(home: Path, tmp_path: Path) -> None:
    """Of 2 stages in 4 steps: the second pair is as it began until step 2, the first as it was from then on."""
    told = settings(home, "relora", r=3, alpha=6.0, checkpoints=(0, 1, 2, 3))
    train(told, tmp_path / "run", device="cpu")
    steps = [weights(tmp_path / f"run/checkpoint-{step}") for step in range(STEPS + 1)]
    for key in (key for key in steps[0] if "lora_" in key):
        first, second = zip(*(np.split(step[key], 2, axis=0 if "lora_A" in key else 1) for step in steps), strict=True)
        moved = [not np.array_equal(a, b) for a, b in pairwise(first)]
        assert moved in ([True, True, False, False], [False, True, False, False]), key  # A begins one step after B
        moved = [not np.array_equal(a, b) for a, b in pairwise(second)]
        assert moved in ([False, False, True, True], [False, False, False, True]), key
    adapter: Any = read_adapter(tmp_path / "run")
    for update in adapter.values():
        assert (update.facts.r, update.facts.scaling) == (6, 2.0)  # α/r of one stage
        assert np.linalg.matrix_rank(update.to_dense()) == 6


def test_bora_on_layers_that_its_blocks_do_not_divide(home: Path, tmp_path: Path) -> None:
    words = ["train", "--model", str(home / "encoder"), "--data", str(home / "reviews.csv"), "--label", "label"]
    words += ["--method", "bora", "-r", "2", "--blocks", "5", "--set", "pad=true", "--steps", "2"]
    run = CliRunner().invoke(main, [*words, "--learning-rate", "0.01", "--device", "cpu", "-o", str(tmp_path / "run")])
    assert run.exit_code == 0, run.output
    adapter: Any = read_adapter(tmp_path / "run")
    assert {update.facts.rank_bound for update in adapter.values()} == {10}  # rows of 7, 7, 7, 7 and 4
    assert all(np.abs(update.to_dense()).max() > 1e-5 for update in adapter.values())
    model = with_updates(home, adapter, tmp_path / "run")
    torch.testing.assert_close(outcome(loaded(home, tmp_path / "run")), outcome(model), rtol=0, atol=1e-5)


def test_adalora_ends_with_the_ranks_of_its_budget(home: Path, tmp_path: Path) -> None:
    told = settings(home, "adalora", r=4, steps=8, peft={"target_r": 2, "tfinal": 2})
    train(told, tmp_path / "run", device="cpu")
    ranks = [len(value) for key, value in weights(tmp_path / "run").items() if key.endswith("lora_A")]
    assert sum(ranks) <= 2 * 4  # modules
    assert max(ranks) <= 4
    start = [len(value) for key, value in weights(tmp_path / "run/checkpoint-0").items() if key.endswith("lora_A")]
    assert start == [4] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"peft": {"target_r": 4}}, "target_r is 4; expected less than r, 4"), ({"steps": 1}, "the run has 1 steps")],
)
def test_a_schedule_that_adalora_cannot_have(home: Path, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(settings(home, "adalora", **changes), tmp_path / "run", device="cpu")


def test_what_is_taken_out_of_the_base_model_is_subtracted(home: Path, tmp_path: Path) -> None:
    """checkpoint-0 is kept though it was not asked for; the reader takes it, says so, and opens nothing unseen."""
    train(settings(home, "pissa", checkpoints=(2,)), tmp_path / "run", device="cpu")
    first = tmp_path / "run/checkpoint-0"
    assert {first / "adapter_model.safetensors", first / "adapter_config.json"} <= set(paths_read(tmp_path / "run"))
    adapter = read_adapter(tmp_path / "run")
    assert isinstance(adapter, Adapter)
    assert adapter.method == "pissa"
    assert any("checkpoint-0 is subtracted" in warning for warning in adapter.warnings)
    named = read_adapter(tmp_path / "run", initial=first)
    steps = read_adapter(tmp_path / "run", steps=True)
    assert [each.step for each in steps.checkpoints] == [0, 2, 4]  # pyright: ignore[reportAttributeAccessIssue]
    for module, update in adapter.items():
        np.testing.assert_array_equal(update.to_dense(), named[module].to_dense())
        np.testing.assert_array_equal(update.to_dense(), steps.checkpoints[2][module].to_dense())  # pyright: ignore[reportAttributeAccessIssue]
        assert np.abs(steps.checkpoints[0][module].to_dense()).max() < 1e-6  # pyright: ignore[reportAttributeAccessIssue]


def test_an_adapter_from_data_is_converted_to_a_lora_of_the_original_model(home: Path, tmp_path: Path) -> None:
    said: list[Any] = []
    train(settings(home, "lora-ga"), tmp_path / "run", device="cpu", callbacks=(watcher(said),))
    done = CliRunner().invoke(main, ["convert", str(tmp_path / "run"), "-o", str(tmp_path / "lora")])
    assert done.exit_code == 0, done.output
    model = loaded(home, tmp_path / "lora")
    for key, value in weights(tmp_path / "run").items():  # the converted adapter has no head
        if "classifier" in key:
            place = model.get_parameter(key)
            place.data.copy_(torch.from_numpy(value))
    torch.testing.assert_close(outcome(model), said[0], rtol=0, atol=1e-4)


def test_settings_from_the_command_line(home: Path, tmp_path: Path) -> None:
    (tmp_path / "more.json").write_text(json.dumps({"n_frequency": 3, "scaling": 20}))
    words = ["train", "--model", str(home / "encoder"), "--data", str(home / "reviews.csv"), "--label", "label",
             "--method", "fourierft", "--steps", "1", "--checkpoints", "none", "--device", "cpu",
             "-o", str(tmp_path / "run")]  # fmt: skip
    wrong = CliRunner().invoke(main, [*words, "--set", "n_frequenc=3"])
    assert wrong.exit_code == 1
    assert "did you mean n_frequency?" in wrong.stderr
    assert "Traceback" not in wrong.output
    done = CliRunner().invoke(main, [*words, "--config", str(tmp_path / "more.json"), "--set", "n_frequency=7"])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert (told["n_frequency"], told["scaling"]) == (7, 20)
    assert json.loads((tmp_path / "run/run.json").read_text())["settings"]["peft"] == {"n_frequency": 7, "scaling": 20}
    gone = CliRunner().invoke(main, [*words, "--method", "qalora"])
    assert "'qalora' is not trained here: PEFT pools the groups on GPTQ layers alone" in gone.stderr


def test_a_plan_varies_settings_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        '[settings]\nmodel = "m"\ndata = "d"\npeft.scaling = 20.0\n[variants.f]\nmethod = "fourierft"\n'
        "peft.n_frequency = [10, 20]\n"
    )
    plan = read_plan(path)
    assert plan.variants == ("f-n_frequency10", "f-n_frequency20")
    assert [run.settings.peft for run in plan.runs] == [{"scaling": 20.0, "n_frequency": n} for n in (10, 20)]
    changed = read_plan(path, {"peft.scaling": 30.0})
    assert changed.runs[0].settings.peft == {"scaling": 30.0, "n_frequency": 10}
