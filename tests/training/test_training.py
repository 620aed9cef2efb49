"""``bora-analysis train``: every method and task, going on after a kill, the record, recipes, bad data."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from screens import on_screen, too_wide
from training_models import reviews, save_decoder, save_encoder

from bora_analysis import read_adapter
from bora_analysis.adapters import checkpoints
from bora_analysis.cli import main
from bora_analysis.training import RECIPES, Settings, TrainingError, train
from bora_analysis.training.data import load_data
from bora_analysis.training.scoring import matthews, pearson, scorer, token_losses

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    save_encoder(folder / "encoder")
    save_decoder(folder / "decoder")
    save_decoder(folder / "gpt2", "gpt2")
    reviews().to_csv(folder / "reviews.csv", index=False)
    reviews().rename(columns={"sentence": "text"}).to_json(folder / "texts.jsonl", orient="records", lines=True)
    return folder


def settings(home: Path, **changes: Any) -> Settings:
    defaults: dict[str, Any] = {
        "model": str(home / "encoder"), "data": str(home / "reviews.csv"), "r": 2, "batch_size": 8, "steps": 6,
        "learning_rate": 5e-3, "log_every": 2, "target": "QV", "label": "label",
    }  # fmt: skip
    method = changes.get("method", "bora")
    if method in ("bora", "melora"):
        defaults["blocks"] = 4
    if method == "full":
        defaults.pop("r")
        changes.pop("r", None)
        changes.pop("dropout", None)
    return Settings(**(defaults | changes))


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


#: Ours, and PEFT's LoRA. tests/training/test_methods.py goes through all methods, in few steps.
LEARNERS = ("lora", "dora", "melora", "bora", "hydralora", "moelora", "sbora-fa", "sbora-fb", "relora", "full")


@pytest.mark.parametrize("method", LEARNERS)
def test_every_method_learns_and_is_recorded(home, tmp_path, method):
    told = settings(
        home, method=method, r=4, steps=40, batch_size=16, learning_rate=1e-2, checkpoints=(0, 5), validation_share=0.3
    )
    lines: list[str] = []
    record = train(told, tmp_path / "run", device="cpu", report=lines.append)
    assert record == json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "finished"
    assert record["metric"]["accuracy"] > 0.75  # half is chance
    assert record["settings"] == told.as_record()
    assert {"peft", "transformers", "torch"} <= record["versions"].keys()
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert len(losses) == 21
    assert losses[-1] < losses[0]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *FILES[:2], "checkpoint-0", "checkpoint-40", "checkpoint-5", "run.json",
    ]  # fmt: skip
    for step in (0, 5, 40):
        assert sorted(path.name for path in (tmp_path / f"run/checkpoint-{step}").iterdir()) == sorted(FILES)
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "run/checkpoint-40"))
    assert record["parameters"]["adapter"] == sum(
        value.size for key, value in weights(tmp_path / "run").items()
        if "classifier" not in key and not key.endswith(("sbora_index", "sbora_size"))
    )  # fmt: skip
    assert lines[0].startswith(f"{method}, {record['parameters']['adapter']:,} parameters, 84 examples, 40 steps")
    assert "accuracy" in lines[-2]


@pytest.mark.parametrize("method", ["lora", "melora", "bora", "sbora-fa", "sbora-fb"])
def test_trained_adapters_are_read_and_start_at_zero(home, tmp_path, method):
    train(settings(home, method=method, checkpoints=(0,)), tmp_path / "run", device="cpu")
    start, end = (read_adapter(tmp_path / f"run/checkpoint-{step}") for step in (0, 6))
    for adapter in (*checkpoints(start), *checkpoints(end)):
        assert list(adapter) == [
            f"{'bert.' if 'bert' in module else ''}encoder.layer.{i}.attention.self.{name}"
            for i in range(2) for name in ("query", "value") for module in ["bert"]
        ]  # fmt: skip
    for module in checkpoints(end)[0]:
        assert not checkpoints(start)[0][module].to_dense().any()
        assert checkpoints(end)[0][module].to_dense().any()


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("regression", {"label": "rating"}),
        ("causal-lm", {"model": "decoder", "data": "texts.jsonl", "target": "qkv"}),
        ("causal-lm", {"model": "gpt2", "data": "texts.jsonl", "target": "c_attn", "gradient_checkpointing": True}),
        ("causal-lm", {"model": "decoder", "data": "texts.jsonl", "dtype": "bfloat16", "accumulate": 2}),
        ("classification", {"metric": "matthews", "group_by_length": True, "rslora": True, "target": "query,dense"}),
    ],
)
def test_other_tasks_learn(home, tmp_path, task, changes):
    changes = {key: str(home / value) if key in ("model", "data") else value for key, value in changes.items()}
    told = settings(home, task=task, steps=30, learning_rate=1e-2, evaluate_every=1, r=4, **changes)
    record = train(told, tmp_path / "run", device="cpu")
    scores = [entry[told.scored_by] for entry in record["history"] if told.scored_by in entry]
    assert len(scores) == told.steps
    if task == "causal-lm":
        # A frozen random model with a frozen head can be moved only so far.
        assert scores[-1] < 0.9 * scores[0]
        held_out = [entry["held_out_loss"] for entry in record["history"] if "held_out_loss" in entry]
        assert math.log(scores[-1]) == pytest.approx(held_out[-1])
        if told.dtype == "float32":
            assert held_out[-1] == pytest.approx(token_loss(told, tmp_path / "run"), rel=1e-5)
    else:
        assert scores[-1] > 0.7


def token_loss(told: Settings, folder: Path) -> float:
    """Mean loss of the held-out tokens, one sequence at a time, without the Trainer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(told.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for an attribute by its old name
        model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(told.model), folder).eval()
    total, tokens = 0.0, 0
    for example in load_data(told).held_out:
        ids = torch.tensor([[*tokenizer(example.texts[0])["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return total / tokens


class Kill(Exception):
    pass


def killer(step: int) -> Any:
    from transformers import TrainerCallback

    class Killer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise Kill

    return Killer()


@pytest.mark.parametrize("method", ["bora", "full"])  # test_methods.py resumes all methods, without what is told here
def test_going_on_after_a_kill_changes_nothing(home, tmp_path, method):
    told = settings(
        home, method=method, steps=None, epochs=2.0, checkpoints=(0, 4, 9), resume_every=5, group_by_length=True,
        dropout=0.2, evaluate_every=7,
    )  # fmt: skip
    whole = train(told, tmp_path / "whole", device="cpu")
    assert whole["steps"] == 27
    with pytest.raises(Kill):
        train(told, tmp_path / "broken", device="cpu", callbacks=(killer(17),))
    # Killed again while it wrote a checkpoint: the state is torn.
    torn = tmp_path / "broken/checkpoint-16"
    shutil.copytree(tmp_path / "broken/checkpoint-15", torn)
    (torn / "trainer_state.json").write_text("{")
    with pytest.raises(TrainingError, match="continue it with --resume"):
        train(told, tmp_path / "broken", device="cpu")
    with pytest.raises(TrainingError, match=r"learning_rate was 0\.005 and is 0\.1"):
        train(replace(told, learning_rate=0.1), tmp_path / "broken", device="cpu", resume=True)
    lines: list[str] = []
    again = train(told, tmp_path / "broken", device="cpu", resume=True, report=lines.append)
    assert lines[0].endswith("27 steps, continuing from checkpoint-15")
    for place in ("", "checkpoint-0", "checkpoint-4", "checkpoint-9", "checkpoint-27"):
        assert_same(weights(tmp_path / "whole" / place), weights(tmp_path / "broken" / place))
    assert not torn.exists()

    def steps(record: dict[str, Any]) -> list[dict[str, Any]]:
        return [entry for entry in record["history"] if "train_loss" not in entry]

    assert steps(again) == steps(whole)
    assert again["metric"] == whole["metric"]
    with pytest.raises(TrainingError, match="holds a finished run"):
        train(told, tmp_path / "broken", device="cpu", resume=True)


def test_a_kill_before_the_first_checkpoint(home, tmp_path):
    told = settings(home, checkpoints=(), method="lora")
    with pytest.raises(Kill):
        train(told, tmp_path / "run", device="cpu", callbacks=(killer(2),))
    train(told, tmp_path / "run", device="cpu", resume=True)
    train(told, tmp_path / "whole", device="cpu")
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_the_same_seed_gives_the_same_adapter_and_another_does_not(home, tmp_path):
    first, second, third = (
        train(settings(home, seed=seed), tmp_path / str(i), device="cpu") for i, seed in enumerate((3, 3, 4))
    )
    assert_same(weights(tmp_path / "0"), weights(tmp_path / "1"))
    assert first["history"] == second["history"] != third["history"]


def test_the_held_out_part_does_not_depend_on_the_seed(home):
    told = settings(home, validation_share=0.2)
    data, other = load_data(told), load_data(replace(told, seed=7))
    assert data == other
    assert (len(data.train), len(data.held_out)) == (96, 24)
    assert data.classes == ("negative", "positive")
    assert load_data(replace(told, split_seed=1)).held_out != data.held_out
    everything = sorted(example.texts for example in data.train + data.held_out)
    assert everything == sorted((text,) for text in reviews().sentence)
    assert len(load_data(replace(told, limit=30)).train) == 24


@pytest.mark.parametrize("steps", [1, 5, 40, 400, 12345])
def test_kept_steps_are_dense_early(steps):
    kept = Settings("m", "d").kept_steps(steps)
    assert kept[0] == 0
    assert kept[-1] == steps
    assert list(kept) == sorted(set(kept))
    if steps >= 40:
        assert len(kept) == 10
        assert kept[1] - kept[0] < kept[-1] - kept[-2]


def glue_folder(folder: Path, recipe: str) -> Path:
    """Local files with the columns of the recipe's data set."""
    folder.mkdir()
    frame = reviews(40)
    task = recipe.split("-")[1]
    columns = {
        "rte": ("sentence1", "sentence2"), "mrpc": ("sentence1", "sentence2"), "stsb": ("sentence1", "sentence2"),
        "cola": ("sentence",), "sst2": ("sentence",), "qnli": ("question", "sentence"),
        "mnli": ("premise", "hypothesis"), "qqp": ("question1", "question2"),
    }[task]  # fmt: skip
    label = frame.rating if task == "stsb" else (frame.label == "positive").astype(int)
    if task == "mnli":
        label = pd.Series(np.arange(len(frame)) % 3)
    table = pd.DataFrame(dict.fromkeys(columns, frame.sentence) | {"label": label, "idx": range(len(frame))})
    table[:30].to_parquet(folder / "train-00000-of-00001.parquet")
    names = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
    for i, name in enumerate(names):
        table[30 + 5 * i : 40 if len(names) == 1 else 35 + 5 * i].to_parquet(folder / f"{name}-00000-of-00001.parquet")
    table.assign(label=-1).to_parquet(folder / "test-00000-of-00001.parquet")  # GLUE's test labels are hidden
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_a_step(home, tmp_path, recipe):
    if recipe.startswith("glue"):
        model, data = home / "encoder", glue_folder(tmp_path / "data", recipe)
    else:
        model, data = home / "decoder", tmp_path / "math_10k.json"
        rows = [{"instruction": f"is it {word}", "input": "", "output": "very good", "answer": 1} for word in "abcdef"]
        data.write_text(json.dumps(rows))
    told = Settings(**(RECIPES[recipe] | {"model": str(model), "data": str(data), "steps": 1, "batch_size": 4}))
    record = train(replace(told, validation_share=0.2), tmp_path / "run", device="cpu")
    assert record["status"] == "finished"
    held_out = 10 if recipe.startswith("glue") else 1
    assert record["examples"]["held_out"] == held_out
    assert read_adapter(tmp_path / "run/checkpoint-1").method == "bora"  # pyright: ignore[reportAttributeAccessIssue]


def test_recipes_are_appendix_b():
    assert len(RECIPES) == 8 * 2 + 2 * 3
    rte, large = Settings(**RECIPES["glue-rte"]), Settings(**RECIPES["glue-rte-large"])
    assert (rte.learning_rate, large.learning_rate) == (3e-4, 1e-4)
    assert (rte.epochs, rte.batch_size, rte.warmup, rte.max_length, rte.lora_alpha) == (10, 32, 0.03, 512, 16)
    assert Settings(**RECIPES["glue-cola"]).scored_by == "matthews"
    assert Settings(**RECIPES["glue-stsb"]).scored_by == "pearson"
    math10k = Settings(**RECIPES["math10k-llama-3-8b"])
    assert (math10k.learning_rate, math10k.warmup_steps(625), math10k.target) == (1e-4, 100, "QKV")
    assert (math10k.batch_size, math10k.max_length, math10k.dtype) == (16, 256, "bfloat16")


def test_an_instruction_is_alpacas_prompt(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
        {"instruction": "Greet.", "output": "Ho"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = load_data(Settings("m", str(tmp_path / "rows.json"), task="causal-lm", target="qv", validation_share=0.3))
    texts = {example.texts[0] for example in data.train + data.held_out}
    assert (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 1\n\n"
        "### Response:\n2"
    ) in texts
    assert (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nGreet.\n\n### Response:\nHo"
    ) in texts


def bad_data(folder: Path) -> dict[str, tuple[bytes | None, dict[str, Any], str]]:
    """Name of a file → its content, changed settings, the message."""
    good = b"sentence,label\nfine,1\nbad,0\nfine,1\nbad,0\n"
    return {
        "missing.csv": (None, {}, "no such file or folder"),
        "empty.csv": (b"", {}, "is empty; expected a table with a row of column names"),
        "header.csv": (b"sentence,label\n", {}, "has no rows"),
        "one.csv": (b"sentence,label\na,1\nb,1\n", {}, r"has one class \(1\)"),
        "labels.csv": (b"sentence,label\na,1\nb,\nc,0\n", {}, "column label is empty in 1 rows, row 1 the first"),
        "column.csv": (good, {"text": ("review",)}, "has no column review; its columns are sentence, label"),
        "unnamed.csv": (b"a,b\n1,2\n2,3\n", {"label": None}, "which one is the text"),
        "unlabelled.csv": (b"sentence,b\nx,2\ny,3\n", {"label": None}, "which one is the label"),
        "latin.csv": ("sentence,label\ncafé,1\nbad,0\n".encode("latin-1"), {}, r"is not utf-8 \(byte \d+: 0xe9\)"),
        "code.csv": (good, {"encoding": "utf-99"}, "encoding 'utf-99' is unknown"),
        "words.csv": (good.replace(b",1", b",high"), {"task": "regression"}, "holds 'high' in row 0"),
        "flat.csv": (good.replace(b",0", b",1"), {"task": "regression"}, "is 1.0 in every row"),
        "blank.csv": (b'sentence,label\n"",1\n" ",0\n', {}, "column sentence is empty in every row"),
        "single.csv": (b"sentence,label\na,1\n", {"task": "regression"}, "1.0 in every row"),
        "broken.json": (b'[{"sentence": ', {}, "cannot be read"),
        "table.xlsx": (b"PK", {}, "not a table that can be read"),
        "many.csv": (
            b"sentence,label\n" + b"".join(b"x,%d\n" % i for i in range(150)), {}, "has 150 different values",
        ),
        "new.csv": (good, {"validation": b"sentence,label\nx,7\n"}, "class 7 is not among the training classes 0, 1"),
        "nothing/other.csv": (good, {"data": str(folder / "nothing")}, "no file whose name begins with train"),
        "no/where": (None, {"data": "no-such-org/no-such-data"}, "Hub did not provide it"),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_data(Path()))
def test_bad_data_is_one_line_before_any_training(home, tmp_path, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    content, changes, message = bad_data(tmp_path)[name]
    changes = dict(changes)
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    if "validation" in changes:
        (tmp_path / "second.csv").write_bytes(changes["validation"])
        changes["validation"] = str(tmp_path / "second.csv")
    with pytest.raises(TrainingError, match=message) as caught:
        train(settings(home, **({"data": str(path)} | changes)), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method is 'magic'; expected one of lora"),
        ({"r": 0}, "r is 0; expected at least 1"),
        ({"metric": "pearson"}, "metric is 'pearson'; expected one of accuracy, matthews"),
        ({"blocks": 5}, "blocks is 5: .*5 does not divide .*; or pad .* --set pad=true"),
        ({"blocks": 5, "method": "melora"}, "blocks is 5: .*5 does not divide .* may be [0-9, ]*$"),
        ({"method": "lora", "blocks": 4}, "lora has no blocks"),
        ({"target": "G"}, "the model has no projection gate; it has"),
        ({"target": "q_proj"}, "target names q_proj, which the model lacks"),
        ({"model": "nowhere"}, "nowhere: AutoTokenizer cannot load it"),
        ({"model": "./no/where"}, "./no/where: no such folder"),
        ({"validation_share": 1.0}, "expected a share between 0 and 1"),
        ({"dropout": 1.0}, "expected a probability below 1"),
    ],
)
def test_wrong_settings_are_one_line(home, tmp_path, changes, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TrainingError, match=message) as caught:
        train(settings(home, **changes), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_fused_projection_is_named(home, tmp_path):
    told = settings(home, model=str(home / "gpt2"), data=str(home / "texts.jsonl"), task="causal-lm")
    with pytest.raises(TrainingError, match="fuses q, k and v: --target c_attn"):
        train(told, tmp_path / "run", device="cpu")


def test_a_folder_in_use_is_left_alone(home, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="exists but is not a training run"):
        train(settings(home), tmp_path, device="cpu")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(TrainingError, match="not a record of a run"):
        train(settings(home), tmp_path, device="cpu", resume=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_command(home, tmp_path):
    common = ["train", "--model", str(home / "encoder"), "--data", str(home / "reviews.csv"), "--device", "cpu"]
    run = CliRunner().invoke(
        main, [*common, "--method", "sbora-fa", "-r", "2", "--steps", "3", "--checkpoints", "none", "--model-name",
               "me/toy", "-o", str(tmp_path / "run")],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert run.stdout.startswith("accuracy 0.")
    assert "on 12 held-out examples" in run.stdout
    assert "step 3/3" in run.stderr
    deep = "/".join(["a-folder-with-a-name-that-is-rather-long"] * 3)
    short = [*common, "-r", "2", "--steps", "2", "--checkpoints", "none", "-o", tmp_path / deep]
    code, out, err = on_screen("train", *short[1:])
    assert (code, too_wide(err, 80)) == (0, [])
    assert str(tmp_path / deep) in out  # a result, on a line of its own
    config = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/toy"
    again = CliRunner().invoke(main, [*common, "-o", str(tmp_path / "run")])
    assert again.exit_code == 1
    assert again.stderr.startswith("error: ")
    assert len(again.stderr.splitlines()) == 1
    # A recipe's settings, one of them changed: the method, and with it the blocks.
    recipe = ["train", "--recipe", "glue-sst2", "--model", str(home / "encoder"), "--data", str(home / "reviews.csv")]
    run = CliRunner().invoke(main, [*recipe, "--method", "lora", "--steps", "1", "-o", str(tmp_path / "recipe")])
    assert run.exit_code == 0, run.output
    told = json.loads((tmp_path / "recipe/run.json").read_text())["settings"]
    assert (told["method"], told["blocks"], told["learning_rate"], told["epochs"]) == ("lora", None, 3e-4, 2)
    assert "glue-qqp-large" in CliRunner().invoke(main, ["train", "--recipes"]).stdout
    for wrong in (["train"], ["train", "--recipe", "no"], [*common, "--checkpoints", "a", "-o", "x"]):
        assert CliRunner().invoke(main, wrong).exit_code == 2


def test_scores_agree_with_scipy_and_the_definition():
    from scipy.stats import pearsonr

    rng = np.random.default_rng(0)
    left, right = rng.normal(size=50), rng.normal(size=50)
    assert pearson(left, right) == pytest.approx(pearsonr(left, right)[0])
    assert pearson(left, np.ones(50)) == 0
    a, b = rng.integers(0, 2, 60), rng.integers(0, 2, 60)
    tp, tn = np.sum((a == 1) & (b == 1)), np.sum((a == 0) & (b == 0))
    fp, fn = np.sum((a == 1) & (b == 0)), np.sum((a == 0) & (b == 1))
    binary = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(a, b) == pytest.approx(binary)
    assert matthews(a, np.zeros(60, int)) == 0


def test_perplexity_weighs_tokens():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[0, 2:] = -100
    rows = token_losses(logits, labels)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1))

    class Evaluated:
        predictions = rows.numpy()
        label_ids = labels.numpy()

    assert scorer("perplexity")(Evaluated())["perplexity"] == pytest.approx(math.exp(expected), rel=1e-6)


@pytest.mark.parametrize(("place", "inside"), [("org/set:rte", "rte"), ("org/set", "data"), ("org/set", "")])
def test_a_hub_data_set_is_read_from_its_folder(home, tmp_path, place, inside, monkeypatch):
    """The Hub's layouts: a folder per configuration, the converter's ``data``, files at the top."""
    glue_folder(tmp_path / "files", "glue-rte")
    if inside:
        (tmp_path / "hub").mkdir()
        (tmp_path / "files").rename(tmp_path / "hub" / inside)
    else:
        (tmp_path / "files").rename(tmp_path / "hub")
    asked: list[Any] = []

    def download(hub_id: str, **options: Any) -> str:
        asked.append((hub_id, options["repo_type"], options["allow_patterns"]))
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    data = load_data(settings(home, data=place, text=(), label=None))
    assert (len(data.train), len(data.held_out)) == (30, 10)
    assert data.train[0].texts[0] == data.train[0].texts[1]
    ((hub_id, kind, patterns),) = asked
    assert (hub_id, kind) == ("org/set", "dataset")
    wanted = f"{inside}/train-00000-of-00001.parquet" if inside else "train-00000-of-00001.parquet"
    from fnmatch import fnmatch

    assert any(fnmatch(wanted, pattern) for pattern in patterns)
