"""A whole adapted model under torch.compile and autocast: output and gradients are those of the model in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft_cases import METHODS, TARGETS, base, get_peft_model, output, randomise

# torch's tracer does what it warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning"),
]
CONFIGS: dict[str, Any] = {
    "lora": lambda **told: LoraConfig(r=2, **told),
    **{name: METHODS[name] for name in ("bora", "melora")},
}
#: Autocast's dtype → the error that is allowed, relative to the largest value: for the half dtypes 16 units.
ALLOWED = {None: 1e-5, torch.bfloat16: 2**-4, torch.float16: 2**-7}


def made(method: str, name: str) -> Any:
    torch.manual_seed(3)
    model = get_peft_model(base(name), CONFIGS[method](target_modules=TARGETS[name]))
    randomise(model)
    return model.eval()


def passed(name: str, model: Any, called: Any, autocast: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The output, and the gradients of its sum of squares: those of the mean would be too small for float16."""
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        found = output(called, name)
    found.double().square().sum().backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert gradients
    return {"output": found.detach(), **gradients}


@pytest.mark.parametrize("autocast", ALLOWED, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", CONFIGS)
def test_output_and_gradients(method: str, compiled: bool, autocast: torch.dtype | None) -> None:
    """LoRA is held to the same limits, so that they are not BoRA's own. aot_eager: traced both ways, without g++."""
    torch.compiler.reset()
    name = "plain" if compiled else "llama"  # tracing a Llama takes seconds; benchmarks/training.py compiles one
    model = made(method, name)
    exact_model = copy.deepcopy(model).double()
    exact = passed(name, exact_model, exact_model, None)
    called = torch.compile(model, backend="aot_eager") if compiled else model
    found = passed(name, model, called, autocast)
    assert found.keys() == exact.keys()
    for key, value in found.items():
        assert value.dtype == (autocast if key == "output" and autocast else torch.float32)
        error = (value.double() - exact[key]).abs().max() / exact[key].abs().max()
        assert error <= ALLOWED[autocast], key
