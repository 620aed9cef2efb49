"""Super-Tuning (arXiv 2607.09287): few trained entries of ΔW, at the largest or smallest of W0; Supra: and a LoRA.

PEFT: ``<module>.supertuning_values`` (k,), ``.supertuning_indices`` (k,) row by row in the flat matrix; for Supra
``.supertuning_lora_A.weight`` (r, n), ``.supertuning_lora_B.weight`` (m, r). Without Supra the file does not store the
sizes of the layers.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from ..catalogue.formulas import SPARSITY
from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..files.in_memory import InMemory
from ..files.parts import collect, fitted, others
from ..linalg import Array
from ..updates.blocks import lora
from ..updates.contract import Update
from ..updates.sparse import shira
from .file_form import Arrays, Form, stored
from .on_base_model import checked
from .random_factors import NoNullError, Null, Parts, Recipe, Spec, few_entries, pair
from .shira import null_cores


def read(source: Source) -> Found | None:
    """Super-Tuning and Supra as PEFT saves them, with their indices."""
    found, rest = collect(source, "supertuning_(values|indices|lora_[AB])")
    if not found:
        return None
    supra = any("supertuning_lora_A" in parts for parts in found.values())
    loaders = {module: _loader(source, module, parts) for module, parts in found.items()}
    return Found("supra" if supra else "supertuning", loaders, others(source, rest), [], scaled=False)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    if "supertuning_indices" not in parts:
        raise AdapterError(
            f"{source.path}: {next(iter(parts.values()))} has no supertuning_indices beside it, and equal weights of "
            "the base model leave open where the numbers stand; save with save_precomputed_indices=True"
        )
    low = {"A": "supertuning_lora_A (r, n)", "B": "supertuning_lora_B (m, r)"} if len(parts) > 2 else {}
    keys, sizes = fitted(source, parts, values="supertuning_values (k,)", **low)
    values, indices = keys["values"], parts["supertuning_indices"]
    source.expect(source.tensors.shape(indices) == (sizes["k"],), indices, f"({sizes['k']},) from supertuning_values")
    keys["indices"] = indices
    if not low:
        return source.loader(keys, partial(_sparse, size=source.shape_of(module, values)))
    source.check_rank(module, keys["A"], sizes["r"])
    return source.loader(keys, partial(_supra, source=source, key=values, scaling=source.scaling(module, sizes["r"])))


def _sparse(values: Array, indices: Array, *, size: tuple[int, int], dtype: str) -> Update:
    rows, columns = np.divmod(indices.astype(np.int64), size[1])
    return shira(values, rows, columns, size, method="supertuning", dtype=dtype)


def _supra(
    values: Array, indices: Array, A: Array, B: Array, *, source: Source, key: str, scaling: float, dtype: str
) -> Update:
    low = lora(B, A, scaling=scaling, method="supra", dtype=dtype, any_rank=True)
    entries = _sparse(values, indices, size=low.shape, dtype=dtype)
    few, facts = entries.facts, low.facts
    facts = replace(
        facts,
        parameters=facts.parameters + few.parameters,
        macs_per_token=facts.macs_per_token + few.macs_per_token,
        rank_bound=min(*low.shape, facts.rank_bound + few.rank_bound),
    )
    return checked(source, key, facts, lambda: entries.to_dense() + low.to_dense())


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """A hundredth of the entries, PEFT's default, anywhere, as those of a random W0 stand; and Supra's pair."""
    values, places = few_entries(spec, rng, m, n, count(m, n))
    parts = {"values": values, "indices": places}
    if spec.method == "supertuning":
        return parts | {"shape": np.array([m, n])}
    B, A = pair(spec, rng, m, n)
    return parts | {"A": A, "B": B}


def count(m: int, n: int) -> int:
    """How many entries PEFT trains."""
    return int(m * n * (1 - SPARSITY))


def _few(a: Arrays, _: float, __: str) -> Update:
    m, n = a["shape"].tolist()
    return _sparse(a["values"], a["indices"], size=(m, n), dtype=stored(a))


def _few_and_pair(a: Arrays, scaling: float, _: str) -> Update:
    source = Source(InMemory("parts in memory", {}), {})
    return _supra(**a, source=source, key="values", scaling=scaling, dtype=stored(a))


_KEYS = {part: f"supertuning_{part}" for part in ("values", "indices")}
_SETTINGS = {"sparsity": SPARSITY, "save_precomputed_indices": True}
FORMS = {
    "supertuning": Form(_KEYS, _few, None, lambda _: _SETTINGS, alpha=None, told=("shape",)),
    "supra": Form(
        _KEYS | {side: f"supertuning_lora_{side}.weight" for side in "AB"},
        _few_and_pair,
        lambda a: len(a["A"]),
        lambda _: _SETTINGS,
    ),
}
RECIPES = {
    "supertuning": Recipe(random, lambda spec, m, n: min(m, n) if count(m, n) else 0),
    "supra": Recipe(random, lambda spec, m, n: min(m, n) if count(m, n) else 0),
}


def _no_shares(*_: object) -> list[Array]:
    raise NoNullError("adds entries to B A, in shares that its sizes do not tell")


NULLS = {"supertuning": Null(null_cores), "supra": Null(_no_shares)}
