"""Weights as programs leave them: some levels down in a checkpoint, in several files, under other programs' names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import one
from safetensors.numpy import save_file

from bora_analysis.adapters import AdapterError, Trajectory, read_adapter
from bora_analysis.adapters.locate import paths_read

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 8), dtype=np.float32), RNG.standard_normal((6, 2), dtype=np.float32)
DENSE = B.astype(np.float64) @ A
PAIR = {"layers.0.q.lora_A.weight": A, "layers.0.q.lora_B.weight": B}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: tensors(value) for name, value in content.items()}
    if isinstance(content, list):
        return [tensors(value) for value in content]
    return torch.tensor(content) if isinstance(content, np.ndarray) else content


def saved(path: Path, content: Any, config: Any = None, name: str = "adapter_config.json") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(content), path)
    if config is not None:
        (path.parent / name).write_text(json.dumps(config))
    return path


OPTIMIZER = {"state": {0: {"exp_avg": A}}}
NESTED = {
    "Lightning": {"state_dict": PAIR, "optimizer_states": [OPTIMIZER], "epoch": 1},
    "PyTorch's tutorial": {"model_state_dict": PAIR, "optimizer_state_dict": OPTIMIZER, "epoch": 3},
    "an own name": {"net": PAIR, "optimizer": OPTIMIZER, "ema_net": PAIR},
    "two levels": {"checkpoint": {"model": {"weights": PAIR}}},
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_weights_some_levels_down(tmp_path: Path, kind: str, suffix: str) -> None:
    adapter = one(saved(tmp_path / f"epoch=1{suffix}", NESTED[kind], CONFIG))
    assert list(adapter) == ["layers.0.q"]
    np.testing.assert_allclose(adapter["layers.0.q"].to_dense(), 2 * DENSE, rtol=1e-12)


def test_the_weights_of_several_models_are_not_mixed(tmp_path: Path) -> None:
    path = saved(tmp_path / "gan.pt", {"generator": PAIR, "discriminator": PAIR})
    with pytest.raises(AdapterError, match=r"gan\.pt: .*several models \(generator, discriminator\); save one"):
        read_adapter(path)


#: Program → tensors, configuration and its name, scaling.
PROGRAMS: dict[str, tuple[dict[str, Any], Any, str, float]] = {
    "torchtune": ({"layers.0.q.lora_a.weight": A, "layers.0.q.lora_b.weight": B}, None, "", 1),
    "AdapterHub": (
        {"layers.0.q.loras.task.lora_A": A, "layers.0.q.loras.task.lora_B": B},
        {"config": {"architecture": "lora", "alpha": 6, "r": 2, "composition_mode": "add"}}, "adapter_config.json", 3,
    ),
    "OpenDelta": (
        {"layers.0.q.lora.lora_A": A, "layers.0.q.lora.lora_B": B},
        {"delta_type": "lora", "lora_r": 2, "lora_alpha": 8}, "config.json", 4,
    ),
    "CLIP-LoRA": (
        {"weights": {f"layer_{k}": {"q": {"w_lora_A": A, "w_lora_B": B}} for k in range(2)},
         "metadata": {"r": 2, "alpha": 1, "params": ["q"]}}, None, "", 1 / np.sqrt(2),
    ),
    "CLIP-LoRA of one layer": (
        {"weights": {"layer_0": {"q": {"w_lora_A": A, "w_lora_B": B}}}, "metadata": {"alpha": 1}},
        None, "", 1 / np.sqrt(2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_other_programs(tmp_path: Path, program: str) -> None:
    content, config, name, scaling = PROGRAMS[program]
    adapter = one(saved(tmp_path / "pytorch_model.bin", content, config, name))
    assert next(iter(adapter)) == ("layer_0.q" if "CLIP" in program else "layers.0.q")
    assert len(adapter) == (2 if program == "CLIP-LoRA" else 1)
    for update in adapter.values():
        np.testing.assert_allclose(update.to_dense(), scaling * DENSE, rtol=1e-12)
    assert any("stored nowhere" in line for line in adapter.warnings) == (program == "torchtune")


def test_a_model_folder_with_lora_in_it_is_an_adapter(tmp_path: Path) -> None:
    """OpenDelta has a model's file names; so has a whole state dict with the pair beside the base's weights."""
    content, config, name, _ = PROGRAMS["OpenDelta"]
    saved(tmp_path / "delta" / "pytorch_model.bin", content, config, name)
    np.testing.assert_allclose(one(tmp_path / "delta")["layers.0.q"].to_dense(), 4 * DENSE, rtol=1e-12)
    whole = PAIR | {"layers.0.q.base_layer.weight": np.zeros((6, 8), "f4")}
    saved(tmp_path / "whole" / "pytorch_model.bin", whole, {"model_type": "llama"}, "config.json")
    adapter = one(tmp_path / "whole", alpha=2)
    assert (list(adapter), adapter.passed_over) == (["layers.0.q"], ("layers.0.q.base_layer.weight",))
    assert adapter.path == tmp_path / "whole" / "pytorch_model.bin"
    np.testing.assert_allclose(adapter["layers.0.q"].to_dense(), DENSE, rtol=1e-12)


def shards(folder: Path, index: bool) -> list[Path]:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    content = {key.replace("layers.0", f"layers.{k}"): value for k in range(2) for key, value in PAIR.items()}
    files = [folder / f"adapter_model-0000{k + 1}-of-00002.safetensors" for k in range(2)]
    for k, file in enumerate(files):
        save_file({key: value for n, (key, value) in enumerate(content.items()) if n % 2 == k}, file)
    if index:
        (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    return files


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_together(tmp_path: Path, index: bool) -> None:
    """From the folder and from each shard; every file is told before it is opened."""
    files = shards(tmp_path / "mine", index)
    for place in (tmp_path / "mine", *files):
        adapter = one(place)
        assert (adapter.name, list(adapter)) == ("mine", ["layers.0.q", "layers.1.q"])
        np.testing.assert_allclose(adapter["layers.1.q"].to_dense(), 2 * DENSE, rtol=1e-12)
        assert {*files, tmp_path / "mine" / "adapter_config.json"} <= set(paths_read(place))


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_shard_is_named(tmp_path: Path, missing: int) -> None:
    files = shards(tmp_path / "mine", True)
    files[missing].unlink()
    for place in (tmp_path / "mine", files[1 - missing]):
        with pytest.raises(AdapterError, match=f"0000{missing + 1}-of-00002.* all of them are needed"):
            read_adapter(place)


# --- folders as people have them -------------------------------------------------------------------------------------


def peft(folder: Path, content: dict[str, np.ndarray] = PAIR, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(content, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def mlx(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"q.lora_a": A.T.copy(), "q.lora_b": B.T.copy()}, folder / name)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"rank": 2, "scale": 2.0}}))


def run(place: Path, **options: Any) -> list[tuple[str, int | None]]:
    found = read_adapter(place, **options)
    assert isinstance(found, Trajectory)
    for adapter in found:
        np.testing.assert_allclose(next(iter(adapter.values())).to_dense(), 2 * DENSE, rtol=1e-12)
    return [(adapter.name, adapter.step) for adapter in found]


def test_the_steps_of_mlx_are_a_trajectory(tmp_path: Path) -> None:
    """With a final adapter beside them that one is read, and a note says what else is there."""
    folder = tmp_path / "mine"
    for step in (100, 1000, 200):
        mlx(folder, f"{step:07d}_adapters.safetensors")
    assert run(folder) == [("mine", 100), ("mine", 200), ("mine", 1000)]
    mlx(folder, "adapters.safetensors")
    adapter = one(folder)
    assert (adapter.name, adapter.step) == ("mine", None)
    assert ["3 checkpoints" in line and "--steps" in line for line in adapter.warnings] == [True]
    assert len(run(folder, steps=True)) == 3


def test_checkpoints_with_the_name_of_the_adapter(tmp_path: Path) -> None:
    for step in (5, 10):
        peft(tmp_path / "mine" / f"checkpoint-{step}" / "default")
    assert run(tmp_path / "mine") == [("mine", 5), ("mine", 10)]
    assert (one(tmp_path / "mine" / "checkpoint-5").name, one(tmp_path / "mine" / "checkpoint-5").step) == ("mine", 5)
    inner = tmp_path / "mine" / "checkpoint-5" / "default"
    assert {inner, inner / "adapter_model.safetensors"} <= set(paths_read(tmp_path / "mine"))
    peft(tmp_path / "mine" / "checkpoint-5" / "other")
    with pytest.raises(AdapterError, match=r"checkpoint-5: holds 2 adapters: default, other; name the folder of one"):
        read_adapter(tmp_path / "mine")


def test_a_parent_names_the_runs_below_it(tmp_path: Path) -> None:
    peft(tmp_path / "a" / "checkpoint-1")
    peft(tmp_path / "a" / "checkpoint-2")
    peft(tmp_path / "b")
    (tmp_path / "logs").mkdir()
    with pytest.raises(AdapterError, match=r"name one of its folders: a \(2 checkpoints\), b$"):
        read_adapter(tmp_path)


MORE = PAIR | {key.replace("layers.0", "layers.1"): value for key, value in PAIR.items()}
OTHER_RUNS: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], str]] = {
    "modules": (MORE, {}, "1 and 2 modules; one of them alone has layers.1.q"),
    "rank": (
        {"layers.0.q.lora_A.weight": A[:1], "layers.0.q.lora_B.weight": B[:, :1].copy()}, {"r": 1}, "r = 2 and r = 1"
    ),
    "method": (PAIR, {"use_rslora": True}, "lora and rslora"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_RUNS)
def test_two_runs_in_one_folder_are_no_trajectory(tmp_path: Path, what: str) -> None:
    content, config, expected = OTHER_RUNS[what]
    peft(tmp_path / "checkpoint-1")
    peft(tmp_path / "checkpoint-2")
    assert len(run(tmp_path)) == 2
    peft(tmp_path / "checkpoint-3", content, **config)
    with pytest.raises(AdapterError, match=f"checkpoint-1 and checkpoint-3 are of two runs: .*{expected}"):
        read_adapter(tmp_path)


def test_folders_and_files_of_steps_are_two_runs(tmp_path: Path) -> None:
    peft(tmp_path / "checkpoint-1")
    mlx(tmp_path, "0000100_adapters.safetensors")
    with pytest.raises(AdapterError, match=r"two runs, checkpoint-1 and 0000100_adapters\.safetensors"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("adapter.zip", "unpack"), ("lora.gguf", "no GGUF"), ("model.lora.h5", "HDF5"), ("adapters.npz", "NumPy")],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    for place in (tmp_path, tmp_path / name):
        with pytest.raises(AdapterError, match=expected) as caught:
            read_adapter(place)
        assert name in str(caught.value)


def test_of_one_file_in_two_formats_safetensors_is_read(tmp_path: Path) -> None:
    saved(tmp_path / "adapter_0.pt", PAIR)
    save_file(PAIR, tmp_path / "adapter_0.safetensors")
    adapter = one(tmp_path)
    assert adapter.path == tmp_path / "adapter_0.safetensors"
    assert "adapter_0.safetensors is read, not adapter_0.pt beside it" in adapter.warnings
    saved(tmp_path / "adapter_1.pt", PAIR)
    with pytest.raises(AdapterError, match="3 weight files; name one"):
        one(tmp_path)
