"""Answers that a language model generates, and whether they are right, as Hu et al. (2023) score them.

LLM-Adapters (arXiv 2304.01933) finds the answer in the generated text by the kind of the expected one:

* a number (AddSub, MultiArith, SingleEq, SVAMP, GSM8K): the last number of the text, commas left out, within 0.001;
* a letter A to E (AQuA): the first of these letters in the text;
* true or false (BoolQ), ``solution1``, ``answer3``, ``ending2``, ``option1`` (PIQA, SIQA, ARC, OBQA, HellaSwag,
  WinoGrande): the first such word;
* anything else: the whole text, without case and with single spaces.

Their prompt is Alpaca's, here in the form in which :mod:`bora_analysis.training.data` makes it for training (theirs has
the indentation of the source). They sample with four beams; here the most probable token is taken each time, so that
the answer repeats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ..patterns import late

_NUMBER = late(r"-?\d+\.?\d*")
_CHOICES = {"solution": 2, "answer": 5, "ending": 4, "option": 2}
_RESPONSE = "### Response:"
#: How near a number must come.
TOLERANCE = 0.001


def extracted(text: str, expected: str) -> str | None:
    """The answer in a generated text, of the kind of the expected one; None where the text has none.

    >>> extracted("12 + 3 = 15, so 1,015 in all.", "15"), extracted("it is option2, not option1", "option1")
    ('1015', 'option2')
    """
    text, expected = text.partition(_RESPONSE)[0].strip(), expected.strip()
    if _as_number(expected) is not None:
        return (_NUMBER.findall(text.replace(",", "")) or [None])[-1]
    words = _alternatives(expected)
    if words:
        return next(iter(re.findall("|".join(words), text)), None)
    return " ".join(text.split()).casefold() or None


def is_right(text: str, expected: str) -> bool:
    """Whether a generated text gives the expected answer.

    >>> is_right("So there are 1,200 apples.", "1200"), is_right("The correct answer is B.", "C")
    (True, False)
    """
    found, number = extracted(text, expected), _as_number(expected.strip())
    if found is None:
        return False
    if number is not None:
        return abs(float(found) - number) <= TOLERANCE
    if _alternatives(expected.strip()):
        return found == expected.strip()
    return found == " ".join(expected.split()).casefold()


def _as_number(text: str) -> float | None:
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _alternatives(expected: str) -> list[str]:
    """The words among which the expected answer is one; empty for free text."""
    if expected in ("true", "false"):
        return ["true", "false"]
    if re.fullmatch("[A-E]", expected):
        return list("ABCDE")
    choice = re.fullmatch(r"([a-z]+)(\d)", expected)
    if choice and 1 <= int(choice[2]) <= _CHOICES.get(choice[1], 0):
        return [f"{choice[1]}{k}" for k in range(1, _CHOICES[choice[1]] + 1)]
    return []


def generated(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    most: int,
    batch_size: int,
    step: Callable[[], object] = lambda: None,
) -> list[str]:
    """What the model writes after each prompt, at most ``most`` tokens, the most probable one each time."""
    import torch
    from transformers import GenerationConfig

    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    config = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=most, **special)
    encoded = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    end = [tokenizer.eos_token_id]
    encoded = [ids[:-1] if ids[-1:] == end else ids for ids in encoded]  # which would be the end of the answer
    order = sorted(range(len(prompts)), key=lambda i: -len(encoded[i]))
    texts = [""] * len(prompts)
    for begin in range(0, len(order), batch_size):
        part = order[begin : begin + batch_size]
        width = max(len(encoded[i]) for i in part)
        pad = tokenizer.pad_token_id
        rows = [[pad] * (width - len(encoded[i])) + encoded[i] for i in part]  # on the left: the answer comes behind
        seen = [[0] * (width - len(encoded[i])) + [1] * len(encoded[i]) for i in part]
        with torch.inference_mode():
            found = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(seen, device=model.device),
                generation_config=config,
            )
        written = tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)
        for i, text in zip(part, written, strict=True):
            texts[i] = text
        step()
    return texts
