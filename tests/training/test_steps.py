"""A step that is foreseen, against one that is carried out: torch's counter, and its profiler's allocations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode
from training_models import save_decoder, save_encoder

from bora_analysis.catalogue.cost import cost, frozen_bytes, memory, step_products
from bora_analysis.cli import main
from bora_analysis.training import TrainingError
from bora_analysis.training.steps import Held, Step, Work, adapted, foreseen, lasting

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
    assert "at least: at " in shown.stdout
    assert "measured now" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "4"], "expected EXAMPLESxTOKENS, e.g. 32x64"),
        (["--base", "nf4"], "add --step BxL"),
        (["--step", "4x4", "--optimal-blocks"], "leave out --budget, --optimal-blocks"),
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
