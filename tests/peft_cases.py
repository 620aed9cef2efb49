"""Tiny models, and every method in every variant, for the tests of ``bora_analysis.peft_methods``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft import get_peft_model as _get_peft_model
from peft_models import tiny_gpt2, tiny_llama
from torch import Tensor, nn

from bora_analysis.peft_methods import BoraConfig, MeloraConfig, SboraConfig

METHODS: dict[str, Callable[..., Any]] = {
    "bora": lambda **options: BoraConfig(r=2, num_blocks=4, **options),
    "bora-no-exp": lambda **options: BoraConfig(r=2, num_blocks=2, activation="no-exp", **options),
    "bora-no-norm": lambda **options: BoraConfig(r=3, num_blocks=8, activation="no-norm", **options),
    "bora-identity": lambda **options: BoraConfig(r=1, num_blocks=4, activation="identity", **options),
    "bora-auto": lambda **options: BoraConfig(r=2, **options),
    "melora": lambda **options: MeloraConfig(r=2, num_minis=4, **options),
    "sbora-fa": lambda **options: SboraConfig(r=3, **options),
    "sbora-fb": lambda **options: SboraConfig(r=3, variant="fb", **options),
}
FACTORS = {"bora": ("A", "B", "sigma"), "melora": ("A", "B"), "sbora-fa": ("B",), "sbora-fb": ("A",)}
TARGETS = {
    "bert": ["query", "output.dense"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "plain": ["first", "second"],
}
TOKENS = torch.arange(14).reshape(2, 7) % 11


class Plain(nn.Module):
    """Two linear layers and a head, without anything of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 24), nn.Linear(24, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.tanh(self.first(x))))


def get_peft_model(*arguments: Any, **options: Any) -> Any:
    """PEFT's own, without its types: attributes of wrapped models are modules or tensors to a type checker."""
    return _get_peft_model(*arguments, **options)


def load(*arguments: Any, **options: Any) -> Any:
    """``PeftModel.from_pretrained``, likewise."""
    return PeftModel.from_pretrained(*arguments, **options)


def base(name: str) -> Any:
    """The same model with the same weights each time, in evaluation."""
    torch.manual_seed(3)
    if name == "plain":
        return Plain().eval()
    if name == "gpt2":
        return tiny_gpt2().eval()
    if name == "llama":
        return tiny_llama().eval()
    from transformers import BertConfig, BertModel

    sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return BertModel(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=16)).eval()


def output(model: Any, name: str) -> Tensor:
    if name == "plain":
        weight = next(p for p in model.parameters() if p.is_floating_point() and p.dim() == 2)
        generator = torch.Generator().manual_seed(5)
        return model(torch.randn(2, 5, 16, generator=generator).to(weight.dtype))
    found = model(input_ids=TOKENS)
    return found.last_hidden_state if name == "bert" else found.logits


def adapted(name: str, config: Any, *, random: bool = True, **options: Any) -> Any:
    """A base model with an adapter; ``random``: trained, as it were, so that ΔW is not zero."""
    config.target_modules = config.target_modules or set(TARGETS[name])
    model = get_peft_model(base(name), config, **options)
    if random:
        randomise(model)
    return model.eval()


def randomise(model: Any, seed: int = 7) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bora_" in key or "melora_" in key or "lora_A" in key or "lora_B" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def layers(model: Any) -> dict[str, Any]:
    from bora_analysis.peft_methods.adapter_layer import AdapterLayer

    found = {key: value for key, value in model.named_modules() if isinstance(value, AdapterLayer)}
    return {key.removeprefix("base_model.model."): value for key, value in found.items()}
