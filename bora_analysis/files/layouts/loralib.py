"""loralib's ``MergedLinear``: one layer of k merged parts (q, k, v of GPT-2), each with a pair of its own.

``<module>.lora_A`` (r·k, n) and ``.lora_B`` (m, r), where B is a convolution with k groups: part g sees rows g of A
alone (``loralib/layers.py``). α is divided by r, not r·k. The rows of parts that were not adapted (``enable_lora``) are
zero in ΔW, and not in the file. Its other layers have PEFT's names without ``.weight`` and need no translation; of
its convolutions the file does not say the kernel, so their ΔW is (m·k, n·k), as B A stores it.

LLM-Adapters has it as ``.lora_A.weight`` and ``.lora_B.weight`` (m, r, 1), with ``enable_lora`` in the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..keys import module_path
from ..tensors import Array, Tensors
from .view import Derived, Key, Translation, View


def translate(tensors: Tensors, config: Mapping[str, Any] | None) -> Translation | None:
    """The view with the groups of B told by its shape, or None where no layer is merged."""
    keys = tensors.keys()
    if config is None:
        suffixes = (".lora_A", ".lora_B")
    elif config.get("enable_lora"):
        suffixes = (".lora_A.weight", ".lora_B.weight")
    else:
        return None
    known = set(keys)
    entries: dict[str, str | Derived] = {key: key for key in keys}
    ranks: dict[str, int] = {}
    for A in keys:
        B = A.removesuffix(suffixes[0]) + suffixes[1]
        if not A.endswith(suffixes[0]) or B not in known:
            continue
        a, b = tensors.shape(A), tensors.shape(B)
        if len(a) != 2 or len(b) not in (2, 3) or not b[1] or a[0] == b[1] or a[0] % b[1]:
            continue
        # With a kernel of one, this is a grouped convolution of PEFT.
        del entries[A], entries[B]
        entries[Key(A, A)] = Derived((A,), (*a, 1), _as_kernel)
        entries[Key(B, B)] = Derived((B,), (*b[:2], 1), _as_kernel)
        ranks[module_path(A).removesuffix(suffixes[0])] = b[1]
    if not ranks:
        return None
    note = "merged layers (loralib's MergedLinear): rows of parts that were not adapted are left out of ΔW"
    return Translation(View(tensors, entries), config, ranks=ranks, notes=(note,))


def _as_kernel(factor: Array) -> Array:
    return factor.reshape(*factor.shape[:2], 1)
