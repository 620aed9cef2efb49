"""What a visitor of the dashboard may not do: open what lies outside of the roots, write, unpickle, or use it up."""

from __future__ import annotations

import doctest
import json
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dashboard_cases import APP, Named, adapter, contents, zipped
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from app import limits, safe_markdown, sources, uploads
from bora_analysis.adapters import AdapterError, checkpoints, read_adapter
from bora_analysis.files import base_model as base
from bora_analysis.files import tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_WRITING = ("os.mkdir", "os.rename", "os.symlink", "os.link", "os.remove", "os.rmdir", "os.chmod", "os.truncate")
_IN_FOLDER = ("os.mkdir", "os.remove", "os.rmdir", "os.chmod")
_watched: list[list[str]] = []


def _hook(event: str, arguments: tuple) -> None:
    if not _watched:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            _watched[-1].append(os.fsdecode(path))
    elif event in _WRITING and isinstance(arguments[0], str | bytes):
        # Those that come with a folder's descriptor are relative to it.
        home = f"/proc/self/fd/{arguments[-1]}" if event in _IN_FOLDER and arguments[-1] != -1 else "."
        paths = [os.fsdecode(path) for path in arguments[:2] if isinstance(path, str | bytes)]
        _watched[-1].extend(os.path.join(os.path.realpath(home), path) for path in paths)  # noqa: PTH118


sys.addaudithook(_hook)


@pytest.fixture
def written():
    """Every path that Python opens for writing, makes, moves or removes during the test."""
    found: list[str] = []
    _watched.append(found)
    yield found
    _watched.remove(found)


@pytest.fixture
def store(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    made = uploads.UploadStore()
    yield made
    made.home.cleanup()


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """Two roots with an adapter each, and one outside."""
    for name in ("one/mine", "two/other", "outside/secret"):
        adapter(tmp_path / name)
    arguments = SimpleNamespace(paths=[], root=[tmp_path / "one", tmp_path / "two"], base=None, hub=True)
    monkeypatch.setattr(sources, "arguments", lambda: arguments)
    return tmp_path


@pytest.fixture
def files(tmp_path):
    return contents(adapter(tmp_path / "source"))


def one(store, files) -> sources.Source:
    """The only adapter of an upload."""
    (source,) = store.add(files)
    return source


def refused(store, *uploads_) -> str:
    """The error's one line; nothing of the upload is left."""
    with pytest.raises(AdapterError) as caught:
        store.add(uploads_)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 400
    assert store.home.name not in line, "where it lies on the server is not the visitor's business"
    assert list(Path(store.home.name).iterdir()) == []
    assert not store.uploads
    return line


# Paths


@pytest.mark.parametrize("text", ["mine", "./mine", "mine/", " mine ", "x/../mine", f"mine/{WEIGHTS}"])
def test_within_a_root(roots, text):
    source = sources.within_roots(text)
    assert source.path.is_relative_to(roots / "one" / "mine")
    assert source.label == "mine"
    assert len(sources.TableStore().get(source).layer_metrics) == 4


def test_in_the_second_root_and_absolute(roots):
    other = sources.within_roots("other")
    assert other.path == roots / "two" / "other"
    assert sources.within_roots(str(roots / "two" / "other")) == other
    # The link that it makes leads there again.
    assert sources.within_roots(other.word) == other
    mine = sources.within_roots(str(roots / "one" / "mine"))
    assert mine.word == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "../outside/secret",
        "mine/../../outside/secret",
        "{home}/outside/secret",
        "{home}/one/../outside/secret",
        "{home}/one-more",
        "..",
        "/",
        "/etc/passwd",
        "{home}/outside/nothing",
        "~",
        "~root/x",
        "$HOME/x",
        "file:///etc/passwd",
        "org/name",
    ],
)
def test_outside_of_the_roots(roots, text):
    adapter(roots / "one-more")  # a name that begins like the root's
    with pytest.raises(AdapterError) as caught:
        sources.within_roots(text.format(home=roots))
    assert "\n" not in str(caught.value)


def test_outside_nobody_learns_what_there_is(roots):
    lines = []
    for name in ("secret", "nosuch"):
        with pytest.raises(AdapterError) as caught:
            sources.within_roots(f"../outside/{name}")
        lines.append(str(caught.value).replace(name, ""))
    assert lines[0] == lines[1]


@pytest.mark.parametrize("text", ["", " ", "\x00", "a\x00b", "x" * 5000, "x/" * 3000, "\n", "loop", "\ud800", "*"])
def test_no_path_at_all(roots, text):
    (roots / "one" / "loop").symlink_to("loop")
    # Of these only the root itself is there, and it holds no adapter.
    with pytest.raises(AdapterError) as caught:
        sources.TableStore().get(sources.within_roots(text))
    assert "\n" not in str(caught.value)


def test_a_link_within_the_roots_is_followed(roots):
    (roots / "one" / "link").symlink_to(roots / "two" / "other")
    assert sources.within_roots("link").path == roots / "two" / "other"
    cache = roots / "one" / "cache"
    cache.mkdir()
    for file in (roots / "one" / "mine").iterdir():  # as the Hub's cache does
        (cache / file.name).symlink_to(file)
    assert len(sources.TableStore().get(sources.within_roots("cache")).layer_metrics) == 4


@pytest.mark.parametrize("what", ["folder", "parent", "weights", "config", "checkpoint", "checkpoint weights"])
def test_a_link_out_of_the_roots_is_refused(roots, what):
    outside, place = roots / "outside" / "secret", roots / "one" / "sly"
    if what == "folder":
        place.symlink_to(outside)
    elif what == "parent":
        (roots / "one" / "up").symlink_to(roots / "outside")
        place = roots / "one" / "up" / "secret"
    elif what in ("weights", "config"):
        adapter(place)
        file = place / (WEIGHTS if what == "weights" else CONFIG)
        file.unlink()
        file.symlink_to(outside / file.name)
    else:
        adapter(place / "checkpoint-1")
        if what == "checkpoint":
            (place / "checkpoint-2").symlink_to(outside)
        else:
            adapter(place / "checkpoint-2")
            (place / "checkpoint-2" / WEIGHTS).unlink()
            (place / "checkpoint-2" / WEIGHTS).symlink_to(outside / WEIGHTS)
    with pytest.raises(AdapterError, match=r"lies outside|leads out|no such"):
        sources.within_roots(str(place.relative_to(roots / "one")))


def test_a_file_that_becomes_a_link_later_is_refused_too(roots):
    store, source = sources.TableStore(), sources.within_roots("mine")
    store.get(source)
    (roots / "one" / "mine" / WEIGHTS).unlink()
    (roots / "one" / "mine" / WEIGHTS).symlink_to(roots / "outside" / "secret" / WEIGHTS)
    with pytest.raises(AdapterError, match="leads out"):
        store.get(source)


def model(folder: Path, shards: dict[str, str] | None = None) -> Path:
    """A whole model, in one file or in shards of these names."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weight = np.random.default_rng(list(folder.name.encode())).standard_normal((6, 8)).astype(np.float32)
    for name in set(shards.values()) if shards else ["model.safetensors"]:
        if Path(name).name == name:
            save_file({"model.layers.0.q_proj.weight": weight}, folder / name)
    if shards:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder


def opened(monkeypatch) -> list[Path]:
    """What the reader opens from now on."""
    found: list[Path] = []
    real = tensors.open_file
    for module in (base, tensors):
        monkeypatch.setattr(module, "open_file", lambda path: found.append(path) or real(path))
    real_json = base._json
    monkeypatch.setattr(base, "_json", lambda path: found.append(path) or real_json(path))
    return found


@pytest.mark.parametrize("what", ["model.safetensors", "config.json", "model.safetensors.index.json", "shard", "entry"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_whole_model_that_leads_out_of_the_roots_is_refused(roots, monkeypatch, what, checkpoint):
    """With --base the server reads whole models, and they have files of their own."""
    key = "model.layers.0.q_proj.weight"
    names = {"shard": {key: "a.safetensors"}, "entry": {key: "../../outside/model/model.safetensors"}}
    names["model.safetensors.index.json"] = names["shard"]
    outside, start = model(roots / "outside" / "model"), model(roots / "start")
    (outside / "model.safetensors.index.json").write_text("{}")
    home = roots / "one" / "tuned"
    if checkpoint:
        home.mkdir()
    place = model(home / "checkpoint-3" if checkpoint else home, names.get(what))
    if what != "entry":
        file = place / ("a.safetensors" if what == "shard" else what)
        file.unlink()
        file.symlink_to(outside / ("model.safetensors" if what == "shard" else what))
    arguments = SimpleNamespace(paths=[], root=[roots / "one"], base=start, hub=True)
    monkeypatch.setattr(sources, "arguments", lambda: arguments)
    files = opened(monkeypatch)
    with pytest.raises(AdapterError, match=r"leads out of the folders|weight_map has .* expected a file") as caught:
        sources.within_roots("tuned")
    assert not [path for path in files if path.resolve().is_relative_to(roots / "outside")]
    assert str(roots) not in str(caught.value)
    source = sources.Source("path:tuned", "tuned", home, "path")
    with pytest.raises(AdapterError):
        sources.TableStore().get(source)
    assert not [path for path in files if path.resolve().is_relative_to(roots / "outside")]


def test_a_whole_model_within_the_roots_is_read_and_read_again_when_a_shard_changes(roots, monkeypatch):
    key = "model.layers.0.q_proj.weight"
    place, start = model(roots / "one" / "tuned", {key: "a.safetensors"}), model(roots / "start")
    arguments = SimpleNamespace(paths=[], root=[roots / "one"], base=start, hub=True)
    monkeypatch.setattr(sources, "arguments", lambda: arguments)
    store, source = sources.TableStore(), sources.within_roots("tuned")
    before = store.get(source).layer_metrics["energy"].tolist()
    assert before == store.get(source).layer_metrics["energy"].tolist() != [0.0]
    save_file({key: np.zeros((6, 8), np.float32)}, place / "a.safetensors")
    assert store.get(source).layer_metrics["energy"].tolist() != before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_and_not_waited_for(roots):
    (roots / "one" / "mine" / CONFIG).unlink()
    os.mkfifo(roots / "one" / "mine" / CONFIG)
    with pytest.raises(AdapterError, match="not a regular file"):
        sources.within_roots("mine")


def test_the_root_itself_is_not_searched(roots, monkeypatch):
    for name in range(50):
        (roots / "one" / f"deep-{name}" / "deeper").mkdir(parents=True)
        (roots / "one" / f"deep-{name}" / "deeper" / "a.safetensors").write_bytes(b"")
    listed = []
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: listed.append(self) or real(self))
    with pytest.raises(AdapterError, match="holds no adapter"):
        sources.within_roots(".")
    assert set(listed) == {roots / "one"}


@pytest.mark.parametrize("broken", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("text", ["mine", f"mine/{WEIGHTS}"])
def test_an_error_does_not_say_where_the_roots_adapters_lie(roots, broken, text):
    (roots / "one" / "mine" / broken).write_bytes(b"nonsense")
    with pytest.raises(AdapterError) as caught:
        sources.TableStore().get(sources.within_roots(text))
    assert str(roots) not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_path_inside_or_an_error(text):
    home = APP / "app_pages"
    arguments, sources.arguments = (
        sources.arguments,
        lambda: SimpleNamespace(paths=[], root=[home], base=None, hub=True),
    )
    line, place = "", home
    try:
        place = sources.within_roots(text).path
    except AdapterError as error:
        line = str(error)
    finally:
        sources.arguments = arguments
    assert place.is_relative_to(home)
    assert "\n" not in line


# Uploads that are fine


@pytest.mark.parametrize("prefix", ["", "my-run/", "a/b/c/", "ünï <b>/", "./"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_an_adapter(store, files, written, prefix, method):
    extra = {f"{prefix}README.md": b"x", f"__MACOSX/{prefix}._{WEIGHTS}": b"x", f"{prefix}optimizer.pt": b"x"}
    packed = zipped({**{prefix + name: content for name, content in files.items()}, **extra}, method=method)
    source = one(store, [Named("my run.zip", packed)])
    assert source.label == "my run"
    assert contents(source.path) == files
    assert stat.S_IMODE(source.path.stat().st_mode) == 0o700
    assert written
    assert all(Path(path).is_relative_to(store.home.name) for path in written), written


def test_a_zip_of_checkpoints(store, files, written):
    packed = zipped({f"run/checkpoint-{step}/{name}": files[name] for step in ("007", "10") for name in files})
    source = one(store, [Named("run.zip", packed)])
    assert sorted(contents(source.path)) == [f"checkpoint-{step}/{name}" for step in (10, 7) for name in sorted(files)]
    assert [adapter.step for adapter in checkpoints(read_adapter(source.path))] == [7, 10]
    assert all(Path(path).is_relative_to(store.home.name) for path in written)


def test_checkpoints_beside_an_adapter_are_left_out(store, files):
    packed = zipped({f"run/{home}{name}": files[name] for home in ("", "checkpoint-5/") for name in files})
    assert contents(one(store, [Named("run.zip", packed)]).path) == files


def test_a_zip_of_several_adapters(store, files, written):
    """Each is one, by the name of its folder; a run is one too, and what lies beside an adapter is its own."""
    entries = {f"runs/{home}/{name}": files[name] for home in ("a", "b <b>", "a/checkpoint-5") for name in files}
    entries |= {f"runs/c/checkpoint-{step}/{name}": files[name] for step in (1, 2) for name in files}
    found = store.add([Named("all.zip", zipped(entries))])
    assert [source.label for source in found] == ["a", "b <b>", "c"]
    assert [len(checkpoints(read_adapter(source.path))) for source in found] == [1, 1, 2]
    assert [store.find(source.word) for source in found] == found
    assert len({source.word for source in found}) == 3
    assert all(Path(path).is_relative_to(store.home.name) for path in written)
    for _ in range(limits.OWN.kept):
        store.add([Named("other.zip", zipped(files))])
    for source in found:
        assert not source.path.exists()
        with pytest.raises(AdapterError, match="no longer kept"):
            store.find(source.word)


def test_several_adapters_share_the_cap(store, files, monkeypatch):
    monkeypatch.setattr(uploads, "UNPACKED_BYTES", 100_000)
    packed = zipped({f"{home}/{WEIGHTS}": bytes(60_000) for home in "ab"})
    assert "120,000 bytes" in refused(store, Named("bomb.zip", packed))


def test_one_checkpoint_alone(store, files):
    source = one(store, [Named("x.zip", zipped({f"checkpoint-5/{name}": files[name] for name in files}))])
    assert sorted(contents(source.path)) == [f"checkpoint-5/{CONFIG}", f"checkpoint-5/{WEIGHTS}"]


def test_safetensors_come_before_bin_and_other_names_do(store, files):
    both = zipped({**files, "adapter_model.bin": b"other"})
    assert contents(one(store, [Named("x.zip", both)]).path) == files
    odd = zipped({"pytorch_lora_weights.safetensors": files[WEIGHTS], CONFIG: files[CONFIG]})
    assert contents(one(store, [Named("x.zip", odd)]).path) == files


def test_weights_and_configuration(store, files, written):
    source = one(store, [Named("../../w<b>.SAFETENSORS", files[WEIGHTS]), Named("anything.json", files[CONFIG])])
    assert contents(source.path) == files
    assert source.label == "w<b>"
    assert all(Path(path).is_relative_to(store.home.name) for path in written)


# Uploads that are not


@pytest.mark.parametrize(
    "name",
    [
        f"../{WEIGHTS}",
        f"a/../../{WEIGHTS}",
        f"/tmp/{WEIGHTS}",
        f"//host/share/{WEIGHTS}",
        f"C:\\windows\\{WEIGHTS}",
        f"C:{WEIGHTS}",
        f"..\\..\\{WEIGHTS}",
        f"\\{WEIGHTS}",
        "../../README.md",
    ],
)
def test_zip_slip(store, files, written, name):
    line = refused(store, Named("slip.zip", zipped({**files, name: b"x"})))
    assert "leads out" in line
    assert all(Path(path).is_relative_to(store.home.name) for path in written)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
@pytest.mark.parametrize("name", [WEIGHTS, "other"])
def test_an_entry_that_is_a_link_or_a_device(store, files, kind, name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (kind | 0o777) << 16
    packed = zipped([(entry, b"/etc/passwd"), (CONFIG, files[CONFIG])])
    assert "link or a device" in refused(store, Named("link.zip", packed))


def test_a_bomb_by_ratio(store, monkeypatch):
    packed = zipped({WEIGHTS: bytes(64 << 20)})
    assert len(packed) < 100_000
    monkeypatch.setattr(uploads, "UNPACKED_BYTES", 32 << 20)
    tracemalloc.start()
    assert "at most" in refused(store, Named("bomb.zip", packed))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("honest", [True, False])
def test_a_bomb_that_lies_about_its_size(store, monkeypatch, written, honest):
    monkeypatch.setattr(uploads, "UNPACKED_BYTES", 1 << 20)
    packed = bytearray(zipped({WEIGHTS: bytes(8 << 20)}))
    if not honest:  # the sizes in the local header and in the directory
        for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            start = packed.find(signature) + offset
            packed[start : start + 4] = (1000).to_bytes(4, "little")
    refused(store, Named("bomb.zip", bytes(packed)))
    assert all(Path(path).is_relative_to(store.home.name) for path in written)


def test_a_bomb_by_total_size_over_many_checkpoints(store, monkeypatch):
    monkeypatch.setattr(uploads, "UNPACKED_BYTES", 1 << 20)
    packed = zipped({f"checkpoint-{step}/{WEIGHTS}": bytes(100_000) for step in range(11)})
    assert "1,100,000 bytes" in refused(store, Named("bomb.zip", packed))


def test_the_cap_holds_for_the_bytes_that_come_out(tmp_path):
    out = (tmp_path / "x").open("wb")
    with out, pytest.raises(AdapterError, match="more than 100,000 bytes"):
        uploads._copy(Named("x", bytes(10 << 20)), out, 100_000, "x.zip", WEIGHTS)
    assert (tmp_path / "x").stat().st_size <= 100_000


def test_a_bomb_by_entries(store, files):
    packed = zipped({**files, **{f"x/{i}": b"" for i in range(uploads.ENTRIES)}})
    assert f"{uploads.ENTRIES + 2} entries" in refused(store, Named("many.zip", packed))


def test_a_million_entries_cost_no_memory(store):
    """46 bytes each in the zip, and 500 as objects: they have to be refused before they are read."""
    record = b"PK\x01\x02" + bytes(24) + (1).to_bytes(2, "little") + bytes(16) + b"x"
    directory = record * 1_000_000
    end = b"PK\x05\x06" + bytes(4) + (65535).to_bytes(2, "little") * 2
    end += len(directory).to_bytes(4, "little") + bytes(4) + bytes(2)
    upload = Named("many.zip", directory + end)
    tracemalloc.start()
    line = refused(store, upload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "list of entries" in line
    assert peak < 8 << 20


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_a_bound(store, method):
    assert "unusual method" in refused(store, Named("x.zip", zipped({WEIGHTS: bytes(1000)}, method=method)))


def test_a_configuration_that_is_huge(store, files):
    big = b" " * (uploads.CONFIG_BYTES + 1) + files[CONFIG]
    assert CONFIG in refused(store, Named("x.zip", zipped({WEIGHTS: files[WEIGHTS], CONFIG: big})))
    assert CONFIG in refused(store, Named("w.safetensors", files[WEIGHTS]), Named("c.json", big))


def test_an_encrypted_entry(store, files):
    packed = bytearray(zipped(files))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = packed.find(signature)
        while at >= 0:
            packed[at + offset] |= 1
            at = packed.find(signature, at + 1)
    assert "password" in refused(store, Named("x.zip", bytes(packed)))


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"README.md": b"x"}, "holds no adapter"),
        ({}, "holds no adapter"),
        ({CONFIG: b"{}"}, "holds no adapter"),
        ({f"{k}/{WEIGHTS}": b"x" for k in range(uploads.MEMBERS + 1)}, "51 adapters; at most 50"),
        ({f"checkpoint-1/{WEIGHTS}": b"x", f"checkpoint-01/{WEIGHTS}": b"x"}, "twice"),
        ({"a.safetensors": b"x", "b.safetensors": b"x"}, "2 weight files"),
    ],
)
def test_zips_that_hold_no_adapter_or_too_many(store, entries, line):
    assert line in refused(store, Named("x.zip", zipped(entries)))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_twice(store, files):
    assert "weight files" in refused(store, Named("x.zip", zipped([(WEIGHTS, files[WEIGHTS]), (WEIGHTS, b"other")])))
    twice = [(WEIGHTS, files[WEIGHTS]), (CONFIG, b"{}"), (CONFIG, b"{}")]
    assert "twice" in refused(store, Named("x.zip", zipped(twice)))


@pytest.mark.parametrize(
    "names", [["a.txt"], ["a.pkl"], ["a.safetensors", "b.bin"], ["c.json"], ["a.bin", "b.json", "c.json"], ["a.exe"]]
)
def test_wrong_files(store, names):
    assert "expected a zip" in refused(store, *(Named(name, b"{}") for name in names))


@pytest.mark.parametrize("cut", [0, 1, 10, -1, -10, -30])
def test_a_zip_that_is_cut(store, files, cut):
    assert "not a complete zip" in refused(store, Named("x.zip", zipped(files)[:cut]))


def test_a_zip_with_a_byte_turned(store, files):
    packed = bytearray(zipped(files))
    packed[100] ^= 0xFF
    assert "not a complete zip" in refused(store, Named("x.zip", bytes(packed)))


@given(st.data())
def test_any_damage_to_a_zip_is_an_adapter_or_an_error(data):
    # Not fixtures: they would be shared by all the cases.
    whole = zipped({WEIGHTS: b"weights" * 20, CONFIG: b"{}"})
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    store = uploads.UploadStore()
    line = ""
    try:
        store.add([Named("x.zip", bytes(damaged))])
    except AdapterError as error:
        line = str(error)
    found = contents(Path(store.home.name))
    store.home.cleanup()
    assert "\n" not in line
    assert bool(line) == (not found)
    assert all(Path(name).name in (WEIGHTS, "adapter_model.bin", CONFIG) for name in found)


class Malicious:
    """Leaves a file where it is told to, if anybody unpickles it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {self.mark}",))


@pytest.mark.parametrize("form", ["plain", "torch", "in a dictionary"])
def test_a_pickle_runs_nothing(store, tmp_path, form):
    import io

    import torch

    mark = tmp_path / "was-here"
    buffer = io.BytesIO()
    if form == "plain":
        pickle.dump(Malicious(mark), buffer)
    elif form == "torch":
        torch.save(Malicious(mark), buffer)
    else:
        torch.save({"layers.0.q_proj.lora_A.weight": torch.ones(1, 4), "x": Malicious(mark)}, buffer)
    source = one(store, [Named("weights.bin", buffer.getvalue())])
    with pytest.raises(AdapterError) as caught:
        sources.TableStore().get(source)
    assert "only tensors are read" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.home.name not in str(caught.value)
    assert "weights_only" not in str(caught.value), "PyTorch's advice is to switch the protection off"
    assert not mark.exists()
    # And it would have run:
    if form == "plain":
        pickle.loads(buffer.getvalue())
        assert mark.exists()


@pytest.mark.parametrize("config", [b"[" * 100_000, b'{"a":' * 50_000, b"nonsense", b"\xff\xfe", b"[]", b"NaN", b""])
def test_a_hostile_configuration_is_one_line(store, files, config):
    source = one(store, [Named("x.zip", zipped({WEIGHTS: files[WEIGHTS], CONFIG: config}))])
    with pytest.raises(AdapterError) as caught:
        sources.TableStore().get(source)
    assert "\n" not in str(caught.value)


# Where uploads lie, and how long


def test_the_oldest_goes_with_its_tables(files):
    store = uploads.UploadStore(kept=3)
    tables = sources.table_store()
    packed = zipped(files)
    kept = []
    for number in range(5):
        source = one(store, [Named(f"{number}.zip", packed)])
        tables.get(source)
        kept.append(source)
    assert [source.label for (source,) in store.uploads.values()] == ["2", "3", "4"]
    assert [source.path.exists() for source in kept] == [False, False, True, True, True]
    assert [tables.has(source) for source in kept] == [False, False, True, True, True]
    with pytest.raises(AdapterError, match="no longer kept"):
        store.find(kept[0].word)
    assert store.find(kept[4].word) == kept[4]
    with pytest.raises(AdapterError):
        tables.get(kept[0])
    store.home.cleanup()


@pytest.mark.parametrize("own", [limits.OWN, limits.PUBLIC], ids=["own", "public"])
def test_as_many_are_kept_as_this_server_says(store, files, monkeypatch, own):
    """Also where the store was made before: it is one of the process, whose arguments a test may change."""
    monkeypatch.setattr("app.uploads.limits", lambda: own)
    for number in range(own.kept + 2):
        store.add([Named(f"{number}.zip", zipped(files))])
    assert [source.label for (source,) in store.uploads.values()] == [str(each + 2) for each in range(own.kept)]


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(1)", "os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"])
def test_folders_are_removed_at_exit(tmp_path, files, end):
    (tmp_path / "x.zip").write_bytes(zipped(files))
    code = (
        "import os, signal, sys, time; from pathlib import Path; from app import uploads; "
        "file = open(sys.argv[1], 'rb'); (source,) = uploads.upload_store().add([file]); "
        f"assert source.path.exists(); print(source.path, flush=True); {end}"
    )
    environment = {**os.environ, "PYTHONPATH": str(APP.parent), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.zip")], env=environment, capture_output=True, text=True
    )
    place = Path(done.stdout.strip())
    assert place.is_relative_to(tmp_path), done.stderr
    assert not place.exists()
    assert not place.parent.exists()


def test_tokens_cannot_be_guessed(store, files):
    tokens = {one(store, [Named("x.zip", zipped(files))]).word for _ in range(5)}
    assert len(tokens) == 5
    assert all(len(token) >= 12 for token in tokens)  # 72 bits


# Names


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "**bold** _it_ `code` ~~x~~ # h",
    "$\\alpha$",
    ":red[x] :material/home: :smile:",
    "a\nb\r\nc\td",
    "\u202egnp.exe",
    "a|b|c",
    "&lt;b&gt; &amp;",
    "- item",
    "1. item",
    "> quote",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_labels_are_plain_text_in_one_line(store, files, name):
    source = one(store, [Named(f"{name}.zip", zipped(files))])
    assert source.label
    assert len(source.label) <= 40
    assert source.label.isprintable()
    assert "/" not in source.label
    assert source.path.parent == Path(store.home.name)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_a_name_as_it_is(name):
    """By a CommonMark parser: no element but a paragraph with text, and the text is the name's."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    paragraph, inline, _ = parser.parse(safe_markdown.markdown(name))
    assert paragraph.type == "paragraph_open"
    children = inline.children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children).replace("\u2060", "") == safe_markdown.one_line(name)


def test_names_are_shortened():
    assert len(uploads.label("x" * 500 + ".zip")) == 40
    assert uploads.label(".zip") == uploads.label("") == uploads.label("/") == "upload"


@pytest.mark.parametrize("module", [safe_markdown, uploads])
def test_examples_in_the_documentation(module):
    assert doctest.testmod(module).failed == 0


def test_the_limit_that_is_stated_is_the_servers():
    import tomllib

    config = tomllib.loads((APP / ".streamlit" / "config.toml").read_text())
    assert config["server"]["maxUploadSize"] == uploads.UPLOAD_MB
    assert config["server"]["address"] == "localhost"
    assert config["browser"]["gatherUsageStats"] is False


def test_no_page_renders_html():
    for file in APP.rglob("*.py"):
        text = file.read_text()
        assert "unsafe_allow_html" not in text, file
        assert "components.v1" not in text, file
        # The one sheet of styles: colours of the palette, and no text of a visitor's.
        assert text.count("st.html") == text.count("st.html(sheet(") == (file.name == "navigation.py"), file
        assert "cache_data" not in text, f"{file}: nothing is pickled"


def test_a_huge_root_is_no_reason_to_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "arguments", lambda: SimpleNamespace(paths=[], root=[Path("/")], base=None, hub=True))
    adapter(tmp_path / "mine")
    start = time.process_time()
    sources.within_roots(str(tmp_path / "mine"))
    with pytest.raises(AdapterError, match="holds no adapter"):
        sources.within_roots("/")
    assert time.process_time() - start < 5


def test_an_archive_in_an_upload_is_bounded_and_keeps_its_suffix(store, monkeypatch, tmp_path):
    factors: dict[str, Any] = {"q.lora_a": np.ones((200, 2)), "q.lora_b": np.ones((2, 200))}
    np.savez_compressed(tmp_path / "a.npz", **factors)
    content = (tmp_path / "a.npz").read_bytes()
    cases = [Named("a.npz", content), Named("a.zip", zipped({"x/adapters.npz": content}))]
    for upload in cases:
        assert read_adapter(one(store, [upload]).path)["q"].facts.r == 2
    monkeypatch.setattr(uploads, "UNPACKED_BYTES", 2000)
    for upload in cases:
        with pytest.raises(AdapterError, match="its arrays come to"):
            store.add([upload])
