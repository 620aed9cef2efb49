"""A sweep gives what analyse gives, to the bit, goes on where it ended, and notices what changed."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from fleet_cases import adapter, adapters, same, tables

import bora_analysis
from bora_analysis import AdapterError, Sweep, analyse, sweep, verdict, write_adapter
from bora_analysis.analysis.tables import LAYER_COLUMNS, SPECTRA_COLUMNS
from bora_analysis.fleet import sweep as module
from bora_analysis.fleet.measuring import outcomes
from bora_analysis.fleet.results import ADAPTERS, LAYER_METRICS, SPECTRA, Results
from bora_analysis.fleet.sources import find
from bora_analysis.fleet.storage import Storage
from bora_analysis.fleet.tasks import Job, Task

DATA = Path(__file__).parents[2] / "data"


def run(source: Any, results: Any, **options: Any) -> Sweep:
    return sweep(source, results, **{"workers": 1, **options})


METHODS = ("lora-r8", "bora-r8-b8", "melora-r8-n4", "hydralora-r4", "sbora-fa-r8")


def test_its_numbers_are_those_of_analyse(tmp_path: Path):
    done = run([DATA / f"trained-{name}" for name in METHODS], tmp_path, spectra=True)
    assert (done.analysed, done.kept, done.failed, done.errors) == (len(METHODS), 0, 0, ())
    rows = done.results.adapters()
    row: Any
    for row in rows.itertuples():
        expected = analyse(row.id)
        layers = done.results.layer_metrics([row.id])
        assert layers.columns.tolist() == ["id", *LAYER_COLUMNS]
        for name in LAYER_COLUMNS:
            ours, theirs = layers[name], expected.layer_metrics[name]
            assert (ours.isna() == theirs.isna()).all(), name
            assert ours.dropna().tolist() == theirs.dropna().tolist(), name
        spectra = done.results.spectra([row.id])
        assert spectra.columns.tolist() == ["id", *SPECTRA_COLUMNS]
        pd.testing.assert_frame_equal(
            spectra.drop(columns="id"), expected.spectra, check_exact=True, check_dtype=False, check_index_type=False
        )
        assert row.verdict == verdict(expected.layer_metrics)
        assert row.parameters == expected.layer_metrics["parameters"].sum()
        assert row.r == expected.layer_metrics["r"].max()
        assert (row.base_model, row.targets) == (expected.base_models[row.name], "q,v")
        assert row.dtypes == "float32"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapters(tmp_path_factory.mktemp("fleet"), 6)


def test_the_process_that_leads_imports_little_and_its_rows_are_frames_afterwards(fleet: Path, tmp_path: Path):
    """Half a second of a sweep on this machine was the import of pandas, joblib and pyarrow's datasets."""
    code = (
        "import sys; from bora_analysis.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'pandas', 'joblib', 'pyarrow.dataset', 'pyarrow.compute', 'scipy'} & set(sys.modules)))\n"
        "from bora_analysis.fleet.results import Results\n"
        "import pyarrow as pa, pandas as pd\n"
        "frame = Results(sys.argv[-1]).adapters()\n"
        "print(type(frame).__name__, len(frame), pa.array(pd.Series([1.0, None])).null_count)"
    )
    words = ["sweep", str(fleet), "--workers", "1", "-o", str(tmp_path / "out")]
    said = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[1:] == ["[]", "DataFrame 6 1"]


@pytest.mark.parametrize("results", ["folder", "url"])
def test_a_second_sweep_finds_all_done(fleet: Path, tmp_path: Path, results: str):
    place = tmp_path / "out" if results == "folder" else f"local://{tmp_path}/out"
    time.sleep(2.6)  # until the files are at rest
    first = run(fleet, place)
    assert (first.analysed, first.kept) == (6, 0)
    before = tables(place)
    calls: list[Any] = []
    original = module.run
    module.run = lambda *given, **options: calls.append(given) or original(*given, **options)
    try:
        second = run(fleet, place)
    finally:
        module.run = original
    assert (second.analysed, second.kept) == (0, 6)
    assert not calls  # not even the engine was asked
    same(before, tables(place))
    assert len(Storage.at(place).names(ADAPTERS)) == 1


def test_what_changed_is_noticed_and_what_was_touched_is_compared(tmp_path: Path):
    home, out = adapters(tmp_path / "in", 3), tmp_path / "out"
    run(home, out)
    changed = home / "a01/adapter_model.safetensors"
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    times = changed.stat()
    changed.write_bytes(content)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # the same size and the same mtime
    os.utime(home / "a02/adapter_model.safetensors")
    again = run(home, out)
    assert (again.analysed, again.kept) == (1, 2)
    expected = analyse(home / "a01").layer_metrics["energy"].tolist()
    assert again.results.layer_metrics([str(home / "a01")])["energy"].tolist() == expected
    assert len(Storage.at(out).names(LAYER_METRICS)) == 3  # the old part is gone


@pytest.mark.parametrize("options", [{"threshold": 0.1}, {"modules": "layers.1"}, {"spectra": True}, {"alpha": 3.0}])
def test_other_options_are_another_analysis(fleet: Path, tmp_path: Path, options: dict[str, Any]):
    run(fleet / "a00", tmp_path)
    assert run(fleet / "a00", tmp_path, **options).analysed == 1
    assert len(Storage.at(tmp_path).names(LAYER_METRICS)) == 1


def test_a_lost_part_is_made_again(fleet: Path, tmp_path: Path):
    run(fleet, tmp_path, spectra=True)
    before = tables(tmp_path)
    for table in (SPECTRA, LAYER_METRICS):
        next(iter((tmp_path / table).iterdir())).unlink()
    (tmp_path / LAYER_METRICS / "x.parquet.12.tmp").write_bytes(b"")
    (tmp_path / LAYER_METRICS / "orphan.parquet").write_bytes(b"")
    again = run(fleet, tmp_path, spectra=True)
    assert 1 <= again.analysed <= 2
    same(before, tables(tmp_path))
    assert len([*(tmp_path / LAYER_METRICS).iterdir()]) == 6


def test_prune_and_rows_of_other_sources(fleet: Path, tmp_path: Path):
    run([fleet / "a00", fleet / "a01"], tmp_path)
    assert len(run(fleet / "a02", tmp_path).results.adapters()) == 3
    pruned = run([fleet / "a01", fleet / "a02"], tmp_path, prune=True)
    assert pruned.results.adapters()["name"].tolist() == ["a01", "a02"]
    assert len(Storage.at(tmp_path).names(LAYER_METRICS)) == 2


def test_what_cannot_be_read_is_a_row_and_is_tried_again(fleet: Path, tmp_path: Path):
    home = tmp_path / "in"
    adapter(home / "good")
    torn = adapter(home / "torn") / "adapter_model.safetensors"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-50])
    done = run(home, tmp_path / "out")
    assert (done.analysed, done.failures) == (1, (str(home / "torn"),))
    row: Any = done.results.adapters().set_index("name").loc["torn"]
    assert row["error_kind"] == "adapter"
    assert str(torn) in row["error"]
    assert (row["attempts"], row["part"] is None or pd.isna(row["part"])) == (1, True)
    assert run(home, tmp_path / "out").failed == 1
    assert run(home, tmp_path / "out", keep_errors=True).kept == 2
    torn.write_bytes(whole)
    assert run(home, tmp_path / "out", keep_errors=True).analysed == 1


def test_ranges_of_modules_give_the_same_to_the_bit(tmp_path: Path):
    home = adapters(tmp_path / "in", 2, modules=11)
    adapter(home / "single", modules=1)
    whole = run(home, tmp_path / "whole", spectra=True, sketch="fleet_cases:corners")
    parts = run(home, tmp_path / "parts", spectra=True, sketch="fleet_cases:corners", split_from=1, workers=1)
    same(tables(whole.results.storage.place), tables(parts.results.storage.place))
    first, second = (done.results.sketches() for done in (whole, parts))
    assert first["row"].map(list).tolist() == second["row"].map(list).tolist()
    names = sorted(whole.results.storage.names(LAYER_METRICS))
    assert names == sorted(parts.results.storage.names(LAYER_METRICS))
    for name in names:  # the files, too
        assert (tmp_path / "whole" / SPECTRA / name).read_bytes() == (tmp_path / "parts" / SPECTRA / name).read_bytes()
    assert parts.results.storage.names("ranges") == []


def test_the_row_of_ranges_says_what_the_row_of_the_whole_says(tmp_path: Path):
    """It is made from stored ranges there, and from what was measured here: ΔW = 0, or so small that it is lost."""
    for name, size in (("zero", 0.0), ("tiny", 1e-38), ("mixed", None)):
        factors = {
            f"layers.{k}.q_proj": {
                "B": np.full((24, 2), k % 2 if size is None else size, np.float32),
                "A": np.ones((2, 32), np.float32),
            }
            for k in range(6)
        }
        write_adapter(tmp_path / "in" / name, "lora", factors, alpha=1e-300 if name == "tiny" else 4)
    whole = run(tmp_path / "in", tmp_path / "whole", threshold=1e-9)
    parts = run(tmp_path / "in", tmp_path / "parts", threshold=1e-9, split_from=1)
    same(tables(whole.results.storage.place), tables(parts.results.storage.place))
    notes = whole.results.adapters().set_index("name")["notes"]
    assert "nothing was trained" in notes["zero"]
    assert "below what float32 can hold" in notes["tiny"]
    assert "noise floor of 3 of 6 modules" in notes["mixed"]


def test_a_whole_model_is_split(tmp_path: Path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    for name in ("base", "tuned"):
        (tmp_path / name).mkdir()
        weights = {f"layers.{k}.q_proj.weight": rng.standard_normal((24, 20)).astype(np.float32) for k in range(6)}
        save_file(weights, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    assert run([tmp_path / "tuned", DATA / "trained-lora-r8"], tmp_path / "none").models == 1
    done = run(tmp_path / "tuned", tmp_path / "out", base=str(tmp_path / "base"), spectra=True)
    expected = analyse(tmp_path / "tuned", base=tmp_path / "base")
    assert done.results.spectra()["singular_value"].tolist() == expected.spectra["singular_value"].tolist()
    assert done.results.adapters()["method"].tolist() == ["full"]
    save_file({"layers.0.q_proj.weight": np.zeros((24, 20), np.float32)}, tmp_path / "base/model.safetensors")
    assert run(tmp_path / "tuned", tmp_path / "out", base=str(tmp_path / "base")).analysed == 1  # another base model


def test_sketches_are_stored_by_module(fleet: Path, tmp_path: Path):
    done = run(fleet / "a00", tmp_path, sketch="fleet_cases:corners")
    found = done.results.sketches().set_index("module")
    for name, update in bora_analysis.read_adapter(fleet / "a00").items():  # pyright: ignore[reportAttributeAccessIssue]
        left, right = update.factors()
        assert found.loc[name, "corner"] == (left[0] @ right[:, 0]).item()
        np.testing.assert_array_equal(found.loc[name, "row"], left[0] @ right)
        assert found.loc[name, "path"] == name
    with pytest.raises(ValueError, match=r"sketch 'no.such:thing': .*expected package.module:function"):
        run(fleet, tmp_path, sketch="no.such:thing")


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_urls_are_read_like_folders(fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str):
    if scheme == "memory":  # a process has its own: everything happens in this one
        fsspec.filesystem("memory").put(str(fleet), str(fleet), recursive=True)
        monkeypatch.setattr(module, "work", lambda place, tasks, job: (place, [(t, outcomes(t, job)) for t in tasks]))
    done = run(f"{scheme}://{fleet}", f"{scheme}://{tmp_path}/out", spectra=True)
    assert (done.analysed, done.failed) == (6, 0)
    expected = run(fleet, tmp_path / "expected", spectra=True).results
    for read in (Results.layer_metrics, Results.spectra):
        ours, theirs = (read(each).drop(columns="id") for each in (done.results, expected))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    ours, theirs = (each.adapters()["content_hash"].tolist() for each in (done.results, expected))
    assert ours == theirs
    assert run(f"{scheme}://{fleet}", f"{scheme}://{tmp_path}/out", spectra=True).kept == 6


def test_hub_ids_take_the_way_of_read_adapter(fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "snapshot"
    for step in (5, 10):
        adapter(home / f"checkpoint-{step}", seed=step)
    asked: list[Any] = []

    def snapshot(repo: str, allow_patterns: list[str], **options: Any) -> str:
        asked.append((repo, options))
        return str(home)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    (item,) = find(["org/run@v2"]).items.values()
    job = Job(str(tmp_path / "out"), "x", {"threshold": 0.005}, {})
    rows = [outcome["row"] for outcome in outcomes(Task(item), job)]
    assert [(row["id"], row["name"], row["step"]) for row in rows] == [
        ("org/run@v2/checkpoint-5", "run@v2", 5), ("org/run@v2/checkpoint-10", "run@v2", 10)
    ]  # fmt: skip
    assert asked[0][0] == "org/run"
    assert asked[0][1]["revision"] == "v2"
    assert not Path(asked[0][1]["cache_dir"]).exists()  # what was fetched is gone
    known = {row["id"]: row["content_hash"] for row in rows}
    assert [*map(list, outcomes(Task(item, known=known), job))] == [["same", "stamp"]] * 2


def test_one_sweep_at_a_time(fleet: Path, tmp_path: Path):
    with module._alone(Storage.at(tmp_path)), pytest.raises(AdapterError, match="another sweep is writing there"):
        run(fleet, tmp_path)
    assert run(fleet / "a00", tmp_path).analysed == 1


def test_wrong_settings_and_places(fleet: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="modules '\\(' is not a regular expression"):
        run(fleet, tmp_path, modules="(")
    with pytest.raises(ValueError, match="engine 'slurm' is unknown; expected local, loky, dask, ray, spark"):
        run(fleet, tmp_path, engine="slurm")
    with pytest.raises(AdapterError, match="engine local works on this machine; expected no address"):
        run(fleet, tmp_path, address="tcp://here:1")
    with pytest.raises(TypeError, match="initial cannot be an option of a sweep"):
        run(fleet, tmp_path, initial=bora_analysis.read_adapter(fleet / "a00"))
    with pytest.raises(TypeError, match="unknown option 'colour'"):
        run(fleet, tmp_path, colour="red")
    with pytest.raises(AdapterError, match="no such file or folder"):
        run(tmp_path / "none", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="file: cannot be written"):
        run(fleet, tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/sweep.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(AdapterError, match="format 99; expected 1"):
        run(fleet, tmp_path / "other")


def test_the_documentation_reads_the_tables_with_pandas_duckdb_and_polars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = (DATA.parent / "docs/sweeps.md").read_text(encoding="utf-8")
    sessions = re.findall(r"```pycon\n(.*?)```", text, re.DOTALL)
    assert [re.findall(r"import (\w+)", each) for each in sessions] == [["pandas"], ["duckdb"], ["polars"]]
    done = run(str(DATA / "trained-lora-r*"), tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    for each in sessions:
        example = doctest.DocTestParser().get_doctest(each, {}, "docs/sweeps.md", None, None)
        said: list[str] = []
        assert doctest.DocTestRunner(verbose=False).run(example, out=said.append).failed == 0, "".join(said)
    row: Any  # what the sessions show, from the adapters themselves
    for row in done.results.adapters().itertuples():
        own = analyse(row.id).layer_metrics.groupby("projection")["stable_rank"].median().round(2)
        assert re.search(rf"{row.name} +{own['q']:.2f}  {own['v']:.2f}\n", sessions[0])
        assert f"('{row.name}', 'q', {own['q']})" in sessions[1]
        assert f"('{row.name}', {own['v']})" in sessions[2]
