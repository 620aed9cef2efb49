"""Results of a sweep for tests, in the documented format, written without a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from bora_analysis import Adapter, analyse
from bora_analysis.fleet.results import ADAPTERS, LAYER_METRICS, SKETCHES, SPECTRA, schema
from bora_analysis.fleet.storage import Storage


def store(
    place: Path,
    adapters: Mapping[str, Adapter],
    *,
    base_model: str | None = "org/base",
    sketch: Callable[[str, Any], Mapping[str, Any]] | None = None,
) -> Path:
    """Write the tables of adapters, by their ids."""
    storage = Storage.at(place)
    rows = []
    for k, (name, adapter) in enumerate(adapters.items()):
        tables, part = analyse(adapter), f"{k:05d}.parquet"
        layers = tables.layer_metrics
        for table, frame in ((LAYER_METRICS, layers), (SPECTRA, tables.spectra)):
            columns = {"id": [name] * len(frame), **{column: frame[column].tolist() for column in frame}}
            own = {field.name: _plain(columns[field.name], field.type == pa.string()) for field in schema(table)}
            storage.write_table(f"{table}/{part}", pa.table(own, schema=schema(table)))
        if sketch is not None:
            found = [sketch(module, adapter[module]) for module in adapter]
            identity = layers[[field.name for field in schema(SKETCHES) if field.name != "id"]]
            own = {"id": [name] * len(found), **{column: _plain(identity[column].tolist()) for column in identity}}
            own |= {column: [row[column] for row in found] for column in found[0]}
            storage.write_table(f"{SKETCHES}/{part}", pa.table(own))
        rows.append(
            {
                "id": name, "name": adapter.name, "part": part, "method": adapter.method, "base_model": base_model,
                "r": int(layers["r"].max()), "modules": len(layers), "parameters": int(layers["parameters"].sum()),
                "content_hash": name,
            }
        )  # fmt: skip
    rows.append({"id": "torn", "error": "torn: is empty", "error_kind": "adapter"})
    storage.write_table(f"{ADAPTERS}/all.parquet", pa.Table.from_pylist(rows, schema(ADAPTERS)))
    return place


def _plain(values: list[Any], text: bool = False) -> list[Any]:
    """Without pandas' missing values; as text where the column has text."""
    import pandas as pd

    return [None if pd.isna(value) else str(value) if text else value for value in values]
