"""A sweep from a bucket into a bucket, on a server of this machine that speaks S3."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from fleet_cases import adapter, adapters, same, tables

from bora_analysis import AdapterError, sweep
from bora_analysis.fleet import keeper
from bora_analysis.fleet.numbers import percentiles, read_fleet
from bora_analysis.fleet.pairs import exact_pairs
from bora_analysis.fleet.storage import Storage

pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """fsspec's file system with one empty bucket, ``bucket``. The processes of a sweep find it by their environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    told = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**told, "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        keeper.end_all()  # the next process has this environment
        files = fsspec.filesystem("s3")
        files.mkdir("bucket")
        yield files
        keeper.end_all()
    fsspec.filesystem("s3").clear_instance_cache()
    running.stop()


def test_a_sweep_of_a_bucket_is_that_of_the_folder_and_goes_on(store: Any, tmp_path: Path):
    home = adapters(tmp_path / "in", 3)
    store.put(str(home), "bucket/adapters", recursive=True)
    options: dict[str, Any] = {"workers": 1, "spectra": True}
    first = sweep("s3://bucket/adapters", "s3://bucket/out", **options)
    assert (first.analysed, first.kept, first.failed, first.errors) == (3, 0, 0, ())
    here = sweep(home, tmp_path / "out", **options).results
    for name in ("layer_metrics", "spectra"):
        ours, theirs = (getattr(each, name)().drop(columns="id") for each in (first.results, here))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert first.results.adapters()["content_hash"].tolist() == here.adapters()["content_hash"].tolist()
    assert first.results.adapters()["id"].tolist() == [f"s3://bucket/adapters/a0{k}" for k in range(3)]
    fleet = read_fleet("s3://bucket/out")
    assert len(fleet.adapters) == 3
    pairs = exact_pairs([("a00", "a01")], fleet=fleet)  # fetched again
    assert pairs["cosine"].tolist() == exact_pairs([(home / "a00", home / "a01")])["cosine"].tolist()
    mine = here.layer_metrics([str(home / "a00")])
    ours, theirs = (percentiles(mine, results) for results in ("s3://bucket/out", here))
    pd.testing.assert_frame_equal(ours, theirs)

    before = tables("s3://bucket/out")
    again = sweep("s3://bucket/adapters", "s3://bucket/out", **options)
    assert (again.analysed, again.kept) == (0, 3)  # by their ETags, nothing was fetched
    same(before, tables("s3://bucket/out"))

    adapter(tmp_path / "other", seed=9)
    store.put(str(tmp_path / "other") + "/", "bucket/adapters/a01/", recursive=True)
    changed = sweep("s3://bucket/adapters/*", "s3://bucket/out", **options)
    assert (changed.analysed, changed.kept) == (1, 2)
    assert len(Storage.at("s3://bucket/out").names("layer_metrics")) == 3  # the old part is gone


def test_a_bucket_that_is_not_there_is_one_line(store: Any, tmp_path: Path):
    done = sweep([adapter(tmp_path / "in"), "s3://nowhere/adapters"], tmp_path / "out", workers=1)
    assert (done.analysed, len(done.errors)) == (1, 1)
    assert done.errors[0].startswith("s3://nowhere/adapters: ")
    for results in ("s3://nowhere/out", "s3://bucket/empty"):
        with pytest.raises(AdapterError, match=f"{results}: holds no results of a sweep"):
            read_fleet(results)
    store.pipe_file("bucket/other/sweep.json", b'{"format": 2}')
    with pytest.raises(AdapterError, match=r"s3://bucket/other/sweep\.json: format 2; expected 1"):
        sweep(adapter(tmp_path / "in"), "s3://bucket/other", workers=1)
