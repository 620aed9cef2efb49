"""The format of a sweep's results, read back from a folder and through fsspec."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bora_analysis import AdapterError
from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS
from bora_analysis.fleet import results
from bora_analysis.fleet.results import ADAPTER_COLUMNS, ADAPTERS, LAYER_METRICS, SPECTRA, Results, schema
from bora_analysis.fleet.storage import Storage


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "out" if request.param == "folder" else f"memory://{tmp_path}/out/")


def row(**given: Any) -> pa.Table:
    return pa.Table.from_pylist([given], schema(ADAPTERS))


def layers(id: str, *modules: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{"id": id, "module": module, "rank_bound": 4} for module in modules], schema(LAYER_METRICS)
    )


def test_the_docstring_explains_every_column():
    text = results.__doc__ or ""
    for column in ADAPTER_COLUMNS:
        assert f"``{column}``" in text, column


def test_columns_are_those_of_the_tables():
    assert schema(ADAPTERS).names == list(ADAPTER_COLUMNS)
    assert schema(LAYER_METRICS).names == ["id", *LAYER_COLUMNS]
    assert schema(SPECTRA).names == ["id", *SPECTRA_COLUMNS]


def test_the_last_row_of_an_id_counts_and_rows_are_ordered(storage: Storage):
    storage.write_table(f"{ADAPTERS}/1.parquet", row(id="b", name="old", r=1, part="b.parquet"))
    storage.write_table(f"{ADAPTERS}/2.parquet", row(id="a", error="torn", error_kind="adapter"))
    storage.write_table(f"{ADAPTERS}/3.parquet", row(id="b", name="new", r=2, part="b.parquet"))
    storage.write_table(f"{LAYER_METRICS}/b.parquet", layers("b", "q", "v"))
    storage.write_table(f"{LAYER_METRICS}/orphan.parquet", layers("c", "q"))
    found = Results(storage.place)
    frame = found.adapters()
    assert frame["id"].tolist() == ["a", "b"]
    assert frame["name"].tolist()[1] == "new"
    assert str(frame["r"].dtype) == "Int64"
    assert found.layer_metrics()["module"].tolist() == ["q", "v"]  # what no row names is not there
    assert found.layer_metrics(["a"]).empty
    assert found.layer_metrics(["b"], columns=["module"]).columns.tolist() == ["module"]


def test_what_is_missing_is_named(storage: Storage):
    with pytest.raises(AdapterError, match=r"holds no results of a sweep; expected adapters/\*.parquet"):
        Results(storage.place)
    storage.write_table(f"{ADAPTERS}/1.parquet", row(id="b", part="b.parquet"))
    with pytest.raises(AdapterError, match=r"layer_metrics: lacks b.parquet; sweep the adapters again"):
        Results(storage.place).layer_metrics()
    storage.write(f"{LAYER_METRICS}/b.parquet", b"PAR1")
    with pytest.raises(AdapterError, match=r"b.parquet: is no Parquet file of a sweep"):
        Results(storage.place).layer_metrics()


def test_unfinished_files_are_not_seen(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    storage.write("spectra/a.parquet", b"1")
    storage.write("spectra/a.parquet", b"2")
    assert storage.names("spectra") == ["a.parquet"]
    assert storage.read("spectra/a.parquet") == b"2"
    storage.remove(["spectra/a.parquet", "spectra/none.parquet"])
    assert storage.names("spectra") == []
    assert storage.read("spectra/a.parquet") is None


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_no_thread_of_arrow_holds_what_python_read(tmp_path: Path):
    """One that let go of a file's bytes while Python ended aborted a sweep that had done its work (1 of 50, busy)."""
    Storage.at(tmp_path).write_table("t/some.parquet", pa.table({f"column {k}": range(9) for k in range(40)}))
    code = (
        "import os, sys, pyarrow.parquet; from bora_analysis.fleet.storage import Storage; "
        "threads = lambda: len(os.listdir('/proc/self/task')); before = threads(); "
        "Storage.at(sys.argv[1]).read_table('t/some.parquet'); print(threads() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


@pytest.mark.parametrize("count", [3, 300])
def test_a_file_tells_its_range_of_ids(storage: Storage, count: int):
    """What readers of many files pass over by."""
    table = layers("one", *(f"layers.{k}.q_proj" for k in range(count)))
    storage.write_table(f"{LAYER_METRICS}/one.parquet", table)
    assert storage.read_table(f"{LAYER_METRICS}/one.parquet").equals(table)
    content = storage.read(f"{LAYER_METRICS}/one.parquet")
    assert content is not None
    group = pq.ParquetFile(pa.BufferReader(content)).metadata.row_group(0)
    told = {group.column(k).path_in_schema: group.column(k).statistics for k in range(group.num_columns)}
    assert (told["id"].min, told["id"].max) == ("one", "one")
    assert (told["module"] is None) == (count == 3)


def test_an_unknown_kind_of_url_is_named():
    with pytest.raises(AdapterError, match=r"nosuch://bucket: fsspec cannot open this kind of URL: Protocol not known"):
        Storage.at("nosuch://bucket").names(ADAPTERS)
