"""Columns hold what frames hold, and the command line needs no frame for its main tables."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bora_analysis import Adapter, Trajectory, analyse, lora, summary, synthetic_adapter
from bora_analysis.adapters.synthetic import Synthetic, write_synthetic
from bora_analysis.analysis.columns import Columns, last_steps, mean, missing
from bora_analysis.analysis.tables import IDENTITY, Tables
from bora_analysis.analysis.verdict import verdicts
from bora_analysis.cli.text_tables import text

SHAPES = {f"model.layers.{layer}.self_attn.{name}_proj": (40, 24) for layer in range(3) for name in "qv"}


def adapters() -> list[Adapter | Trajectory]:
    zero = Adapter.from_updates("still", {"lm_head": lora(np.zeros((6, 2)), np.ones((2, 5)))})
    sizes = {"bora": 4, "lora": 1}
    runs = [synthetic_adapter(method, SHAPES, 2, blocks, kind="decay", seed=5) for method, blocks in sizes.items()]
    made = [(step, synthetic_adapter("lora", SHAPES, r=3, seed=step)) for step in (10, 200)]
    steps = [replace(each, name="run", step=step) for step, each in made]
    return [zero, *runs, Trajectory("run", tuple(steps))]


@pytest.fixture(scope="module")
def tables():
    return analyse(adapters(), statistics=True)


def to_csv(frame: pd.DataFrame) -> str:
    out = io.StringIO()
    frame.to_csv(out, index=False, lineterminator="\n")
    return out.getvalue()


class TestColumns:
    def test_there_and_back(self, tables):
        for frame in (tables.layer_metrics, tables.spectra, summary(tables.layer_metrics)):
            pd.testing.assert_frame_equal(Columns.of(frame).frame(), frame)

    def test_steps_that_a_frame_has_as_floats(self, tables):
        frame = tables.layer_metrics.astype({"step": float, "layer": float})
        assert [*map(str, verdicts(frame))] == [*map(str, verdicts(tables.layers))]
        assert Columns.of(frame)["step"].tolist() == tables.layers["step"].tolist()

    def test_csv_and_json_are_those_of_pandas(self, tables):
        for columns, frame in ((tables.layers, tables.layer_metrics), (tables.spectra_columns(), tables.spectra)):
            assert frame.isna().any(axis=None)  # a lone adapter has no step, lm_head no layer
            assert text(columns, "csv") == to_csv(frame)
            records = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
            assert json.loads(text(columns, "json")) == records

    def test_a_row_for_each_singular_value(self, tables):
        spectra = tables.spectra
        at = 0
        for row, length in enumerate(tables.lengths):
            part = spectra.iloc[at : at + length]
            assert part["index"].tolist() == list(range(1, length + 1))
            assert part["singular_value"].tolist() == tables.spectrum_of(row).tolist()
            for name in IDENTITY:
                assert {None if missing(x) else x for x in part[name]} == {tables.layers[name][row]}
            at += length
        assert at == len(spectra) == tables.values.size

    def test_some_rows(self, tables):
        chosen = tables.layers["adapter"] == "run"
        part = tables.rows(chosen)
        frame = tables.spectra
        pd.testing.assert_frame_equal(part.spectra, frame[frame["adapter"] == "run"].reset_index(drop=True))
        assert part.adapters == ["run"]

    def test_of_frames(self, tables):
        """Of a part of the frames, in another order."""
        layers = tables.layer_metrics.iloc[::-2]
        found = Tables.of_frames(tables.spectra, layers)
        assert found.adapters == list(dict.fromkeys(layers["adapter"]))
        for row, place in enumerate(layers.index):
            assert found.spectrum_of(row).tolist() == tables.spectrum_of(place).tolist()

    def test_groups_are_those_of_pandas(self, tables):
        keys = ["adapter", "step", "projection"]
        expected = tables.layer_metrics.groupby(keys, sort=False, dropna=False).indices
        found = tables.layers.groups(*keys)
        assert len(found) == len(expected) == 9
        clean = {tuple(None if missing(x) else x for x in key): places.tolist() for key, places in expected.items()}
        assert {key: places.tolist() for key, places in found.items()} == clean

    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            ([1, 2], "int64"), ([1, 2.5], "float64"), ([1.0, None], "float64"), ([1, None], "object"),
            ([True, False], "bool"), (["1%", 0.5], "object"), ([], "object"), ([np.int64(3), 4], "int64"),
        ],
    )  # fmt: skip
    def test_kinds(self, values, kind):
        found = Columns({"x": values})["x"]
        assert found.dtype == kind
        assert [None if missing(x) else x for x in found.tolist()] == values

    def test_joined_tables_lack_what_one_of_them_lacks(self):
        joined = Columns.joined([Columns({"a": [1], "b": [2]}), Columns({"a": [3]}), Columns({"a": [], "b": []})])
        assert joined["a"].tolist() == [1, 3]
        assert joined["a"].dtype == np.int64
        assert joined["b"][0] == 2
        assert np.isnan(joined["b"][1])

    def test_missing_numbers_do_not_count_in_a_mean(self):
        assert mean([1, None, 3.0, float("nan")]) == 2.0
        assert np.isnan(mean([None]))

    def test_last_steps_of_several_runs(self):
        found = last_steps(["a", "b", "a", "b", "a", "c"], [1, None, 3, 7, 3, None])
        assert found.tolist() == [False, False, True, True, True, True]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two adapters, a decaying and an untrained one."""
    home = tmp_path_factory.mktemp("written")
    for name, kind in (("first", "decay"), ("second", "gaussian")):
        write_synthetic(home / name, Synthetic("lora", SHAPES, 4, kind=kind, seed=2))
    return home


def test_main_tables_need_no_heavy_library(written):
    commands = [
        ["first"], ["first", "second"], ["analyze", "first", "--statistics", "--threshold", "1%"],
        ["analyze", "first", "--format", "csv", "--sort", "-energy"], ["analyze", "first", "-o", "out"],
        ["compare", "first", "second"], ["compare", "first", "--format", "json"], ["recommend", "first", "second"],
        ["recommend", "first", "--format", "csv"],
        ["recommend", "first", "second", "--consensus", "--format", "json"],
    ]  # fmt: skip
    code = (
        "import json, sys\nfrom bora_analysis.cli import main\n"
        "heavy = ('pandas', 'pyarrow', 'scipy', 'matplotlib', 'torch', 'joblib', 'huggingface_hub', 'fsspec')\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    main(command, standalone_mode=False)\n"
        "    found = [name for name in heavy if name in sys.modules]\n"
        "    assert not found, (command, found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], cwd=written, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (written / "out").iterdir()} == {"layer_metrics.csv", "spectra.csv"}


def test_objects_that_hold_numbers_of_numpy_are_records():
    """A frame whose column has a number in some rows only."""
    frame = pd.DataFrame({"m": pd.Series([np.int64(3), None, np.float64(0.5), pd.NA, np.True_], dtype=object)})
    assert json.loads(text(frame, "json")) == [{"m": 3}, {"m": None}, {"m": 0.5}, {"m": None}, {"m": True}]
    assert text(frame, "csv").splitlines() == ["m", "3", '""', "0.5", '""', "True"]
