"""SHiRA (arXiv 2406.13175): few trained entries of ΔW. PEFT: ``<module>.shira_weight`` (k,), ``.shira_indices`` (2, k)
rows and columns."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..catalogue.formulas import ENTRIES
from ..files.adapter_file import Found, Loader, Source
from ..files.parts import need, read_parts
from ..files.tensors import Array
from ..updates.contract import Update
from ..updates.sparse import shira
from .file_form import Arrays, Form, stored
from .random_factors import Null, Parts, Recipe, Sizes, Spec, few_entries


def read(source: Source) -> Found | None:
    """SHiRA as PEFT saves it."""
    found = read_parts(source, "shira_(weight|indices)", "shira", _loader)
    if found and not source.sized:
        found.notes.append(
            "the file does not store the sizes of the layers, so each ΔW ends after its last row and column; the "
            "spectrum is right, out_features and in_features may be too small"
        )
    return found


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    weight, indices = need(source, parts, "shira_weight", "shira_indices")
    source.check_factor(weight)
    (count,) = source.tensors.shape(weight)
    source.expect(source.tensors.shape(indices) == (2, count), indices, f"(2, {count}) from shira_weight")
    size = source.shape_of(module, weight) if source.sized else None
    return source.loader({"spectrum": weight, "indices": indices}, partial(build, size=size))


def build(spectrum: Array, indices: Array, *, size: tuple[int, int] | None, dtype: str) -> Update:
    rows, columns = indices.astype(np.int64)
    shape = size or (int(rows.max()) + 1, int(columns.max()) + 1)
    return shira(spectrum, rows, columns, shape, dtype=dtype)


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    place = rng.choice(sizes.m * sizes.n, sizes.parameters, replace=False)
    values = rng.standard_normal(sizes.parameters)
    return shira(values, place // sizes.n, place % sizes.n, (sizes.m, sizes.n)).cores()


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """As many entries as a LoRA of r = 32 has numbers, PEFT's default, or all of a small layer, which PEFT refuses."""
    values, places = few_entries(spec, rng, m, n, min(ENTRIES * (m + n), m * n))
    return {"spectrum": values, "indices": np.stack(np.divmod(places, n)), "shape": np.array([m, n])}


def from_parts(a: Arrays, _: float, __: str) -> Update:
    m, n = a["shape"].tolist()
    return build(a["spectrum"], a["indices"], size=(m, n), dtype=stored(a))


FORMS = {
    "shira": Form(
        {"spectrum": "shira_weight", "indices": "shira_indices"},
        from_parts,
        None,
        lambda _: {"r": ENTRIES},
        alpha=None,
        told=("shape",),
    )
}
RECIPES = {"shira": Recipe(random)}
NULLS = {"shira": Null(null_cores)}
