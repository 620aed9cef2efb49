"""Answers in generated text by the rules of Hu et al. (2023), and what a model generates."""

from __future__ import annotations

import pytest
import torch
from training_models import save_decoder

from bora_analysis.training.answers import extracted, generated, is_right

CASES = [
    # expected, text, found, right
    ("5", "There are 3 + 2 = 5 apples.", "5", True),
    ("5", "There are 5 apples of 7", "7", False),
    ("1200", "So the total is 1,200.", "1200.", True),
    ("-3.5", "minus: -3.50", "-3.50", True),
    ("2.0", "It is 2.0009", "2.0009", True),
    ("2", "It is 2.0011", "2.0011", False),
    ("3", "no number at all", None, False),
    ("3", "3\n### Response: 4", "3", True),
    ("B", "The answer is B) 12", "B", True),
    ("B", "the option (D), not B", "D", False),
    ("C", "12", None, False),
    ("true", "the correct answer is true", "true", True),
    ("true", "false, or true", "false", False),
    ("solution2", "the correct answer is solution2", "solution2", True),
    ("answer4", "the correct answer is answer5", "answer5", False),
    ("ending1", "the correct answer is ending1.", "ending1", True),
    ("option2", "option1", "option1", False),
    ("option2", "", None, False),
    ("a great film", "  A great\nfilm ", "a great film", True),
    ("a great film", "a great film indeed", "a great film indeed", False),
]


@pytest.mark.parametrize(("expected", "text", "found", "right"), CASES)
def test_the_rules(expected, text, found, right):
    assert extracted(text, expected) == found
    assert is_right(text, expected) is right


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_most_probable_token_is_taken_each_time(tmp_path, kind):
    """Against a loop without cache, padding or batches."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(save_decoder(tmp_path, kind))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    prompts = ["the film was very good", "it is", "a plot the actor felt was dull and the film was awful", "bad"]
    expected = []
    for prompt in prompts:
        ids, new = tokenizer(prompt)["input_ids"], []
        for _ in range(6):
            with torch.no_grad():
                token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    assert len(set(expected)) > 1
    for size in (1, 3):
        assert generated(model, tokenizer, prompts, most=6, batch_size=size) == expected
