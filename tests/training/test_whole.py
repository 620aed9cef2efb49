"""``train --method full`` against the models themselves, and ``train --ranks``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from training_models import reviews, save_decoder, save_encoder

from bora_analysis import capture, layer_metrics, read_adapter, recommend
from bora_analysis.adapters import checkpoints
from bora_analysis.cli import main
from bora_analysis.training import Settings, TrainingError, train


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    save_encoder(folder / "encoder")
    save_decoder(folder / "decoder")
    save_decoder(folder / "gpt2", "gpt2")
    reviews().to_csv(folder / "reviews.csv", index=False)
    reviews().rename(columns={"sentence": "text"}).to_json(folder / "texts.jsonl", orient="records", lines=True)
    return folder


def last_model() -> tuple[Any, dict[str, Any]]:
    """A callback that keeps the trained model, and where it keeps it."""
    from transformers import TrainerCallback

    kept: dict[str, Any] = {}

    class Keep(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            kept["before"] = {key: value.detach().clone() for key, value in model.state_dict().items()}

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            kept["after"] = model.state_dict()

    return Keep(), kept


@pytest.mark.parametrize(
    ("model", "changes", "trained"),
    [
        ("encoder", {"label": "label"}, "self.{query,value}.weight classifier.weight classifier.bias"),
        ("decoder", {"task": "causal-lm", "dtype": "bfloat16"}, "self_attn.{q_proj,v_proj}.weight"),
        ("gpt2", {"task": "causal-lm", "target": "c_attn", "gradient_checkpointing": True}, "attn.c_attn.weight"),
    ],
)
def test_what_is_saved_is_the_difference_of_the_models(home, tmp_path, model, changes, trained):
    """To half of float16's spacing; nothing but the named matrices and the head has moved."""
    data = "texts.jsonl" if "task" in changes else "reviews.csv"
    told = Settings(
        **({"target": "QV"} | changes), model=str(home / model), data=str(home / data), method="full", steps=8,
        batch_size=8, learning_rate=1e-3, checkpoints=(0, 4),
    )  # fmt: skip
    keep, kept = last_model()
    record = train(told, tmp_path / "run", device="cpu", callbacks=(keep,))
    before, after = ({key: kept[when][key].double().numpy() for key in kept[when]} for when in ("before", "after"))
    moved = {key for key in after if not np.array_equal(before[key], after[key])}
    ends = [
        word.replace(word[word.find("{") : word.find("}") + 1], name) if "{" in word else word
        for word in trained.split() for name in word[word.find("{") + 1 : word.find("}")].split(",")
    ]  # fmt: skip
    assert moved
    assert moved == {key for key in after if key.endswith(tuple(ends))} - {"lm_head.weight"}
    (adapter,) = checkpoints(read_adapter(tmp_path / "run"))
    assert adapter.method == "full"
    assert {f"{module}.weight" for module in adapter} == {key for key in moved if "classifier" not in key}
    errors, energies = 0.0, 0.0
    for module, update in adapter.items():
        change = after[f"{module}.weight"] - before[f"{module}.weight"]
        change = change.T if model == "gpt2" else change
        assert update.to_dense().shape == change.shape
        np.testing.assert_allclose(update.to_dense(), change, rtol=2.0**-11, atol=2.0**-25)
        errors, energies = errors + ((update.to_dense() - change) ** 2).sum(), energies + (change**2).sum()
    assert record["rounding"] == pytest.approx((errors / energies) ** 0.5, rel=1e-6)
    assert 0 < record["rounding"] < 2.0**-10
    assert record["parameters"]["adapter"] == sum(update.facts.parameters for update in adapter.values())
    heads = {
        key: value for key, value in load_file(tmp_path / "run/adapter_model.safetensors").items() if "diff" not in key
    }
    assert heads.keys() == {f"base_model.model.{key}" for key in moved if "classifier" in key}
    for key, value in heads.items():
        np.testing.assert_array_equal(value, after[key.removeprefix("base_model.model.")])
    files = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "run.json"}
    first = layer_metrics(tmp_path / "run/checkpoint-0")
    assert (first["energy"] == 0).all()


def test_the_change_is_a_target_of_capture(home, tmp_path):
    told = Settings(str(home / "encoder"), str(home / "reviews.csv"), label="label", method="full", steps=8,
                    batch_size=8, learning_rate=1e-3, checkpoints=())  # fmt: skip
    train(told, tmp_path / "run", device="cpu")
    found = capture(tmp_path / "run", [("lora", 4)])
    for row, update in zip(found.itertuples(), read_adapter(tmp_path / "run").values(), strict=True):  # pyright: ignore[reportAttributeAccessIssue]
        squares = np.linalg.svd(update.to_dense(), compute_uv=False) ** 2
        assert row.captured == pytest.approx(squares[:4].sum() / squares.sum(), abs=1e-9)


def test_a_run_that_diverges_is_told_so(home, tmp_path):
    told = Settings(str(home / "encoder"), str(home / "reviews.csv"), label="label", method="full", steps=8,
                    batch_size=8, learning_rate=1e5)  # fmt: skip
    with pytest.raises(TrainingError, match="lower learning_rate") as caught:
        train(told, tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)


# --- Ranks by module, as recommend advises them


@pytest.mark.parametrize(
    ("method", "more", "blocks"),
    [
        ("lora", {}, 1),
        ("lora", {"use_rslora": True}, 1),
        ("bora", {"num_blocks": 4}, 4),
        ("bora", {"num_blocks": 5, "pad": True}, 5),
        ("melora", {"num_minis": 2}, 2),
    ],
)
def test_ranks_by_module_are_trained(home, tmp_path, method, more, blocks):
    one = r"layer\.1\.attention\.self\.query"
    told = {"r": 3, "lora_alpha": 6, "rank_pattern": {one: 1}, "alpha_pattern": {one: 5}} | more
    words = ["train", "--model", str(home / "encoder"), "--data", str(home / "reviews.csv"), "--label", "label"]
    run = CliRunner().invoke(
        main, [*words, "--method", method, "--steps", "2", "--checkpoints", "none", "--ranks", "-", "--device", "cpu",
               "-o", str(tmp_path / "run")], input=json.dumps(told),
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    (adapter,) = checkpoints(read_adapter(tmp_path / "run"))
    for module, update in adapter.items():
        r, alpha = (1, 5) if module.endswith("layer.1.attention.self.query") else (3, 6)
        facts = update.facts
        assert (facts.r, facts.blocks) == (r, blocks)
        assert facts.scaling == pytest.approx(alpha / (r**0.5 if more.get("use_rslora") else r))


def test_what_recommend_prints_can_be_trained(home, tmp_path):
    words = ["train", "--model", str(home / "encoder"), "--data", str(home / "reviews.csv"), "--label", "label",
             "--method", "lora", "--learning-rate", "0.02", "--checkpoints", "none", "--device", "cpu"]  # fmt: skip
    run = CliRunner().invoke(main, [*words, "-r", "6", "--steps", "30", "-o", str(tmp_path / "first")])
    assert run.exit_code == 0, run.output
    advice = CliRunner().invoke(main, ["recommend", "--pattern", "--energy", "0.9", str(tmp_path / "first")])
    (tmp_path / "advice.json").write_text(advice.stdout)
    second = [*words, "--steps", "2", "--ranks", str(tmp_path / "advice.json"), "-o", str(tmp_path / "second")]
    run = CliRunner().invoke(main, second)
    assert run.exit_code == 0, run.output
    ranks = recommend(tmp_path / "first", energy=0.9).ranks
    (before,), (after,) = (checkpoints(read_adapter(tmp_path / name)) for name in ("first", "second"))
    assert len(set(ranks.values())) > 1
    assert {module: update.facts.r for module, update in after.items()} == ranks
    for module, update in after.items():
        assert update.facts.scaling == pytest.approx(before[module].facts.scaling)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a file"),
        ("{", "is no JSON"),
        ("[1]", "holds list; expected r and some of"),
        ('{"lora_alpha": 4}', "holds lora_alpha; expected r and some of"),
        ('{"r": 4, "target_modules": ["q"]}', "holds r, target_modules; expected"),
        ('{"r": 4, "rank_pattern": 3}', "rank_pattern is 3; expected patterns"),
        ('{"r": 4, "num_blocks": {"q": 2}}', "expected one number for all modules"),
        ('{"r": true}', "r is True; expected a whole number"),
        ('{"r": 4, "rank_pattern": {"query": 0}}', "rank_pattern of query is 0; expected a whole number from 1 on"),
        ('{"r": "4"}', "r is '4'; expected a whole number"),
    ],
)
def test_ranks_that_cannot_be_used_are_one_line(home, tmp_path, content, message):
    path = tmp_path / "ranks.json"
    if content is not None:
        path.write_text(content)
    words = ["train", "--model", str(home / "encoder"), "--data", str(home / "reviews.csv"), "--label", "label"]
    run = CliRunner().invoke(main, [*words, "--ranks", str(path), "-o", str(tmp_path / "run")])
    assert run.exit_code in (1, 2)
    assert message in run.stderr
    assert "Traceback" not in run.output
    assert not (tmp_path / "run").exists()


def test_ranks_and_r_exclude_each_other(home, tmp_path):
    path = tmp_path / "ranks.json"
    path.write_text(json.dumps({"r": 4}))
    run = CliRunner().invoke(main, ["train", "--model", "m", "--data", "d", "-r", "2", "--ranks", str(path), "-o", "x"])
    assert run.exit_code == 2
    assert "got --ranks and --r; expected one of them" in run.stderr
