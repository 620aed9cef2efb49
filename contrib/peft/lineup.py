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
#: Tests of test_initialization.py that make a LoRA by themselves and look at nothing of LoRA's own. BoRA and MELoRA are
#: made instead, which adapt the same layers.
ALONE = (
    "test_lora_scaling_default", "test_rank_alpha_pattern_override", "test_lora_rslora_scaling",
    "test_lora_default_scaling_pattern", "test_lora_rslora_scaling_pattern", "test_unmatched_alpha_pattern_key_warns",
    "test_unmatched_rank_pattern_key_warns", "test_matched_pattern_keys_do_not_warn",
    "test_partially_matched_pattern_warns_for_unmatched_keys_only",
    "test_misconfigured_second_adapter_warns_on_add_adapter", "test_no_infinite_recursion",
    "test_no_warning_by_default_transformers_model", "test_no_warning_by_default_custom_model",
    "test_warning_name_transformers_model", "test_warning_name_custom_model",
    "test_warning_name_custom_model_with_custom_name", "test_no_warning_without_naming_conflict_get_peft_model",
    "test_no_warning_without_naming_conflict_add_adapter", "test_no_warning_without_naming_conflict_save_and_load",
    "test_hotswap_raises_when_target_adapter_merged", "test_hotswap_allowed_when_other_adapter_merged",
    "test_weight_tying_tied_model_lora", "test_alt_weight_tying_tied_model_lora",
    "test_weight_tying_enc_dec_modules_to_save_lora", "test_ensure_weight_tying_not_tying_when_model_config_tie_false",
)  # fmt: skip
#: Part of a refusal's message → why a test that meets it is expected to fail.
EXPECTED = {
    "LoRA conversion MSE too high": "cut to a LoRA of rank 8, which BoRA's rank b·r exceeds; GraLoRA is allowed 1.0",
    "HydraLoRA's update depends on the token": "HydraLoRA's update depends on the token; there is no ΔW to merge",
    "MELORA but": "SBoRA and HydraLoRA have no hot swap",
    "is not compatible with the `PeftMixedModel`": "PeftMixedModel has a closed list of PEFT's own methods",
    "or nn.Conv3d without groups": "convolutions with groups are not adapted",
    "b = 4 does not divide m = 20 and n = 10": "MELoRA's default of four minis does not divide the test's layer",
}
