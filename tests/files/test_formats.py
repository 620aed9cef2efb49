"""Formats of other libraries, and the layouts that came with them: ΔW against the dense formula of each program."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint
from click.testing import CliRunner
from safetensors.numpy import save_file
from torch.distributed.checkpoint.state_dict_saver import save

from bora_analysis import singular_values
from bora_analysis.adapters import Adapter, AdapterError, read_adapter
from bora_analysis.adapters.locate import paths_read
from bora_analysis.cli import main
from bora_analysis.files import tensors
from bora_analysis.files.layouts import layout_of
from bora_analysis.files.tensors import OPENERS

RNG = np.random.default_rng(0)


def made(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def one(path: Path, **options: Any) -> Adapter:
    adapter = read_adapter(path, **options)
    assert isinstance(adapter, Adapter)
    return adapter


def equal(adapter: Adapter, module: str, dense: np.ndarray) -> None:
    np.testing.assert_allclose(adapter[module].to_dense(), dense, rtol=1e-12, atol=1e-12 * np.abs(dense).max())


def wide(*factors: np.ndarray) -> np.ndarray:
    return np.linalg.multi_dot([factor.astype(np.float64) for factor in factors])


def refused(path: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        one(path)
    assert str(path.name) in str(caught.value)
    return str(caught.value)


# --- llama.cpp's GGUF ------------------------------------------------------------------------------------------------


def gguf_file(path: Path, content: dict[str, Any], alpha: float | None = 8.0, kind: str = "adapter") -> Path:
    """A file by llama.cpp's own writer; a value with a type of ggml is quantised to it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(kind)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_array("general.tags", ["lora", "test"])
    writer.add_array("adapter.numbers", [1, 2, 3])
    if alpha is not None:
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for key, value in content.items():
        data, quantised = value if isinstance(value, tuple) else (value, None)
        raw = data if quantised is None else gguf.quants.quantize(data, quantised)
        writer.add_tensor(key, raw, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


TYPES = gguf.GGMLQuantizationType


@pytest.mark.parametrize(
    ("kind", "name"),
    [(None, "float32"), (TYPES.F16, "float16"), (TYPES.BF16, "bfloat16"), (TYPES.Q8_0, "q8_0")],
)
def test_gguf(tmp_path: Path, kind: Any, name: str) -> None:
    """Each type that convert_lora_to_gguf.py writes; the values are those that gguf dequantises."""
    A, B = made(32, 64), made(96, 32)
    given = {"blk.0.attn_q.weight.lora_a": (A, kind), "blk.0.attn_q.weight.lora_b": (B, kind)}
    adapter = one(gguf_file(tmp_path / "lora.gguf", given))
    if kind is not None:
        A, B = (gguf.quants.dequantize(gguf.quants.quantize(factor, kind), kind) for factor in (A, B))
    assert adapter["blk.0.attn_q"].facts.scaling == 8 / 32
    assert adapter["blk.0.attn_q"].facts.dtype == name
    equal(adapter, "blk.0.attn_q", 8 / 32 * wide(B, A))
    assert not adapter.warnings


def test_gguf_embedding_experts_and_norms(tmp_path: Path) -> None:
    """An embedding's A is stored (V, r); experts are stacks; norms are listed."""
    V, A, stack_a, stack_b = made(50, 2), made(2, 7), made(3, 2, 7), made(3, 9, 2)
    given = {
        "token_embd.weight.lora_a": V,
        "token_embd.weight.lora_b": made(6, 2),
        "blk.1.attn_k.weight.lora_a": A,
        "blk.1.attn_k.weight.lora_b": made(5, 2),
        "blk.1.ffn_gate_exps.weight.lora_a": stack_a,
        "blk.1.ffn_gate_exps.weight.lora_b": stack_b,
        "blk.1.attn_norm.weight": made(7),
    }
    adapter = one(gguf_file(tmp_path / "lora.gguf", given, alpha=4.0))
    equal(adapter, "token_embd", 2 * wide(given["token_embd.weight.lora_b"], V.T))
    equal(adapter, "blk.1.attn_k", 2 * wide(given["blk.1.attn_k.weight.lora_b"], A))
    for e in range(3):
        equal(adapter, f"blk.1.ffn_gate_exps.{e}", 2 * wide(stack_b[e], stack_a[e]))
    assert len(adapter) == 5
    assert adapter.passed_over == ("blk.1.attn_norm.weight",)
    assert adapter["token_embd"].facts.kind == "embedding"


PAIR = {"blk.0.attn_q.weight.lora_a": made(4, 32), "blk.0.attn_q.weight.lora_b": made(48, 4)}


def test_gguf_without_alpha_is_not_scaled(tmp_path: Path) -> None:
    """llama.cpp takes α = 0 for no scaling; without the entry too, of which a note says so."""
    zero = one(gguf_file(tmp_path / "zero.gguf", PAIR, alpha=0.0))
    none = one(gguf_file(tmp_path / "none.gguf", PAIR, alpha=None))
    assert zero["blk.0.attn_q"].facts.scaling == none["blk.0.attn_q"].facts.scaling == 1
    assert not zero.warnings
    assert "α is stored nowhere" in none.warnings[0]
    assert one(tmp_path / "none.gguf", alpha=2)["blk.0.attn_q"].facts.scaling == 0.5


def test_gguf_refusals(tmp_path: Path) -> None:
    assert "general.type = 'model'" in refused(gguf_file(tmp_path / "model.gguf", PAIR, kind="model"))
    quantised = {key: (made(64, 256), TYPES.Q4_0) for key in PAIR}
    assert "dtype GGML type 2" in refused(gguf_file(tmp_path / "q4.gguf", quantised))
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.close()
    assert "big-endian" in refused(tmp_path / "big.gguf")


def test_a_damaged_gguf_is_one_line(tmp_path: Path) -> None:
    """Cut at each place of the header, or with a count that is too high, no file hangs or shows a traceback."""
    content = gguf_file(tmp_path / "lora.gguf", PAIR).read_bytes()
    bad = tmp_path / "bad.gguf"
    for size in [*range(4, 400, 7), len(content) - 1]:
        bad.write_bytes(content[:size])
        refused(bad)
    for offset in (8, 16, 24):
        bad.write_bytes(content[:offset] + struct.pack("<Q", 2**63) + content[offset + 8 :])
        refused(bad)


# --- NumPy's archives ------------------------------------------------------------------------------------------------


def archive(path: Path, content: dict[str, Any]) -> None:
    np.savez(path, **content)


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_mlx_npz(tmp_path: Path, savez: Callable[..., None]) -> None:
    """MLX's format before safetensors: no α, bfloat16 without a type; and arrays in other orders."""
    A, B, narrow = made(16, 4), made(4, 24), made(16, 4).astype(ml_dtypes.bfloat16)
    path = "model.layers.{}.self_attn.q_proj"
    savez(
        tmp_path / "adapters.npz",
        **{
            f"{path.format(0)}.lora_a": np.asfortranarray(A),
            f"{path.format(0)}.lora_b": B.astype(">f4"),
            f"{path.format(1)}.lora_a": narrow,
            f"{path.format(1)}.lora_b": B.astype("f2"),
        },
    )
    adapter = one(tmp_path, alpha=8)
    equal(adapter, path.format(0), 2 * wide(A, B).T)
    equal(adapter, path.format(1), 2 * wide(narrow, B.astype("f2")).T)
    assert adapter[path.format(1)].facts.dtype == "bfloat16"
    assert "α is stored nowhere" in one(tmp_path / "adapters.npz").warnings[0]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"scale": 20.0, "rank": 4}}))
    assert one(tmp_path)[path.format(0)].facts.scaling == 20


def test_npz_refusals(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    archive(path, {"q.lora_A": np.array([{}], dtype=object), "q.lora_B": made(3, 2)})
    assert "holds Python objects, which are not unpickled" in refused(path)
    archive(path, {"q.lora_A": made(2, 5), "q.lora_B": made(3, 2)})
    content = path.read_bytes()
    equal(one(path), "q", wide(*(np.load(path)[f"q.lora_{side}"] for side in "BA")))
    for size in (10, 100, len(content) - 30):
        path.write_bytes(content[:size])
        assert "no complete NumPy archive" in refused(path)


# --- Keras's HDF5, and the axes of JAX -------------------------------------------------------------------------------


def keras_file(path: Path, layers: dict[int, tuple[np.ndarray, np.ndarray]], rank: int) -> Path:
    """As keras_hub's ``save_lora_weights`` and Keras's H5IOStore write it."""
    with h5py.File(path, "w") as file:
        file.create_dataset("lora/vars/rank", data=rank)
        for number, factors in layers.items():
            for side, factor in zip("ab", factors, strict=True):
                stored = file.create_dataset(f"lora/{number}/vars/lora_kernel_{side}", data=factor)
                if factor.dtype == ml_dtypes.bfloat16:
                    stored.attrs["dtype"] = "bfloat16"
    return path


def test_keras(tmp_path: Path) -> None:
    a, b, deep = made(16, 4), made(4, 24), made(8, 16, 4)
    narrow = b.astype(ml_dtypes.bfloat16)
    adapter = one(keras_file(tmp_path / "model.lora.h5", {3: (a, b), 11: (deep, narrow)}, 4))
    equal(adapter, "layers.3", wide(a, b).T)
    equal(adapter, "layers.11", wide(deep.reshape(-1, 4), narrow).T)
    assert [adapter[module].facts.scaling for module in adapter] == [1, 1]
    assert "names no modules" in adapter.warnings[0]
    assert "three axes" in adapter.warnings[1]
    assert len(one(keras_file(tmp_path / "flat.lora.h5", {3: (a, b)}, 4)).warnings) == 1


def test_keras_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.lora.h5"
    assert "rank is 8" in refused(keras_file(path, {0: (made(16, 4), made(4, 24))}, 8))
    content = path.read_bytes()
    path.write_bytes(content[:700])
    assert "no complete HDF5 file" in refused(path)
    (tmp_path / "secret").write_bytes(made(16, 4).tobytes())
    with h5py.File(path, "w") as file:  # another file's bytes
        file.create_dataset("lora/0/lora_kernel_a", (16, 4), "f4", external=[(str(tmp_path / "secret"), 0, 256)])
    assert "in one piece" in refused(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("lora/0/lora_kernel_a", data=made(16, 4), compression="gzip")
    assert "without compression" in refused(path)
    with h5py.File(path, "w") as file:
        file["lora"] = h5py.ExternalLink("other.h5", "/lora")
    assert "holds no adapter" in refused(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert 'pip install "bora_analysis[h5]"' in refused(path)


def test_qwix(tmp_path: Path) -> None:
    """Tunix's merge: a (…, r) and b (r, …) as matrices; α in the program."""
    q_a, q_b, o_a, o_b = made(16, 4), made(4, 2, 8), made(2, 8, 4), made(4, 16)
    content = {
        "layers.0.attn.q_proj.w_lora_a": q_a,
        "layers.0.attn.q_proj.w_lora_b": q_b,
        "layers.0.attn.o_proj.w_lora_a": o_a,
        "layers.0.attn.o_proj.w_lora_b": o_b,
        "layers.0.mlp.gate_proj.kernel_lora_a": q_a,
        "layers.0.mlp.gate_proj.kernel_lora_b": o_b,
    }
    save_file(content, tmp_path / "lora.safetensors")
    adapter = one(tmp_path / "lora.safetensors", alpha=8)
    equal(adapter, "layers.0.attn.q_proj", 2 * wide(q_a, q_b.reshape(4, 16)).T)
    equal(adapter, "layers.0.attn.o_proj", 2 * wide(o_a.reshape(16, 4), o_b).T)
    equal(adapter, "layers.0.mlp.gate_proj", 2 * wide(q_a, o_b).T)
    assert "three axes, such as that of layers.0.attn.o_proj.w_lora_a (2, 8, 4)" in adapter.warnings[0]
    assert "α is stored nowhere" in one(tmp_path / "lora.safetensors").warnings[0]


# --- Megatron, and stacks of experts ---------------------------------------------------------------------------------


def saved(folder: Path, content: dict[str, np.ndarray], **config: Any) -> Path:
    save_file({key: np.ascontiguousarray(value) for key, value in content.items()}, folder / "weights.safetensors")
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder / "weights.safetensors"


@pytest.mark.parametrize(
    ("prefix", "shown"),
    [
        ("module.decoder.layers.0.mlp.linear_fc1.adapter", "decoder.layers.0.mlp.linear_fc1"),
        ("decoder.layers.0.attention.linear_qkv.adapter.adapter_q", "decoder.layers.0.attention.linear_qkv.adapter_q"),
        (
            "model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter",
            "model.decoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter",
        ),
    ],
)  # fmt: skip
def test_megatron(tmp_path: Path, prefix: str, shown: str) -> None:
    A, B = made(4, 10), made(6, 4)
    path = saved(tmp_path, {f"{prefix}.linear_in.weight": A, f"{prefix}.linear_out.weight": B})
    equal(one(path, alpha=8), shown, 2 * wide(B, A))
    assert "α is stored nowhere" in one(path).warnings[0]
    content = {
        f"{prefix}.linear_in.weight": A,
        f"{prefix}.linear_out.weight": B,
        f"{prefix}.layer_norm.weight": made(4),
    }
    assert "a norm inside the adapter" in refused(saved(tmp_path, content))


def test_a_part_of_a_parallel_megatron_is_refused(tmp_path: Path) -> None:
    content = {f"x.adapter.linear_{side}.weight": torch.ones(2, 2) for side in ("in", "out")}
    for name in ("mp_rank_00", "mp_rank_01"):
        (tmp_path / name).mkdir()
        torch.save({"state_dict": content}, tmp_path / name / "model_weights.ckpt")
    assert "parts of the adapter (mp_rank_00)" in refused(tmp_path / "mp_rank_00" / "model_weights.ckpt")
    (tmp_path / "mp_rank_01").rename(tmp_path / "other")
    assert len(one(tmp_path / "mp_rank_00" / "model_weights.ckpt")) == 1


E, M, N, R = 3, 6, 10, 4
A3, B3, A1, B1 = made(E, R, N), made(E, M, R), made(1, R, N), made(1, M, R)


@pytest.mark.parametrize(("A", "B"), [(A3, B3), (A1, B3), (A3, B1), (A1[0], B3), (A3, B1[0])])
@pytest.mark.parametrize("ends", [("lora_A", "lora_B"), ("adapter.linear_in", "adapter.linear_out")])
def test_stacks_of_experts(tmp_path: Path, ends: tuple[str, str], A: np.ndarray, B: np.ndarray) -> None:
    """Tinker's and Megatron's: each expert a module, or one factor that all share."""
    module = "model.layers.0.mlp.experts.w1"
    a, b = (f"{module}.{end}.weight" for end in ends)
    adapter = one(saved(tmp_path, {a: A, b: B}, r=R, lora_alpha=8))
    assert len(adapter) == E
    for e in range(E):
        factors = [x if x.ndim == 2 else x[min(e, len(x) - 1)] for x in (B, A)]
        equal(adapter, f"{module}.{e}", 2 * wide(*factors))


@pytest.mark.parametrize("m", [M, E])
def test_vllm_experts(tmp_path: Path, m: int) -> None:
    """vLLM's names, and the experts in the last axis of B."""
    head, A, B, down_a = "model.layers.0.mlp.experts", made(E, E, N), made(m, E, E), made(E, R, N)
    content = {f"{head}.base_layer.lora_A.weight": A, f"{head}.base_layer.lora_B.weight": B}
    content |= {f"{head}.lora_A.weight": down_a, f"{head}.lora_B.weight": made(m, R, E)}
    adapter = one(saved(tmp_path, content), alpha=1)
    for e in range(E):
        equal(adapter, f"{head}.gate_up_proj.{e}", wide(B[..., e], A[e]) / E)
        equal(adapter, f"{head}.down_proj.{e}", wide(content[f"{head}.lora_B.weight"][..., e], down_a[e]) / R)
    assert adapter.layout is None  # PEFT has no stacks


def test_patterns_of_a_stack_hold_for_its_experts(tmp_path: Path) -> None:
    head = "model.layers.0.mlp.experts"
    content = {f"{head}.{w}.lora_A.weight": A3 for w in ("w1", "w2")} | {f"{head}.w1.lora_B.weight": B3}
    patterns = {"rank_pattern": {"experts.w1": R}, "alpha_pattern": {r".*\.w1": 12}}
    adapter = one(saved(tmp_path, content | {f"{head}.w2.lora_B.weight": B3}, r=R, lora_alpha=8, **patterns))
    assert [adapter[f"{head}.{w}.2"].facts.scaling for w in ("w1", "w2")] == [3, 2]


def test_a_shared_factor_beside_experts_of_their_own(tmp_path: Path) -> None:
    head = "model.layers.0.mlp.experts"
    content = {f"{head}.gate_proj.lora_A.weight": A1}
    content |= {f"{head}.{e}.gate_proj.lora_B.weight": B3[e] for e in range(E)}
    adapter = one(saved(tmp_path, content), alpha=8)
    for e in range(E):
        equal(adapter, f"{head}.{e}.gate_proj", 2 * wide(B3[e], A1[0]))
    assert "no lora_B beside it" in refused(saved(tmp_path, {f"{head}.gate_proj.lora_A.weight": A1}))


def test_stacks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    head = "model.layers.0.mlp.experts.w1"
    content = {f"{head}.lora_A.weight": A3, f"{head}.lora_B.weight": made(E + 1, M, R)}
    assert "expected stacks of the factors" in refused(saved(tmp_path, content))
    empty = {f"{head}.lora_A.weight": made(E, R, 0), f"{head}.lora_B.weight": made(E, 0, R)}
    content = {"q.lora_A.weight": made(2, 5), "q.lora_B.weight": made(4, 2)}
    with pytest.raises(AdapterError, match="no empty dimension"):
        one(saved(tmp_path, empty | content | {f"{head}.lora_B.weight": B3}))
    nothing = np.zeros((0, 0, 0), "f4")
    skipped = one(saved(tmp_path, {f"{head}.lora_A.weight": nothing, f"{head}.lora_B.weight": nothing} | content))
    assert list(skipped) == ["q"]


# --- torch.distributed.checkpoint ------------------------------------------------------------------------------------


def checkpoint(folder: Path, content: dict[str, Any]) -> Path:
    """A folder by PyTorch's own writer."""
    save(content, checkpoint_id=folder)
    return folder


A4, B4 = torch.from_numpy(made(4, 10)).bfloat16(), torch.from_numpy(made(6, 4))
STATE = {"layers.0.q.lora_A.weight": A4, "layers.0.q.lora_B.weight": B4}
SINGLE = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*single process")


@SINGLE
@pytest.mark.parametrize(
    "content",
    [STATE, {"model": STATE, "step": 3}, {"app": {"model": STATE, "optim": {"state": {"x.exp_avg": torch.ones(2)}}}}],
)
def test_distributed_checkpoint(tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP's folder, whose index is a pickle of which nothing is run; in a Trainer's checkpoint too."""
    folder = checkpoint(tmp_path / "checkpoint-10" / "pytorch_model_fsdp_0", content)
    checkpoint(tmp_path / "checkpoint-10" / "optimizer_0", {"state": {"x": torch.ones(2)}})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    monkeypatch.setattr(pickle, "load", None)  # what PyTorch reads the index with
    for place in (folder, folder / "__0_0.distcp", tmp_path / "checkpoint-10"):
        adapter = one(place)
        equal(adapter, "layers.0.q", 2 * wide(B4.numpy(), A4.float().numpy()))
        assert adapter["layers.0.q"].facts.dtype == "bfloat16"
    assert set(paths_read(folder)) == {*folder.iterdir()}
    opened = tensors.open_tensors(folder / "__0_0.distcp")
    key = next(key for key in opened.keys() if "lora_A" in key)  # noqa: SIM118  no mapping
    assert opened.raw(key).read() == A4.view(torch.int16).numpy().tobytes()


class Run:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


@SINGLE
def test_a_distributed_checkpoint_of_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of two processes are put together; without one of the files, or with a hostile index, refused."""
    folder = checkpoint(tmp_path / "run", STATE)
    index = folder / ".metadata"
    told = pickle.loads(index.read_bytes())
    (first, second) = (name for name in told.state_dict_metadata)
    tops, sides = B4[:2].clone(), B4[2:].clone()
    metadata = torch.distributed.checkpoint.metadata
    told.storage_data = {at: where for at, where in told.storage_data.items() if at.fqn == first}
    tensor = told.state_dict_metadata[second]
    tensor.chunks = []
    for rank, (start, piece) in enumerate(((0, tops), (2, sides))):
        buffer = io.BytesIO()
        torch.save(piece, buffer)
        (folder / f"__{rank + 1}_0.distcp").write_bytes(buffer.getvalue())
        at = torch.Size([start, 0])
        tensor.chunks.append(metadata.ChunkStorageMetadata(at, piece.shape))
        where = torch.distributed.checkpoint.filesystem._StorageInfo(f"__{rank + 1}_0.distcp", 0, buffer.tell())
        told.storage_data[metadata.MetadataIndex(second, at)] = where
    index.write_bytes(pickle.dumps(told))
    equal(one(folder, alpha=4), "layers.0.q", wide(B4.numpy(), A4.float().numpy()))
    (folder / "__2_0.distcp").rename(tmp_path / "gone")
    with pytest.raises(AdapterError, match=r"__2_0\.distcp: cannot be opened.*all files of the checkpoint are needed"):
        one(folder)["layers.0.q"]
    tensor.chunks.pop()
    index.write_bytes(pickle.dumps(told))
    with pytest.raises(AdapterError, match="has 8 of its 24 numbers"):
        one(folder)["layers.0.q"]
    told.storage_data = {at: replace(where, relative_path="../gone") for at, where in told.storage_data.items()}
    index.write_bytes(pickle.dumps(told))
    assert "in another folder" in refused(folder / "__0_0.distcp")
    monkeypatch.chdir(tmp_path)
    index.write_bytes(pickle.dumps({"x": Run()}))
    with pytest.raises(AdapterError, match="no complete index"):
        one(folder)
    assert not (tmp_path / "ran").exists()
    index.unlink()
    with pytest.raises(AdapterError, match="it belongs to the checkpoint"):
        one(folder)


@SINGLE
def test_damaged_bytes_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """Any few bytes of any format changed, and any end cut off."""
    rng = np.random.default_rng(3)
    places = {path: path for path in files(tmp_path).values()}
    folder = checkpoint(tmp_path / "run", STATE)
    places |= {folder / name: folder for name in (".metadata", "__0_0.distcp")}
    for path, read in places.items():
        content = path.read_bytes()
        for turn in range(40):
            bad = bytearray(content[: rng.integers(len(content))] if turn % 5 == 0 else content)
            for place in rng.integers(max(1, len(bad)), size=min(len(bad), 3)):
                bad[place] = rng.integers(256)
            path.write_bytes(bad)
            try:
                adapter = one(read)
                for module in adapter:
                    adapter[module]
            except AdapterError as error:
                assert "\n" not in str(error)  # noqa: PT017  either is right
        path.write_bytes(content)


# --- one table of suffixes -------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, Path]:
    archive(folder / "adapters.npz", {"q.lora_a": made(8, 2), "q.lora_b": made(2, 6)})
    return {
        ".npz": folder / "adapters.npz",
        ".gguf": gguf_file(folder / "lora.gguf", PAIR),
        ".h5": keras_file(folder / "model.lora.h5", {0: (made(8, 2), made(2, 6))}, 2),
    }


@pytest.mark.parametrize("suffix", [".npz", ".gguf", ".h5"])
def test_commands_take_the_new_formats(tmp_path: Path, suffix: str) -> None:
    """analyze, convert and merge, by file and by folder; the written LoRA has the same singular values."""
    (tmp_path / "all").mkdir()
    path = files(tmp_path / "all")[suffix]
    assert path.suffix in OPENERS
    home = tmp_path / "home"
    home.mkdir()
    path.rename(home / path.name)
    assert layout_of(tensors.open_tensors(home / path.name), None) == {".npz": "mlx", ".gguf": "gguf"}.get(suffix)
    layout = ["same"] if suffix == ".gguf" else ["peft"]
    for command in ("convert", "merge"):
        out = tmp_path / command
        result = CliRunner().invoke(main, [command, str(home), "-o", str(out), "--layout", *layout])
        if (command, suffix) == ("merge", ".gguf"):
            assert "a sum of GGUF files is not written" in result.stderr
            continue
        assert result.exit_code == 0, result.output
        (written, own) = one(out), one(home)
        for module in own:
            np.testing.assert_allclose(singular_values(written[module]), singular_values(own[module]), rtol=1e-5)
    assert CliRunner().invoke(main, ["analyze", str(home / path.name)]).exit_code == 0


@pytest.mark.parametrize("suffix", [".npz", ".gguf", ".h5"])
def test_a_tensor_can_be_copied(tmp_path: Path, suffix: str) -> None:
    opened = tensors.open_tensors(files(tmp_path)[suffix])
    for key in opened.keys():  # noqa: SIM118  no mapping
        raw, values = opened.raw(key), opened.read(key)
        assert raw.read() == values.tobytes()
        assert raw.shape == opened.shape(key) == values.shape
