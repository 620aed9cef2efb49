"""The rules: each a row, with its severity, its words and its limits. Another rule is one more row and its function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from . import base_rules, file_rules, layer_rules
from .examined import Examined
from .findings import Found


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes
    ----------
    severity : ``"error"``, ``"warning"`` or ``"note"``; a file of limits may change it.
    words : what it looks for. mend : what to do about a finding.
    find : the adapter and the limits → findings.
    limits : name → default.
    """

    severity: str
    words: str
    mend: str
    find: Callable[[Examined, Mapping[str, float]], Iterator[Found]]
    limits: Mapping[str, float] = field(default_factory=dict)


#: Id → rule, in the order in which they are reported.
RULES: dict[str, Rule] = {
    "unreadable": Rule(
        "error", "An adapter, or a module of it, that cannot be read",
        "The message says what was expected; correct the file or the option that it names.", file_rules.unreadable,
    ),
    "not-finite": Rule(
        "error", "NaN or infinite numbers in a tensor of the file",
        "Take an earlier checkpoint, or train again with a lower learning rate, clipped gradients or bfloat16.",
        file_rules.not_finite, {"numbers": 0},
    ),
    "nothing-trained": Rule(
        "error", "ΔW = 0 in every module: nothing was trained",
        "Check that the adapter's parameters had gradients, and that it was saved after training.",
        layer_rules.nothing_trained,
    ),
    "rank": Rule(
        "error", "A rank that differs from the configuration's",
        "Correct r or rank_pattern in adapter_config.json; PEFT cannot load the file as it is.", file_rules.rank,
    ),
    "alpha-sign": Rule(
        "error", "An α that is zero or negative", "Correct lora_alpha or alpha_pattern.", file_rules.alpha_sign,
    ),
    "base-mismatch": Rule(
        "error", "A module that the base model lacks or has in another shape (with --base)",
        "Give the base model that was adapted; see base_model_name_or_path.", base_rules.base_mismatch,
    ),
    "alpha-size": Rule(
        "warning", "A scaling, α/r or α/√r, that is hardly meant",
        "Check α, r and use_rslora against the settings of the training.", file_rules.alpha_size,
        {"least": 0.001, "most": 100},
    ),
    "alpha-missing": Rule(
        "warning", "A file that does not store α",
        "Keep adapter_config.json beside the weights, or give --alpha.", file_rules.alpha_missing,
    ),
    "missing-layer": Rule(
        "warning", "A projection that a few of the layers lack",
        "Check target_modules, and that the file was saved whole.", layer_rules.missing_layer,
        {"layers": 6, "share": 0.1},
    ),
    "doubled-layer": Rule(
        "warning", "Two modules with the same ΔW",
        "Check the script that copied or renamed the tensors.", layer_rules.doubled_layer,
    ),
    "dead-module": Rule(
        "warning", "A module whose ΔW is zero, or tiny beside its projection's median",
        "Check that it is used in the forward pass and had gradients; leave it out of target_modules if not.",
        layer_rules.dead_module, {"ratio": 0.001},
    ),
    "sigma-spike": Rule(
        "warning", "A σ₁ far above that of the same projection in other layers",
        "Compare earlier checkpoints; convert --cap-sigma cuts it, which stacking of adapters may need.",
        layer_rules.sigma_spike, {"z": 6, "times": 3, "modules": 8},
    ),
    "precision": Rule(
        "warning", "Rounding of the stored numbers that is large beside ΔW",
        "Save in float32 or bfloat16, or the factors with balanced norms.", file_rules.precision, {"relative": 0.01},
    ),
    "underflow": Rule(
        "warning", "A ΔW that is not zero, but below what the dtype of its file can hold",
        "A program that computes in that dtype adds nothing: train with a higher rate, or save in a wider dtype.",
        layer_rules.underflow,
    ),
    "pickle": Rule(
        "warning", "A file in the format of Python's pickle, whose loading can run code",
        "Save the weights as .safetensors and leave other pickles out; here only tensors are read from them.",
        file_rules.pickle,
    ),
    "whole-matrix": Rule(
        "note", "A large matrix that is stored whole beside ΔW (modules_to_save, embeddings, heads)",
        "Leave it out where it is not needed: it takes the space of the layer, and servers of many adapters refuse it.",
        file_rules.whole_matrix, {"share": 0.1},
    ),
    "exhausted": Rule(
        "note", "A module whose spectrum ends before it decays: more rank might hold more",
        "See recommend for the rank to try next.", layer_rules.exhausted, {"tail": 0.5},
    ),
    "intruders": Rule(
        "note", "Intruder dimensions (arXiv 2410.21228; with --base)",
        "They went with forgetting in that study: test what the base model could do before; a lower learning rate or "
        "a higher rank has fewer.",
        base_rules.intruders, {"k": 10, "epsilon": 0.5, "most": 0},
    ),
    "unused-setting": Rule(
        "note", "An entry of target_modules, rank_pattern or alpha_pattern that fits no module",
        "Correct the name; PEFT passes over it without a word.", file_rules.unused_setting,
    ),
    "base-needed": Rule(
        "note", "An update that depends on the base model, which was not given", "Give it with --base.",
        file_rules.base_needed,
    ),
    "reader": Rule(
        "note", "What the reader says about the numbers", "Nothing, if it is known.", file_rules.reader_note,
    ),
}  # fmt: skip
