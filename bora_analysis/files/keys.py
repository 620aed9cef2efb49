"""Names of tensors: from a key to the module's path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from ..patterns import late

_DIGITS = late(r"([0-9]+)")
# What torch.compile, FSDP, Lightning's Fabric, activation checkpointing and PEFT put into a path, and DDP in front of
# it. A name "module" inside a path may be the model's own, but beside one of the others it is DDP's. A list's
# "module.0" is not. Before PEFT's prefix stands the name that a LightningModule gave to PEFT's model.
_PEFT = r"base_model(\.lora_model)?\.model"
_WRAPPER = (
    r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module"
    rf"|(model|net)(?=\.{_PEFT}\.)|{_PEFT})\."
)
_DDP = r"module\.(?!\d)"
_WRAPPERS = late(rf"^({_DDP}|{_WRAPPER})+|(?<=\.)({_DDP})*({_WRAPPER}({_DDP})*)+")

_IN_PATTERN = _WRAPPER.replace(r"\.", r"\\?\.")  # the dot may be escaped
_IN_PATTERNS = late(rf"(?<![\w.])(module\\?\.(?!\\?d|\d)|{_IN_PATTERN})+|(?<!\w)({_IN_PATTERN})+")


def natural(name: str) -> list[Any]:
    """Sort key that orders numbers by their value. (natsort's takes 20 ms to import, as long as reading 400 modules.)

    >>> sorted(["layer.10", "layer.9", "layer"], key=natural)
    ['layer', 'layer.9', 'layer.10']
    """
    parts: list[Any] = _DIGITS.split(name)  # text and numbers in turn
    digits = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = zip(map(len, digits), digits, strict=True)  # no int, which refuses thousands of digits
    return parts


def module_path(key: str) -> str:
    """The key without what PEFT and the wrappers of a training put around a module's own path, in any order."""
    path = key.removeprefix("base_model.model.")
    if "module." in path or "_orig_mod." in path or "base_model." in path:  # much faster than the search
        path = _WRAPPERS.sub("", path)
    return path


@lru_cache(maxsize=4096)
def module_pattern(pattern: str) -> str:
    """A regular expression for modules without the same wrappers."""
    return _IN_PATTERNS.sub("", pattern)


def ancestors(path: str) -> Iterator[str]:
    """The paths above a path, from the nearest on."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def biases(keys: Sequence[str]) -> list[str]:
    """Trained biases of modules whose weights are not in the file whole; not the base model's own beside a head."""
    whole = {key.removesuffix(".weight") for key in keys if key.endswith(".weight")}
    found = [key for key in keys if key.endswith((".bias", ".diff_b")) and ".original_module." not in key]
    return [key for key in found if key.rpartition(".")[0] not in whole]


def exactly(module: str) -> str:
    """The pattern, for PEFT's rule, of one module."""
    return f"^{re.escape(module)}"
