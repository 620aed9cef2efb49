"""capture: which share of an update each method can represent."""

import json
from importlib import import_module
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bora_analysis import capture, dense, lora, read_adapter, synthetic_adapter, write_adapter
from bora_analysis.adapters import Adapter
from bora_analysis.analysis.capture import CAPTURE_COLUMNS, each_capture, nearest, sampled, shares
from bora_analysis.analysis.members import Member, capturing, member_of, same_set, sized
from bora_analysis.analysis.representation import represent
from bora_analysis.catalogue import METHODS
from bora_analysis.cli import main
from bora_analysis.methods import form, projection

SHAPES = {f"layers.{k}.{name}_proj": (48, 32) for k in range(2) for name in "qv"}


@pytest.fixture
def target():
    return synthetic_adapter("lora", SHAPES, r=12, kind="decay", decay=0.5, name="target")


def test_lora_is_the_truncated_svd_and_its_own_reference(target):
    table = capture(target, [("lora", 3), ("lora", 12)])
    assert list(table.columns) == list(CAPTURE_COLUMNS)
    small, whole = table[table["r"] == 3], table[table["r"] == 12]
    squares = 1 / np.arange(1, 13)
    np.testing.assert_allclose(small["captured"], squares[:3].sum() / squares.sum(), rtol=1e-6)
    np.testing.assert_allclose(whole["captured"], 1.0, rtol=1e-12)
    np.testing.assert_allclose(table["lora_captured"], table["captured"], rtol=1e-9)
    assert (table["lora_rank"] == table["r"]).all()


def test_the_lora_beside_it_lies_between_whole_ranks(target):
    row = capture(target, [("bora", 2, 4)], modules="layers.0.q").iloc[0]
    rank = 2 * (48 + 32 + 16) / (48 + 32)
    assert row["lora_rank"] == rank
    curve = np.concatenate([[0], np.cumsum(1 / np.arange(1, 13))])
    assert row["lora_captured"] == pytest.approx(np.interp(rank, range(13), curve / curve[-1]), rel=1e-6)


def test_every_method_by_default_at_four_budgets(target):
    table = capture(target, modules="layers.0.q", starts=1)
    assert set(table["method"]) == {method for method in capturing() if same_set(method)[0] == method}
    own = 12 * 80
    assert (table["parameters"] <= 4 * own).all()
    assert table["captured"].between(0, 1 + 1e-12).all()
    assert set(table.loc[table["method"] == "lora", "r"]) == {6, 12, 24, 32}  # no more than the smaller side


def test_a_budget_buys_the_largest_r_of_all_modules_together(target):
    table = capture(target, ["lora", "melora"], budget=4 * 80 * 5 + 79, starts=1)
    found = table.groupby("method")["r"].unique().map(list).to_dict()
    assert found == {"lora": [5], "melora": [4]}  # 8 minis of 4 columns each have no more
    assert capture(target, ["lora"], like=synthetic_adapter("lora", SHAPES, r=7))["r"].unique().tolist() == [7]


WIDE = {"layers.0.q_proj": (24, 16), "layers.0.down_proj": (16, 40)}


@pytest.mark.parametrize("method", capturing())
@pytest.mark.parametrize(
    "shapes", [WIDE, {"score": (2, 96), **WIDE}], ids=["two sizes", "beside a head of two outputs"]
)
def test_what_any_budget_buys_has_an_r_that_its_reader_takes_and_that_adds_something(method, shapes, tmp_path):
    adapter = synthetic_adapter("lora", shapes, r=2)
    (largest,) = sized(adapter, [member_of(method)], 10**9)
    represent(adapter, tmp_path, largest, starts=1)
    read = read_adapter(tmp_path)
    assert {module: read[str(module)].shape for module in read} == shapes
    own = projection(method)
    if METHODS[method].ranked and own.tried is None and (own.limit is None or method in (*same_set("lora"), "bora")):
        assert largest.r >= sized(adapter, [member_of("lora")], 10**9)[0].r // largest.blocks


@pytest.mark.parametrize(
    "method", ["melora", "gralora", "bdlora-a", "bdlora-b", "sbora-fa", "sbora-fb", "miss", "moelora"]
)
def test_with_its_largest_r_an_exact_method_has_nothing_more_to_gain(method):
    rng = np.random.default_rng(2)
    for shape in ((24, 16), (16, 40)):
        adapter = Adapter.from_updates("x", {"q": dense(rng.standard_normal(shape))})
        (largest,) = sized(
            adapter, [member_of((method, 0, 2))] if METHODS[method].blocks else [member_of(method)], 10**9
        )
        captured = capture(adapter, [largest])["captured"].item()
        whole = np.square(adapter["q"].to_dense())
        m, n = shape
        reach = whole if method != "melora" else whole * np.kron(np.eye(2), np.ones((m // 2, n // 2)))
        assert captured == pytest.approx(reach.sum() / whole.sum())
        less = largest._replace(r=largest.r - (2 if METHODS[method].splits else 1))
        assert capture(adapter, [less])["captured"].item() < captured - 1e-6


def test_blocks_that_were_not_given_divide_all_sizes():
    adapter = synthetic_adapter("lora", {"q": (20, 30), "v": (10, 30)}, r=2)
    found = {member.method: member for member in sized(adapter, None, 10**6)}
    assert found["bora"].blocks == found["melora"].blocks == 5
    assert found["c3a"].blocks == 10  # no r: the most blocks
    odd = synthetic_adapter("lora", {"q": (7, 11)}, r=2)
    assert not {"bora", "melora", "gralora"} & {member.method for member in sized(odd, None, 10**6)}


def test_vera_s_modules_share_their_projections(tmp_path):
    adapter = synthetic_adapter("lora", WIDE, r=2)
    found = capture(adapter, [("vera", 40)])
    table = represent(adapter, tmp_path, ("vera", 40))
    np.testing.assert_allclose(table["captured"], found["captured"], atol=1e-6)


def test_a_sample_is_of_every_projection_and_of_the_same_sizes(target):
    whole, some = capture(target, ["lora"], budget=1500), capture(target, ["lora"], budget=1500, sample=2)
    assert some["module"].tolist() == ["layers.0.q_proj", "layers.0.v_proj"]
    pd.testing.assert_frame_equal(some, whole[whole["module"].isin(some["module"])].reset_index(drop=True))
    for count in range(1, 5):
        assert len(sampled(target, count)) == count


def test_full_fine_tuning_is_measured_against_lora_of_rank_8():
    rng = np.random.default_rng(0)
    adapter = Adapter.from_updates("full", {"q": dense(rng.standard_normal((64, 48)))})
    assert capture(adapter, ["lora"], starts=1)["r"].tolist() == [4, 8, 16, 32]


def test_zero_updates_have_no_share_and_count_nowhere():
    updates = {"zero": lora(np.zeros((8, 2)), np.ones((2, 8))), "one": lora(np.eye(8)[:, :2], np.eye(2, 8))}
    table = capture(Adapter.from_updates("mine", updates), [("lora", 1)])
    assert table["captured"].isna().tolist() == [False, True]  # one, zero
    found = shares(table)
    assert found["captured"].tolist() == pytest.approx([0.5])
    assert found["modules"].tolist() == [1]


@pytest.mark.parametrize("size", [1e-200, 1e-90, 1e90])
def test_the_size_of_an_update_does_not_matter(size):
    rng = np.random.default_rng(1)
    B, A = rng.standard_normal((24, 6)), rng.standard_normal((6, 18))
    plain, scaled = (
        capture(Adapter.from_updates("x", {"q": lora(B * s, A)}), [("bora", 2, 3), ("krona",), ("loha", 2)], starts=1)
        for s in (1.0, size)
    )
    np.testing.assert_allclose(scaled["captured"], plain["captured"], rtol=1e-6)


def test_a_member_without_an_r_has_none_whatever_was_given():
    assert member_of(("krona", 48)) == Member("krona", 1, 1)


@pytest.mark.parametrize("method", capturing())
def test_the_nearest_is_an_adapter_of_the_method(method, target, tmp_path):
    row = METHODS[method]
    module = next(iter(SHAPES))
    r = 4 if row.splits else 2
    parts = nearest(target[module], (method, r, row.blocks.default if row.blocks else 1), starts=1)
    parts = {name: part.astype("float32") if part.dtype.kind == "f" else part for name, part in parts.items()}
    write_adapter(tmp_path, method, {module: parts}, alpha=np.sqrt(r) if method == "rslora" else None)
    read = read_adapter(tmp_path)[module]
    np.testing.assert_allclose(read.to_dense(), form(method).build(parts, 1.0, "exp-norm").to_dense(), atol=1e-6)


def test_earlier_rows_are_taken_over(target, monkeypatch):
    members = [("lora", 2), ("bora", 2, 4)]
    known = capture(target, members, modules="layers.0")
    text = known.to_csv(index=False)
    monkeypatch.setattr("bora_analysis.analysis.capture._target", None)  # nothing is computed
    again = capture(target, members, modules="layers.0", known=pd.read_csv(StringIO(text)))
    pd.testing.assert_frame_equal(again, known, check_exact=False, rtol=1e-12)


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([("nothing", 2)], {}, "method 'nothing' is unknown"),
        ([("dora", 2)], {}, "the nearest DoRA of an update is not known"),
        ([("bora", 2, 5)], {}, "layers.0.q_proj: BoRA r = 2, b = 5"),
        ([("bora", 0, 5)], {}, "b = 5 does not divide"),
        ([("lora", 2, 5)], {}, "LoRA has no blocks, and 5 were given"),
        ([("melora", 7, 8)], {}, "MELoRA r = 7, b = 8: r is at most 6 for 48×32"),
        ([("sbora-fa", 40)], {}, "r is at most 32"),
        ([("lora", 49)], {}, "r is at most 48"),
        (["lora"], {"budget": 3}, "no method has as few as 3 parameters"),
        (["lora"], {"bora_activation": "tanh"}, "activation 'tanh' is unknown"),
        (["lora"], {"starts": 0}, "starts is 0"),
        (["lora"], {"budget": 9999, "like": "x"}, "expected one of them"),
    ],
)
def test_what_cannot_be_asked_is_said(target, members, options, message):
    with pytest.raises(ValueError, match=message):
        capture(target, members, **options)


def test_rows_come_module_by_module(target):
    assert [rows[0][2] for rows in each_capture([target], [("lora", 1)])] == list(target)


# The command


def run(*args):
    return CliRunner().invoke(main, ["capture", *map(str, args)])


@pytest.fixture
def folder(tmp_path, target):
    raw = {module: {"A": np.asarray(target[module].A[0]), "B": np.asarray(target[module].B[0])} for module in target}
    return write_adapter(tmp_path / "target", "lora", raw, alpha=24)


def test_each_method_has_the_sizes_behind_it(folder):
    done = run(folder, "--method", "lora", "-r", 3, "--method", "bora", "-r", 2, "--blocks", 4, "--format", "json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert {(row["method"], row["r"], row["blocks"]) for row in rows} == {("lora", 3, 1), ("bora", 2, 4)}
    assert run(folder, "-r", 3).exit_code == 2


def test_the_table_says_what_captured_means_and_shows_lora_beside(folder):
    done = run(folder, "--method", "bora", "-r", 2, "--blocks", 4)
    assert done.exit_code == 0, done.output
    for words in ("BoRA r = 2, b = 4", "LoRA", "4 modules"):
        assert words in done.stdout
    assert "not what training finds" in done.stdout.replace("\n", " ")


def test_resume_keeps_the_rows_of_the_file(folder, tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    arguments = (folder, "--method", "bora", "-r", 2, "--blocks", 4, "-o", path)
    assert run(*arguments).exit_code == 0
    monkeypatch.setattr("bora_analysis.analysis.capture._target", None)
    done = run(*arguments, "--resume")
    assert done.exit_code == 0, done.output
    assert len(pd.read_csv(path)) == 4
    assert run(folder, "--resume").exit_code == 2


def test_without_a_method_some_modules_are_tried_and_the_note_says_so(folder, monkeypatch):
    monkeypatch.setattr(import_module("bora_analysis.cli.capture"), "SURVEY", 2)
    done = run(folder, "--format", "json", "--budget", 300)
    assert done.exit_code == 0, done.output
    assert "2 of 4 modules" in done.stderr
    assert len({row["module"] for row in json.loads(done.stdout)}) == 2
    assert {row["starts"] for row in json.loads(done.stdout)} == {1}
    every = run(folder, "--format", "json", "--budget", 300, "--all")
    assert len({row["module"] for row in json.loads(every.stdout)}) == 4


def test_a_budget_below_every_method_is_a_usage_error(folder):
    done = run(folder, "--budget", 1)
    assert done.exit_code == 2
    assert "no method has as few as" in done.stderr
