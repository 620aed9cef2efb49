"""Weight files: every dtype, both formats, and threads."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bora_analysis.adapters import AdapterError
from bora_analysis.files import tensors

torch = pytest.importorskip("torch")

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


def write(path: Path, content: dict[str, Any]) -> tensors.Tensors:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.suffix == ".bin")
    return tensors.open_tensors(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])  # .pt: torch.save's old format
@pytest.mark.parametrize("dtype", [*FLOATS, "int64", "int8", "uint8", "bool"])
def test_every_dtype(tmp_path: Path, suffix: str, dtype: str) -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 3
    tensor = values.to(getattr(torch, dtype))
    if suffix == ".pt" and "float8" in dtype:
        pytest.skip("PyTorch cannot load float8 from its old format")
    opened = write(tmp_path / f"w{suffix}", {"first": torch.zeros(7, dtype=torch.uint8), "x": tensor})
    found = opened.read("x")
    assert (opened.shape("x"), opened.dtype("x"), sorted(opened.keys())) == ((3, 5), dtype, ["first", "x"])
    expected = tensor.float().numpy() if "bfloat" in dtype or "float8" in dtype else tensor.numpy()
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_all_256_values_of_float8(tmp_path: Path, suffix: str, dtype: str) -> None:
    tensor = torch.arange(256, dtype=torch.int64).to(torch.uint8).view(getattr(torch, dtype))
    np.testing.assert_array_equal(write(tmp_path / f"w{suffix}", {"x": tensor}).read("x"), tensor.float().numpy())


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    opened = write(tmp_path / "w.safetensors", {"one": torch.tensor(3.0), "none": torch.zeros(0, 4)})
    assert opened.read("one") == 3.0
    assert opened.read("none").shape == (0, 4)


def test_a_dtype_that_cannot_be_read(tmp_path: Path) -> None:
    opened = write(tmp_path / "w.safetensors", {"x": torch.zeros(2, dtype=torch.float8_e4m3fnuz)})
    with pytest.raises(AdapterError, match=r"w\.safetensors: x has dtype f8_e4m3fnuz"):
        opened.read("x")


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(tensors, "_REMAP_BYTES", 3000)  # mapped anew every few reads
    content = {f"x{i}": torch.full((10, 10), float(i)) for i in range(50)}
    opened = write(tmp_path / f"w{suffix}", content)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(opened.read, content))
    assert [value[0, 0] for value in found] == list(range(50))
    assert all((value == value[0, 0]).all() for value in found)


def test_wrapped_state_dicts_and_other_entries(tmp_path: Path) -> None:
    x = torch.ones(2, 2)
    opened = write(tmp_path / "a.bin", {"state_dict": {"x": x, "epoch": 3}, "lr": 0.1})
    assert (opened.keys(), opened.unread) == (["x"], ("epoch",))
    assert write(tmp_path / "b.bin", {"model": {"x": torch.nn.Parameter(x)}}).read("x").sum() == 4


class Hostile:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("hostile-was-here"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Hostile()}, "a.bin", _use_new_zipfile_serialization=zipped)
    Path("b.bin").write_bytes(pickle.dumps({"x": Hostile()}))
    for name in ("a.bin", "b.bin"):
        with pytest.raises(AdapterError) as caught:
            tensors.open_tensors(Path(name))
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)
        assert "weights_only" not in str(caught.value)
    assert not Path("hostile-was-here").exists()


@pytest.mark.parametrize("content", [3, "text", [1], [], torch.ones(2), {}, {"a": 1}])
def test_files_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.bin")
    with pytest.raises(AdapterError, match=r"^[^\n]*w\.bin: [^\n]*expected a dictionary of named tensors$"):
        tensors.open_tensors(tmp_path / "w.bin")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_truncated_torch_files(tmp_path: Path, zipped: bool, keep: float) -> None:
    path = tmp_path / "w.bin"
    torch.save({"x": torch.ones(50, 50)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(AdapterError) as caught:
        tensors.open_tensors(path)
    assert "\n" not in str(caught.value)
    assert "w.bin" in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_weights_beside_the_model_are_named(tmp_path: Path) -> None:
    """Averages, or another model, are not read; what a file holds is not passed over without a word."""
    one = {"a.b": torch.ones(2)}
    torch.save({"model": one, "ema": one, "teacher": one, "optimizer": {"state": {0: one}}}, tmp_path / "w.pt")
    opened: Any = tensors.open_tensors(tmp_path / "w.pt")
    assert (opened.keys(), set(opened.unread)) == (["a.b"], {"ema", "teacher"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["sparse", "meta"])
def test_a_tensor_without_an_array_is_refused(tmp_path: Path, device: str, dtype: Any) -> None:
    tensor = torch.eye(3, dtype=dtype)
    torch.save({"x": tensor.to_sparse() if device == "sparse" else tensor.to(device)}, tmp_path / "w.bin")
    with pytest.raises(AdapterError, match=r"w\.bin: x has dtype"):
        tensors.open_tensors(tmp_path / "w.bin").read("x")
