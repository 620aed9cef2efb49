"""The methods that take LoRA's place in PEFT's tests, and the refusals that make one of them fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from bora_analysis.peft_methods import BoraConfig, HydraloraConfig, MeloraConfig, SboraConfig


@dataclass(frozen=True)
class Method:
    """A configuration; ``linear``: it adapts linear layers only; ``small``: settings for the tests' tiny layers."""

    config: type[PeftConfig]
    prefix: str
    linear: bool = False
    small: dict[str, Any] = field(default_factory=dict)

    def settings(self, names: Sequence[str]) -> dict[str, Any]:
        return dict(self.small)

    def refuses(self, model: str, settings: dict[str, Any]) -> bool:
        targets = settings.get("target_modules") or ""
        layers = [targets] if isinstance(targets, str) else list(targets)
        other = any(("conv" in layer and "Emb" not in model) or "emb" in layer for layer in layers)
        return "Groups" in model or "mha" in model.lower() or (self.linear and other)


METHODS = {
    "bora": Method(BoraConfig, "bora"),
    "melora": Method(MeloraConfig, "melora", small={"num_minis": 1}),
    "sbora": Method(SboraConfig, "sbora", linear=True, small={"r": 5}),
    "hydralora": Method(HydraloraConfig, "hydralora", linear=True),
}
#: Their tests have learning rates by method, against overflow and dead units; these are ours, by part of a name.
RATES = {
    "test_parameters_after_loading_model[Vanilla": {"bora": 0.01},
    "test_only_params_are_updated[Vanilla MLP 4": {"hydralora": 0.01},
    "test_only_params_are_updated[Embedding": {"bora": 100.0, "melora": 100.0},
}
#: Part of a refusal's message → why a test that meets it is expected to fail.
EXPECTED = {
    "LoRA conversion MSE too high": "cut to a LoRA of rank 8, which BoRA's rank b·r exceeds; GraLoRA is allowed 1.0",
    "HydraLoRA's update depends on the token": "HydraLoRA's update depends on the token; there is no ΔW to merge",
    "b = 4 does not divide m = 20 and n = 10": "MELoRA's default of four minis does not divide the test's layer",
}
