"""Names, folders, files and clocks that do what nobody expects: the sweep goes on, and says what is wrong."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from fleet_cases import adapter, adapters, same, tables
from results_cases import store

from bora_analysis import AdapterError, Sweep, analyse, lora, sweep, synthetic_adapter
from bora_analysis.adapters import Adapter
from bora_analysis.cli import main
from bora_analysis.files.errors import as_named, readable
from bora_analysis.fleet import measuring, storage
from bora_analysis.fleet import sweep as module
from bora_analysis.fleet.measuring import outcomes
from bora_analysis.fleet.numbers import serving_ranks
from bora_analysis.fleet.pairs import compare_all, exact_pairs
from bora_analysis.fleet.results import ADAPTERS, LAYER_METRICS, Results, rows_of
from bora_analysis.fleet.sketches import sketch
from bora_analysis.fleet.sources import find
from bora_analysis.fleet.storage import Storage
from bora_analysis.fleet.tasks import JOIN, PLAN, RANGE, WHOLE, Job, Task


def run(source: Any, results: Any, **options: Any) -> Sweep:
    return sweep(source, results, workers=1, **options)


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything happens in this process, so that a test can get in between."""
    monkeypatch.setattr(module, "work", lambda place, tasks, job: (place, [(t, outcomes(t, job)) for t in tasks]))


# --- names ---


NAMES = ("with #hash", " space ", "new\nline", "q?m*", "[x]", "a::b", "pct%20", "ünï", "-dash", "trail.", "a\\b")


def test_any_name_is_an_adapter_of_its_own(tmp_path: Path):
    home = tmp_path / "in"
    for k, name in enumerate(NAMES):
        adapter(home / name, seed=k, modules=1)
    places = [home / name for name in NAMES]
    if sys.platform == "linux":
        places += [
            Path(os.fsdecode(os.fsencode(home) + b"/caf\xe9")),
            Path(os.fsdecode(os.fsencode(home) + b"/torn\xff")),
        ]
        adapter(places[-2], seed=99, modules=1)
        places.pop().mkdir()
        Path(os.fsdecode(os.fsencode(home) + b"/torn\xff"), "adapter_config.json").write_text("{}")
    done = run(home, tmp_path / "out", sketch="fleet_cases:corners")
    torn = (f"{home}/torn\\udcff",) if sys.platform == "linux" else ()
    assert (done.analysed, done.failures) == (len(places), torn)
    layers = done.results.layer_metrics()
    for place in places:
        expected = analyse(place).layer_metrics["energy"].tolist()
        assert layers.loc[layers["id"] == readable(str(place)), "energy"].tolist() == expected
    again = run(home, tmp_path / "out", sketch="fleet_cases:corners", keep_errors=True)
    assert (again.analysed, again.kept) == (0, len(places) + len(torn))
    shown = command("fleet", tmp_path / "out")
    assert (shown.exit_code, f"Fleet of {len(places)} adapters" in shown.stdout) == (0, True)
    found = exact_pairs([(done.results.adapters()["id"][0], readable(str(places[-1])))])  # read again, by their ids
    assert abs(found["cosine"][0]) < 1


def test_a_name_that_is_no_text_is_spelled_out_everywhere(tmp_path: Path):
    if sys.platform != "linux":
        pytest.skip("names are texts there")
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(adapter(tmp_path / "good", modules=1), bad)
    assert as_named(readable(str(bad))) == str(bad)
    assert command("check", bad).exit_code == 0
    good = tmp_path / "good"
    for arguments in (
        ("analyze", bad, "--format", "csv"),
        ("compare", bad, good, "--format", "json"),
        ("card", bad, "-o", tmp_path / "card.md"),
        ("convert", bad, "-o", tmp_path / "converted"),
    ):
        shown = command(*arguments)
        assert shown.exit_code == 0, (arguments, shown.output, shown.exception)
        shown.stdout.encode("utf-8")
    for ending in ("csv", "parquet"):
        made = command("analyze", bad, "-o", tmp_path / f"x.{ending}")
        assert made.exit_code == 0, (made.output, made.exception)


def test_ids_of_windows_are_read_here(tmp_path: Path):
    made = synthetic_adapter("lora", {"layers.0.q_proj": (12, 10)}, r=2)
    out = store(tmp_path / "out", {r"C:\loras\one": made, r"C:\loras\two": made})
    assert "Fleet of 2 adapters" in command("fleet", out).stdout
    shown = command("fleet", out, "--pairs", r"C:\loras\one", r"C:\loras\two")
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert r"C:\loras\one: no such file or folder" in " ".join(shown.stderr.split())


# --- folders ---


def test_what_cannot_be_looked_at_is_an_error_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = adapters(tmp_path, 4)
    (home / "self").symlink_to(home / "self")
    (home / "self.safetensors").symlink_to(home / "self.safetensors")
    (home / "nowhere").symlink_to(home / "nothing")
    scandir, stat = os.scandir, os.stat

    def closed(path: Any) -> Any:
        if str(path).endswith("a01"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    def gone(path: Any, *given: Any, **options: Any) -> Any:
        if str(path).endswith("a02/adapter_model.safetensors"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
        return stat(path, *given, **options)

    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(os, "stat", gone)
    found = find([home])
    assert [*found.items] == [f"{home}/a00", f"{home}/a03"]
    assert found.errors == [
        f"{home}/a01: cannot be opened: Permission denied",
        f"{home}/a02/adapter_model.safetensors: cannot be opened: No such file or directory",
    ]
    assert find([home / "a01"]).errors == [f"{home}/a01: cannot be opened: Permission denied"]


def test_links_lead_to_no_adapter_twice(tmp_path: Path):
    adapter(tmp_path / "in/a/one", modules=1)
    adapter(tmp_path / "other/two", modules=1)
    (tmp_path / "in/a/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/above").symlink_to(tmp_path)
    (tmp_path / "in/b").symlink_to(tmp_path / "in/a")
    for name in ("c", "d"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "other")
    found = find([tmp_path / "in"])
    assert (len(found.items), found.errors) == (2, [])
    assert {Path(id).resolve() for id in found.items} == {tmp_path / "in/a/one", tmp_path / "other/two"}


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_folder_is_listed_once_however_many_of_its_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
):
    one = adapter(tmp_path / "one", modules=1) / "adapter_model.safetensors"
    memory = fsspec.filesystem("memory")
    for k in range(60):
        place = tmp_path / f"many/f{k:02d}.safetensors"
        place.parent.mkdir(exist_ok=True)
        shutil.copy(one, place)
        memory.pipe_file(str(place), one.read_bytes())
    listed: list[str] = []
    scandir, ls = os.scandir, memory.find
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    monkeypatch.setattr(type(memory), "find", lambda self, path, **how: listed.append(path) or ls(path, **how))
    home = f"{scheme}{tmp_path}/many"
    found = find([f"{home}/*.safetensors"] if scheme else [f"{home}/f{k:02d}.safetensors" for k in range(60)])
    assert [*found.items] == [f"{home}/f{k:02d}.safetensors" for k in range(60)]
    assert listed.count(f"{tmp_path}/many") <= 2  # a pattern lists it, too


# --- files of the results ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of adapters and its results with all tables."""
    home = adapters(tmp_path_factory.mktemp("whole"), 3)
    out = tmp_path_factory.mktemp("results")
    run(home, out, spectra=True, sketch="bora_analysis.fleet.sketches:sketch")
    return home, out


@pytest.mark.parametrize("content", [b"", b"PAR1", b"half"])
def test_half_a_part_is_told_and_made_again(whole: tuple[Path, Path], tmp_path: Path, content: bytes):
    home, out = whole
    shutil.copytree(out, tmp_path / "out")
    torn = {}
    for table in (LAYER_METRICS, "spectra", "sketches"):
        part = sorted((tmp_path / "out" / table).iterdir())[1]
        torn[part] = part.read_bytes()
        part.write_bytes(part.read_bytes()[:-7] if content == b"half" else content)
    shown = command("fleet", tmp_path / "out")
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "is no Parquet file of a sweep" in " ".join(shown.stderr.split())
    assert "`sweep --verify` makes it again" in " ".join(shown.stderr.split())
    place = f"local://{tmp_path}/out" if content == b"half" else tmp_path / "out"
    options: dict[str, Any] = {"spectra": True, "sketch": "bora_analysis.fleet.sketches:sketch", "verify": True}
    done = run(home, place, **options)
    assert (done.analysed, done.kept) == (1, 2)
    assert all(part.read_bytes() == before for part, before in torn.items())


def test_rows_that_cannot_be_read_are_named(whole: tuple[Path, Path], tmp_path: Path):
    home, out = whole
    shutil.copytree(out, tmp_path / "out")
    (rows,) = (tmp_path / "out" / ADAPTERS).iterdir()
    for content, told in (
        (rows.read_bytes()[:-20], "is no Parquet file of a sweep"),
        (_parquet(pa.table({"x": [1]})), "is no file of a sweep: it has no column id; move it away"),
        (_parquet(pa.table({"id": ["a"], "r": ["eight"]})), "column r is not that of a sweep"),
    ):
        rows.write_bytes(content)
        for arguments in (("fleet", tmp_path / "out"), ("sweep", home, "-o", tmp_path / "out", "--workers", 1)):
            shown = command(*arguments)
            assert (shown.exit_code, shown.stdout) == (1, "")
            assert f"{rows}: {told}" in " ".join(shown.stderr.split()), shown.stderr
            assert "move " in shown.stderr
    rows.unlink()
    assert run(home, tmp_path / "out").analysed == 3


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_columns_of_another_version_are_left_out_or_empty(whole: tuple[Path, Path], tmp_path: Path):
    _, out = whole
    shutil.copytree(out, tmp_path / "out")
    expected = Results(out).layer_metrics()
    for folder, lost in ((ADAPTERS, "verdict"), (LAYER_METRICS, "top_share")):
        path = sorted((tmp_path / "out" / folder).iterdir())[0]
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        table = table.drop_columns([lost]).append_column("of_tomorrow", pa.array([1] * len(table)))
        path.write_bytes(_parquet(table.set_column(table.column_names.index("r"), "r", table["r"].cast("float64"))))
    found = Results(tmp_path / "out")
    assert found.adapters()["verdict"].isna().all()
    layers = found.layer_metrics()
    assert layers.columns.tolist() == expected.columns.tolist()
    assert layers["r"].dtype == expected["r"].dtype
    assert layers["top_share"].isna().sum() == 3
    assert layers["energy"].tolist() == expected["energy"].tolist()
    assert command("fleet", tmp_path / "out").exit_code == 0


def test_results_of_another_format_are_not_read(whole: tuple[Path, Path], tmp_path: Path):
    home, out = whole
    shutil.copytree(out, tmp_path / "out")
    (tmp_path / "out/sweep.json").write_text(json.dumps({"format": 2, "version": "9.9"}))
    for arguments in (
        ("fleet", tmp_path / "out"),
        ("analyze", home / "a00", "--reference", tmp_path / "out"),
        ("sweep", home, "-o", tmp_path / "out"),
    ):
        shown = command(*arguments)
        assert shown.exit_code == 1
        assert "format 2; expected 1; choose another folder, or the version" in " ".join(shown.stderr.split())
        assert "(9.9)" in shown.stderr


def test_sketches_of_two_kinds_are_named(whole: tuple[Path, Path], tmp_path: Path):
    home, _ = whole
    run(home / "a00", tmp_path, sketch="fleet_cases:corners")
    run(home / "a01", tmp_path, sketch="bora_analysis.fleet.sketches:sketch")
    with pytest.raises(AdapterError, match=r"made by different sketches, with the columns corner.* and sketch"):
        Results(tmp_path).sketches()
    assert Results(tmp_path).sketches([str(home / "a00")], columns=["id", "corner"]).columns.tolist() == [
        "id",
        "corner",
    ]


def test_rows_that_are_put_together_while_they_are_read(whole: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    there = Storage.names
    stale = [["1.parquet"]]
    monkeypatch.setattr(Storage, "names", lambda self, folder: stale.pop() if stale else there(self, folder))
    assert len(rows_of(Storage.at(whole[1]))) == 3


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("now", [1, 2])
def test_a_clock_that_goes_back_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: int, step: int):
    """Nor one that stands still, as coarse ones seem to."""
    home, out = adapters(tmp_path / "in", 2), tmp_path / "out"
    run(home, out)
    adapter(home / "a00", seed=77)
    ticks = itertools.count(now, step)
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks))
    assert run(home, out).analysed == 1
    monkeypatch.undo()
    found = Results(out).layer_metrics([str(home / "a00")])["energy"].tolist()
    assert found == analyse(home / "a00").layer_metrics["energy"].tolist()
    assert run(home, out).kept == 2


def test_two_sweeps_into_one_url_are_mended_by_a_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder is locked; a store has no locks."""
    place, home = f"memory://{tmp_path}/out", adapters(tmp_path / "in", 4)
    begun: list[Any] = []

    def work(number: int, tasks: Any, job: Job) -> Any:
        done = [(task, outcomes(task, job)) for task in tasks]
        if not begun:  # the parts are there, their rows are not
            begun.append(number)
            run(home / "a03", place)
        return number, done

    monkeypatch.setattr(module, "work", work)
    first = run([home / f"a0{k}" for k in range(3)], place)
    with pytest.raises(AdapterError, match="layer_metrics: lacks a0"):
        first.results.layer_metrics()
    assert run(home, place).analysed >= 1
    expected, found = (tables(run(home, where).results.storage.place) for where in (tmp_path / "alone", place))
    same(expected, found)


def test_a_full_disk_is_told_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: None):
    home, out = adapters(tmp_path / "in", 3), tmp_path / "out"
    run(home / "a00", out)
    write, names = Path.write_bytes, [LAYER_METRICS]

    def full(self: Path, content: bytes) -> int:
        if self.parent.name in names and not self.name.startswith("a01"):
            write(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, content)

    monkeypatch.setattr(storage.Path, "write_bytes", full)
    with pytest.raises(AdapterError, match="out: No space left on device; what is done is kept, start the sweep again"):
        run(home, out)
    assert not [*out.rglob("*.tmp")]
    names.append(ADAPTERS)
    shown = command("sweep", home, "-o", out, "--workers", 1)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "No space left on device; what is done is kept" in " ".join(shown.stderr.split())
    assert not [*out.rglob("*.tmp")]
    monkeypatch.undo()
    assert run(home, out).analysed >= 1
    run(home, tmp_path / "alone")
    same(tables(out), tables(tmp_path / "alone"))


# --- an adapter that changes ---


@pytest.mark.parametrize("kind", [WHOLE, JOIN])
@pytest.mark.parametrize("change", ["other", "touched", "before"])
def test_an_adapter_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, kind: str
):
    """Of one that is split, too, whose ranges would be of two contents."""
    home = adapter(tmp_path / "in", modules=4)
    weights = home / "adapter_model.safetensors"
    later = adapter(tmp_path / "later", seed=5, modules=4) / "adapter_model.safetensors"
    (item,) = find([home]).items.values()
    job = Job(str(tmp_path / "out"), "x", {"threshold": 0.005}, {}, split_from=1)

    def happens() -> None:
        weights.write_bytes((weights if change == "touched" else later).read_bytes())

    if change == "before":
        happens()
    read = measuring._read
    seen: list[Any] = []

    def once(*given: Any) -> Any:
        found = read(*given)
        if change != "before" and not seen:
            seen.append(given)
            happens()
        return found

    monkeypatch.setattr(measuring, "_read", once)
    if kind == WHOLE:
        (outcome,) = outcomes(Task(item), job)
    else:
        (plan,) = outcomes(Task(item, PLAN), job)
        ranges = ((0, 2), (2, 4))
        for first, last in ranges:
            outcomes(Task(item, RANGE, hashed=plan["hashed"], first=first, last=last), job)
        (outcome,) = outcomes(Task(item, JOIN, hashed=plan["hashed"], ranges=ranges), job)
    row = outcome["row"]
    if change == "other":
        assert (row["error_kind"], row["error"]) == ("adapter", f"{home}: changed while it was read; sweep again")
        assert "part" not in row
    else:
        assert "error" not in row
        layers = Storage.at(job.results).read_table(f"{LAYER_METRICS}/{row['part']}")
        assert layers["energy"].to_pylist() == analyse(home).layer_metrics["energy"].tolist()


# --- numbers ---


def test_updates_of_any_size_are_compared(tmp_path: Path):
    rng = np.random.default_rng(0)
    factors = [(rng.standard_normal((30, 3)), rng.standard_normal((3, 20))) for _ in range(3)]
    scales = (1e-90, 1.0, 1e90)
    plain = {f"a{k}": Adapter.from_updates(f"a{k}", {"q": lora(B, A)}) for k, (B, A) in enumerate(factors)}
    scaled = {
        f"a{k}": Adapter.from_updates(f"a{k}", {"q": lora(B * s, A)})
        for k, ((B, A), s) in enumerate(zip(factors, scales, strict=True))
    }
    places = [store(tmp_path / name, own, sketch=sketch) for name, own in (("plain", plain), ("scaled", scaled))]
    one, two = (compare_all(place) for place in places)
    np.testing.assert_allclose(two.cosine, one.cosine, atol=1e-6)
    np.testing.assert_allclose(two.norms, one.norms * scales, rtol=1e-9)
    pairs = [[each["a0"], each["a2"]] for each in (plain, scaled)]
    ours, theirs = (exact_pairs([pair])["cosine"][0] for pair in pairs)
    dense = [left @ right for left, right in (factors[0], factors[2])]
    expected = np.vdot(*dense) / np.linalg.norm(dense[0]) / np.linalg.norm(dense[1])
    assert ours == pytest.approx(expected, rel=1e-9)
    assert theirs == pytest.approx(expected, rel=1e-9)


def test_a_fleet_that_learned_nothing(tmp_path: Path):
    made = Adapter.from_updates("still", {"q": lora(np.zeros((8, 2)), np.ones((2, 6)))})
    out = store(tmp_path, {"still": made}, sketch=sketch)
    with pytest.raises(AdapterError, match="no adapter has an update; expected one with ΔW ≠ 0"):
        serving_ranks(out)
    for view in ("distributions", "growth", "outliers", "similarity", "duplicates", "clusters"):
        shown = command("fleet", out, "--show", view)
        assert shown.exit_code == 0, (view, shown.output)
    assert "1 cluster of 1 adapter" in shown.stdout
    assert command("fleet", out, "--show", "ranks").exit_code == 1
