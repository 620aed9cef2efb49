"""The paper's experiments at the paper's size: every setting of theirs takes a step on a toy in place of its model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from training_models import reviews, save_decoder, save_encoder

from bora_analysis.training import experiment
from bora_analysis.training.data import load_data
from bora_analysis.training.models import base_model, collator, encoded_example, quiet, tokenizer_of
from bora_analysis.training.peft_configs import peft_config
from bora_analysis.training.plan import read_plan

WIDTH = 64  # b = 64 must divide it


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    save_encoder(folder / "encoder")
    save_decoder(folder / "decoder", width=WIDTH)
    told = reviews(24)
    told.to_csv(folder / "reviews.csv", index=False)
    told[["sentence"]].rename(columns={"sentence": "text"}).to_csv(folder / "texts.csv", index=False)
    return folder


def toy_of(settings, home):
    """The same settings with a toy for the model, and short batches."""
    causal = settings.task == "causal-lm"
    label = None if causal else "rating" if settings.task == "regression" else "label"
    return replace(
        settings, model=str(home / ("decoder" if causal else "encoder")), label=label, batch_size=2, max_length=16,
        data=str(home / ("texts.csv" if causal else "reviews.csv")), text=(), validation_share=0.3,
    )  # fmt: skip


def chosen(name):
    """Every variant and point with one recipe and seed, and the first variant with every recipe."""
    plan = read_plan(name)
    recipe = plan.runs[0].point.get("recipe")
    for run in plan.runs:
        if run.settings.seed == 0 and (run.variant == plan.variants[0] or run.point.get("recipe") == recipe):
            yield run


@pytest.mark.parametrize(("name", "count"), [("figure3a", 5), ("table1", 23), ("table8", 10), ("table9", 42)])
def test_every_setting_of_a_paper_s_experiment_takes_a_step(name, count, home):
    import torch
    from peft import get_peft_model

    runs = list(chosen(name))
    assert len(runs) == count
    loaded = {}
    for run in runs:
        settings = toy_of(run.settings, home)
        kind = (settings.task, settings.dtype)
        if kind not in loaded:
            tokenizer, data = tokenizer_of(settings), load_data(settings)
            base, _ = base_model(settings, len(data.classes), tokenizer)
            examples = [encoded_example(example, tokenizer, settings) for example in data.train[: settings.batch_size]]
            loaded[kind] = base, collator(tokenizer, settings.task == "causal-lm")(examples)
        base, batch = loaded[kind]
        with quiet():
            model = get_peft_model(copy.deepcopy(base), peft_config(settings, base))
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        adapter = {key: value for key, value in trained.items() if "modules_to_save" not in key}
        if settings.method in ("lora", "bora"):
            sizes: list[Any] = [
                (module.out_features, module.in_features)
                for key, module in model.named_modules()
                if key.endswith("base_layer")
            ]
            b = settings.blocks or 0 if settings.method == "bora" else 0
            counted = sum((m + n + b * b) * settings.r for m, n in sizes)
            assert sum(value.numel() for value in adapter.values()) == counted, run.folder
        before = {key: value.detach().clone() for key, value in adapter.items()}
        optimiser = torch.optim.AdamW(trained.values(), lr=settings.learning_rate)
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        assert torch.isfinite(loss), run.folder
        assert any(not torch.equal(value, before[key]) for key, value in adapter.items()), run.folder
        assert all(torch.isfinite(value).all() for value in adapter.values()), run.folder


def test_the_command_trains_an_experiment_at_the_paper_s_size(home, tmp_path):
    """Table 7 of LLaMA with all of its settings but the model, the data and the length."""
    changes = {
        "recipe": "math10k-llama-3-8b", "seed": 0, "model": str(home / "decoder"), "data": str(home / "texts.csv"),
        "steps": 1, "batch_size": 2, "max_length": 16, "validation_share": 0.3,
    }  # fmt: skip
    table = experiment(read_plan("figure3a", changes), tmp_path, workers=1)
    assert table["variant"].tolist() == ["bora", "bora-no-exp", "bora-no-norm"]
    assert table["metric"].unique().tolist() == ["perplexity"]
    assert table["missing"].tolist() == [0, 0, 0]
    assert (table["mean"] > 1).all()
