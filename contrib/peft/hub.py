"""Tiny models, in the layout of the Hub's cache, under the names that PEFT's tests ask the Hub for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA: dict[str, Any] = {**SIZES, "num_key_value_heads": 4, "vocab_size": 1000, "max_position_embeddings": 512}
BERT: dict[str, Any] = {**SIZES, "vocab_size": 1124, "max_position_embeddings": 512}
OPT: dict[str, Any] = {"vocab_size": 1000, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64}
OPT |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
DEEP: dict[str, Any] = OPT | {"num_hidden_layers": 12}
GPT: dict[str, Any] = {"vocab_size": 1000, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
GPT |= {"bos_token_id": 1, "eos_token_id": 2}
T5: dict[str, Any] = {"vocab_size": 1000, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}
BART: dict[str, Any] = {"vocab_size": 1000, "d_model": 32, "max_position_embeddings": 512}
BART |= {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("ffn_dim", 64), ("attention_heads", 4))
}

PEFT, HF, TRL = "peft-internal-testing", "hf-internal-testing", "trl-internal-testing"
MODELS: dict[str, Callable[[], Any]] = {
    f"{PEFT}/tiny-random-OPTForCausalLM": lambda: tf.OPTForCausalLM(tf.OPTConfig(**OPT)),
    f"{PEFT}/opt-125m": lambda: tf.OPTForCausalLM(tf.OPTConfig(**DEEP)),
    f"{PEFT}/tiny-random-GPT2LMHeadModel": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT)),
    f"{HF}/tiny-random-gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT)),
    f"{PEFT}/tiny-random-gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT)),
    f"{PEFT}/tiny-random-GPTJForCausalLM": lambda: tf.GPTJForCausalLM(tf.GPTJConfig(**GPT, rotary_dim=4)),
    f"{TRL}/tiny-random-LlamaForCausalLM": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA)),
    f"{TRL}/tiny-LlamaForSequenceClassification-3.2": lambda: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(**LLAMA, pad_token_id=0)
    ),
    f"{PEFT}/tiny-dummy-qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**LLAMA)),
    f"{TRL}/tiny-Qwen3ForCausalLM": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**LLAMA, head_dim=8)),
    f"{HF}/tiny-random-Gemma3ForCausalLM": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**LLAMA, head_dim=8)),
    f"{HF}/tiny-random-MistralForCausalLM": lambda: tf.MistralForCausalLM(tf.MistralConfig(**LLAMA)),
    f"{PEFT}/tiny-random-T5ForConditionalGeneration-calibrated": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(**T5)
    ),
    f"{PEFT}/tiny-random-BartForConditionalGeneration": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**BART)),
    f"{PEFT}/tiny-random-BertModel": lambda: tf.BertModel(tf.BertConfig(**BERT)),
    f"{PEFT}/tiny-random-RobertaModel": lambda: tf.RobertaModel(tf.RobertaConfig(**BERT)),
    f"{PEFT}/tiny-random-DebertaModel": lambda: tf.DebertaModel(tf.DebertaConfig(**BERT)),
    f"{PEFT}/tiny-random-DebertaV2Model": lambda: tf.DebertaV2Model(tf.DebertaV2Config(**BERT)),
    f"{PEFT}/tiny-random-BertForSequenceClassification": lambda: tf.BertForSequenceClassification(
        tf.BertConfig(**BERT)
    ),
    f"{PEFT}/tiny-random-RobertaForSequenceClassification": lambda: tf.RobertaForSequenceClassification(
        tf.RobertaConfig(**BERT)
    ),
}
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", *"abcde"]


def fill(folder: Path) -> None:
    """Write all models and their tokenizers into ``hub``, and a LoRA's configuration into ``adapter``, once."""
    from peft import LoraConfig
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", "<pad>", *WORDS])}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<pad>", model_max_length=128
    )
    for name, make in MODELS.items():
        home = folder / "hub" / f"models--{name.replace('/', '--')}"
        if (home / "refs" / "main").exists():
            continue
        torch.manual_seed(0)
        made = make()
        made.config.use_cache = True
        made.save_pretrained(home / "snapshots" / "local")
        tokenizer.save_pretrained(home / "snapshots" / "local")
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text("local")
    LoraConfig().save_pretrained(str(folder / "adapter"))
