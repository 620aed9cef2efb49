"""``evaluate``: cuts of an adapter in its model, against PEFT's own forward pass and the records of training."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from peft import HiraConfig, LoraConfig, PeftModel, get_peft_model
from screens import on_screen, too_wide
from sklearn.metrics import matthews_corrcoef
from training_models import reviews, save_decoder, save_encoder

from bora_analysis import AdapterError, evaluate, read_adapter
from bora_analysis.analysis.keeping import Directions, Keep
from bora_analysis.cli import main
from bora_analysis.peft_methods import BoraConfig, HydraloraConfig, MeloraConfig
from bora_analysis.training import Settings, TrainingError, train
from bora_analysis.training.applying import AdaptedModel
from bora_analysis.training.data import load_data

pytestmark = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing:FutureWarning")
FEW: dict[str, Any] = {"resamples": 50, "device": "cpu"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Models, data, and finished runs of three tasks."""
    folder = tmp_path_factory.mktemp("evaluation")
    save_encoder(folder / "encoder")
    save_decoder(folder / "decoder")
    reviews().to_csv(folder / "reviews.csv", index=False)
    rows = [
        {"instruction": f"was the film {word}", "output": "it is the film", "answer": answer}
        for word, answer in [("good", "film"), ("bad", "it is the film"), ("fine", "true"), ("dull", "option2")] * 5
    ]
    (folder / "questions.json").write_text(json.dumps(rows))
    shared: dict[str, Any] = {
        "model": str(folder / "encoder"), "data": str(folder / "reviews.csv"), "label": "label", "batch_size": 8,
        "learning_rate": 1e-2, "validation_share": 0.3, "checkpoints": (0,), "target": "QV", "dropout": 0.0,
    }  # fmt: skip
    causal = {
        "model": str(folder / "decoder"),
        "data": str(folder / "questions.json"),
        "task": "causal-lm",
        "label": None,
    }
    runs: dict[str, dict[str, Any]] = {
        "lora": {"method": "lora", "r": 4, "steps": 30},
        "bora": {"method": "bora", "r": 2, "blocks": 4, "steps": 12, "metric": "matthews"},
        "rating": {"method": "lora", "r": 3, "steps": 12, "task": "regression", "label": "rating"},
        "causal": {"method": "lora", "r": 2, "steps": 6, "dtype": "float32", "label": None, **causal},
    }
    for name, own in runs.items():
        train(Settings(**(shared | own)), folder / name, device="cpu")
    return folder


def values(table: pd.DataFrame, metric: str | None = None) -> dict[str, float]:
    metric = metric or table["metric"].iloc[0]
    rows = table[table["metric"] == metric]
    return dict(zip(rows["keep"], rows["value"], strict=True))


@pytest.mark.parametrize("name", ["lora", "bora", "rating", "causal"])
def test_the_whole_adapter_scores_what_its_training_recorded(home, name):
    record = json.loads((home / name / "run.json").read_text())
    table = evaluate(home / name, keep="0,1,all", **FEW)
    ((metric, value),) = record["metric"].items()
    losses = [entry["held_out_loss"] for entry in record["history"] if "held_out_loss" in entry]
    assert table["metric"].unique().tolist() == [metric, "loss"]
    assert values(table)["all"] == pytest.approx(value, rel=1e-5)
    assert values(table, "loss")["all"] == pytest.approx(losses[-1], rel=1e-5)
    assert (table["n"] == record["examples"]["held_out"]).all()
    assert (table.loc[table["keep"] == "all", "parameters"] == record["parameters"]["adapter"]).all()
    assert values(table, "loss")["0"] != pytest.approx(values(table, "loss")["all"], rel=1e-3)
    rows = table.set_index(["keep", "metric"])
    for (keep, each), row in rows.iterrows():  # pyright: ignore[reportGeneralTypeIssues]
        assert row["change"] == pytest.approx(row["value"] - rows.loc[("all", each), "value"])
        assert keep != "all" or row[["change", "change_low", "change_high"]].tolist() == [0, 0, 0]
        assert row["low"] <= row["high"]


def logits_of(model: Any, home: Path, task: str = "classification") -> Any:
    """Logits of the held-out examples of the reviews, one by one: without padding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home / "encoder")
    data = load_data(Settings("m", str(home / "reviews.csv"), label="label", validation_share=0.3))
    with torch.no_grad():
        return torch.cat([model(**tokenizer(*each.texts, return_tensors="pt")).logits for each in data.held_out])


def classifier(home: Path, seed: int = 3) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForSequenceClassification.from_pretrained(home / "encoder", num_labels=2).eval()


def randomised(config: Any, home: Path, folder: Path) -> Any:
    """A PEFT model whose adapter, head and biases are random, saved in the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(classifier(home), config)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return model.eval()


TARGETS: dict[str, Any] = {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}
CONFIGS: dict[str, Any] = {
    "lora": lambda: LoraConfig(r=3, lora_alpha=6, **TARGETS),
    "embedding": lambda: LoraConfig(
        r=2,
        target_modules=["word_embeddings", "dense"],
        modules_to_save=["classifier"],
        exclude_modules="bert.pooler.dense",
    ),
    "bias of the module": lambda: LoraConfig(r=2, bias="lora_only", **TARGETS),
    "bias of B": lambda: LoraConfig(r=2, lora_alpha=6, lora_bias=True, **TARGETS),
    "dora": lambda: LoraConfig(r=2, use_dora=True, **TARGETS),
    "hira": lambda: HiraConfig(r=2, **TARGETS),
    "bora": lambda: BoraConfig(r=2, num_blocks=4, **TARGETS),
    "melora": lambda: MeloraConfig(r=2, num_minis=4, **TARGETS),
}


@pytest.mark.parametrize("way", ["merged", "pair", "auto"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_whole_adapter_in_the_model_is_pefts(home, tmp_path, name, way):
    model = randomised(CONFIGS[name](), home, tmp_path)
    expected = logits_of(model, home)
    adapter: Any = read_adapter(tmp_path, base=home / "encoder")
    base = classifier(home, seed=11)  # another head
    before = {key: value.clone() for key, value in base.state_dict().items()}
    found, part = Directions(adapter, adapter), Directions(adapter, adapter).part(Keep())
    ours = AdaptedModel(base, ("classifier.weight", "classifier.bias"), way)
    ours.take_over(adapter)
    ours.apply(adapter, {module: found.pair(module, index) for module, index in part.chosen.items()})
    torch.testing.assert_close(logits_of(base, home), expected, rtol=1e-4, atol=1e-4)
    # And one direction: PEFT's model of the same adapter, cut by a dense SVD in its base weights.
    one = found.part(Keep(k=1)).chosen
    ours.apply(adapter, {module: found.pair(module, index) for module, index in one.items()})
    if name != "bias of B":
        cut = classifier(home, seed=11)
        _cut_by_hand(cut, adapter, tmp_path)
        torch.testing.assert_close(logits_of(base, home), logits_of(cut, home), rtol=1e-4, atol=1e-4)
    ours.restore()
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert not any(module._forward_hooks for module in base.modules())


def _cut_by_hand(model: Any, adapter: Any, folder: Path) -> None:
    """σ₁ u₁ v₁ᵀ of each dense ΔW added to the weights; head and biases copied from the file by their names."""
    from safetensors.torch import load_file

    state = model.state_dict()
    for key, value in load_file(folder / "adapter_model.safetensors").items():
        plain = key.removeprefix("base_model.model.").replace("base_layer.", "")
        if plain in state:
            state[plain].copy_(value)
    for module in adapter:
        U, s, V = np.linalg.svd(adapter[module].to_dense())
        first = torch.from_numpy(s[0] * np.outer(U[:, 0], V[0])).float()
        weight = state[f"{module}.weight"]
        weight += first if weight.shape == first.shape else first.T


@pytest.mark.parametrize("kind", ["gpt2", "conv", "grouped"])
def test_other_layers_take_a_cut_as_pefts_do(tmp_path, kind):
    from peft_models import tiny_gpt2

    torch.manual_seed(0)
    if kind == "gpt2":
        base, config = tiny_gpt2(), LoraConfig(r=2, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True)
        inputs: Any = torch.arange(6)[None]
    else:
        base: Any = torch.nn.ModuleDict(
            {"a": torch.nn.Conv2d(3, 8, 3), "b": torch.nn.Conv2d(8, 8, 3, groups=2 if kind == "grouped" else 1)}
        )
        base.forward = lambda x: base["b"](base["a"](x))
        config, inputs = LoraConfig(r=2, target_modules=["a", "b"]), torch.randn(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = get_peft_model(base, config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_()
        model.eval().save_pretrained(tmp_path)

    def run(which: Any) -> Any:
        out = which(inputs)
        return (out.logits if kind == "gpt2" else out).detach().clone()

    expected = run(model)
    plain = model.unload()
    adapter: Any = read_adapter(tmp_path)
    found = Directions(adapter, adapter)
    pairs = {module: found.pair(module, index) for module, index in found.part(Keep()).chosen.items()}
    if kind == "grouped":
        with pytest.raises(AdapterError, match="b: is a convolution in 2 groups, and its ΔW spans"):
            AdaptedModel(plain).apply(adapter, pairs)
        return
    for way in ("merged", "auto", *(["pair"] if kind == "gpt2" else [])):
        ours = AdaptedModel(plain, (), way)
        ours.apply(adapter, pairs)
        torch.testing.assert_close(run(plain), expected, rtol=1e-4, atol=1e-3)
        ours.restore()


def test_half_precision_keeps_what_its_weights_would_round_away(home, tmp_path):
    base = classifier(home).to(torch.bfloat16)
    module = base.bert.encoder.layer[0].attention.self.query
    left, right = np.full((32, 1), 1e-3), np.full((1, 32), 1e-3)
    from bora_analysis import Adapter, lora

    adapter = Adapter.from_updates("small", {"bert.encoder.layer.0.attention.self.query": lora(left, right)})
    pairs = {"bert.encoder.layer.0.attention.self.query": (left, right)}
    x = torch.zeros(1, 32, dtype=torch.bfloat16)
    module.bias.data.zero_()
    x[0, 0] = 1e3
    module.weight.data.fill_(1.0)
    for way, moves in (("auto", True), ("merged", False)):
        ours = AdaptedModel(base, (), way)
        before = module.weight
        ours.apply(adapter, pairs)
        assert (module.weight is before) == (way == "auto")
        assert bool((module.weight == 1).all())  # 1 + 1e-6 is 1
        hooked = bool(module._forward_hooks)
        assert hooked is moves
        ours.restore()
    conv = torch.nn.ModuleDict({"a": torch.nn.Conv2d(3, 8, 3)}).to(torch.bfloat16)
    adapter = Adapter.from_updates("conv", {"a": lora(np.ones((8, 1)), np.ones((1, 27)))})
    with pytest.raises(AdapterError, match=r"conv: a: is a convolution in half precision.*--dtype float32"):
        AdaptedModel(conv).apply(adapter, {"a": (np.ones((8, 1)), np.ones((1, 27)))})


def test_one_base_model_is_loaded_once_and_left_as_it_was(home, monkeypatch):
    from bora_analysis.training import scores

    loaded = []
    own = scores.base_model

    def counted(*arguments: Any) -> Any:
        loaded.append(arguments[0].task)
        return own(*arguments)

    monkeypatch.setattr(scores, "base_model", counted)
    together = evaluate([home / "lora", home / "rating", home / "bora", home / "causal"], keep="0,2,all", **FEW)
    assert loaded == ["classification", "regression", "classification", "causal-lm"]  # other heads are other models
    loaded.clear()
    evaluate([home / "lora", home / "bora", home / "lora/checkpoint-0"], keep="1", **FEW)
    assert loaded == ["classification"]
    for name in ("lora", "bora", "rating", "causal"):
        alone = evaluate(home / name, keep="0,2,all", **FEW)
        among = together[together["adapter"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, among)


def test_cuts_orders_and_shares(home):
    table = evaluate(home / "lora", keep="0,1,2,4,9,60%,all", order=("largest", "smallest", "random"), draws=2, **FEW)
    rows = table[table["metric"] == "accuracy"]
    told = [*zip(rows["keep"], rows["order"], rows["draw"], strict=True)]
    assert told[:2] == [("all", "largest", 0), ("0", "largest", 0)]
    assert set(told[2:]) == {
        ("60%", "energy", 0),
        *((k, order, 0) for k in "12" for order in ("largest", "smallest", "random")),
        *((k, "random", 1) for k in "12"),
    }  # fmt: skip  4 of 4 and 9 of 4 are all
    by = rows.set_index(["keep", "order", "draw"])["energy"]
    assert by[("1", "smallest", 0)] < by[("1", "random", 0)] <= by[("1", "largest", 0)] < by[("2", "largest", 0)] < 1
    assert by[("60%", "energy", 0)] >= 0.6
    assert by[("1", "largest", 0)] + by[("2", "smallest", 0)] < 1
    again = evaluate(home / "lora", keep="1", order="random", draws=2, **FEW)
    pd.testing.assert_frame_equal(
        again[again["order"] == "random"].reset_index(drop=True),
        table[(table["order"] == "random") & (table["keep"] == "1")].reset_index(drop=True),
    )
    part = evaluate(home / "lora", keep="0,all", modules="layer.0", **FEW)
    assert 0 < part[part["keep"] == "0"]["energy"].iloc[0] < 1
    assert part[part["keep"] == "0"]["rank"].iloc[0] == 2  # two of the four modules keep their four


def test_the_split_and_the_metric_follow_the_settings(home):
    other = evaluate(home / "lora", keep="all", settings={"split_seed": 4}, **FEW)
    same = evaluate(home / "lora", keep="all", **FEW)
    assert values(other, "loss")["all"] != values(same, "loss")["all"]
    told = evaluate(home / "lora", keep="all", settings={"metric": "matthews"}, **FEW)
    assert values(told, "loss") == values(same, "loss")
    run = evaluate(home / "lora/checkpoint-0", keep="all", **FEW)  # the record lies above
    assert run["step"].tolist() == [0, 0]
    assert values(run, "loss")["all"] > values(same, "loss")["all"]
    steps = evaluate(home / "lora", keep="all", steps=True, **FEW)
    assert steps["step"].unique().tolist() == [0, 30]


def test_without_a_record_model_and_data_are_named(home, tmp_path):
    model = randomised(CONFIGS["lora"](), home, tmp_path / "mine")
    with pytest.raises(TrainingError, match=r"mine: no run.json beside it; name model and data \(--model, --data\)"):
        evaluate(tmp_path / "mine")
    with pytest.raises(TrainingError, match=r"mine: no run.json beside it; name data \(--data\)"):
        evaluate(tmp_path / "mine", model=str(home / "encoder"))
    given = {"model": str(home / "encoder"), "data": str(home / "reviews.csv")}
    chosen = {"label": "label", "validation_share": 0.3}
    table = evaluate(tmp_path / "mine", keep="all", settings=chosen, **given, **FEW)
    data = load_data(Settings(**given, **chosen))
    labels = [example.label for example in data.held_out]
    assert values(table)["all"] == np.mean(logits_of(model, home).argmax(-1).numpy() == labels)
    with pytest.raises(AdapterError, match=r"is in memory, where .*classifier.* beside ΔW cannot be found"):
        evaluate(model, keep="all", settings=chosen, **given, **FEW)


def test_answers_are_generated_and_counted(home):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bora_analysis.training.answers import generated, is_right

    table = evaluate(home / "causal", keep="0,all", answers=True, max_new_tokens=5, **FEW)
    assert table["metric"].unique().tolist() == ["exact_match", "perplexity", "loss"]
    tokenizer = AutoTokenizer.from_pretrained(home / "decoder")
    tokenizer.pad_token = tokenizer.eos_token
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(home / "decoder"), home / "causal").eval()
    record = json.loads((home / "causal/run.json").read_text())["settings"]
    data = load_data(Settings(**record | {"text": ()}))
    prompts = [str(example.prompt) for example in data.held_out]
    assert all(prompt.endswith("### Response:\n") for prompt in prompts)
    texts = generated(model, tokenizer, prompts, most=5, batch_size=2)
    right = [is_right(text, str(example.answer)) for text, example in zip(texts, data.held_out, strict=True)]
    assert values(table, "exact_match")["all"] == np.mean(right)
    loss = values(table, "loss")
    assert values(table, "perplexity") == pytest.approx({keep: np.exp(value) for keep, value in loss.items()})
    with pytest.raises(TrainingError, match="no columns instruction and output"):
        evaluate(home / "lora", answers=True, **FEW)


def test_a_language_model_learns_answers_and_loses_them_without_its_update(home, tmp_path):
    """From wrong to right by training, and back by cutting: exact match sees both."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(home / "decoder")
    for parameter in model.parameters():  # else the frozen head is too flat to learn with
        parameter.data.mul_(8 if parameter.dim() == 2 else 1)
    model.save_pretrained(tmp_path / "decoder")
    AutoTokenizer.from_pretrained(home / "decoder").save_pretrained(tmp_path / "decoder")
    rows = [{"instruction": word, "output": f"the film was {word}"} for word in ("good", "bad")]
    (tmp_path / "rows.json").write_text(json.dumps(rows * 12))
    told = Settings(
        str(tmp_path / "decoder"), str(tmp_path / "rows.json"), task="causal-lm", method="lora", r=8, target="QKVOGUD",
        steps=100, batch_size=8, learning_rate=1e-2, dropout=0.0, validation_share=0.25, checkpoints=(),
    )  # fmt: skip
    train(told, tmp_path / "run", device="cpu")
    found = values(evaluate(tmp_path / "run", keep="0,all", answers=True, max_new_tokens=6, **FEW), "exact_match")
    assert found == {"all": 1.0, "0": 0.0}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "no/such/folder"}, r"run.json: the base model no/such/folder is not here; name .* \(--model\)"),
    "data": ({"data": "no.csv"}, r"no.csv: no such file or folder"),
    "keep": ({"keep": "two"}, r"keep is 'two'; expected numbers"),
    "order": ({"order": "best"}, r"order is 'best'; expected one of largest"),
    "settings": ({"settings": {"labels": "x"}}, r"settings has 'labels'"),
    "task": (
        {"settings": {"task": "regression", "label": "rating"}},
        r"classifier.* has shape \(2,\), in the model \(1,\)",
    ),
    "device": ({"device": "cuda"}, r"torch sees no CUDA"),
    "confidence": ({"confidence": 2}, r"confidence is 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_line(home, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options, told = WRONG[name]
    with pytest.raises((TrainingError, AdapterError, ValueError), match=told) as error:
        evaluate(home / "lora", **(FEW | options))
    assert "\n" not in str(error.value)


def test_adapters_that_do_not_fit_are_refused(home, tmp_path):
    def copy(name: str, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(home / "lora", folder, ignore=shutil.ignore_patterns("checkpoint-*"))
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    with pytest.raises(AdapterError, match=r"alora_invocation_tokens; a ΔW in the weights would not respect it"):
        evaluate(copy("alora", alora_invocation_tokens=[1]), **FEW)
    from safetensors.numpy import load_file, save_file

    headless = copy("headless")
    weights = load_file(headless / "adapter_model.safetensors")
    kept = {key: value for key, value in weights.items() if "classifier" not in key}
    save_file(kept, headless / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"neither it nor the base model has classifier.bias, classifier.weight"):
        evaluate(headless, **FEW)
    other = copy("other")
    save_file(
        weights | {"base_model.model.nowhere.weight": np.ones(3, np.float32)}, other / "adapter_model.safetensors"
    )
    with pytest.raises(AdapterError, match=r"nowhere.weight: the model has no module nowhere"):
        evaluate(other, **FEW)
    record = copy("classes") / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"classes": ["bad", "good"]}))
    with pytest.raises(TrainingError, match=r"has classes negative, positive, and the run had bad, good"):
        evaluate(record.parent, **FEW)
    record.write_text("[]")
    with pytest.raises(TrainingError, match=r"run.json: is not a record of a run"):
        evaluate(record.parent, **FEW)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--resamples", "50", "--device", "cpu"])


def test_the_command(home, tmp_path):
    shown = run(home / "lora", home / "bora", "--keep", "0,1,all", "--order", "largest,random", "--draws", 2)
    assert shown.exit_code == 0, shown.stderr
    assert "lora: LoRA, 36 held-out examples" in shown.stdout
    assert "1 random" in shown.stdout
    assert "classifier" not in shown.stderr  # the head is used
    done = run(home / "lora", "--keep", "0,1,all", "-o", tmp_path / "t.csv", "--predictions", tmp_path / "p.parquet")
    assert done.exit_code == 0, done.stderr
    table, told = pd.read_csv(tmp_path / "t.csv", dtype={"keep": str}), pd.read_parquet(tmp_path / "p.parquet")
    expected = evaluate(home / "lora", keep="0,1,all", **FEW)
    assert table["keep"].tolist() == ["0", "0", "1", "1", "all", "all"]
    merged = table.merge(expected, on=["keep", "metric"], suffixes=("", "_expected"))
    np.testing.assert_allclose(merged["value"], merged["value_expected"], rtol=1e-12)
    means = told.assign(right=told["label"] == told["predicted"]).groupby("keep")["right"].mean().to_dict()
    assert means == pytest.approx(values(expected))
    assert told.groupby("keep")["loss"].mean().to_dict() == pytest.approx(values(expected, "loss"))
    assert told.groupby("keep")["example"].apply(list).tolist() == [list(range(36))] * 3


def test_an_interrupted_call_goes_on(home, tmp_path, monkeypatch):
    from bora_analysis.training import scores

    arguments = [home / "lora", home / "bora", "--keep", "0,1,4,all", "-o"]
    run(*arguments, tmp_path / "whole.csv", "--predictions", tmp_path / "whole.parquet")
    score, calls = scores.Bench.score, []

    def stopped(bench: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return score(bench)

    monkeypatch.setattr(scores.Bench, "score", stopped)
    part = [*arguments, tmp_path / "part.csv", "--predictions", tmp_path / "part.parquet", "--resume"]
    assert run(*part).exit_code != 0
    assert 0 < len(pd.read_csv(tmp_path / "part.csv")) < len(pd.read_csv(tmp_path / "whole.csv"))
    calls[:] = [1] * 10
    assert run(*part).exit_code == 0
    assert len(calls) == 10 + 4  # bora's all again, and its three cuts; lora is done
    assert (tmp_path / "part.csv").read_text() == (tmp_path / "whole.csv").read_text()
    stored = [
        pd.read_parquet(tmp_path / f"{name}.parquet").sort_values(["adapter", "keep", "example"])
        for name in ("part", "whole")
    ]
    pd.testing.assert_frame_equal(stored[0].reset_index(drop=True), stored[1].reset_index(drop=True))
    calls[:] = [1] * 10
    assert run(*part).exit_code == 0
    assert len(calls) == 10  # nothing is left to do
    (tmp_path / "part.parquet").unlink()
    assert run(*part).exit_code == 0
    assert len(calls) > 10  # a row whose predictions are missing is measured again
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    wrong = run(*arguments, tmp_path / "other.csv", "--resume")
    assert wrong.exit_code == 1
    assert "has no column adapter; expected a table of `evaluate`" in wrong.stderr


def test_comparing_two_adapters(home, tmp_path):
    done = run(home / "lora", home / "bora", "--keep", "1,all", "--compare", "--format", "csv", "--metric", "accuracy")
    assert done.exit_code == 0, done.stderr
    from io import StringIO

    table = pd.read_csv(StringIO(done.stdout))
    assert table["metric"].tolist() == ["accuracy", "loss"] * 2
    run(home / "lora", home / "bora", "--keep", "1,all", "--metric", "accuracy", "-o", tmp_path / "t.csv",
        "--predictions", tmp_path / "p.csv")  # fmt: skip
    stored = pd.read_csv(tmp_path / "p.csv", dtype={"keep": str})
    right = {
        name: (part["label"] == part["predicted"]).to_numpy()
        for name, part in stored[stored["keep"] == "all"].groupby("adapter")
    }
    row = table[(table["keep"] == "all") & (table["metric"] == "accuracy")].iloc[0]
    assert row["difference"] == pytest.approx(right["bora"].mean() - right["lora"].mean())
    assert row["only_first"] == (right["lora"] & ~right["bora"]).sum()
    assert row["only_second"] == (right["bora"] & ~right["lora"]).sum()
    assert "against lora (1)" in run(home / "lora", home / "bora", "--keep", "all", "--compare").stdout
    for arguments, told in (
        ([home / "lora", home / "rating"], "measured on other examples"),
        ([home / "lora"], "expected two adapters to compare"),
    ):
        wrong = run(*arguments, "--keep", "all", "--compare")
        assert wrong.exit_code == 2
        assert told in wrong.stderr


@pytest.mark.parametrize(("width", "encoding"), [(80, "utf-8"), (60, "ascii")])
def test_no_line_is_wider_than_the_terminal(home, tmp_path, monkeypatch, width, encoding):
    monkeypatch.chdir(tmp_path)
    names = [f"an-adapter-with-a-name-that-is-rather-long-{k}" for k in range(2)]
    for name, run in zip(names, ("lora", "bora"), strict=True):
        shutil.copytree(home / run, tmp_path / name)
    few = ("--resamples", 50, "--device", "cpu", "--metric", "accuracy")
    for more in (("--keep", "1,90%,all", "--order", "largest,random"), ("--keep", "all", "--compare")):
        code, out, err = on_screen("evaluate", *names, *few, *more, width=width, encoding=encoding)
        assert code == 0, err
        assert too_wide(out + err, width) == []
        assert "".join(out.split()).count(names[1]) == 1  # in a title, whole


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nowhere"], 1, "nowhere: no run.json beside it"),
        (["LORA", "--keep", "two"], 2, "keep is 'two'"),
        (["LORA", "--resume"], 2, "add -o FILE"),
        (["LORA", "--predictions", "p.txt"], 2, "expected a file .parquet or .csv"),
        (["LORA", "--compare", "--resume", "-o", "t.csv"], 2, "leave out one"),
        (["LORA", "--resume", "-o", "t.md"], 2, "expected one of csv, json or parquet"),
        (["LORA", "nowhere", "--keep", "all"], 1, "nowhere: no run.json"),
        (["LORA", "--model", "no/such/folder"], 1, "is not here; name its folder"),
    ],
)
def test_wrong_calls(home, arguments, code, told):
    found = run(*[home / "lora" if each == "LORA" else each for each in arguments])
    assert found.exit_code == code
    assert told in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr
    assert ("held-out" in found.stdout) == ("nowhere" in arguments and "LORA" in arguments)  # the others are shown


def test_a_routed_adapter_is_measured_by_its_mean_and_said(home, tmp_path):
    randomised(HydraloraConfig(r=2, **TARGETS), home, tmp_path / "hydra")
    shutil.copy(home / "lora/run.json", tmp_path / "hydra")
    done = run(tmp_path / "hydra", "--keep", "1,all")
    assert done.exit_code == 0, done.stderr
    assert "hydra: ΔW depends on the token; the uniform mean of its experts is measured" in " ".join(
        done.stderr.split()
    )


def test_the_matthews_correlation_is_scikit_learns(home, tmp_path):
    done = run(home / "bora", "--keep", "1,all", "-o", tmp_path / "t.csv", "--predictions", tmp_path / "p.csv")
    assert done.exit_code == 0, done.stderr
    stored = pd.read_csv(tmp_path / "p.csv", dtype={"keep": str})
    found = values(pd.read_csv(tmp_path / "t.csv", dtype={"keep": str}))
    for keep, part in stored.groupby("keep"):
        assert found[str(keep)] == pytest.approx(matthews_corrcoef(part["label"], part["predicted"]))
