"""HiRA (ICLR 2025): ΔW = W0 ⊙ (B A).

``hira_A`` (r, n), ``hira_B`` (m, r); its authors': ``lora_A``, ``lora_B`` and ``r_ab`` in the configuration, R ⊙ (B A)
with ``lora_R``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, need, read_parts
from ..files.tensors import Array
from ..updates.blocks import lora
from ..updates.contract import Update
from .on_base_model import base_matrix, checked
from .pairs import Pair, check_pair, single, sort_keys
from .random_base import form_on_base, largest_of, on_base
from .random_factors import Parts, Spec, pair


def read(source: Source) -> Found | None:
    """HiRA as PEFT saves it, and its authors."""
    found = read_parts(source, "hira_(embedding_)?[AB]", "hira", _peft_loader)
    if found or "r_ab" not in (source.config or {}):
        return found
    random, rest = collect(source, "lora_R")
    parts = sort_keys(source, rest)
    loaders = {
        module: _hira_loader(source, module, pair, random.get(module, {}).get("lora_R"))
        for module, pair in single(source, parts).items()
    }
    return Found("hira", loaders, parts.passed_over, [], scaled=False)


def _peft_loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    embedding = any("embedding" in part for part in parts)
    middle = "embedding_" if embedding else ""
    A, B = need(source, parts, f"hira_{middle}A", f"hira_{middle}B")
    return _hira_loader(source, module, Pair(A, B, embedding))


def _hira_loader(source: Source, module: str, pair: Pair, random: str | None = None) -> Loader:
    r, groups = check_pair(source, module, pair, told=False)
    told = (source.config or {}).get("r_ab") or source.rank(module)
    source.expect(groups == 1 and told in (None, r), pair.A, f"rank {told}, which the configuration gives {module}")
    shape = source.tensors.shape(pair.B)[0], int(np.prod(source.tensors.shape(pair.A)[1:]))
    base = None
    if random is None:
        base = base_matrix(source, "HiRA", module, pair.A, embedding=pair.embedding)
        source.expect(base.shape == shape, pair.B, f"a product of the base model's shape {base.shape} ({base.key})")
    else:
        source.check_factor(random)
        source.expect(source.tensors.shape(random) == shape, random, f"{shape} from lora_A and lora_B")

    def build(B: Array, A: Array, *, dtype: str, R: Array | None = None) -> Update:
        low = lora(B.reshape(len(B), -1), A.reshape(len(A), -1), dtype=dtype, any_rank=True)
        m, n = shape
        facts = replace(low.facts, method="hira", macs_per_token=m * n, rank_bound=min(m, n))

        def make() -> Array:
            whole = low.to_dense()
            whole *= R if base is None else base.read()
            return whole

        return checked(source, pair.A, facts, make)

    keys = {"B": pair.B, "A": pair.A} | ({} if random is None else {"R": random})
    return source.loader(keys, build)


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """A and B as LoRA's, times what makes up for the small entries of W0; PEFT starts with B = 0."""
    m, n = W0.shape
    B, A = pair(spec, rng, m, n)
    return {"A": A, "B": B * (np.sqrt(m * n) / largest_of(spec, m, n))}


FORMS = {"hira": form_on_base(read, {"A": "hira_A", "B": "hira_B"}, lambda a: len(a["A"]))}
RECIPES = {"hira": on_base(random)}
