"""A changed file is noticed: by a quick look where that can tell, by its content where not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bora_analysis import sweep
from bora_analysis.adapters.synthetic import Synthetic, write_synthetic
from bora_analysis.fleet.stamps import SETTLED, Seen, content_hash, local, stamp, stamp_at_rest


def look(path: Path) -> str:
    return stamp([(str(path), local(path.stat()))])


def test_a_write_of_the_same_size_with_the_old_time_shows(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    before, times = look(file), file.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    file.write_bytes(b"abd")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_mtime_ns == times.st_mtime_ns
    assert look(file) != before


def test_another_file_of_that_name_shows(tmp_path: Path):
    file, other = tmp_path / "weights", tmp_path / "other"
    file.write_bytes(b"abc")
    before, times = look(file), file.stat()
    other.write_bytes(b"abd")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    assert look(file) != before


def test_a_stamp_is_kept_only_of_files_at_rest(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    now = file.stat().st_mtime
    assert stamp_at_rest([str(file)], now + SETTLED + 1) == look(file)
    assert stamp_at_rest([str(file)], now + SETTLED / 2) == ""  # a write in the same tick would not show
    assert stamp_at_rest([str(file)], now - 10) == ""  # written after it was read


def test_a_store_that_tells_no_version_has_no_stamp():
    assert stamp([("a", Seen(3, "etag=1", 0.0)), ("b", Seen(3, "", 0.0))]) == ""


@pytest.mark.parametrize("change", ["content", "name", "moved"])
def test_the_hash_is_that_of_names_and_contents(tmp_path: Path, change: str):
    first, second = tmp_path / "x/a", tmp_path / "x/b"
    first.parent.mkdir()
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    before = content_hash([second, first, first], tmp_path / "x")
    assert before[1] == 2
    if change == "content":
        second.write_bytes(b"3")
    elif change == "name":
        second = second.rename(tmp_path / "x/c")
    else:  # the whole folder: it is the same adapter
        (tmp_path / "x").rename(tmp_path / "y")
        first, second = tmp_path / "y/a", tmp_path / "y/b"
    after = content_hash([first, second], first.parent)
    assert (after[0] == before[0]) == (change == "moved")


def test_another_base_model_beside_an_adapter_shows(tmp_path: Path):
    """It lies in a folder of its own, which the search for adapters does not look at."""
    shapes = {"layers.0.q_proj": (16, 12)}
    write_synthetic(tmp_path / "fleet" / "one", Synthetic("hira", shapes, 2))
    for file in (tmp_path / "fleet").rglob("*.*"):
        os.utime(file, (1e9, 1e9))  # at rest

    def swept() -> tuple[int, int]:
        done = sweep(tmp_path / "fleet", tmp_path / "results", workers=1)
        return done.analysed, done.kept

    assert swept() == (1, 0)
    assert swept() == (0, 1)
    write_synthetic(tmp_path / "other", Synthetic("hira", shapes, 2, seed=1))
    base = Path("base", "model.safetensors")
    (tmp_path / "fleet" / "one" / base).write_bytes((tmp_path / "other" / base).read_bytes())
    assert swept() == (1, 0)
