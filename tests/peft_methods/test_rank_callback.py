"""Ranks followed through training: a real Trainer, and the checkpoints that it saves as the oracle."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import (
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PromptTuningConfig,
    VeraConfig,
    inject_adapter_in_model,
)
from peft_cases import METHODS, adapted, base, get_peft_model, randomise
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from bora_analysis import layer_metrics, read_adapter
from bora_analysis.analysis.factors import FACTOR_COLUMNS, factor_table
from bora_analysis.analysis.tables import LAYER_COLUMNS
from bora_analysis.peft_methods import HydraloraConfig, RankCallback, read_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.(is_)?gradient_checkpointing:FutureWarning",
    "ignore:.*pin_memory.*:UserWarning",
)
EVERY_METHOD = {
    **{name: METHODS[name] for name in ("bora", "melora", "sbora-fa", "sbora-fb")},
    "hydralora": lambda **options: HydraloraConfig(r=2, **options),
    "lora": lambda **options: LoraConfig(r=2, use_rslora=True, rank_pattern={".*0.*query": 1}, **options),
}


class Reporter(TrainerCallback):
    """In place of TensorBoard: what the Trainer hands its reporters."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen.append((state.global_step, dict(logs)))


class Killed(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer(folder: Path, method: str = "bora", steps: int = 6, **options: Any) -> Trainer:
    torch.manual_seed(3)
    adapter = get_peft_model(small(), EVERY_METHOD[method](target_modules=["query", "value"]))
    return training(adapter, folder, steps, **options)


def small() -> Any:
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=16))


def training(adapter: Any, folder: Path, steps: int = 6, **options: Any) -> Trainer:
    generator = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(0, 40, (8,), generator=generator), "labels": torch.tensor(k % 2)} for k in range(48)
    ]
    settings: dict[str, Any] = {
        "logging_steps": 2,
        "save_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.05,
    }
    settings |= options
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=4,
        **settings,
    )
    return Trainer(adapter, arguments, train_dataset=data)  # pyright: ignore[reportArgumentType]


def with_ranks(run: Trainer, folder: Path, **options: Any) -> RankCallback:
    settings: dict[str, Any] = {"every": 2, "log": run.log, "budget": None, "factors": folder / "factors.parquet"}
    callback = RankCallback(folder / "ranks.parquet", **settings | options)
    run.add_callback(callback)
    return callback


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected.reset_index(drop=True), rtol=1e-9)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_the_rows_are_those_of_the_checkpoints(method: str, tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", method)
    with_ranks(run, tmp_path)
    run.train()
    rows = pd.read_parquet(tmp_path / "ranks.parquet")
    assert tuple(rows.columns) == LAYER_COLUMNS
    assert rows["step"].unique().tolist() == [0, 2, 4, 6]
    begun = rows[rows["step"] == 0]
    assert len(begun) == 4
    assert not begun["effective_rank"].any()
    checkpoints = read_adapter(tmp_path / "run", name="ranks")
    same(rows[rows["step"] > 0], layer_metrics(checkpoints))
    factors = pd.read_parquet(tmp_path / "factors.parquet")
    assert tuple(factors.columns) == FACTOR_COLUMNS
    same(factors[factors["step"] > 0], factor_table(checkpoints))
    assert len(factors) == 16


def test_means_go_to_every_reporter_and_the_loss_still_does(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run")
    reporter = Reporter()
    run.add_callback(reporter)  # before ours, as TensorBoard's is
    with_ranks(run, tmp_path)
    run.train()
    rows = pd.read_parquet(tmp_path / "ranks.parquet")
    told = {step: logs for step, logs in reporter.seen if "rank/q/energy" in logs}
    assert sorted(told) == [0, 2, 4, 6]
    for step, logs in told.items():
        for projection in ("q", "v"):
            part = rows[(rows["step"] == step) & (rows["projection"] == projection)]
            for column in ("effective_rank", "entropy_rank", "energy"):
                assert logs[f"rank/{projection}/{column}"] == pytest.approx(part[column].mean(), rel=1e-12)
    assert [step for step, logs in reporter.seen if "loss" in logs] == [2, 4, 6]
    assert [entry["step"] for entry in run.state.log_history if "rank/v/energy" in entry] == [0, 2, 4, 6]
    assert told[6]["rank/q/energy"] > 0


def test_training_is_not_changed(tmp_path: Path) -> None:
    found = []
    for watched in (False, True):
        run = trainer(tmp_path / str(watched), save_steps=100)
        if watched:
            with_ranks(run, tmp_path)
        run.train()
        found.append({key: value.clone() for key, value in run.model.state_dict().items()})  # pyright: ignore
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=0)


def test_resumed_after_a_kill_no_row_is_lost_or_doubled(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", steps=7)
    (tmp_path / "a").mkdir()
    with_ranks(whole, tmp_path / "a")
    whole.train()
    killed = trainer(tmp_path / "run", steps=7, save_steps=3)
    with_ranks(killed, tmp_path / "b")
    killed.add_callback(Killed(5))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    # Row 4 was written after the checkpoint of step 3: it is trained, and written, again.
    assert pd.read_parquet(tmp_path / "b" / "ranks.parquet")["step"].unique().tolist() == [0, 2, 4]
    resumed = trainer(tmp_path / "run", steps=7, save_steps=3)
    with_ranks(resumed, tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    steps = [0, 2, 3, 4, 6, 7]  # and the step from which it was resumed
    for name in ("ranks", "factors"):
        found, expected = (pd.read_parquet(tmp_path / place / f"{name}.parquet") for place in "ba")
        assert found["step"].unique().tolist() == steps
        same(found[found["step"] != 3], expected)
    again = trainer(tmp_path / "again", steps=2)
    with_ranks(again, tmp_path / "b")
    again.train()
    assert pd.read_parquet(tmp_path / "b" / "ranks.parquet")["step"].unique().tolist() == [0, 2]


def test_it_takes_no_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by hand: a step takes 1 second and a record 10, so that 5 % allow one in 200 steps."""
    from bora_analysis.peft_methods import callback as module

    now = [0.0]
    recorded = []
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def record(*_: Any, step: int, **__: Any) -> Any:
        now[0] += 10
        recorded.append(step)
        return None

    monkeypatch.setattr(module, "read_model", record)
    monkeypatch.setattr(module, "layer_metrics", lambda *_, **__: pd.DataFrame())
    monkeypatch.setattr(module, "_append", lambda *_: None)
    callback, state = RankCallback(tmp_path / "ranks.parquet", every=10), SimpleNamespace(is_world_process_zero=True)
    state.global_step = 0
    callback.on_train_begin(None, state, None)
    for step in range(1, 1001):
        now[0] += 1
        state.global_step = step
        callback.on_step_end(None, state, None)
    callback.on_train_end(None, state, None)
    assert recorded[0] == 0
    assert recorded[-1] == 1000
    inside = recorded[1:-1]
    assert 4 <= len(inside) <= 6
    assert 10 * len(inside) <= 0.05 * now[0] + 10


def test_a_live_model_is_read_as_its_file(tmp_path: Path) -> None:
    adapter = adapted("llama", METHODS["bora"]())
    adapter.add_adapter("two", METHODS["bora"](lora_alpha=3, target_modules=["v_proj"]))
    randomise(adapter, seed=4)
    adapter.save_pretrained(tmp_path)
    for name, folder in (("default", tmp_path), ("two", tmp_path / "two")):
        live, read = read_model(adapter, adapter=name), read_adapter(folder)
        assert list(live) == list(read)
        assert live.path is None
        for module in live:
            np.testing.assert_array_equal(live[module].to_dense(), read[module].to_dense())
            assert live[module].facts == read[module].facts
    half = adapted("plain", METHODS["bora"](), autocast_adapter_dtype=False).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    same(layer_metrics(read_model(half, name="half")), layer_metrics(read_adapter(tmp_path / "half")))


def test_a_live_model_shows_the_training_up_to_now() -> None:
    adapter = adapted("plain", METHODS["bora"](), random=False)
    live = read_model(adapter)
    assert not live["first"].to_dense().any()
    randomise(adapter)
    assert live["first"].to_dense().any()


def test_wrong_use_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^a Plain is not a PEFT model; expected the result of get_peft_model,"):
        read_model(base("plain"))
    for options, told in (({"every": 0}, "every is 0; expected"), ({"budget": 0}, "budget is 0; expected")):
        with pytest.raises(ValueError, match=told):
            RankCallback(tmp_path / "ranks.parquet", **options)  # pyright: ignore[reportArgumentType]


def adapted_by(model: Any, config: Any, how: str) -> Any:
    if how == "get_peft_model":
        return get_peft_model(model, config)
    if how == "add_adapter":
        model.add_adapter(config)
        return model
    return inject_adapter_in_model(config, model)


def watched(
    folder: Path, config: Any, how: str = "get_peft_model", **options: Any
) -> tuple[Trainer, RankCallback, Any]:
    """A run over an adapted model, its callback, and the model before."""
    torch.manual_seed(3)
    model = small()
    before = copy.deepcopy(model)
    run = training(adapted_by(model, config, how), folder / "run", steps=2, save_strategy="no", **options)
    return run, with_ranks(run, folder, every=1, factors=None), before


TARGETS: dict[str, Any] = {"target_modules": ["query", "value"]}
ON_BASE = {
    "dora": lambda: LoraConfig(r=2, use_dora=True, **TARGETS),
    "ia3": lambda: IA3Config(feedforward_modules=[], **TARGETS),
    "oft": lambda: OFTConfig(r=0, oft_block_size=4, **TARGETS),
    "boft": lambda: BOFTConfig(boft_block_size=4, **TARGETS),
    "hra": lambda: HRAConfig(r=2, **TARGETS),
    "miss": lambda: MissConfig(r=2, **TARGETS),
    "miss, bat": lambda: MissConfig(r=2, init_weights="bat", **TARGETS),
    "fourierft": lambda: FourierFTConfig(n_frequency=20, **TARGETS),
    "vera": lambda: VeraConfig(r=2, **TARGETS),
    "pissa": lambda: LoraConfig(r=2, init_lora_weights="pissa", **TARGETS),
    "olora": lambda: LoraConfig(r=2, init_lora_weights="olora", **TARGETS),
}


@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension", "ignore:Setting boft_n_butterfly")
@pytest.mark.parametrize("name", ON_BASE)
def test_methods_that_need_or_change_the_base_model_are_recorded(name: str, tmp_path: Path) -> None:
    """Against PEFT's own merge, and the weights before."""
    run, _, before = watched(tmp_path, ON_BASE[name](), learning_rate=0.01)
    run.train()
    rows = pd.read_parquet(tmp_path / "ranks.parquet")
    assert rows["step"].unique().tolist() == [0, 1, 2]
    merged: Any = run.model.merge_and_unload()  # pyright: ignore
    for row in rows[rows["step"] == 2].itertuples():
        change = merged.get_submodule(row.module).weight - before.get_submodule(row.module).weight
        values = torch.linalg.svdvals(change.detach().double())
        assert row.spectral_norm == pytest.approx(float(values[0]), rel=2e-3, abs=1e-6)
        assert row.frobenius_norm == pytest.approx(float(values.norm()), rel=2e-3, abs=1e-6)
    assert rows[rows["step"] == 0]["spectral_norm"].max() < (1e-6 if name != "fourierft" else 99)


def test_a_run_that_resumes_subtracts_the_first_step(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = get_peft_model(small(), ON_BASE["pissa"]())
    callback = RankCallback(tmp_path / "ranks.parquet", every=1, budget=None)
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    callback.on_train_begin(None, state, None, model=model)
    for value in model.parameters():
        value.data *= 1.01 if value.requires_grad else 1
    state.global_step = 3
    again = RankCallback(tmp_path / "ranks.parquet", every=1, budget=None)
    again.on_train_begin(None, state, None, model=model)
    rows = pd.read_parquet(tmp_path / "ranks.parquet")
    assert rows.groupby("step")["spectral_norm"].max()[0] < 1e-6 < rows.groupby("step")["spectral_norm"].max()[3]
    initial = read_adapter(tmp_path / "ranks-initial")
    same(rows[rows["step"] == 3], layer_metrics(read_model(model, name="ranks", step=3, initial=initial)))
    shutil.rmtree(tmp_path / "ranks-initial")
    with pytest.warns(UserWarning, match="ranks-initial: is missing, the adapter before the first step"):
        RankCallback(tmp_path / "ranks.parquet").on_train_begin(None, state, None, model=model)


@pytest.mark.parametrize("how", ["add_adapter", "inject"])
@pytest.mark.parametrize("name", ["lora", "bora", "dora", "pissa"])
def test_models_whose_adapter_peft_or_transformers_set_in(how: str, name: str, tmp_path: Path) -> None:
    make = EVERY_METHOD.get(name, lambda **_: ON_BASE[name]())
    found = []
    for each in ("get_peft_model", how):
        run, _, _ = watched(tmp_path / each, make(**TARGETS), each)
        run.train()
        found.append(pd.read_parquet(tmp_path / each / "ranks.parquet"))
    same(found[1], found[0])


def nan(model: Any) -> Any:
    adapter = get_peft_model(model, LoraConfig(r=2, **TARGETS))
    next(value for value in adapter.parameters() if value.requires_grad).data[0, 0] = float("nan")
    return adapter


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda model: model, "is not a PEFT model; expected the result of get_peft_model, or of add_adapter"),
        (nan, r"lora_A.weight: A holds NaN or Inf \(first at index \(0, 0\)\)"),
        (
            lambda model: get_peft_model(model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)),
            r"PROMPT_TUNING \(prompt tuning\) is not readable",
        ),
    ],
)
def test_what_has_no_ranks_is_trained_all_the_same_after_one_warning(wrap: Any, told: str, tmp_path: Path) -> None:
    run = training(wrap(small()), tmp_path / "run", steps=3, save_strategy="no")
    with_ranks(run, tmp_path, every=1)
    with pytest.warns(UserWarning, match=told) as warned:
        run.train()
    assert run.state.global_step == 3
    (only,) = [str(each.message) for each in warned if "RankCallback" in str(each.message)]
    assert "stands aside, the training goes on" in only
    assert "ranks.parquet gets no further rows; mend this and resume the run, or read its checkpoints" in only


@pytest.mark.parametrize("fault", ["file", "log", "disk"])
def test_no_error_ends_a_run(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    run = trainer(tmp_path / "run", steps=3)
    callback = with_ranks(run, tmp_path, every=1)
    told = "No space left on device"
    if fault == "file":
        (tmp_path / "ranks.parquet").write_text("no table")
        told = r"ranks\.parquet: not a Parquet file of an earlier run \(.*\); move it"
    elif fault == "log":
        callback.log = fail
    else:
        monkeypatch.setattr("bora_analysis.peft_methods.callback._write", fail)
    with pytest.warns(UserWarning, match=told) as warned:
        run.train()
    assert run.state.global_step == 3
    assert len([each for each in warned if "RankCallback" in str(each.message)]) == 1
