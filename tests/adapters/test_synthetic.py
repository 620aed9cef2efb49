"""Synthetic adapters: spectra that are known beforehand, seeds, and files equal to what is in memory."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import numpy as np
import peft_models as models
import pytest
from method_lists import ALONE, BLOCK_METHODS, EXPERT_METHODS, MADE, ON_BASE, STARTED
from safetensors.numpy import load_file, save_file

from bora_analysis import read_adapter, singular_values, synthetic_adapter
from bora_analysis.adapters import Adapter, AdapterError, synthetic
from bora_analysis.adapters.locate import paths_read
from bora_analysis.adapters.synthetic import KINDS, Synthetic, base_bytes, write_synthetic
from bora_analysis.catalogue import METHODS as CATALOGUE
from bora_analysis.catalogue.cost import cost
from bora_analysis.methods.random_base import SPECTRA
from bora_analysis.updates.contract import Blocked

SHAPES = {"layers.0.q_proj": (48, 32), "layers.1.q_proj": (48, 32), "layers.1.v_proj": (16, 32)}


def blocks_of(method):
    return {"gralora": 2, "bdlora-a": 2, "bdlora-b": 2}.get(method, 4 if CATALOGUE[method].blocks else 1)


@pytest.mark.parametrize("method", ALONE)
def test_initialised_adapters_are_zero_updates(method):
    """But for four, which PEFT starts elsewhere."""
    for update in synthetic_adapter(method, SHAPES, 2, blocks_of(method), kind="init").values():
        assert singular_values(update).values.any() == (method in ("c3a", "fourierft", "vblora", "unilora"))


@pytest.mark.parametrize(
    ("method", "scaling"),
    [
        ("lora", 2.0), ("rslora", 2 * np.sqrt(4)), ("melora", 2.0), ("adalora", 2.0), ("bdlora-a", 2.0),
        ("bdlora-b", 2.0), ("delora", 1.0), ("miss", 1.0),
    ],
)  # fmt: skip
def test_decay_is_exact(method, scaling):
    adapter = synthetic_adapter(method, SHAPES, 4, blocks_of(method), kind="decay", scale=0.5, decay=1.5)
    expected = np.repeat(scaling * 0.5 * np.arange(1, 5) ** -1.5, 4 if method == "melora" else 1)
    for update in adapter.values():
        np.testing.assert_allclose(singular_values(update).values, expected, rtol=1e-5)


def test_a_steep_decay_of_many_slots():
    """DeLoRA's slots are then almost one direction."""
    update = synthetic_adapter("delora", {"q": (64, 48)}, 32, kind="decay", scale=0.5, decay=3.0)["q"]
    values = singular_values(update).values
    np.testing.assert_allclose(values[:8], 0.5 * np.arange(1, 9) ** -3.0, rtol=1e-3)  # float32, and sums of 32 terms


def test_decay_of_krona_and_c3a():
    """Each singular value as often as the other factor has ones, or a frequency comes, with its conjugate."""
    krona = synthetic_adapter("krona", {"q": (48, 35)}, 1, kind="decay", scale=0.5)["q"]  # 6·8 and 5·7
    np.testing.assert_allclose(singular_values(krona).values, np.repeat(0.5 / np.arange(1, 8), 5), rtol=1e-5)
    c3a = synthetic_adapter("c3a", {"q": (48, 32)}, 1, 2, kind="decay", scale=0.5)["q"]  # blocks of 8: 6 × 4 of them
    expected = np.repeat(0.5 / np.arange(1, 6), [4, 8, 8, 8, 4])
    np.testing.assert_allclose(singular_values(c3a).values, expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["vera", "vblora", "fourierft", "moelora", "hydralora", "loha", "gralora", "krona"])
def test_decay_falls_faster_than_gaussian(method):
    """Where it is not exact: the share of the energy that the first eighth holds, and the size of the first values."""
    shapes = {"q": (256, 192)}

    def values(kind, scale=0.1):
        return singular_values(
            synthetic_adapter(method, shapes, 8, blocks_of(method), kind=kind, decay=2.0, scale=scale)["q"]
        ).values

    def share(found):
        return float((found[: -(-found.size // 8)] ** 2).sum() / (found**2).sum())

    assert share(values("decay")) > share(values("gaussian")) + 0.15
    scaling = 1.0 if method in ("vera", "vblora", "fourierft", "krona") else 2.0
    for kind in ("decay", "gaussian"):
        assert 0.1 < values(kind)[0] / (scaling * 0.1) < 6
        np.testing.assert_allclose(values(kind, 0.2), 2 * values(kind), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", MADE)
def test_sizes_are_those_of_the_cost_model(method):
    shapes = {"q": (48, 32), "k": (48, 32)}
    b = blocks_of(method)
    for k, facts in enumerate(update.facts for update in synthetic_adapter(method, shapes, 2, b).values()):
        name = "lora" if method == "rslora" else method
        known = cost(
            name,
            48,
            32,
            2,
            blocks=b if name in BLOCK_METHODS else 1,
            experts=b if name in EXPERT_METHODS else None,
        )
        price: Any = CATALOGUE[method].cost
        shared = price.shared if method == "unilora" and k == 0 else 0  # counted once
        assert facts.parameters == shared + known.parameters * (b if method == "relora" else 1)  # all of its stages
        assert facts.rank_bound <= known.rank_bound or method in ("moelora", "relora")


def test_decay_of_bora_is_that_of_its_slots():
    """Orthonormal blocks: σ(ΔW) are the singular values of the S_k, times the slot's scale."""
    adapter = synthetic_adapter("bora", SHAPES, 2, 4, kind="decay", scale=1.0)
    for update in adapter.values():
        assert isinstance(update, Blocked)
        scales = np.arange(1, 3) ** -1.0
        slots = [np.linalg.svd(slot, compute_uv=False) * c for slot, c in zip(update.slots(), scales, strict=True)]
        np.testing.assert_allclose(singular_values(update).values, np.sort(np.concatenate(slots))[::-1], rtol=1e-5)


def test_decay_of_lokr_and_sbora():
    lokr = synthetic_adapter("lokr", {"q": (48, 35)}, 3, kind="decay", scale=0.5)["q"]  # 6·8 and 5·7
    np.testing.assert_allclose(singular_values(lokr).values, np.repeat(0.5 * 2 / np.arange(1, 4), 5), rtol=1e-5)
    for variant, support in (("sbora-fa", (48, 3)), ("sbora-fb", (3, 32))):
        update = synthetic_adapter(variant, SHAPES, 3, kind="decay", scale=0.25)["layers.0.q_proj"]
        np.testing.assert_allclose(singular_values(update).values, 2 * np.sqrt(0.25 / np.arange(1, 4)), rtol=1e-5)
        assert [
            bool(update.to_dense().any(axis=axis).sum() == size) for axis, size in zip((1, 0), support, strict=True)
        ] == [True, True]


def test_gaussian_spectra_are_flat():
    adapter = synthetic_adapter("lora", {"q": (2048, 2048)}, 8, scale=0.3)
    values = singular_values(adapter["q"]).values
    assert values.max() / values.min() < 1.4
    assert values.mean() == pytest.approx(2 * 0.3, rel=0.1)


def test_sigma_is_kaiming_uniform():
    sigma = Synthetic("bora", {"q": (512, 512)}, 8, 16)["q"]["sigma"]
    bound = 1 / np.sqrt(16 * 8)
    assert np.abs(sigma).max() < bound
    assert np.abs(sigma).mean() == pytest.approx(bound / 2, rel=0.05)


def test_a_module_depends_on_the_seed_and_its_own_path_alone():
    one = Synthetic("lora", SHAPES, 2, seed=3)
    alone = Synthetic("lora", {"layers.1.q_proj": (48, 32)}, 2, seed=3)
    np.testing.assert_array_equal(one["layers.1.q_proj"]["B"], alone["layers.1.q_proj"]["B"])
    assert not np.array_equal(one["layers.1.q_proj"]["B"], one["layers.0.q_proj"]["B"])
    other = Synthetic("lora", SHAPES, 2, seed=4)
    assert not np.array_equal(one["layers.0.q_proj"]["B"], other["layers.0.q_proj"]["B"])


@pytest.mark.parametrize("method", MADE)
@pytest.mark.parametrize("kind", KINDS)
def test_file_and_memory_are_the_same(tmp_path, method, kind):
    raw = Synthetic(method, SHAPES, 2, blocks_of(method), kind=kind, seed=5)
    write_synthetic(tmp_path / "adapter", raw)
    read: Any = read_adapter(tmp_path / "adapter")
    memory = synthetic_adapter(method, SHAPES, 2, blocks_of(method), kind=kind, seed=5)
    assert list(read) == [f"lycoris_{name.replace('.', '_')}" if method == "tlora" else name for name in memory]
    for update, expected in zip(read.values(), memory.values(), strict=True):
        assert update.facts == expected.facts
        np.testing.assert_array_equal(update.to_dense(), expected.to_dense())


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.bin", "pytorch_lora_weights.safetensors"])
def test_an_adapter_that_was_not_made_at_random_is_not_replaced(tmp_path, name):
    (tmp_path / name).write_text('{"peft_type": "LORA"}')
    with pytest.raises(AdapterError, match=rf"holds {name}.*--force"):
        write_synthetic(tmp_path, Synthetic("lora", SHAPES, 2))
    assert [file.name for file in tmp_path.iterdir()] == [name]
    write_synthetic(tmp_path, Synthetic("lora", SHAPES, 2), force=True)
    adapter: Any = read_adapter(tmp_path / "adapter_model.safetensors")
    assert adapter.method == "lora"


def test_a_synthetic_adapter_is_replaced_with_what_lay_beside_it(tmp_path):
    """Another one's start or base model would be taken for its own; a run's checkpoint is nobody's to remove."""
    for method in ("pissa", "hira"):
        write_synthetic(tmp_path, Synthetic(method, SHAPES, 2))
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "base"}
    trained = tmp_path / "checkpoint-0"
    trained.mkdir()
    (trained / "adapter_config.json").write_text("{}")
    write_synthetic(tmp_path, Synthetic("lora", SHAPES, 2))
    assert not (tmp_path / "base").exists()
    assert trained.exists()
    write_synthetic(trained, Synthetic("lora", SHAPES, 2), force=True)  # a step of a trajectory, not a start
    write_synthetic(tmp_path, Synthetic("lora", SHAPES, 2))
    assert trained.exists()


@pytest.mark.parametrize("method", [*ON_BASE, *STARTED])
def test_methods_on_a_base_model_start_at_zero_and_move_by_about_the_scale(method):
    shapes = {"q": (96, 64)}
    start = synthetic_adapter(method, shapes, 4, kind="init")["q"].to_dense()
    assert np.abs(start).max() < 1e-7  # float32 factors
    for kind in ("gaussian", "decay"):
        norms = [
            np.linalg.norm(synthetic_adapter(method, shapes, 4, kind=kind, scale=scale)["q"].to_dense(), 2)
            for scale in (0.02, 0.04)
        ]
        assert 0.2 < norms[0] / 0.02 < 10
        assert norms[1] / norms[0] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_the_base_model_has_its_spectrum_and_is_that_of_every_method(spectrum, shape):
    shapes = {"layers.0.q_proj": shape}
    options: dict[str, Any] = {"base_spectrum": spectrum, "base_decay": 0.7, "seed": 3}
    found = [Synthetic(name, shapes, 4, **options)["layers.0.q_proj"]["W0"] for name in ("dora", "hira", "ia3")]
    assert all(np.array_equal(found[0], other) for other in found[1:])
    sigma = np.linalg.svd(found[0].astype(float), compute_uv=False)
    if spectrum == "mp":  # the edges of a 96 × 64 matrix of independent entries
        edges = 0.02 * (np.sqrt(96) + np.sqrt(64)), 0.02 * (np.sqrt(96) - np.sqrt(64))
        np.testing.assert_allclose(sigma[[0, -1]], edges, rtol=0.25)
    else:
        shape_of = np.arange(1, 65) ** (-0.7 if spectrum == "power" else 0.0)
        np.testing.assert_allclose(sigma, shape_of * sigma[0], rtol=1e-4)
    assert np.sqrt((sigma**2).sum() / found[0].size) == pytest.approx(0.02, rel=1e-5 if spectrum != "mp" else 0.05)
    options["seed"] = 4
    other = Synthetic("dora", shapes, 4, **options)["layers.0.q_proj"]["W0"]
    assert not np.array_equal(found[0], other)


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_the_start_is_what_peft_takes_from_the_base_model(method):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    shapes = {"q": (24, 16)}
    W0 = Synthetic("dora", shapes, 3, seed=5)["q"]["W0"]  # that of every method
    model = models.module(q=torch.nn.Linear(16, 24, bias=False))
    model.q.weight.data = torch.from_numpy(W0.copy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=3, lora_alpha=6, init_lora_weights=method, target_modules=["q"])
        layer = peft.get_peft_model(model, config).base_model.model.q
    taken = layer.get_delta_weight("default").detach().numpy()
    parts = Synthetic(method, shapes, 3, seed=5, kind="decay")["q"]
    np.testing.assert_allclose(2 * parts["B0"] @ parts["A0"], taken, atol=1e-6)
    np.testing.assert_allclose(W0 - taken, layer.base_layer.weight.detach().numpy(), atol=1e-6)


def test_relora_is_a_lora_of_all_its_stages(tmp_path):
    raw = Synthetic("relora", SHAPES, 2, 4, alpha=3.0)
    update = read_adapter(write_synthetic(tmp_path, raw))["layers.0.q_proj"]
    assert (update.facts.method, update.facts.r, update.facts.scaling) == ("lora", 8, 1.5)
    parts = raw["layers.0.q_proj"]
    stages = [1.5 * parts["B"][:, k : k + 2] @ parts["A"][k : k + 2] for k in range(0, 8, 2)]
    np.testing.assert_allclose(update.to_dense(), sum(stages), atol=1e-6)
    with pytest.raises(ValueError, match="up to 4 for relora"):
        Synthetic("relora", SHAPES, 5, 4)


def test_what_is_exact_beside_a_base_model():
    """The decay of DEFT, T-LoRA and AdaMSS, OSF's moved values, and the singular values that OFT and HRA leave W0."""
    expected = 0.1 * np.arange(1, 5) ** -1.0
    tlora = synthetic_adapter("tlora", {"q": (48, 32)}, 4, kind="decay")["q"]
    np.testing.assert_allclose(singular_values(tlora).values[:4], 2 * expected, rtol=1e-5)
    adamss = synthetic_adapter("adamss", {"q": (48, 32)}, 6, kind="decay")["q"]  # five clusters
    np.testing.assert_allclose(singular_values(adamss).values, 0.1 / np.arange(1, 6), rtol=1e-5)
    deft = synthetic_adapter("deft", {"q": (48, 32)}, 4, kind="decay")["q"]
    np.testing.assert_allclose(singular_values(deft).values, expected, rtol=1e-4)
    osf = synthetic_adapter("osf", {"q": (48, 8)}, 1, kind="decay")["q"]
    np.testing.assert_allclose(singular_values(osf).values[:4], expected, rtol=1e-4)
    for method in ("oft", "hra"):
        W0 = Synthetic(method, SHAPES, 4)["layers.0.q_proj"]["W0"].astype(float)
        turned = W0 + synthetic_adapter(method, SHAPES, 4)["layers.0.q_proj"].to_dense()
        np.testing.assert_allclose(np.linalg.svd(turned)[1], np.linalg.svd(W0)[1], rtol=1e-6)
        assert not np.allclose(turned, W0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_t_lora_is_its_formula_in_the_file_of_lycoris(tmp_path, kind):
    """ΔW = α/r (P diag(λ) Q − U_r S_r V_rᵀ), dense, from the file's own tensors; LyCORIS wants α beside each module."""
    folder = write_synthetic(tmp_path, Synthetic("tlora", SHAPES, 3, alpha=4.0, kind=kind))
    tensors = {key: value.astype(float) for key, value in load_file(folder / "adapter_model.safetensors").items()}
    base, read = load_file(folder / "base" / "model.safetensors"), read_adapter(folder)
    parts = ("alpha", "lambda_layer", "p_layer.weight", "q_layer.weight")
    names = {f"lycoris_{module.replace('.', '_')}": module for module in SHAPES}
    assert set(tensors) == {f"{name}.{part}" for name in names for part in parts}
    for name, module in names.items():
        alpha, weights, P, Q = (tensors[f"{name}.{part}"] for part in parts)
        U, s, Vh = np.linalg.svd(base[f"{module}.weight"].astype(float))
        expected = alpha / 3 * (P @ np.diag(weights[0]) @ Q - U[:, :3] @ np.diag(s[:3]) @ Vh[:3])
        np.testing.assert_allclose(read[name].to_dense(), expected, rtol=0, atol=1e-14)
    assert "peft_type" not in json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def test_the_clusters_of_a_half_precision_file_are_those_of_its_base_model(tmp_path):
    """AdaMSS's file does not have them: rounding the base model would move rows from one to another."""
    shapes = {"q": (512, 64)}
    folder = write_synthetic(tmp_path, Synthetic("adamss", shapes, 8), dtype="bfloat16")
    exact = synthetic_adapter("adamss", shapes, 8)["q"].to_dense()
    assert np.abs(read_adapter(folder)["q"].to_dense() - exact).max() < 0.02 * np.abs(exact).max()
    assert (folder / "base" / "model.safetensors").stat().st_size > 4 * 512 * 64


def test_the_base_model_beside_an_adapter_is_found_there_alone(tmp_path):
    """By a name below the folder, and never by a link that leads out."""
    folder = write_synthetic(tmp_path / "a", Synthetic("hira", SHAPES, 2))
    assert folder / "base" / "model.safetensors" in paths_read(folder)
    config = folder / "adapter_config.json"
    told = json.loads(config.read_text(encoding="utf-8"))
    assert told["base_model_name_or_path"] == "./base"
    (folder / "out").symlink_to(write_synthetic(tmp_path / "b", Synthetic("hira", SHAPES, 2)) / "base")
    for name in ("base", "./other", "./../b/base", str(folder / "base"), "./out", None):
        config.write_text(json.dumps(told | {"base_model_name_or_path": name}), encoding="utf-8")
        with pytest.raises(AdapterError, match="HiRA needs the base model: --base"):
            read_adapter(folder)
        read_adapter(folder, base=folder / "base")


def test_a_large_base_model_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "LARGE", 1000)
    raw = Synthetic("ia3", SHAPES, 1)
    with pytest.raises(ValueError, match=r"of 3 layers would be 0.0 GB in float32; .*--large-base"):
        write_synthetic(tmp_path, raw)
    assert not any(tmp_path.iterdir())
    write_synthetic(tmp_path, raw, large_base=True)
    assert base_bytes(raw) == 4 * (48 * 32 * 2 + 16 * 32)
    assert base_bytes(Synthetic("lora", SHAPES, 1)) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files(tmp_path, dtype):
    raw = Synthetic("bora", SHAPES, 2, 4, kind="decay", scale=1.0)
    write_synthetic(tmp_path / "adapter", raw, dtype=dtype)
    update = read_adapter(tmp_path / "adapter")["layers.0.q_proj"]
    exact = synthetic_adapter("bora", SHAPES, 2, 4, kind="decay", scale=1.0)["layers.0.q_proj"].to_dense()
    assert update.facts.dtype == dtype
    rounding = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert 0 < np.abs(update.to_dense() - exact).max() <= 8 * rounding * np.abs(exact).max()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("full", SHAPES, 2), ["full", "lora, rslora, melora, bora"]),
        (("frod", {"a.0.q": (8, 6), "a.1.q": (8, 5)}, 1), ["a.0.q and a.1.q have 6 and 5 inputs", "one kind"]),
        (("tlora", SHAPES, 2, 1, None, "decay", 0, 0.1, 1.0, "flat"), ["tlora", "not flat"]),
        (("hra", SHAPES, 33), ["hra", "up to 32", "r = 33"]),
        (("oft", {"q": (4, 7), "v": (4, 5)}, 2), ["4×7 has no r for oft"]),
        (("road", {"q": (5, 4)}, 1), ["5×4 has no r for road"]),
        (("osf", SHAPES, 2, 1, None, "decay", 0, 0.1, 1.0, "flat"), ["osf", "not flat"]),
        (("dora", SHAPES, 2, 1, None, "decay", 0, 0.1, 1.0, "steep"), ["'steep'", "mp, flat, power"]),
        (("gralora", SHAPES, 3, 2), ["r = 3", "multiple of 2"]),
        (("lokr", SHAPES, 9), ["lokr", "up to 3", "r = 9"]),
        (("vblora", SHAPES, 9), ["vblora", "up to 8", "r = 9"]),
        (("vblora", {"q": (48, 35)}, 1), ["48×35 has no r for vblora", "common divisors"]),
        (("bdlora-a", SHAPES, 3, 2), ["r = 3", "multiple of 2"]),
        (("vera", SHAPES, 3, 1, 8.0), ["vera has no α", "8"]),
        (("sbora-fa", SHAPES, 33), ["up to 32", "r = 33"]),
        (("lora", SHAPES, 2, 4), ["one block", "4"]),
        (("bora", SHAPES, 2, 5), ["layers.0.q_proj", "b = 5", "1, 2, 4, 8, 16"]),
        (("lora", SHAPES, 0), ["r = 0"]),
        (("lora", {}, 2), ["0 modules"]),
        (("lora", SHAPES, 2, 1, None, "flat"), ["flat", "init, gaussian, decay"]),
    ],
)
def test_what_does_not_fit_is_said(arguments, parts):
    with pytest.raises(ValueError, match=r"expected|block|divide") as caught:
        Synthetic(*arguments)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("method", "part"),
    [("vera", "vera_A"), ("vera", "lambda_d"), ("vblora", "vector_bank"), ("vblora", "logits_B"), ("c3a", "kernel"),
     ("delora", "delora_A"), ("delora", "delora_lambda"), ("delora", "w_norm"), ("miss", "miss_block"),
     ("fourierft", "spectrum"), ("krona", "lokr_w2")],
)  # fmt: skip
def test_nan_is_told_of_its_key(tmp_path, method, part):
    folder = write_synthetic(tmp_path, Synthetic(method, SHAPES, 2, blocks_of(method)))
    tensors = load_file(folder / "adapter_model.safetensors")
    key = next(key for key in tensors if part in key)
    tensors[key].flat[0] = np.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    adapter = read_adapter(folder)
    assert isinstance(adapter, Adapter)
    with pytest.raises(AdapterError, match=rf"{re.escape(key)}\b.* holds NaN or Inf"):
        list(adapter.values())
