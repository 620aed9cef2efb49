"""Rules that need the base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ...analysis.relative import base_metrics, counterpart
from ...files.errors import AdapterError
from .examined import Examined
from .findings import Found

Limits = Mapping[str, float]


def base_mismatch(x: Examined, limits: Limits) -> Iterator[Found]:
    """Modules that the base model lacks, or has in another shape."""
    yield from _mismatched(x).values()


def intruders(x: Examined, limits: Limits) -> Iterator[Found]:
    """Intruder dimensions: large singular vectors of W0 + ΔW without a counterpart in W0."""
    wrong = _mismatched(x)
    modules = [row.module for row in x.rows() if row.module not in wrong and row.energy > 0]
    if x.base is None or x.adapter is None or not modules:
        return
    fitting = replace(x.adapter, loaders={module: x.adapter.loaders[module] for module in modules})
    k, epsilon = int(limits["k"]), limits["epsilon"]
    frame = base_metrics(fitting, x.base, k=k, epsilon=epsilon, on_module=lambda: None)
    for row in frame.itertuples():
        count: int = row.intruder_dimensions  # pyright: ignore[reportAssignmentType]
        if count > limits["most"]:
            told = f"{count} of the {row.intruder_k} largest directions of W0 + ΔW have a cosine below {epsilon:g}"
            yield Found(str(row.module), f"{told} with every direction of W0", count, limits["most"])


def _mismatched(x: Examined) -> dict[str, Found]:
    if x.base is None or x.adapter is None or x.adapter.method == "full":
        return {}
    found = {}
    for row in x.rows():
        try:
            counterpart(x.base, row.module, (row.out_features, row.in_features), x.name)
        except AdapterError as error:
            found[row.module] = Found(row.module, str(error), f"{row.out_features}×{row.in_features}")
    return found
