"""Our counts against PEFT's own ``get_nb_trainable_parameters`` on a small transformer."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from click.testing import CliRunner
from method_lists import ALSO, BLOCK_METHODS, METHODS, SPLIT
from peft_models import tiny_gpt2, tiny_llama

from bora_analysis.catalogue import METHODS as CATALOGUE
from bora_analysis.catalogue.cost import cost
from bora_analysis.cli import main

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BLOCKS = 4
#: On larger layers below: PEFT's defaults for them need those.
DEFAULTS = {"vblora", "c3a", "fourierft", "waveft", "lily", "shira", "unilora", "adamss"}
#: Methods that PEFT 0.21 does not have, and one that it has for GPTQ's layers alone.
ELSEWHERE = {"melora", "bora", "hydralora", "moelora", "sbora-fa", "sbora-fb", "qalora", "relora", "full", "tlora"}


def peft_config(method, r, targets):
    import peft
    from peft.tuners.lora.config import BdLoraConfig

    common = {"target_modules": targets}
    return {
        "lora": lambda: peft.LoraConfig(r=r, **common),
        "lora+": lambda: peft.LoraConfig(r=r, **common),
        "rslora": lambda: peft.LoraConfig(r=r, use_rslora=True, **common),
        "dora": lambda: peft.LoraConfig(r=r, use_dora=True, **common),
        # Trained at init_r, pruned to target_r later.
        "adalora": lambda: peft.AdaLoraConfig(init_r=r, target_r=1, total_step=10, **common),
        "vera": lambda: peft.VeraConfig(r=r, **common),
        "pvera": lambda: peft.PveraConfig(r=r, **common),
        "loha": lambda: peft.LoHaConfig(r=r, **common),
        "lokr": lambda: peft.LoKrConfig(r=r, **common),
        "krona": lambda: peft.LoKrConfig(r=10**5, **common),  # PEFT's way to keep both factors whole
        "hira": lambda: peft.HiraConfig(r=r, **common),
        "gralora": lambda: peft.GraloraConfig(r=r, gralora_k=BLOCKS, **common),
        "delora": lambda: peft.DeloraConfig(r=r, **common),
        "bdlora-a": lambda: peft.LoraConfig(r=r, use_bdlora=BdLoraConfig(targets, None, BLOCKS), **common),
        "bdlora-b": lambda: peft.LoraConfig(r=r, use_bdlora=BdLoraConfig(None, targets, BLOCKS), **common),
        "miss": lambda: peft.MissConfig(r=r, **common),
        "kasa": lambda: peft.LoraConfig(r=r, kasa_config=peft.tuners.lora.KasaConfig(), **common),
        "tinylora": lambda: peft.TinyLoraConfig(r=r, **common),
        "randlora": lambda: peft.RandLoraConfig(r=r, **common),
        "poly": lambda: peft.PolyConfig(r=r, **common),
        "supertuning": lambda: peft.SupertuningConfig(**common),
        "supra": lambda: peft.SupertuningConfig(r=r, **common),
        "deft": lambda: peft.DeftConfig(r=r, **common),
        "psoft": lambda: peft.PsoftConfig(r=r, **common),
        "frod": lambda: peft.FrodConfig(progressbar=False, **common),
        "osf": lambda: peft.OSFConfig(**common),
        "glora": lambda: peft.GloraConfig(r=r, **common),
        "peanut": lambda: peft.PeanutConfig(r=r, **common),
        "road": lambda: peft.RoadConfig(group_size=4, **common),
        "oft": lambda: peft.OFTConfig(r=0, oft_block_size=r, **common),
        "boft": lambda: peft.BOFTConfig(boft_block_size=r, **common),
        "hra": lambda: peft.HRAConfig(r=r, **common),
        "ia3": lambda: peft.IA3Config(feedforward_modules=[], **common),
        **{
            name: lambda: peft.LoraConfig(r=r, **common)  # only the start differs
            for name in ("pissa", "lora-ga", "olora", "corda")
        },
    }[method]()


def trainable(model, config):
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config).get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("r", [1, 2, 5, 8])
@pytest.mark.parametrize("method", [m for m in (*METHODS, *ALSO) if m not in ELSEWHERE | DEFAULTS])
def test_parameters_equal_those_of_peft(method, r):
    import torch

    r *= BLOCKS if method in SPLIT else 1
    if method in ("oft", "boft"):  # the size of a block: above 1, and for BOFT one that fits
        r = max(r, 2) if method == "oft" else {1: 2, 2: 4}.get(r, 8)

    model = tiny_llama(head_dim=12)  # q (24, 16), k and v (12, 16), o (16, 24), gate and up (24, 16), down (16, 24)
    shapes = [
        (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in TARGETS
    ]
    assert len(shapes) == 14
    blocks = BLOCKS if method in BLOCK_METHODS else 1
    expected = sum(cost(method, m, n, r, blocks=blocks).parameters for m, n in shapes)
    assert trainable(model, peft_config(method, r, TARGETS)) == expected


@pytest.mark.parametrize("method", sorted(DEFAULTS))
def test_parameters_at_the_defaults_of_peft(method):
    import peft
    import torch

    shapes = {"first": (512, 768), "second": (256, 512)}
    model = torch.nn.ModuleDict({name: torch.nn.Linear(n, m) for name, (m, n) in shapes.items()})
    config = {
        "vblora": lambda: peft.VBLoRAConfig(r=3, target_modules=list(shapes)),
        "c3a": lambda: peft.C3AConfig(block_size=128, target_modules=list(shapes)),
        "fourierft": lambda: peft.FourierFTConfig(target_modules=list(shapes)),
        "waveft": lambda: peft.WaveFTConfig(target_modules=list(shapes)),
        "lily": lambda: peft.LilyConfig(r=3, target_modules=list(shapes)),
        "shira": lambda: peft.ShiraConfig(target_modules=list(shapes)),
        "unilora": lambda: peft.UniLoraConfig(r=3, target_modules=list(shapes)),
        "adamss": lambda: peft.AdamssConfig(r=3, target_modules=list(shapes)),
    }[method]()
    blocks = 2 if method == "c3a" else 1  # 256 is what both sizes of both layers share
    each = [cost(method, m, n, 3, blocks=blocks).parameters for m, n in shapes.values()]
    price: Any = CATALOGUE[method].cost
    assert trainable(model, config) == sum(each) + price.shared


@pytest.mark.parametrize("method", ["lora", "dora", "lokr", "hira"])
def test_a_configuration_is_enough(method, tmp_path):
    """The command reads shapes from config.json alone; fused and transposed layers (GPT-2) included."""
    model = tiny_gpt2()
    model.config.save_pretrained(tmp_path)
    arguments = ["cost", "--model", str(tmp_path), "--target", "all", "--method", method, "-r", "3", "--format", "json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    records = json.loads(result.stdout)
    assert [record["projection"] for record in records] == ["qkv", "o", "up", "down"]
    config = peft_config(method, 3, ["c_attn", "c_proj", "c_fc"])
    if method == "lokr":  # PEFT's LoKr knows no Conv1D, so the same sizes as linear layers
        import torch

        model = torch.nn.ModuleDict(
            {f"{name}{i}": torch.nn.Linear(n, m) for i in range(2) for name, m, n in sizes(records)}
        )
        config = peft_config(method, 3, [f"{name}{i}" for i in range(2) for name, _, _ in sizes(records)])
    assert trainable(model, config) == sum(record["parameters"] for record in records)


def sizes(records):
    return [(record["projection"], record["out_features"], record["in_features"]) for record in records]
