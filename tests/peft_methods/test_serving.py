"""A trained BoRA becomes a LoRA that vLLM and llama.cpp can serve: their formats, and the same ΔW."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from peft_cases import base, get_peft_model, layers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bora_analysis.cli import main
from bora_analysis.peft_methods import BoraConfig

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def bora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, NDArray[Any]]]:
    """A BoRA of a tiny Llama after some steps, its folder, the base model's, and ΔW by module."""
    home = tmp_path_factory.mktemp("bora")
    base("llama").save_pretrained(home / "base")
    start = AutoModelForCausalLM.from_pretrained(home / "base")
    config = BoraConfig(
        r=2, num_blocks=2, lora_alpha=6, target_modules=TARGETS, rank_pattern={"mlp.up_proj": 1}, task_type="CAUSAL_LM"
    )
    model = get_peft_model(start, config)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=0.05)
    tokens = torch.arange(24).view(2, 12)
    for _ in range(5):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(home / "bora")
    delta = {name: layer.get_delta_weight("default").double().numpy() for name, layer in layers(model).items()}
    assert len(delta) == 14
    assert all(np.linalg.norm(dense) > 1e-2 for dense in delta.values())
    return home / "bora", home / "base", delta


def convert(*arguments: Any) -> None:
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    assert result.exit_code == 0, result.output


def same(found: NDArray[Any], exact: NDArray[Any]) -> None:
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("pad", [True, False])
def test_in_what_vllm_reads(bora: Any, pad: bool, tmp_path: Path) -> None:
    """vLLM's ``peft_helper.py`` and ``lora/utils.py``: r and α of the configuration, keys by name, no patterns."""
    folder, _, delta = bora
    convert(folder, "-o", tmp_path / "lora", *(["--pad"] if pad else []))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA"
    assert config["bias"] == "none"
    assert not config.get("modules_to_save")
    assert not config.get("use_dora")
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == set(TARGETS)
    scaling = config["lora_alpha"] / (np.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    ranks = set()
    for name, exact in delta.items():
        A, B = (tensors.pop(f"base_model.model.{name}.lora_{side}.weight").double().numpy() for side in "AB")
        same(scaling * B @ A, exact)
        ranks.add(len(A))
    assert not tensors
    assert max(ranks) == config["r"] == 4  # b·r
    assert (len(ranks) == 1) == pad


def test_in_what_llama_cpp_reads(bora: Any, tmp_path: Path) -> None:
    """With the reader and the names of llama.cpp's own package, and its order of rows of query and key."""
    gguf = pytest.importorskip("gguf")
    folder, home, delta = bora
    convert(folder, "-o", tmp_path / "lora.gguf", "--layout", "gguf", "--base", home)
    read = gguf.GGUFReader(tmp_path / "lora.gguf")
    fields = {key: read.get_field(key).contents() for key in ("general.type", "adapter.type", "general.architecture")}
    assert fields == {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}
    alpha = read.get_field("adapter.lora.alpha").contents()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    found = {tensor.name: tensor.data.astype("f8") for tensor in read.tensors}
    heads = json.loads((home / "config.json").read_text())
    for name, exact in delta.items():
        A, B = (found.pop(f"{names.get_name(name)}.weight.lora_{side}") for side in "ab")
        dense = alpha / len(A) * B @ A
        if name.endswith(("q_proj", "k_proj")):  # LlamaModel.permute of convert_hf_to_gguf.py, undone
            count = heads["num_attention_heads" if name.endswith("q_proj") else "num_key_value_heads"]
            dense = dense.reshape(count, -1, 2, dense.shape[1]).swapaxes(1, 2).reshape(exact.shape)
        same(dense, exact)
        assert len(A) == 4  # one rank: α is divided by each tensor's
    assert not found
