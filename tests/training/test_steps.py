"""A step that is foreseen, against one that is carried out: torch's counter, and its profiler's allocations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode
from training_models import save_decoder, save_encoder

from bora_analysis.catalogue.cost import cost, frozen_bytes, memory, step_products
from bora_analysis.cli import main
from bora_analysis.training import TrainingError, steps
from bora_analysis.training.steps import Held, Step, Work, adapted, estimated_seconds, foreseen, lasting, most_allocated

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"bert": str(save_encoder(folder / "bert")), "llama": str(save_decoder(folder / "llama"))}


def carried_out(work: Work, method: str) -> tuple[int, int, int]:
    """FLOPs forwards and backwards, and the peak, of tensors with numbers."""
    step = Step(work, adapted(work, method))
    step.step()
    with FlopCounterMode(display=False) as counter:
        loss = step.forward()
        forward = counter.get_total_flops()
        loss.backward()
    step.optimizer.zero_grad()
    return forward, counter.get_total_flops() - forward, step.peak()


@pytest.mark.parametrize(
    ("model", "method", "checkpointing"),
    [("bert", "bora", False), ("bert", "dora", False), ("llama", "lora", False), ("llama", "bora", True),
     ("llama", "full", False)],
)  # fmt: skip
def test_what_is_foreseen_happens(models: dict[str, str], model: str, method: str, checkpointing: bool) -> None:
    work = Work(models[model], batch=16, length=48, r=4, blocks=4, checkpointing=checkpointing)
    found = foreseen(work, [method])[0]
    forward, backward, peak = carried_out(work, method)
    assert (found.forward, found.backward) == (forward, backward)
    assert found.peak == pytest.approx(peak, rel=0.1)
    assert found.activations < found.peak


def test_a_padded_step_is_foreseen(models: dict[str, str]) -> None:
    work = Work(models["bert"], batch=2, length=8, r=4, blocks=5, pad=True)
    for method in ("bora", "lora"):
        found = foreseen(work, [method])[0]
        forward, backward, peak = carried_out(work, method)
        assert (found.forward, found.backward) == (forward, backward)
        assert found.peak == pytest.approx(peak, rel=0.1)
    with pytest.raises(TrainingError, match="blocks is 5: b = 5 does not divide"):
        foreseen(replace(work, pad=False), ["bora"])


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The configuration of a model with five layers, of two kinds."""
    config = transformers.Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, use_sliding_window=True, sliding_window=4, max_window_layers=3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("deep")
    config.save_pretrained(folder)
    return str(folder)


def test_the_first_layers_of_a_model(deep: str) -> None:
    """Each layer more adds the same, so a step is what the first layers say of it."""
    flops = [
        found.forward + found.backward
        for layers in (2, 3, None)
        for found in foreseen(Work(deep, batch=2, length=8, layers=layers), ["bora"])
    ]
    assert flops[2] - flops[1] == 2 * (flops[1] - flops[0]) > 0


def test_the_time_is_estimated_at_the_speed_of_two_layers(deep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose clock says 3 s for the first step and 2 s for each other one."""
    steps_of_the_clock: list[None] = []

    def clock(work: Callable[[], object], device: str = "cpu") -> float:
        work()
        steps_of_the_clock.append(None)
        return 3.0 if len(steps_of_the_clock) == 1 else 2.0

    monkeypatch.setattr(steps, "seconds_of", clock)
    work = Work(deep, batch=2, length=8, r=4, blocks=4)
    two, whole = (foreseen(replace(work, layers=layers), ["bora"])[0] for layers in (2, None))
    ratio = (whole.forward + whole.backward) / (two.forward + two.backward)
    assert 1.5 < ratio < 2.5
    assert estimated_seconds(work, whole) == pytest.approx(2 * ratio, rel=1e-12)
    assert len(steps_of_the_clock) == 4
    steps_of_the_clock.clear()
    assert estimated_seconds(work, whole, seconds=0.1) == pytest.approx(3 * ratio, rel=1e-12)  # 3 s are enough
    monkeypatch.setattr(steps, "_free", lambda device: 1000)
    with pytest.raises(
        TrainingError, match=r"its first two layers takes 0\.\d GB, and 0\.0 GB are free; expected fewer"
    ):
        estimated_seconds(work, whole)


@pytest.mark.parametrize("method", ["lora", "melora", "bora"])
def test_the_adapters_part_is_that_of_the_catalogue(models: dict[str, str], method: str) -> None:
    """Two adapters of one model differ by the products of their layers, of which the first get no input's gradient."""
    work = Work(models["llama"], batch=3, length=8, r=4, blocks=4)
    one, none = (foreseen(work, [name])[0] for name in (method, "full"))
    tokens, layers = 24, 2
    own = step_products(method, 32, 32, 4, blocks=1 if method == "lora" else 4)
    assert own is not None
    assert one.forward - none.forward == 2 * tokens * 2 * layers * own.forward
    whole = 2 * 32 * 32 * layers  # of full fine-tuning: the gradients of q and v
    backward = 2 * layers * (own.backward + own.inputs) - 2 * own.inputs
    assert one.backward - none.backward == 2 * tokens * (backward - whole)
    adapter = 2 * layers * cost(method, 32, 32, 4, blocks=1 if method == "lora" else 4).parameters
    assert one.parameters == adapter
    assert (one.adapter, one.optimizer) == (memory(adapter).weights, memory(adapter).optimizer)


def test_a_quantised_model_and_other_optimisers(models: dict[str, str]) -> None:
    work = Work(models["llama"], batch=2, length=8, r=4, dtype="bfloat16")
    plain, quantised = (foreseen(work, ["lora"], base=base, optimizer="sgd")[0] for base in (None, "nf4"))
    shapes = [(32, 32)] * 4 + [(64, 32)] * 2 + [(32, 64)]  # q, k, v, o, gate, up, down
    saved = 2 * sum(2 * m * n - frozen_bytes(m, n, "nf4") for m, n in shapes)
    assert plain.base - quantised.base == plain.peak - quantised.peak == saved
    assert (plain.largest, quantised.largest, plain.optimizer) == (0, 2 * 32 * 64, 0)


def test_checkpointing_keeps_less_and_computes_more(models: dict[str, str]) -> None:
    plain, saving = (
        foreseen(Work(models["llama"], batch=8, length=32, checkpointing=saving), ["lora"])[0]
        for saving in (False, True)
    )
    assert saving.activations < plain.activations / 2
    assert saving.forward == plain.forward
    assert saving.backward > plain.backward


def test_held_counts_what_is_alive() -> None:
    known = torch.ones(100)
    held = Held([known])
    with held:
        view = known.view(10, 10).T  # of what was there
        made = [view + 1, view * 2]
        del made[0]
        made.append(view @ view)
    assert (held.now, held.peak, held.flops) == (800, 800, 2 * 10**3)
    del made
    assert held.now == 0
    assert sum(value.nbytes for value in lasting(torch.nn.Linear(3, 2))) == 32


def test_the_profiler_counts_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        for _ in range(3):
            torch.ones(1000)

    assert most_allocated(work) == 4000
    assert capfd.readouterr() == ("", "")


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["cost", *map(str, arguments)])


def test_through_the_command_line(models: dict[str, str]) -> None:
    result = run("--model", models["llama"], "--target", "QKVG", "--method", "lora", "--method", "bora", "-r", 4,
                 "--blocks", 4, "--step", "4x16", "--base", "nf4", "--format", "json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    lora, bora = json.loads(result.stdout)
    expected = foreseen(Work(models["llama"], "QKVG", 4, 16, 4, 4, dtype="bfloat16"), ["lora", "bora"], base="nf4")
    assert [lora["peak"], bora["peak"]] == [each.peak for each in expected]
    shown = run("--model", models["bert"], "--target", "qv", "--method", "lora", "--step", "2x8", "--measure")
    assert "time: an estimate, at the FLOPs a second of steps" in " ".join(shown.stdout.split())
    padded = run(
        "--model", models["bert"], "--target", "q", "--step", "2x8", "--blocks", 5, "--pad", "--format", "json"
    )
    assert json.loads(padded.stdout)[0]["parameters"] == 2 * (32 + 32 + 25) * 8 + 66  # and the head


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "4"], "expected EXAMPLESxTOKENS, e.g. 32x64"),
        (["--base", "nf4"], "add --step BxL"),
        (["--step", "4x4", "--optimal-blocks"], "leave out --budget, --optimal-blocks"),
        (["--step", "4x4", "--pad", "--method", "lora"], "lora cannot be padded; methods that can: bora"),
        (["--step", "4x4", "--method", "qalora"], "for what train accepts, not for qalora"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_what_cannot_be_foreseen(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"krona: a step cannot be foreseen, .* bench-training measures it"):
        foreseen(Work(models["llama"], batch=2, length=4), ["krona"])
    with pytest.raises(TrainingError, match="100 tokens; expected at most 64"):
        foreseen(Work(models["bert"], length=100), ["lora"])
    with pytest.raises(TrainingError, match="no projection gate"):
        foreseen(Work(models["bert"], target="QG"), ["lora"])
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        foreseen(Work(str(tmp_path)), ["lora"])
