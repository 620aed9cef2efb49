"""Toy models with tokenizers, and data that can be learned in a few steps, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

GOOD, BAD = ("good", "great", "fine"), ("bad", "awful", "dull")
WORDS = ("the", "a", "film", "plot", "actor", "was", "is", "felt", "very", "it", *GOOD, *BAD)


def save_encoder(folder: Path) -> Path:
    """A BERT of two layers, hidden size 32."""
    from transformers import BertConfig, BertModel, BertTokenizer, set_seed

    set_seed(5)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.15,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def save_decoder(folder: Path, kind: str = "llama", width: int = 32) -> Path:
    """A LLaMA or GPT-2 of two layers, hidden size ``width``, with a tokenizer of whole words and no padding token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        LlamaConfig,
        PreTrainedTokenizerFast,
        set_seed,
    )

    set_seed(5)
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}
    config: Any
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=len(vocabulary),
            n_embd=width,
            n_layer=2,
            n_head=2,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=1,
        )
    else:
        config = LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=1,
        )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder


def reviews(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    """Sentences of random words; four of them say, alike, what was thought of the film."""
    rng = np.random.default_rng(seed)
    sentences, labels, ratings = [], [], []
    for _ in range(rows):
        positive = bool(rng.integers(2))
        words = [*rng.choice(WORDS[:10], rng.integers(1, 5)), *rng.choice(GOOD if positive else BAD, 4)]
        sentences.append(" ".join(map(str, rng.permutation(words))))
        labels.append("positive" if positive else "negative")
        ratings.append(float(positive) * 4 - 2 + round(float(rng.normal(0, 0.3)), 3))
    return pd.DataFrame({"sentence": sentences, "label": labels, "rating": ratings})
