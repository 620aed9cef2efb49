"""Results and adapters that lie at URLs and on the Hub: swept, opened again, and missed in plain words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from fleet_cases import adapter, adapters

from bora_analysis import AdapterError, Sweep, analyse, sweep
from bora_analysis.cli import main
from bora_analysis.fleet import sweep as module
from bora_analysis.fleet.basis import shared_basis
from bora_analysis.fleet.measuring import outcomes
from bora_analysis.fleet.numbers import read_fleet
from bora_analysis.fleet.pairs import exact_pairs
from bora_analysis.fleet.sources import find

SKETCH = "bora_analysis.fleet.sketches:sketch"


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything happens in this process: memory:// and the stand-in for the Hub are its own."""
    monkeypatch.setattr(module, "work", lambda place, tasks, job: (place, [(t, outcomes(t, job)) for t in tasks]))


def run(source: Any, results: Any, **options: Any) -> Sweep:
    return sweep(source, results, workers=1, device="cpu", **options)


def test_results_at_a_url_are_opened_again(tmp_path: Path):
    home = adapters(tmp_path / "in", 3)
    fsspec.filesystem("memory").put(str(home), str(home), recursive=True)
    place, url = tmp_path / "out", f"memory://{tmp_path}/out"
    run(home, place, sketch=SKETCH, spectra=True)
    run(f"memory://{home}", url, sketch=SKETCH, spectra=True)
    for view in ("distributions", "clusters", "basis"):
        ours, theirs = (command("fleet", where, "--show", view, "-q") for where in (url, place))
        assert ours.exit_code == 0, ours.output
        assert ours.stdout == theirs.stdout, view
    reading = [command("analyze", home / "a00", "--reference", where) for where in (url, place)]
    assert reading[0].stdout == reading[1].stdout
    assert "among the 3 adapters with the base org/base" in " ".join(reading[0].stdout.split())
    # The adapters themselves, from where they lie.
    (ours, theirs) = (command("fleet", where, "--pairs", "a00", "a01", "-q") for where in (url, place))
    assert (ours.exit_code, ours.stdout) == (0, theirs.stdout)
    pd.testing.assert_frame_equal(shared_basis(url).table(), shared_basis(place).table())
    fsspec.filesystem("memory").rm(f"{home}/a01", recursive=True)
    gone = command("fleet", url, "--pairs", "a00", "a01")
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert f"memory://{home}/a01: holds no adapter" in " ".join(gone.stderr.split())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], Any]:
    """(repository, revision) → the folder that stands in for it, or the error of asking."""
    known: dict[tuple[str, str | None], Any] = {}
    asked: list[Any] = []
    known["asked", None] = asked

    def snapshot(repo: str, allow_patterns: list[str], revision: str | None = None, **options: Any) -> str:
        asked.append((repo, revision))
        found = known[repo, revision]
        if isinstance(found, Exception):
            raise found
        return str(found)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return known


def test_a_branch_that_moves_is_analysed_again_and_a_commit_is_not_asked_for(tmp_path: Path, hub: Any):
    commit = "0123456789abcdef0123456789abcdef01234567"
    first, second = adapter(tmp_path / "first"), adapter(tmp_path / "second", seed=8)
    hub["org/run", "main"] = hub["org/run", commit] = first
    hub["org/run", None] = first
    sources = ["org/run", "org/run@main", f"org/run@{commit}"]
    done = run(sources, tmp_path / "out")
    assert (done.analysed, done.failed) == (3, 0)
    assert done.results.adapters()["name"].tolist() == ["run", f"run@{commit}", "run@main"]
    hub["asked", None].clear()
    assert (run(sources, tmp_path / "out").kept, hub["asked", None]) == (3, [("org/run", None), ("org/run", "main")])
    hub["org/run", "main"] = second
    moved = run(sources, tmp_path / "out")
    assert (moved.analysed, moved.kept) == (1, 2)
    energies = moved.results.layer_metrics(["org/run@main"])["energy"].tolist()
    assert energies == analyse(second).layer_metrics["energy"].tolist()
    assert moved.results.layer_metrics(["org/run"])["energy"].tolist() != energies
    # Read again, by their ids.
    frame = exact_pairs(
        [("org/run", "org/run@main"), ("org/run", f"org/run@{commit}")], fleet=read_fleet(tmp_path / "out")
    )
    assert frame["cosine"].round(12).tolist()[1] == 1
    assert abs(frame["cosine"][0]) < 0.9


def test_checkpoints_of_the_hub_are_opened_again(tmp_path: Path, hub: Any):
    for step in (5, 10):
        adapter(tmp_path / f"snapshot/checkpoint-{step}", seed=step)
    hub["org/run", "v2"] = tmp_path / "snapshot"
    done = run("org/run@v2", tmp_path / "out", steps=True)
    ids = done.results.adapters()["id"].tolist()
    assert ids == ["org/run@v2/checkpoint-10", "org/run@v2/checkpoint-5"]
    shown = command("fleet", tmp_path / "out", "--pairs", *ids)
    assert shown.exit_code == 0, shown.output
    shutil.rmtree(tmp_path / "snapshot/checkpoint-5")  # the run goes on, and the branch with it
    adapter(tmp_path / "snapshot/checkpoint-15", seed=15)
    again = run("org/run@v2", tmp_path / "out", steps=True)
    assert (again.analysed, again.kept) == (1, 1)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("401 Client Error\nRepository Not Found; make sure you are authenticated"), "401 Client Error"),
        (ConnectionError("Connection reset by peer"), "Connection reset by peer"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_a_hub_that_refuses_is_a_row(tmp_path: Path, hub: Any, error: Exception, told: str):
    hub["org/private", None] = error
    done = run([adapter(tmp_path / "in"), "org/private"], tmp_path / "out")
    assert (done.analysed, done.failures) == (1, ("org/private",))
    row: Any = done.results.adapters().set_index("id").loc["org/private"]
    assert row["error_kind"] == "adapter"
    assert row["error"].startswith("org/private: is no path here, and the Hugging Face Hub gave no such adapter")
    assert told in row["error"]


def test_an_error_in_the_middle_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of its listing, which is one source's, and of a file, which is one adapter's."""
    memory = fsspec.filesystem("memory")
    home = adapters(tmp_path / "in", 3)
    memory.put(str(home), f"{home}/x", recursive=True)
    memory.put(str(home / "a00"), f"{home}/y/a00", recursive=True)
    ls, get = type(memory).find, type(memory).get_file

    def listed(self: Any, path: str, **options: Any) -> Any:
        if path.endswith("/y"):
            raise PermissionError("Forbidden")
        return ls(self, path, **options)

    def fetched(self: Any, path: str, target: str, **options: Any) -> Any:
        if "a01/adapter_model" in path:
            raise TimeoutError("Read timeout on endpoint URL")
        return get(self, path, target, **options)

    monkeypatch.setattr(type(memory), "find", listed)
    monkeypatch.setattr(type(memory), "get_file", fetched)
    done = run([f"memory://{home}/y", f"memory://{home}/x"], tmp_path / "out")
    assert done.errors == (f"memory://{home}/y: cannot be listed: Forbidden",)
    assert (done.analysed, done.failures) == (2, (f"memory://{home}/x/a01",))
    row: Any = done.results.adapters().set_index("name").loc["a01"]
    told = f"memory://{home}/x/a01/adapter_model.safetensors: cannot be fetched: Read timeout on endpoint URL"
    assert (row["error_kind"], row["error"]) == ("adapter", told)
    monkeypatch.undo()
    monkeypatch.setattr(module, "work", lambda place, tasks, job: (place, [(t, outcomes(t, job)) for t in tasks]))
    again = run([f"memory://{home}/y", f"memory://{home}/x"], tmp_path / "out")
    assert (again.analysed, again.kept, again.errors) == (2, 2, ())


def test_a_store_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("s3fs")
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    home = adapter(tmp_path / "in", modules=1)
    for arguments in (
        ("sweep", "s3://bucket/adapters", "-o", tmp_path / "out"),
        ("sweep", home, "-o", "s3://bucket/out", "--workers", 1),
        ("fleet", "s3://bucket/out"),
        ("analyze", home, "--reference", "s3://bucket/out"),
    ):
        shown = command(*arguments, "-q") if arguments[0] != "sweep" else command(*arguments)
        assert (shown.exit_code, shown.stdout) == (1, ""), (arguments, shown.exception)
        assert "Unable to locate credentials" in shown.stderr
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(AdapterError, match="fsspec cannot open this kind of URL"):
        read_fleet("nosuch://bucket/out")
    assert "fsspec cannot open" in find(["nosuch://bucket/in"]).errors[0]
