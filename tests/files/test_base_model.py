"""Finding a module in the base model, full fine-tuning on the command line, and the noise floor of half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from scipy.linalg import svdvals

from bora_analysis import analyse, read_adapter, write_adapter
from bora_analysis.adapters import AdapterError
from bora_analysis.adapters.model_difference import noise_floor
from bora_analysis.cli import main
from bora_analysis.files.base_model import open_base

W = np.arange(12, dtype=np.float32).reshape(3, 4)


def model(folder: Path, weights: dict[str, np.ndarray], **config: str) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: np.ascontiguousarray(value) for key, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("layers.0.q.weight", "layers.0.q"),
        ("model.layers.0.q.weight", "layers.0.q"),
        ("roberta.layers.0.q.weight", "layers.0.q"),
        ("layers.0.q.weight", "bert.layers.0.q"),
        ("_orig_mod.layers.0.q.weight", "layers.0.q"),
        ("layers.0.attn.in_proj_weight", "layers.0.attn"),
    ],
)
def test_paths_may_differ_by_a_first_name(tmp_path: Path, key: str, module: str) -> None:
    weights = open_base(model(tmp_path, {key: W, "x.other.weight": W}))
    assert weights.find(module) == key
    np.testing.assert_array_equal(weights.matrix(module).read(), W)


def test_a_missing_and_an_ambiguous_module_are_named(tmp_path: Path) -> None:
    weights = open_base(model(tmp_path, {"encoder.layers.0.q.weight": W, "decoder.layers.0.q.weight": W}))
    with pytest.raises(
        AdapterError, match=r"layers.0.q fits several .*encoder.layers.0.q.weight, decoder|decoder.*encoder"
    ):
        weights.find("layers.0.q")
    with pytest.raises(AdapterError, match=r"no layers.0.k.weight \(2 tensors, such as .*layers.0.q.weight\)"):
        weights.find("layers.0.k")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_base_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """safetensors first, and pickled weights only where there are none, so that nothing is downloaded twice."""
    asked: list[str] = []

    def snapshot(repo: str, allow_patterns: list[str]) -> str:
        assert "config.json" in allow_patterns
        if repo == "org/absent":
            raise OSError("Repository not found.\nPlease check.")
        (wanted,) = {Path(pattern).suffix for pattern in allow_patterns} & {".safetensors", ".bin"}
        asked.append(wanted)
        if wanted == ".safetensors" == suffix:
            return str(model(tmp_path, {"q.weight": W}))
        if wanted == ".bin" == suffix:
            torch = pytest.importorskip("torch")
            torch.save({"q.weight": torch.from_numpy(W)}, tmp_path / "pytorch_model.bin")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    np.testing.assert_array_equal(open_base("org/model").matrix("q").read(), W)
    assert asked == [".safetensors", ".bin"][: 1 if suffix == ".safetensors" else 2]
    with pytest.raises(AdapterError, match=r"^org/absent: .*Repository not found\.$"):
        open_base("org/absent")
    with pytest.raises(AdapterError, match="no such folder"):
        open_base("no/such/folder")


def test_the_kernel_of_a_convolution(tmp_path: Path) -> None:
    """A stack of experts has as many dimensions as the weight of a 1-D convolution."""
    shapes = {"conv": (6, 4, 3, 2), "one": (6, 4, 3), "experts": (8, 6, 4), "linear": (6, 4)}
    weights = open_base(model(tmp_path, {f"{name}.weight": np.zeros(s, np.float32) for name, s in shapes.items()}))
    assert weights.kernel("conv", 6, 24) == (3, 2)
    assert weights.kernel("one", 6, 12) == (3,)
    assert weights.kernel("experts", 6, 4) == weights.kernel("linear", 6, 4) == weights.kernel("absent", 6, 4) == ()


def test_conv1d_is_known_from_the_model_and_not_from_the_shape(tmp_path: Path) -> None:
    square = np.arange(9, dtype=np.float32).reshape(3, 3)
    weights = {"h.0.attn.c_proj.weight": square, "lm_head.weight": square}
    gpt2 = open_base(model(tmp_path, weights, model_type="gpt2"))
    np.testing.assert_array_equal(gpt2.matrix("h.0.attn.c_proj").read(), square.T)
    np.testing.assert_array_equal(gpt2.matrix("lm_head", fan_in_fan_out=True).read(), square)
    other = open_base(model(tmp_path, weights))
    np.testing.assert_array_equal(other.matrix("h.0.attn.c_proj").read(), square)
    np.testing.assert_array_equal(other.matrix("h.0.attn.c_proj", fan_in_fan_out=True).read(), square.T)


def test_what_is_no_base_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"holds no base model; expected model.safetensors or"):
        open_base(tmp_path)
    with pytest.raises(AdapterError, match="no such folder"):
        open_base(tmp_path / "nothing")
    model(tmp_path, {"q.weight": np.zeros((3, 4), np.int8)})
    with pytest.raises(AdapterError, match=r"q.weight is quantised"):
        open_base(tmp_path).matrix("q")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"k.weight": "model.safetensors"}})
    )
    with pytest.raises(AdapterError, match=r"model.safetensors: has no k.weight, which the index puts there"):
        open_base(tmp_path).matrix("k")
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(AdapterError, match="holds a list"):
        open_base(tmp_path)


def sharded(folder: Path, names: dict[str, Any], **config: str) -> Path:
    """A model whose index puts each tensor into the file of that name; q's is there."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"q.weight": W}, folder / names["q.weight"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


OUTSIDE = [
    "../secret/x.safetensors",
    "{home}/secret/x.safetensors",
    "a/../../secret/x.safetensors",
    "sub/x.safetensors",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "..", "", "a\x00b", "\ud800", 3, None, ["x"]])
def test_a_shard_outside_of_its_folder_is_refused(tmp_path: Path, name: Any) -> None:
    model(tmp_path / "secret", {"k.weight": W})
    (tmp_path / "secret/model.safetensors").rename(tmp_path / "secret/x.safetensors")
    name = name.format(home=tmp_path) if isinstance(name, str) else name
    place = sharded(tmp_path / "model", {"q.weight": "one.safetensors", "k.weight": name})
    (place / "sub").symlink_to(tmp_path / "secret")  # it leads out, as the names do
    base = model(tmp_path / "base", {"q.weight": W, "k.weight": W})
    for open_it in (lambda: open_base(place), lambda: read_adapter(place, base=base)):
        with pytest.raises(
            AdapterError, match=r"model.safetensors.index.json: weight_map has k.weight in .*; expected"
        ):
            open_it()


def test_shards_in_subfolders_and_behind_links_of_the_hubs_cache_are_read(tmp_path: Path) -> None:
    names = {"q.weight": "one.safetensors", "k.weight": "sub/two.safetensors"}
    place = sharded(tmp_path / "snapshots/abc", names)
    (place / "sub").mkdir()
    save_file({"k.weight": W}, place / names["k.weight"])
    (tmp_path / "blobs").mkdir()
    for file in [place / name for name in ("config.json", "model.safetensors.index.json", *names.values())]:
        blob = tmp_path / "blobs" / f"{hash(file):x}"
        file.rename(blob)
        file.symlink_to(blob)
    weights = open_base(place)
    for module in ("q", "k"):
        np.testing.assert_array_equal(weights.matrix(module).read(), W)


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    place = sharded(tmp_path, {"q.weight": "one.safetensors"})
    (place / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 100_000)
    with pytest.raises(AdapterError, match="cannot be read as JSON"):
        open_base(place)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The values as stored in ``dtype``."""
    return values.astype(dtype).astype(np.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("m", "n", "deviation"), [(400, 400, 0.02), (300, 700, 0.04)])
def test_the_noise_floor_is_what_rounding_makes(dtype: str, m: int, n: int, deviation: float) -> None:
    exact = np.random.default_rng(0).standard_normal((m, n)) * deviation
    stored = rounded(exact, dtype)
    measured = svdvals(stored.astype(float) - exact)[0]
    assert noise_floor(stored, dtype) == pytest.approx(measured, rel=0.05)
    assert np.isnan(noise_floor(stored, "float32"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_zeros_are_stored_exactly(dtype: str) -> None:
    """Pruned weights and padding make no noise; they counted as numbers near 0.5."""
    weights = np.full((64, 64), 2.0**-6, np.float32)
    whole = noise_floor(weights, dtype)
    weights[:48] = 0
    assert noise_floor(weights, dtype) == pytest.approx(whole / 2, rel=1e-3)
    assert noise_floor(weights.astype(np.float64), dtype) == noise_floor(weights, dtype)
    assert noise_floor(np.zeros((64, 64), np.float32), dtype) < 1e-4


def pair(folder: Path, dtype: type) -> tuple[Path, Path]:
    rng = np.random.default_rng(1)
    before = (rng.standard_normal((120, 100)) * 0.5).astype(dtype)
    after = (before.astype(float) + 0.1 * rng.standard_normal((120, 1)) @ rng.standard_normal((1, 100))).astype(dtype)
    name, still = "model.layers.0.q_proj.weight", "model.layers.0.k_proj.weight"
    base = model(folder / "base", {name: before, still: before})
    return base, model(folder / "tuned", {name: after, still: before, "model.embed_tokens.weight": before})


def test_half_precision_differences_are_warned_of(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, np.float16)
    tables = analyse(read_adapter(tuned, base=base), threshold=1e-6)
    row: Any = tables.layer_metrics.set_index("projection").loc["q"]
    floor, values = float(row["noise_floor"]), tables.spectra.query("projection == 'q'")["singular_value"].to_numpy()
    assert values[0] > 10 * floor
    assert values[1] < 1.1 * floor  # one direction was trained, the others are rounding
    assert row["effective_rank"] > 50
    assert any("lies below the noise floor of 2 of 2 modules" in line for line in tables.provenance)
    assert any("1 of 2 modules are unchanged" in line for line in tables.provenance)
    quiet = analyse(read_adapter(tuned, base=base), threshold=2 * floor)
    assert quiet.layer_metrics.query("projection == 'q'")["effective_rank"].tolist() == [1]
    assert not any("noise floor" in line for line in quiet.provenance)


def test_full_fine_tuning_on_the_command_line(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, np.float16)
    run = CliRunner()
    shown = run.invoke(main, ["analyze", str(tuned), "--base", str(base)])
    assert shown.exit_code == 0
    assert "full fine-tuning" in shown.stdout
    assert "noise" in shown.stdout
    assert run.invoke(main, ["analyze", str(tuned), "--base", str(base), "--quick", "--format", "csv"]).exit_code == 0
    refused = run.invoke(main, ["analyze", str(tuned)])
    assert refused.exit_code == 1
    assert "needs the base model: --base DIR_OR_HUB_ID" in refused.stderr
    exact = run.invoke(main, ["analyze", str(tuned), "--base", str(base / "model.safetensors")])
    answer = shown.stdout.replace(f"--base {base}", f"--base {base / 'model.safetensors'}")
    assert exact.stdout == answer  # but for the command that goes on from there


def test_a_base_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = model(tmp_path / "base", {"q_proj.weight": W})
    tuned = model(tmp_path / "tuned", {"q_proj.weight": W[:, :-1]})
    with pytest.raises(AdapterError, match=r"q_proj.weight has shape \(3, 3\), but q_proj.weight of the base model"):
        read_adapter(tuned, base=base)
    other = model(tmp_path / "other", {"k_proj.weight": W})
    with pytest.raises(AdapterError, match="no matrix in common"):
        read_adapter(other, base=base)


def test_an_adapter_beside_a_model_stays_an_adapter(tmp_path: Path) -> None:
    folder = model(tmp_path / "both", {"q_proj.weight": W})
    write_adapter(folder, "lora", {"q_proj": {"B": np.ones((3, 1)), "A": np.ones((1, 4))}}, alpha=1)
    assert read_adapter(folder, base=folder).method == "lora"  # pyright: ignore[reportAttributeAccessIssue]
