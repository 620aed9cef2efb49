"""Which adapters a sweep finds: folders, files, patterns, lists, Hub ids, URLs."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest
from fleet_cases import adapter

from bora_analysis import read_adapter
from bora_analysis.adapters import AdapterError, checkpoints
from bora_analysis.fleet.sources import find, listed
from bora_analysis.fleet.tasks import HUB, URL


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every arrangement of files that is known to be an adapter, or not to be one."""
    home = tmp_path_factory.mktemp("found")
    one = adapter(tmp_path_factory.mktemp("one") / "one")
    weights = one / "adapter_model.safetensors"

    def put(path: str, config: bool = True) -> None:
        target = home / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(weights, target)
        if config:
            shutil.copy(one / "adapter_config.json", target.parent)

    put("peft/adapter_model.safetensors")
    put("peft/adapter_model.bin")  # its twin
    put("peft/second/adapter_model.safetensors")  # PEFT's second adapter
    put("run/adapter_model.safetensors")
    put("run/checkpoint-10/adapter_model.safetensors")
    put("run/checkpoint-9/adapter_model.safetensors")
    put("only/checkpoint-5/default/adapter_model.safetensors")
    (home / "only/checkpoint-5/optimizer.pt").write_bytes(b"0")
    (home / "only/checkpoint-5/optimizer_0").mkdir()
    (home / "only/checkpoint-5/optimizer_0/.metadata").write_bytes(b"0")
    (home / "only/checkpoint-5/optimizer_0/__0_0.distcp").write_bytes(b"0")
    put("mlx/adapters.safetensors")
    put("mlx/0000100_adapters.safetensors")
    put("mlx/0000200_adapters.safetensors")
    put("shards/adapter_model-00001-of-00002.safetensors")
    put("shards/adapter_model-00002-of-00002.safetensors")
    put("many/first.safetensors", config=False)
    put("many/second.safetensors", config=False)
    put("many/second.pt", config=False)
    put("many/notes.safetensors.txt", config=False)
    put("base/model.safetensors", config=False)
    (home / "base/config.json").write_text("{}")
    (home / "torn").mkdir()
    (home / "torn/adapter_config.json").write_text("{}")
    (home / "other/deep").mkdir(parents=True)
    (home / "other/README.md").write_text("nothing")
    memory = fsspec.filesystem("memory")
    for file in home.rglob("*"):
        if file.is_file():
            memory.pipe_file(str(file), file.read_bytes())
    return home


FINAL = (
    "many/first.safetensors", "many/second.safetensors", "mlx", "only/checkpoint-5", "peft", "peft/second", "run",
    "shards", "torn",
)  # fmt: skip
STEPS = (
    "many/first.safetensors", "many/second.safetensors", "mlx/0000100_adapters.safetensors",
    "mlx/0000200_adapters.safetensors", "only/checkpoint-5", "peft", "peft/second", "run/checkpoint-9",
    "run/checkpoint-10", "shards", "torn",
)  # fmt: skip


@pytest.mark.parametrize(("steps", "expected"), [(False, FINAL), (True, STEPS)])
@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_folder_is_searched_to_the_bottom(home: Path, kind: str, steps: bool, expected: tuple[str, ...]):
    top = str(home)
    if kind == "url":
        top = f"memory:/{home}"
    found = find([top], steps=steps)
    assert [id.partition(f"{home}/")[2] for id in found.items] == list(expected)
    assert (found.errors, found.models) == ([], 1)
    assert len(find([top], steps=steps, whole=True).items) == len(expected) + 1
    assert all(item.size and item.stamp for item in found.items.values())
    assert len({item.stamp for item in found.items.values()}) == len(expected)


def test_what_is_found_is_what_the_reader_reads(home: Path):
    for item in find([home], steps=True).items.values():
        if "torn" in item.id or "shards" in item.id:  # these files are copies of a whole one
            continue
        adapters = checkpoints(read_adapter(item.place))
        assert len(adapters) == 1, item
        assert str(adapters[0].path) in item.files or item.id.endswith("checkpoint-5")


def test_files_patterns_and_lists(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(home)
    assert [*find(["many/second.safetensors"]).items] == [f"{home}/many/second.safetensors"]
    assert [*find(["mlx/0000100_adapters.safetensors"]).items] == [f"{home}/mlx/0000100_adapters.safetensors"]
    assert [*find(["r*n/checkpoint-*"]).items] == [f"{home}/run/checkpoint-9", f"{home}/run/checkpoint-10"]
    assert [*find(["**/second", "peft/second", "peft/../peft/second"]).items] == [f"{home}/peft/second"]
    (tmp_path / "list.txt").write_text("# mine\npeft/second\n\n  many/first.safetensors\nnowhere\n")
    found = find([tmp_path / "list.txt"])
    assert [*found.items] == [f"{home}/peft/second", f"{home}/many/first.safetensors"]
    assert found.errors == ["nowhere: no such file or folder"]
    (tmp_path / "list.csv").write_text("downloads,Path\n7,run\n8,mlx\n")
    assert listed(tmp_path / "list.csv") == ["run", "mlx"]
    (tmp_path / "bare.csv").write_text("run,7\nmlx,8\n")
    assert listed(tmp_path / "bare.csv") == ["run", "mlx"]


def test_hub_ids_and_their_revisions():
    commit = "0123456789abcdef0123456789abcdef01234567"
    found = find(["org/some-lora", "org/some-lora@main", f"org/some-lora@{commit}"])
    assert [(item.kind, bool(item.stamp)) for item in found.items.values()] == [(HUB, False), (HUB, False), (HUB, True)]


def test_urls_of_files_and_patterns(home: Path):
    found = find([f"memory:/{home}/many/first.safetensors", f"memory:/{home}/p*"])
    assert [item.kind for item in found.items.values()] == [URL] * 3
    assert [id.partition(f"{home}/")[2] for id in found.items] == ["many/first.safetensors", "peft", "peft/second"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no/such/place", "no such file or folder"),
        ("other", "holds no adapter"),
        ("no*ne", "fits no path"),
        ("memory://none/at/all", "holds no adapter; expected weights such as adapter_model.safetensors"),
        ("memory://none/*", "fits no path"),
        ("nosuch://bucket", "fsspec cannot open this kind of URL"),
        ("a\0b", "no such file or folder"),
        ("a" * 5000, "is no path"),
    ],
)
def test_a_source_without_adapters_says_why(home: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str):
    monkeypatch.chdir(home)
    found = find([source])
    assert not found.items
    assert len(found.errors) == 1
    assert reason in found.errors[0]


def test_lists_that_are_none(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("empty.txt", "binary.txt"):
        with pytest.raises(AdapterError, match=name):
            listed(tmp_path / name)


def test_lists_in_lists_and_in_a_circle(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(home)
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text(f"peft/second\n{two}\n")
    two.write_text(f"mlx\n{one}\nrun\n")
    found = find([one])
    assert [*found.items] == [f"{home}/peft/second", f"{home}/mlx", f"{home}/run"]
    assert found.errors == [f"{one}: a list that names itself"]


def test_links_in_a_circle_end(tmp_path: Path):
    adapter(tmp_path / "a/one")
    (tmp_path / "a/back").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert f"{tmp_path}/a/one" in find([tmp_path]).items
