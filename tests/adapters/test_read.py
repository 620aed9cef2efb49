"""Where adapters are found, what is read of them and when, and one-line errors for everything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from bora_analysis.adapters import Adapter, AdapterError, Trajectory, checkpoints, given, read_adapter, write_adapter
from bora_analysis.adapters.given import adapters_of
from bora_analysis.adapters.locate import paths_read
from bora_analysis.files import tensors
from bora_analysis.files.base_model import open_base
from bora_analysis.updates.blocks import lora

SHARED = Path(__file__).resolve().parents[3] / "shared" / "adapters"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the adapters that other people trained are not here")

PREFIX = "base_model.model."


def factors(m: int = 6, n: int = 8, r: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "A": rng.standard_normal((r, n), dtype=np.float32),
        "B": rng.standard_normal((m, r), dtype=np.float32),
    }


def write(folder: Path, content: dict[str, Any] | None, config: Any = "default", **changes: Any) -> Path:
    """A PEFT folder with these tensors, keys without the usual prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        save_file({PREFIX + key: value for key, value in content.items()}, folder / "adapter_model.safetensors")
    if config == "default":
        config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **changes})
    if config is not None:
        (folder / "adapter_config.json").write_text(config)
    return folder


def pair(module: str = "q", **sizes: int) -> dict[str, np.ndarray]:
    made = factors(**sizes)
    return {f"{module}.lora_A.weight": made["A"], f"{module}.lora_B.weight": made["B"]}


def one(path: Path, **options: Any) -> Adapter:
    adapter = read_adapter(path, **options)
    assert isinstance(adapter, Adapter)
    return adapter


# --- which paths are looked into -------------------------------------------------------------------------------------

_watched: list[set[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
        _watched[-1].add(os.fsdecode(arguments[0]))


sys.addaudithook(_hook)


def whole(folder: Path, shards: int = 1, suffix: str = ".safetensors") -> Path:
    """A whole model of one matrix a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"no weights")
    names = [f"model-{k}.safetensors" for k in range(shards)] if shards > 1 else [f"model{suffix}"]
    if suffix == ".bin":
        torch = pytest.importorskip("torch")
        torch.save({"q0.weight": torch.ones(3, 4)}, folder / "pytorch_model.bin")
        return folder
    for k, name in enumerate(names):
        save_file({f"q{k}.weight": np.ones((3, 4), np.float32)}, folder / name)
    if shards > 1:
        index = {"weight_map": {f"q{k}.weight": name for k, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _file(home: Path) -> Path:
    return write(home, pair()) / "adapter_model.safetensors"


def _bare(home: Path) -> Path:
    write(home, pair(), config=None)
    return (home / "adapter_model.safetensors").rename(home / "mine.safetensors")


def _odd(home: Path) -> Path:
    return _bare(home).parent


def _run(home: Path) -> Path:
    for step in (10, 2):
        write(home / f"checkpoint-{step}", pair())
    write(home / "other", pair())
    return home


def _both(home: Path) -> Path:
    return write(_run(home), pair())


def _models(home: Path) -> Path:
    whole(home / "checkpoint-1", shards=3)
    whole(home / "checkpoint-2", shards=3)
    return home


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "file": _file,
    "bare file": _bare,
    "folder": lambda home: write(home, pair()),
    "one odd file": _odd,
    "checkpoints": _run,
    "adapter and checkpoints": _both,
    "model": whole,
    "model in shards": lambda home: whole(home, shards=3),
    "model in a .bin": lambda home: whole(home, suffix=".bin"),
    "models": _models,
}


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_looked_into_is_told_before(tmp_path: Path, layout: str, steps: bool) -> None:
    """All of it, and of the files nothing else: who checks the list has checked what the reader opens."""
    place = LAYOUTS[layout](tmp_path / "here")
    base = open_base(whole(tmp_path / "base", shards=3))
    told = list(paths_read(place, steps=steps))
    looked: set[str] = set()
    _watched.append(looked)
    try:
        for adapter in checkpoints(read_adapter(place, base=base, steps=steps)):
            for update in adapter.values():
                update.to_dense()
    finally:
        _watched.remove(looked)
    here = {path for text in looked if (path := Path(text)).is_relative_to(tmp_path / "here")}
    assert here - {place} <= set(told)
    config = {path for path in told if path.name == "config.json"}  # read for some kinds of model alone
    assert {path for path in told if path.is_file()} - config <= here


def test_a_file_is_told_before_what_it_names_is_known(tmp_path: Path) -> None:
    """An index behind a link, say, can be refused before it is opened."""
    place = whole(tmp_path / "here", shards=3)
    looked: set[str] = set()
    _watched.append(looked)
    try:
        for path in paths_read(place):
            assert str(path) not in looked
            if path.name.endswith(".index.json"):
                break
        else:
            pytest.fail("the index was not told")
    finally:
        _watched.remove(looked)


# --- adapters that other people trained ------------------------------------------------------------------------------

READABLE = {
    "loralib-roberta-mnli/roberta_base_lora_mnli.bin": (24, 8, 1.0),
    "loralib-roberta-mnli": (24, 8, 1.0),
    "peft-roberta-portuguese/checkpoint-500": (24, 8, 2.0),
    "peft-roberta-agnews-bias-all": (36, 4, 4.0),
    "peft-open-calm-1b-rank1": (24, 1, 32.0),
    "peft-synthetic-random": (12, 8, 2.0),
    "peft-controls/monteclora-roberta-mrpc": (24, 8, 2.0),
    "peft-controls/random-init-lora_opt-350m": (48, 8, 1.0),
    "peft-controls/random-init-lora_conv2d": (1, 8, 1.0),
    "peft-controls/random-init-lora_emb_conv1d": (2, 8, 1.0),
    "peft-controls/random-init-lora_mlp_modules_to_save": (1, 8, 1.0),
}
REFUSED = {
    "sam-lora": "2 weight files; name one: lora_rank2.safetensors, lora_rank8.safetensors",
    "peft-controls/random-init-ia3_opt-350m": "IA³",
    "peft-controls/unilora-unsupported": "Uni-LoRA",
    "peft-controls": "random-init-lora_conv2d",
}


@real
@pytest.mark.parametrize("name", READABLE)
def test_real_adapters_are_read(name: str) -> None:
    count, r, scaling = READABLE[name]
    adapter = one(SHARED / name)
    assert (len(adapter), adapter.method) == (count, "lora")
    assert {(update.facts.r, update.facts.scaling) for update in adapter.values()} == {(r, scaling)}
    update = adapter[[*adapter][-1]]
    cores = np.concatenate([np.linalg.svd(core, compute_uv=False).ravel() for core in update.cores()])
    dense = update.to_dense()
    np.testing.assert_allclose(np.linalg.norm(cores), np.linalg.norm(dense), rtol=1e-9)
    if dense.size < 2**20:  # a second for the largest
        expected = np.linalg.svd(dense, compute_uv=False)
        np.testing.assert_allclose(np.sort(cores)[::-1], expected[: cores.size], rtol=1e-9, atol=1e-9 * expected[0])


@real
@pytest.mark.parametrize("name", REFUSED)
def test_real_adapters_are_refused_by_name(name: str) -> None:
    with pytest.raises(AdapterError) as caught:
        read_adapter(SHARED / name)
    assert REFUSED[name] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert name.split("/")[0] in str(caught.value)


@real
def test_a_real_adalora_is_read() -> None:
    adapter = one(SHARED / "peft-controls/random-init-adalora_mlp")
    assert adapter.method == "adalora"
    assert {update.facts.method for update in adapter.values()} == {"adalora"}


@real
def test_real_traps() -> None:
    run = read_adapter(SHARED / "peft-roberta-portuguese")
    assert isinstance(run, Trajectory)
    assert [adapter.step for adapter in run] == [500, 2000, 6000]
    assert {adapter.name for adapter in run} == {run.name} == {"peft-roberta-portuguese"}
    norms = [np.linalg.norm(adapter[next(iter(adapter))].to_dense()) for adapter in run]
    assert norms == sorted(norms)
    assert len(one(SHARED / "peft-roberta-agnews-bias-all").passed_over) == 177 - 72
    assert (
        one(SHARED / "peft-open-calm-1b-rank1")["gpt_neox.layers.3.attention.query_key_value"].facts.dtype == "float16"
    )
    unknown = one(SHARED / "loralib-roberta-mnli")
    assert "--alpha" in unknown.warnings[0]
    known = one(SHARED / "loralib-roberta-mnli", alpha=16)
    assert not known.warnings
    module = next(iter(known))
    np.testing.assert_allclose(known[module].to_dense(), 2 * unknown[module].to_dense())


# --- where adapters are found ----------------------------------------------------------------------------------------


def test_names_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "run" / "checkpoint-30", pair())
    assert (one(folder).name, one(folder).step) == ("run", 30)
    assert one(folder / "adapter_model.safetensors").name == "run"
    assert one(folder, name="mine").name == "mine"
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    assert one(folder)["q"].facts.scaling == 2.0
    file = one(folder / "other.safetensors")
    assert (file.name, file.step, file["q"].facts.scaling) == ("other", None, 2.0)
    monkeypatch.chdir(folder)
    assert one(Path()).name == "run"


def test_adapters_of_one_name_are_named_apart(tmp_path: Path) -> None:
    """By their paths, and by a number where one of them has none; a name apart stays."""
    first, second, other = (write(tmp_path / place, pair()) for place in ("a/run", "b/run", "other"))
    memory = Adapter.from_updates("run", {"layers.0.q_proj": lora(np.ones((4, 1)), np.ones((1, 4)))})
    assert [each.name for each in adapters_of([first, second, other, other])] == [
        "a/run",
        "b/run",
        "other",
        "other (2)",
    ]
    assert [each.name for each in adapters_of([memory, first, second])] == ["run", "a/run", "b/run"]
    assert [each.name for each in adapters_of([memory, first])] == ["run", "run (2)"]
    assert [each.name for each in adapters_of([memory, memory])] == ["run", "run (2)"]


def test_many_adapters_of_one_name_are_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each home is looked at twice, and not once for each other adapter."""
    looked: list[Adapter] = []
    home = given._home
    monkeypatch.setattr(given, "_home", lambda adapter: looked.append(adapter) or home(adapter))
    many = [
        replace(Adapter.from_updates("run", {}), path=Path(f"/{k}/run/adapter_model.safetensors")) for k in range(500)
    ]
    assert [each.name for each in given.named_apart(many)] == [f"{k}/run" for k in range(500)]
    assert len(looked) == 2 * len(many)


def test_a_trajectory_is_ordered_by_step(tmp_path: Path) -> None:
    for step in (1000, 20, 300):
        write(tmp_path / f"checkpoint-{step}", pair())
    (tmp_path / "runs").mkdir()
    run = read_adapter(tmp_path, name="mine")
    assert isinstance(run, Trajectory)
    assert [adapter.step for adapter in run] == [20, 300, 1000]
    assert run.name == run[0].name == "mine"
    assert checkpoints(run) == run.checkpoints == tuple(run)
    assert checkpoints(run[1]) == (run[1],)
    (tmp_path / "checkpoint-300" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match=r"checkpoint-300.*empty"):
        read_adapter(tmp_path)
    (tmp_path / "checkpoint-300" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"checkpoint-300: holds adapter_config.json but no weights"):
        read_adapter(tmp_path)


def test_an_adapter_with_checkpoints_beside_it(tmp_path: Path) -> None:
    write(tmp_path, pair())
    write(tmp_path / "checkpoint-10", pair())
    write(tmp_path / "checkpoint-9", pair())
    adapter = one(tmp_path)
    assert adapter.step is None
    assert "2 checkpoints" in adapter.warnings[0]
    assert "checkpoint-9" in adapter.warnings[0]


def test_what_a_trainer_leaves_is_no_adapter(tmp_path: Path) -> None:
    write(tmp_path, None)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(AdapterError, match="no weights"):
        read_adapter(tmp_path)


def test_natural_order(tmp_path: Path) -> None:
    content = {key: value for layer in (10, 2, 1) for key, value in pair(f"layers.{layer}.q").items()}
    assert list(one(write(tmp_path, content))) == ["layers.1.q", "layers.2.q", "layers.10.q"]


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def snapshot(repo: str, allow_patterns: list[str]) -> str:
        asked.append((repo, allow_patterns))
        if repo == "org/absent":
            raise OSError("Repository not found.\nPlease check.")
        return str(tmp_path / "0f3a")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    write(tmp_path / "0f3a", pair())
    assert read_adapter("org/some-lora").name == "some-lora"
    assert "adapter_config.json" in asked[0][1]
    with pytest.raises(AdapterError, match=r"org/absent: is no path here, .*: Repository not found\.$"):
        read_adapter("org/absent")
    blobs = tmp_path / "blobs"  # the Hub's cache: every file is a link to one without a name
    blobs.mkdir()
    for step in (5, 10):
        folder = write(tmp_path / "0f3b" / f"checkpoint-{step}", pair())
        for file in list(folder.iterdir()):
            file.rename(blobs / f"{step}{file.stem}")
            file.symlink_to(blobs / f"{step}{file.stem}")
    run = read_adapter(tmp_path / "0f3b", name="org-run")
    assert [(adapter.name, adapter.step) for adapter in checkpoints(run)] == [("org-run", 5), ("org-run", 10)]
    for path in ("no-such-folder", "a/b/c", "/no/such", "./org/name", "./name", "../name", "\0", "a" * 5000):
        with pytest.raises(AdapterError, match=r"no such file or folder|is no path"):
            read_adapter(path)


# --- when it is read -------------------------------------------------------------------------------------------------


def test_opening_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = tensors.SafetensorsFile.read
    monkeypatch.setattr(tensors.SafetensorsFile, "read", lambda self, key: (read.append(key), original(self, key))[1])
    content = {key: value for layer in range(9) for key, value in pair(f"layers.{layer}.q").items()}
    content["layers.7.q.lora_A.weight"][1, 3] = np.nan
    adapter = one(write(tmp_path, content))
    assert "layers.3.q" in adapter
    assert len(adapter) == 9
    assert adapter in (adapter,)  # by identity: Mapping's equality would load every module
    assert hash(adapter)
    assert "loaders" not in repr(adapter)
    assert read == []
    assert np.isfinite(adapter["layers.3.q"].to_dense()).all()
    assert sorted(read) == [f"{PREFIX}layers.3.q.lora_{side}.weight" for side in "AB"]
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: .*layers\.7\.q\.lora_A\.weight: .*\(1, 3\)"):
        adapter["layers.7.q"]
    with pytest.raises(KeyError):
        adapter["layers.70.q"]


def test_a_stack_of_experts_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = tensors.SafetensorsFile.read
    monkeypatch.setattr(tensors.SafetensorsFile, "read", lambda self, key: (read.append(key), original(self, key))[1])
    content = {key: value for layer in range(5) for key, value in pair(f"{layer}.experts", r=2 * 7).items()}
    adapter = one(write(tmp_path, content, target_parameters=["experts.w"]))
    assert len(adapter) == 5 * 7
    rows = content["3.experts.lora_A.weight"], content["3.experts.lora_B.weight"]
    expected = 2 * rows[1].reshape(6, 2, 7)[:, :, 4] @ rows[0].reshape(7, 2, 8)[4]
    np.testing.assert_allclose(adapter["3.experts.w.4"].to_dense(), expected, rtol=1e-6)
    read.clear()
    assert {update.facts.r for update in adapter.values()} == {2}
    assert len(read) <= 10
    with pytest.raises(AdapterError, match=r"experts of r = 4"):
        read_adapter(write(tmp_path, None, target_parameters=["experts.w"], r=4))


def test_safetensors_are_read_without_torch(tmp_path: Path) -> None:
    write(tmp_path, pair())
    code = (
        "import sys; from bora_analysis.adapters import read_adapter; a = read_adapter(sys.argv[1]); a['q'].to_dense();"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'click', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_adapters_in_memory() -> None:
    update = lora(np.ones((4, 1)), np.ones((1, 3)))
    adapter = Adapter.from_updates("mine", {"layers.10.q": update, "layers.9.q": update}, step=3)
    assert list(adapter) == ["layers.9.q", "layers.10.q"]
    assert (adapter["layers.9.q"], adapter.method, adapter.step, adapter.path) == (update, "lora", 3, None)


# --- what is wrong with a file ---------------------------------------------------------------------------------------


def test_alpha(tmp_path: Path) -> None:
    folder = write(tmp_path, pair(), config=None)
    assert one(folder)["q"].facts.scaling == 1.0
    assert "α is stored nowhere" in one(folder).warnings[0]
    assert one(folder, alpha=3)["q"].facts.scaling == 1.5
    for lost in ({"peft_type": "LORA", "r": 2}, {"peft_type": "LORA", "r": 2, "lora_alpha": None}):
        write(folder, None, config=json.dumps(lost))
        with pytest.raises(AdapterError, match="no lora_alpha"):
            read_adapter(folder)
        assert one(folder, alpha=3)["q"].facts.scaling == 1.5
    write(folder, None, alpha_pattern={"q": 10}, use_rslora=True)
    assert one(folder)["q"].facts.scaling == 10 / 2**0.5
    assert one(folder, alpha=2)["q"].facts.scaling == 2 / 2**0.5


def test_alpha_in_the_header(tmp_path: Path) -> None:
    """diffusers' way: several models in one file, each with its settings behind its prefix."""
    settings = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"^q": 6}, "text.lora_alpha": 3}
    content = {**pair("unet.q"), **pair("unet.v"), **pair("text.q")}
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(content, path, {"lora_adapter_metadata": json.dumps(settings)})
    adapter = one(path)
    assert not adapter.warnings
    assert {module: update.facts.scaling for module, update in adapter.items()} == {
        "unet.q": 3.0,
        "unet.v": 4.0,
        "text.q": 1.5,
    }
    save_file({**content, **pair("vae.q")}, path, {"lora_adapter_metadata": json.dumps(settings)})
    assert "α is stored nowhere" in one(path).warnings[0]
    save_file(content, path, {"lora_adapter_metadata": "{"})
    with pytest.raises(AdapterError, match="lora_adapter_metadata"):
        read_adapter(path)


def changed(key: str, value: Any) -> dict[str, Any]:
    return {**pair(), key: value}


A, B = "q.lora_A.weight", "q.lora_B.weight"
BAD: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "half a pair": (lambda p: write(p, {A: pair()[A]}), [A, "no lora_B"]),
    "the other half": (lambda p: write(p, {B: pair()[B]}), [B, "no lora_A"]),
    "a config that lies about r": (lambda p: write(p, pair(), r=8), [A, "rank 2", "r = 8"]),
    "a rank pattern that lies": (lambda p: write(p, pair(), rank_pattern={"q": 3}), [A, "rank 2", "r = 3"]),
    "r of another type": (lambda p: write(p, pair(), r="2"), ["q", "r = '2'"]),
    "r true": (lambda p: write(p, pair(), r=True), ["r = True"]),
    "alpha of another type": (lambda p: write(p, pair(), lora_alpha="16"), ["lora_alpha = '16'"]),
    "alpha a list": (lambda p: write(p, pair(), lora_alpha=[16]), ["lora_alpha = [16]"]),
    "alpha infinite": (lambda p: write(p, pair(), lora_alpha=float("inf")), ["lora_alpha = inf"]),
    "a pattern that is none": (lambda p: write(p, pair(), alpha_pattern={"q(": 3}), ["'q('", "regular expression"]),
    "patterns that are a list": (lambda p: write(p, pair(), rank_pattern=["q"]), ["rank_pattern", "dictionary"]),
    "parameters that are no list": (lambda p: write(p, pair(), target_parameters="q"), ["target_parameters is 'q'"]),
    "inner sizes differ": (lambda p: write(p, changed(B, np.ones((6, 3), "f4"))), [B, "(6, 3)", "(m, 2)"]),
    "B transposed": (lambda p: write(p, changed(B, np.ones((2, 6), "f4"))), [B, "transposed"]),
    "A of one dimension": (lambda p: write(p, changed(A, np.ones(8, "f4")), r=8), [A, "(8,)"]),
    "A empty": (lambda p: write(p, changed(A, np.ones((0, 8), "f4"))), [A, "(0, 8)", "no empty dimension"]),
    "B of three dimensions": (lambda p: write(p, changed(B, np.ones((6, 2, 1), "f4"))), [B, "(6, 2, 1)"]),
    "a kernel in B": (
        lambda p: write(p, {A: np.ones((2, 3, 3, 3), "f4"), B: np.ones((6, 2, 3, 3), "f4")}),
        [B, "(m, 2, 1…)"],
    ),
    "integers": (lambda p: write(p, changed(A, np.ones((2, 8), "i8"))), [A, "int64"]),
    "swapped, no config": (
        lambda p: write(p, {A: np.ones((8, 2), "f4"), B: np.ones((2, 8), "f4")}, config=None),
        [B, "swapped"],
    ),
    "a factor twice": (lambda p: write(p, {**pair(), "_orig_mod." + A: pair()[A]}), [A, "two factors"]),
    "an unknown lora tensor": (lambda p: write(p, {**pair(), "q.lora_gate": np.ones(2, "f4")}), ["q.lora_gate"]),
    "no adapter": (lambda p: write(p, {"q.weight": np.ones((2, 2), "f4")}), ["no adapter", "q.weight"]),
    "no tensors": (lambda p: write(p, {}), ["no adapter", "0 tensors"]),
    "config is no JSON": (lambda p: write(p, pair(), config="{'r': 2}"), ["adapter_config.json", "no JSON"]),
    "config is a list": (lambda p: write(p, pair(), config="[1]"), ["adapter_config.json", "list"]),
    "config is binary": (
        lambda p: (write(p, pair()) / "adapter_config.json").write_bytes(b"\xff\xfe"),
        ["adapter_config.json"],
    ),
    "config alone": (lambda p: write(p, None), ["no weights"]),
    "nothing": (lambda p: p.mkdir(exist_ok=True), ["holds no adapter"]),
    "deeper": (lambda p: write(p / "inside", pair()), ["name one of its folders", "inside"]),
    "an unknown type": (lambda p: write(p, pair(), peft_type="LOTUS"), ["peft_type LOTUS", "LORA, MELORA"]),
    "QALoRA": (lambda p: write(p, pair(), use_qalora="yes"), ["use_qalora = 'yes'", "bool"]),
    "BD-LoRA": (lambda p: write(p, pair(), use_bdlora=True), ["use_bdlora", "nblocks"]),
    "AdaLoRA": (lambda p: write(p, {**pair(), "q.lora_E": np.ones((3, 1), "f4")}), ["q.lora_E", "(3, 1)", "(2, 1)"]),
    "experts": (lambda p: write(p, {**pair(), "k.hydralora_A": pair()[A]}), ["k.hydralora_A", "no hydralora_B"]),
    "KaSA": (lambda p: write(p, pair(), kasa_config={"beta": 1}), ["q.lora_A", "no lora_diag"]),
    "Arrow": (lambda p: write(p, pair(), arrow_config={"top_k": 1}), ["arrow_config"]),
    "HydraLoRA": (
        lambda p: write(p, {A: pair()[A], "q.lora_B1.weight": pair()[B], "q.lora_route.weight": np.ones((1, 8), "f4")}),
        ["no lora_B0"],
    ),
    "0 bytes": (lambda p: (write(p, None) / "adapter_model.safetensors").touch(), ["0 bytes"]),
    "a folder for a file": (lambda p: (write(p, None) / "adapter_model.safetensors").mkdir(), ["is a folder"]),
    "git-lfs": (
        lambda p: (write(p, None) / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        ["git lfs pull"],
    ),
    "garbage": (
        lambda p: (write(p, None) / "adapter_model.safetensors").write_bytes(bytes(range(200))),
        ["no complete safetensors file"],
    ),
    "truncated": (lambda p: cut(write(p, pair()) / "adapter_model.safetensors"), ["no complete safetensors file"]),
    "garbage .bin": (
        lambda p: (write(p, None) / "adapter_model.bin").write_bytes(bytes(range(200))),
        ["adapter_model.bin"],
    ),
    "git-lfs .bin": (
        lambda p: (write(p, None) / "adapter_model.bin").write_text("version https://git-lfs.github.com/spec/v1"),
        ["git lfs pull"],
    ),
}  # fmt: skip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("case", BAD)
def test_bad_adapters_are_one_line(tmp_path: Path, case: str) -> None:
    make, expected = BAD[case]
    folder = tmp_path / "broken"
    make(folder)
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    for part in expected:
        assert part in message


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write(tmp_path, pair()) / "adapter_model.safetensors"
    path.chmod(0)
    with pytest.raises(AdapterError, match="Permission denied"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_errors_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    write(tmp_path, pair())
    original = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == "adapter_model.safetensors":
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AdapterError, match=f"adapter_model.safetensors: cannot be opened: {error.strerror}"):
        read_adapter(tmp_path)


def test_a_file_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    adapter = one(write(tmp_path, pair()))
    cut(tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="changed since it was opened"):
        adapter["q"]
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        adapter["q"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("method", "part"), [("lora", "A"), ("lora", "B"), ("bora", "sigma"), ("melora", "B")])
def test_values_that_are_not_finite(tmp_path: Path, method: str, part: str, value: float) -> None:
    made: dict[str, Any] = factors()
    if method == "bora":
        made["sigma"] = np.ones((2, 2, 2), np.float32)
    if method == "melora":
        made = {"A": np.ones((2, 2, 4), np.float32), "B": np.ones((2, 3, 2), np.float32)}
    write_adapter(tmp_path, method, {"layers.0.q": made}, alpha=1)
    path = tmp_path / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name.removesuffix(".weight").endswith(f"_{part}"))
    start = 8 + length + header[name]["data_offsets"][0]
    content[start : start + 4] = np.float32(value).tobytes()
    path.write_bytes(content)
    adapter = one(tmp_path)
    with pytest.raises(AdapterError) as caught:
        adapter["layers.0.q"]
    message = str(caught.value)
    assert str(path) in message
    assert name in message
    assert "NaN or Inf" in message
