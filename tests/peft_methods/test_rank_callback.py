"""Ranks followed through training: a real Trainer, and the checkpoints that it saves as the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig
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
    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=16))
    adapter = get_peft_model(model, EVERY_METHOD[method](target_modules=["query", "value"]))
    generator = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(0, 40, (8,), generator=generator), "labels": torch.tensor(k % 2)} for k in range(48)
    ]
    settings: dict[str, Any] = {"logging_steps": 2, "save_steps": 2, "per_device_train_batch_size": 8} | options
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        learning_rate=0.05,
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
    from types import SimpleNamespace

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
    with pytest.raises(TypeError, match=r"^a Plain is not a PEFT model; expected the result of get_peft_model$"):
        read_model(base("plain"))
    for options, told in (({"every": 0}, "every is 0; expected"), ({"budget": 0}, "budget is 0; expected")):
        with pytest.raises(ValueError, match=told):
            RankCallback(tmp_path / "ranks.parquet", **options)  # pyright: ignore[reportArgumentType]
    (tmp_path / "ranks.parquet").write_text("no table")
    run = trainer(tmp_path / "run")
    with_ranks(run, tmp_path)
    with pytest.raises(ValueError, match=r"ranks\.parquet: not a Parquet file of an earlier run \(.*\); move it"):
        run.train()
